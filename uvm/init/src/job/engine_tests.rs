use std::sync::atomic::{AtomicUsize, Ordering};

use uvm_api::{
    CaptureSpec, CloneSpec, DeviceRef, OverwritePattern, Retry, SanitizeSpec, Secret, StreamTarget, Technique,
};

use super::*;
use crate::inventory::{Attached, CommandLineInventory};

/// A real inventory that fails from its n-th question on.
struct Failing {
    real: CommandLineInventory,
    asked: AtomicUsize,
    fails_from: usize,
    fault: fn() -> std::io::Result<Vec<Attached>>,
}

impl Inventory for Failing {
    fn attached(&self) -> std::io::Result<Vec<Attached>> {
        if self.asked.fetch_add(1, Ordering::SeqCst) >= self.fails_from {
            return (self.fault)();
        }
        self.real.attached()
    }
}

fn sanitize(id: &str) -> JobSpec {
    JobSpec::Sanitize(SanitizeSpec {
        id: Some(id.to_owned()),
        device: DeviceRef { serial: "disk".to_owned(), size_bytes: None, must_be_blank: false },
        technique: Technique::Overwrite,
        pattern: OverwritePattern::Zero,
        plan_hash: None,
    })
}

fn run_with(fault: fn() -> std::io::Result<Vec<Attached>>) -> (Job, usize, Arc<Engine>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    let real = CommandLineInventory {
        devices: vec![("disk".to_owned(), file.path().to_owned())],
        file_block_size: 512,
    };
    let inventory = Arc::new(Failing { real, asked: AtomicUsize::new(0), fails_from: 1, fault });
    let options = Options { image: ClientOptions::default(), journal_dir: None, max_running: 2 };
    let engine = Engine::new(Arc::clone(&inventory) as Arc<dyn Inventory>, options);
    engine.submit(sanitize("j1")).unwrap();
    let mut after = 0;
    loop {
        let events = engine.wait_events("j1", after, Duration::from_secs(10)).unwrap();
        after = events.last().expect("the job ends within ten seconds").sequence;
        if events.iter().any(|event| event.body.is_last()) {
            break;
        }
    }
    (engine.job("j1").unwrap(), inventory.asked.load(Ordering::SeqCst), engine)
}

#[test]
fn a_panic_in_a_job_is_its_failure_and_the_engine_goes_on() {
    let (job, asked, engine) = run_with(|| panic!("planted"));
    assert!(asked > 1, "the fault did not fire");
    let problem = job.problem.unwrap();
    assert_eq!((job.state, problem.code), (JobState::Failed, ErrorCode::Internal));
    assert!(problem.detail.contains("planted"), "{}", problem.detail);
    assert_eq!(problem.disk_state, Some(DiskState::Untouched));
    assert_eq!(engine.running(), 0);
    assert!(engine.shut_down(false).is_ok());
}

#[test]
fn a_device_that_went_away_before_the_first_write_leaves_the_disk_untouched() {
    let (job, asked, _) = run_with(|| Ok(Vec::new()));
    assert!(asked > 1, "the fault did not fire");
    let problem = job.problem.unwrap();
    assert_eq!(problem.code, ErrorCode::DeviceGone);
    assert_eq!(problem.disk_state, Some(DiskState::Untouched));
}

#[test]
fn the_same_id_is_the_same_job_or_refused() {
    let (_, _, engine) = run_with(|| panic!("planted"));
    let JobSpec::Sanitize(mut other) = sanitize("j1") else { unreachable!() };
    other.pattern = OverwritePattern::Random;
    let problem = engine.submit(JobSpec::Sanitize(other)).unwrap_err();
    assert_eq!(problem.code, ErrorCode::JobConflict);
    assert!(!engine.submit(sanitize("j1")).unwrap().created);
    assert!(engine.submit(sanitize("../etc")).is_err());
}

#[test]
fn a_job_whose_failure_may_have_gone_away_begins_anew() {
    let (job, _, engine) = run_with(|| Ok(Vec::new()));
    assert_eq!(job.problem.unwrap().retry, Some(Retry::AfterRepair));
    // The device is still away, and that is found by planning again.
    let problem = engine.submit(sanitize("j1")).unwrap_err();
    assert_eq!(problem.code, ErrorCode::DeviceNotFound);
    assert_eq!(engine.running(), 0, "a refused job holds nothing");
}

#[test]
fn nothing_starts_once_the_node_is_shutting_down() {
    let (_, _, engine) = run_with(|| Ok(Vec::new()));
    engine.shut_down(true).unwrap();
    assert_eq!(engine.submit(sanitize("j2")).unwrap_err().code, ErrorCode::Overloaded);
    engine.resume();
    assert_eq!(engine.submit(sanitize("j2")).unwrap_err().code, ErrorCode::DeviceNotFound);
}

/// An engine with two files as devices.
fn engine_of_two(fails_from: usize) -> (Arc<Engine>, Arc<Failing>, [tempfile::NamedTempFile; 2]) {
    let files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    for file in &files {
        std::fs::write(file.path(), noise(32 << 20)).unwrap();
    }
    let path = |index: usize| files[index].path().to_owned();
    let real = CommandLineInventory {
        devices: vec![("disk".to_owned(), path(0)), ("golden".to_owned(), path(1))],
        file_block_size: 512,
    };
    let fault = || Ok(Vec::new());
    let inventory = Arc::new(Failing { real, asked: AtomicUsize::new(0), fails_from, fault });
    let options = Options { image: ClientOptions::default(), journal_dir: None, max_running: 2 };
    (Engine::new(Arc::clone(&inventory) as Arc<dyn Inventory>, options), inventory, files)
}

/// Bytes that no compressor makes smaller.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8 ^ at as u8).collect()
}

fn named(serial: &str) -> DeviceRef {
    DeviceRef { serial: serial.to_owned(), size_bytes: None, must_be_blank: false }
}

fn clone_of(id: &str, target: &str, source: &str) -> JobSpec {
    let (id, device, source) = (Some(id.to_owned()), named(target), named(source));
    JobSpec::Clone(CloneSpec { id, device, source, plan_hash: None })
}

fn ended(engine: &Engine, id: &str) -> Job {
    let mut after = 0;
    loop {
        let events = engine.wait_events(id, after, Duration::from_secs(60)).unwrap();
        after = events.last().expect("the job goes on").sequence;
        if events.iter().any(|event| event.body.is_last()) {
            return engine.job(id).unwrap();
        }
    }
}

#[test]
fn a_clone_holds_both_devices_or_none() {
    let (engine, _, _files) = engine_of_two(usize::MAX);
    for busy in ["disk", "golden"] {
        lock(&engine.jobs).held.insert(busy.to_owned(), "other".to_owned());
        let problem = engine.submit(clone_of("j1", "disk", "golden")).unwrap_err();
        assert_eq!((problem.code, problem.holder.as_deref()), (ErrorCode::DeviceBusy, Some("other")));
        assert_eq!(problem.device.as_deref(), Some(busy), "the one that is busy is named");
        lock(&engine.jobs).release("other");
        assert!(lock(&engine.jobs).held.is_empty(), "and the other one is not held");
    }
    let problem = engine.submit(clone_of("j1", "disk", "disk")).unwrap_err();
    assert_eq!(problem.code, ErrorCode::InvalidRequest);
    assert_eq!(engine.running(), 0);
    engine.hold("j1", &clone_of("j1", "disk", "golden")).unwrap();
    assert_eq!(engine.running(), 1, "one job, however many devices");
    let held: Vec<_> = engine.devices().unwrap().into_iter().map(|device| device.held_by.unwrap()).collect();
    assert_eq!(held, ["j1", "j1"]);
    lock(&engine.jobs).release("j1");
    engine.submit(clone_of("j2", "disk", "golden")).unwrap();
    let job = ended(&engine, "j2");
    assert_eq!((job.state, job.disk_state), (JobState::Succeeded, DiskState::Complete));
    assert_eq!(engine.running(), 0);
}

#[test]
fn a_source_that_went_away_is_named() {
    // Asked for each device before the plan and twice at each opening; the next question is of the first step.
    let (engine, inventory, _files) = engine_of_two(6);
    engine.submit(clone_of("j1", "disk", "golden")).unwrap();
    let job = ended(&engine, "j1");
    assert!(inventory.asked.load(Ordering::SeqCst) > 6, "the fault did not fire");
    let problem = job.problem.unwrap();
    assert_eq!((problem.code, problem.disk_state), (ErrorCode::DeviceGone, Some(DiskState::Untouched)));
    assert_eq!(problem.step.as_deref(), Some("clear"));
    let (engine, inventory, _files) = engine_of_two(5);
    engine.submit(clone_of("j1", "disk", "golden")).unwrap();
    let problem = ended(&engine, "j1").problem.unwrap();
    assert!(inventory.asked.load(Ordering::SeqCst) > 5, "the fault did not fire");
    assert_eq!((problem.code, problem.device.as_deref()), (ErrorCode::DeviceGone, Some("golden")));
}

#[test]
fn a_capture_ends_when_it_is_cancelled_and_forgets_its_credential() {
    use std::io::{Read, Write};
    let (engine, _, _files) = engine_of_two(usize::MAX);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/disk", listener.local_addr().unwrap());
    let authorization = Some(Secret::new("Bearer hidden"));
    let destination = StreamTarget { url, authorization };
    let spec =
        CaptureSpec { id: Some("j1".to_owned()), device: named("golden"), destination, plan_hash: None };
    assert!(!format!("{spec:?}").contains("hidden"));
    let mut renewed = spec.clone();
    renewed.destination.authorization = None;
    engine.submit(JobSpec::Capture(spec)).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).unwrap();
    let head = String::from_utf8_lossy(&bytes[..count]).to_lowercase();
    assert!(head.starts_with("put /disk") && head.contains("authorization: bearer hidden"), "{head}");
    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    stream.read_exact(&mut bytes).unwrap();
    engine.cancel("j1").unwrap();
    // More than all buffers between hold is still to come.
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 32 << 20 && !rest.ends_with(b"0\r\n\r\n"), "the stream was not ended as a whole");
    let job = ended(&engine, "j1");
    assert_eq!((job.state, job.disk_state), (JobState::Cancelled, DiskState::Untouched));
    // The same job with another credential is the same job: a cancelled one begins anew, and finds nobody.
    drop((stream, listener));
    assert!(engine.submit(JobSpec::Capture(renewed)).unwrap().created);
    assert_eq!(ended(&engine, "j1").problem.unwrap().code, ErrorCode::ImageUnreachable);
}

#[test]
fn jobs_are_admitted_by_the_memory_there_is() {
    assert_eq!(max_running(112 << 20), 5);
    assert_eq!(max_running(0), 2);
    assert_eq!(max_running(u64::MAX), MAX_RUNNING);
    let (_, _, engine) = run_with(|| Ok(Vec::new()));
    for serial in ["a", "b"] {
        lock(&engine.jobs).held.insert(serial.to_owned(), serial.to_owned());
    }
    let problem = engine.submit(sanitize("j2")).unwrap_err();
    assert_eq!((problem.code, problem.retry), (ErrorCode::Overloaded, Some(Retry::Same)));
}
