//! Growing.

use uvm_disk::ext4::{self, ResizePlan};

use crate::judge::agree;
use crate::support::{Disk, MIB, Random, grow_tree};

/// Options of mke2fs, the size before and the size after in MiB.
const SORTS: [(&str, u64, u64); 17] = [
    ("-t ext4", 40, 400),
    ("-t ext4", 8, 9),
    ("-t ext4 -b 4096", 600, 5000),
    ("-t ext4 -b 1024", 60, 61),
    ("-t ext4 -b 2048 -O ^metadata_csum,uninit_bg", 60, 900),
    ("-t ext4 -b 4096 -O ^has_journal", 100, 700),
    ("-t ext4 -O meta_bg,^resize_inode -b 1024", 200, 500),
    ("-t ext4 -b 1024 -O ^resize_inode", 30, 300),
    ("-t ext4 -b 1024 -E resize=100000", 30, 400),
    ("-t ext4 -b 4096 -O sparse_super2,^resize_inode", 300, 700),
    ("-t ext4 -b 4096 -O sparse_super2", 300, 10_000),
    ("-t ext4 -O ^flex_bg", 300, 1000),
    ("-t ext4 -O ^64bit,^sparse_super,^resize_inode -g 8192", 300, 1100),
    ("-t ext4 -O inline_data,metadata_csum_seed,project -I 512", 100, 333),
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
