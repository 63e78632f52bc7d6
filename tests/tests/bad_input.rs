//! Bad input and bad luck, on files through the engine's host command: one precise problem, the right
//! `disk_state`, and nothing written where nothing may be written.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use support::image::{Layout, Stored, archive, compress, entry, guest, noise, sha256};
use support::*;
use uvm_api::{DiskState, ErrorCode, Event, EventBody, Problem, Retry};
use uvm_tests::{Fault, Store};

fn bootable() -> Layout {
    Layout::with_entries(&[entry("etc/motd", b'0', "", b"welcome\n")])
}

/// Refused, and not one byte of the disk is another.
fn untouched(job: &Value, disk: &Disk, code: ErrorCode, step: &str) -> Problem {
    let (before, modified) = (disk.digest(), disk.path.metadata().unwrap().modified().unwrap());
    let problem = apply(job, disk).failed(code, DiskState::Untouched, step).clone();
    assert_eq!(disk.digest(), before);
    assert_eq!(disk.path.metadata().unwrap().modified().unwrap(), modified);
    problem
}

/// Failed half-way, and no partition table is left.
fn partial(job: &Value, disk: &Disk, code: ErrorCode, step: &str) -> Problem {
    let problem = apply(job, disk).failed(code, DiskState::PartialUnbootable, step).clone();
    assert!(disk.has_no_table(), "{problem:#?}");
    problem
}

/// Everything the problem says, for searching.
fn words(problem: &Problem) -> String {
    format!("{}: {}", problem.detail, problem.causes.join(": "))
}

#[test]
fn a_request_that_cannot_be_carried_out_is_refused() {
    let layout = bootable();
    let good = small("r1", &layout.url(), &layout.manifest);
    let disk = small_disk();

    let mut job = good.clone();
    job["device"]["serial"] = json!("NOT-HERE");
    let problem = untouched(&job, &disk, ErrorCode::DeviceNotFound, "plan");
    assert!(problem.detail.contains("NOT-HERE"), "{}", problem.detail);

    let mut job = good.clone();
    job["device"]["size_bytes"] = json!(MIB);
    let problem = untouched(&job, &disk, ErrorCode::DeviceChanged, "plan");
    assert!(problem.detail.contains("1048576") && problem.detail.contains("268435456"), "{}", problem.detail);

    let mut job = good.clone();
    job["partitions"][1]["size_mib"] = json!(4000);
    let problem = untouched(&job, &disk, ErrorCode::DeviceTooSmall, "plan");
    // 64 + 4000 + the least ext4, and what the disk has between its two tables.
    for number in ["4128", "254"] {
        assert!(problem.detail.contains(number), "{}", problem.detail);
    }

    let mut job = good.clone();
    job["image"]["digest"] = json!("sha256:beef");
    untouched(&job, &disk, ErrorCode::InvalidRequest, "plan");
}

#[test]
fn an_unknown_field_is_named() {
    let layout = bootable();
    let disk = small_disk();
    let before = disk.digest();
    for (pointer, field) in [
        ("", "colour"),
        ("/device", "path"),
        ("/image", "tag"),
        ("/partitions/0", "sizeMiB"),
        ("/customize", "runcmd"),
    ] {
        let mut job = small("u1", &layout.url(), &layout.manifest);
        job.pointer_mut(pointer).unwrap()[field] = json!("x");
        let ended = apply(&job, &disk);
        assert_eq!(ended.status, 2, "{}", ended.said);
        assert_eq!(ended.problem().code, ErrorCode::InvalidRequest);
        assert!(ended.problem().detail.contains(&format!("`{field}`")), "{}", ended.problem().detail);
    }
    assert_eq!(disk.digest(), before);
}

#[test]
fn digests_that_do_not_match() {
    // The manifest and the configuration are read before the disk is touched, a layer afterwards.
    for part in ["manifest", "config", "layer"] {
        let layout = bootable();
        let digest = match part {
            "manifest" => &layout.manifest,
            "config" => &layout.config,
            _ => &layout.layers[1],
        };
        let path = layout.blob_path(digest);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (job, disk) = (small("d1", &layout.url(), &layout.manifest), small_disk());
        let problem = match part {
            "layer" => partial(&job, &disk, ErrorCode::DigestMismatch, "layers"),
            _ => untouched(&job, &disk, ErrorCode::DigestMismatch, "image"),
        };
        assert!(words(&problem).contains(digest), "{problem:#?}");
        assert_eq!(problem.retry, Some(Retry::AfterRepair));
    }
}

#[test]
fn people_are_told_what_state_the_disk_is_in() {
    let layout = Layout::with_entries(&[entry("../escape", b'0', "", b"x")]);
    let disk = small_disk();
    let job = small("w1", &layout.url(), &layout.manifest);
    let (before, missing) = (disk.digest(), small("w2", &layout.url(), &layout.config));
    for (job, status, state) in [(missing, 2, "untouched"), (job, 3, "partial-unbootable")] {
        let mut command = apply_command(&job, &disk);
        let arguments: Vec<_> = command.get_args().filter(|word| *word != "--json").map(Into::into).collect();
        command = std::process::Command::new(uvm());
        let output = command.args::<Vec<std::ffi::OsString>, _>(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(said.contains(&format!("disk_state: {state}\n")), "{said}");
        assert!(said.contains("retry: ") && said.contains("step: "), "{said}");
        assert_eq!(disk.digest() == before, status == 2);
    }
}

#[test]
fn a_layer_that_is_not_what_its_configuration_says() {
    let tar = archive(&guest(5000, ""));
    let layout =
        Layout::of_stored(&[(sha256(b"something else"), compress(&tar, Stored::Gzip), Stored::Gzip)]);
    let job = small("d2", &layout.url(), &layout.manifest);
    partial(&job, &small_disk(), ErrorCode::DigestMismatch, "layers");
}

#[test]
fn stores_that_fail() {
    let layout = bootable();
    let store = Store::start(layout.folder.path()).unwrap();
    let job = small("s1", &store.url(), &layout.manifest);
    let hex = |digest: &str| digest.strip_prefix("sha256:").unwrap().to_owned();
    let (manifest, layer) = (hex(&layout.manifest), hex(&layout.layers[0]));

    store.set_fault(&manifest, Fault::NotFound);
    untouched(&job, &small_disk(), ErrorCode::ImageNotFound, "image");
    assert!(store.clear_faults() > 0);

    store.set_fault(&layer, Fault::NotFound);
    partial(&job, &small_disk(), ErrorCode::ImageNotFound, "layers");
    assert!(store.clear_faults() > 0);

    store.set_fault(&manifest, Fault::CloseAt(10));
    let problem = untouched(&job, &small_disk(), ErrorCode::ImageTruncated, "image");
    assert_eq!(problem.retry, Some(Retry::Same));
    assert!(store.clear_faults() > 0);

    store.set_fault(&layer, Fault::CloseAt(2000));
    let problem = partial(&job, &small_disk(), ErrorCode::ImageTruncated, "layers");
    assert_eq!(problem.retry, Some(Retry::Same));
    assert!(store.clear_faults() > 0);

    store.set_fault(&layer, Fault::FlipAt(2000));
    partial(&job, &small_disk(), ErrorCode::DigestMismatch, "layers");
    assert!(store.clear_faults() > 0);

    apply(&job, &small_disk()).result();
    let address = store.url();
    drop(store);
    let problem = untouched(&job, &small_disk(), ErrorCode::ImageUnreachable, "image");
    assert!(words(&problem).contains(address.rsplit('/').next().unwrap()), "{problem:#?}");
}

#[test]
fn a_layer_that_ends_early() {
    // Whole in the store's eyes, but the archive within stops in the middle of a file.
    let tar = archive(&guest(5000, ""));
    for (cut, stored) in [(tar.len() / 2 + 100, Stored::Plain), (tar.len() / 2 + 100, Stored::Gzip)] {
        let layout = Layout::new(&[(tar[..cut].to_vec(), stored)]);
        let job = small("t1", &layout.url(), &layout.manifest);
        partial(&job, &small_disk(), ErrorCode::ImageInvalid, "layers");
    }
}

#[test]
fn broken_compression() {
    let tar = archive(&guest(50_000, ""));
    for stored in [Stored::Gzip, Stored::Zstd] {
        let mut bytes = compress(&tar, stored);
        let middle = bytes.len() / 2;
        bytes.truncate(middle);
        // The blob's own digest is right: it is the image that was made badly.
        let layout = Layout::of_stored(&[(sha256(&tar), bytes.clone(), stored)]);
        let job = small("z1", &layout.url(), &layout.manifest);
        partial(&job, &small_disk(), ErrorCode::ImageInvalid, "layers");
        bytes[..4].copy_from_slice(b"junk");
        let layout = Layout::of_stored(&[(sha256(&tar), bytes, stored)]);
        let job = small("z2", &layout.url(), &layout.manifest);
        partial(&job, &small_disk(), ErrorCode::ImageInvalid, "layers");
    }
}

#[test]
fn paths_that_lead_out_of_the_guest() {
    let escape = "/tmp/uvm-escape-must-not-exist";
    let link = |target: &str| entry("way", b'2', target, b"");
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("../escape", vec![entry("../escape", b'0', "", b"x")]),
        ("etc/../../escape", vec![entry("etc/../../escape", b'0', "", b"x")]),
        (escape, vec![entry(escape, b'0', "", b"x")]),
        ("way/escape", vec![link("/tmp"), entry("way/escape", b'0', "", b"x")]),
        ("way/escape", vec![link("../../tmp"), entry("way/escape", b'5', "", b"")]),
        ("lib/escape", vec![entry("lib/escape", b'0', "", b"x")]),
        ("inside", vec![entry("inside", b'1', "../../etc/passwd", b"")]),
        ("inside", vec![entry("inside", b'1', "/etc/passwd", b"")]),
    ];
    for (name, entries) in cases {
        let layout = Layout::with_entries(&entries);
        let job = small("p1", &layout.url(), &layout.manifest);
        let problem = partial(&job, &small_disk(), ErrorCode::UnsafePath, "layers");
        assert!(words(&problem).contains(name), "{name}: {problem:#?}");
        assert_eq!(problem.retry, Some(Retry::Never));
    }
    assert!(!std::path::Path::new(escape).exists());
}

#[test]
fn images_that_cannot_boot() {
    for (missing, named) in [("boot/vmlinuz", "vmlinuz"), ("systemd-boot", "systemd-boot-efi")] {
        let layout = Layout::new(&[(archive(&guest(5000, missing)), Stored::Zstd)]);
        let job = small("b1", &layout.url(), &layout.manifest);
        let problem = partial(&job, &small_disk(), ErrorCode::GuestUnsuitable, "customize");
        assert!(words(&problem).contains(named), "{problem:#?}");
    }
}

#[test]
fn an_image_that_does_not_fit() {
    // Compressed: refused before anything is written, for that much is known from the manifest.
    let noisy = entry("srv/noise", b'0', "", &noise(200 << 20));
    let layout = Layout::with_entries(&[noisy]);
    let job = small("n1", &layout.url(), &layout.manifest);
    untouched(&job, &small_disk(), ErrorCode::NoSpace, "image");
    // Only when unpacked, in one file and in several.
    let (one, half) = (vec![0x55; 200 << 20], vec![0x55; 100 << 20]);
    for entries in [
        vec![entry("srv/one", b'0', "", &one)],
        vec![entry("srv/a", b'0', "", &half), entry("srv/b", b'0', "", &half)],
    ] {
        let layout = Layout::with_entries(&entries);
        let job = small("n2", &layout.url(), &layout.manifest);
        partial(&job, &small_disk(), ErrorCode::NoSpace, "layers");
    }
}

/// Kills the program when it says that `step` began, or has gone on for a while.
fn killed_at(job: &Value, disk: &Disk, step: &str, after_ms: u64) {
    let mut child = apply_command(job, disk).stdout(Stdio::piped()).spawn().unwrap();
    // Held open to the end: a program that is killed, not one that nobody listens to.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.by_ref() {
        let event: Event = serde_json::from_str(&line.unwrap()).unwrap();
        match event.body {
            EventBody::StepStarted { step: begun, .. } if begun == step => break,
            body => assert!(!body.is_last(), "the job ended before the step {step}: {body:?}"),
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(after_ms));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(lines);
}

#[test]
fn a_power_cut_leaves_nothing_that_boots() {
    let layout = Layout::new(&[(archive(&guest(24 << 20, "")), Stored::Gzip)]);
    let store = Store::start(layout.folder.path()).unwrap();
    let job = small("k1", &store.url(), &layout.manifest);
    let disk = small_disk();
    // A machine that is to be replaced by the same one: its table must not survive.
    apply(&job, &disk).result();
    let table = disk.read(0, MIB);
    assert!(!disk.has_no_table());

    let layer = layout.layers[0].strip_prefix("sha256:").unwrap();
    for (stall_at, after_ms) in [(0, 0), (1 << 20, 100), (8 << 20, 500), (24 << 20, 1000)] {
        store.set_fault(layer, Fault::StallAt(stall_at));
        killed_at(&job, &disk, "layers", after_ms);
        assert!(disk.has_no_table(), "killed with {stall_at} bytes of the layer there");
        assert!(after_ms == 0 || store.clear_faults() > 0);
    }
    // These steps are quick: where the kill came too late, the machine is whole.
    let mut cut = 0;
    for step in ["customize", "boot", "metadata", "verify"] {
        killed_at(&job, &disk, step, 0);
        if disk.has_no_table() {
            cut += 1;
        } else {
            let now = disk.read(0, MIB);
            assert!(now == table || now.iter().all(|byte| *byte == 0), "a torn table after {step}");
        }
    }
    assert!(cut > 0, "no kill came in time");
    apply(&job, &disk).result();
    assert!(disk.read(0, MIB) == table, "the same job gives the same table");
}
