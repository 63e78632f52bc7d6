//! `uvm resize` as its users meet it, judged by e2fsck, dumpe2fs and the kernel.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::judge::LoopDevice;
use support::{Disk, MIB, run, uvm};

/// Status, standard output and standard error.
fn resize(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(uvm()).arg("resize").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn document(arguments: &[&str]) -> Value {
    let (status, said, complaint) = resize(&[arguments, &["--json"]].concat());
    assert_eq!((status, complaint.as_str()), (0, ""), "{arguments:?}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn digest(path: &Path) -> String {
    run("sha256sum", &[path]).split(' ').next().unwrap().to_owned()
}

fn blocks(path: &str) -> u64 {
    let said = run("dumpe2fs", &["-h", path]);
    said.lines().find_map(|line| line.strip_prefix("Block count:")).unwrap().trim().parse().unwrap()
}

/// A file of `size` MiB with a file system that has a file in it.
fn made(folder: &Path, name: &str, kind: &str, size: u64) -> String {
    let tree = folder.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("text"), "some text\n".repeat(5000)).unwrap();
    let path = folder.join(name).to_str().unwrap().to_owned();
    run(
        "mke2fs",
        &["-q", "-t", kind, "-b", "4096", "-d", tree.to_str().unwrap(), &path, &format!("{size}M")],
    );
    path
}

#[test]
fn a_file_system_grows_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["ext2", "ext3", "ext4"] {
        let path = made(folder.path(), kind, kind, 32);
        let before = digest(Path::new(&path));
        let planned = document(&[&path, "--size", "300M", "--dry-run"]);
        assert_eq!((&planned["format"], &planned["done"]), (&Value::from(kind), &Value::from(false)));
        assert_eq!(planned["new_size"], 300 * MIB);
        assert_eq!(digest(Path::new(&path)), before, "a dry run writes nothing");
        let done = document(&[&path, "--size", "300M"]);
        assert_eq!((&done["new_size"], &done["done"]), (&Value::from(300 * MIB), &Value::from(true)));
        assert_eq!(Path::new(&path).metadata().unwrap().len(), 300 * MIB);
        assert_eq!(blocks(&path), 300 * MIB / 4096);
        run("e2fsck", &["-fn", &path]);
        assert!(run("debugfs", &["-R", "cat /text", &path]).starts_with("some text"));
        // All of the device, which it has already.
        let again = document(&[&path]);
        assert_eq!(
            (&again["old_size"], &again["new_size"]),
            (&Value::from(300 * MIB), &Value::from(300 * MIB))
        );
        run("e2fsck", &["-fn", &path]);
    }
}

/// Whether the kernel lets this process resize (CAP_SYS_RESOURCE): some containers' root may not.
fn may_resize() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> 24 & 1 == 1
}

#[test]
fn what_is_mounted_is_grown_by_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), "image", "ext4", 32);
    File::options().write(true).open(&path).unwrap().set_len(64 * MIB).unwrap();
    let disk = Disk { path: path.clone().into(), block: 512, folder };
    let arguments = ["-f", "--show", &path];
    let device = LoopDevice { path: run("losetup", &arguments).trim().to_owned() };
    let point = disk.folder.path().join("point");
    std::fs::create_dir(&point).unwrap();
    run("mount", &["-t", "ext4", &device.path, point.to_str().unwrap()]);
    let (status, _, complaint) = resize(&[&device.path, "--size", "16M"]);
    let unmount = || run("umount", &[point.to_str().unwrap()]);
    let line = format!(
        "uvm: {}: mounted with {} bytes; it is made smaller where it is not mounted\n",
        device.path,
        32 * MIB
    );
    let refused = (status, complaint) == (2, line);
    let planned = resize(&[&device.path, "--dry-run"]).1;
    let (status, said, complaint) = resize(&[&device.path]);
    unmount();
    assert!(refused, "{complaint}");
    assert!(planned.contains("would be grown by the kernel from 32 MiB to 64 MiB"), "{planned}");
    let grown = if may_resize() {
        assert_eq!(status, 0, "{complaint}");
        assert!(said.contains("grown by the kernel from 32 MiB to 64 MiB"), "{said}");
        64
    } else {
        let line = format!("uvm: {}: Operation not permitted (os error 1)\n", device.path);
        assert_eq!((status, complaint), (2, line));
        32
    };
    drop(device);
    run("e2fsck", &["-fn", &path]);
    assert_eq!(blocks(&path), grown * MIB / 4096);
}

#[test]
fn a_device_has_the_size_it_has_also_in_a_dry_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(folder.path(), "image", "ext4", 32);
    let device = LoopDevice { path: run("losetup", &["-f", "--show", &path]).trim().to_owned() };
    for more in [&["--dry-run"][..], &[]] {
        let (status, _, complaint) = resize(&[&[&device.path, "--size", "64M"], more].concat());
        let line =
            format!("uvm: {}: the device has {} bytes, {} do not fit\n", device.path, 32 * MIB, 64 * MIB);
        assert_eq!((status, complaint), (2, line));
    }
}

#[test]
fn what_is_not_resized_is_refused_in_one_line_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        File::create(&path).unwrap().set_len(64 * MIB).unwrap();
        path
    };
    let (blank, fat, swap, table, ntfs) =
        (file("blank"), file("fat"), file("swap"), file("table"), file("ntfs"));
    run("mkfs.fat", &["-F", "32", &fat]);
    run("mkswap", &[&swap]);
    run("sgdisk", &["-n1:0:0", &table]);
    run("mkntfs", &["-q", "-F", "-f", &ntfs]);
    let broken = made(folder.path(), "broken", "ext4", 64);
    run("debugfs", &["-w", "-R", "ssv state 2", &broken]);
    let ext = made(folder.path(), "ext", "ext4", 64);
    for (path, size, reason) in [
        (&blank, None, "it holds no file system"),
        (&fat, Some("96M"), "it holds vfat; ext2, ext3 and ext4 are resized"),
        (&swap, None, "a swap area is made anew instead: uvm mkfs swap"),
        (&table, Some("96M"), "it holds a partition table; a partition's own device is resized"),
        (&ntfs, None, "it holds ntfs; ext2, ext3 and ext4 are resized"),
        (&broken, Some("96M"), ""),
        (&ext, Some("1M"), ""),
    ] {
        let before = (digest(Path::new(path)), Path::new(path).metadata().unwrap().len());
        let sized = size.map_or(vec![], |size| vec!["--size", size]);
        let (status, said, complaint) = resize(&[&[path.as_str()], &sized[..]].concat());
        assert_eq!((status, said.as_str()), (2, ""), "{path}: {complaint}");
        if reason.is_empty() {
            assert!(
                complaint.starts_with(&format!("uvm: {path}: ")) && complaint.lines().count() == 1,
                "{complaint}"
            );
        } else {
            assert_eq!(complaint, format!("uvm: {path}: {reason}\n"));
        }
        assert_eq!((digest(Path::new(path)), Path::new(path).metadata().unwrap().len()), before, "{path}");
    }
}
