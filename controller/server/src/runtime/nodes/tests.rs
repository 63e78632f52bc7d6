use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use uvm_api::{
    Device, DiskState, ErrorCode, ImageSource, Job, JobSpec, JobState, Node, Problem, Retry, StepProgress,
};

use super::*;
use crate::blobs::Blobs;
use crate::ca::Authority;
use crate::core::{CallErrorKind, UvmWork};
use crate::hypervisor::fake::{FakeCapabilities, FakeHypervisor, FakeUtilityVm};
use crate::hypervisor::{
    Attachment, Capabilities, Change, Domain, DomainSpec, DomainState, Error, ErrorKind, NodeReport,
    Result as Verbs, Role, Volume,
};
use crate::model::{ImageContents, IoLimits};
use crate::store::InstanceConfig;
use crate::uvm::UvmError;

fn id(byte: u8) -> Id {
    Id::new(1_700_000_000_000, [byte; 10])
}

fn address() -> NodeAddress {
    let (name, hypervisor) = ("n1".to_owned(), "fake".to_owned());
    NodeAddress { id: id(9), name, hypervisor, address: String::new() }
}

/// A hypervisor that knows the domain of its utility VM, writes down what it hears, and may fail.
#[derive(Default)]
struct Manager {
    heard: Mutex<Vec<String>>,
    domain: Mutex<Option<Domain>>,
    defined: Mutex<Option<DomainSpec>>,
    fails: Option<ErrorKind>,
    /// It does not start what it is told to.
    starts_nothing: bool,
    service: Option<SocketAddr>,
}

impl Manager {
    fn with_domain(state: DomainState) -> Self {
        let (role, disks) = (Role::Utility, vec![(id(1), false), (id(2), true)]);
        let domain = Domain { id: id(9), role, state, vcpus: 1, memory_mib: 128, disks, starts: 1 };
        Self { domain: Mutex::new(Some(domain)), ..Self::default() }
    }

    fn hear<T>(&self, what: impl Into<String>, answer: T) -> Verbs<T> {
        self.heard.lock().unwrap().push(what.into());
        match self.fails {
            Some(kind) => Err(Error::new(kind, "planted")),
            None => Ok(answer),
        }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    fn state(&self, state: DomainState) {
        let mut domain = self.domain.lock().unwrap();
        let found =
            domain.get_or_insert_with(|| Manager::with_domain(state).domain.into_inner().unwrap().unwrap());
        found.state = state;
    }
}

impl HypervisorManager for Manager {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            suspend: true,
            shutdown: true,
            hot_plug: true,
            shared_read: true,
            vcpus_up: Change::Live,
            vcpus_down: Change::Restart,
            memory_up: Change::Restart,
            memory_down: Change::Unsupported,
            volume_grow: Change::Live,
            io_limits: Change::Live,
            numa: false,
            per_cpu_statistics: true,
        }
    }
    fn capacity(&self) -> Verbs<NodeCapacity> {
        self.hear("capacity", NodeCapacity { numa: Vec::new(), storage_mib: 77 })
    }
    fn report(&self) -> Verbs<NodeReport> {
        let domains = self.domain.lock().unwrap().iter().cloned().collect();
        self.hear("report", NodeReport { domains, ..NodeReport::default() })
    }
    fn domain(&self, _: Id) -> Verbs<Option<Domain>> {
        let domain = self.domain.lock().unwrap().clone();
        self.hear("domain", domain)
    }
    fn volume(&self, id: Id) -> Verbs<Option<Volume>> {
        self.hear("volume", Some(Volume { id, size_mib: 1, allocated_bytes: 0 }))
    }
    fn create_volume(&self, id: Id, size_mib: u64) -> Verbs<Volume> {
        self.hear(format!("create {size_mib}"), Volume { id, size_mib, allocated_bytes: 0 })
    }
    fn grow_volume(&self, id: Id, size_mib: u64) -> Verbs<Volume> {
        self.hear(format!("grow {size_mib}"), Volume { id, size_mib, allocated_bytes: 0 })
    }
    fn delete_volume(&self, _: Id) -> Verbs<()> {
        self.hear("delete", ())
    }
    fn define(&self, spec: &DomainSpec) -> Verbs<()> {
        *self.defined.lock().unwrap() = Some(spec.clone());
        self.hear("define", ())
    }
    fn undefine(&self, _: Id) -> Verbs<()> {
        self.hear("undefine", ())
    }
    fn start(&self, _: Id) -> Verbs<()> {
        if !self.starts_nothing {
            self.state(DomainState::Running);
        }
        self.hear("start", ())
    }
    fn shutdown(&self, _: Id) -> Verbs<()> {
        self.hear("shutdown", ())
    }
    fn destroy(&self, _: Id) -> Verbs<()> {
        self.state(DomainState::ShutOff);
        self.hear("destroy", ())
    }
    fn suspend(&self, _: Id) -> Verbs<()> {
        self.hear("suspend", ())
    }
    fn resume(&self, _: Id) -> Verbs<()> {
        self.state(DomainState::Running);
        self.hear("resume", ())
    }
    fn reboot(&self, _: Id) -> Verbs<()> {
        self.hear("reboot", ())
    }
    fn attach(&self, _: Id, attachment: &Attachment) -> Verbs<()> {
        self.hear(format!("attach {}", attachment.serial), ())
    }
    fn detach(&self, _: Id, _: Id) -> Verbs<()> {
        self.hear("detach", ())
    }
    fn set_vcpus(&self, _: Id, vcpus: u32) -> Verbs<()> {
        self.hear(format!("vcpus {vcpus}"), ())
    }
    fn set_memory(&self, _: Id, memory_mib: u64) -> Verbs<()> {
        self.hear(format!("memory {memory_mib}"), ())
    }
    fn set_io_limits(&self, _: Id, _: Id, limits: IoLimits) -> Verbs<()> {
        self.hear(format!("limits {}", limits.bytes_per_second), ())
    }
    fn service_address(&self, _: Id) -> Verbs<SocketAddr> {
        self.service.ok_or_else(|| Error::new(ErrorKind::WrongState, "it does not run"))
    }
}

/// A utility VM that answers by a script and writes down what it hears; what is not in the script is not reached.
#[derive(Default)]
struct Scripted {
    heard: Mutex<Vec<String>>,
    submitted: Mutex<Vec<JobSpec>>,
    /// Answers to questions about whether it is in service.
    probes: Mutex<VecDeque<bool>>,
    /// Answers to submissions.
    submissions: Mutex<VecDeque<Result<Job, UvmError>>>,
    /// Answers to looks at a job.
    looks: Mutex<VecDeque<Result<Option<Job>, UvmError>>>,
    /// The answer to every look after those.
    ever: Option<Job>,
    devices: Vec<Device>,
}

fn silent<T>() -> Result<T, UvmError> {
    Err(UvmError::Unreachable("silence".to_owned()))
}

fn described() -> Node {
    serde_json::from_value(json!({
        "name": "n1", "version": "1", "kernel": "6", "cpus": 1, "memory_bytes": 1, "rss_bytes": 1,
        "peak_rss_bytes": 1, "boot_time": "now", "boot_ms": 1, "public_key": "k",
    }))
    .unwrap()
}

impl Scripted {
    fn with_job(submission: Job, looks: Vec<Result<Option<Job>, UvmError>>) -> Self {
        Self {
            submissions: Mutex::new(VecDeque::from([Ok(submission)])),
            looks: Mutex::new(looks.into()),
            ..Self::default()
        }
    }

    fn hear(&self, what: impl Into<String>) {
        self.heard.lock().unwrap().push(what.into());
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

impl UtilityVm for Scripted {
    fn node(&self) -> Result<Node, UvmError> {
        self.hear("node");
        match self.probes.lock().unwrap().pop_front() {
            Some(true) => Ok(described()),
            _ => silent(),
        }
    }
    fn devices(&self) -> Result<Vec<Device>, UvmError> {
        self.hear("devices");
        Ok(self.devices.clone())
    }
    fn submit(&self, spec: &JobSpec) -> Result<Job, UvmError> {
        self.hear("submit");
        self.submitted.lock().unwrap().push(spec.clone());
        self.submissions.lock().unwrap().pop_front().unwrap_or_else(silent)
    }
    fn job(&self, id: &str) -> Result<Option<Job>, UvmError> {
        self.hear(format!("job {id}"));
        let next = self.looks.lock().unwrap().pop_front();
        next.unwrap_or_else(|| self.ever.clone().map_or_else(silent, |job| Ok(Some(job))))
    }
    fn cancel(&self, id: &str) -> Result<(), UvmError> {
        self.hear(format!("cancel {id}"));
        Ok(())
    }
}

fn job(state: JobState) -> Job {
    let progress = StepProgress {
        step: "write".to_owned(),
        index: 1,
        steps: 2,
        bytes_done: 5,
        bytes_total: Some(10),
        bytes_per_second: 1,
    };
    Job {
        id: "j1".to_owned(),
        kind: "sanitize".to_owned(),
        device: "d".to_owned(),
        state,
        cancel_requested: false,
        disk_state: DiskState::Untouched,
        plan_hash: String::new(),
        created_at: String::new(),
        ended_at: None,
        progress: (state == JobState::Running).then_some(progress),
        result: None,
        problem: None,
    }
}

fn failed(code: ErrorCode, retry: Option<Retry>) -> Job {
    let causes = vec!["deep".to_owned()];
    let problem = Problem { retry, causes, step: Some("write".to_owned()), ..Problem::new(code, "why") };
    Job { problem: Some(problem), ..job(JobState::Failed) }
}

fn device(serial: &str, held_by: Option<&str>) -> Device {
    let mut device: Device = serde_json::from_value(json!({
        "serial": serial, "node": "vda", "size_bytes": 1, "logical_block_size": 512,
        "physical_block_size": 512, "read_only": false,
    }))
    .unwrap();
    device.held_by = held_by.map(str::to_owned);
    device
}

/// A call, nobody listening and nobody cancelling.
fn call(manager: &Manager, utility: &Arc<Scripted>, call: &Call) -> Result<CallAnswer, CallError> {
    let address = address();
    let site = LocalSite::new(&address, manager, Arc::clone(utility) as Arc<dyn UtilityVm>);
    perform(&site, call, &mut |_| {}, &|| false)
}

fn kind(result: Result<CallAnswer, CallError>) -> CallErrorKind {
    result.expect_err("an error is expected").kind
}

fn sanitize() -> Call {
    let work = UvmWork::Sanitize { serial: "d".to_owned(), size_mib: 3 };
    Call::UvmJob { id: "j1".to_owned(), work: Box::new(work) }
}

#[test]
fn every_verb_reaches_the_hypervisor_and_every_error_the_core() {
    let attachment = Attachment {
        volume: id(1),
        serial: "s1".to_owned(),
        read_only: false,
        io_limits: IoLimits::default(),
    };
    let limits = IoLimits { bytes_per_second: 5, operations_per_second: 0 };
    let boot = crate::hypervisor::Boot::Disk;
    let spec = DomainSpec {
        id: id(1),
        name: String::new(),
        role: Role::Guest,
        vcpus: 1,
        memory_mib: 1,
        numa: Vec::new(),
        disks: Vec::new(),
        mac: String::new(),
        boot,
    };
    let calls = [
        (Call::InspectDomain(id(1)), "domain"),
        (Call::InspectVolume(id(1)), "volume"),
        (Call::CreateVolume { volume: id(1), size_mib: 7 }, "create 7"),
        (Call::GrowVolume { volume: id(1), size_mib: 8 }, "grow 8"),
        (Call::DeleteVolume(id(1)), "delete"),
        (Call::Define(Box::new(spec)), "define"),
        (Call::Undefine(id(1)), "undefine"),
        (Call::Start(id(1)), "start"),
        (Call::Shutdown(id(1)), "shutdown"),
        (Call::Destroy(id(1)), "destroy"),
        (Call::Suspend(id(1)), "suspend"),
        (Call::Resume(id(1)), "resume"),
        (Call::Reboot(id(1)), "reboot"),
        (Call::Attach { domain: id(1), attachment }, "attach s1"),
        (Call::Detach { domain: id(1), volume: id(1) }, "detach"),
        (Call::SetVcpus { domain: id(1), vcpus: 3 }, "vcpus 3"),
        (Call::SetMemory { domain: id(1), memory_mib: 4 }, "memory 4"),
        (Call::SetIoLimits { domain: id(1), volume: id(1), limits }, "limits 5"),
        (Call::Observe, "report"),
    ];
    let kinds = [
        (ErrorKind::Unreachable, CallErrorKind::Unreachable),
        (ErrorKind::TimedOut, CallErrorKind::Unreachable),
        (ErrorKind::NotFound, CallErrorKind::NotFound),
        (ErrorKind::WrongState, CallErrorKind::WrongState),
        (ErrorKind::NoResources, CallErrorKind::NoResources),
        (ErrorKind::Unsupported, CallErrorKind::Unsupported),
        (ErrorKind::Failed, CallErrorKind::Transient),
    ];
    let utility = Arc::new(Scripted::default());
    for (one, verb) in &calls {
        let manager = Manager::default();
        call(&manager, &utility, one).unwrap();
        assert_eq!(manager.heard()[0], *verb);
        for (of_hypervisor, of_core) in kinds {
            let manager = Manager { fails: Some(of_hypervisor), ..Manager::default() };
            let error = call(&manager, &utility, one).expect_err(verb);
            assert_eq!((error.kind, error.message.as_str()), (of_core, "planted"), "{verb}");
        }
    }
    assert!(utility.heard().is_empty());
}

#[test]
fn a_look_at_a_node_asks_only_a_utility_vm_that_runs() {
    let utility = Arc::new(Scripted {
        probes: Mutex::new([true, false].into()),
        devices: vec![
            device("a", Some("j1")),
            device("b", Some("j1")),
            device("c", None),
            device("d", Some("j2")),
        ],
        ..Scripted::default()
    });
    let look = |manager: &Manager| match call(manager, &utility, &Call::Observe) {
        Ok(CallAnswer::Observed(observation)) => observation,
        other => panic!("{other:?}"),
    };
    for state in [DomainState::ShutOff, DomainState::Crashed, DomainState::Paused] {
        assert!(look(&Manager::with_domain(state)).utility.is_none());
    }
    assert!(utility.heard().is_empty());
    let seen = look(&Manager::with_domain(DomainState::Running));
    assert_eq!((seen.utility.unwrap().name.as_str(), seen.uvm_jobs_running), ("n1", 2));
    assert_eq!((seen.capacity.storage_mib, seen.report.domains.len()), (77, 1));
    // It runs and does not answer.
    let seen = look(&Manager::with_domain(DomainState::Running));
    assert!(seen.utility.is_none() && seen.uvm_jobs_running == 0);
}

#[test]
fn devices_are_those_asked_for_and_seen() {
    let devices = vec![device("a", None), device("b", None)];
    let utility = Arc::new(Scripted { devices, ..Scripted::default() });
    let asked = ["c", "b"].map(str::to_owned).to_vec();
    let manager = Manager::with_domain(DomainState::Running);
    let Ok(CallAnswer::Devices(seen)) = call(&manager, &utility, &Call::UvmDevices(asked)) else {
        panic!("devices were expected");
    };
    assert_eq!(seen, ["b"]);
}

#[test]
fn a_utility_vm_is_started_only_where_it_does_not_run_and_keeps_its_disks() {
    for (state, verbs) in [
        (Some(DomainState::Running), &[][..]),
        (Some(DomainState::Paused), &["resume"]),
        (Some(DomainState::ShutOff), &["define", "start"]),
        (Some(DomainState::Crashed), &["define", "start"]),
        (None, &["define", "start"]),
    ] {
        let manager = state.map_or_else(Manager::default, Manager::with_domain);
        let utility = Arc::new(Scripted { probes: Mutex::new([false, true].into()), ..Scripted::default() });
        call(&manager, &utility, &Call::EnsureUtilityVm).unwrap();
        let heard: Vec<String> = manager.heard().into_iter().filter(|verb| verb != "domain").collect();
        assert_eq!(heard, verbs, "{state:?}");
        assert_eq!(utility.heard(), ["node", "node"]);
        let Some(spec) = manager.defined.lock().unwrap().clone() else { continue };
        let disks: Vec<_> = spec.disks.iter().map(|disk| (disk.volume, disk.read_only)).collect();
        let expected = if state.is_some() { vec![(id(1), false), (id(2), true)] } else { Vec::new() };
        assert_eq!(disks, expected, "{state:?}");
        assert!(spec.disks.iter().all(|disk| disk.serial == disk.volume.serial()));
        assert_eq!((spec.id, spec.role, spec.vcpus, spec.memory_mib), (id(9), Role::Utility, 1, 128));
        assert_eq!(spec.mac, "52:55:09:09:09:09");
    }
}

#[test]
fn a_restart_powers_off_what_runs_first() {
    for (manager, verbs) in [
        (Manager::with_domain(DomainState::Running), &["domain", "destroy", "define", "start"][..]),
        (Manager::default(), &["domain", "define", "start"]),
    ] {
        let utility = Arc::new(Scripted { probes: Mutex::new([true].into()), ..Scripted::default() });
        call(&manager, &utility, &Call::RestartUtilityVm).unwrap();
        assert_eq!(manager.heard(), verbs);
    }
}

#[test]
fn a_utility_vm_that_never_answers_is_away() {
    let utility = Arc::new(Scripted::default());
    let manager = Manager::with_domain(DomainState::Running);
    let error = call(&manager, &utility, &Call::EnsureUtilityVm).unwrap_err();
    assert_eq!(error.kind, CallErrorKind::UtilityVmAway);
    assert!(error.message.contains("60 s") && error.causes[0].contains("silence"), "{error:?}");
    // 50, 100, 200, 400 ms, and then every half second of a minute.
    let asked = utility.heard().len();
    assert!((100..130).contains(&asked), "{asked}");
    // One that ended is not waited for.
    let utility = Arc::new(Scripted::default());
    let manager = Manager { starts_nothing: true, ..Manager::default() };
    let error = call(&manager, &utility, &Call::EnsureUtilityVm).unwrap_err();
    assert_eq!((error.kind, utility.heard().len()), (CallErrorKind::UtilityVmAway, 1));
    assert!(error.message.contains("ended"), "{error:?}");
}

#[test]
fn a_job_is_followed_to_its_end() {
    let running = || Ok(Some(job(JobState::Running)));
    let looks = vec![running(), running(), Ok(Some(job(JobState::Succeeded)))];
    let utility = Arc::new(Scripted::with_job(job(JobState::Running), looks));
    let (address, manager) = (address(), Manager::default());
    let site = LocalSite::new(&address, &manager, Arc::clone(&utility) as Arc<dyn UtilityVm>);
    let mut told = Vec::new();
    let answer = perform(&site, &sanitize(), &mut |progress| told.push(progress), &|| false).unwrap();
    assert!(matches!(answer, CallAnswer::UvmJob(job) if job.state == JobState::Succeeded));
    assert_eq!(told.len(), 3);
    assert_eq!((told[0].step.as_str(), told[0].bytes_done, told[0].bytes_total), ("write", 5, Some(10)));
    assert_eq!(utility.heard(), ["submit", "job j1", "job j1", "job j1"]);
    assert_eq!(site.now().as_millis(), 20 + 40 + 80, "the pauses double");
}

#[test]
fn a_job_that_had_ended_is_not_looked_at() {
    let utility = Arc::new(Scripted::with_job(job(JobState::Succeeded), Vec::new()));
    call(&Manager::default(), &utility, &sanitize()).unwrap();
    assert_eq!(utility.heard(), ["submit"]);
}

#[test]
fn a_job_that_was_forgotten_is_submitted_again_and_not_for_ever() {
    let utility = Scripted::with_job(job(JobState::Running), vec![Ok(None)]);
    utility.submissions.lock().unwrap().push_back(Ok(job(JobState::Succeeded)));
    let utility = Arc::new(utility);
    call(&Manager::default(), &utility, &sanitize()).unwrap();
    assert_eq!(utility.heard(), ["submit", "job j1", "submit"]);
    let submitted = utility.submitted.lock().unwrap().clone();
    assert_eq!(submitted[0], submitted[1]);

    let utility = Arc::new(Scripted {
        submissions: Mutex::new((0..9).map(|_| Ok(job(JobState::Running))).collect()),
        looks: Mutex::new((0..9).map(|_| Ok(None)).collect()),
        ..Scripted::default()
    });
    assert_eq!(kind(call(&Manager::default(), &utility, &sanitize())), CallErrorKind::Transient);
    assert_eq!(utility.heard().iter().filter(|heard| *heard == "submit").count(), 5);
}

#[test]
fn a_few_looks_may_be_missed_and_no_more() {
    let looks = vec![silent(), silent(), silent(), Ok(Some(job(JobState::Running))), silent()];
    let utility = Scripted {
        ever: Some(job(JobState::Succeeded)),
        ..Scripted::with_job(job(JobState::Running), looks)
    };
    let utility = Arc::new(utility);
    call(&Manager::default(), &utility, &sanitize()).unwrap();
    assert_eq!(utility.heard().len(), 7);

    let utility = Arc::new(Scripted::with_job(job(JobState::Running), Vec::new()));
    assert_eq!(kind(call(&Manager::default(), &utility, &sanitize())), CallErrorKind::UtilityVmAway);
    assert_eq!(utility.heard().len(), 5, "the submission and four looks");
    let utility = Arc::new(Scripted::default());
    assert_eq!(kind(call(&Manager::default(), &utility, &sanitize())), CallErrorKind::UtilityVmAway);
}

#[test]
fn a_job_nobody_waits_for_is_left_alone() {
    let utility = Arc::new(Scripted {
        ever: Some(job(JobState::Running)),
        ..Scripted::with_job(job(JobState::Running), Vec::new())
    });
    let (address, manager, asked) = (address(), Manager::default(), Cell::new(0));
    let site = LocalSite::new(&address, &manager, Arc::clone(&utility) as Arc<dyn UtilityVm>);
    let cancelled = || asked.replace(asked.get() + 1) == 3;
    assert_eq!(kind(perform(&site, &sanitize(), &mut |_| {}, &cancelled)), CallErrorKind::Transient);
    assert_eq!(utility.heard(), ["submit", "job j1", "job j1", "job j1"]);
}

#[test]
fn a_problem_is_permanent_only_where_the_same_again_fails_again() {
    use CallErrorKind::{Permanent, Transient};
    let cases = [
        (ErrorCode::DigestMismatch, Some(Retry::Never), Permanent),
        (ErrorCode::ImageUnreachable, Some(Retry::Same), Transient),
        (ErrorCode::DeviceBusy, Some(Retry::AfterRepair), Transient),
        (ErrorCode::Cancelled, Some(Retry::Same), Transient),
        (ErrorCode::Unknown, Some(Retry::Unknown), Transient),
        (ErrorCode::DeviceNotFound, Some(Retry::Never), Transient),
        (ErrorCode::JobConflict, Some(Retry::Same), Permanent),
        (ErrorCode::Unauthorized, None, Permanent),
        (ErrorCode::InvalidRequest, None, Permanent),
        (ErrorCode::MethodNotAllowed, None, Permanent),
        (ErrorCode::Internal, None, Transient),
        (ErrorCode::Overloaded, None, Transient),
    ];
    for (code, retry, expected) in cases {
        let ended = failed(code, retry);
        let problem = Box::new(ended.problem.clone().unwrap());
        let refused = Scripted {
            submissions: Mutex::new([Err(UvmError::Problem(problem))].into()),
            ..Scripted::default()
        };
        for utility in [refused, Scripted::with_job(ended.clone(), Vec::new())] {
            let error = call(&Manager::default(), &Arc::new(utility), &sanitize()).unwrap_err();
            assert_eq!(error.kind, expected, "{code:?} {retry:?}");
            assert!(error.message.contains("why (step write)"), "{error:?}");
            assert_eq!(error.causes, ["deep"]);
        }
    }
    let wordless = Arc::new(Scripted::with_job(job(JobState::Failed), Vec::new()));
    assert_eq!(kind(call(&Manager::default(), &wordless, &sanitize())), Transient);
}

#[test]
fn a_job_is_cancelled_and_waited_for() {
    let cancel = Call::CancelUvmJob("j1".to_owned());
    let manager = Manager::with_domain(DomainState::Running);
    for last in [Ok(Some(job(JobState::Cancelled))), Ok(Some(job(JobState::Succeeded))), Ok(None)] {
        let looks = vec![Ok(Some(job(JobState::Running))), last];
        let utility = Arc::new(Scripted { looks: Mutex::new(looks.into()), ..Scripted::default() });
        call(&manager, &utility, &cancel).unwrap();
        assert_eq!(utility.heard(), ["cancel j1", "job j1", "job j1"]);
    }
    // It will not end.
    let utility = Arc::new(Scripted { ever: Some(job(JobState::Running)), ..Scripted::default() });
    assert_eq!(kind(call(&manager, &utility, &cancel)), CallErrorKind::Transient);
    // A utility VM that does not run has forgotten it; one that is silent may be at work.
    for state in [DomainState::ShutOff, DomainState::Crashed] {
        let utility = Arc::new(Scripted::default());
        call(&Manager::with_domain(state), &utility, &cancel).unwrap();
        assert!(utility.heard().is_empty());
    }
    call(&Manager::default(), &Arc::new(Scripted::default()), &cancel).unwrap();
    assert_eq!(kind(call(&manager, &Arc::new(Scripted::default()), &cancel)), CallErrorKind::UtilityVmAway);
}

/// What is submitted for a work, as it goes over the wire.
fn submitted(work: UvmWork) -> Result<Value, CallError> {
    let utility = Arc::new(Scripted::with_job(job(JobState::Succeeded), Vec::new()));
    let one = Call::UvmJob { id: "j1".to_owned(), work: Box::new(work) };
    call(&Manager::default(), &utility, &one)?;
    Ok(serde_json::to_value(&utility.submitted.lock().unwrap()[0]).unwrap())
}

#[test]
fn work_becomes_jobs() {
    let text = str::to_owned;
    let oci = ImageContents::Oci {
        source: ImageSource::OciLayout { url: "https://images/".to_owned() },
        reference: Some("12".to_owned()),
        digest: "sha256:ab".to_owned(),
    };
    let disk = ImageContents::Disk { digest: "sha256:cd".to_owned(), size_bytes: 5, device_bytes: 6 };
    let customize = serde_json::from_value(json!({ "hostname": "web-1" })).unwrap();
    let config = Box::new(InstanceConfig {
        id: id(1),
        partitions: Vec::new(),
        customize,
        boot: uvm_api::BootSpec::default(),
    });
    let provision =
        |contents| UvmWork::Provision { serial: text("d"), size_mib: 2, contents, config: config.clone() };
    let restore = |contents| UvmWork::Restore { serial: text("d"), image: id(7), contents };
    assert_eq!(kind_of(provision(disk.clone())), CallErrorKind::Permanent);
    assert_eq!(kind_of(restore(oci.clone())), CallErrorKind::Permanent);
    let url = format!("https://controller/v1/blobs/{}", id(7));
    for (work, expected) in [
        (
            provision(oci),
            json!({
                "kind": "provision", "device": { "serial": "d", "size_bytes": 2 << 20 },
                "image": {
                    "source": { "oci-layout": { "url": "https://images/" } }, "reference": "12", "digest": "sha256:ab",
                },
                "customize": { "hostname": "web-1" }, "boot": { "consoles": ["tty0", "ttyS0"] },
            }),
        ),
        (
            UvmWork::Clone { source: text("s"), target: text("t") },
            json!({ "kind": "clone", "device": { "serial": "t" }, "source": { "serial": "s" } }),
        ),
        (
            UvmWork::Capture { serial: text("d"), image: id(7) },
            json!({
                "kind": "capture", "device": { "serial": "d" },
                "destination": { "url": url, "authorization": "" },
            }),
        ),
        (
            restore(disk),
            json!({
                "kind": "restore", "device": { "serial": "d" },
                "source": {
                    "url": url, "authorization": "", "digest": "sha256:cd", "size_bytes": 5, "device_bytes": 6,
                },
            }),
        ),
        (
            UvmWork::Sanitize { serial: text("d"), size_mib: 3 },
            json!({
                "kind": "sanitize", "device": { "serial": "d", "size_bytes": 3 << 20 },
                "technique": "overwrite", "pattern": "random",
            }),
        ),
        (
            UvmWork::SetHostname { serial: text("d"), hostname: text("db-1") },
            json!({ "kind": "customize", "device": { "serial": "d" }, "customize": { "hostname": "db-1" } }),
        ),
    ] {
        let mut expected = expected;
        expected["id"] = json!("j1");
        assert_eq!(submitted(work).unwrap(), expected);
    }
}

fn kind_of(work: UvmWork) -> CallErrorKind {
    submitted(work).expect_err("it cannot be done").kind
}

/// A grid over one manager, counting how often it is opened.
fn grid(
    folder: &tempfile::TempDir,
    manager: &Arc<Manager>,
    utility: Option<&Arc<Scripted>>,
) -> (GridNodes, Arc<AtomicUsize>) {
    let options = GridOptions {
        kernel: "/boot/vmlinux".into(),
        initramfs: "/boot/initramfs".into(),
        command_line: command_line(true),
        controller_url: "https://ctl.example:8440/".to_owned(),
        hosts: [("ctl.example".to_owned(), "10.0.2.2".parse().unwrap())].into(),
    };
    let now = 1_900_000_000_000;
    let authority = Arc::new(Authority::open_or_create(folder.path(), now).unwrap());
    let blobs = Arc::new(Blobs::open(&folder.path().join("images"), b"secret").unwrap());
    let opens = Arc::new(AtomicUsize::new(0));
    let (count, manager, utility) = (Arc::clone(&opens), Arc::clone(manager), utility.cloned());
    let factory: Factory = Box::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        let utility = utility.clone().map(|utility| utility as Arc<dyn UtilityVm>);
        Ok(Opened { manager: Arc::clone(&manager) as Arc<dyn HypervisorManager>, utility })
    });
    (GridNodes::new(options, authority, blobs, factory), opens)
}

#[test]
fn the_grid_hands_a_utility_vm_its_identity_and_opens_each_node_once() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, utility) = (Arc::new(Manager::default()), Arc::new(Scripted::default()));
    utility.probes.lock().unwrap().extend([true, true]);
    let (grid, opens) = grid(&folder, &manager, Some(&utility));
    let address = address();
    grid.perform(&address, &Call::EnsureUtilityVm, &mut |_| {}, &|| false).unwrap();
    let Boot::Kernel { kernel, initramfs, command_line, config, service_port } =
        manager.defined.lock().unwrap().clone().unwrap().boot
    else {
        panic!("a utility VM boots a kernel");
    };
    assert_eq!(
        (kernel.as_str(), initramfs.as_str(), service_port),
        ("/boot/vmlinux", "/boot/initramfs", 8443)
    );
    assert_eq!(command_line, "console=ttyS0 quiet nolapic_timer");
    let config: Value = serde_json::from_str(&config).unwrap();
    let authority = std::fs::read_to_string(folder.path().join(crate::ca::CERTIFICATE_FILE)).unwrap();
    assert_eq!(config["node"], "n1");
    assert_eq!(config["hosts"], json!({ "ctl.example": "10.0.2.2" }));
    assert_eq!(config["api"]["client_ca"], authority);
    assert_eq!(config["image_store_ca"], authority);
    assert!(config["api"]["private_key"].as_str().unwrap().contains("PRIVATE KEY"));
    assert!(config["api"]["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    // In service already: nothing is defined, no certificate is made.
    *manager.defined.lock().unwrap() = None;
    grid.perform(&address, &Call::EnsureUtilityVm, &mut |_| {}, &|| false).unwrap();
    assert!(manager.defined.lock().unwrap().is_none());
    for _ in 0..2 {
        grid.perform(&address, &Call::Observe, &mut |_| {}, &|| false).unwrap();
    }
    assert_eq!(opens.load(Ordering::SeqCst), 1);
    assert_eq!(manager.heard().iter().filter(|verb| *verb == "capacity").count(), 1);
    let other = NodeAddress { address: "elsewhere".to_owned(), ..address };
    grid.perform(&other, &Call::Observe, &mut |_| {}, &|| false).unwrap();
    assert_eq!(opens.load(Ordering::SeqCst), 2, "a node that is elsewhere now is opened there");
}

#[test]
fn images_of_the_grid_open_with_what_a_job_carries() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, utility) = (Arc::new(Manager::default()), Arc::new(Scripted::default()));
    utility.submissions.lock().unwrap().push_back(Ok(job(JobState::Succeeded)));
    let (grid, _) = grid(&folder, &manager, Some(&utility));
    let work = Box::new(UvmWork::Capture { serial: "d".to_owned(), image: id(7) });
    let capture = Call::UvmJob { id: "j1".to_owned(), work };
    grid.perform(&address(), &capture, &mut |_| {}, &|| false).unwrap();
    let Some(JobSpec::Capture(spec)) = utility.submitted.lock().unwrap().pop() else { panic!("a capture") };
    assert_eq!(spec.destination.url, format!("https://ctl.example:8440/v1/blobs/{}", id(7)));
    let blobs = Blobs::open(&folder.path().join("images"), b"secret").unwrap();
    let value = spec.destination.authorization.unwrap();
    assert!(blobs.check(value.reveal(), Verb::Put, id(7)));
    assert!(!blobs.check(value.reveal(), Verb::Get, id(7)));
}

#[test]
fn a_utility_vm_without_an_address_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Arc::new(Manager::with_domain(DomainState::Running));
    let (grid, _) = grid(&folder, &manager, None);
    let result = grid.perform(&address(), &sanitize(), &mut |_| {}, &|| false);
    assert_eq!(kind(result), CallErrorKind::UtilityVmAway);
    // A port nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let manager = Manager { service: Some(port), ..Manager::with_domain(DomainState::Running) };
    let (grid, _) = self::grid(&folder, &Arc::new(manager), None);
    let result = grid.perform(&address(), &sanitize(), &mut |_| {}, &|| false);
    assert_eq!(kind(result), CallErrorKind::UtilityVmAway);
    // The address is asked for even while the utility VM boots, and what it waits for can be called off.
    let told = RefCell::new(0);
    let cancelled = || told.replace_with(|count| *count + 1) > 0;
    let result = grid.perform(&address(), &Call::EnsureUtilityVm, &mut |_| {}, &cancelled);
    assert_eq!(kind(result), CallErrorKind::Transient);
}

#[test]
fn a_kind_of_hypervisor_without_a_manager_is_said() {
    let factory = qemu(crate::hypervisor::qemu::QemuOptions::default());
    let error = factory(&address()).err().expect("it is refused");
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("fake"), "{error}");
}

#[test]
fn the_fake_goes_through_the_same_words() {
    let capacity = NodeCapacity {
        numa: vec![crate::model::NumaCapacity { vcpus: 4, memory_mib: 4096 }],
        storage_mib: 4096,
    };
    let node = Arc::new(FakeHypervisor::new(capacity, FakeCapabilities::Qemu.capabilities()));
    node.set(|settings| (settings.boot_polls, settings.job_polls) = (3, 2));
    let (address, utility) = (address(), Arc::new(FakeUtilityVm::new(Arc::clone(&node))));
    let site = LocalSite::new(&address, &*node, utility as Arc<dyn UtilityVm>);
    let go = |call: Call| perform(&site, &call, &mut |_| {}, &|| false).unwrap();
    let disk = id(1);
    let attachment =
        Attachment { volume: disk, serial: disk.serial(), read_only: false, io_limits: IoLimits::default() };
    // Everything twice, as a controller does that was killed between.
    for _ in 0..2 {
        go(Call::EnsureUtilityVm);
        go(Call::CreateVolume { volume: disk, size_mib: 8 });
        go(Call::Attach { domain: address.id, attachment: attachment.clone() });
    }
    node.crash(address.id).unwrap();
    go(Call::EnsureUtilityVm);
    let seen = go(Call::UvmDevices(vec![disk.serial()]));
    assert!(matches!(seen, CallAnswer::Devices(seen) if seen == [disk.serial()]), "the disk stayed attached");
    let work = UvmWork::Sanitize { serial: disk.serial(), size_mib: 8 };
    for _ in 0..2 {
        let answer = go(Call::UvmJob { id: "j1".to_owned(), work: Box::new(work.clone()) });
        assert!(matches!(answer, CallAnswer::UvmJob(job) if job.state == JobState::Succeeded));
    }
    for _ in 0..2 {
        go(Call::CancelUvmJob("j1".to_owned()));
        go(Call::Detach { domain: address.id, volume: disk });
        go(Call::DeleteVolume(disk));
    }
    go(Call::RestartUtilityVm);
    let CallAnswer::Observed(seen) = go(Call::Observe) else { panic!("an observation was expected") };
    assert!(seen.utility.is_some() && seen.uvm_jobs_running == 0 && seen.report.volumes.is_empty());
    assert!(node.violations().is_empty(), "{:?}", node.violations());
}
