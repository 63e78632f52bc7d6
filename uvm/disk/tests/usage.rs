//! What a scan of a whole device says is used.
#![allow(clippy::unwrap_used)]

mod judge;

use std::ops::Range;
use std::sync::Arc;

use judge::{Image, agree};
use uuid::uuid;
use uvm_disk::fat::{FatBuilder, FatOptions, FatReader};
use uvm_disk::gpt::{self, Guid, Partition, PartitionTable, partition_type};
use uvm_disk::probe::TableKind;
use uvm_disk::usage::{DeviceUsage, scan};
use uvm_disk::{BlockDevice, Device, Error, ErrorKind, Memory, Slice, ext4, swap};

const MIB: u64 = 1 << 20;

fn scanned(device: &dyn BlockDevice) -> (DeviceUsage, Vec<Range<u64>>) {
    let mut extents: Vec<Range<u64>> = Vec::new();
    let usage = scan(device, &mut |extent| {
        assert!(
            !extent.is_empty() && extents.last().is_none_or(|last| last.end < extent.start),
            "{extent:?}"
        );
        assert!(extent.end <= device.geometry().size);
        extents.push(extent);
        Ok(())
    })
    .unwrap();
    assert_eq!(usage.used, extents.iter().map(|extent| extent.end - extent.start).sum::<u64>());
    (usage, extents)
}

fn covers(extents: &[Range<u64>], bytes: Range<u64>) -> bool {
    extents.iter().any(|extent| extent.start <= bytes.start && extent.end >= bytes.end)
}

fn touches(extents: &[Range<u64>], bytes: Range<u64>) -> bool {
    extents.iter().any(|extent| extent.start < bytes.end && extent.end > bytes.start)
}

/// Partitions from 1 MiB on, each of so many MiB with as many free behind it.
fn table(device: &dyn BlockDevice, sizes: &[u64]) -> PartitionTable {
    let geometry = device.geometry();
    let block = u64::from(geometry.logical_block_size);
    let mut table =
        PartitionTable::new(&geometry, Guid::from_uuid(uuid!("6f1c0bd2-6f4e-4a52-9a55-8a1c6d7b1f3e")))
            .unwrap();
    let mut at = MIB;
    for (index, mib) in (0u8..).zip(sizes) {
        table.partitions.push(Partition {
            number: u32::from(index) + 1,
            type_guid: partition_type::LINUX_GENERIC,
            unique_guid: Guid::from_uuid(uuid::Uuid::from_bytes([index + 1; 16])),
            starting_lba: at / block,
            ending_lba: (at + mib * MIB) / block - 1,
            attributes: 0,
            name: format!("p{index}"),
        });
        at += 2 * mib * MIB;
    }
    table
}

fn part(device: &Device, table: &PartitionTable, index: usize) -> (u64, Device) {
    let (offset, size) = table.partitions[index].extent(device.geometry().logical_block_size).unwrap();
    (offset, Arc::new(Slice::new(Arc::clone(device), offset, size).unwrap()))
}

#[test]
fn a_disk_of_many_contents() {
    for block in [512, 4096] {
        let image = Image::new(512 * MIB, block);
        let device: Device = image.clone();
        let table = table(&*device, &[40, 64, 8, 16]);
        gpt::write(&*device, &table).unwrap();
        let (esp_at, esp) = part(&device, &table, 0);
        let mut fat = FatBuilder::new(esp, FatOptions::default()).unwrap();
        let root = fat.root();
        fat.create_file(root, "file", 5 * MIB, &mut std::io::repeat(7), 0).unwrap();
        let fat = fat.finish().unwrap();
        let (ext4_at, partition) = part(&device, &table, 1);
        let options = ext4::Ext4Options {
            journal: ext4::Journal::None,
            ..ext4::Ext4Options::new(ext4::Variant::Ext4, [1; 16], [2; 16], 1)
        };
        let ext4 = ext4::Ext4Builder::new(partition, options).unwrap().finish().unwrap();
        let (swap_at, partition) = part(&device, &table, 2);
        swap::write_swap_header(&*partition, uuid!("2b9a7f3e-1f07-4c83-9be1-0a5f4b1c2d3e"), "", 4096)
            .unwrap();
        let (unknown_at, _) = part(&device, &table, 3);

        let (usage, extents) = scanned(&*device);
        assert_eq!((usage.table, usage.content, usage.problems.len()), (TableKind::Gpt, None, 0));
        let said: Vec<_> = usage
            .partitions
            .iter()
            .map(|p| (p.number, p.offset, p.content.format, p.content.assumed.is_some()))
            .collect();
        let expected = [
            (1, esp_at, Some("vfat"), false),
            (2, ext4_at, Some("ext4"), false),
            (3, swap_at, Some("swap"), true),
            (4, unknown_at, None, true),
        ];
        assert_eq!(said, expected);
        let clusters = u64::from(fat.clusters - fat.clusters_free) * u64::from(fat.cluster_size);
        let used = usage.partitions[0].content.used;
        assert!((clusters..clusters + MIB).contains(&used), "{used} {clusters}");
        assert_eq!(usage.partitions[1].content.used, (ext4.blocks - ext4.free_blocks) * 4096);
        assert_eq!((usage.partitions[2].content.used, usage.partitions[3].content.used), (8 * MIB, 16 * MIB));
        // Both copies of the table, and nothing between partitions.
        assert!(
            covers(&extents, 0..MIB) && covers(&extents, 512 * MIB - 16_384 - u64::from(block)..512 * MIB)
        );
        assert!(covers(&extents, unknown_at..unknown_at + 16 * MIB));
        assert!(!touches(&extents, unknown_at + 16 * MIB..512 * MIB - MIB));
        assert!(!touches(&extents, swap_at + 8 * MIB..unknown_at));

        // The used bytes alone are the same disk.
        let copy = Image::new(512 * MIB, block);
        for extent in extents {
            let mut bytes = vec![0; (extent.end - extent.start) as usize];
            device.read_at(extent.start, &mut bytes).unwrap();
            copy.write_at(extent.start, &bytes).unwrap();
        }
        let found = gpt::read(&*copy).unwrap();
        assert!(found.table == table && found.problems.is_empty(), "{found:?}");
        let copy: Device = copy;
        let (_, esp) = part(&copy, &table, 0);
        assert!(FatReader::open(&*esp).unwrap().read_file("file", 1 << 30).unwrap() == vec![7; 5 << 20]);
        let (_, ext4) = part(&copy, &table, 1);
        let alone = Image::new(64 * MIB, 512);
        let mut bytes = vec![0; (64 * MIB) as usize];
        ext4.read_at(0, &mut bytes).unwrap();
        alone.write_at(0, &bytes).unwrap();
        agree("e2fsck", &["-fn", alone.path()]);
    }
}

#[test]
fn a_disk_that_grew_keeps_its_old_backup() {
    let small = Image::new(64 * MIB, 512);
    gpt::write(&*small, &table(&*small, &[8])).unwrap();
    let file = std::fs::File::options().write(true).open(&small.path).unwrap();
    file.set_len(100 * MIB).unwrap();
    let bytes = std::fs::read(&small.path).unwrap();
    let grown = Image::new(100 * MIB, 512);
    grown.write_at(0, &bytes).unwrap();
    let (usage, extents) = scanned(&*grown);
    assert!(!usage.problems.is_empty());
    assert!(covers(&extents, 64 * MIB - 33 * 512..64 * MIB), "{extents:?}");
}

#[test]
fn logical_partitions_and_boot_code_count() {
    let image = Image::new(64 * MIB, 512);
    let layout = "label: dos\n2048,16384,c\n20480,65536,5\n22528,8192,83\n40960,8192,83\n";
    let script = image.path.with_extension("sfdisk");
    std::fs::write(&script, layout).unwrap();
    agree("sh", &["-c", &format!("sfdisk -q {} < {}", image.path(), script.display())]);
    let device: Device = image.clone();
    let first = Slice::new(Arc::clone(&device), 2048 * 512, 16_384 * 512).unwrap();
    FatBuilder::new(Arc::new(first), FatOptions::default()).unwrap().finish().unwrap();
    let (usage, extents) = scanned(&*device);
    assert_eq!(usage.table, TableKind::Mbr);
    let said: Vec<_> = usage.partitions.iter().map(|p| (p.number, p.content.format)).collect();
    assert_eq!(said, [(1, Some("vfat")), (5, None), (6, None)]);
    // Boot code before the first partition, everything the extended one holds, nothing behind it.
    assert!(covers(&extents, 0..MIB) && covers(&extents, 20_480 * 512..(20_480 + 65_536) * 512));
    assert!(!touches(&extents, (20_480 + 65_536) * 512..64 * MIB));
    assert!(usage.partitions[0].content.used < MIB, "{usage:?}");
}

#[test]
fn what_is_not_understood_is_used() {
    // Nothing at all.
    let blank = Memory::new(4 << 20, 512);
    let (usage, extents) = scanned(&blank);
    assert_eq!((usage.table, usage.used, extents.len()), (TableKind::None, 4 * MIB, 1));
    assert!(usage.content.unwrap().assumed.is_some());
    // A file system on the device itself, and what lies behind it.
    let image = Image::new(40 * MIB, 512);
    agree("mkfs.fat", &["-s", "1", "-F", "16", image.path(), "20480"]);
    let (usage, extents) = scanned(&*image);
    let content = usage.content.unwrap();
    assert_eq!((content.format, content.block_size, content.assumed), (Some("vfat"), Some(512), None));
    assert!(covers(&extents, 39 * MIB..40 * MIB) && !touches(&extents, 21 * MIB..39 * MIB));
    // Partitions that overlap: each one's map says nothing of the other.
    let image = Image::new(64 * MIB, 512);
    agree("sh", &["-c", &format!("printf 'label: dos\\n2048,40960,c\\n' | sfdisk -q {}", image.path())]);
    let device: Device = image.clone();
    let inside: Device = Arc::new(Slice::new(Arc::clone(&device), MIB, 20 * MIB).unwrap());
    FatBuilder::new(inside, FatOptions::default()).unwrap().finish().unwrap();
    assert!(scanned(&*device).0.partitions[0].content.assumed.is_none());
    let mut second = [0; 16];
    second[4] = 0x83;
    second[8..12].copy_from_slice(&8192u32.to_le_bytes());
    second[12..16].copy_from_slice(&40_960u32.to_le_bytes());
    device.write_at(462, &second).unwrap();
    let (usage, extents) = scanned(&*device);
    assert!(
        usage.partitions.iter().all(|p| p
            .content
            .assumed
            .as_ref()
            .is_some_and(|why| why.contains("overlaps")))
    );
    assert!(covers(&extents, 0..(8192 + 40_960) * 512));
    // Boot sectors that have the signature of an MBR: sectors larger than what is known, a table that is too short.
    for arguments in [["-S", "8192"], ["-F", "32"]] {
        let image = Image::new(80 * MIB, 512);
        agree("mkfs.fat", &[&arguments[..], &[image.path(), "65536"]].concat());
        if arguments[0] == "-F" {
            image.write_at(32, &(80_u32 << 11).to_le_bytes()).unwrap();
        }
        let (usage, extents) = scanned(&*image);
        assert_eq!((usage.used, extents.len()), (80 * MIB, 1), "{arguments:?}");
        assert!(usage.content.unwrap().assumed.is_some());
    }
    // Half a table.
    let broken = Image::new(64 * MIB, 512);
    gpt::write(&*broken, &table(&*broken, &[8])).unwrap();
    for at in [600, 64 * MIB - 500] {
        broken.write_at(at, &[0xff]).unwrap();
    }
    let (usage, _) = scanned(&*broken);
    assert_eq!((usage.used, usage.partitions.len()), (64 * MIB, 0));
    assert!(usage.content.unwrap().assumed.unwrap().contains("broken"));
}

#[test]
fn a_visitor_may_stop() {
    let blank = Memory::new(4 << 20, 512);
    let stopped = scan(&blank, &mut |_| Err(Error::new(ErrorKind::NoSpace, "enough")));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::NoSpace);
    let memory: Device = Arc::new(Memory::new(64 << 20, 512));
    gpt::write(&*memory, &table(&*memory, &[16])).unwrap();
    let (_, partition) = part(&memory, &table(&*memory, &[16]), 0);
    FatBuilder::new(partition, FatOptions::default()).unwrap().finish().unwrap();
    let mut left = 1;
    let stopped = scan(&*memory, &mut |_| {
        left -= 1;
        if left < 0 { Err(Error::new(ErrorKind::NoSpace, "enough")) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::NoSpace);
}
