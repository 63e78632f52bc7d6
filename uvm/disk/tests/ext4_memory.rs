//! What an ext4 under construction takes of memory, at its peak and with finishing: so much for each file as `ext4`
//! says, nothing for contents or for the size of the device. The only test of its binary, so that nothing else
//! allocates.
#![allow(clippy::unwrap_used)]

#[path = "judge/nothing.rs"]
mod nothing;

use std::alloc::System;
use std::io::{self, Read};
use std::sync::Arc;

use cap::Cap;
use nothing::Nothing;
use uvm_disk::ext4::{Attributes, Ext4Builder, Ext4Options, Timestamp, Variant};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// As `ext4` states it, for names of 16 bytes.
const BYTES_PER_FILE: usize = 145;
/// What there is before the first file, and on the way: buffers, descriptors, what is sorted.
const BASE: usize = 4 << 20;

fn peak(directories: usize, files: usize, contents: u64) -> usize {
    let before = ALLOCATOR.allocated();
    let options = Ext4Options::new(Variant::Ext4, [1; 16], [2; 16], 1_700_000_000);
    let mut builder = Ext4Builder::new(Arc::new(Nothing { size: 1 << 40 }), options).unwrap();
    let time = Timestamp { seconds: 1_600_000_000, nanoseconds: 5 };
    let attributes = Attributes { mode: 0o644, uid: 0, gid: 0, mtime: time };
    let root = builder.root();
    for number in 0..directories {
        let directory = builder.create_dir(root, format!("dir{number}").as_bytes(), attributes).unwrap();
        for file in 0..files {
            let name = format!("file name {file:06}");
            let mut reader = io::repeat(7).take(contents);
            builder.create_file(directory, name.as_bytes(), attributes, contents, &mut reader).unwrap();
        }
    }
    builder.finish().unwrap();
    ALLOCATOR.max_allocated() - before
}

#[test]
fn memory_grows_by_the_stated_bytes_per_file_and_by_nothing_else() {
    // In order of their peaks: the allocator remembers the highest only.
    let large = peak(1, 1, 256 << 20);
    assert!(large <= BASE, "{large} bytes for one large file");
    let spread = peak(100, 1000, 3);
    assert!(spread <= BASE + 100_000 * BYTES_PER_FILE, "{spread} bytes for 100,000 files");
    let together = peak(1, 200_000, 3);
    assert!(
        together <= BASE + 200_000 * BYTES_PER_FILE,
        "{together} bytes for 200,000 files in one directory"
    );
    println!("{large} {spread} {together}: {} bytes a file", (together - large) / 200_000);
}
