use super::*;
use std::io::Write;
use std::process::Command;

use crate::FileAttributes;

const MIB: u64 = 1 << 20;
const OFFSET: u64 = 2 * MIB;
const SIZE: u64 = 12 * MIB;
const AT: FileAttributes =
    FileAttributes { mode: 0o644, uid: 0, gid: 0, mtime_seconds: 7, mtime_nanoseconds: 1 };

fn run(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program).args(arguments).env("PATH", path).output();
    let output = output.unwrap_or_else(|e| panic!("the judge {program} is missing: {e}"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// A file with an ext4 of 12 MiB at 2 MiB.
fn disk() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 * MIB).unwrap();
    let path = file.path().to_str().unwrap();
    let offset = format!("offset={OFFSET}");
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-E", &offset, path, &format!("{}k", SIZE >> 10)]);
    file
}

fn open(file: &tempfile::NamedTempFile, block: u32) -> KernelBlock {
    let disk = KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap();
    disk.with_logical_block_size(block).unwrap()
}

/// The loop devices on the file, and where they are mounted as this process sees it.
fn traces(file: &tempfile::NamedTempFile) -> (String, String) {
    let loops = run("losetup", &["-j", file.path().to_str().unwrap()]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_file = |mount: &&str| {
        loops.lines().filter_map(|line| line.split(':').next()).any(|device| {
            let source = mount.split(" - ").nth(1).and_then(|rest| rest.split(' ').nth(1));
            source == Some(device)
        })
    };
    let mounts = mounts.lines().filter(of_file).collect();
    (mounts, loops)
}

#[test]
fn a_part_of_a_file_is_mounted_and_leaves_no_trace() {
    for block in [512, 4096] {
        let file = disk();
        let volume = Volume::claim(open(&file, block), OFFSET, SIZE).unwrap();
        let before = traces(&file);
        assert!(before.1.contains("/dev/loop"), "{before:?}");
        let mut tree = volume.mount_ext4(Access::ReadWrite).unwrap();
        assert_eq!(traces(&file), before, "the mount is nobody else's to see");
        let mut new = tree.create_file(b"name").unwrap();
        new.write_all(b"contents").unwrap();
        new.commit(AT).unwrap();
        // A device node in a guest opens nothing of ours, but it can be made.
        let null = crate::FileType::CharDevice { major: 1, minor: 3 };
        tree.create_special(b"null", null, AT).unwrap();
        tree.sync().unwrap();
        drop(tree);
        let held = volume.reclaim().unwrap();

        let volume = Volume::claim(held, OFFSET, SIZE).unwrap();
        let mut tree = volume.mount_ext4(Access::ReadOnly).unwrap();
        assert_eq!(std::io::read_to_string(tree.open_file(b"name").unwrap()).unwrap(), "contents");
        assert_eq!(tree.remove(b"name").unwrap_err().kind(), ErrorKind::PermissionDenied);
        drop(tree);
        drop(volume.reclaim().unwrap());
        assert_eq!(traces(&file).1, "", "no loop device stays");
        run("e2fsck", &["-fn", &format!("{}?offset={OFFSET}", file.path().display())]);
    }
}

#[test]
fn what_cannot_be_mounted_is_said() {
    let file = disk();
    for (offset, size) in [(OFFSET, u64::MAX), (16 * MIB, 1), (u64::MAX, 2)] {
        let error = Volume::claim(open(&file, 512), offset, size).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let volume = Volume::claim(open(&file, 512), 0, MIB).unwrap();
    assert!(volume.mount_ext4(Access::ReadWrite).is_err());
    drop(volume);
    // Locked by another: not even looked at.
    let _held = open(&file, 512);
    let error = KernelBlock::open(file.path(), OpenMode::ReadWrite).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}

#[test]
fn a_partition_is_found_by_its_bytes() {
    let root = tempfile::tempdir().unwrap();
    for (name, attributes) in [
        ("vda1", [("partition", "1"), ("start", "2048"), ("size", "4096"), ("dev", "254:1")]),
        ("vda2", [("partition", "2"), ("start", "6144"), ("size", "8"), ("dev", "259:70000")]),
        ("queue", [("nothing", "0"), ("start", "1"), ("size", "1"), ("dev", "1:1")]),
        ("vda3", [("partition", "3"), ("start", "18446744073709551615"), ("size", "8"), ("dev", "x")]),
    ] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        for (attribute, value) in attributes {
            std::fs::write(root.path().join(name).join(attribute), format!("{value}\n")).unwrap();
        }
    }
    let find = |sector: u64, sectors: u64| find_partition(root.path(), sector * 512, sectors * 512).unwrap();
    let number = rustix::fs::makedev(259, 70000);
    assert_eq!(find(6144, 8), Some((PathBuf::from("/dev/vda2"), number)));
    assert_eq!(find(2048, 4095), None, "a partition of another size is another one");
    assert_eq!(find(1, 1), None);
}
