//! Every variant and feature before e2fsck and beside mke2fs; the kernel filling each; what grows them later.

use std::fs::{self, File};
use std::io::{Read, Write};

use uvm_disk::ErrorKind;
use uvm_disk::ext4::{Backups, Checksums, Ext4Builder, Ext4Options, Inodes, Journal, Variant};

use crate::device::{Image, attributes, options, run};
use crate::model::{Model, Random};
use crate::{GIB, MIB};

/// Change of the defaults.
type Change = fn(&mut Ext4Options);

const AS_IS: Change = |_| {};

fn of(variant: Variant, change: Change) -> Ext4Options {
    let Ext4Options { label, uuid, hash_seed, timestamp, .. } = options();
    let mut options = Ext4Options { label, ..Ext4Options::new(variant, uuid, hash_seed, timestamp) };
    change(&mut options);
    options
}

fn formatted(size: u64, logical_block_size: u32, options: Ext4Options) -> Image {
    let image = Image::new(size, logical_block_size);
    let builder = Ext4Builder::new(image.device.clone(), options).expect("a new file system");
    builder.finish().expect("a finished file system");
    image
}

/// What dumpe2fs says of the superblock and the journal, less what must differ.
fn described(image: &Image) -> Vec<String> {
    let unequal = [
        "Filesystem created:",
        "Last write time:",
        "Last checked:",
        "Lifetime writes:",
        // Ours are sized and placed as mke2fs does, their numbers are our own.
        "Journal sequence:",
        "Journal start:",
        "Checksum:",
    ];
    let dump = image.dumpe2fs();
    let lines = dump.lines().filter(|line| !unequal.iter().any(|field| line.starts_with(field)));
    lines.map(str::to_string).collect()
}

#[test]
fn superblocks_say_what_those_of_mke2fs_say() {
    let narrow: Change = |o| {
        (o.features.checksums, o.features.sixty_four_bit) = (Checksums::Descriptors, false);
    };
    for (variant, size, change, arguments) in [
        (Variant::Ext2, 64 * MIB, AS_IS, "-t ext2 -b 4096"),
        (Variant::Ext2, 700 * MIB, AS_IS, "-t ext2"),
        (Variant::Ext2, 700 * MIB, |o| o.block_size = 1024, "-t ext2 -b 1024"),
        (Variant::Ext2, 700 * MIB, |o| o.block_size = 2048, "-t ext2 -b 2048"),
        (Variant::Ext2, 64 * MIB, |o| o.inode_size = 128, "-t ext2 -b 4096 -I 128"),
        (Variant::Ext2, GIB, |o| o.features.resize_inode = false, "-t ext2 -O ^resize_inode"),
        (Variant::Ext3, 3 * GIB, AS_IS, "-t ext3"),
        (Variant::Ext3, 64 * MIB, |o| o.inodes = Inodes::Count(1000), "-t ext3 -b 4096 -N 1000"),
        (Variant::Ext3, GIB, |o| o.journal = Journal::Bytes(64 << 20), "-t ext3 -J size=64"),
        (Variant::Ext3, GIB, |o| o.features.dir_index = false, "-t ext3 -O ^dir_index"),
        (Variant::Ext4, 64 * MIB, AS_IS, "-t ext4 -b 4096 -O ^resize_inode"),
        (Variant::Ext4, 3 * GIB, AS_IS, "-t ext4 -O ^resize_inode"),
        (Variant::Ext4, 3 * GIB, |o| o.features.resize_inode = true, "-t ext4"),
        (Variant::Ext4, 3 * GIB, |o| o.inode_size = 1024, "-t ext4 -I 1024 -O ^resize_inode"),
        (Variant::Ext4, 3 * GIB, |o| o.flex_groups = Some(64), "-t ext4 -G 64 -O ^resize_inode"),
        (Variant::Ext4, 3 * GIB, |o| o.reserved_percent = 0, "-t ext4 -m 0 -O ^resize_inode"),
        (Variant::Ext4, 3 * GIB, narrow, "-t ext4 -O ^resize_inode,^64bit,^metadata_csum,uninit_bg"),
        (
            Variant::Ext4,
            3 * GIB,
            |o| o.backups = Backups::SparseSuper2,
            "-t ext4 -O ^resize_inode,sparse_super2",
        ),
        (
            Variant::Ext4,
            3 * GIB,
            |o| (o.backups, o.flex_groups) = (Backups::MetaGroups, Some(16)),
            "-t ext4 -O ^resize_inode,meta_bg",
        ),
    ] {
        let ours = formatted(size, 512, of(variant, change));
        let theirs = Image::new(size, 512);
        let path = theirs.path.to_string_lossy().into_owned();
        let identity = "-q -F -L root -U 0b5e55ed-1234-4567-89ab-cdef01234567 -E \
                        hash_seed=5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a";
        let words = identity.split(' ').chain(arguments.split(' ')).filter(|word| !word.is_empty());
        run("mke2fs", &words.chain([&path[..]]).collect::<Vec<_>>());
        ours.assert_clean();
        let (ours, theirs) = (described(&ours), described(&theirs));
        assert_eq!(ours, theirs, "{arguments} on {size}");
    }
}

/// What the kernel does with each; it has one driver for the three, with other rules for each.
#[test]
fn the_kernel_fills_every_variant_and_others_grow_it() {
    let plain: Change = |o| {
        o.features.checksums = Checksums::None;
        o.features.extra_isize = false;
        o.inode_size = 128;
    };
    let mixed: Change = |o| {
        (o.features.extents, o.features.sixty_four_bit) = (false, false);
        (o.features.resize_inode, o.block_size, o.inode_size) = (true, 1024, 1024);
    };
    for (seed, variant, format, logical, change) in [
        (1, Variant::Ext2, "ext2", 512, AS_IS),
        (2, Variant::Ext2, "ext2", 512, |o| (o.block_size, o.inode_size) = (1024, 128)),
        (3, Variant::Ext3, "ext3", 4096, AS_IS),
        (4, Variant::Ext3, "ext3", 512, |o| (o.block_size, o.features.resize_inode) = (2048, false)),
        (5, Variant::Ext4, "ext4", 4096, |o| o.features.resize_inode = true),
        (6, Variant::Ext4, "ext4", 512, |o| {
            (o.features.checksums, o.flex_groups) = (Checksums::Descriptors, Some(1));
        }),
        (7, Variant::Ext4, "ext4", 512, |o| o.backups = Backups::SparseSuper2),
        (8, Variant::Ext4, "ext4", 4096, |o| o.backups = Backups::MetaGroups),
        (9, Variant::Ext4, "ext4", 512, plain),
        (10, Variant::Ext4, "ext4", 512, mixed),
    ] {
        println!("case {seed}");
        let options = of(variant, change);
        let block_size = options.block_size;
        let image = Image::new(160 * MIB, logical);
        let old_times = options.inode_size == 128;
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        let mut random = Random(seed);
        let model = Model::build(&mut builder, &mut random, if old_times { 0 } else { 120 }, block_size);
        let root = builder.root();
        let large: Vec<u8> = random.bytes(20 << 20);
        builder
            .create_file(root, b"large", attributes(0o644), large.len() as u64, &mut &large[..])
            .expect("room");
        builder.finish().expect("finished");
        image.assert_clean();
        let mounted = image.mount_as(format);
        assert!(fs::read(mounted.path().join("large")).expect("reads") == large);
        if !old_times {
            fs::rename(mounted.path().join("large"), mounted.path().join("lost+found/large")).expect("moved");
            model.compare_mounted(root, mounted.path());
        }
        churn(&mounted.path().join("churn"), &mut random);
        drop(mounted);
        image.assert_clean();
        File::options().write(true).open(&image.path).expect("opens").set_len(420 * MIB).expect("grows");
        run("e2fsck", &["-fp", &image.path.to_string_lossy()]);
        run("resize2fs", &[&image.path.to_string_lossy()]);
        image.assert_clean();
        run("e2fsck", &["-fyD", &image.path.to_string_lossy()]);
        image.assert_clean();
        let mounted = image.mount_as(format);
        churn(&mounted.path().join("churn"), &mut random);
        drop(mounted);
        image.assert_clean();
    }
}

/// Creates, writes, renames and removes for a while.
fn churn(below: &std::path::Path, random: &mut Random) {
    for index in 0..300 {
        let dir = below.join(format!("dir{}", random.below(7)));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join(format!("{index:0>60}"));
        let mut file = File::create(&path).expect("a file");
        let length = random.below(200_000) as usize;
        file.write_all(&random.bytes(length)).expect("room");
        match random.below(4) {
            0 => fs::remove_file(&path).expect("removed"),
            1 => fs::rename(&path, below.join(format!("moved{index}"))).expect("renamed"),
            2 => file.set_len(length as u64 / 2).expect("cut"),
            _ => {}
        }
    }
    fs::remove_dir_all(below.join("dir3")).ok();
}

/// A file through all levels of a block map, as the kernel reads it, and a hole at each of them.
#[test]
fn block_maps_reach_the_end_of_large_files() {
    let image = Image::new(200 * MIB, 512);
    let mut builder =
        Ext4Builder::new(image.device.clone(), of(Variant::Ext2, |o| o.block_size = 1024)).expect("new");
    let root = builder.root();
    // Past the 12 + 256 + 65536 blocks of the first three levels.
    let mut dense = Random(4).bytes(80 << 20);
    dense[70_000..200_000].fill(0);
    dense[300_000..30_000_000].fill(0);
    dense[68_000_000..69_000_000].fill(0);
    let mut create = |name: &[u8], size: u64, contents: &mut dyn Read| {
        builder.create_file(root, name, attributes(0o644), size, contents).map(|_| ())
    };
    create(b"dense", dense.len() as u64, &mut &dense[..]).expect("room");
    let far = 3 * GIB;
    create(b"far", far + 5, &mut std::io::repeat(0).take(far).chain(&b"there"[..])).expect("room");
    // 12 + 256 + 256^2 + 256^3 blocks is all a block map has.
    let largest = (12 + 256 + 65_536 + 16_777_216) * 1024;
    let error = create(b"large", largest + 1, &mut std::io::repeat(0)).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    builder.finish().expect("finished");
    image.assert_clean();
    let mounted = image.mount_as("ext2");
    assert!(fs::read(mounted.path().join("dense")).expect("reads") == dense);
    let mut end = Vec::new();
    let mut file = File::open(mounted.path().join("far")).expect("opens");
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(far - 2)).expect("seeks");
    file.read_to_end(&mut end).expect("reads");
    drop(file);
    assert_eq!(end, b"\0\0there");
    // The kernel fills the holes.
    let file = File::options().write(true).open(mounted.path().join("dense")).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, &[7; 100_000], 1_000_000).expect("writes");
    fs::remove_file(mounted.path().join("far")).expect("removed");
    drop((file, mounted));
    image.assert_clean();
}

/// From sizes that nothing fits to those that all does, by steps that are no multiple of a block.
#[test]
fn the_smallest_are_refused_or_sound() {
    for (block_size, variant) in [(1024, Variant::Ext2), (4096, Variant::Ext4), (2048, Variant::Ext3)] {
        let (mut refused, mut made) = (0, 0);
        let mut size = 512;
        while size < 12 * MIB {
            let image = Image::new(size, 512);
            let options = Ext4Options { block_size, ..of(variant, AS_IS) };
            match Ext4Builder::new(image.device.clone(), options) {
                Ok(builder) => {
                    builder.finish().expect("what begins ends");
                    image.assert_clean();
                    made += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                    let writes = image.device.writes.lock().expect("no panic").len();
                    let zeroes = image.device.zeroes.lock().expect("no panic").len();
                    assert_eq!((made, writes + zeroes), (0, 0), "{size}: refused late: {error}");
                    refused += 1;
                }
            }
            size = (size * 8 / 7 + 512) / 512 * 512;
        }
        assert!(refused > 5 && made > 2, "{refused} refused, {made} made");
    }
}

fn random_options(random: &mut Random) -> (u64, u32, Ext4Options) {
    let variant = [Variant::Ext2, Variant::Ext3, Variant::Ext4, Variant::Ext4][random.below(4) as usize];
    let mut o = of(variant, AS_IS);
    let logical = [512, 512, 4096][random.below(3) as usize];
    o.block_size = if logical == 4096 { 4096 } else { [1024, 2048, 4096][random.below(3) as usize] };
    o.inode_size = [128, 256, 256, 512, 1024][random.below(5) as usize];
    o.features.extra_isize &= o.inode_size > 128;
    o.inodes = match random.below(3) {
        0 => Inodes::Automatic,
        1 => Inodes::Ratio(1024 << random.below(10)),
        _ => Inodes::Count(12 + random.below(40_000) as u32),
    };
    o.reserved_percent = random.below(51) as u8;
    if random.below(4) == 0 {
        o.journal = Journal::Bytes(u64::from(o.block_size) * (1024 + random.below(4000)));
    }
    o.flex_groups = Some(1 << random.below(8));
    o.backups = [Backups::Automatic, Backups::SparseSuper, Backups::SparseSuper2, Backups::MetaGroups]
        [random.below(4) as usize];
    let checksums = [Checksums::None, Checksums::Descriptors, Checksums::Metadata];
    o.features.checksums = checksums[random.below(3) as usize];
    o.features.resize_inode = random.below(2) == 0;
    o.features.dir_index = random.below(4) > 0;
    if random.below(4) == 0 {
        (o.features.extents, o.features.sixty_four_bit) = (false, false);
    }
    (o.features.huge_file, o.features.dir_nlink) = (random.below(2) == 0, random.below(2) == 0);
    o.root_owner = (random.below(70_000) as u32, random.below(70_000) as u32);
    let most = if o.features.checksums == Checksums::None { 9 } else { 12 };
    let size = (MIB << random.below(most)) + random.below(20 * MIB);
    (size / u64::from(logical) * u64::from(logical), logical, o)
}

fn random_formats(seeds: std::ops::Range<u64>) {
    let count = seeds.end - seeds.start;
    let mut made = 0;
    for seed in seeds {
        let mut random = Random(seed * 0x9E37_79B9 + 1);
        let (size, logical, options) = random_options(&mut random);
        let image = Image::new(size, logical);
        let block_size = options.block_size;
        let described = format!("seed {seed}: {size} bytes, {options:?}");
        let mut builder = match Ext4Builder::new(image.device.clone(), options) {
            Ok(builder) => builder,
            Err(error) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::NoSpace), "{described}: {error}");
                continue;
            }
        };
        println!("{described}");
        made += 1;
        if size > 80 * MIB && seed % 2 == 0 {
            Model::build(&mut builder, &mut random, 40, block_size);
        }
        builder.finish().expect("finished");
        image.assert_clean();
    }
    assert!(made >= count / 3, "only {made} of {count} could be made");
}

#[test]
fn random_sizes_and_options_are_clean() {
    random_formats(0..40);
}

#[test]
#[ignore = "minutes of e2fsck"]
fn many_random_sizes_and_options_are_clean() {
    random_formats(1000..1600);
}

/// An earlier file system's log must never be taken for the new one's.
#[test]
fn an_old_log_is_zeroed_and_the_new_one_begins_elsewhere() {
    let image = Image::new(64 * MIB, 512);
    let format = |options| {
        Ext4Builder::new(image.device.clone(), options).expect("new").finish().expect("finished");
        image.assert_clean();
    };
    let logs = || {
        let bytes = fs::read(&image.path).expect("reads");
        bytes.chunks(4096).filter(|block| block.starts_with(&[0xC0, 0x3B, 0x39, 0x98])).count()
    };
    let sequence = || {
        let dump = image.dumpe2fs();
        let line = dump.lines().find(|line| line.starts_with("Journal sequence:")).expect("a journal");
        u32::from_str_radix(line[17..].trim().trim_start_matches("0x"), 16).expect("a number")
    };
    format(of(Variant::Ext4, AS_IS));
    let first = sequence();
    assert!(logs() == 1 && (1 << 30..1 << 31).contains(&first), "{first}");
    let mounted = image.mount();
    churn(mounted.path(), &mut Random(1));
    drop(mounted);
    assert!(logs() > 2, "the kernel used the journal");
    format(of(Variant::Ext4, AS_IS));
    assert_eq!((logs(), sequence()), (1, first), "the same again");
    format(of(Variant::Ext4, |o| o.timestamp += 1));
    assert_ne!(sequence(), first);
}

/// Counts what formatting writes. What it makes zeros, a device may do by itself: mke2fs has 64 GiB discarded and a
/// journal of 512 MiB zeroed in the same way.
#[test]
fn formatting_writes_half_of_what_mke2fs_writes() {
    // What strace counts of mke2fs 1.47 with its defaults.
    for (size, theirs) in [(64 * GIB, 4_830_208), ((16 << 40) - MIB, 243_377_152)] {
        let image = formatted(size, 512, of(Variant::Ext4, AS_IS));
        let sum = |list: &std::sync::Mutex<Vec<(u64, u64)>>| -> (usize, u64) {
            let list = list.lock().expect("no panic");
            (list.len(), list.iter().map(|(_, length)| length).sum())
        };
        let ((writes, written), (_, zeroed)) = (sum(&image.device.writes), sum(&image.device.zeroes));
        println!("{size}: {written} bytes in {writes} writes, {zeroed} zeroed");
        assert!(written <= theirs / 2, "{written} written for {size}, {theirs} by mke2fs");
        assert_eq!(zeroed, 2 * MIB, "both ends");
    }
}

#[test]
#[ignore = "minutes of e2fsck"]
fn the_largest_are_clean() {
    let largest = (16 << 40) - MIB;
    let narrow: Change = |o| (o.block_size, o.inodes) = (1024, Inodes::Ratio(1 << 20));
    let two: Change = |o| o.backups = Backups::SparseSuper2;
    for (size, change) in [(64 * GIB, AS_IS), (largest, AS_IS), (largest, two), (2 << 40, narrow)] {
        formatted(size, 512, of(Variant::Ext4, change)).assert_clean();
    }
}
