//! The manager of QEMU processes with real ones: the suite of all managers, and what is QEMU's own. The domains boot
//! the appliance, which is small, plugs disks and powers itself off when it is asked to.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uvm_api::{Device, JobSpec, JobState};
use uvm_controller::hypervisor::conformance::{Probe, conformance};
use uvm_controller::hypervisor::qemu::{Accelerator, QemuManager, QemuOptions};
use uvm_controller::hypervisor::{
    Attachment, Boot, DomainSpec, DomainState, ErrorKind, HypervisorManager, Role,
};
use uvm_controller::model::{Id, IoLimits};
use uvm_tests::{Client, Pki};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);
const LISTENS: &str = "API on https://";

fn appliance(file: &str) -> String {
    let folder = std::env::var("UVM_APPLIANCE")
        .expect("UVM_APPLIANCE names the folder of the appliance: run `cargo xtask test`, which builds it");
    let path = fs::canonicalize(Path::new(&folder).join(file)).expect("`cargo xtask appliance` makes it");
    path.to_str().unwrap().to_owned()
}

fn boot(pki: &Pki) -> Boot {
    let translated = Accelerator::choose().unwrap() == Accelerator::Tcg;
    Boot::Kernel {
        kernel: appliance("vmlinux"),
        initramfs: appliance("initramfs"),
        command_line: format!("console=ttyS0 quiet{}", if translated { " nolapic_timer" } else { "" }),
        config: pki.config("node-1", "off").to_string(),
        service_port: 8443,
    }
}

fn id(number: u8) -> Id {
    Id::new(1_700_000_000_000, [number; 10])
}

fn attachment(volume: Id) -> Attachment {
    Attachment { volume, serial: volume.serial(), read_only: false, io_limits: IoLimits::default() }
}

fn domain(number: u8, role: Role, boot: Boot, disks: &[Id]) -> DomainSpec {
    DomainSpec {
        id: id(number),
        name: format!("domain,{number}"),
        role,
        vcpus: 1,
        memory_mib: 128,
        numa: Vec::new(),
        disks: disks.iter().map(|disk| attachment(*disk)).collect(),
        mac: format!("52:54:00:00:01:{number:02x}"),
        boot,
    }
}

/// A node in a folder whose path is short enough for sockets. Whatever becomes of the test, no QEMU stays.
struct Node {
    folder: tempfile::TempDir,
    /// How much of each serial line was read.
    read: RefCell<BTreeMap<Id, usize>>,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("uvm-").tempdir_in("/tmp").unwrap();
        Self { folder, read: RefCell::default() }
    }

    fn open(&self) -> QemuManager {
        QemuManager::open(self.folder.path(), QemuOptions::default()).unwrap()
    }

    fn file(&self, domain: Id, name: &str) -> PathBuf {
        self.folder.path().join("domains").join(domain.to_string()).join(name)
    }

    fn volume(&self, volume: Id) -> PathBuf {
        self.folder.path().join("pool").join(format!("{volume}.raw"))
    }

    fn pid(&self, domain: Id) -> String {
        fs::read_to_string(self.file(domain, "pid")).unwrap().trim().to_owned()
    }

    /// Waits until a domain says something new on its serial line.
    fn says(&self, domain: Id, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        let path = self.file(domain, "serial.log");
        loop {
            let said = fs::read(&path).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            let mut read = self.read.borrow_mut();
            let read = read.entry(domain).or_default();
            if let Some(at) = said.get(*read..).and_then(|rest| rest.find(text)) {
                *read += at + text.len();
                return;
            }
            assert!(Instant::now() < deadline, "{domain} did not say {text:?}: {said}");
            std::thread::sleep(PAUSE);
        }
    }

    fn kill(&self, domain: Id) {
        assert!(Command::new("kill").args(["-9", &self.pid(domain)]).status().unwrap().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.folder.path().join("domains")).into_iter().flatten().flatten() {
            if let Ok(pid) = fs::read_to_string(entry.path().join("pid")) {
                let _ = Command::new("kill").args(["-9", pid.trim()]).status();
            }
        }
    }
}

fn wait_state(manager: &QemuManager, domain: Id, wanted: DomainState) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = manager.domain(domain).unwrap().unwrap().state;
        if state == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{domain} is {state:?}, not {wanted:?}");
        std::thread::sleep(PAUSE);
    }
}

fn passes_conformance(role: Role) {
    let node = Node::new();
    let pki = Pki::new().unwrap();
    conformance(&Probe {
        open: &|| Arc::new(node.open()),
        boot: boot(&pki),
        role,
        memory_mib: 128,
        booted: &|_, domain| node.says(domain, LISTENS),
        crash: &|domain| node.kill(domain),
        reads_as_zeroes: &|volume| fs::read(node.volume(volume)).unwrap().iter().all(|byte| *byte == 0),
        patience: PATIENCE,
    });
}

#[test]
fn guests_are_managed_as_everywhere() {
    passes_conformance(Role::Guest);
}

#[test]
fn utility_vms_are_managed_as_everywhere() {
    passes_conformance(Role::Utility);
}

fn wait_device(client: &Client, volume: Id, wanted: impl Fn(Option<&Device>) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let devices = client.devices().unwrap();
        if wanted(devices.iter().find(|device| device.serial == volume.serial())) {
            return;
        }
        assert!(Instant::now() < deadline, "{devices:?}");
        std::thread::sleep(PAUSE);
    }
}

fn spec(value: Value) -> JobSpec {
    serde_json::from_value(value).unwrap()
}

/// Something to recognize a volume by: the header of a swap area of version 1.
fn mark_as_swap(path: &Path) {
    let mut header = [0; 4096];
    header[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&100u32.to_le_bytes());
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(&header, 0).unwrap();
}

#[test]
fn a_utility_vm_works_on_volumes() {
    let (node, pki) = (Node::new(), Pki::new().unwrap());
    let manager = node.open();
    let (utility, guest, disk, copy) = (id(1), id(2), id(3), id(4));
    for volume in [disk, copy] {
        manager.create_volume(volume, 64).unwrap();
    }
    manager.define(&domain(2, Role::Guest, boot(&pki), &[disk])).unwrap();
    manager.define(&domain(1, Role::Utility, boot(&pki), &[])).unwrap();
    manager.start(guest).unwrap();
    manager.start(utility).unwrap();
    node.says(utility, LISTENS);
    let port = manager.service_address(utility).unwrap().port();
    let client = Client::new(port, &pki.authority, Some(&pki.client)).unwrap();
    assert_eq!(client.node().unwrap().name, "node-1", "the configuration came through");

    // A held guest's disk is read while it stays the guest's.
    mark_as_swap(&node.volume(disk));
    manager.suspend(guest).unwrap();
    manager.attach(utility, &Attachment { read_only: true, ..attachment(disk) }).unwrap();
    manager.attach(utility, &attachment(copy)).unwrap();
    wait_device(&client, disk, |device| device.is_some_and(|found| found.read_only));
    let devices = client.devices().unwrap();
    let shared = devices.iter().find(|device| device.serial == disk.serial()).unwrap();
    assert_eq!(shared.filesystem.as_ref().map(|found| found.format.as_str()), Some("swap"), "{shared:?}");
    wait_device(&client, copy, |device| {
        device.is_some_and(|found| !found.read_only && found.size_bytes == 64 * MIB)
    });
    let job =
        json!({ "kind": "sanitize", "id": "s", "device": { "serial": copy.serial() }, "pattern": "random" });
    client.submit(&spec(job)).unwrap();
    assert_eq!(client.wait("s", &mut |_| {}).unwrap().state, JobState::Succeeded);
    assert!(
        fs::read(node.volume(copy)).unwrap().chunks(4096).all(|block| block.iter().any(|byte| *byte != 0))
    );
    manager.detach(utility, disk).unwrap();
    wait_device(&client, disk, |device| device.is_none());
    manager.resume(guest).unwrap();

    // It is seen to grow, and what is written is counted.
    manager.grow_volume(copy, 80).unwrap();
    wait_device(&client, copy, |device| device.is_some_and(|found| found.size_bytes == 80 * MIB));
    let report = manager.report().unwrap();
    let (_, counters) = report.statistics.iter().find(|(of, _)| *of == utility).unwrap();
    assert_eq!(counters.block[0].volume, copy);
    assert!(counters.block[0].written_bytes > 0 && counters.block[0].reads > 0, "{counters:?}");
    assert!(counters.memory_bytes > 64 * MIB && counters.cpu_ns[0] > 0, "{counters:?}");
    assert_eq!(counters.network, None);
    manager.detach(utility, copy).unwrap();
    wait_device(&client, copy, |device| device.is_none());
    for running in [utility, guest] {
        manager.destroy(running).unwrap();
    }
}

#[test]
fn limits_are_the_devices() {
    let (node, pki) = (Node::new(), Pki::new().unwrap());
    let (guest, disk) = (id(2), id(3));
    let manager = node.open();
    manager.create_volume(disk, 64).unwrap();
    let limits = IoLimits { bytes_per_second: 3 * MIB, operations_per_second: 70 };
    let mut spec = domain(2, Role::Guest, boot(&pki), &[disk]);
    spec.disks[0].io_limits = limits;
    manager.define(&spec).unwrap();
    manager.start(guest).unwrap();
    drop(manager);
    let monitor = node.file(guest, "qmp.sock");
    let ask = |command: &str, arguments: Value| -> Value {
        let answer = qmp(&monitor, &json!({ "execute": command, "arguments": arguments }));
        serde_json::from_str::<Value>(&answer).unwrap()["return"].take()
    };
    let found = || {
        let path = format!("/objects/limits-{}", disk.serial());
        let limits = ask("qom-get", json!({ "path": path, "property": "limits" }));
        (limits["bps-total"].as_u64().unwrap(), limits["iops-total"].as_u64().unwrap())
    };
    assert_eq!(found(), (3 * MIB, 70));
    let block = ask("query-block", json!({}));
    let inserted = &block[0]["inserted"];
    assert_eq!(inserted["drv"], "throttle", "the limits are between the device and the file: {block}");
    let group = format!("limits-{}", disk.serial());
    assert!(inserted["file"].as_str().unwrap().contains(&group), "{block}");
    let manager = node.open();
    manager.set_io_limits(guest, disk, IoLimits::default()).unwrap();
    drop(manager);
    assert_eq!(found(), (0, 0));
    node.open().destroy(guest).unwrap();
}

#[test]
fn domains_outlive_the_controller() {
    let (node, pki) = (Node::new(), Pki::new().unwrap());
    let manager = node.open();
    let guest = id(2);
    manager.define(&domain(2, Role::Guest, boot(&pki), &[])).unwrap();
    manager.start(guest).unwrap();
    // In a session of its own, and a child of nobody here: no signal for the controller reaches it.
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.pid(guest))).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let own = fs::read_to_string("/proc/self/stat").unwrap();
    let own: Vec<&str> = own.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_ne!(fields[1], std::process::id().to_string(), "its parent");
    assert_ne!(fields[3], own[3], "its session");

    let second = QemuManager::open(node.folder.path(), QemuOptions::default());
    assert_eq!(second.unwrap_err().kind, ErrorKind::WrongState, "one controller at a time");
    drop(manager);
    let manager = node.open();
    wait_state(&manager, guest, DomainState::Running);
    for secret in ["definition.json", "config"] {
        let mode = fs::metadata(node.file(guest, secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    assert!(!fs::read_to_string(node.file(guest, "definition.json")).unwrap().contains("PRIVATE KEY"));
    let command_line = fs::read_to_string(format!("/proc/{}/cmdline", node.pid(guest))).unwrap();
    assert!(!command_line.contains("PRIVATE KEY"));

    // The number in a pidfile that nobody holds is nobody's.
    node.kill(guest);
    wait_state(&manager, guest, DomainState::Crashed);
    fs::write(node.file(guest, "pid"), "1\n").unwrap();
    assert_eq!(manager.domain(guest).unwrap().unwrap().state, DomainState::Crashed);
    manager.destroy(guest).unwrap();
    manager.undefine(guest).unwrap();
    assert!(!node.file(guest, "pid").parent().unwrap().exists());
}

#[test]
fn what_a_killed_controller_left_is_cleared_or_finished() {
    let (node, pki) = (Node::new(), Pki::new().unwrap());
    let manager = node.open();
    let (guest, disk) = (id(2), id(3));
    manager.create_volume(disk, 16).unwrap();
    manager.define(&domain(2, Role::Guest, boot(&pki), &[])).unwrap();
    manager.start(guest).unwrap();
    node.says(guest, LISTENS);
    drop(manager);
    // A volume that was being made, and a domain that was being defined.
    let begun = node.folder.path().join("pool").join(format!("{}.raw.new", id(9)));
    fs::write(&begun, "").unwrap();
    let undefined = node.folder.path().join("domains").join(id(8).to_string());
    fs::create_dir(&undefined).unwrap();
    // A disk whose parts were made, and whose device was not.
    let monitor = node.file(guest, "qmp.sock");
    qmp(
        &monitor,
        &json!({ "execute": "blockdev-add", "arguments": {
        "driver": "file", "node-name": format!("file-{}", disk.serial()), "filename": node.volume(disk),
    } }),
    );
    let manager = node.open();
    assert!(!begun.exists() && !undefined.exists());
    assert_eq!(manager.domain(guest).unwrap().unwrap().disks, []);
    manager.attach(guest, &attachment(disk)).unwrap();
    drop(manager);
    // A disk that was unplugged, and whose definition was not changed any more.
    let device = format!("volume-{disk}");
    let deadline = Instant::now() + PATIENCE;
    while !qmp(&monitor, &json!({ "execute": "device_del", "arguments": { "id": device } }))
        .contains("not found")
    {
        assert!(Instant::now() < deadline, "the disk does not go");
        std::thread::sleep(Duration::from_millis(500));
    }
    let manager = node.open();
    assert_eq!(manager.domain(guest).unwrap().unwrap().disks, [], "what is told is what is so");
    manager.detach(guest, disk).unwrap();
    manager.attach(guest, &attachment(disk)).unwrap();
    assert_eq!(manager.domain(guest).unwrap().unwrap().disks, [(disk, false)]);
    manager.destroy(guest).unwrap();
}

#[test]
fn looks_do_not_disturb() {
    let (node, pki) = (Node::new(), Pki::new().unwrap());
    let manager = node.open();
    let (guest, disk) = (id(2), id(3));
    manager.create_volume(disk, 16).unwrap();
    manager.define(&domain(2, Role::Guest, boot(&pki), &[])).unwrap();
    let done = AtomicBool::new(false);
    let events = std::thread::scope(|threads| {
        let looker = threads.spawn(|| {
            let mut events = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let report = manager.report().unwrap();
                assert!(report.domains.iter().all(|domain| domain.state != DomainState::Crashed));
                events.extend(report.events);
            }
            events.extend(manager.report().unwrap().events);
            events
        });
        for _ in 0..5 {
            manager.start(guest).unwrap();
            manager.attach(guest, &attachment(disk)).unwrap();
            manager.suspend(guest).unwrap();
            manager.resume(guest).unwrap();
            manager.destroy(guest).unwrap();
            assert_eq!(manager.domain(guest).unwrap().unwrap().state, DomainState::ShutOff);
            manager.detach(guest, disk).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        looker.join().unwrap()
    });
    let told: Vec<&str> = events.iter().map(|event| event.what.as_str()).collect();
    assert_eq!(told, ["started", "suspended", "resumed", "stopped"].repeat(5));
}

/// One command on a monitor that nobody else has; what QEMU answers.
fn qmp(socket: &Path, command: &Value) -> String {
    use std::io::{BufRead, BufReader, Write};
    let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut reader = BufReader::new(stream);
    let mut answer = |command: Option<&Value>| {
        if let Some(command) = command {
            reader.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        }
        loop {
            let mut line = String::new();
            assert_ne!(reader.read_line(&mut line).unwrap(), 0, "QEMU closed its monitor");
            if !line.contains("\"event\"") {
                return line;
            }
        }
    };
    answer(None);
    answer(Some(&json!({ "execute": "qmp_capabilities" })));
    answer(Some(command))
}

#[test]
fn a_guest_boots_its_disk_by_uefi() {
    let node = Node::new();
    let manager = node.open();
    let (guest, disk) = (id(2), id(3));
    manager.create_volume(disk, 64).unwrap();
    manager.define(&domain(2, Role::Guest, Boot::Disk, &[disk])).unwrap();
    manager.start(guest).unwrap();
    // The firmware looks at the disk first, and finds nothing to boot.
    node.says(guest, "Boot0001");
    assert_ne!(manager.service_address(guest).unwrap().port(), 0, "SSH is forwarded");
    assert_eq!(fs::metadata(node.file(guest, "vars.fd")).unwrap().permissions().mode() & 0o777, 0o600);
    let lost = manager.detach(guest, disk).unwrap_err();
    assert_eq!(lost.kind, ErrorKind::TimedOut, "firmware lets go of nothing");
    assert_eq!(manager.domain(guest).unwrap().unwrap().disks, [(disk, false)]);
    manager.destroy(guest).unwrap();
    manager.detach(guest, disk).unwrap();
    manager.delete_volume(disk).unwrap();
}

#[test]
fn what_cannot_be_is_said_clearly() {
    let node = Node::new();
    let long = node.folder.path().join("x".repeat(60));
    let error = QemuManager::open(&long, QemuOptions::default()).unwrap_err();
    assert!(error.message.contains("at most 53 bytes"), "{error}");
    let options = QemuOptions { program: "no-such-qemu".into(), ..QemuOptions::default() };
    let manager = QemuManager::open(node.folder.path(), options).unwrap();
    manager.define(&domain(2, Role::Guest, Boot::Disk, &[])).unwrap();
    let error = manager.start(id(2)).unwrap_err();
    assert!(error.message.contains("no-such-qemu"), "{error}");
    let found = manager.domain(id(2)).unwrap().unwrap();
    assert_eq!(found.state, DomainState::ShutOff, "what did not start has not crashed");
    drop(manager);
    let manager = node.open();
    let mut broken = domain(2, Role::Guest, Boot::Disk, &[]);
    broken.mac = "no address".to_owned();
    manager.define(&broken).unwrap();
    let error = manager.start(id(2)).unwrap_err();
    assert!(error.message.contains("mac"), "QEMU's own words: {error}");
}
