//! Growing, interrupted at every write: done again it is whole, and stock e2fsck mends what is left.

use std::path::Path;

use uvm_disk::ext4;

use crate::judge::ask;
use crate::judge::fault::{FaultDevice, every_fault};
use crate::support::{Disk, MIB, Random, assert_clean, grow_tree};

#[test]
fn growth_is_finished_after_any_cut() {
    let folder = tempfile::tempdir().unwrap();
    grow_tree(folder.path(), 20, 4000, &mut Random(3));
    for (options, before, after, block) in [
        ("-t ext4 -b 1024", 30, 60, 512),
        ("-t ext4 -b 1024 -O ^resize_inode -N 256", 30, 140, 512),
        ("-t ext3 -b 4096 -g 1024", 20, 40, 4096),
        ("-t ext2 -b 1024", 20, 60, 512),
        ("-t ext4 -b 4096 -O ^has_journal -g 1024", 20, 40, 4096),
        ("-t ext4 -b 4096 -g 4096 -E resize=4294967295", 40, 60, 4096),
    ] {
        let disk = Disk::made(before * MIB, options, Some(folder.path()));
        let tree = disk.tree();
        let start = FaultDevice::load(&disk.path, block);
        let grow = |device: &FaultDevice| {
            let plan = ext4::plan_resize(device, after * MIB)?;
            ext4::resize(device, &plan, &mut |_, _| ())
        };
        let survivor = disk.scratch("survivor");
        let faults = every_fault(&start, after * MIB, &|device| grow(&device), &|device, at, fault| {
            check(device, &survivor, &grow, &format!("{options}: {fault:?} at {at}"));
        });
        assert!(faults > 20, "{faults}");
        disk.set_len(0);
        std::fs::copy(&survivor, &disk.path).unwrap();
        assert_eq!(disk.tree(), tree, "{options}");
    }
}

fn check(
    device: &FaultDevice,
    survivor: &Path,
    grow: &dyn Fn(&FaultDevice) -> uvm_disk::Result<()>,
    what: &str,
) {
    device.save(survivor);
    // 1 says that it mended something: replaying the journal, or a count.
    let (_, said) = ask("e2fsck", &["-fy", survivor.to_str().unwrap()]);
    assert!(!said.contains("lost+found") && !said.contains("UNEXPECTED"), "{what}: {said}");
    assert_clean(survivor);
    let again = device.again(None, 0);
    grow(&again).unwrap_or_else(|e| panic!("{what}, again: {e}"));
    again.again(None, 0).save(survivor);
    assert_clean(survivor);
}

#[test]
fn shrinking_is_finished_after_any_cut() {
    shrink_cut_short("-t ext4 -b 1024 -O ^flex_bg -J size=1", 50, 18, 512, 8);
}

/// Two minutes: each survivor is mounted and read.
#[test]
#[ignore = "minutes"]
fn shrinking_is_finished_after_any_cut_of_every_sort() {
    shrink_cut_short("-t ext4 -b 1024 -O ^flex_bg -J size=1", 50, 18, 512, 1);
    shrink_cut_short("-t ext3 -b 4096 -g 1024 -J size=4 -N 4000", 40, 18, 4096, 1);
}

/// Sizes in MiB; one in `looks` survivors is compared file by file.
fn shrink_cut_short(options: &str, before: u64, after: u64, block: u32, looks: u64) {
    let disk = Disk::made(before * MIB, options, None);
    crate::shrink::fill(&disk, 5);
    let tree = disk.tree();
    let start = FaultDevice::load(&disk.path, block);
    let shrink = |device: &FaultDevice| {
        let plan = ext4::plan_resize(device, after * MIB)?;
        ext4::resize(device, &plan, &mut |_, _| ())
    };
    let plan = ext4::plan_resize(&*start, after * MIB).unwrap();
    assert!(plan.blocks_to_move > 100 && plan.inodes_to_move > 0, "{plan:?}");
    let (mended, survivor) = (disk.scratch("mended"), disk.scratch("survivor"));
    let seen = std::cell::Cell::new(0_u64);
    let faults = every_fault(&start, before * MIB, &|device| shrink(&device), &|device, at, fault| {
        let what = format!("{options}: {fault:?} at {at}");
        device.save(&mended);
        check(device, &survivor, &shrink, &what);
        seen.set(seen.get() + 1);
        if seen.get().is_multiple_of(looks) {
            assert_eq!(Disk::copy_of(&survivor).tree(), tree, "{what}");
            ask("e2fsck", &["-fy", mended.to_str().unwrap()]);
            assert_eq!(Disk::copy_of(&mended).tree(), tree, "{what}, mended by e2fsck");
        }
    });
    assert!(faults > 100, "{faults}");
}
