//! `uvm plan`, `apply` and `inspect` on plain files, with foreign tools as the judges of what was written.
//! Needs root: the finished root file system is mounted and compared, entry by entry, with the image's own tars.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::image::{KERNEL, LOADER, Layout, Stored, archive, entry, guest};
use support::judge::{LoopDevice, Tree, expected_tree};
use support::*;
use uvm_api::{DiskState, ErrorCode, JobResult};

const GIB: u64 = 1 << 30;

/// A bootable guest with everything that a file system can hold, in two layers made by GNU tar.
fn rich_layout() -> Layout {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.tar");
    std::fs::write(&base, archive(&guest(3 << 20, ""))).unwrap();
    let script = r#"
        set -eu
        mkdir one two && tar -xf base.tar -C one
        cd one
        mkdir -p srv/dir/deep home/ben var/lib/gone opt/opaque/sub "srv/$(printf 'n%.0s' $(seq 200))"
        printf 'some text\n' > srv/file && chown 1234:70000 srv/file && chmod 4751 srv/file
        ln srv/file srv/hard-1 && ln srv/file srv/dir/hard-2
        ln -s ../some/where srv/link && ln -s "$(printf 'x%.0s' $(seq 300))" srv/long-link && chown -h 7:8 srv/link
        mknod srv/char c 5 300 && mknod srv/block b 259 70000 && mkfifo -m 620 srv/fifo
        truncate -s 40M srv/sparse && printf middle | dd of=srv/sparse bs=1 seek=20000000 conv=notrunc status=none
        head -c 5000000 /dev/urandom > srv/random && : > srv/empty
        printf x > "srv/$(printf 'bytes\377\376')" && printf x > "srv/$(printf 'l%.0s' $(seq 255))"
        chmod 1777 srv/dir && chmod 2755 srv/dir/deep && chmod 0 srv/empty
        setfattr -n user.note -v value srv/file && setfattr -n user.dir -v value srv/dir
        setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 srv/random
        head -c 900 /dev/urandom | base64 -w0 > ../value && setfattr -n user.large -v "$(cat ../value)" srv/empty
        printf 'gone' > var/lib/gone/file && printf 'low' > opt/opaque/low && printf 'low' > srv/replaced
        for i in $(seq 2000); do : > "home/ben/file-$i"; done
        chown -R 1000:1000 home/ben
        find . -newer ../base.tar -print0 | xargs -0 touch -h -d '2021-03-04 05:06:07.123456789'
        touch -h -d '1960-01-02 03:04:05.5' srv/fifo && touch -d '2100-01-01 00:00:00.25' srv/block
        tar --posix --xattrs --xattrs-include='*' --sparse --numeric-owner -cf ../one.tar .
        cd ../two
        mkdir -p srv opt/opaque var/lib && : > var/lib/.wh.gone && : > opt/opaque/.wh..wh..opq
        printf high > opt/opaque/high && mkdir srv/replaced && printf 'new' > srv/replaced/in
        printf 'second' > srv/random-2 && ln srv/random-2 srv/random-3
        find . -print0 | xargs -0 touch -h -d '2022-01-01 00:00:00.000000001'
        tar --posix --xattrs --xattrs-include='*' --numeric-owner -cf ../two.tar .
    "#;
    let made = Command::new("bash").args(["-c", script]).current_dir(folder.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name| std::fs::read(folder.path().join(name)).unwrap();
    Layout::new(&[(read("one.tar"), Stored::Gzip), (read("two.tar"), Stored::Zstd)])
}

/// The partitions of a finished disk as the judges' devices.
struct Finished {
    esp: LoopDevice,
    swap: LoopDevice,
    root: LoopDevice,
    uuids: BTreeMap<String, String>,
}

fn judge_disk(disk: &Disk, plan: &Value) -> Finished {
    let whole = LoopDevice::new(disk, 0, disk.size());
    let said = run("sgdisk", &["-v", &whole.path]);
    assert!(said.contains("No problems found"), "{said}");
    let mut uuids = BTreeMap::new();
    let mut part = |label: &str| {
        let partitions = plan["partitions"].as_array().unwrap();
        let found = partitions.iter().find(|partition| partition["label"] == label).unwrap();
        let number = |name: &str| found[name].as_u64().unwrap();
        let said = run("sgdisk", &[&format!("-i{}", number("number")), &whole.path]);
        for text in [&found["unique_guid"], &found["type_guid"]] {
            assert!(said.to_lowercase().contains(text.as_str().unwrap()), "{text}: {said}");
        }
        assert!(said.contains(&format!("First sector: {} ", number("starting_lba"))), "{said}");
        assert!(said.contains(&format!("Last sector: {} ", number("ending_lba"))), "{said}");
        let offset = number("starting_lba") * u64::from(disk.block);
        let device = LoopDevice::new(disk, offset, number("size_bytes"));
        let said = run("blkid", &["-p", "-o", "export", &device.path]);
        let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        assert_eq!(field("TYPE"), found["format"].as_str(), "{said}");
        assert_eq!(field("UUID"), found["filesystem_uuid"].as_str(), "{said}");
        uuids.insert(label.to_owned(), field("UUID").unwrap().to_owned());
        device
    };
    let (esp, swap, root) = (part("esp"), part("swap"), part("root"));
    run("e2fsck", &["-fn", &root.path]);
    run("fsck.fat", &["-n", &esp.path]);
    assert!(run("swaplabel", &[&swap.path]).contains(&uuids["swap"]));
    Finished { esp, swap, root, uuids }
}

/// What customization writes: compared one by one, not with the image.
const CHANGED: [&str; 16] = [
    "etc/fstab",
    "etc/group",
    "etc/group-",
    "etc/gshadow",
    "etc/hostname",
    "etc/hosts",
    "etc/kernel",
    "etc/machine-id",
    "etc/passwd",
    "etc/resolv.conf",
    "etc/shadow",
    "etc/ssh/ssh_host_",
    "etc/subuid",
    "etc/subgid",
    "etc/systemd",
    "home/anna",
];
/// Directories in which it writes: their times change with their entries.
const TOUCHED: [&str; 7] = ["", "boot", "boot/efi", "etc", "etc/ssh", "home", "var/lib/dbus"];
/// What the image carried of another machine.
const REMOVED: [&str; 2] = ["var/lib/dbus/machine-id", "var/lib/systemd/random-seed"];

fn compare(expected: &Tree, actual: &Tree) {
    let changed = |path: &str| {
        path == "lost+found"
            || REMOVED.contains(&path)
            || CHANGED.iter().any(|name| path == *name || path.starts_with(&format!("{name}/")))
            || path.starts_with("etc/ssh/ssh_host_")
    };
    let mut differences = Vec::new();
    for path in expected.keys().chain(actual.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (mut old, mut new) = (expected.get(path).cloned(), actual.get(path).cloned());
        if TOUCHED.contains(&path.as_str()) {
            if old.is_none() {
                continue;
            }
            old.iter_mut().chain(new.iter_mut()).for_each(|entry| entry.mtime = (0, 0));
        }
        if old != new && !changed(path) {
            differences.push(format!("{path}:\n  image {old:?}\n  disk  {new:?}"));
        }
    }
    assert!(expected.len() > 20);
    differences.truncate(20);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn text(root: &Path, path: &str) -> String {
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files that make the machine the customer's.
fn judge_customization(root: &Path, finished: &Finished, result: &JobResult) {
    let JobResult::Provision { machine_id, root_uuid, ssh_host_key, .. } = result else {
        panic!("{result:?}")
    };
    assert_eq!(*root_uuid, finished.uuids["root"]);
    assert_eq!(text(root, "etc/hostname"), "web-1.example.org\n");
    assert!(text(root, "etc/hosts").contains("127.0.1.1\tweb-1.example.org web-1\n"));
    assert_eq!(text(root, "etc/machine-id"), format!("{machine_id}\n"));
    let passwd = text(root, "etc/passwd");
    let line = passwd.lines().find(|line| line.starts_with("anna:")).unwrap();
    let fields: Vec<&str> = line.split(':').collect();
    assert_eq!((fields[1], fields[4], fields[5]), ("x", "Anna", "/home/anna"));
    assert!(text(root, "etc/shadow").lines().any(|line| line.starts_with("anna:*:")));
    let keys = root.join("home/anna/.ssh/authorized_keys");
    assert_eq!(std::fs::read_to_string(&keys).unwrap(), format!("{KEY}\n"));
    let metadata = keys.metadata().unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid().to_string()), (0o600, fields[2].to_owned()));
    let fstab = text(root, "etc/fstab");
    for (label, place) in [("root", "/ ext4"), ("esp", "/boot/efi vfat"), ("swap", "none swap")] {
        assert!(fstab.contains(&format!("UUID={} {place} ", finished.uuids[label])), "{fstab}");
    }
    let network = text(root, "etc/systemd/network/10-lan.network");
    for line in ["Address=192.0.2.10/24", "Gateway=192.0.2.1", "DNS=192.0.2.53", "52:54:00:12:34:56"] {
        assert!(network.contains(line), "{line}: {network}");
    }
    assert!(root.join("etc/systemd/system/multi-user.target.wants/systemd-networkd.service").is_symlink());
    // ssh-keygen refuses a private key that others may read, and says which public key it has.
    let key = root.join("etc/ssh/ssh_host_ed25519_key");
    let public = run("ssh-keygen", &["-y", "-f", key.to_str().unwrap()]);
    assert!(ssh_host_key.as_ref().unwrap().starts_with(public.trim()), "{public} {ssh_host_key:?}");
    assert_eq!(text(root, "etc/ssh/ssh_host_ed25519_key.pub").trim(), ssh_host_key.as_ref().unwrap());
}

/// The EFI system partition, by mtools.
fn judge_esp(root: &Path, finished: &Finished, result: &JobResult) {
    let JobResult::Provision { machine_id, kernels, .. } = result else { panic!("{result:?}") };
    let folder = tempfile::tempdir().unwrap();
    let copy = |path: &str| {
        let to = folder.path().join("copy");
        run("mcopy", &["-n", "-o", "-i", &finished.esp.path, &format!("::/{path}"), to.to_str().unwrap()]);
        std::fs::read(to).unwrap()
    };
    let version = &kernels[0];
    let entry = String::from_utf8(copy(&format!("loader/entries/{machine_id}-{version}.conf"))).unwrap();
    let options = format!("options root=UUID={} ro quiet console=ttyS0\n", finished.uuids["root"]);
    assert!(entry.contains(&options), "{entry}");
    for (key, source) in [("linux", "vmlinuz-"), ("initrd", "initrd.img-")] {
        let path = entry.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" /")).unwrap();
        assert!(copy(path) == std::fs::read(root.join(format!("boot/{source}{version}"))).unwrap(), "{path}");
    }
    assert!(copy("EFI/BOOT/BOOTX64.EFI") == std::fs::read(root.join(LOADER)).unwrap());
    assert!(String::from_utf8(copy("loader/loader.conf")).unwrap().contains("default "));
}

fn provision_and_judge(layout: &Path, digest: &str, block: u32) -> Tree {
    let disk = Disk::new(3 * GIB, block);
    let url = format!("file://{}", layout.display());
    let job = provision(&format!("machine-{block}"), &url, digest);
    let (status, planned) = plan(&job, &disk);
    assert_eq!(status, 0);
    let ended = apply(&job, &disk);
    let finished = judge_disk(&disk, &planned);
    let mounted = finished.root.mount();
    judge_customization(&mounted.path, &finished, ended.result());
    judge_esp(&mounted.path, &finished, ended.result());
    assert!(!finished.swap.path.is_empty());
    let expected = tempfile::tempdir().unwrap();
    let actual = Tree::read(&mounted.path);
    compare(&expected_tree(layout, digest, expected.path()), &actual);
    actual
}

#[test]
fn a_machine_of_a_rich_image_on_both_block_sizes() {
    let layout = rich_layout();
    for block in [512, 4096] {
        let tree = provision_and_judge(layout.folder.path(), &layout.manifest, block);
        let of = |path: &str| tree.get(path).unwrap_or_else(|| panic!("{path} is missing"));
        assert_eq!(of("srv/file").mode, 0o104751);
        assert_eq!(of("srv/file").first_link, "srv/dir/hard-2");
        assert!(of("srv/sparse").size == 40 << 20 && of("srv/sparse").allocated < 1 << 20);
        // That the image's tars had these is what makes the comparison worth its name.
        let xattr = |path: &str, name: &str| of(path).xattrs.iter().any(|line| line.starts_with(name));
        assert!(xattr("srv/file", "user.note=0x") && xattr("srv/dir", "user.dir=0x"));
        assert!(xattr("srv/random", "security.capability=0x"));
        assert!(of("srv/empty").xattrs.iter().any(|line| line.len() > 2000));
        assert_eq!((of("srv/char").mode, of("srv/fifo").mode), (0o20644, 0o10620));
        assert!(of("srv/block").mtime == (4_102_444_800, 250_000_000) && of("srv/fifo").mtime.0 < 0);
        assert_eq!(of("srv/file").mtime.1, 123_456_789);
        assert_eq!(of("srv/long-link").target.as_ref().unwrap().len(), 300);
        assert!(tree.contains_key("srv/bytes\\377\\376") && of("srv/random-2").links == 2);
        assert!(tree.get("var/lib/gone").is_none() && tree.get("opt/opaque/low").is_none());
        assert!(tree.get(&format!("boot/vmlinuz-{KERNEL}")).is_some());
    }
}

/// Where the real Debian image is at hand (`UVM_IMAGE`: its layout, `UVM_IMAGE_DIGEST`), it is judged the same way;
/// elsewhere the appliance's own test boots it.
#[test]
fn a_machine_of_the_real_image() {
    let Some(folder) = std::env::var_os("UVM_IMAGE") else { return };
    let digest = std::env::var("UVM_IMAGE_DIGEST").expect("UVM_IMAGE goes with UVM_IMAGE_DIGEST");
    for block in [512, 4096] {
        let tree = provision_and_judge(&PathBuf::from(&folder), &digest, block);
        assert!(tree.len() > 5000);
    }
}

fn small_layout() -> Layout {
    Layout::with_entries(&[entry("etc/motd", b'0', "", b"welcome\n")])
}

#[test]
fn a_plan_writes_nothing_and_is_agreed_to_by_its_hash() {
    let layout = small_layout();
    let disk = small_disk();
    let mut job = small("agreed", &layout.url(), &layout.manifest);
    let before = (disk.digest(), disk.path.metadata().unwrap().modified().unwrap());
    let (status, first) = plan(&job, &disk);
    assert_eq!(status, 0);
    assert_eq!(plan(&job, &disk).1, first, "the same job gives the same plan");
    assert_eq!((disk.digest(), disk.path.metadata().unwrap().modified().unwrap()), before);
    serde_json::from_value::<uvm_api::Plan>(first.clone()).unwrap();

    job["plan_hash"] = first["plan_hash"].clone();
    apply(&job, &disk).result();
    // The disk holds a machine now, which was not part of the bargain.
    let before = disk.digest();
    apply(&job, &disk).failed(ErrorCode::PlanChanged, DiskState::Untouched, "plan");
    assert_eq!(disk.digest(), before);
    job["device"]["must_be_blank"] = json!(true);
    apply(&job, &disk).failed(ErrorCode::DeviceChanged, DiskState::Untouched, "plan");
}

#[test]
fn the_same_job_twice_gives_the_same_machine() {
    let layout = small_layout();
    let job = small("twice", &layout.url(), &layout.manifest);
    let (first, second, other) = (small_disk(), small_disk(), small_disk());
    let JobResult::Provision { machine_id, root_uuid, .. } = apply(&job, &first).result().clone() else {
        panic!()
    };
    let JobResult::Provision { machine_id: id, root_uuid: uuid, .. } = apply(&job, &second).result().clone()
    else {
        panic!()
    };
    assert_eq!((&machine_id, &root_uuid), (&id, &uuid));
    assert!(first.read(0, MIB) == second.read(0, MIB), "disk and partition GUIDs");
    apply(&job, &first).result();
    assert!(first.read(0, MIB) == second.read(0, MIB), "on the finished machine again");
    apply(&small("another", &layout.url(), &layout.manifest), &other).result();
    assert!(first.read(0, MIB) != other.read(0, MIB), "another job is another machine");
}

/// Runs the program as nobody; status and standard output.
fn as_nobody(arguments: &[String]) -> (i32, String) {
    // Where the program was built, nobody may not be allowed to look.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = folder.path().join("uvm");
    std::fs::copy(uvm(), &program).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(arguments);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[test]
fn looking_and_planning_need_no_root() {
    let layout = small_layout();
    let job = small("nobody", &layout.url(), &layout.manifest);
    let disk = small_disk();
    apply(&job, &disk).result();
    let path = disk.path.to_str().unwrap().to_owned();
    let (status, said) = as_nobody(&["inspect".to_owned(), path, "--json".to_owned()]);
    assert_eq!(status, 0, "{said}");
    let device: uvm_api::Device = serde_json::from_str(&said).unwrap();
    let table = device.table.unwrap();
    assert_eq!(table.kind, "gpt");
    let formats: Vec<_> =
        table.partitions.iter().map(|p| p.filesystem.as_ref().unwrap().format.as_str()).collect();
    assert_eq!(formats, ["vfat", "swap", "ext4"]);
    assert_eq!(device.os_release.as_deref(), Some("A small guest"));

    let job_path = disk.folder.path().join("job.json");
    let mut arguments = vec!["plan".to_owned(), job_path.to_str().unwrap().to_owned(), "--json".to_owned()];
    arguments.extend(disk.arguments());
    let (status, said) = as_nobody(&arguments);
    assert_eq!(status, 0, "{said}");
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap(), plan(&job, &disk).1);
    // What it may not write it refuses.
    let before = disk.digest();
    arguments[0] = "apply".to_owned();
    assert_eq!(as_nobody(&arguments).0, 2);
    assert_eq!(disk.digest(), before);
}

#[test]
fn sanitizing_overwrites_every_byte() {
    for (pattern, block) in [("zero", 512), ("random", 512), ("zero", 4096), ("random", 4096)] {
        // No multiple of any buffer.
        let disk = Disk::new(33 * MIB + 4096, block);
        let before = disk.read(0, disk.size());
        let job = json!({"kind": "sanitize", "id": "wipe", "device": {"serial": SERIAL}, "pattern": pattern});
        let ended = apply(&job, &disk);
        let JobResult::Sanitize { method, technique, overwritten_bytes, verified_bytes, .. } = ended.result()
        else {
            panic!("{ended:?}")
        };
        assert_eq!((method.as_str(), technique.as_str()), ("clear", "overwrite"));
        assert_eq!((*overwritten_bytes, *verified_bytes), (disk.size(), disk.size()));
        let after = disk.read(0, disk.size());
        if pattern == "zero" {
            assert!(after.iter().all(|byte| *byte == 0));
            continue;
        }
        // Of a random block of 4 KiB, none is what it was, and none comes twice.
        let mut seen = std::collections::HashSet::new();
        for (old, new) in before.chunks(4096).zip(after.chunks(4096)) {
            assert!(old != new && seen.insert(new));
        }
        let ones: u64 = after.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let bits = disk.size() * 8;
        assert!(ones > bits * 49 / 100 && ones < bits * 51 / 100);
        let second = Disk::new(33 * MIB + 4096, block);
        apply(&job, &second).result();
        assert!(second.read(0, 4096) != disk.read(0, 4096), "the keystream is another each time");
    }
}

struct Registry(std::process::Child, String);

impl Registry {
    fn start(folder: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.join("config.yml");
        let store = folder.join("store");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("docker-registry");
        let address = format!("127.0.0.1:{port}");
        let begun = Instant::now();
        while std::net::TcpStream::connect(&address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the registry does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self(child, address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_from_a_real_registry() {
    let layout = small_layout();
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(folder.path());
    let from = format!("oci:{}:1", layout.folder.path().display());
    let to = format!("docker://{}/team/guest:1", registry.1);
    run(
        "skopeo",
        &["copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", &from, &to],
    );
    let mut job = small("pulled", "", &layout.manifest);
    job["image"]["source"] =
        json!({"registry": {"url": format!("http://{}", registry.1), "repository": "team/guest"}});
    let disk = small_disk();
    let JobResult::Provision { manifest_digest, .. } = apply(&job, &disk).result().clone() else { panic!() };
    assert_eq!(manifest_digest, layout.manifest);
    judge_disk(&disk, &plan(&job, &disk).1);
    job["image"]["source"]["registry"]["repository"] = json!("team/other");
    apply(&job, &disk).failed(ErrorCode::ImageNotFound, DiskState::Untouched, "image");
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_job() {
    use std::io::{BufRead, BufReader};
    let disk = Disk::new(64 << 20, 512);
    let job = json!({"kind": "sanitize", "id": "unread", "device": {"serial": SERIAL}});
    let mut child = apply_command(&job, &disk).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("planned"), "{line}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(disk.read(0, 512).iter().any(|byte| *byte != 0), "the overwrite went on to its end");
}
