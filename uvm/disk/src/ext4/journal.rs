//! The journal: inode 8, empty, its superblock in the big-endian form of jbd2.
//!
//! # Why its blocks need not be zeroed
//!
//! An empty journal (`s_start` 0) is not replayed. Once in use it is replayed from `s_start` for as long as each
//! next transaction begins where the one before ended and has the next sequence number; with metadata_csum also only
//! if its checksum, seeded with the journal's `s_uuid`, is right. What an earlier file system left behind could be
//! taken for the next transaction only if all of that fitted. So:
//!
//! - the first sequence number is at least 2^30. All other formatters begin at 1, and one transaction a second takes
//!   34 years to come that far;
//! - its other 30 bits and `s_uuid` are derived from all that makes this file system itself (UUID, hash seed, time,
//!   size), so they fit an earlier file system of our own with a chance of 2^-30, and with checksums 2^-62, at each
//!   of its transactions where one of ours ends;
//! - the same file system made over itself has the same numbers. It has its journal in the same place, and there
//!   is a log in that place: where one is found, all of the journal is zeroed after all.

use std::ops::Range;

use uuid::Uuid;

use super::alloc::Allocator;
use super::layout::Layout;
use super::options::Ext4Options;
use super::writer::WriteBehind;
use crate::{Error, ErrorKind, Result};

/// The journal's inode.
pub(super) const INODE: u32 = 8;
const MAGIC: u32 = 0xC03B_3998;
const SUPERBLOCK_V2: u32 = 4;
/// Where a log in use shows: its superblock and the first transaction are at its start.
const LOOKED_AT: u64 = 64 << 10;
const FIRST_SEQUENCE: u32 = 1 << 30;

/// Allocates the journal and writes its superblock; its runs in order.
pub(super) fn create(
    layout: &Layout,
    options: &Ext4Options,
    allocator: &mut Allocator,
    writer: &mut WriteBehind,
) -> Result<Vec<Range<u64>>> {
    let blocks = layout.journal_blocks()?;
    let mut runs = Vec::new();
    let mut wanted = blocks;
    while wanted > 0 {
        let full =
            || Error::new(ErrorKind::NoSpace, format!("no room for an ext4 journal of {blocks} blocks"));
        let run = allocator.allocate(wanted)?.ok_or_else(full)?;
        wanted -= run.end - run.start;
        runs.push(run);
    }
    let Some(first_run) = runs.first() else { return Ok(runs) };
    if has_log(layout, first_run, writer)? {
        for run in &runs {
            let (offset, length) = (layout.offset(run.start), layout.offset(run.end - run.start));
            let zeroed = writer.device().write_zeroes(offset, length);
            zeroed.map_err(|error| Error::io("zeroing the ext4 journal", offset, error))?;
        }
    }
    writer.write(layout.offset(first_run.start), &superblock(layout, options, blocks as u32))?;
    Ok(runs)
}

/// Whether there is a block of a log near the start of what becomes the journal.
fn has_log(layout: &Layout, run: &Range<u64>, writer: &WriteBehind) -> Result<bool> {
    let mut bytes = vec![0; layout.offset(run.end - run.start).min(LOOKED_AT) as usize];
    let offset = layout.offset(run.start);
    let read = writer.device().read_at(offset, &mut bytes);
    read.map_err(|error| Error::io("looking for an old journal", offset, error))?;
    Ok(bytes.chunks_exact(1024).any(|block| block.starts_with(&MAGIC.to_be_bytes())))
}

fn superblock(layout: &Layout, options: &Ext4Options, blocks: u32) -> Vec<u8> {
    let identity = identity(layout, options);
    let [a, b, c, d, ..] = *identity.as_bytes();
    let first_block = 1;
    let sequence = FIRST_SEQUENCE | u32::from_be_bytes([a, b, c, d]) >> 2;
    let users = 1;
    let mut superblock = vec![0; layout.block_size as usize];
    for (at, value) in [
        (0x00, MAGIC),
        (0x04, SUPERBLOCK_V2),
        (0x0C, layout.block_size),
        (0x10, blocks),
        (0x14, first_block),
        (0x18, sequence),
        (0x40, users),
    ] {
        superblock[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    superblock[0x30..0x40].copy_from_slice(identity.as_bytes());
    superblock
}

/// The journal's own UUID. Nothing looks for it; the checksums of the log are seeded with it.
fn identity(layout: &Layout, options: &Ext4Options) -> Uuid {
    let name =
        [&options.hash_seed[..], &options.timestamp.to_le_bytes(), &layout.blocks.to_le_bytes()].concat();
    Uuid::new_v5(&Uuid::from_bytes(options.uuid), &name)
}
