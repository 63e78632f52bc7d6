use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use uvm_api::{ErrorCode, JobSpec, JobState, Problem, Retry};

use super::*;
use crate::hypervisor::conformance::{Probe, conformance};
use crate::hypervisor::{Boot, Role};
use crate::model::NumaCapacity;
use crate::uvm::{UtilityVm, UvmError};

fn capacity() -> NodeCapacity {
    NodeCapacity { numa: vec![NumaCapacity { vcpus: 8, memory_mib: 8192 }], storage_mib: 4096 }
}

fn id(number: u8) -> Id {
    Id::new(1, [number; 10])
}

fn attachment(volume: Id) -> Attachment {
    Attachment { volume, serial: volume.serial(), read_only: false, io_limits: IoLimits::default() }
}

fn domain(number: u8, role: Role, disks: &[Id]) -> DomainSpec {
    DomainSpec {
        id: id(number),
        name: format!("domain-{number}"),
        role,
        vcpus: 1,
        memory_mib: 512,
        numa: Vec::new(),
        disks: disks.iter().map(|disk| attachment(*disk)).collect(),
        mac: "52:54:00:00:00:01".to_owned(),
        boot: Boot::Disk,
    }
}

const UTILITY: u8 = 200;

/// A node with its utility VM in service and a volume attached to it.
fn node() -> (Arc<FakeHypervisor>, FakeUtilityVm, Id) {
    let node = Arc::new(FakeHypervisor::new(capacity(), FakeCapabilities::Qemu.capabilities()));
    let volume = id(1);
    node.create_volume(volume, 64).unwrap();
    node.define(&domain(UTILITY, Role::Utility, &[volume])).unwrap();
    node.start(id(UTILITY)).unwrap();
    (Arc::clone(&node), FakeUtilityVm::new(node), volume)
}

fn spec(value: serde_json::Value) -> JobSpec {
    serde_json::from_value(value).unwrap()
}

fn sanitize(job: &str, volume: Id) -> JobSpec {
    spec(json!({ "kind": "sanitize", "id": job, "device": { "serial": volume.serial() } }))
}

fn provision(job: &str, volume: Id) -> JobSpec {
    let image = json!({ "source": { "oci-layout": { "url": "http://images" } }, "digest": "sha256:1" });
    let device = json!({ "serial": volume.serial() });
    spec(json!({ "kind": "provision", "id": job, "device": device, "image": image,
        "customize": { "hostname": "one" } }))
}

fn code<T: std::fmt::Debug>(result: std::result::Result<T, UvmError>) -> ErrorCode {
    match result {
        Err(UvmError::Problem(problem)) => problem.code,
        other => panic!("a problem was expected: {other:?}"),
    }
}

fn passes_conformance(preset: FakeCapabilities, change: impl Fn(&mut FakeSettings)) {
    let node = Arc::new(FakeHypervisor::new(capacity(), preset.capabilities()));
    node.set(&change);
    let current = RefCell::new(node);
    conformance(&Probe {
        open: &|| {
            let again = Arc::new(FakeHypervisor::from_json(&current.borrow().to_json()).unwrap());
            *current.borrow_mut() = Arc::clone(&again);
            again
        },
        boot: Boot::Disk,
        role: Role::Guest,
        memory_mib: 128,
        booted: &|_, _| {},
        crash: &|id| current.borrow().crash(id).unwrap(),
        reads_as_zeroes: &|id| current.borrow().contents(id) == Some(Contents::Zero),
        patience: Duration::from_secs(10),
    });
    let violations = current.borrow().violations();
    let deleted = |violation: &Violation| matches!(violation, Violation::DeletedUnsanitized { .. });
    assert!(violations.iter().all(deleted), "the suite sanitizes nothing: {violations:?}");
    assert!(!violations.is_empty(), "guests had these volumes");
}

#[test]
fn it_is_like_any_other_hypervisor() {
    for preset in FakeCapabilities::ALL {
        passes_conformance(preset, |_| {});
        passes_conformance(preset, |settings| settings.shutdown_looks = Some(3));
    }
}

#[test]
fn jobs_change_what_is_on_volumes() {
    let (node, utility, first) = node();
    let second = id(2);
    node.create_volume(second, 64).unwrap();
    node.attach(id(UTILITY), &attachment(second)).unwrap();
    let serials: Vec<String> = utility.devices().unwrap().into_iter().map(|device| device.serial).collect();
    assert_eq!(serials, [first.serial(), second.serial()]);

    let job = utility.submit(&provision("p", first)).unwrap();
    assert_eq!(job.state, JobState::Succeeded);
    let made = node.contents(first).unwrap();
    assert_eq!(made, Contents::Provisioned { job: "p".to_owned(), hostname: Some("one".to_owned()) });
    let device = json!({ "serial": second.serial() });
    let clone = json!({ "kind": "clone", "id": "c", "device": device,
        "source": { "serial": first.serial() } });
    assert_eq!(utility.submit(&spec(clone)).unwrap().state, JobState::Succeeded);
    assert_eq!(node.contents(second), Some(made.clone()), "a copy is the same");

    let customize =
        json!({ "kind": "customize", "id": "h", "device": device, "customize": { "hostname": "two" } });
    assert_eq!(utility.submit(&spec(customize)).unwrap().state, JobState::Succeeded);
    assert_ne!(node.contents(second), Some(made.clone()));

    let device_of_first = json!({ "serial": first.serial() });
    let capture = json!({ "kind": "capture", "id": "k", "device": device_of_first,
        "destination": { "url": "http://blobs", "authorization": "secret" } });
    let captured = utility.submit(&spec(capture)).unwrap();
    let Some(uvm_api::JobResult::Capture { digest, .. }) = captured.result else { panic!("{captured:?}") };
    let restore = json!({ "kind": "restore", "id": "r", "device": device, "source": {
        "url": "http://blobs", "digest": digest, "size_bytes": 1, "device_bytes": 64 << 20 } });
    assert_eq!(utility.submit(&spec(restore)).unwrap().state, JobState::Succeeded);
    assert_eq!(node.contents(second), Some(made), "what was captured is back");

    for volume in [first, second] {
        utility.submit(&sanitize(&format!("s-{volume}"), volume)).unwrap();
        node.detach(id(UTILITY), volume).unwrap();
        node.delete_volume(volume).unwrap();
    }
    assert_eq!(node.violations(), []);
    assert!(!node.to_json().contains("secret"), "credentials are not kept");
}

#[test]
fn jobs_take_polls_and_are_lost_with_a_reboot() {
    let (node, utility, volume) = node();
    node.set(|settings| (settings.job_polls, settings.boot_polls) = (2, 1));
    let job = sanitize("s", volume);
    assert_eq!(utility.submit(&job).unwrap().state, JobState::Running);
    assert_eq!(utility.submit(&job).unwrap().state, JobState::Running, "the same job");
    assert_eq!(code(utility.submit(&provision("s", volume))), ErrorCode::JobConflict);
    assert_eq!(utility.job("s").unwrap().unwrap().state, JobState::Running);
    node.reboot_utility_vm();
    assert!(matches!(utility.node(), Err(UvmError::Unreachable(_))), "it boots");
    assert_eq!(utility.job("s").unwrap(), None, "it knows nothing any more");
    assert_eq!(node.contents(volume), Some(Contents::Partial { job: "s".to_owned() }));
    utility.submit(&job).unwrap();
    utility.cancel("s").unwrap();
    assert_eq!(utility.job("s").unwrap().unwrap().state, JobState::Cancelled);
    assert_eq!(utility.submit(&job).unwrap().state, JobState::Running, "it may begin anew");
    utility.job("s").unwrap();
    assert_eq!(utility.job("s").unwrap().unwrap().state, JobState::Succeeded);
    utility.cancel("never heard of").unwrap();
    node.destroy(id(UTILITY)).unwrap();
    assert!(matches!(utility.job("s"), Err(UvmError::Unreachable(_))));
}

#[test]
fn broken_rules_are_remembered() {
    let (node, utility, volume) = node();
    node.set(|settings| settings.job_polls = 5);
    utility.submit(&provision("p", volume)).unwrap();
    assert_eq!(code(utility.submit(&sanitize("s", volume))), ErrorCode::DeviceBusy);
    node.detach(id(UTILITY), volume).unwrap();
    assert_eq!(utility.job("p").unwrap().unwrap().state, JobState::Failed);
    node.delete_volume(volume).unwrap();
    let mut large = domain(3, Role::Guest, &[]);
    large.memory_mib = 8193;
    node.define(&large).unwrap();
    let serial = volume.serial();
    let partial = Contents::Partial { job: "p".to_owned() };
    assert_eq!(
        node.violations(),
        [
            Violation::TwoJobs { serial, holder: "p".to_owned(), job: "s".to_owned() },
            Violation::DetachedUnderJob { volume, job: "p".to_owned() },
            Violation::DeletedUnsanitized { volume, contents: partial },
            Violation::OverAllocated { vcpus: 1, memory_mib: 8193 },
        ]
    );
}

#[test]
fn a_disk_that_is_written_cannot_be_copied() {
    let (node, utility, target) = node();
    let source = id(2);
    node.create_volume(source, 64).unwrap();
    node.define(&domain(3, Role::Guest, &[source])).unwrap();
    node.start(id(3)).unwrap();
    node.attach(id(UTILITY), &Attachment { read_only: true, ..attachment(source) }).unwrap();
    assert_eq!(code(utility.submit(&sanitize("s", source))), ErrorCode::DeviceReadOnly);
    let clone = |job: &str| {
        let device = json!({ "serial": target.serial() });
        spec(json!({ "kind": "clone", "id": job, "device": device, "source": { "serial": source.serial() } }))
    };
    node.suspend(id(3)).unwrap();
    utility.submit(&clone("held")).unwrap();
    assert_eq!(node.violations(), []);
    node.resume(id(3)).unwrap();
    utility.submit(&clone("running")).unwrap();
    let torn = Violation::ReadWhileWritten { volume: source, job: "running".to_owned() };
    assert_eq!(node.violations()[0], torn);
}

#[test]
fn faults_strike_before_and_after() {
    let (node, utility, volume) = node();
    let fault = |wanted: Moment, verb: &'static str| -> Option<Faults> {
        let mut left = 1;
        Some(Box::new(move |moment, name| {
            let strikes = moment == wanted && name == verb && left > 0;
            left -= i32::from(strikes);
            strikes.then(|| Error::new(ErrorKind::TimedOut, "a fault"))
        }))
    };
    node.set_faults(fault(Moment::Before, "create_volume"));
    assert_eq!(node.create_volume(id(5), 1).unwrap_err().kind, ErrorKind::TimedOut);
    assert_eq!(node.volume(id(5)).unwrap(), None);
    node.set_faults(fault(Moment::After, "create_volume"));
    assert_eq!(node.create_volume(id(5), 1).unwrap_err().kind, ErrorKind::TimedOut);
    assert!(node.volume(id(5)).unwrap().is_some(), "only its answer was lost");
    node.set_faults(fault(Moment::After, "uvm.submit"));
    let job = sanitize("s", volume);
    assert!(matches!(utility.submit(&job), Err(UvmError::Unreachable(_))));
    assert_eq!(utility.submit(&job).unwrap().state, JobState::Succeeded);
    node.set_job_faults(Some(Box::new(|spec| {
        let problem = Problem::new(ErrorCode::VerificationFailed, "bad blocks");
        (spec.kind() == "sanitize").then_some(Problem { retry: Some(Retry::Never), ..problem })
    })));
    let failed = utility.submit(&sanitize("bad", volume)).unwrap();
    assert_eq!(
        (failed.state, failed.problem.unwrap().code),
        (JobState::Failed, ErrorCode::VerificationFailed)
    );
    assert_eq!(node.contents(volume), Some(Contents::Partial { job: "bad".to_owned() }));
    node.set_down(true);
    assert_eq!(node.report().unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(node.domain(id(UTILITY)).unwrap_err().kind, ErrorKind::Unreachable);
    assert!(utility.node().is_ok(), "domains go on");
    node.set_utility_away(true);
    assert!(utility.node().is_err());
}

#[test]
fn guests_need_not_listen() {
    let (node, _, _) = node();
    node.define(&domain(3, Role::Guest, &[])).unwrap();
    node.start(id(3)).unwrap();
    node.set(|settings| settings.shutdown_looks = None);
    node.shutdown(id(3)).unwrap();
    assert_eq!(node.domain(id(3)).unwrap().unwrap().state, DomainState::Running);
    node.crash_all();
    let states: Vec<_> = node.report().unwrap().domains.into_iter().map(|domain| domain.state).collect();
    assert_eq!(states, [DomainState::Crashed; 2]);
}

#[test]
fn it_outlives_its_process_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.json");
    let open = || {
        let capabilities = FakeCapabilities::Libvirt.capabilities();
        FakeHypervisor::open(&file, capacity(), capabilities).unwrap()
    };
    let node = open();
    node.create_volume(id(1), 64).unwrap();
    node.define(&domain(3, Role::Guest, &[id(1)])).unwrap();
    node.start(id(3)).unwrap();
    // Nobody says good-bye to it.
    std::mem::forget(node);
    let node = open();
    let found = node.domain(id(3)).unwrap().unwrap();
    assert_eq!((found.state, found.disks), (DomainState::Running, vec![(id(1), false)]));
}
