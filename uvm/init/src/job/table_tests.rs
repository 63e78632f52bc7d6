//! Every write of an edit in place fails, is torn, or is the last before the power goes.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use uvm_api::DiskSpec;
use uvm_disk::gpt::{self, PartitionTable};
use uvm_disk::layout::Action;
use uvm_disk::{BlockDevice, Device};

use super::*;
use crate::job::layout::{Existing, Purpose, lay_out};

#[path = "../../../disk/tests/judge/fault.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is a room of the disk's own tests")]
mod fault;

use fault::{FaultDevice, every_fault};

const MIB: u64 = 1 << 20;

fn spec(text: &str) -> DiskSpec {
    serde_json::from_str(text).unwrap()
}

fn planned(device: &FaultDevice, text: &str) -> Layout {
    let probe = uvm_disk::probe::probe(device).unwrap();
    let table = match gpt::read(device) {
        Ok(read) => Some(Table::Gpt(read.table)),
        Err(_) => mbr::read(device).unwrap().map(Table::Mbr),
    };
    let existing = Existing { probe, table, blank_edges: true };
    lay_out(&spec(text), Purpose::Partitions, Some(&existing), &device.geometry(), "job").unwrap()
}

/// What is refused at the end of a job, when contents are written, is refused before anything is.
#[test]
fn an_edit_that_would_be_refused_half_way_is_not_begun() {
    for block in [512, 4096] {
        let mib = MIB / u64::from(block);
        let begin = |device: &Arc<FaultDevice>, text: &str| {
            let layout = planned(device, text);
            let writes = device.writes();
            let target: Device = device.clone();
            let error = clear(&target, &layout).unwrap_err();
            assert_eq!((device.writes(), error.code), (writes, ErrorCode::DeviceChanged), "{}", error.detail);
            error.detail
        };
        let device = FaultDevice::new(64 * MIB, block);
        let first = r#"{"partitions": [{"label": "system", "size_mib": 8}]}"#;
        let layout = planned(&device, first);
        let target: Device = device.clone();
        clear(&target, &layout).unwrap();
        commit(&target, &layout).unwrap();
        // An MBR shows the one of the GPT, and one from 40 MiB that only it knows.
        gpt::write_hybrid(&*device, &[gpt::Mirror { number: 1, kind: 0x83, bootable: false }]).unwrap();
        let mut lba0 = vec![0; block as usize];
        device.read_at(0, &mut lba0).unwrap();
        lba0[446 + 32 + 4] = 0x83;
        lba0[446 + 40..446 + 44].copy_from_slice(&(40 * mib as u32).to_le_bytes());
        lba0[446 + 44..446 + 48].copy_from_slice(&(10 * mib as u32).to_le_bytes());
        device.write_at(0, &lba0).unwrap();
        device.flush().unwrap();
        let refused = begin(&device, r#"{"partitions": [{"label": "system"}, {"label": "data"}]}"#);
        assert!(refused.contains("as its partition 3") && refused.contains("wipe_table: true"), "{refused}");
        let refused = begin(&device, r#"{"partitions": [{"label": "system", "resize": true}]}"#);
        assert!(refused.contains("as its partition 2"), "{refused}");
        // What it does not speak of may be changed.
        let layout =
            planned(&device, r#"{"partitions": [{"label": "system"}, {"label": "data", "size_mib": 8}]}"#);
        clear(&target, &layout).unwrap();
        commit(&target, &layout).unwrap();
    }
}

/// A boot loader's partition before the first MiB, and a small file system.
#[test]
fn what_is_smaller_than_we_make_it_is_kept() {
    let device = FaultDevice::new(64 * MIB, 512);
    let layout = planned(
        &device,
        r#"{"partitions": [{"label": "boot", "size_mib": 4, "filesystem": {"format": "vfat"}}]}"#,
    );
    let target: Device = device.clone();
    clear(&target, &layout).unwrap();
    crate::job::format::make_empty(&target, &layout.placed[0], 0).unwrap();
    commit(&target, &layout).unwrap();
    let mut table = gpt::read(&*device).unwrap().table;
    let mut small = table.partitions[0].clone();
    (small.number, small.starting_lba, small.ending_lba) = (2, 34, 2047);
    (small.name, small.unique_guid) = ("bios".into(), uvm_disk::identity::derive("job", "bios").into());
    table.partitions.push(small);
    table.resize(1, 7000).unwrap();
    gpt::update(&*device, &table).unwrap();
    let text = r#"{"partitions": [{"number": 2}, {"label": "boot", "filesystem": {"format": "vfat"}}]}"#;
    let actions = |text| planned(&device, text).placed.iter().map(|p| p.action).collect::<Vec<_>>();
    assert_eq!(actions(text), [Action::Keep, Action::Keep]);
    let text = r#"{"partitions": [{"number": 2, "resize": true}, {"label": "boot", "resize": true}]}"#;
    assert_eq!(actions(text), [Action::Keep, Action::Resize]);
}

#[test]
fn attributes_without_a_name_stay() {
    let device = FaultDevice::new(64 * MIB, 512);
    let first = r#"{"partitions": [{"label": "system", "size_mib": 8, "attributes": ["no-auto"]}]}"#;
    let layout = planned(&device, first);
    let target: Device = device.clone();
    clear(&target, &layout).unwrap();
    commit(&target, &layout).unwrap();
    let mut table = gpt::read(&*device).unwrap().table;
    // As a boot loader counts its tries.
    table.set_attributes(1, 0x3 << 48, 0).unwrap();
    gpt::update(&*device, &table).unwrap();
    let layout = planned(&device, r#"{"partitions": [{"label": "system", "attributes": ["read-only"]}]}"#);
    clear(&target, &layout).unwrap();
    commit(&target, &layout).unwrap();
    let attributes = gpt::read(&*device).unwrap().table.partitions[0].attributes;
    assert_eq!(attributes, gpt::attribute::READ_ONLY | 0x3 << 48);
    assert!(layout.placed[0].reason.ends_with("; its attributes become read-only instead of no-auto"));
}

fn names(table: &PartitionTable) -> BTreeSet<String> {
    table.partitions.iter().map(|partition| partition.name.clone()).collect()
}

fn operate(device: Arc<FaultDevice>, layout: &Layout) -> uvm_disk::Result<()> {
    let target: Device = device;
    let failed = |error: JobError| uvm_disk::Error::new(uvm_disk::ErrorKind::Io, error.detail);
    clear(&target, layout).map_err(failed)?;
    let made = layout.made().next().expect("one is made anew");
    let written = target.write_at(made.offset, &[0x5a; 4096]).and_then(|()| target.flush());
    written.map_err(|error| uvm_disk::Error::io("contents", made.offset, error))?;
    commit(&target, layout).map_err(failed)
}

#[test]
fn a_kept_partition_is_in_the_table_at_every_cut() {
    for block in [512, 4096] {
        let device = FaultDevice::new(64 * MIB, block);
        let first =
            r#"{"partitions": [{"label": "system", "size_mib": 8}, {"label": "data", "size_mib": 8}]}"#;
        let layout = planned(&device, first);
        let target: Device = device.clone();
        clear(&target, &layout).unwrap();
        commit(&target, &layout).unwrap();
        target.write_at(9 * MIB, b"precious").unwrap();
        target.flush().unwrap();

        // The disk becomes larger meanwhile.
        let size = 80 * MIB;
        let grown = device.resized(size, None, 0);
        let second = r#"{"partitions": [
            {"label": "system", "size_mib": 4, "wipe_partition_entry": true},
            {"label": "data", "resize": true}]}"#;
        let layout = planned(&grown, second);
        let seen = RefCell::new(BTreeSet::new());
        let faults =
            every_fault(&device, size, &|device| operate(device, &layout), &|survivor, write, fault| {
                let read = gpt::read(survivor).unwrap_or_else(|error| panic!("{write} {fault:?}: {error}"));
                let data = read.table.partitions.iter().find(|p| p.name == "data").expect("it is kept");
                assert_eq!((data.number, data.starting_lba), (2, 9 * MIB / u64::from(block)));
                let mut bytes = [0; 8];
                survivor.read_at(9 * MIB, &mut bytes).unwrap();
                assert_eq!(&bytes, b"precious");
                seen.borrow_mut().insert(names(&read.table));
                // The same job again completes it.
                let again = planned(survivor, second);
                let device = survivor.again(None, 0);
                let target: Device = device.clone();
                clear(&target, &again).unwrap();
                commit(&target, &again).unwrap();
                let Table::Gpt(wanted) = &again.table else { panic!("an MBR") };
                let found = gpt::read(&*device).unwrap();
                assert_eq!((&found.table, found.problems), (wanted, Vec::new()), "{write} {fault:?}");
            });
        assert!(faults >= 30, "{faults}");
        // Before and after the system has its entry, in between it has none.
        assert_eq!(seen.borrow().len(), 2, "{seen:?}");
    }
}

#[test]
fn an_mbr_keeps_a_partition_at_every_cut() {
    for block in [512, 4096] {
        let device = FaultDevice::new(64 * MIB, block);
        let layout =
            planned(&device, r#"{"table": "mbr", "partitions": [{"size_mib": 8}, {"size_mib": 8}]}"#);
        let target: Device = device.clone();
        clear(&target, &layout).unwrap();
        commit(&target, &layout).unwrap();
        target.write_at(9 * MIB, b"precious").unwrap();
        target.flush().unwrap();

        let second = r#"{"table": "mbr", "partitions": [
            {"number": 1, "size_mib": 4, "wipe_partition_entry": true}, {"number": 2, "resize": true}]}"#;
        let layout = planned(&device, second);
        let seen = RefCell::new(BTreeSet::new());
        let operation = |device| operate(device, &layout);
        let faults = every_fault(&device, 64 * MIB, &operation, &|survivor, write, fault| {
            let table = mbr::read(survivor).unwrap().unwrap_or_else(|| panic!("{write} {fault:?}"));
            let data = table.partition(2).unwrap();
            assert_eq!(data.starting_lba, 9 * MIB / u64::from(block), "{write} {fault:?}");
            let mut bytes = [0; 8];
            survivor.read_at(9 * MIB, &mut bytes).unwrap();
            assert_eq!(&bytes, b"precious");
            seen.borrow_mut().insert(table.partitions.len());
            let again = planned(survivor, second);
            let device = survivor.again(None, 0);
            let target: Device = device.clone();
            clear(&target, &again).unwrap();
            commit(&target, &again).unwrap();
            assert_eq!(mbr::read(&*device).unwrap().map(Table::Mbr).as_ref(), Some(&again.table));
        });
        assert!(faults >= 9, "{faults}");
        assert_eq!(*seen.borrow(), BTreeSet::from([1, 2]));
    }
}
