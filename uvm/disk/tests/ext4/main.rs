//! The ext4 builder before its judges: e2fsck, dumpe2fs, debugfs and, as root, the kernel.

mod device;
mod faults;
mod formats;
mod htree;
#[path = "../judge/mod.rs"]
mod judge;
mod kernel;
mod model;
mod sparse;

use std::io::Read;
use std::sync::Arc;

use device::{Image, attributes, options};
use model::{Model, Random};
use uvm_disk::ext4::{Ext4Builder, Ext4Options, Inodes, Journal, NodeKind};
use uvm_disk::{ErrorKind, Memory};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn every_size_formats_clean() {
    let with = |block_size| Ext4Options { block_size, ..options() };
    let dense = Ext4Options { inodes: Inodes::Ratio(1024), ..options() };
    for (size, logical_block_size, options) in [
        (8 * MIB, 512, options()),
        (8 * MIB, 4096, options()),
        (8 * MIB, 512, with(1024)),
        (3 * MIB, 512, Ext4Options { journal: Journal::None, ..with(1024) }),
        (64 * MIB, 512, options()),
        (64 * MIB + 1536, 512, with(2048)),
        (300 * MIB, 4096, options()),
        (300 * MIB, 512, with(1024)),
        // A last group of a few blocks is left out; one of a few more is not.
        (256 * MIB + 200 * 4096, 512, options()),
        (256 * MIB + 700 * 4096, 512, options()),
        // The metadata of one flex group passes the end of its first group.
        (3 * GIB, 512, dense),
        (3 * GIB, 4096, options()),
        (40 * GIB, 512, options()),
        (40 * GIB, 512, with(1024)),
    ] {
        let image = Image::new(size, logical_block_size);
        let builder = Ext4Builder::new(image.device.clone(), options).expect("a new file system");
        let summary = builder.finish().expect("a finished file system");
        image.assert_clean();
        let dump = image.dumpe2fs();
        let number = |field: &str| {
            let line = dump.lines().find(|line| line.starts_with(field)).expect("dumpe2fs names it");
            line[field.len()..].trim().parse::<u64>().expect("a number")
        };
        assert_eq!(number("Block count:"), summary.blocks);
        assert_eq!(number("Free blocks:"), summary.free_blocks);
        assert_eq!(number("Inode count:"), u64::from(summary.inodes));
        assert_eq!(number("Free inodes:"), u64::from(summary.free_inodes));
    }
}

#[test]
fn the_superblock_says_what_was_asked() {
    let image = Image::new(64 * MIB, 512);
    Ext4Builder::new(image.device.clone(), options()).expect("new").finish().expect("finished");
    let dump = image.dumpe2fs();
    for line in [
        "Filesystem volume name:   root",
        "Filesystem UUID:          0b5e55ed-1234-4567-89ab-cdef01234567",
        "Filesystem features:      has_journal ext_attr dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file dir_nlink extra_isize metadata_csum",
        "Filesystem state:         clean",
        "Default mount options:    user_xattr acl",
        "Reserved block count:     819",
        "Inode size:\t          256",
        "Checksum type:            crc32c",
        "Total journal blocks:     1024",
    ] {
        assert!(dump.lines().any(|found| found == line), "{line:?} is not in\n{dump}");
    }
}

#[test]
fn nothing_relies_on_a_blank_device() {
    for block_size in [1024, 4096] {
        let image = Image::dirty(96 * MIB);
        let options = Ext4Options { block_size, ..options() };
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        let root = builder.root();
        builder
            .create_file(root, b"zeros", attributes(0o644), 70_000, &mut std::io::repeat(0))
            .expect("created");
        builder.create_file(root, b"one", attributes(0o644), 1, &mut &b"1"[..]).expect("created");
        builder.finish().expect("finished");
        image.assert_clean();
        let mounted = image.mount();
        assert!(std::fs::read(mounted.path().join("zeros")).expect("reads") == vec![0; 70_000]);
        assert_eq!(std::fs::read(mounted.path().join("one")).expect("reads"), b"1");
        for index in 0..2000 {
            std::fs::write(mounted.path().join(format!("new{index}")), "the kernel's").expect("written");
        }
        drop(mounted);
        image.assert_clean();
    }
}

#[test]
fn each_block_is_written_once_and_the_superblock_last() {
    let image = Image::new(300 * MIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let mut random = Random(3);
    let root = builder.root();
    for index in 0..5000 {
        let length = random.below(9000) as usize;
        let (name, bytes) = (format!("file{index}"), random.bytes(length));
        builder
            .create_file(root, name.as_bytes(), attributes(0o644), length as u64, &mut &bytes[..])
            .expect("room");
    }
    builder.finish().expect("finished");
    let mut writes = image.device.writes.lock().expect("no panic").clone();
    assert_eq!(writes.last(), Some(&(1024, 512)));
    // 5000 files of 2 blocks are some 40 MiB: a write a file would be 5000 writes.
    assert!(writes.len() < 100, "{} writes", writes.len());
    writes.sort_unstable();
    assert!(writes.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "no byte twice");
    image.assert_clean();
}

#[test]
fn the_same_calls_write_the_same_bytes() {
    let build = || {
        let memory = Arc::new(Memory::new(200 << 20, 512));
        let mut builder = Ext4Builder::new(memory.clone(), options()).expect("new");
        Model::build(&mut builder, &mut Random(11), 200, 4096);
        builder.finish().expect("finished");
        memory.contents()
    };
    assert!(build() == build());
}

#[test]
fn random_trees_are_what_they_should_be() {
    for (seed, operations, block_size, logical_block_size) in
        [(1, 3000, 4096, 512), (2, 1500, 4096, 4096), (5, 600, 1024, 512)]
    {
        println!("seed {seed}");
        let image = Image::new(2 * GIB, logical_block_size);
        let options = Ext4Options { block_size, ..options() };
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        let mut random = Random(seed);
        let model = Model::build(&mut builder, &mut random, operations, block_size);
        model.compare_builder(&builder);
        let root = builder.root();
        builder.finish().expect("finished");
        image.assert_clean();
        model.compare_mounted(root, image.mount().path());
        image.assert_clean();
    }
}

#[test]
fn a_full_file_system_says_so_and_is_still_sound() {
    for block_size in [1024, 4096] {
        let image = Image::new(16 * MIB, 512);
        let options = Ext4Options { block_size, inodes: Inodes::Ratio(4096), ..options() };
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        let root = builder.root();
        let mut errors = 0;
        // Big files, then small ones, then links, each until there is no more room.
        for (size, name) in [(3_000_000, "big"), (100_000, "small"), (1, "byte")] {
            for index in 0.. {
                let name = format!("{name}{index:0>200}");
                let created = builder.create_file(
                    root,
                    name.as_bytes(),
                    attributes(0o644),
                    size,
                    &mut std::io::repeat(7),
                );
                if let Err(error) = created {
                    assert_eq!(error.kind(), ErrorKind::NoSpace);
                    assert!(
                        error.to_string().contains("needed") || error.to_string().contains("inodes"),
                        "{error}"
                    );
                    errors += 1;
                    break;
                }
            }
        }
        assert_eq!(errors, 3);
        // What goes makes room for what comes, in many pieces.
        for index in 0.. {
            if builder.unlink(root, format!("small{index:0>200}").as_bytes()).is_err() {
                break;
            }
            let _ = builder.unlink(root, format!("byte{:0>200}", 2 * index).as_bytes());
        }
        builder
            .create_file(root, b"again", attributes(0o644), 90_000, &mut std::io::repeat(8))
            .expect("room again");
        builder.finish().expect("what was kept for finishing is enough");
        image.assert_clean();
    }
}

#[test]
fn inodes_run_out_with_their_number() {
    let image = Image::new(64 * MIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let root = builder.root();
    let error = (0..).find_map(|index: u32| {
        builder.create_special(root, format!("{index}").as_bytes(), attributes(0o600), NodeKind::Fifo).err()
    });
    let error = error.expect("an end");
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("all its 4096 inodes"), "{error}");
    let summary = builder.finish().expect("finished");
    assert_eq!(summary.free_inodes, 0);
    image.assert_clean();
}

#[test]
fn a_stream_that_ends_early_leaves_nothing() {
    let image = Image::new(64 * MIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let root = builder.root();
    let mut short = std::io::repeat(9).take(700_000);
    let error =
        builder.create_file(root, b"short", attributes(0o644), 700_001, &mut short).expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(builder.lookup(root, b"short").expect("a directory"), None);
    let summary = builder.finish().expect("finished");
    let blank = Image::new(64 * MIB, 512);
    let expected =
        Ext4Builder::new(blank.device.clone(), options()).expect("new").finish().expect("finished");
    assert_eq!(summary, expected);
    image.assert_clean();
}

#[test]
fn what_cannot_be_is_refused() {
    let memory = || Arc::new(Memory::new(16 << 20, 4096));
    let refused = |options| Ext4Builder::new(memory(), options).err().expect("refused").kind();
    assert_eq!(refused(Ext4Options { label: "seventeen letters".into(), ..options() }), ErrorKind::Invalid);
    assert_eq!(refused(Ext4Options { block_size: 1024, ..options() }), ErrorKind::Invalid);
    assert_eq!(refused(Ext4Options { reserved_percent: 51, ..options() }), ErrorKind::Invalid);
    let tiny = Arc::new(Memory::new(4 << 20, 512));
    assert_eq!(Ext4Builder::new(tiny, options()).err().expect("no journal fits").kind(), ErrorKind::NoSpace);

    let mut builder = Ext4Builder::new(memory(), options()).expect("new");
    let root = builder.root();
    let plain = attributes(0o644);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        let error = builder.create_dir(root, name, plain).expect_err("a bad name");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let dir = builder.create_dir(root, b"dir", plain).expect("created");
    let below = builder.create_dir(dir, b"below", plain).expect("created");
    let file = builder.create_file(dir, b"file", plain, 0, &mut std::io::empty()).expect("created");
    let kind = |result: uvm_disk::Result<()>| result.expect_err("refused").kind();
    assert_eq!(kind(builder.rename(root, b"dir", below, b"dir")), ErrorKind::Invalid);
    assert_eq!(kind(builder.rename(dir, b"file", root, b"dir")), ErrorKind::Exists);
    assert_eq!(kind(builder.rename(root, b"none", root, b"dir")), ErrorKind::NotFound);
    assert_eq!(kind(builder.unlink(root, b"dir")), ErrorKind::Invalid);
    assert_eq!(kind(builder.unlink(root, b"lost+found")), ErrorKind::Invalid);
    assert_eq!(kind(builder.link(root, b"hard", dir)), ErrorKind::Invalid);
    assert_eq!(kind(builder.link(file, b"hard", file)), ErrorKind::Invalid);
    assert_eq!(kind(builder.set_attributes(file, attributes(0o10_644))), ErrorKind::Invalid);
    assert_eq!(kind(builder.set_xattr(file, b"user.", b"")), ErrorKind::Invalid);
    assert_eq!(kind(builder.set_xattr(file, b"nothing.a", b"")), ErrorKind::Invalid);
    assert_eq!(kind(builder.set_xattr(file, b"user.large", &[0; 5000])), ErrorKind::NoSpace);
    assert_eq!(kind(builder.set_xattr(file, b"system.posix_acl_default", &[2, 0, 0, 0])), ErrorKind::Invalid);
    let large = builder.create_file(root, b"large", plain, 1 << 45, &mut std::io::repeat(0));
    assert_eq!(large.expect_err("too large").kind(), ErrorKind::Invalid);
    for target in [&b""[..], b"a\0b", &[b'x'; 4096]] {
        assert_eq!(
            builder.create_symlink(root, b"link", plain, target).expect_err("bad").kind(),
            ErrorKind::Invalid
        );
    }
    let device = NodeKind::CharDevice { major: 4096, minor: 0 };
    assert_eq!(
        builder.create_special(root, b"null", plain, device).expect_err("bad").kind(),
        ErrorKind::Invalid
    );
    for index in 1..65_000 {
        builder.link(dir, format!("link{index}").as_bytes(), file).expect("not too many");
    }
    assert_eq!(kind(builder.link(dir, b"one more", file)), ErrorKind::Invalid);
}
