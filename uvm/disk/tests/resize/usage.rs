//! The used-block map.

use uvm_disk::{BlockDevice, ErrorKind, Memory, ext4};

use crate::judge::agree;
use crate::support::{Disk, MIB, Random, grow_tree};

/// Options of mke2fs and a size in MiB.
const SORTS: [(&str, u64); 14] = [
    ("-t ext4", 100),
    ("-t ext4 -b 1024", 60),
    ("-t ext4 -b 2048 -O ^metadata_csum,uninit_bg", 60),
    ("-t ext4 -b 4096 -O ^has_journal", 300),
    ("-t ext4 -O meta_bg,^resize_inode -b 1024", 200),
    ("-t ext4 -b 4096 -O sparse_super2,^resize_inode", 300),
    ("-t ext4 -O ^flex_bg", 300),
    ("-t ext4 -O ^64bit -g 8192", 300),
    ("-t ext4 -O bigalloc -C 16384", 300),
    ("-t ext4 -O bigalloc -C 8192 -b 1024", 100),
    ("-t ext4 -O inline_data -I 512", 100),
    ("-t ext3 -b 1024", 50),
    ("-t ext2 -b 1024", 9),
    ("-t ext2 -r 1 -O none", 40),
];

fn used_blocks(disk: &Disk) -> (u64, Vec<std::ops::Range<u64>>) {
    let mut extents: Vec<std::ops::Range<u64>> = Vec::new();
    let usage = ext4::used_extents(&disk.open(), &mut |extent| {
        assert!(!extent.is_empty() && extents.last().is_none_or(|last| last.end < extent.start));
        extents.push(extent);
        Ok(())
    })
    .unwrap();
    assert_eq!(usage.used, extents.iter().map(|extent| extent.end - extent.start).sum::<u64>());
    assert_eq!(usage.block_size.to_string(), disk.said("Block size"));
    assert_eq!((usage.size / u64::from(usage.block_size)).to_string(), disk.said("Block count"));
    assert_eq!(usage.format, agree("blkid", &["-p", "-o", "value", "-s", "TYPE", disk.path()]).trim());
    let free: u64 = disk.said("Free blocks").parse().unwrap();
    (usage.size / u64::from(usage.block_size) - free - usage.used / u64::from(usage.block_size), extents)
}

/// A blank device with what is used of another.
fn copy(disk: &Disk, extents: &[std::ops::Range<u64>]) -> Disk {
    let from = disk.open();
    let copy = Disk::new(from.geometry().size, disk.logical_block_size);
    let to = copy.open();
    for extent in extents {
        let mut bytes = vec![0; (extent.end - extent.start) as usize];
        from.read_at(extent.start, &mut bytes).unwrap();
        to.write_at(extent.start, &bytes).unwrap();
    }
    copy
}

#[test]
fn what_dumpe2fs_calls_used_is_used_and_enough_for_a_copy() {
    let tree = tempfile::tempdir().unwrap();
    grow_tree(tree.path(), 200, 30_000, &mut Random(5));
    for (index, (options, mib)) in SORTS.into_iter().enumerate() {
        let mut disk = Disk::made(mib * MIB, options, Some(tree.path()));
        if index % 2 == 1 && disk.said("Block size") == "4096" {
            disk.logical_block_size = 4096;
        }
        let (difference, extents) = used_blocks(&disk);
        assert_eq!(difference, 0, "{options}");
        let copy = copy(&disk, &extents);
        copy.assert_clean();
        if !options.contains("-r 1") {
            assert_eq!(copy.tree(), disk.tree(), "{options}");
        }
    }
}

#[test]
fn a_journal_that_was_not_replayed_counts() {
    for options in ["-t ext4 -O ^metadata_csum", "-t ext4 -b 1024", "-t ext3"] {
        let disk = Disk::made(100 * MIB, options, None);
        // A copy of a mounted file system after a sync of a file is one after a cut of the power.
        let frozen = disk.mounted("rw", |root| {
            grow_tree(&root.join("lost+found"), 300, 9000, &mut Random(11));
            let file = std::fs::File::open(root.join("lost+found/big")).unwrap();
            file.sync_all().unwrap();
            disk.copied()
        });
        assert!(agree("dumpe2fs", &["-h", frozen.path()]).contains("needs_recovery"), "{options}");
        let mut extents = Vec::new();
        ext4::used_extents(&frozen.open(), &mut |extent| {
            extents.push(extent);
            Ok(())
        })
        .unwrap();
        let copy = copy(&frozen, &extents);
        for disk in [&frozen, &copy] {
            agree("e2fsck", &["-E", "journal_only", "-y", disk.path()]);
            // The kernel leaves the totals in the superblock to the next mount; nothing else may be wrong.
            disk.mounted("rw", |_| ());
            disk.assert_clean();
        }
        assert_eq!(copy.tree(), frozen.tree(), "{options}");
        assert!(extents.iter().map(|e| e.end - e.start).sum::<u64>() < 90 * MIB);
    }
}

#[test]
fn a_broken_superblock_and_broken_descriptors_have_copies() {
    for options in [
        "-t ext4 -g 8192",
        "-t ext4 -b 1024 -O meta_bg,^resize_inode",
        "-t ext4 -O sparse_super2,^has_journal -g 8192",
    ] {
        let disk = Disk::made(300 * MIB, options, None);
        let (_, before) = used_blocks(&disk);
        let block: u64 = disk.said("Block size").parse().unwrap();
        let first: u64 = disk.said("First block").parse().unwrap();
        for broken in [1024 + 4, (first + 1) * block + 1] {
            let copy = disk.copied();
            copy.open().write_at(broken, &[0x5A]).unwrap();
            let mut after = Vec::new();
            ext4::used_extents(&copy.open(), &mut |extent| {
                after.push(extent);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{options} broken at {broken}: {e}"));
            assert_eq!(before, after, "{options} broken at {broken}");
        }
    }
}

/// The kernel leaves copies of descriptors as mke2fs made them: they call groups unused that are full.
#[test]
fn copies_of_descriptors_are_not_believed() {
    for options in ["-t ext4 -b 1024 -g 2048", "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg -g 2048"] {
        let disk = Disk::made(40 * MIB, options, None);
        disk.mounted("rw", |root| grow_tree(root, 300, 150_000, &mut Random(4)));
        let (_, before) = used_blocks(&disk);
        disk.open().write_at(2048 + 5 * 64 + 0x0C, &[0x5A]).unwrap();
        let mut after = Vec::new();
        ext4::used_extents(&disk.open(), &mut |extent| {
            after.push(extent);
            Ok(())
        })
        .unwrap();
        let covered = |used: &std::ops::Range<u64>| {
            after.iter().any(|extent| extent.start <= used.start && used.end <= extent.end)
        };
        assert!(before.iter().all(covered), "{options}: {before:?} {after:?}");
        for size in [20, 60] {
            let refused = ext4::plan_resize(&disk.open(), size * MIB).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported, "{options}: {refused}");
            assert!(refused.to_string().contains("e2fsck mends"), "{refused}");
        }
    }
}

/// With the primary superblock, orphans and errors are lost that it named.
#[test]
fn what_has_lost_its_superblock_is_not_resized() {
    let disk = Disk::made(40 * MIB, "-t ext4 -b 1024", None);
    disk.open().write_at(1024 + 0xE9, &[1]).unwrap();
    let refused = ext4::plan_resize(&disk.open(), 30 * MIB).unwrap_err();
    assert!(refused.to_string().contains("broken superblock"), "{refused}");
}

#[test]
fn what_is_no_file_system_is_refused() {
    let refused = |device: &dyn BlockDevice| ext4::used_extents(device, &mut |_| Ok(())).unwrap_err().kind();
    assert_eq!(refused(&Memory::new(1 << 20, 512)), ErrorKind::NotFound);
    let disk = Disk::made(20 * MIB, "-t ext4", None);
    disk.set_len(19 * MIB);
    assert_eq!(refused(&disk.open()), ErrorKind::Corrupt);
    let disk = Disk::made(8 * MIB, "-t ext4 -b 4096", None);
    disk.open().write_at(1024 + 0x60, &[0xC2, 0x02, 0, 0x80]).unwrap();
    assert_eq!(refused(&disk.open()), ErrorKind::Corrupt);
    let disk = Disk::new(20 * MIB, 512);
    agree("mke2fs", &["-q", "-F", "-O", "journal_dev", "-b", "4096", disk.path()]);
    assert_eq!(refused(&disk.open()), ErrorKind::Unsupported);
    // Without checksums the unknown feature itself is what is seen.
    let disk = Disk::made(20 * MIB, "-t ext2", None);
    disk.open().write_at(1024 + 0x60, &[0x02, 0, 0, 0x40]).unwrap();
    assert_eq!(refused(&disk.open()), ErrorKind::Unsupported);
}
