//! What every host command makes of a path that is not as it should be, and of an output that takes nothing.
//! Needs root: loop devices stand for disks.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use support::judge::LoopDevice;
use support::{Disk, MIB, run, uvm};

/// Status, standard output and standard error.
fn say(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(uvm()).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn layout(folder: &Path, text: &str) -> String {
    let path = folder.join("layout.json");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Every command that writes, forced to.
fn writers<'a>(path: &'a str, layout: &'a str) -> [Vec<&'a str>; 4] {
    [
        vec!["mkfs", "ext4", path, "--force"],
        vec!["mkfs", "swap", path, "--force"],
        vec!["resize", path],
        vec!["partition", path, "--layout", layout],
    ]
}

const ANEW: &str = r#"{"wipe_table": true, "partitions": [{"label": "data"}]}"#;

#[test]
fn what_is_mounted_through_a_loop_device_is_not_written() {
    let disk = Disk::new(64 * MIB, 512);
    let path = disk.path.to_str().unwrap();
    run("mkfs.ext4", &["-q", "-F", path, "32M"]);
    let layout = layout(disk.folder.path(), ANEW);
    let device = LoopDevice::writable(&disk, 0, 64 * MIB);
    let mounted = device.mount_for_writing();
    let before = disk.digest();
    for arguments in writers(path, &layout) {
        let (status, _, complaint) = say(&arguments);
        assert_eq!(status, 2, "{arguments:?}: {complaint}");
        assert!(complaint.contains(&format!("in use: it is behind {}", device.path)), "{complaint}");
        assert_eq!(disk.digest(), before, "{arguments:?}");
    }
    drop(mounted);
}

#[test]
fn a_read_only_device_is_told_so_and_not_called_spoilt() {
    let disk = Disk::new(64 * MIB, 512);
    run("mkfs.ext4", &["-q", "-F", disk.path.to_str().unwrap(), "32M"]);
    let layout = layout(disk.folder.path(), ANEW);
    let device = LoopDevice::new(&disk, 0, 64 * MIB);
    for arguments in writers(&device.path, &layout) {
        let (status, _, complaint) = say(&arguments);
        assert_eq!(status, 2, "{arguments:?}: {complaint}");
        assert!(complaint.contains("read-only"), "{complaint}");
        assert!(
            !complaint.contains("partial-unbootable") && !complaint.contains("no file system now"),
            "{complaint}"
        );
    }
    assert_eq!(say(&["usage", &device.path]).0, 0);
    assert_eq!(say(&["inspect", &device.path]).0, 0);
}

#[test]
fn a_path_that_is_no_device_is_the_fault_of_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(folder.path(), ANEW);
    let missing = folder.path().join("missing").to_str().unwrap().to_owned();
    let pipe = folder.path().join("pipe").to_str().unwrap().to_owned();
    run("mkfifo", &[&pipe]);
    for (path, problem, why) in [
        (&missing, "device not found", "No such file or directory (os error 2)"),
        (&pipe, "invalid request", "neither a block device nor a regular file"),
    ] {
        let line = format!("uvm: {problem}: opening {path}: {why}\n");
        for arguments in [vec!["inspect", path], vec!["partition", path, "--layout", &layout]] {
            let (status, said, complaint) = say(&arguments);
            assert_eq!((status, said.as_str()), (2, ""));
            assert!(complaint.starts_with(&line), "{complaint}");
        }
        for arguments in [vec!["usage", path], vec!["resize", path], vec!["mkfs", "fat", path]] {
            assert_eq!(say(&arguments), (2, String::new(), format!("uvm: {path}: {why}\n")));
        }
    }
}

#[test]
fn a_terminal_obeys_nothing_that_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = format!("{}/\u{1b}[31m", folder.path().display());
    let named = layout(folder.path(), "{\"partitions\": [{\"\u{7f}\\u001b]0;title\\u0007\": 1}]}");
    File::create(&hostile).unwrap().set_len(8 * MIB).unwrap();
    let (status, said, complaint) = say(&["partition", &hostile, "--layout", &named]);
    assert_eq!(status, 2);
    assert!(complaint.contains("unknown field `\u{fffd}\u{fffd}]0;title\u{fffd}`"), "{complaint}");
    let labelled = layout(folder.path(), r#"{"partitions": [{"label": "a\u001b[1mb"}]}"#);
    let (status, planned, _) = say(&["partition", &hostile, "--layout", &labelled, "--dry-run"]);
    assert_eq!(status, 0);
    assert!(planned.contains("a\u{fffd}[1mb"), "{planned}");
    let (_, inspected, _) = say(&["inspect", &hostile]);
    for text in [said, complaint, planned, inspected] {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}

#[test]
fn what_nobody_could_read_was_not_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file").to_str().unwrap().to_owned();
    File::create(&path).unwrap().set_len(8 * MIB).unwrap();
    let layout = layout(folder.path(), ANEW);
    let full = |arguments: &[&str]| {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(uvm()).args(arguments).stdout(full).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    for arguments in [
        vec!["inspect", &path],
        vec!["inspect", &path, "--json"],
        vec!["usage", &path],
        vec!["partition", &path, "--layout", &layout, "--dry-run", "--json"],
        vec!["openapi"],
    ] {
        let (status, complaint) = full(&arguments);
        assert_eq!(status, 2, "{arguments:?}");
        assert!(complaint.contains("standard output"), "{complaint}");
    }
    // Of what was done the status tells.
    assert_eq!(full(&["partition", &path, "--layout", &layout]).0, 0);
    assert!(say(&["inspect", &path]).1.contains("gpt"));
}
