//! `customize` on plain files: machines made by foreign tools, changed in place, judged by foreign tools again.
//! Needs root: the kernel mounts the guest's file system.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::*;
use uvm_api::{DiskState, ErrorCode, JobResult};

const SIZE: u64 = 64 * MIB;
/// Where the root partition begins.
const START: u64 = 8 * MIB;
const OS_RELEASE: &str = "ID=debian\nPRETTY_NAME=\"A small guest\"\n";
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef\n";
const OTHER_ID: &str = "fedcba9876543210fedcba9876543210\n";

/// The files of a small machine, and what `shape` makes of them in its root folder.
fn guest(shape: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        r#"
        set -eu
        umask 022
        mkdir -p etc usr/lib usr/bin root home
        printf '%s' "$OS_RELEASE" > usr/lib/os-release && ln -s ../usr/lib/os-release etc/os-release
        printf 'web-1\n' > etc/hostname && chmod 640 etc/hostname && chown 0:42 etc/hostname
        printf '127.0.0.1 localhost\n127.0.1.1 web-1\n10.0.0.9 peer\n' > etc/hosts
        printf '%s' "$MACHINE_ID" > etc/machine-id && chmod 444 etc/machine-id
        printf 'root:x:0:0:root:/root:/bin/sh\n' > etc/passwd && printf 'root:*:19000:0:99999:7:::\n' > etc/shadow
        printf 'root:x:0:\n' > etc/group && printf 'root:*::\n' > etc/gshadow && chmod 640 etc/shadow etc/gshadow
        printf '/dev/vda2 / ext4 defaults 0 1\n' > etc/fstab && printf x > usr/bin/sh
        {shape}
        "#
    );
    let made = Command::new("bash")
        .args(["-c", &script])
        .envs([("OS_RELEASE", OS_RELEASE), ("MACHINE_ID", MACHINE_ID)])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    folder
}

/// A disk with a GPT whose second partition is an ext4 of these files.
fn machine(block: u32, shape: &str) -> Disk {
    machine_of(block, shape, &[])
}

fn machine_of(block: u32, shape: &str, options: &[&str]) -> Disk {
    let disk = blank(block);
    let files = guest(shape);
    let path = disk.path.to_str().unwrap();
    // sgdisk counts a file in blocks of 512 bytes; a loop device has the block size it is given.
    let device = run("losetup", &["-f", "--show", "-b", &block.to_string(), path]).trim().to_owned();
    let first = START / u64::from(block);
    let (esp, root) = (format!("1:{}:{}", MIB / u64::from(block), first - 1), format!("2:{first}:0"));
    let made = ask("sgdisk", &["-n", &esp, "-t", "1:ef00", "-n", &root, "-t", "2:8300", &device]);
    let freed = ask("losetup", &["-d", &device]);
    assert!(made.0 && freed.0, "{made:?} {freed:?}");
    let mut arguments = vec!["-q", "-F", "-b", "4096"];
    arguments.extend(options);
    let offset = format!("offset={START}");
    let size = format!("{}k", (root_size(&disk)) >> 10);
    arguments.extend(["-E", &offset, "-d", files.path().to_str().unwrap(), path, &size]);
    run("mkfs.ext4", &arguments);
    disk
}

fn blank(block: u32) -> Disk {
    let disk = Disk::new(SIZE, block);
    std::fs::write(&disk.path, []).unwrap();
    std::fs::OpenOptions::new().write(true).open(&disk.path).unwrap().set_len(SIZE).unwrap();
    disk
}

/// To the end that a GPT leaves, in whole blocks of the file system.
fn root_size(disk: &Disk) -> u64 {
    let backup = 33.max(1 + 16384 / u64::from(disk.block)) * u64::from(disk.block);
    (SIZE - backup - START) / 4096 * 4096
}

fn place(disk: &Disk) -> String {
    format!("{}?offset={START}", disk.path.display())
}

/// What a file of the guest holds, by debugfs.
fn cat(disk: &Disk, path: &str) -> String {
    debugfs(disk, &format!("cat {path}"))
}

fn debugfs(disk: &Disk, request: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", request, &place(disk)])
        .stdin(Stdio::null())
        .output()
        .expect("the judge debugfs is missing");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every file system check there is, without a repair.
fn check(disk: &Disk) {
    let said = run("e2fsck", &["-fn", &place(disk)]);
    assert!(!said.contains("recovering journal"), "{said}");
}

fn rename(id: &str, hostname: &str) -> Value {
    json!({"kind": "customize", "id": id, "device": {"serial": SERIAL}, "customize": {"hostname": hostname}})
}

fn changed(ended: &Ended) -> (Vec<String>, Vec<String>) {
    match ended.result() {
        JobResult::Customize { changed, notes } => (changed.clone(), notes.clone()),
        other => panic!("{other:?}"),
    }
}

/// Refused before the first write: not one byte is another one.
fn refused(disk: &Disk, code: ErrorCode, words: &str) {
    let before = disk.digest();
    let ended = apply(&rename("refused", "web-2"), disk);
    let problem = ended.failed(code, DiskState::Untouched, "open");
    let said = format!("{} {:?}", problem.detail, problem.causes);
    assert!(said.contains(words), "{said}");
    assert_eq!(disk.digest(), before);
    assert_eq!(loops(disk), "");
}

/// Loop devices that are left on the disk.
fn loops(disk: &Disk) -> String {
    run("losetup", &["-j", disk.path.to_str().unwrap()])
}

#[test]
fn a_machine_gets_another_name_on_both_block_sizes() {
    for block in [512, 4096] {
        let disk = machine(block, "setfattr -n user.note -v kept etc/hostname");
        let table = (disk.read(0, START), disk.read(SIZE - MIB / 2, MIB / 2));
        let (status, plan) = plan(&rename("name", "web-2.example"), &disk);
        assert_eq!((status, &plan["destroys"]), (0, &json!([])), "{plan}");
        let ended = apply(&rename("name", "web-2.example"), &disk);
        assert_eq!(changed(&ended), (vec!["host name: web-2.example".to_owned()], vec![]));
        check(&disk);
        assert_eq!(cat(&disk, "/etc/hostname"), "web-2.example\n");
        let hosts = "127.0.0.1 localhost\n127.0.1.1\tweb-2.example web-2\n10.0.0.9 peer\n";
        assert_eq!(cat(&disk, "/etc/hosts"), hosts);
        let status = debugfs(&disk, "stat /etc/hostname");
        assert!(status.contains("Mode:  0640") && status.contains("Group:    42"), "{status}");
        assert!(debugfs(&disk, "ea_list /etc/hostname").contains("user.note (4) = \"kept\""));
        for (path, contents) in [("/etc/machine-id", MACHINE_ID), ("/usr/lib/os-release", OS_RELEASE)] {
            assert_eq!(cat(&disk, path), contents);
        }
        assert_eq!(cat(&disk, "/etc/fstab"), "/dev/vda2 / ext4 defaults 0 1\n");
        assert!(!debugfs(&disk, "ls -l /etc").contains(".uvm"), "no file of ours stays");
        assert!(
            table == (disk.read(0, START), disk.read(SIZE - MIB / 2, MIB / 2)),
            "not a byte outside of the root"
        );
        assert_eq!(loops(&disk), "");

        let (changed, notes) = changed(&apply(&rename("again", "web-2.example"), &disk));
        assert!(changed.is_empty() && notes[0].contains("was so already"), "{changed:?} {notes:?}");
        check(&disk);
    }
}

#[test]
fn users_and_network_of_an_installed_machine() {
    let units = "usr/lib/systemd/system";
    let shape = format!("mkdir -p {units} && printf '[Install]\\n' > {units}/systemd-networkd.service");
    let disk = machine(512, &shape);
    let job = json!({"kind": "customize", "id": "more", "device": {"serial": SERIAL}, "customize": {
        "users": [{"name": "anna", "ssh_authorized_keys": [KEY]}],
        "network": {"version": 2, "ethernets": {"lan": {"addresses": ["192.0.2.10/24"]}}},
    }});
    let (changed, _) = changed(&apply(&job, &disk));
    assert_eq!(changed, ["user anna: created, uid 1000", "network by systemd-networkd: lan"]);
    check(&disk);
    assert_eq!(cat(&disk, "/home/anna/.ssh/authorized_keys"), format!("{KEY}\n"));
    assert!(debugfs(&disk, "stat /home/anna/.ssh").contains("User:  1000"));
    assert!(cat(&disk, "/etc/shadow").contains("\nanna:*:"));
    assert!(cat(&disk, "/etc/systemd/network/10-lan.network").contains("Address=192.0.2.10/24"));
    assert_eq!(cat(&disk, "/etc/hostname"), "web-1\n", "what was not asked for stays");
}

/// A folder of this machine that a guest points at, with its own hostname and hosts.
fn bait() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["hostname", "hosts", "machine-id"] {
        std::fs::write(folder.path().join(name), "ours\n").unwrap();
    }
    folder
}

fn untouched(bait: &Path) {
    let mut names: Vec<_> = bait.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["hostname", "hosts", "machine-id"]);
    for name in names {
        assert_eq!(std::fs::read_to_string(bait.join(name)).unwrap(), "ours\n");
    }
}

#[test]
fn links_of_a_hostile_guest_lead_nowhere() {
    let bait = bait();
    let outside = format!("../../../../../..{}", bait.path().display());

    // The name itself is a link: it is replaced, whatever it led to.
    let disk = machine(512, &format!("ln -sf {outside}/hostname etc/hostname"));
    changed(&apply(&rename("link", "web-2"), &disk));
    check(&disk);
    assert_eq!(cat(&disk, "/etc/hostname"), "web-2\n");

    // Another file is followed, inside the guest alone; what is not there is refused before the name is written.
    let disk = machine(512, &format!("ln -sf {outside}/hosts etc/hosts"));
    let ended = apply(&rename("hosts", "web-2"), &disk);
    let problem = ended.failed(ErrorCode::GuestUnsuitable, DiskState::Modified, "customize");
    assert!(format!("{:?}", problem.causes).contains("there is no directory"), "{problem:#?}");
    check(&disk);
    assert_eq!(cat(&disk, "/etc/hostname"), "web-1\n");

    // The folder is a link out, and one that leads to such a place within.
    let shape = format!("rm -r etc && ln -s {outside} etc");
    refused(&machine(512, &shape), ErrorCode::GuestUnsuitable, "no directory /etc");
    let disk = machine(
        512,
        &format!("mkdir -p .{0} && mv etc/* .{0} && rmdir etc && ln -s {outside} etc", bait.path().display()),
    );
    changed(&apply(&rename("within", "web-2"), &disk));
    check(&disk);
    assert_eq!(cat(&disk, &format!("{}/hostname", bait.path().display())), "web-2\n");

    // No file at all, or one that must not be opened.
    for shape in ["mkfifo etc/hosts", "mknod etc/hosts c 5 1", "mkdir etc/hosts"] {
        let disk = machine(512, &format!("rm etc/hosts && {shape}"));
        let ended = apply(&rename("kind", "web-2"), &disk);
        ended.failed(ErrorCode::GuestUnsuitable, DiskState::Modified, "customize");
        assert_eq!(cat(&disk, "/etc/hostname"), "web-1\n");
    }
    untouched(bait.path());
}

#[test]
fn what_is_no_machine_to_change_is_refused_untouched() {
    let unsuitable = ErrorCode::GuestUnsuitable;
    refused(&blank(512), unsuitable, "no partition table and no file system");
    refused(&machine(512, "rm etc/os-release usr/lib/os-release"), unsuitable, "partition 2 holds ext4");
    refused(&machine_of(512, "", &["-O", "^has_journal"]), unsuitable, "no journal");
    refused(
        &machine_of(
            512,
            "",
            &["-O", "^extents,^64bit,^metadata_csum,^flex_bg,^huge_file,^dir_nlink,^extra_isize"],
        ),
        unsuitable,
        "is ext3",
    );

    let put = |offset: u64, bytes: &[u8]| {
        use std::os::unix::fs::FileExt;
        let disk = machine(512, "");
        let file = std::fs::OpenOptions::new().write(true).open(&disk.path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
        disk
    };
    refused(&put(START, b"LUKS\xba\xbe\x00\x02"), unsuitable, "partition 2 is encrypted");
    refused(&put(MIB + 4086, b"S1SUSPEND\0"), unsuitable, "hibernated in partition 1");

    let damaged = machine(512, "");
    run("debugfs", &["-w", "-R", "set_super_value state 2", &place(&damaged)]);
    refused(&damaged, unsuitable, "run e2fsck in the guest");
    let external = machine(512, "");
    run("debugfs", &["-w", "-R", "set_super_value journal_dev 0x801", &place(&external)]);
    refused(&external, unsuitable, "its journal on another device");

    let empty = json!({"kind": "customize", "id": "none", "device": {"serial": SERIAL}, "customize": {}});
    let disk = machine(512, "");
    apply(&empty, &disk).failed(ErrorCode::InvalidRequest, DiskState::Untouched, "plan");
    apply(&rename("bad", "not a name"), &disk).failed(
        ErrorCode::InvalidRequest,
        DiskState::Untouched,
        "plan",
    );
    assert_eq!(cat(&disk, "/etc/hostname"), "web-1\n");
}

#[test]
fn several_systems_are_told_apart_by_their_type_or_refused() {
    let disk = machine(512, "");
    let second = disk.folder.path().join("second.img");
    let files = guest("printf 'other\n' > etc/hostname");
    // Into the room of the first partition, which has 7 MiB.
    let arguments =
        ["-q", "-F", "-b", "1024", "-d", files.path().to_str().unwrap(), second.to_str().unwrap(), "7168k"];
    run("mkfs.ext4", &arguments);
    let (path, second) = (disk.path.to_str().unwrap(), second.to_str().unwrap());
    let copy = [
        format!("if={second}"),
        format!("of={path}"),
        "bs=1M".into(),
        "seek=1".into(),
        "conv=notrunc".into(),
    ];
    run("dd", &copy);
    refused(&disk, ErrorCode::GuestUnsuitable, "partition 1, partition 2");
    run("sgdisk", &["-t", "2:8304", path]);
    changed(&apply(&rename("typed", "web-2"), &disk));
    assert_eq!(cat(&disk, "/etc/hostname"), "web-2\n");
    check(&disk);
}

#[test]
fn a_disk_that_somebody_holds_is_refused() {
    let disk = machine(512, "");
    let mut holder = Command::new("flock")
        .args(["--exclusive", "--no-fork", disk.path.to_str().unwrap(), "sh", "-c", "echo held; read x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 5];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut said).unwrap();
    refused(&disk, ErrorCode::DeviceBusy, "locking");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    changed(&apply(&rename("free", "web-2"), &disk));
}

/// A machine that was cut off: its journal, in this format, holds the only copy of its machine id.
fn cut_off(journal: &str) -> Disk {
    let disk = machine(512, "");
    let block = debugfs(&disk, "bmap /etc/machine-id 0").trim().to_owned();
    let contents = disk.folder.path().join("block");
    let mut bytes = OTHER_ID.as_bytes().to_vec();
    bytes.resize(4096, 0);
    std::fs::write(&contents, &bytes).unwrap();
    let requests = format!(
        "open -w {}\njournal_open {journal}\njournal_write -b {block} {}\njournal_close\nclose\n",
        place(&disk),
        contents.display()
    );
    let path = disk.folder.path().join("requests");
    std::fs::write(&path, requests).unwrap();
    run("debugfs", &["-f", path.to_str().unwrap()]);
    assert!(dumpe2fs(&disk).contains("needs_recovery"));
    assert_eq!(cat(&disk, "/etc/machine-id"), MACHINE_ID, "the other one is in the journal alone");
    disk
}

fn dumpe2fs(disk: &Disk) -> String {
    run("dumpe2fs", &["-h", &place(disk)])
}

#[test]
fn what_the_journal_holds_is_carried_out_first() {
    for journal in ["", "-c -v 3"] {
        let disk = cut_off(journal);
        let (changed, notes) = changed(&apply(&rename("cut", "web-2"), &disk));
        assert_eq!(changed, ["host name: web-2"]);
        assert!(notes.iter().any(|note| note.contains("had not been shut down")), "{notes:?}");
        assert!(!dumpe2fs(&disk).contains("needs_recovery"));
        check(&disk);
        assert_eq!(cat(&disk, "/etc/machine-id"), OTHER_ID);
        assert_eq!(cat(&disk, "/etc/hostname"), "web-2\n");
    }
}

/// A disk of the kernel's: a loop device with partitions, made by losetup.
struct KernelDisk {
    disk: Disk,
}

impl KernelDisk {
    fn over(file: &Disk) -> Self {
        let (block, path) = (file.block.to_string(), file.path.to_str().unwrap());
        let node = run("losetup", &["-f", "--show", "-P", "-b", &block, path]);
        let folder = tempfile::tempdir().unwrap();
        let kernels = Self { disk: Disk { path: node.trim().into(), block: file.block, folder } };
        // Where this kernel reads no GPT, partx does and tells it; where it does, the partitions are there.
        ask("partx", &["--add", kernels.disk.path.to_str().unwrap()]);
        assert!(Path::new(&kernels.partition()).exists());
        kernels
    }

    fn partition(&self) -> String {
        format!("{}p2", self.disk.path.display())
    }
}

impl Drop for KernelDisk {
    fn drop(&mut self) {
        ask("losetup", &["-d", self.disk.path.to_str().unwrap()]);
    }
}

#[test]
fn a_disk_of_the_kernels_is_changed_through_its_partition() {
    for block in [512, 4096] {
        let file = machine(block, "");
        let kernels = KernelDisk::over(&file);
        changed(&apply(&rename("partition", "web-2"), &kernels.disk));
        // Mounted by somebody else: neither the disk nor the partition is to be had.
        let folder = tempfile::tempdir().unwrap();
        let mount = ["-t", "ext4", "-o", "ro", &kernels.partition(), folder.path().to_str().unwrap()];
        run("mount", &mount);
        let ended = apply(&rename("held", "web-3"), &kernels.disk);
        run("umount", &[folder.path()]);
        ended.failed(ErrorCode::DeviceBusy, DiskState::Untouched, "open");
        drop(kernels);
        check(&file);
        assert_eq!(cat(&file, "/etc/hostname"), "web-2\n");
    }
}

/// Without partitions of the kernel's there is nothing that it could mount.
#[test]
fn a_disk_of_the_kernels_without_partitions_is_refused() {
    let file = machine(512, "");
    let before = file.digest();
    let node = run("losetup", &["-f", "--show", file.path.to_str().unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    let kernels = KernelDisk { disk: Disk { path: node.trim().into(), block: 512, folder } };
    let ended = apply(&rename("whole", "web-2"), &kernels.disk);
    ended.failed(ErrorCode::GuestUnsuitable, DiskState::Untouched, "open");
    drop(kernels);
    assert_eq!(file.digest(), before);
}

/// Killed while the machine is mounted, the job leaves no mount and no loop device; the same job again completes it.
#[test]
fn a_killed_job_leaves_nothing_mounted() {
    use std::io::BufRead;
    use std::os::unix::process::ExitStatusExt;
    let mut fired = 0;
    for attempt in 0..10 {
        let disk = machine(512, "");
        let job = rename("killed", "web-2");
        let mut child = apply_command(&job, &disk).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let started = lines.any(|line| {
            let line = line.unwrap();
            line.contains("step-started") && line.contains(r#""step":"customize""#)
        });
        assert!(started);
        // Each time a little deeper into the step.
        std::thread::sleep(std::time::Duration::from_millis(10 * attempt));
        child.kill().unwrap();
        fired += usize::from(child.wait().unwrap().signal() == Some(9));
        assert_eq!(loops(&disk), "");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(disk.folder.path().to_str().unwrap()), "{mounts}");
        check(&disk);
        assert!(["web-1\n", "web-2\n"].contains(&cat(&disk, "/etc/hostname").as_str()));
        changed(&apply(&job, &disk));
        check(&disk);
        assert_eq!(cat(&disk, "/etc/hostname"), "web-2\n");
        assert!(!debugfs(&disk, "ls -l /etc").contains(".uvm"));
    }
    assert!(fired > 0, "no job was killed in time");
}

/// A file system that is full: the old names stay, whole, and the machine is sound.
#[test]
fn a_full_file_system_keeps_its_names() {
    let disk = machine_of(512, "", &["-m", "0", "-N", "64"]);
    // debugfs takes no file bigger than the room: fill it with ever smaller ones.
    let filler = disk.folder.path().join("filler");
    for size in [40 * MIB, 4 * MIB, MIB, 64 << 10, 4096, 4096, 4096, 4096] {
        std::fs::write(&filler, vec![7; usize::try_from(size).unwrap()]).unwrap();
        for copy in 0..12 {
            let request = format!("write {} filler-{size}-{copy}", filler.display());
            ask("debugfs", &["-w", "-R", &request, &place(&disk)]);
        }
    }
    run("e2fsck", &["-fy", &place(&disk)]);
    let ended = apply(&rename("full", "web-2"), &disk);
    ended.failed(ErrorCode::NoSpace, DiskState::Modified, "customize");
    check(&disk);
    assert_eq!(cat(&disk, "/etc/hostname"), "web-1\n");
    assert!(cat(&disk, "/etc/hosts").contains("127.0.1.1 web-1\n"));
    assert!(!debugfs(&disk, "ls -l /etc").contains(".uvm"));
}
