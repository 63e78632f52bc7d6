//! Shrinking.

use uvm_disk::ext4;

use crate::grow::resize;
use crate::judge::agree;
use crate::support::{Disk, MIB, Random, grow_tree};

/// Options of mke2fs, the size before and the size after in MiB.
const SORTS: [(&str, u64, u64); 18] = [
    ("-t ext4 -b 4096", 400, 300),
    ("-t ext4 -b 1024", 60, 45),
    ("-t ext4 -b 1024 -J size=2", 60, 20),
    ("-t ext4 -b 2048 -O ^metadata_csum,uninit_bg", 200, 150),
    ("-t ext4 -b 4096 -O meta_bg,^resize_inode -g 2048 -N 20000", 300, 200),
    ("-t ext4 -b 1024 -O ^resize_inode -N 2000", 300, 170),
    ("-t ext4 -b 1024 -E resize=1000000", 100, 60),
    ("-t ext4 -b 1024 -O sparse_super2,^resize_inode", 200, 130),
    ("-t ext4 -b 4096 -O ^flex_bg -g 4096", 300, 200),
    ("-t ext4 -O ^64bit,^sparse_super,^resize_inode -g 8192", 300, 170),
    ("-t ext4 -O inline_data,metadata_csum_seed -I 512", 300, 200),
    ("-t ext3 -b 1024 -I 128", 100, 70),
    ("-t ext3 -b 4096 -g 1024 -N 4000", 100, 60),
    ("-t ext4 -b 1024 -g 1024 -G 4", 80, 50),
    ("-t ext4 -b 4096", 400, 60),
    ("-t ext3 -b 1024", 200, 40),
    ("-t ext4 -b 2048 -O ^extents,^64bit", 200, 60),
    ("-t ext4 -b 1024 -E stride=4,stripe_width=16", 90, 25),
];

/// Fills the disk, so that files are everywhere, and empties the front of it again.
pub(crate) fn fill(disk: &Disk, seed: u64) {
    disk.mounted("rw", |root| {
        let ballast = root.join("ballast");
        let size = std::fs::metadata(&disk.path).unwrap().len();
        let script = "head -c $1 /dev/zero > $0 2>/dev/null; sync";
        agree("sh", &["-c", script, ballast.to_str().unwrap(), &(size / 2).to_string()]);
        // The kernel spreads folders of the root over the groups.
        for (index, name) in ["tree", "shrub", "hedge", "lawn", "moss", "fern"].into_iter().enumerate() {
            std::fs::create_dir(root.join(name)).unwrap();
            grow_tree(&root.join(name), 40, 40_000, &mut Random(seed + index as u64));
        }
        // With an index, and in a folder of its own group.
        let names = root.join("names");
        std::fs::create_dir(&names).unwrap();
        for number in 0..400 {
            std::fs::write(names.join(format!("{number:0100}")), b"").unwrap();
        }
        let shared = root.join("tree/shared");
        std::fs::write(&shared, b"y").unwrap();
        let value = "w".repeat(700);
        agree("setfattr", &["-n", "user.long", "-v", &value, shared.to_str().unwrap()]);
        for name in ["one", "two", "three"] {
            let copy = root.join("tree").join(name);
            std::fs::write(&copy, name).unwrap();
            agree("setfattr", &["-n", "user.long", "-v", &value, copy.to_str().unwrap()]);
        }
        std::fs::remove_file(&ballast).unwrap();
    });
}

#[test]
fn whatever_mke2fs_makes_shrinks() {
    for (index, (options, before, after)) in SORTS.into_iter().enumerate() {
        let mut disk = Disk::made(before * MIB, options, None);
        let block: u64 = disk.said("Block size").parse().unwrap();
        if index % 2 == 1 && block == 4096 {
            disk.logical_block_size = 4096;
        }
        fill(&disk, 7 + index as u64);
        disk.assert_clean();
        let tree = disk.tree();
        let plan = resize(&disk, after * MIB);
        disk.assert_clean();
        let blocks: u64 = disk.said("Block count").parse().unwrap();
        assert_eq!(blocks * block, plan.new_size, "{options}");
        assert!(plan.minimum_size <= plan.new_size && plan.new_size <= after * MIB);
        disk.set_len(plan.new_size);
        assert_eq!(disk.tree(), tree, "{options}");
        disk.mounted("rw", |root| grow_tree(&root.join("lost+found"), 60, 50_000, &mut Random(9)));
        disk.assert_clean();
        let again = ext4::plan_resize(&disk.open(), plan.new_size).unwrap();
        assert_eq!((again.old_size, again.blocks_to_move), (plan.new_size, 0));
    }
}

/// As small as the plan says it can be, again and again with other files.
#[test]
fn what_the_plan_calls_the_minimum_is_enough() {
    for (seed, options) in
        [(11, "-t ext4 -b 1024"), (12, "-t ext3 -b 4096 -J size=4"), (13, "-t ext4 -b 4096 -g 2048 -G 8")]
    {
        let disk = Disk::made(120 * MIB, options, None);
        fill(&disk, seed);
        let tree = disk.tree();
        let minimum = ext4::plan_resize(&disk.open(), 100 * MIB).unwrap().minimum_size;
        let refused = ext4::plan_resize(&disk.open(), minimum - MIB).unwrap_err();
        assert_eq!(refused.kind(), uvm_disk::ErrorKind::NoSpace, "{refused}");
        let block: u64 = disk.said("Block size").parse().unwrap();
        let said = agree("resize2fs", &["-P", disk.path()]);
        let theirs = said.split("filesystem: ").nth(1).unwrap_or_else(|| panic!("{said}"));
        let theirs: u64 = theirs.lines().next().unwrap().trim().parse().unwrap();
        println!("{options}: {minimum} bytes, resize2fs says {}", theirs * block);
        let plan = resize(&disk, minimum);
        assert_eq!(plan.new_size, minimum, "{options}");
        disk.assert_clean();
        disk.set_len(minimum);
        assert_eq!(disk.tree(), tree, "{options}");
        // And back, so that what is left can grow.
        disk.set_len(70 * MIB);
        resize(&disk, 70 * MIB);
        disk.assert_clean();
        assert_eq!(disk.tree(), tree, "{options}");
    }
}

/// What is known by the numbers of inodes elsewhere than in directories does not go on with others.
#[test]
fn inodes_named_outside_of_directories_keep_their_numbers() {
    for (options, command, what) in [
        ("-t ext4 -O orphan_file", "feature orphan_present", "a list of orphans"),
        ("-t ext4 -O quota,project", "ssv prj_quota_inum 20000", "the inode of project quota"),
        ("-t ext4 -O quota,project", "ssv usr_quota_inum 20000", "the inode of user quota"),
        ("-t ext3", "ssv creator_os 1", "the translators"),
    ] {
        let disk = Disk::made(60 * MIB, &format!("{options} -b 1024 -N 24000"), None);
        assert!(ext4::plan_resize(&disk.open(), 20 * MIB).is_ok(), "{options}");
        agree("debugfs", &["-w", "-R", command, disk.path()]);
        let refused = ext4::plan_resize(&disk.open(), 20 * MIB).unwrap_err();
        assert_eq!(refused.kind(), uvm_disk::ErrorKind::Unsupported);
        assert!(refused.to_string().starts_with(what), "{refused}");
    }
}

/// What cannot be moved is seen before anything is.
#[test]
fn attributes_that_are_none_are_refused_by_the_plan() {
    for place in [5_000_000, 55_000] {
        let disk = Disk::made(60 * MIB, "-t ext3 -b 1024", None);
        agree("debugfs", &["-w", "-R", &format!("sif / file_acl {place}"), disk.path()]);
        let refused = ext4::plan_resize(&disk.open(), 20 * MIB).unwrap_err();
        assert_eq!(refused.kind(), uvm_disk::ErrorKind::Corrupt, "{refused}");
        assert!(refused.to_string().contains("no attributes"), "{refused}");
    }
}

/// Without sparse_super every group has a copy of the descriptors, and all are cut short at once.
#[test]
fn what_no_transaction_holds_is_refused() {
    let options = "-t ext4 -b 1024 -O ^sparse_super,^resize_inode,^64bit -N 8192 -J size=1 -g 256";
    let disk = Disk::made(264 * MIB, options, None);
    let refused = ext4::plan_resize(&disk.open(), 255 * MIB).unwrap_err();
    assert_eq!(refused.kind(), uvm_disk::ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("at once"), "{refused}");
}

/// Random options, fillings and sizes.
fn shrink_randomly(seed: u64, rounds: u64) {
    let mut random = Random(seed);
    let mut pick = |of: &[&'static str]| of[random.below(of.len() as u64) as usize];
    for round in 0..rounds {
        let options = [
            pick(&["-t ext4", "-t ext4", "-t ext3"]),
            pick(&["-b 1024", "-b 2048", "-b 4096"]),
            pick(&["-I 128", "-I 256", "-I 512"]),
            pick(&["", "-g 2048", "-g 1024"]),
            pick(&["-N 4000", "-N 20000"]),
            pick(&["-J size=4", "-J size=6"]),
            pick(&[
                "",
                "-O ^resize_inode",
                "-O sparse_super2,^resize_inode",
                "-O ^sparse_super,^resize_inode",
                "-O meta_bg,^resize_inode",
            ]),
            pick(&["", "-O ^dir_index", "-O filetype"]),
        ]
        .join(" ");
        let disk = Disk::made(90 * MIB, &options, None);
        fill(&disk, seed + round);
        disk.assert_clean();
        let tree = disk.tree();
        let minimum = ext4::plan_resize(&disk.open(), 88 * MIB).unwrap().minimum_size;
        let target = minimum + pick(&["1", "40", "2000", "30000"]).parse::<u64>().unwrap() * 1024;
        let plan = match ext4::plan_resize(&disk.open(), target.min(88 * MIB)) {
            Ok(plan) => plan,
            Err(error) => {
                // A last group too small to be one is left out, which can be too much.
                assert_eq!(error.kind(), uvm_disk::ErrorKind::NoSpace, "{options}: {error}");
                continue;
            }
        };
        resize(&disk, plan.new_size);
        disk.assert_clean();
        disk.set_len(plan.new_size);
        assert_eq!(disk.tree(), tree, "{options} to {}", plan.new_size);
    }
}

#[test]
fn random_file_systems_shrink() {
    shrink_randomly(0x5EED, 5);
}

#[test]
#[ignore = "a minute"]
fn many_random_file_systems_shrink() {
    for seed in 1..6 {
        shrink_randomly(seed * 77, 20);
    }
}
