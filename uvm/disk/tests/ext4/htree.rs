//! Directories with an index: e2fsck reads every hash, the kernel looks every name up and goes on writing.

use std::fs;
use std::io;
use std::process::Command;

use uvm_disk::ext4::{Ext4Builder, Ext4Options, Ino};

use crate::device::{Image, attributes, options, run};
use crate::{GIB, MIB};

/// Numbers whose names, put to 250 bytes by [`padded`], have the same hash under the seed of the tests: all
/// pairs among the first 330,000.
const SAME_HASH: [(u32, u32); 24] = [
    (39_872, 239_823),
    (49_844, 278_352),
    (97_349, 226_079),
    (52_606, 280_565),
    (22_815, 120_818),
    (107_689, 249_602),
    (70_105, 118_607),
    (112_027, 253_411),
    (119_479, 177_018),
    (103_030, 262_736),
    (190_364, 319_435),
    (5_154, 285_695),
    (126_112, 298_641),
    (168_226, 179_470),
    (150_709, 283_446),
    (988, 105_784),
    (50_275, 51_462),
    (169_218, 309_003),
    (267_551, 275_192),
    (124_638, 225_179),
    (38_651, 103_211),
    (43_843, 302_463),
    (164_111, 202_115),
    (119_846, 204_427),
];

fn padded(index: u32) -> String {
    format!("{index:x>250}")
}

/// Hard links to one file: names without inodes.
fn fill(builder: &mut Ext4Builder, name: &str, names: impl Iterator<Item = String>) -> Ino {
    let root = builder.root();
    let dir = builder.create_dir(root, name.as_bytes(), attributes(0o755)).expect("room");
    let mut file = None;
    for (index, name) in names.enumerate() {
        if index % 60_000 == 0 {
            let made = builder.create_file(dir, name.as_bytes(), attributes(0o644), 0, &mut io::empty());
            file = Some(made.expect("room"));
        } else if let Some(file) = file {
            builder.link(dir, name.as_bytes(), file).expect("room");
        }
    }
    dir
}

/// Every name, none beside them; then names go and come, and e2fsck has nothing to say.
fn kernel_agrees(image: &Image, dir: &str, names: &[String]) {
    let mounted = image.mount();
    let path = mounted.path().join(dir);
    assert_eq!(fs::read_dir(&path).expect("reads").count(), names.len());
    for name in names {
        assert!(fs::symlink_metadata(path.join(name)).is_ok(), "{name} is not found");
    }
    for name in names.iter().take(100) {
        assert!(fs::symlink_metadata(path.join(format!("{name}~"))).is_err());
    }
    for name in names.iter().step_by(3) {
        fs::remove_file(path.join(name)).expect("removed");
    }
    // No file has more than 65,000 links.
    for index in 0..(names.len() / 2).min(4000) {
        fs::hard_link(path.join(&names[1]), path.join(format!("the kernel's {index}"))).expect("linked");
    }
    drop(mounted);
    image.assert_clean();
}

#[test]
fn an_index_comes_with_the_second_block() {
    for (block_size, logical_block_size) in [(1024, 512), (2048, 512), (4096, 512), (4096, 4096)] {
        let image = Image::new(256 * MIB, logical_block_size);
        let options = Ext4Options { block_size, ..options() };
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        // Around the end of the first block, where one level of the index ends, and where it is half full.
        let one = (block_size - 12 - 24) / 20;
        let leaf = (block_size - 12) / 8 * 7 / 20;
        let level = leaf * ((block_size - 32 - 8) / 8);
        let counts = [1, one - 1, one, one + 1, 2 * leaf, level / 2, level - leaf, level + leaf];
        // Of 4096 bytes only the first level: the second begins at 90,000 names.
        let counts = if block_size < 4096 { &counts[..] } else { &counts[..6] };
        let name = |index: u32| format!("{index:0>11}x");
        for count in counts {
            fill(&mut builder, &format!("dir{count}"), (0..*count).map(name));
        }
        builder.finish().expect("finished");
        image.assert_clean();
        let htree = |count: u32| {
            let asked = format!("htree_dump /dir{count}");
            let output = Command::new("debugfs").args(["-R", &asked]).arg(&image.path).output();
            String::from_utf8_lossy(&output.expect("debugfs is installed").stdout).into_owned()
        };
        assert!(!htree(one).contains("Root node dump"), "one block");
        assert!(htree(one + 1).contains("Indirect levels: 0"), "{}", htree(one + 1));
        if block_size < 4096 {
            assert!(htree(level - leaf).contains("Indirect levels: 0"));
            assert!(htree(level + leaf).contains("Indirect levels: 1"));
        }
        let last = counts[counts.len() - 1];
        let names: Vec<_> = (0..last).map(name).collect();
        kernel_agrees(&image, &format!("dir{last}"), &names);
    }
}

#[test]
fn names_of_one_hash_may_lie_in_two_blocks() {
    let image = Image::new(64 * MIB, 512);
    let options = Ext4Options { block_size: 1024, ..options() };
    let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
    let pairs = SAME_HASH.iter().flat_map(|(one, other)| [*one, *other]);
    let names: Vec<_> = pairs.chain(400_000..400_200).map(padded).collect();
    fill(&mut builder, "pairs", names.iter().cloned());
    builder.finish().expect("finished");
    image.assert_clean();
    let dump = image.debugfs("htree_dump /pairs");
    let keys = dump.lines().filter_map(|line| line.split_once("Hash 0x")?.1.split(',').next());
    let continued = keys.filter(|key| u32::from_str_radix(key, 16).is_ok_and(|key| key & 1 == 1)).count();
    assert!(continued >= 2, "no hash goes on in a second block:\n{dump}");
    kernel_agrees(&image, "pairs", &names);
}

#[test]
fn e2fsck_has_nothing_to_optimize() {
    let image = Image::new(256 * MIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let counts = [50, 500, 5000, 50_000];
    for count in counts {
        let names = (0..count).map(|index: u32| format!("{:x}-{index}", index.wrapping_mul(2_654_435_761)));
        fill(&mut builder, &format!("dir{count}"), names);
    }
    builder.finish().expect("finished");
    image.assert_clean();
    let size = |count: u32| {
        let stat = image.debugfs(&format!("stat /dir{count}"));
        let size = stat.split_once("Size: ").and_then(|(_, rest)| rest.split_whitespace().next());
        size.and_then(|size| size.parse::<u64>().ok()).expect("debugfs says the size")
    };
    let before = counts.map(size);
    // 1: it changed something, as it was told to.
    let status = Command::new("e2fsck").args(["-fyD"]).arg(&image.path).status().expect("e2fsck");
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    let after = counts.map(size);
    assert!(before.iter().zip(&after).all(|(ours, theirs)| ours <= theirs), "{before:?} and {after:?}");
    image.assert_clean();
}

#[test]
fn more_names_than_an_index_has_room_for_are_refused() {
    let image = Image::new(256 * MIB, 512);
    let options = Ext4Options { block_size: 1024, ..options() };
    let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
    let root = builder.root();
    let file = builder.create_file(root, b"file", attributes(0o644), 0, &mut io::empty()).expect("room");
    let error = (0..64_000).find_map(|index| builder.link(root, padded(index).as_bytes(), file).err());
    let error = error.expect("some 3 names to a block, and 15,000 blocks");
    assert_eq!(error.kind(), uvm_disk::ErrorKind::NoSpace);
    assert!(error.to_string().contains("two levels"), "{error}");
    builder.finish().expect("finished");
    image.assert_clean();
}

/// A million names of a directory.
#[test]
#[ignore = "a minute of the kernel's"]
fn a_million_names() {
    let image = Image::new(4 * GIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let names: Vec<_> = (0..1_000_000).map(|index| format!("file number {index}")).collect();
    fill(&mut builder, "many", names.iter().cloned());
    builder.finish().expect("finished");
    image.assert_clean();
    kernel_agrees(&image, "many", &names);
    assert!(run("dumpe2fs", &["-h", &image.path.to_string_lossy()]).contains("dir_index"));
}
