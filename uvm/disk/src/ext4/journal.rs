//! The journal: inode 8, empty, its superblock in the big-endian form of jbd2.

use std::ops::Range;

use super::alloc::Allocator;
use super::layout::Layout;
use super::writer::WriteBehind;
use crate::{Error, ErrorKind, Result};

/// The journal's inode.
pub(super) const INODE: u32 = 8;
const MAGIC: u32 = 0xC03B_3998;
const SUPERBLOCK_V2: u32 = 4;

/// Allocates, zeroes and initializes a journal; its runs in order.
pub(super) fn create(
    layout: &Layout,
    allocator: &mut Allocator,
    writer: &mut WriteBehind,
) -> Result<Vec<Range<u64>>> {
    let no_space = || {
        let context =
            format!("an ext4 journal does not fit {} blocks of {}", layout.blocks, layout.block_size);
        Error::new(ErrorKind::NoSpace, context)
    };
    let blocks = layout.journal_blocks().ok_or_else(no_space)?;
    let mut runs = Vec::new();
    let mut wanted = blocks;
    while wanted > 0 {
        let run = allocator.allocate(wanted)?.ok_or_else(no_space)?;
        wanted -= run.end - run.start;
        let (offset, length) = (layout.offset(run.start), layout.offset(run.end - run.start));
        let zeroed = writer.device().write_zeroes(offset, length);
        zeroed.map_err(|error| Error::io("zeroing the ext4 journal", offset, error))?;
        runs.push(run);
    }
    let mut superblock = vec![0; layout.block_size as usize];
    let first = 1;
    let sequence = 1;
    let users = 1;
    for (at, value) in [
        (0x00, MAGIC),
        (0x04, SUPERBLOCK_V2),
        (0x0C, layout.block_size),
        (0x10, blocks as u32),
        (0x14, first),
        (0x18, sequence),
        (0x40, users),
    ] {
        superblock[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    if let Some(run) = runs.first() {
        writer.write(layout.offset(run.start), &superblock)?;
    }
    Ok(runs)
}
