//! `clone`, `capture` and `restore` by the host command, on plain files and against a small HTTP server. Judges: cmp,
//! zstd and sgdisk.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::image::{Layout, entry, noise, sha256};
use support::*;
use uvm_api::{DiskState, ErrorCode, EventBody, JobResult};
use uvm_tests::{Fault, Store};

/// The serial of the device that a clone reads.
const SOURCE: &str = "DISK-0";
const SECRET: &str = "Bearer very-secret-token";

/// A disk with a table's place at both ends, contents that no compressor makes smaller, and zeroes between.
fn filled(size: u64, block: u32) -> Disk {
    let disk = Disk::new(size, block);
    let file = File::options().write(true).open(&disk.path).unwrap();
    file.write_all_at(&noise(7 << 20), 5 * MIB + 4096).unwrap();
    file.write_all_at(&noise(70_000), size - 2 * MIB - 512).unwrap();
    disk
}

/// A disk that was in use: no byte of it is zero.
fn used(size: u64, block: u32) -> Disk {
    let disk = Disk::new(size, block);
    let file = File::options().write(true).open(&disk.path).unwrap();
    let bytes = vec![0xa5; 1 << 20];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(MIB);
        file.write_all_at(&bytes[..usize::try_from(len).unwrap()], at).unwrap();
        at += len;
    }
    disk
}

fn command(verb: &str, job: &Value, disks: &[(&str, &Disk)]) -> Command {
    let target = disks[0].1;
    let path = target.folder.path().join("job.json");
    std::fs::write(&path, serde_json::to_vec(job).unwrap()).unwrap();
    let mut command = Command::new(uvm());
    command.arg(verb).arg(path).args(["--logical-block-size", &target.block.to_string()]);
    for (serial, disk) in disks {
        command.arg("--device").arg(format!("{serial}={}", disk.path.display()));
    }
    command
}

fn apply_to(job: &Value, disks: &[(&str, &Disk)]) -> Ended {
    Ended::of(command("apply", job, disks).arg("--json").output().unwrap())
}

fn plan_of(job: &Value, disks: &[(&str, &Disk)]) -> Value {
    let output = command("plan", job, disks).arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn clone_job() -> Value {
    json!({"kind": "clone", "id": "copy", "device": {"serial": SERIAL}, "source": {"serial": SOURCE}})
}

fn same(a: &Path, b: &Path, bytes: u64) {
    run("cmp", &["-n", &bytes.to_string(), a.to_str().unwrap(), b.to_str().unwrap()]);
}

fn is_zero(disk: &Disk, from: u64) -> bool {
    disk.read(from, disk.size() - from).iter().all(|byte| *byte == 0)
}

/// How a job ended that only reads its device.
fn result_of_reading(ended: &Ended) -> JobResult {
    match &ended.events.last().unwrap_or_else(|| panic!("{}", ended.said)).body {
        EventBody::Succeeded { disk_state: DiskState::Untouched, result } => *result.clone(),
        _ => panic!("{}", ended.said),
    }
}

#[test]
fn a_clone_is_its_source_and_zero_behind_it() {
    for block in [512, 4096] {
        let source = filled(34 * MIB + 4096, block);
        let before = source.digest();
        for more in [0, 4096, 3 * MIB] {
            for target in [used(source.size() + more, block), Disk::new(source.size() + more, block)] {
                let ended = apply_to(&clone_job(), &[(SERIAL, &target), (SOURCE, &source)]);
                let JobResult::Clone { device_bytes, copied_bytes, zero_bytes, verified_bytes, digest } =
                    ended.result()
                else {
                    panic!("{ended:?}")
                };
                same(&source.path, &target.path, source.size());
                assert!(is_zero(&target, source.size()));
                assert_eq!(*device_bytes, source.size());
                assert_eq!(copied_bytes + zero_bytes, source.size());
                assert!(*zero_bytes > 20 * MIB && *copied_bytes > 7 * MIB, "{zero_bytes} {copied_bytes}");
                assert_eq!(*verified_bytes, target.size());
                assert_eq!(*digest, format!("sha256:{before}"));
                assert_eq!(ended.said.contains("backup of a GPT stays"), more > 0, "{}", ended.said);
            }
        }
        assert_eq!(source.digest(), before, "the source is only read");
    }
}

#[test]
fn zeroes_take_no_room_on_a_new_disk() {
    let source = filled(64 * MIB, 512);
    let target = Disk::new(64 * MIB, 512);
    apply_to(&clone_job(), &[(SERIAL, &target), (SOURCE, &source)]).result();
    let stored = target.path.metadata().unwrap().blocks() * 512;
    assert!(stored < 16 * MIB, "{stored} bytes stored");
}

#[test]
fn a_clone_of_a_machine_is_a_machine() {
    let layout = Layout::with_entries(&[entry("etc/motd", b'0', "", b"welcome\n")]);
    let golden = small_disk();
    apply(&small("golden", &layout.url(), &layout.manifest), &golden).result();
    let target = small_disk();
    let disks = [(SERIAL, &target), (SOURCE, &golden)];
    let plan = plan_of(&clone_job(), &disks);
    let copy = plan["steps"].as_array().unwrap().iter().find(|step| step["name"] == "copy").unwrap();
    assert!(copy["description"].as_str().unwrap().contains("A small guest"), "{plan:#}");
    apply_to(&clone_job(), &disks).result();
    same(&golden.path, &target.path, golden.size());
    let said = run("sgdisk", &["-v", target.path.to_str().unwrap()]);
    assert!(said.contains("No problems found"), "{said}");

    // The finished clone is what the next job would destroy.
    let again = plan_of(&clone_job(), &disks);
    let lost = again["destroys"].to_string();
    assert!(lost.contains("gpt partition table") && lost.contains("ext4"), "{lost}");
    assert_ne!(plan["plan_hash"], again["plan_hash"], "it depends on the target");
    let mut job = clone_job();
    job["plan_hash"] = again["plan_hash"].clone();
    let file = File::options().write(true).open(&golden.path).unwrap();
    file.write_all_at(&[0; 34 * 512], 0).unwrap();
    file.write_all_at(&[0; 33 * 512], golden.size() - 33 * 512).unwrap();
    let before = target.digest();
    apply_to(&job, &disks).failed(ErrorCode::PlanChanged, DiskState::Untouched, "plan");
    assert_eq!(target.digest(), before, "and on the source");
}

#[test]
fn what_cannot_be_cloned_is_refused_by_its_plan() {
    let (source, target) = (filled(20 * MIB, 512), used(20 * MIB, 512));
    let disks = [(SERIAL, &target), (SOURCE, &source)];
    let before = target.digest();
    let refused = |change: &dyn Fn(&mut Value), disks: &[(&str, &Disk)], code: ErrorCode| {
        let mut job = clone_job();
        change(&mut job);
        let ended = apply_to(&job, disks);
        assert_eq!((ended.problem().code, ended.status), (code, 2), "{}", ended.said);
        assert_eq!(target.digest(), before);
        ended.problem().clone()
    };
    let small = used(19 * MIB, 512);
    let problem = refused(&|_| {}, &[(SERIAL, &small), (SOURCE, &source)], ErrorCode::DeviceTooSmall);
    for number in [19 * MIB, 20 * MIB] {
        assert!(problem.detail.contains(&number.to_string()), "{}", problem.detail);
    }
    refused(&|job| job["source"]["serial"] = json!(SERIAL), &disks, ErrorCode::InvalidRequest);
    // Two names for one file.
    refused(&|_| {}, &[(SERIAL, &target), (SOURCE, &target)], ErrorCode::InvalidRequest);
    let link =
        Disk { path: target.folder.path().join("link"), block: 512, folder: tempfile::tempdir().unwrap() };
    std::os::unix::fs::symlink(&target.path, &link.path).unwrap();
    refused(&|_| {}, &[(SERIAL, &target), (SOURCE, &link)], ErrorCode::InvalidRequest);
    let problem = refused(&|job| job["soruce"] = json!(1), &disks, ErrorCode::InvalidRequest);
    assert!(problem.detail.contains("soruce"), "{}", problem.detail);
    let problem = refused(&|job| job["source"]["serial"] = json!("no"), &disks, ErrorCode::DeviceNotFound);
    assert_eq!(problem.device.as_deref(), Some("no"));
    let problem = refused(&|job| job["source"]["size_bytes"] = json!(512), &disks, ErrorCode::DeviceChanged);
    assert_eq!(problem.device.as_deref(), Some(SOURCE));
    refused(&|job| job["device"]["must_be_blank"] = json!(true), &disks, ErrorCode::DeviceChanged);
}

#[test]
fn a_source_that_somebody_writes_is_not_cloned() {
    let (source, target) = (filled(20 * MIB, 512), used(20 * MIB, 512));
    let disks = [(SERIAL, &target), (SOURCE, &source)];
    let before = target.digest();
    let holder = File::open(&source.path).unwrap();
    holder.lock().unwrap();
    let ended = apply_to(&clone_job(), &disks);
    let problem = ended.failed(ErrorCode::DeviceBusy, DiskState::Untouched, "start");
    assert_eq!(problem.device.as_deref(), Some(SOURCE));
    assert_eq!(target.digest(), before);
    // Somebody who reads it too is no hindrance.
    holder.unlock().unwrap();
    holder.lock_shared().unwrap();
    apply_to(&clone_job(), &disks).result();
}

struct Server {
    store: Store,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { store: Store::start(folder.path()).unwrap(), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn capture(&self) -> Value {
        let url = format!("{}/disk.zst?signature=signed-query", self.store.url());
        json!({"kind": "capture", "id": "take", "device": {"serial": SERIAL}, "destination": {"url": url}})
    }

    /// A job that restores the file `disk.zst` to a device of that many bytes.
    fn restore(&self, device_bytes: u64) -> Value {
        let stored = std::fs::read(self.path("disk.zst")).unwrap();
        json!({"kind": "restore", "id": "bring", "device": {"serial": SERIAL}, "source": {
            "url": format!("{}/disk.zst", self.store.url()),
            "digest": sha256(&stored), "size_bytes": stored.len(), "device_bytes": device_bytes}})
    }

    /// Stores what the foreign tool makes of the disk.
    fn compress(&self, disk: &Disk, arguments: &[&str]) {
        let to = self.path("disk.zst");
        let ends = ["-q", "-f", "-o", to.to_str().unwrap(), disk.path.to_str().unwrap()];
        run("zstd", &[arguments, &ends].concat());
    }
}

fn unpacks_to(stream: &Path, disk: &Disk) {
    // With less memory than the appliance has for it.
    let script = "zstd -dc --memory=8MB \"$0\" | cmp - \"$1\"";
    run("bash", &["-o", "pipefail", "-c", script, stream.to_str().unwrap(), disk.path.to_str().unwrap()]);
}

#[test]
fn a_capture_is_the_disk_to_any_decoder() {
    for block in [512, 4096] {
        let server = Server::start();
        server.store.take_uploads("");
        server.store.require_authorization(SECRET);
        let disk = filled(34 * MIB + 4096, block);
        let before = disk.digest();
        let mut job = server.capture();
        job["destination"]["authorization"] = json!(SECRET);
        let ended = apply_to(&job, &[(SERIAL, &disk)]);
        let JobResult::Capture { digest, size_bytes, device_bytes, zero_bytes } = result_of_reading(&ended)
        else {
            panic!("{ended:?}")
        };
        let stored = std::fs::read(server.path("disk.zst")).unwrap();
        assert_eq!((digest.as_str(), size_bytes), (sha256(&stored).as_str(), stored.len() as u64));
        assert!(device_bytes == disk.size() && zero_bytes > 20 * MIB && size_bytes < 8 * MIB);
        assert_eq!(disk.digest(), before);
        run("zstd", &["-qt", server.path("disk.zst").to_str().unwrap()]);
        let listed = run("zstd", &["-lv", server.path("disk.zst").to_str().unwrap()]);
        assert!(listed.contains("Check: XXH64") && listed.contains(&disk.size().to_string()), "{listed}");
        unpacks_to(&server.path("disk.zst"), &disk);

        // And back again.
        let mut job = server.restore(disk.size());
        job["source"]["authorization"] = json!(SECRET);
        let target = used(disk.size(), block);
        let ended = apply_to(&job, &[(SERIAL, &target)]);
        let JobResult::Restore { digest: came, device_bytes, zero_bytes: zero, verified_bytes } =
            ended.result()
        else {
            panic!("{ended:?}")
        };
        assert_eq!((came, *device_bytes), (&digest, disk.size()));
        // They are found by the MiB, and the two begin to count at different places.
        assert!(zero.abs_diff(zero_bytes) < 2 * MIB, "{zero} {zero_bytes}");
        assert_eq!(*verified_bytes, target.size());
        same(&disk.path, &target.path, disk.size());
    }
}

#[test]
fn a_restore_takes_what_another_encoder_made() {
    let server = Server::start();
    for (arguments, more) in [(&["-1"][..], 0), (&["-19", "-T2"][..], MIB), (&["-3", "--no-check"][..], 512)]
    {
        let disk = filled(20 * MIB, 512);
        server.compress(&disk, arguments);
        let target = used(disk.size() + more, 512);
        let ended = apply_to(&server.restore(disk.size()), &[(SERIAL, &target)]);
        ended.result();
        same(&disk.path, &target.path, disk.size());
        assert!(is_zero(&target, disk.size()));
    }
    // The host command also reads a file.
    let disk = filled(20 * MIB, 4096);
    server.compress(&disk, &["-1"]);
    let mut job = server.restore(disk.size());
    job["source"]["url"] = json!(format!("file://{}", server.path("disk.zst").display()));
    let target = used(disk.size(), 4096);
    apply_to(&job, &[(SERIAL, &target)]).result();
    same(&disk.path, &target.path, disk.size());
}

#[test]
fn a_broken_connection_is_resumed() {
    let server = Server::start();
    let disk = filled(20 * MIB, 512);
    server.compress(&disk, &["-1"]);
    server.store.set_fault("disk.zst", Fault::CloseAt(3_000_000));
    let target = used(disk.size(), 512);
    let mut child = command("apply", &server.restore(disk.size()), &[(SERIAL, &target)]).spawn().unwrap();
    wait_for(|| server.store.fired() > 0);
    assert!(server.store.clear_faults() > 0);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    same(&disk.path, &target.path, disk.size());
}

fn wait_for(happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn no_wrong_stream_makes_a_disk() {
    let server = Server::start();
    let disk = filled(20 * MIB, 512);
    server.compress(&disk, &["-1"]);
    let good = server.restore(disk.size());
    let partial = |change: &dyn Fn(&mut Value), code: ErrorCode| {
        let mut job = good.clone();
        change(&mut job);
        let target = used(disk.size(), 512);
        let ended = apply_to(&job, &[(SERIAL, &target)]);
        let problem = ended.failed(code, DiskState::PartialUnbootable, "copy").clone();
        assert!(target.has_no_table());
        problem
    };
    let other = sha256(b"other");
    partial(&|job| job["source"]["digest"] = json!(other), ErrorCode::DigestMismatch);
    let problem = partial(&|job| job["source"]["device_bytes"] = json!(19 * MIB), ErrorCode::ImageInvalid);
    assert!(problem.detail.contains("unpacks to more than") || !problem.causes.is_empty(), "{problem:#?}");
    // More than came.
    let bigger = used(21 * MIB, 512);
    let mut job = good.clone();
    job["source"]["device_bytes"] = json!(21 * MIB);
    let ended = apply_to(&job, &[(SERIAL, &bigger)]);
    let problem = ended.failed(ErrorCode::ImageInvalid, DiskState::PartialUnbootable, "copy");
    let text = format!("unpacks to {} bytes, the device had {}", 20 * MIB, 21 * MIB);
    assert!(problem.causes.iter().any(|cause| cause.contains(&text)), "{problem:#?}");
    assert!(bigger.has_no_table());

    server.store.set_fault("disk.zst", Fault::CloseAt(3_000_000));
    partial(&|_| {}, ErrorCode::ImageTruncated);
    assert!(server.store.clear_faults() > 0);
    server.store.set_fault("disk.zst", Fault::FlipAt(3_000_000));
    partial(&|_| {}, ErrorCode::DigestMismatch);
    assert!(server.store.clear_faults() > 0);
}

#[test]
fn a_stream_that_does_not_come_leaves_the_disk_untouched() {
    let server = Server::start();
    let disk = filled(20 * MIB, 512);
    server.compress(&disk, &["-1"]);
    let good = server.restore(disk.size());
    let target = used(disk.size(), 512);
    let before = target.digest();
    let untouched = |change: &dyn Fn(&mut Value), code: ErrorCode, step: &str| {
        let mut job = good.clone();
        change(&mut job);
        let ended = apply_to(&job, &[(SERIAL, &target)]);
        let problem = ended.failed(code, DiskState::Untouched, step).clone();
        assert_eq!(target.digest(), before);
        problem
    };
    for (fault, code) in
        [(Fault::Unavailable, ErrorCode::ImageUnreachable), (Fault::NotFound, ErrorCode::ImageNotFound)]
    {
        server.store.set_fault("disk.zst", fault);
        untouched(&|_| {}, code, "stream");
        assert!(server.store.clear_faults() > 0);
    }
    server.store.require_authorization(SECRET);
    untouched(&|_| {}, ErrorCode::ImageDenied, "stream");
    let digest = ErrorCode::DigestMismatch;
    let size = good["source"]["size_bytes"].as_u64().unwrap();
    let signed = |job: &mut Value| job["source"]["authorization"] = json!(SECRET);
    let shorter = |job: &mut Value| {
        signed(job);
        job["source"]["size_bytes"] = json!(size - 1);
    };
    untouched(&shorter, digest, "stream");
    // Refused by the plan.
    let invalid = ErrorCode::InvalidRequest;
    for url in ["ftp://x/y", "http://user:word@x/y", "file://relative", "nothing"] {
        untouched(&|job| job["source"]["url"] = json!(url), invalid, "plan");
    }
    untouched(&|job| job["source"]["digest"] = json!("sha256:12"), invalid, "plan");
    untouched(&|job| job["source"]["device_bytes"] = json!(0), invalid, "plan");
    untouched(&|job| job["source"]["device_bytes"] = json!(513), invalid, "plan");
    untouched(&|job| job["source"]["authorization"] = json!("two\r\nlines"), invalid, "plan");
    let problem =
        untouched(&|job| job["source"]["device_bytes"] = json!(21 * MIB), ErrorCode::DeviceTooSmall, "plan");
    assert!(problem.detail.contains(&(21 * MIB).to_string()), "{}", problem.detail);
    apply_to(
        &{
            let mut job = good.clone();
            signed(&mut job);
            job
        },
        &[(SERIAL, &target)],
    )
    .result();
    same(&disk.path, &target.path, disk.size());
}

#[test]
fn a_killed_restore_leaves_no_table() {
    let server = Server::start();
    let disk = filled(20 * MIB, 512);
    server.compress(&disk, &["-1"]);
    server.store.set_fault("disk.zst", Fault::StallAt(5_000_000));
    let target = used(disk.size(), 512);
    let used_bytes = target.read(8 * MIB, MIB);
    let job = server.restore(disk.size());
    let mut child =
        command("apply", &job, &[(SERIAL, &target)]).arg("--json").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(r#""step":"copy""#)));
    wait_for(|| server.store.fired() > 0 && target.read(8 * MIB, MIB) != used_bytes);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None, "it was killed");
    server.store.clear_faults();
    assert!(target.has_no_table());
    // The same job again.
    apply_to(&job, &[(SERIAL, &target)]).result();
    same(&disk.path, &target.path, disk.size());
}

#[test]
fn a_capture_counts_once_the_server_has_what_was_sent() {
    let server = Server::start();
    let disk = filled(20 * MIB, 512);
    let before = disk.digest();
    let failed = |code: ErrorCode| {
        let ended = apply_to(&server.capture(), &[(SERIAL, &disk)]);
        let problem = ended.failed(code, DiskState::Untouched, "capture").clone();
        assert_eq!(disk.digest(), before);
        problem
    };
    // A server that takes nothing.
    failed(ErrorCode::ImageInvalid);
    server.store.take_uploads("");
    for fault in [Fault::Unavailable, Fault::RefuseAt(2_000_000), Fault::CloseAt(2_000_000)] {
        server.store.set_fault("disk.zst", fault);
        failed(ErrorCode::ImageUnreachable);
        assert!(server.store.clear_faults() > 0, "{fault:?}");
        assert!(!server.path("disk.zst").exists(), "{fault:?}");
    }
    server.store.require_authorization(SECRET);
    failed(ErrorCode::ImageDenied);
    let mut job = server.capture();
    job["destination"]["authorization"] = json!(SECRET);
    let ended = apply_to(&job, &[(SERIAL, &disk)]);
    let JobResult::Capture { digest, size_bytes, .. } = result_of_reading(&ended) else { panic!() };
    let answers = [
        (json!({"digest": sha256(b"other"), "size_bytes": size_bytes}), Some(ErrorCode::DigestMismatch)),
        (json!({"digest": digest, "size_bytes": size_bytes + 1}), Some(ErrorCode::DigestMismatch)),
        (json!({"digest": 7}), Some(ErrorCode::ImageInvalid)),
        (json!("stored"), Some(ErrorCode::ImageInvalid)),
        (json!({"digest": digest, "size_bytes": size_bytes, "more": [1]}), None),
        (json!({}), None),
    ];
    for (answer, code) in answers {
        server.store.take_uploads(&answer.to_string());
        let ended = apply_to(&job, &[(SERIAL, &disk)]);
        match code {
            Some(code) => {
                ended.failed(code, DiskState::Untouched, "capture");
            }
            None => {
                result_of_reading(&ended);
            }
        }
    }
    for url in ["file:///tmp/disk.zst", "http://user:word@x/y"] {
        job["destination"]["url"] = json!(url);
        let ended = apply_to(&job, &[(SERIAL, &disk)]);
        ended.failed(ErrorCode::InvalidRequest, DiskState::Untouched, "plan");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    job["destination"]["url"] = json!(format!("http://{nobody}/disk.zst"));
    let ended = apply_to(&job, &[(SERIAL, &disk)]);
    ended.failed(ErrorCode::ImageUnreachable, DiskState::Untouched, "capture");
}

#[test]
fn what_opens_doors_is_never_shown() {
    let server = Server::start();
    server.store.take_uploads("");
    server.store.require_authorization("another");
    let disk = filled(20 * MIB, 512);
    server.compress(&disk, &["-1"]);
    let target = used(20 * MIB, 512);
    let mut capture = server.capture();
    capture["destination"]["authorization"] = json!(SECRET);
    let mut restore = server.restore(disk.size());
    restore["source"]["authorization"] = json!(SECRET);
    restore["source"]["url"] = json!(format!("{}/disk.zst?signature=signed-query", server.store.url()));
    let journal = tempfile::tempdir().unwrap();
    for (job, disk, place) in [(&capture, &disk, "destination"), (&restore, &target, "source")] {
        let mut all = String::new();
        for json in [true, false] {
            for verb in ["plan", "apply"] {
                let mut command = command(verb, job, &[(SERIAL, disk)]);
                command.args(json.then_some("--json"));
                if verb == "apply" {
                    command.arg("--journal").arg(journal.path());
                }
                let output = command.output().unwrap();
                assert_eq!(output.status.code(), Some(if verb == "plan" { 0 } else { 2 }));
                all += &String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            }
        }
        let id = job["id"].as_str().unwrap();
        all += &std::fs::read_to_string(journal.path().join(format!("{id}.jsonl"))).unwrap();
        assert!(all.contains("disk.zst") && all.contains("HTTP 401"), "{all}");
        assert!(!all.contains("secret") && !all.contains("signed-query"), "{all}");
        // Nor does it make the plan another one.
        let mut renewed = job.clone();
        renewed[place]["authorization"] = json!("Bearer renewed");
        assert_eq!(plan_of(job, &[(SERIAL, disk)]), plan_of(&renewed, &[(SERIAL, disk)]));
    }
}

#[test]
fn planning_writes_nothing() {
    let server = Server::start();
    let (disk, target) = (filled(20 * MIB, 512), used(20 * MIB, 512));
    server.compress(&disk, &["-1"]);
    let before = (disk.digest(), target.digest());
    let customize = json!({"kind": "customize", "id": "rename", "device": {"serial": SERIAL},
        "customize": {"hostname": "web-2.example.org"}});
    let jobs = [
        (clone_job(), vec!["clear", "copy", "verify", "commit"], true),
        (server.capture(), vec!["capture"], false),
        (server.restore(20 * MIB), vec!["stream", "clear", "copy", "verify", "commit"], true),
        (customize.clone(), vec!["open", "customize", "verify"], false),
    ];
    for (job, steps, destroys) in jobs {
        let plan = plan_of(&job, &[(SERIAL, &target), (SOURCE, &disk)]);
        let planned: Vec<&str> =
            plan["steps"].as_array().unwrap().iter().map(|step| step["name"].as_str().unwrap()).collect();
        assert_eq!(planned, steps);
        assert_eq!(!plan["destroys"].as_array().unwrap().is_empty(), destroys, "{plan:#}");
    }
    assert_eq!((disk.digest(), target.digest()), before);
    for nothing in [json!({}), json!({"hostname": "not a name"}), json!({"hostnam": "x"})] {
        let mut job = customize.clone();
        job["customize"] = nothing;
        let ended = apply_to(&job, &[(SERIAL, &target)]);
        assert_eq!((ended.problem().code, ended.status), (ErrorCode::InvalidRequest, 2), "{}", ended.said);
    }
}
