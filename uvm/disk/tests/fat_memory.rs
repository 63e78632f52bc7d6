//! What a FAT volume under construction takes of memory: as much for each file as `fat` says, nothing for contents.
//! The only test of its binary, so that nothing else allocates.
#![allow(clippy::unwrap_used)]

#[path = "judge/nothing.rs"]
mod nothing;

use std::alloc::System;
use std::io::{self, Read};
use std::sync::Arc;

use cap::Cap;
use nothing::Nothing;
use uvm_disk::fat::{FatBuilder, FatOptions};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// As `fat` states it, beside twice the name.
const BYTES_PER_FILE: usize = 150;

#[test]
fn memory_grows_by_the_stated_bytes_per_file() {
    let mut builder = FatBuilder::new(Arc::new(Nothing { size: 64 << 30 }), FatOptions::default()).unwrap();
    let root = builder.root();
    let before = ALLOCATOR.allocated();
    let (dirs, files) = (34, 1000);
    for dir in 0..dirs {
        let dir = builder.create_dir(root, &format!("directory {dir:06}"), 0).unwrap();
        for file in 0..files {
            let name = format!("a name {file:09}");
            builder.create_file(dir, &name, 3, &mut &b"abc"[..], 0).unwrap();
        }
    }
    let grown = ALLOCATOR.allocated() - before;
    let each = grown / (dirs * files);
    assert!(each <= BYTES_PER_FILE + 2 * 16, "{each} bytes a file");
    // 16 MiB of contents leave nothing behind but one file.
    let before = ALLOCATOR.allocated();
    let size = 16 << 20;
    builder.create_file(root, "large", size, &mut io::repeat(7).take(size), 0).unwrap();
    let grown = ALLOCATOR.allocated() - before;
    assert!(grown < 8192, "{grown} bytes for one file");
    println!("{each} bytes a file");
    builder.finish().unwrap();
}
