//! Growing.

use std::sync::Arc;

use uvm_disk::ext4::{self, Attributes, Backups, Ext4Builder, Ext4Options, ResizePlan, Timestamp, Variant};

use crate::judge::agree;
use crate::support::{Disk, MIB, Random, grow_tree};

/// Options of mke2fs, the size before and the size after in MiB.
const SORTS: [(&str, u64, u64); 18] = [
    ("-t ext4", 40, 400),
    ("-t ext4", 8, 9),
    ("-t ext4 -b 4096", 600, 5000),
    ("-t ext4 -b 1024", 60, 61),
    ("-t ext4 -b 2048 -O ^metadata_csum,uninit_bg", 60, 900),
    ("-t ext4 -b 4096 -O ^has_journal", 100, 700),
    ("-t ext4 -O meta_bg,^resize_inode -b 1024", 200, 500),
    ("-t ext4 -b 1024 -O ^resize_inode", 30, 300),
    ("-t ext4 -b 1024 -E resize=100000", 30, 400),
    // More reserved blocks than one transaction of the journal takes.
    ("-t ext4 -b 4096 -E resize=4294967295", 100, 700),
    ("-t ext4 -b 4096 -O sparse_super2,^resize_inode", 300, 700),
    ("-t ext4 -b 4096 -O sparse_super2", 300, 10_000),
    ("-t ext4 -O ^flex_bg", 300, 1000),
    ("-t ext4 -O ^64bit,^sparse_super,^resize_inode -g 8192", 300, 1100),
    ("-t ext4 -O inline_data,metadata_csum_seed -I 512", 100, 333),
    ("-t ext3 -b 1024", 50, 700),
    ("-t ext2 -b 1024", 9, 300),
    ("-t ext2 -b 4096 -N 512 -O ^resize_inode,^dir_index", 40, 4000),
];

pub(crate) fn resize(disk: &Disk, size: u64) -> ResizePlan {
    let device = disk.open();
    let plan = ext4::plan_resize(&device, size).unwrap_or_else(|e| panic!("planning {size}: {e}"));
    let mut last = 0;
    ext4::resize(&device, &plan, &mut |done, whole| {
        assert!(done >= last && done <= whole && whole == plan.bytes_to_write);
        last = done;
    })
    .unwrap_or_else(|e| panic!("resizing to {size}: {e}: {:?}", std::error::Error::source(&e)));
    assert_eq!(last, plan.bytes_to_write);
    plan
}

#[test]
fn whatever_mke2fs_makes_grows() {
    let folder = tempfile::tempdir().unwrap();
    grow_tree(folder.path(), 100, 20_000, &mut Random(3));
    for (index, (options, before, after)) in SORTS.into_iter().enumerate() {
        let mut disk = Disk::made(before * MIB, options, Some(folder.path()));
        let block: u64 = disk.said("Block size").parse().unwrap();
        if index % 2 == 1 && block == 4096 {
            disk.logical_block_size = 4096;
        }
        let tree = disk.tree();
        let inodes: u64 = disk.said("Inode count").parse().unwrap();
        disk.set_len(after * MIB);
        let plan = resize(&disk, after * MIB);
        disk.assert_clean();
        let blocks: u64 = disk.said("Block count").parse().unwrap();
        assert_eq!(blocks * block, plan.new_size, "{options}");
        assert!(after * MIB - plan.new_size < 9 * MIB, "{options}: {plan:?}");
        assert!(disk.said("Inode count").parse::<u64>().unwrap() >= inodes);
        assert_eq!(disk.tree(), tree, "{options}");
        // So does each copy of the superblock say.
        let groups = agree("dumpe2fs", &[disk.path()]);
        for copy in groups.split("Backup superblock at ").skip(1) {
            let place = &copy[..copy.find([',', '\n']).unwrap()];
            let (place, size) = (format!("superblock={place}"), format!("blocksize={block}"));
            let said = agree("dumpe2fs", &["-h", "-o", &place, "-o", &size, disk.path()]);
            assert!(said.contains(&format!("Block count:              {blocks}\n")), "{options}: {said}");
        }
        // The kernel uses all of it.
        disk.mounted("rw", |root| grow_tree(&root.join("lost+found"), 60, 100_000, &mut Random(9)));
        disk.assert_clean();
    }
}

/// Blocks that 32 bits number, which a superblock of 32 bits cannot count.
#[test]
fn up_to_16_tib() {
    for (options, fits) in [("-t ext4 -O 64bit", true), ("-t ext4 -O ^64bit", false)] {
        let disk = Disk::made(20 * MIB, &format!("{options} -b 4096"), None);
        let plan = |blocks: u64| ext4::plan_resize(&disk.open(), blocks * 4096);
        assert_eq!(plan(1 << 32).is_ok(), fits, "{options}");
        assert_eq!(plan((1 << 32) - 1).unwrap().new_size, ((1 << 32) - 1) * 4096);
        assert_eq!(plan((1 << 32) + 100_000).unwrap_err().kind(), uvm_disk::ErrorKind::Unsupported);
    }
}

/// A file system of our own making with some files.
fn built(size: u64, options: Ext4Options, logical_block_size: u32) -> Disk {
    let disk = Disk::new(size, logical_block_size);
    let mut builder = Ext4Builder::new(Arc::new(disk.open()), options).unwrap();
    let root = builder.root();
    let time = Timestamp { seconds: 1_600_000_000, nanoseconds: 0 };
    let attributes = Attributes { mode: 0o644, uid: 0, gid: 0, mtime: time };
    for number in 0..300_u64 {
        let (name, size) = (format!("file{number}"), number * 37 % 9000);
        let contents = &mut std::io::repeat(number as u8);
        builder.create_file(root, name.as_bytes(), attributes, size, contents).unwrap();
    }
    builder.finish().unwrap();
    disk
}

#[test]
fn what_we_made_grows_by_us_and_by_resize2fs_in_turn() {
    let options = |variant| Ext4Options::new(variant, [7; 16], [9; 16], 1_700_000_000);
    let ext4 = options(Variant::Ext4);
    for (options, sizes, logical_block_size) in [
        (ext4.clone(), [20, 300, 700, 3000], 512),
        (Ext4Options { block_size: 4096, ..ext4.clone() }, [100, 101, 500, 501], 4096),
        (Ext4Options { backups: Backups::MetaGroups, ..ext4.clone() }, [40, 600, 900, 2000], 512),
        (Ext4Options { backups: Backups::SparseSuper2, ..ext4 }, [40, 600, 900, 2000], 512),
        (options(Variant::Ext3), [20, 300, 700, 3000], 512),
        (options(Variant::Ext2), [20, 300, 700, 3000], 512),
    ] {
        let disk = built(sizes[0] * MIB, options, logical_block_size);
        let tree = disk.tree();
        for (turn, size) in sizes.into_iter().enumerate().skip(1) {
            disk.set_len(size * MIB);
            if turn % 2 == 1 {
                resize(&disk, size * MIB);
            } else {
                agree("resize2fs", &[disk.path()]);
            }
            disk.assert_clean();
            assert_eq!(disk.tree(), tree, "{size} MiB");
        }
        disk.mounted("rw", |root| grow_tree(&root.join("lost+found"), 60, 100_000, &mut Random(9)));
        disk.assert_clean();
    }
}

#[test]
fn what_we_made_becomes_larger_and_smaller() {
    let options = |variant| Ext4Options::new(variant, [7; 16], [9; 16], 1_700_000_000);
    let ext4 = options(Variant::Ext4);
    for (options, logical_block_size) in [
        (ext4.clone(), 512),
        (Ext4Options { block_size: 1024, ..ext4.clone() }, 512),
        (Ext4Options { backups: Backups::MetaGroups, ..ext4.clone() }, 4096),
        (Ext4Options { backups: Backups::SparseSuper2, ..ext4 }, 512),
        (options(Variant::Ext3), 4096),
    ] {
        let disk = built(100 * MIB, options, logical_block_size);
        disk.mounted("rw", |root| grow_tree(&root.join("lost+found"), 200, 200_000, &mut Random(5)));
        let tree = disk.tree();
        // Ours at every other turn, and resize2fs, which asks for e2fsck first unless it is forced.
        for (turn, size) in [900, 400, 120, 500, 90, 300, 80].into_iter().enumerate() {
            // resize2fs cuts the file.
            disk.set_len(900 * MIB);
            if turn % 3 == 1 {
                agree("resize2fs", &["-f", disk.path(), &format!("{size}M")]);
            } else {
                resize(&disk, size * MIB);
            }
            disk.assert_clean();
            assert_eq!(disk.tree(), tree, "{size} MiB");
        }
        disk.mounted("rw", |root| churn(root, 200, &mut Random(6)));
        disk.assert_clean();
    }
}

/// Creates, overwrites, cuts, renames and removes files, as many seeds as steps.
fn churn(root: &std::path::Path, steps: u64, random: &mut Random) {
    use std::fs;
    let folder = root.join("churn");
    fs::create_dir_all(&folder).unwrap();
    for _ in 0..steps {
        let path = folder.join(random.below(40).to_string());
        let other = folder.join(random.below(40).to_string());
        match random.below(6) {
            0 => drop(fs::remove_file(&path)),
            1 => drop(fs::rename(&path, &other)),
            2 => drop(fs::hard_link(&path, &other)),
            3 => drop(fs::File::options().write(true).open(&path).map(|f| f.set_len(random.below(50_000)))),
            _ => fs::write(&path, vec![random.below(256) as u8; random.below(200_000) as usize]).unwrap(),
        }
    }
}

fn random_growth(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9) | 1);
        for _ in 0..8 {
            random.below(2);
        }
        let mut choose = |from: &[&'static str]| from[random.below(from.len() as u64) as usize];
        let options = [
            choose(&["-t ext4", "-t ext4", "-t ext3", "-t ext2"]),
            choose(&["-b 1024", "-b 2048", "-b 4096"]),
            choose(&["", "-I 256", "-I 512"]),
            choose(&["", "-O ^resize_inode", "-O ^has_journal"]),
            choose(&["", "-i 4096", "-N 333"]),
        ]
        .join(" ");
        let folder = tempfile::tempdir().unwrap();
        grow_tree(folder.path(), random.below(60), 30_000, &mut random.clone());
        let mut size = 24 * MIB + random.below(60) * MIB + random.below(2048) * 512;
        let disk = Disk::made(size, &options, Some(folder.path()));
        let tree = disk.tree();
        for _ in 0..3 {
            size += random.below(300) * MIB + random.below(2048) * 512;
            println!("seed {seed}: {options} to {size}");
            disk.set_len(size);
            resize(&disk, size);
            disk.assert_clean();
        }
        assert_eq!(disk.tree(), tree, "{options}");
        disk.mounted("rw", |root| churn(root, 200, &mut random));
        disk.assert_clean();
    }
}

#[test]
fn random_file_systems_grow() {
    random_growth(0..8);
}

#[test]
#[ignore = "minutes: a hundred random file systems"]
fn many_random_file_systems_grow() {
    random_growth(8..108);
}
