mod grid;
mod jobs;

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
