//! Faults at every write of every change of a GPT: the disk has the old table or the new one, never none.
#![allow(clippy::unwrap_used)]

mod judge;

use std::sync::Arc;

use judge::fault::{Fault, FaultDevice, every_fault};
use judge::{Loop, agree};
use uvm_disk::gpt::{self, Mirror, NewPartition, PartitionTable, partition_type};
use uvm_disk::{Alignment, BlockDevice, Place, Result, identity};

const SIZE: u64 = 64 << 20;

fn new(number: u32, place: Place, mib: u64, block: u32) -> NewPartition {
    NewPartition {
        number: Some(number),
        place,
        blocks: Some((mib << 20) / u64::from(block)),
        type_guid: partition_type::LINUX_GENERIC,
        unique_guid: identity::derive("faults", &format!("partition/{number}")).into(),
        attributes: 0,
        name: format!("partition {number}"),
    }
}

/// Slots 1, 14 and 15, as images of clouds have them.
fn table(device: &FaultDevice) -> PartitionTable {
    let geometry = device.geometry();
    let block = geometry.logical_block_size;
    let alignment = Alignment::standard(&geometry).unwrap();
    let mut table = PartitionTable::new(&geometry, identity::derive("faults", "disk").into()).unwrap();
    table.add(new(14, Place::FirstFit, 2, block), alignment).unwrap();
    table.add(new(15, Place::FirstFit, 8, block), alignment).unwrap();
    table.add(new(1, Place::FirstFit, 16, block), alignment).unwrap();
    table
}

fn edited(old: &PartitionTable, block: u32) -> PartitionTable {
    let mut table = old.clone();
    table.delete(15).unwrap();
    table.resize(1, (20 << 20) / u64::from(block)).unwrap();
    table.set_name(14, "boot").unwrap();
    // Past the first block of entries, so that arrays can tear.
    for number in [40, 90, 128] {
        table
            .add(new(number, Place::FirstFit, 1, block), Alignment::standard(&device(SIZE, block)).unwrap())
            .unwrap();
    }
    table
}

fn device(size: u64, block: u32) -> uvm_disk::Geometry {
    uvm_disk::Geometry { size, logical_block_size: block, physical_block_size: block }
}

/// The partitions that sgdisk finds: number, first and last block.
fn sgdisk(device: &FaultDevice, args: &[&str]) -> (String, Vec<(u32, u64, u64)>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    device.save(&path);
    let disk = Loop::new(&path, device.geometry().logical_block_size);
    let text = agree("sgdisk", &[args, &[&disk.0]].concat());
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let partitions = lines.filter_map(|words| {
        Some((words.first()?.parse().ok()?, words.get(1)?.parse().ok()?, words.get(2)?.parse().ok()?))
    });
    (text.clone(), partitions.collect())
}

fn extents(table: &PartitionTable) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|p| (p.number, p.starting_lba, p.ending_lba)).collect()
}

struct Expected<'e> {
    old: &'e PartitionTable,
    new: &'e PartitionTable,
    /// The primary copy is sound at every instant: Linux reads no other by itself.
    primary: bool,
}

/// Lets `operation` meet every fault on a device with `before`, grown to `size`. sgdisk sees every survivor of every
/// kind once.
fn survive(
    before: &FaultDevice,
    size: u64,
    operation: &dyn Fn(Arc<FaultDevice>) -> Result<()>,
    expected: &Expected<'_>,
) {
    let outcomes = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let check = |device: &FaultDevice, at: u64, fault: Fault| {
        let found = gpt::read(device).unwrap_or_else(|e| panic!("{fault:?} at write {at}: {e}"));
        let is_new = found.table == *expected.new;
        assert!(is_new || found.table == *expected.old, "{fault:?} at write {at}: {:#?}", found.table);
        assert!(found.primary_ok || !expected.primary, "{fault:?} at write {at}: {:?}", found.problems);
        let copies = (is_new, found.primary_ok, found.backup_ok, found.problems);
        let unseen = outcomes.borrow_mut().insert(copies);
        if unseen {
            let (text, partitions) = sgdisk(device, &["-p"]);
            assert_eq!(partitions, extents(&found.table), "{fault:?} at write {at}: {text}");
        }
        let mut repaired = gpt::repair(device).unwrap_or_else(|e| panic!("{fault:?} at write {at}: {e}"));
        assert_eq!(gpt::verify(device).unwrap(), [], "{fault:?} at write {at}");
        if unseen {
            let (text, _) = sgdisk(device, &["-v"]);
            assert!(text.contains("No problems found"), "{fault:?} at write {at}: {text}");
        }
        repaired.last_usable_lba = found.table.last_usable_lba;
        assert_eq!(repaired, found.table, "{fault:?} at write {at}");
    };
    let faults = every_fault(before, size, operation, &check);
    let seen = outcomes.into_inner();
    assert!(
        faults >= 3 && seen.iter().any(|o| o.0) && seen.iter().any(|o| !o.0),
        "{faults} faults, {seen:?}"
    );
}

fn with_table(block: u32) -> (Arc<FaultDevice>, PartitionTable) {
    let disk = FaultDevice::new(SIZE, block);
    let table = table(&disk);
    gpt::write(&*disk, &table).unwrap();
    (disk, table)
}

#[test]
fn an_update_leaves_the_primary_valid_at_every_instant() {
    for block in [512, 4096] {
        let (disk, old) = with_table(block);
        let new = edited(&old, block);
        survive(&disk, SIZE, &|d| gpt::update(&*d, &new), &Expected { old: &old, new: &new, primary: true });
        let device = disk.again(None, 0);
        gpt::update(&*device, &new).unwrap();
        let direct = FaultDevice::new(SIZE, block);
        gpt::write(&*direct, &new).unwrap();
        let contents = |device: &FaultDevice| {
            let mut bytes = vec![0; SIZE as usize];
            device.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert!(contents(&device) == contents(&direct), "an update leaves what a creation leaves");
    }
}

#[test]
fn an_update_without_room_beside_leaves_one_copy_valid() {
    for block in [512, 4096] {
        let disk = FaultDevice::new(SIZE, block);
        let mut old = table(&disk);
        let first = old.first_usable_lba;
        let alignment = Alignment::standard(&disk.geometry()).unwrap();
        let blocks = Some(8);
        old.add(NewPartition { blocks, ..new(2, Place::At(first), 1, block) }, alignment).unwrap();
        gpt::write(&*disk, &old).unwrap();
        let new = edited(&old, block);
        survive(&disk, SIZE, &|d| gpt::update(&*d, &new), &Expected { old: &old, new: &new, primary: false });
    }
}

#[test]
fn an_update_spares_what_lies_behind_the_entries() {
    let (disk, old) = with_table(512);
    let loader = [0x5a; 512];
    disk.write_at(40 * 512, &loader).unwrap();
    disk.flush().unwrap();
    let new = edited(&old, 512);
    let check = |device: &FaultDevice, at: u64, fault: Fault| {
        let mut found = [0; 512];
        device.read_at(40 * 512, &mut found).unwrap();
        assert_eq!(found, loader, "{fault:?} at write {at}");
        let table = gpt::read(device).unwrap().table;
        assert!(table == new || table == old, "{fault:?} at write {at}");
    };
    every_fault(&disk, SIZE, &|d| gpt::update(&*d, &new), &check);
}

#[test]
fn one_copy_is_enough_to_begin_with() {
    for block in [512, 4096] {
        for spoiled in [1, SIZE / u64::from(block) - 1] {
            let (disk, old) = with_table(block);
            disk.write_at(spoiled * u64::from(block) + 60, &[0x5a]).unwrap();
            disk.flush().unwrap();
            let new = edited(&old, block);
            survive(
                &disk,
                SIZE,
                &|d| gpt::update(&*d, &new),
                &Expected { old: &old, new: &new, primary: false },
            );
            let repair = |d: Arc<FaultDevice>| gpt::repair(&*d).map(drop);
            every_fault(&disk, SIZE, &repair, &|device, at, fault| {
                assert_eq!(gpt::read(device).unwrap().table, old, "{fault:?} at write {at}");
                gpt::repair(device).unwrap();
                assert_eq!(gpt::verify(device).unwrap(), [], "{fault:?} at write {at}");
            });
        }
    }
}

#[test]
fn a_creation_over_a_table_leaves_one_of_them() {
    for block in [512, 4096] {
        let (disk, old) = with_table(block);
        let mut new = edited(&old, block);
        new.disk_guid = identity::derive("another", "disk").into();
        survive(&disk, SIZE, &|d| gpt::write(&*d, &new), &Expected { old: &old, new: &new, primary: true });
    }
}

#[test]
fn a_table_grows_and_shrinks_with_its_device() {
    for block in [512, 4096] {
        let (disk, old) = with_table(block);
        // Also by so little that the new backup covers the old one.
        for size in [SIZE + 16 * u64::from(block), 2 * SIZE] {
            let mut new = old.clone();
            new.fit(&device(size, block)).unwrap();
            let grow = |d: Arc<FaultDevice>| gpt::grow(&*d).map(drop);
            survive(&disk, size, &grow, &Expected { old: &old, new: &new, primary: true });
            let grown = disk.resized(size, None, 0);
            assert_eq!(gpt::grow(&*grown).unwrap(), new);
            assert_eq!(gpt::verify(&*grown).unwrap(), []);
            let writes = grown.writes();
            gpt::grow(&*grown).unwrap();
            assert_eq!(grown.writes(), writes, "the second time there is nothing to do");
            let mut found = vec![0; block as usize];
            grown.read_at(SIZE - u64::from(block), &mut found).unwrap();
            assert!(!found.starts_with(b"EFI PART"), "the old backup is gone");
            grown.flush().unwrap();
            let shrink = |d: Arc<FaultDevice>| gpt::shrink(&*d, SIZE / u64::from(block)).map(drop);
            survive(&grown, size, &shrink, &Expected { old: &new, new: &old, primary: true });
            let shrunk = grown.again(None, 0);
            assert_eq!(gpt::shrink(&*shrunk, SIZE / u64::from(block)).unwrap(), old);
            shrunk.flush().unwrap();
            let cut = shrunk.resized(SIZE, None, 0);
            assert_eq!(gpt::verify(&*cut).unwrap(), []);
            assert!(sgdisk(&cut, &["-v"]).0.contains("No problems found"));
        }
    }
}

#[test]
fn an_edit_of_an_edit_that_was_interrupted_is_safe_too() {
    for block in [512, 4096] {
        let (disk, old) = with_table(block);
        let new = edited(&old, block);
        let mut newer = new.clone();
        newer.delete(90).unwrap();
        newer.set_name(128, "the last").unwrap();
        let beside = std::cell::Cell::new(0);
        let check = |device: &FaultDevice, _: u64, _: Fault| {
            let found = gpt::read(device).unwrap();
            if found.table == new
                && gpt::verify(device).unwrap().iter().any(|p| p.text.contains("interrupted"))
            {
                beside.set(beside.get() + 1);
                survive(
                    device,
                    SIZE,
                    &|d| gpt::update(&*d, &newer),
                    &Expected { old: &new, new: &newer, primary: true },
                );
            }
        };
        every_fault(&disk, SIZE, &|d| gpt::update(&*d, &new), &check);
        assert!(beside.get() > 0, "no fault left the primary entries beside");
    }
}

#[test]
fn the_block_before_a_gpt_is_one_write() {
    for block in [512, 4096] {
        let (disk, table) = with_table(block);
        let mirrors = [
            Mirror { number: 14, kind: 0x0c, bootable: true },
            Mirror { number: 1, kind: 0x83, bootable: false },
        ];
        for operation in [
            &(|d: Arc<FaultDevice>| gpt::write_hybrid(&*d, &mirrors))
                as &dyn Fn(Arc<FaultDevice>) -> Result<()>,
            &|d: Arc<FaultDevice>| gpt::write_protective(&*d),
        ] {
            let faults = every_fault(&disk, SIZE, operation, &|device, at, fault| {
                assert_eq!(gpt::verify(device).unwrap(), [], "{fault:?} at write {at}");
                assert_eq!(gpt::read(device).unwrap().table, table);
            });
            assert_eq!(faults, 3);
            operation(disk.clone()).unwrap();
        }
    }
}
