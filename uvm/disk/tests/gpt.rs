//! GPT, judged by sgdisk and sfdisk.
#![allow(clippy::unwrap_used)]

mod judge;

use judge::{Image, Loop, agree};
use uuid::uuid;
use uvm_disk::gpt::{self, ALIGNMENT, Guid, Partition, PartitionTable, partition_type};
use uvm_disk::probe::{TableKind, probe};
use uvm_disk::{BlockDevice, ErrorKind, Geometry, Memory};

const DISK: Guid = Guid::from_uuid(uuid!("12345678-9abc-def0-1122-334455667788"));

fn table(geometry: &Geometry) -> PartitionTable {
    let mut table = PartitionTable::new(geometry, DISK).unwrap();
    let mib = ALIGNMENT / u64::from(geometry.logical_block_size);
    let mut add = |number, type_guid, start, len, name: &str| {
        table.partitions.push(Partition {
            number,
            type_guid,
            unique_guid: Guid([number as u8; 16]),
            starting_lba: start * mib,
            ending_lba: (start + len) * mib - 1,
            attributes: 0,
            name: name.into(),
        });
    };
    add(1, partition_type::ROOT_X86_64, 9, 20, "root");
    add(14, partition_type::ESP, 1, 8, "EFI größe");
    add(15, partition_type::SWAP, 29, 10, "swap");
    table
}

#[test]
fn foreign_tools_accept_the_table() {
    for block in [512, 4096] {
        let image = Image::new(64 << 20, block);
        let table = table(&image.geometry());
        gpt::write(&*image, &table).unwrap();
        let read = gpt::read(&*image).unwrap();
        assert!(read.primary_ok && read.backup_ok && read.problems.is_empty(), "{:?}", read.problems);
        assert_eq!(read.table, table);
        let device = Loop::new(&image.path, block);
        let verdict = agree("sgdisk", &["-v", &device.0]);
        assert!(verdict.contains("No problems found"), "{verdict}");
        let dump = agree("sfdisk", &["-J", &device.0]).to_lowercase();
        for expected in [
            "12345678-9abc-def0-1122-334455667788",
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            "0e0e0e0e-0e0e-0e0e-0e0e-0e0e0e0e0e0e",
            "efi größe",
            "p14\"",
        ] {
            assert!(dump.contains(expected), "{expected} in {dump}");
        }
    }
}

#[test]
fn either_copy_is_enough_and_a_wipe_leaves_none() {
    for block in [512u32, 4096] {
        let disk = Memory::new(64 << 20, block);
        let table = table(&disk.geometry());
        gpt::write(&disk, &table).unwrap();
        let last = disk.geometry().size - u64::from(block);
        for (lba_offset, primary) in [(u64::from(block), false), (last, true)] {
            gpt::write(&disk, &table).unwrap();
            disk.write_at(lba_offset + 60, &[0x5a]).unwrap();
            let read = gpt::read(&disk).unwrap();
            assert_eq!((read.primary_ok, read.backup_ok), (primary, !primary));
            assert_eq!(read.table, table);
            assert!(!read.problems.is_empty());
        }
        gpt::wipe_tables(&disk).unwrap();
        assert_eq!(gpt::read(&disk).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(probe(&disk).unwrap().table, TableKind::None);
    }
}

#[test]
fn wrong_tables_are_refused() {
    let disk = Memory::new(64 << 20, 512);
    let good = table(&disk.geometry());
    let cases: [fn(&mut PartitionTable); 5] = [
        |t| t.partitions[0].starting_lba -= 1,
        |t| t.partitions[2].ending_lba = t.last_usable_lba + 1,
        |t| t.partitions[1].number = 129,
        |t| t.partitions[1].name = "x".repeat(37),
        |t| t.partitions[1].unique_guid = t.partitions[0].unique_guid,
    ];
    for spoil in cases {
        let mut table = good.clone();
        spoil(&mut table);
        assert_eq!(gpt::write(&disk, &table).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert!(disk.contents().iter().all(|b| *b == 0), "a refused table wrote");
}
