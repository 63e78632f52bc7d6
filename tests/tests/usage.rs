//! `uvm usage` as its users meet it: what it says must be enough to copy a disk by.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{MIB, run, uvm};

/// Status, standard output and standard error.
fn usage(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(uvm()).arg("usage").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn document(arguments: &[&str]) -> Value {
    let (status, said, complaint) = usage(&[arguments, &["--json"]].concat());
    assert_eq!((status, complaint.as_str()), (0, ""));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn extents(document: &Value) -> Vec<(u64, u64)> {
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    let list = document["extents"].as_array().unwrap();
    list.iter().map(|extent| (number(extent, "offset"), number(extent, "length"))).collect()
}

/// Only what is in use, on a file of the same size.
fn copied(from: &Path, to: &Path, extents: &[(u64, u64)]) {
    let source = File::open(from).unwrap();
    let target = File::create(to).unwrap();
    target.set_len(source.metadata().unwrap().len()).unwrap();
    let mut end = 0;
    for (offset, length) in extents {
        assert!(*offset > end || end == 0, "ascending and apart");
        let mut bytes = vec![0; usize::try_from(*length).unwrap()];
        source.read_exact_at(&mut bytes, *offset).unwrap();
        target.write_all_at(&bytes, *offset).unwrap();
        end = offset + length;
    }
}

#[test]
fn a_disk_copied_by_its_extents_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("tree")).unwrap();
    for number in 0..200 {
        std::fs::write(path("tree").join(number.to_string()), vec![number as u8; number * 200]).unwrap();
    }
    run("truncate", &["-s", "96M", &text("disk")]);
    run("sgdisk", &["-n1:2048:+32M", "-n2:0:+40M", "-n7:0:0", &text("disk")]);
    let offset = format!("offset={}", MIB);
    run("mkfs.ext4", &["-q", "-F", "-E", &offset, "-d", &text("tree"), &text("disk"), "32M"]);
    let found = document(&[&text("disk"), "--extents"]);
    assert_eq!(found["table"], "gpt");
    assert_eq!(found["size"], 96 * MIB);
    let numbers: Vec<u64> =
        found["partitions"].as_array().unwrap().iter().map(|p| p["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 7]);
    let first = &found["partitions"][0];
    assert_eq!((&first["format"], &first["assumed"]), (&Value::from("ext4"), &Value::Null));
    assert!(first["used"].as_u64().unwrap() < 32 * MIB && first["block_size"].as_u64().is_some(), "{first}");
    let extents = extents(&found);
    assert_eq!(found["used"].as_u64().unwrap(), extents.iter().map(|(_, length)| length).sum::<u64>());
    copied(&path("disk"), &path("copy"), &extents);
    run("sgdisk", &["-v", &text("copy")]);
    let part = |name: &str| {
        let to = text(&format!("{name}.part"));
        run(
            "dd",
            &[
                &format!("if={}", text(name)),
                &format!("of={to}"),
                "bs=1M",
                "skip=1",
                "count=32",
                "status=none",
            ],
        );
        to
    };
    let (before, after) = (part("disk"), part("copy"));
    run("e2fsck", &["-fn", &after]);
    for number in [0, 77, 199] {
        let cat = |image: &str| run("debugfs", &["-R", &format!("cat /{number}"), image]);
        assert_eq!(cat(&before), cat(&after));
    }
}

#[test]
fn file_systems_on_the_bare_device_are_counted_as_their_tools_count() {
    let folder = tempfile::tempdir().unwrap();
    let text = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (name, size, tool, options) in [
        ("ext4", "64M", "mkfs.ext4", &["-q", "-F"][..]),
        ("vfat", "64M", "mkfs.fat", &["-F", "32"]),
        ("ntfs", "16M", "mkntfs", &["-q", "-F", "-f"]),
    ] {
        run("truncate", &["-s", size, &text(name)]);
        run(tool, &[options, &[&text(name)]].concat());
        let found = document(&[&text(name)]);
        assert_eq!((&found["table"], &found["content"]["format"]), (&Value::Null, &Value::from(name)));
        assert_eq!(found["content"]["assumed"], Value::Null, "{found}");
        assert_eq!(found.get("extents"), None);
        assert!(found["used"].as_u64().unwrap() < 24 * MIB, "{found}");
        let (status, table, _) = usage(&[&text(name)]);
        assert_eq!(status, 0);
        assert!(table.lines().any(|line| line.contains(name)), "{table}");
    }
    let dumped = run("dumpe2fs", &["-h", &text("ext4")]);
    let number = |field: &str| -> u64 {
        let line = dumped.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().parse().unwrap()
    };
    let used = (number("Block count:") - number("Free blocks:")) * number("Block size:");
    assert_eq!(document(&[&text("ext4")])["content"]["used"], used);
}

#[test]
fn what_cannot_be_read_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    let (status, said, complaint) = usage(&[missing.to_str().unwrap()]);
    assert_eq!((status, said.as_str()), (2, ""));
    assert_eq!(complaint, format!("uvm: {}: No such file or directory (os error 2)\n", missing.display()));
    // Nothing known is all in use.
    let blank = folder.path().join("blank");
    File::create(&blank).unwrap().set_len(MIB).unwrap();
    let found = document(&[blank.to_str().unwrap()]);
    assert_eq!((&found["used"], &found["content"]["format"]), (&Value::from(MIB), &Value::Null));
    assert!(found["content"]["assumed"].is_string(), "{found}");
}
