//! The appliance under QEMU, asked from the outside: over HTTPS, over its serial line and by plugging disks.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uvm_api::{
    DiskState, ErrorCode, Event, EventBody, Job, JobResult, JobSpec, JobState, PowerAction, Problem,
};
use uvm_tests::{
    Appliance, ApplianceFiles, ApplianceOptions, Bus, Client, ClientError, Disk, Fault, Pki, Serial, Store,
};

const MIB: u64 = 1 << 20;
const SMALL: u64 = 64 * MIB;
/// Takes long enough under any accelerator to be caught running.
const LARGE: u64 = 4096 * MIB;
const ANSWER: Duration = Duration::from_secs(20);
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

fn files() -> ApplianceFiles {
    let folder = std::env::var_os("UVM_APPLIANCE")
        .expect("UVM_APPLIANCE names the folder of the appliance: run `cargo xtask test`, which builds it");
    ApplianceFiles::in_folder(Path::new(&folder)).unwrap()
}

/// A folder of this test's own for disks and logs.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn from_boot_to_power_off() {
    let work = folder("appliance");
    let pki = Pki::new().unwrap();
    let disk = |name: &str, size: u64| Disk::create(work.join(name), name, size).unwrap();
    let mut options = ApplianceOptions::new(files(), pki.config("node-7", "full"), &work);
    options.hot_plug_ports = 2;
    options.disks = vec![
        disk("small-512", SMALL),
        disk("small-4096", SMALL).with(4096, Bus::VirtioBlk),
        disk("scsi-512", SMALL).with(512, Bus::Scsi),
        disk("nvme-4096", SMALL).with(4096, Bus::Nvme),
        disk("large", LARGE),
    ];
    let mut uvm = Appliance::boot(&options, &pki).unwrap();
    println!("the appliance answered after {:?}", uvm.ready_after());
    let client = uvm.client().clone();

    who_may_call(uvm.port(), &pki);
    the_node_and_its_devices(&client, &options.disks);
    what_is_refused(&client);
    a_plan_writes_nothing(&client, &work);
    sanitize_overwrites_everything(&client, &work);
    the_same_job_twice(&client);
    a_device_has_one_job(&client);
    bad_images(&client, &work);
    a_store_that_stops(&client, &work);
    disks_come_and_go(&mut uvm, &work);
    a_job_loses_its_disk(&mut uvm, &work);
    the_console_answers(&mut uvm);
    metrics_are_well_formed(&client);
    power_off(uvm, &client);
}

fn who_may_call(port: u16, pki: &Pki) {
    let nobody = Client::new(port, &pki.authority, None).unwrap();
    assert_eq!(nobody.healthz().unwrap().status, "ok");
    for path in ["/v1/node", "/v1/devices", "/v1/jobs", "/metrics", "/openapi.json", "/nothing"] {
        let problem = nobody.get::<Value>(path).unwrap_err().problem();
        assert_eq!((problem.code, problem.status), (ErrorCode::Unauthorized, 401), "{path}");
    }
    let stranger = Client::new(port, &pki.authority, Some(&pki.stranger)).unwrap();
    for result in [stranger.healthz().map(drop), stranger.node().map(drop)] {
        assert!(matches!(result, Err(ClientError::Transport(_))), "a stranger's certificate: {result:?}");
    }
}

fn the_node_and_its_devices(client: &Client, disks: &[Disk]) {
    let node = client.node().unwrap();
    assert_eq!((node.name.as_str(), node.cpus), ("node-7", 1));
    assert!((64 * MIB..=128 * MIB).contains(&node.memory_bytes), "{node:?}");
    assert!(node.boot_ms > 0 && node.rss_bytes > 0 && node.peak_rss_bytes >= node.rss_bytes, "{node:?}");
    assert_eq!(node.public_key.len(), 44, "32 bytes in base64");
    let devices = client.devices().unwrap();
    assert_eq!(devices.len(), disks.len(), "{devices:?}");
    for disk in disks {
        let found = devices.iter().find(|device| device.serial == disk.serial);
        let found = found.unwrap_or_else(|| panic!("{} is not in {devices:?}", disk.serial));
        assert_eq!(found.logical_block_size, disk.logical_block_size, "{found:?}");
        assert_eq!(found.size_bytes, fs::metadata(&disk.path).unwrap().len(), "{found:?}");
        assert!(!found.read_only && found.table.is_none() && found.filesystem.is_none(), "{found:?}");
    }
}

fn spec(value: Value) -> JobSpec {
    serde_json::from_value(value).unwrap()
}

fn sanitize(id: &str, serial: &str, pattern: &str) -> JobSpec {
    spec(json!({ "kind": "sanitize", "id": id, "device": { "serial": serial }, "pattern": pattern }))
}

fn provision(id: &str, serial: &str, url: &str, digest: &str) -> JobSpec {
    spec(json!({
        "kind": "provision", "id": id, "device": { "serial": serial },
        "image": { "source": { "oci-layout": { "url": url } }, "digest": digest },
    }))
}

fn no_digest() -> String {
    format!("sha256:{}", "0".repeat(64))
}

fn what_is_refused(client: &Client) {
    let refused = |body: Value| client.post("/v1/jobs", &body).unwrap_err().problem();
    let cases = [
        (json!({ "kind": "sanitize", "device": { "serial": "large" }, "colour": 1 }), "colour"),
        (json!({ "kind": "sanitize", "device": { "serial": "large", "siez_bytes": 1 } }), "siez_bytes"),
        (json!({ "kind": "shred", "device": { "serial": "large" } }), "shred"),
        (json!({ "kind": "sanitize" }), "device"),
    ];
    for (body, named) in cases {
        let problem = refused(body);
        assert_eq!((problem.code, problem.status), (ErrorCode::InvalidRequest, 400), "{problem:?}");
        assert!(problem.detail.contains(named), "{named}: {problem:?}");
    }
    let unknown = refused(serde_json::to_value(sanitize("r1", "nobody", "zero")).unwrap());
    assert_eq!((unknown.code, unknown.status), (ErrorCode::DeviceNotFound, 422));
    assert_eq!(unknown.disk_state, Some(DiskState::Untouched));
    assert!(unknown.detail.contains("nobody"), "{unknown:?}");

    let small = client.submit(&provision("r2", "small-512", "http://10.0.2.2:9", &no_digest()));
    let small = small.unwrap_err().problem();
    assert_eq!((small.code, small.status), (ErrorCode::DeviceTooSmall, 422), "{small:?}");
    assert_eq!(small.disk_state, Some(DiskState::Untouched));

    let size = json!({ "kind": "sanitize", "device": { "serial": "small-512", "size_bytes": SMALL + 1 } });
    assert_eq!(refused(size).code, ErrorCode::DeviceChanged);
    let missing = client.job("r2").unwrap_err().problem();
    assert_eq!((missing.code, missing.status), (ErrorCode::NotFound, 404));
    assert!(client.get::<Vec<Job>>("/v1/jobs").unwrap().is_empty(), "a refused job is no job");
}

fn read(path: &Path, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    fs::File::open(path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn a_plan_writes_nothing(client: &Client, work: &Path) {
    let mut job = provision("planned", "large", "http://10.0.2.2:9", &no_digest());
    let plan = client.dry_run(&job).unwrap();
    assert_eq!(plan, client.dry_run(&job).unwrap(), "the same job on the same device has the same plan");
    assert_eq!((plan.device.as_str(), plan.size_bytes), ("large", LARGE));
    let formats: Vec<_> =
        plan.partitions.iter().filter_map(|partition| partition.format.as_deref()).collect();
    assert_eq!(formats, ["vfat", "swap", "ext4"]);
    assert_eq!((plan.destroys[0].starting_lba, plan.destroys[0].ending_lba), (0, LARGE / 512 - 1));
    assert!(is_zero(&read(&work.join("large"), 0, MIB)));
    if let JobSpec::Provision(spec) = &mut job {
        spec.plan_hash = Some(no_digest());
    }
    let problem = client.submit(&job).unwrap_err().problem();
    assert_eq!((problem.code, problem.status), (ErrorCode::PlanChanged, 409), "{problem:?}");
    assert_eq!(problem.disk_state, Some(DiskState::Untouched));
}

/// Follows a job to its end over two connections; all events.
fn follow(client: &Client, id: &str) -> (Job, Vec<Event>) {
    let mut events = Vec::new();
    let first = client.events(id, 0, &mut |event| {
        events.push(event);
        events.len() < 2
    });
    first.unwrap();
    let after = events.last().unwrap().sequence;
    let mut resumed = Vec::new();
    let rest = client.events(id, after, &mut |event| {
        let last = event.body.is_last();
        resumed.push(event);
        !last
    });
    rest.unwrap();
    assert!(resumed[0].sequence > after, "resumed after {after} with {:?}", resumed[0]);
    events.extend(resumed);
    assert!(events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence), "{events:?}");
    (client.job(id).unwrap(), events)
}

fn sanitize_overwrites_everything(client: &Client, work: &Path) {
    for (serial, pattern) in
        [("small-512", "zero"), ("small-4096", "random"), ("scsi-512", "random"), ("nvme-4096", "zero")]
    {
        let path = work.join(serial);
        let before = vec![0xa5; usize::try_from(SMALL).unwrap()];
        fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&before, 0).unwrap();
        let id = format!("sanitize-{serial}");
        client.submit(&sanitize(&id, serial, pattern)).unwrap();
        let (job, events) = follow(client, &id);
        assert_eq!((job.state, job.disk_state), (JobState::Succeeded, DiskState::Complete), "{job:?}");
        let Some(JobResult::Sanitize { method, overwritten_bytes, verified_bytes, .. }) = &job.result else {
            panic!("{job:?}");
        };
        assert_eq!((method.as_str(), *overwritten_bytes, *verified_bytes), ("clear", SMALL, SMALL));
        let done: Vec<_> = events
            .iter()
            .filter_map(|event| match &event.body {
                EventBody::StepDone { step, bytes, .. } => Some((step.as_str(), *bytes)),
                _ => None,
            })
            .collect();
        // Head and tail are zeroed before all else, so they are written twice.
        let [("clear", 1..), ("overwrite", SMALL..), ("verify", SMALL)] = done[..] else {
            panic!("{done:?}")
        };
        let after = read(&path, 0, SMALL);
        if pattern == "zero" {
            assert!(is_zero(&after), "{serial}");
        } else {
            // A block of the old pattern or of zeroes would be one that was left out.
            let left =
                after.chunks(512).filter(|block| is_zero(block) || block.iter().all(|byte| *byte == 0xa5));
            assert_eq!(left.count(), 0, "{serial}");
        }
    }
}

fn the_same_job_twice(client: &Client) {
    let job = json!({ "kind": "inspect", "id": "twice", "device": { "serial": "small-512" } });
    let (status, first) = client.post("/v1/jobs", &job).unwrap();
    assert_eq!((status, first["id"].as_str()), (202, Some("twice")));
    let ended = client.wait("twice", &mut |_| {}).unwrap();
    let Some(JobResult::Inspect { device }) = &ended.result else { panic!("{ended:?}") };
    assert_eq!((device.serial.as_str(), device.size_bytes), ("small-512", SMALL));
    assert_eq!(ended.disk_state, DiskState::Untouched);
    let (status, second) = client.post("/v1/jobs", &job).unwrap();
    assert_eq!((status, serde_json::from_value::<Job>(second).unwrap()), (200, ended));
    let other = client.submit(&sanitize("twice", "small-512", "zero")).unwrap_err().problem();
    assert_eq!((other.code, other.status), (ErrorCode::JobConflict, 409));
}

/// Waits until the job has moved bytes.
fn running(client: &Client, id: &str) {
    let mut moved = false;
    client
        .events(id, 0, &mut |event| {
            moved |= matches!(event.body, EventBody::Progress { bytes_done: 1.., .. });
            !moved && !event.body.is_last()
        })
        .unwrap();
    assert!(moved, "the job {id} ended before it was seen at work: {:?}", client.job(id));
}

fn cancelled(client: &Client, id: &str) -> Problem {
    let job = client.wait(id, &mut |_| {}).unwrap();
    assert_eq!((job.state, job.disk_state), (JobState::Cancelled, DiskState::PartialUnbootable), "{job:?}");
    job.problem.unwrap()
}

fn a_device_has_one_job(client: &Client) {
    client.submit(&sanitize("long", "large", "random")).unwrap();
    running(client, "long");
    let busy = client.submit(&sanitize("second", "large", "zero")).unwrap_err().problem();
    assert_eq!((busy.code, busy.status), (ErrorCode::DeviceBusy, 409));
    assert_eq!(busy.holder.as_deref(), Some("long"));
    let devices = client.devices().unwrap();
    let held = devices.iter().find(|device| device.serial == "large").unwrap();
    assert_eq!(held.held_by.as_deref(), Some("long"));

    client.submit(&sanitize("beside", "small-512", "zero")).unwrap();
    assert_eq!(client.wait("beside", &mut |_| {}).unwrap().state, JobState::Succeeded);
    assert_eq!(client.job("long").unwrap().state, JobState::Running, "the other job ran beside it");

    let asked = client.cancel("long").unwrap();
    assert!(asked.cancel_requested);
    let problem = cancelled(client, "long");
    assert_eq!((problem.code, problem.step.as_deref()), (ErrorCode::Cancelled, Some("overwrite")));
    let free = client.devices().unwrap();
    assert!(free.iter().all(|device| device.held_by.is_none()), "{free:?}");
}

/// An image of one layer with a file of 2 MiB: its digests of manifest and layer.
fn small_image(folder: &Path) -> (String, String) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |kind: &str, bytes: &[u8]| {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).unwrap();
        json!({ "mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len() })
    };
    let contents: Vec<u8> = (0..2 * MIB).map(|at| (at % 251) as u8).collect();
    let mut header = tar::Header::new_ustar();
    header.set_size(contents.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_data(&mut header, "file", contents.as_slice()).unwrap();
    let layer = put(LAYER_TYPE, &layer.into_inner().unwrap());
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [layer["digest"]] },
    });
    let config = put(CONFIG_TYPE, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [layer],
    });
    let manifest = put(MANIFEST_TYPE, manifest.to_string().as_bytes());
    (manifest["digest"].as_str().unwrap().to_owned(), layer["digest"].as_str().unwrap().to_owned())
}

fn bad_images(client: &Client, work: &Path) {
    let layout = work.join("layout");
    let (manifest, layer) = small_image(&layout);
    let store = Store::start(&layout).unwrap();
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let (manifest_hex, layer_hex) = (hex(&manifest), hex(&layer));
    use DiskState::{PartialUnbootable, Untouched};
    let cases = [
        (&manifest_hex, Fault::NotFound, ErrorCode::ImageNotFound, Untouched, "image"),
        (&manifest_hex, Fault::CloseAt(40), ErrorCode::ImageTruncated, Untouched, "image"),
        (&manifest_hex, Fault::FlipAt(40), ErrorCode::DigestMismatch, Untouched, "image"),
        (&manifest_hex, Fault::Unavailable, ErrorCode::ImageUnreachable, Untouched, "image"),
        (&layer_hex, Fault::NotFound, ErrorCode::ImageNotFound, PartialUnbootable, "layers"),
        (&layer_hex, Fault::CloseAt(MIB), ErrorCode::ImageTruncated, PartialUnbootable, "layers"),
        (&layer_hex, Fault::FlipAt(MIB), ErrorCode::DigestMismatch, PartialUnbootable, "layers"),
    ];
    let disk = work.join("large");
    for (index, (path, fault, code, disk_state, step)) in cases.into_iter().enumerate() {
        // What must go, or must stay.
        let mark = [0x5a; 4096];
        fs::OpenOptions::new().write(true).open(&disk).unwrap().write_all_at(&mark, 512).unwrap();
        store.set_fault(path, fault);
        let id = format!("bad-image-{index}");
        client.submit(&provision(&id, "large", &store.guest_url(), &manifest)).unwrap();
        let job = client.wait(&id, &mut |_| {}).unwrap();
        assert!(store.clear_faults() > 0, "{fault:?} was never met: {job:?}");
        let problem = job.problem.as_ref().unwrap_or_else(|| panic!("{fault:?}: {job:?}"));
        assert_eq!((job.state, problem.code), (JobState::Failed, code), "{fault:?}: {problem:?}");
        assert_eq!(problem.disk_state, Some(disk_state), "{fault:?}: {problem:?}");
        assert_eq!(problem.step.as_deref(), Some(step), "{fault:?}: {problem:?}");
        assert!(problem.retry.is_some() && problem.device.as_deref() == Some("large"), "{problem:?}");
        match disk_state {
            Untouched => assert_eq!(read(&disk, 512, 4096), mark, "{fault:?}: the disk was written to"),
            _ => assert!(is_zero(&read(&disk, 0, MIB)), "{fault:?}: the first MiB is not zero"),
        }
    }
}

/// A store that falls silent half-way: a job can be cancelled meanwhile, and goes on where it was when the store is
/// back.
fn a_store_that_stops(client: &Client, work: &Path) {
    let (manifest, layer) = small_image(&work.join("layout"));
    let store = Store::start(&work.join("layout")).unwrap();
    let start = |id: &str| {
        store.set_fault(layer.trim_start_matches("sha256:"), Fault::StallAt(MIB));
        client.submit(&provision(id, "large", &store.guest_url(), &manifest)).unwrap();
        let begun = Instant::now();
        while store.fired() == 0 {
            assert!(begun.elapsed() < ANSWER, "the store was not asked: {:?}", client.job(id));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(client.job(id).unwrap().state, JobState::Running);
    };
    start("stalled-cancelled");
    client.cancel("stalled-cancelled").unwrap();
    store.clear_faults();
    assert_eq!(cancelled(client, "stalled-cancelled").step.as_deref(), Some("layers"));
    assert!(is_zero(&read(&work.join("large"), 0, MIB)));

    start("stalled-resumed");
    store.clear_faults();
    // The whole layer arrived; that there is no Debian in it is what the next step finds.
    let problem = client.wait("stalled-resumed", &mut |_| {}).unwrap().problem.unwrap();
    assert_eq!((problem.code, problem.step.as_deref()), (ErrorCode::GuestUnsuitable, Some("customize")));
    assert_eq!(problem.disk_state, Some(DiskState::PartialUnbootable), "{problem:?}");
    assert!(is_zero(&read(&work.join("large"), 0, MIB)));
}

fn disks_come_and_go(uvm: &mut Appliance, work: &Path) {
    let client = uvm.client().clone();
    for (serial, block, bus) in [("hot-virtio", 512, Bus::VirtioBlk), ("hot-scsi", 4096, Bus::Scsi)] {
        let disk = Disk::create(work.join(serial), serial, SMALL).unwrap().with(block, bus);
        let attached = uvm.attach(&disk).unwrap();
        let is_there = |devices: &[uvm_api::Device]| devices.iter().any(|device| device.serial == serial);
        let limit = Duration::from_secs(5);
        let (devices, after) = client.wait_for_devices(limit, is_there).unwrap();
        println!("{serial} appeared after {after:?}");
        let found = devices.iter().find(|device| device.serial == serial).unwrap();
        assert_eq!((found.size_bytes, found.logical_block_size), (SMALL, block));
        let id = format!("job-{serial}");
        client.submit(&sanitize(&id, serial, "random")).unwrap();
        assert_eq!(client.wait(&id, &mut |_| {}).unwrap().state, JobState::Succeeded);
        uvm.detach(attached).unwrap();
        let (_, after) = client.wait_for_devices(limit, |devices| !is_there(devices)).unwrap();
        println!("{serial} was gone after {after:?}");
        let gone = client.submit(&sanitize("too-late", serial, "zero")).unwrap_err().problem();
        assert_eq!(gone.code, ErrorCode::DeviceNotFound);
    }
}

fn a_job_loses_its_disk(uvm: &mut Appliance, work: &Path) {
    let client = uvm.client().clone();
    for (serial, bus) in [("lost-virtio", Bus::VirtioBlk), ("lost-scsi", Bus::Scsi)] {
        let disk = Disk::create(work.join(serial), serial, LARGE).unwrap().with(512, bus);
        let attached = uvm.attach(&disk).unwrap();
        let is_there = |devices: &[uvm_api::Device]| devices.iter().any(|device| device.serial == serial);
        client.wait_for_devices(Duration::from_secs(5), is_there).unwrap();
        client.submit(&sanitize(serial, serial, "random")).unwrap();
        running(&client, serial);
        uvm.detach(attached).unwrap();
        let job = client.wait(serial, &mut |_| {}).unwrap();
        let problem = job.problem.as_ref().unwrap_or_else(|| panic!("{job:?}"));
        assert_eq!((job.state, problem.code), (JobState::Failed, ErrorCode::DeviceGone), "{problem:?}");
        assert_eq!(problem.disk_state, Some(DiskState::PartialUnbootable), "{problem:?}");
        assert!(!is_there(&client.devices().unwrap()));
    }
}

fn answers(serial: &mut Serial, cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        serial.ask(line, expected, ANSWER).unwrap();
    }
}

fn the_console_answers(uvm: &mut Appliance) {
    let client = uvm.client().clone();
    client.submit(&sanitize("typed", "large", "random")).unwrap();
    running(&client, "typed");
    let console = uvm.serial();
    let cases = [
        ("help", "ask a job to end"),
        ("status", "MiB memory"),
        ("devices", "nvme-4096"),
        ("inspect small-512", "\"logical_block_size\": 512"),
        ("inspect nobody", "no device has the serial"),
        ("jobs", "sanitize-small-4096"),
        ("jobs typed", "\"state\": \"running\""),
        ("net", "10.0.2.15/24"),
        ("config", "console  Full"),
        ("identity", "X25519"),
        ("log", "API on https://"),
        ("sh", "there is no command \"sh\""),
        ("rm -rf /", "there is no command \"rm\""),
        ("\u{1b}[A\u{7}\u{0}\u{1}%s$(id)`id`;id", "type help"),
        // End of input begins a new session.
        ("\u{4}", "Type help."),
        ("cancel typed", "type the serial of the device"),
        ("nvme-4096", "that is not its serial; the job goes on"),
        ("poweroff", "type the serial of the device"),
        ("", "that is not its serial; nothing was done"),
    ];
    answers(console, &cases);
    assert_eq!(client.job("typed").unwrap().state, JobState::Running);
    answers(console, &[("cancel typed", "type the serial of the device"), ("large", "was asked to end")]);
    cancelled(&client, "typed");
    assert!(!console.text(0).contains("PRIVATE KEY"));
}

fn metrics_are_well_formed(client: &Client) {
    let text = client.get_text("/metrics").unwrap();
    let mut names = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap_or_else(|error| panic!("{line}: {error}"));
        let name = name.split('{').next().unwrap();
        assert!(text.contains(&format!("# TYPE {name} ")), "{line}");
        names.push(name);
    }
    for name in ["uvm_build_info", "uvm_boot_seconds", "process_resident_memory_bytes", "uvm_jobs"] {
        assert!(names.contains(&name), "{name}: {text}");
    }
}

fn power_off(uvm: Appliance, client: &Client) {
    client.submit(&sanitize("last", "large", "random")).unwrap();
    running(client, "last");
    let problem = client.power(PowerAction::PowerOff, false).unwrap_err().problem();
    assert_eq!(problem.status, 409);
    assert!(problem.detail.contains("last"), "{problem:?}");
    client.power(PowerAction::PowerOff, true).unwrap();
    uvm.wait_exit(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_read_only_console_changes_nothing_and_the_power_button_works() {
    let work = folder("appliance-read-only");
    let pki = Pki::new().unwrap();
    let options = ApplianceOptions::new(files(), pki.config("node-8", "read-only"), &work);
    let mut uvm = Appliance::boot(&options, &pki).unwrap();
    let console = uvm.serial();
    console.wait_for("node-8 (read-only)>", 0, ANSWER).unwrap();
    let refused = "the console is read-only by configuration";
    let cases = [
        ("status", "MiB memory"),
        ("poweroff", refused),
        ("reboot", refused),
        ("cancel any", refused),
        ("devices", "no block device is attached"),
    ];
    answers(console, &cases);
    uvm.client().node().unwrap();
    uvm.qmp().execute("system_powerdown", json!({})).unwrap();
    uvm.wait_exit(Duration::from_secs(60)).unwrap();
}
