//! Formatting and filling, cut short at every write: the device carries no file system or a whole one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use uvm_disk::ext4::{Ext4Builder, Ext4Options, Variant};

use crate::MIB;
use crate::device::{attributes, options, run};
use crate::judge::fault::{Fault, FaultDevice, every_fault};

/// The wipe of the two ends, a flush behind it.
const WIPES: u64 = 2;

fn of(variant: Variant, block_size: u32) -> Ext4Options {
    let Ext4Options { uuid, hash_seed, timestamp, .. } = options();
    Ext4Options { block_size, ..Ext4Options::new(variant, uuid, hash_seed, timestamp) }
}

/// What libblkid, asked for all it knows of the bytes, takes the device for.
fn format_on(path: &Path) -> String {
    let output = Command::new("blkid").args(["-p", "-o", "value", "-s", "TYPE"]).arg(path).output();
    let output = output.expect("blkid is installed");
    // 2: nothing found. 8: several.
    assert!(matches!(output.status.code(), Some(0 | 2)), "blkid: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

fn clean(path: &Path) -> bool {
    let output = Command::new("e2fsck").arg("-fn").arg(path).output().expect("e2fsck is installed");
    output.status.success()
}

fn fill(device: Arc<FaultDevice>, options: Ext4Options, files: u32) -> uvm_disk::Result<()> {
    let mut builder = Ext4Builder::new(device, options)?;
    let mut dir = builder.root();
    for index in 0..files {
        if index % 5 == 0 {
            dir = builder.create_dir(dir, format!("dir{index}").as_bytes(), attributes(0o755))?;
        }
        let size = u64::from(index) * 20_000;
        let name = format!("file{index}");
        let file = builder.create_file(
            dir,
            name.as_bytes(),
            attributes(0o644),
            size,
            &mut std::io::repeat(index as u8),
        )?;
        builder.set_xattr(file, b"user.large", &[3; 500])?;
    }
    builder.finish()?;
    Ok(())
}

/// Cuts `options` with `files` over `before` short everywhere.
fn cut_everywhere(before: &FaultDevice, old: &str, size: u64, options: &Ext4Options, new: &str, files: u32) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("image");
    let seen = RefCell::new(BTreeSet::new());
    let operation = |device| fill(device, options.clone(), files);
    let faults = every_fault(before, size, &operation, &|device, at, fault| {
        device.save(&path);
        let found = format_on(&path);
        if found == new && found != old {
            assert!(clean(&path), "{fault:?} at write {at}: a broken file system");
        } else if found == old && !old.is_empty() {
            // The old one went on being there; only the wipe itself can leave parts of it.
            assert!(at < WIPES, "{fault:?} at write {at}: the old {old} is back");
        } else {
            assert_eq!(found, "", "{fault:?} at write {at}");
        }
        seen.borrow_mut().insert((found, fault == Fault::Fail));
    });
    let seen = seen.into_inner();
    assert!(faults > 10 && seen.iter().any(|(found, _)| found.is_empty()), "{faults} faults: {seen:?}");
    // Cut at its very last write, the sector with the magic number may be there: then all else is.
    println!("{faults} faults: {seen:?}");
}

fn made_by(program: &str, arguments: &[&str], size: u64, logical_block_size: u32) -> Arc<FaultDevice> {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("image");
    std::fs::File::create(&path).and_then(|file| file.set_len(size)).expect("an image");
    run(program, &[arguments, &[&path.to_string_lossy()[..]]].concat());
    FaultDevice::load(&path, logical_block_size)
}

#[test]
fn formatting_cut_short_leaves_nothing_or_all() {
    let (small, large) = (12 * MIB, 320 * MIB);
    let blank = FaultDevice::new(small, 512);
    cut_everywhere(&blank, "", small, &of(Variant::Ext4, 1024), "ext4", 0);
    cut_everywhere(&blank, "", small, &of(Variant::Ext2, 1024), "ext2", 0);
    let blank = FaultDevice::new(small, 4096);
    cut_everywhere(&blank, "", small, &of(Variant::Ext3, 4096), "ext3", 0);
    let old = made_by("mkfs.xfs", &["-q"], large, 512);
    cut_everywhere(&old, "xfs", large, &of(Variant::Ext4, 4096), "ext4", 0);
    let old = made_by("mkfs.btrfs", &["-q"], large, 4096);
    cut_everywhere(&old, "btrfs", large, &of(Variant::Ext4, 4096), "ext4", 0);
    let old = made_by("mke2fs", &["-q", "-t", "ext2", "-b", "1024"], small, 512);
    cut_everywhere(&old, "ext2", small, &of(Variant::Ext4, 4096), "ext4", 0);
}

#[test]
fn filling_cut_short_leaves_nothing_or_all() {
    let size = 24 * MIB;
    for (variant, new, logical, block_size) in [
        (Variant::Ext4, "ext4", 512, 1024),
        (Variant::Ext3, "ext3", 4096, 4096),
        (Variant::Ext2, "ext2", 512, 2048),
    ] {
        let old_name = if new == "ext4" { "ext3" } else { "ext4" };
        let old = made_by("mke2fs", &["-q", "-t", old_name], size, logical);
        cut_everywhere(&old, old_name, size, &of(variant, block_size), new, 12);
    }
}
