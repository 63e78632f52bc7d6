//! Linux reads our partition tables by itself: also those that a power cut has left, of which it takes no backup.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, unreachable_pub)]
#[path = "../../uvm/disk/tests/judge/fault.rs"]
mod fault;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use fault::{FaultDevice, every_fault};
use uvm_disk::gpt::{self, Mirror, NewPartition, PartitionTable, partition_type};
use uvm_disk::mbr::{self, Mbr, NewMbrPartition, Slot, system_id};
use uvm_disk::{Alignment, BlockDevice, Geometry, Place, identity};
use uvm_tests::JudgeVm;

const SIZE: u64 = 32 << 20;
/// Survivors of one operation that the kernel sees: those that differ, in the order of the faults.
const MAX_SURVIVORS: usize = 8;

/// Disks that one machine has room for.
const SLOTS: usize = 20;

/// Number, first sector and sectors of 512 bytes.
type Extents = BTreeSet<(u32, u64, u64)>;

/// Disks for the kernel, and what it may find on each.
struct Disks {
    folder: tempfile::TempDir,
    disks: Mutex<Vec<(PathBuf, u32, Vec<Extents>)>>,
}

impl Disks {
    fn add(&self, device: &FaultDevice, expected: Vec<Extents>) {
        let mut disks = self.disks.lock().unwrap();
        let path = self.folder.path().join(format!("disk{}", disks.len()));
        device.save(&path);
        disks.push((path, device.geometry().logical_block_size, expected));
    }

    /// Adds what is left after each fault of an operation, one of each kind.
    fn survivors(
        &self,
        before: &FaultDevice,
        size: u64,
        expected: &[Extents],
        operation: &dyn Fn(Arc<FaultDevice>) -> uvm_disk::Result<()>,
    ) {
        let seen = Mutex::new(BTreeSet::new());
        every_fault(before, size, operation, &|device, _, _| {
            let mut bytes = vec![0; size as usize];
            device.read_at(0, &mut bytes).unwrap();
            let mut seen = seen.lock().unwrap();
            if seen.len() < MAX_SURVIVORS && seen.insert(bytes) {
                self.add(device, expected.to_vec());
            }
        });
    }
}

fn gpt_extents(table: &PartitionTable, block: u32) -> Extents {
    let sectors = u64::from(block / 512);
    let of = |p: &gpt::Partition| {
        (p.number, p.starting_lba * sectors, (p.ending_lba - p.starting_lba + 1) * sectors)
    };
    table.partitions.iter().map(of).collect()
}

/// An extended partition shows as a place for a boot loader: two sectors, or one block.
fn mbr_extents(mbr: &Mbr, block: u32) -> Extents {
    let sectors = u64::from(block / 512);
    let of = |p: &mbr::MbrPartition| {
        let len = if p.is_extended() { sectors.max(2) } else { p.blocks * sectors };
        (p.number, p.starting_lba * sectors, len)
    };
    mbr.partitions.iter().map(of).collect()
}

fn add(table: &mut PartitionTable, geometry: &Geometry, number: u32, mib: u64) {
    let new = NewPartition {
        number: Some(number),
        place: Place::FirstFit,
        blocks: Some((mib << 20) / u64::from(geometry.logical_block_size)),
        type_guid: partition_type::LINUX_GENERIC,
        unique_guid: identity::derive("kernel", &number.to_string()).into(),
        attributes: 0,
        name: String::new(),
    };
    table.add(new, Alignment::standard(geometry).unwrap()).unwrap();
}

fn gpt_disks(disks: &Disks, block: u32) {
    let disk = FaultDevice::new(SIZE, block);
    let geometry = disk.geometry();
    let mut old = PartitionTable::new(&geometry, identity::derive("kernel", "disk").into()).unwrap();
    [(14, 2), (15, 4), (1, 8)].into_iter().for_each(|(number, mib)| add(&mut old, &geometry, number, mib));
    gpt::write(&*disk, &old).unwrap();
    let mut new = old.clone();
    new.delete(15).unwrap();
    new.resize(1, (12 << 20) / u64::from(block)).unwrap();
    [(40, 1), (128, 2)].into_iter().for_each(|(number, mib)| add(&mut new, &geometry, number, mib));
    let either = [gpt_extents(&old, block), gpt_extents(&new, block)];
    disks.survivors(&disk, SIZE, &either, &|d| gpt::update(&*d, &new));
    if block == 512 {
        disks.survivors(&disk, SIZE + (1 << 20), &either[..1], &|d| gpt::grow(&*d).map(drop));
        gpt::write_hybrid(&*disk, &[Mirror { number: 1, kind: 0x83, bootable: true }]).unwrap();
        disk.flush().unwrap();
        disks.add(&disk, vec![gpt_extents(&old, block)]);
    }
}

fn mbr_disks(disks: &Disks, block: u32) {
    let disk = FaultDevice::new(SIZE, block);
    let geometry = disk.geometry();
    let alignment = Alignment::standard(&geometry).unwrap();
    let mut old = Mbr::new(0x1234_5678);
    for (slot, mib, kind) in [
        (Slot::Primary, 2, system_id::LINUX),
        (Slot::Number(3), 24, system_id::EXTENDED_LBA),
        (Slot::Logical, 2, system_id::LINUX),
        (Slot::Logical, 3, system_id::LINUX_SWAP),
        (Slot::Logical, 4, system_id::NTFS),
    ] {
        let blocks = Some((mib << 20) / u64::from(block));
        let new = NewMbrPartition { slot, place: Place::FirstFit, blocks, kind, bootable: false };
        old.add(new, &geometry, alignment).unwrap();
    }
    mbr::write(&*disk, &old).unwrap();
    for number in [5, 6] {
        let mut new = old.clone();
        new.delete(number).unwrap();
        let either = [mbr_extents(&old, block), mbr_extents(&new, block)];
        disks.survivors(&disk, SIZE, &either, &|d| mbr::update(&*d, &new));
    }
}

#[test]
fn linux_finds_the_old_table_or_the_new_after_every_fault() {
    let disks = Disks { folder: tempfile::tempdir().unwrap(), disks: Mutex::new(Vec::new()) };
    for block in [512, 4096] {
        gpt_disks(&disks, block);
        mbr_disks(&disks, block);
    }
    let made = disks.disks.lock().unwrap();
    assert!(made.len() >= 20, "{} disks", made.len());
    made.chunks(SLOTS).for_each(kernel_agrees);
}

/// Boots a machine with these disks, each with what may be found on it.
fn kernel_agrees(disks: &[(PathBuf, u32, Vec<Extents>)]) {
    let script = r#"for p in /sys/block/vd*/vd*[0-9]; do
        disk=$(cat ${p%/*}/serial); echo "$disk $(cat $p/partition) $(cat $p/start) $(cat $p/size)"
    done"#;
    let paths = disks.iter().map(|(path, block, _)| (path.as_path(), *block));
    let printed = JudgeVm::new(paths).run_script(script).unwrap();
    let mut found: BTreeMap<usize, Extents> = BTreeMap::new();
    for line in printed.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let [disk, number, start, sectors] = words[..] else { panic!("{line:?} in {printed}") };
        let disk = disk.strip_prefix("disk").unwrap().parse().unwrap();
        let extent = (number.parse().unwrap(), start.parse().unwrap(), sectors.parse().unwrap());
        found.entry(disk).or_default().insert(extent);
    }
    for (index, (_, block, expected)) in disks.iter().enumerate() {
        let found = found.remove(&index).unwrap_or_default();
        assert!(expected.contains(&found), "disk {index}, blocks of {block}: {found:?}, not {expected:?}");
    }
}
