//! Building the map of an inode whose blocks got other places, as flat as it can be.

use super::map::{EXTENT_MAGIC, LONGEST, Run};
use crate::ext4::bytes::{crc, high32, low16, low32};
use crate::field::put;
use crate::{Error, ErrorKind, Result};

/// Entries in an inode.
const INLINE: usize = 4;
const ENTRY: usize = 12;

/// A tree of extents, to be put into the blocks it was given.
pub(super) struct Tree {
    pub(super) root: [u8; 60],
    pub(super) nodes: Vec<(u64, Vec<u8>)>,
}

pub(super) fn per_node(block_size: u32) -> usize {
    block_size as usize / ENTRY - 1
}

/// Extents that runs become: each has a longest length.
fn extents(runs: &[Run]) -> impl Iterator<Item = Run> + '_ {
    runs.iter().flat_map(|run| {
        let longest = u64::from(LONGEST) - u64::from(run.unwritten);
        (0..run.length.div_ceil(longest)).map(move |piece| Run {
            logical: run.logical + piece * longest,
            physical: run.physical + piece * longest,
            length: longest.min(run.length - piece * longest),
            unwritten: run.unwritten,
        })
    })
}

/// Blocks a tree over `runs` needs outside the inode.
pub(super) fn nodes_needed(runs: &[Run], block_size: u32) -> usize {
    let (mut entries, mut nodes) = (extents(runs).count(), 0);
    while entries > INLINE {
        entries = entries.div_ceil(per_node(block_size));
        nodes += entries;
    }
    nodes
}

/// The tree over `runs`; `blocks` are as many as [`nodes_needed`] said, `seed` is the inode's where blocks have
/// checksums.
pub(super) fn build(runs: &[Run], blocks: &[u64], block_size: u32, seed: Option<u32>) -> Tree {
    let mut level: Vec<[u8; ENTRY]> = extents(runs).map(|run| leaf(&run)).collect();
    let (mut depth, mut nodes, mut unused) = (0, Vec::new(), blocks.iter());
    let most = per_node(block_size);
    while level.len() > INLINE {
        let mut above = Vec::new();
        for (entries, block) in level.chunks(most).zip(&mut unused) {
            let mut bytes = vec![0; block_size as usize];
            put_node(&mut bytes, entries, most, depth);
            if let Some(seed) = seed {
                let tail = ENTRY + ENTRY * most;
                let checksum = crc(seed, &bytes[..tail]);
                put(&mut bytes, tail, &checksum.to_le_bytes());
            }
            nodes.push((*block, bytes));
            above.push(index(entries[0], *block));
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    put_node(&mut root, &level, INLINE, depth);
    Tree { root, nodes }
}

fn leaf(run: &Run) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    put(&mut bytes, 0, &low32(run.logical).to_le_bytes());
    let length = run.length as u16 + if run.unwritten { LONGEST } else { 0 };
    put(&mut bytes, 4, &length.to_le_bytes());
    put(&mut bytes, 6, &low16(high32(run.physical)).to_le_bytes());
    put(&mut bytes, 8, &low32(run.physical).to_le_bytes());
    bytes
}

/// `first` is the first entry below: both kinds begin with the logical block.
fn index(first: [u8; ENTRY], block: u64) -> [u8; ENTRY] {
    let mut bytes = [0; ENTRY];
    bytes[..4].copy_from_slice(&first[..4]);
    put(&mut bytes, 4, &low32(block).to_le_bytes());
    put(&mut bytes, 8, &low16(high32(block)).to_le_bytes());
    bytes
}

fn put_node(bytes: &mut [u8], entries: &[[u8; ENTRY]], most: usize, depth: u16) {
    put(bytes, 0, &EXTENT_MAGIC.to_le_bytes());
    put(bytes, 2, &(entries.len() as u16).to_le_bytes());
    put(bytes, 4, &(most as u16).to_le_bytes());
    put(bytes, 6, &depth.to_le_bytes());
    for (slot, entry) in bytes[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

/// Pointers in an inode before the first that leads to more pointers.
const DIRECT: usize = 12;

/// Blocks a block map over runs without holes needs outside the inode.
pub(super) fn pointer_nodes_needed(runs: &[Run], block_size: u32) -> Result<usize> {
    let pointers = runs.iter().map(|run| run.length as usize).sum::<usize>();
    let per_block = block_size as usize / 4;
    let behind = pointers.saturating_sub(DIRECT);
    let twice = behind.saturating_sub(per_block);
    if twice > per_block * per_block {
        let context = format!("a block map over {pointers} blocks with three levels is not written anew");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let double = if twice > 0 { 1 + twice.div_ceil(per_block) } else { 0 };
    Ok(usize::from(behind > 0) + double)
}

/// The block map over runs without holes; `blocks` are as many as [`pointer_nodes_needed`] said.
pub(super) fn build_pointers(runs: &[Run], blocks: &[u64], block_size: u32) -> Tree {
    let pointers: Vec<u64> = runs.iter().flat_map(|run| run.physical..run.end()).collect();
    let (direct, behind) = pointers.split_at(DIRECT.min(pointers.len()));
    let mut root = [0; 60];
    put_pointers(&mut root, direct);
    let mut unused = blocks.iter().copied();
    let mut nodes = Vec::new();
    let mut below = Vec::new();
    let double = if blocks.len() > 1 { unused.next() } else { None };
    for (chunk, block) in behind.chunks(block_size as usize / 4).zip(&mut unused) {
        let mut bytes = vec![0; block_size as usize];
        put_pointers(&mut bytes, chunk);
        nodes.push((block, bytes));
        below.push(block);
    }
    if let Some((single, rest)) = below.split_first() {
        put_pointers(&mut root[4 * DIRECT..], &[*single]);
        if let Some(double) = double {
            let mut bytes = vec![0; block_size as usize];
            put_pointers(&mut bytes, rest);
            nodes.push((double, bytes));
            put_pointers(&mut root[4 * DIRECT + 4..], &[double]);
        }
    }
    Tree { root, nodes }
}

fn put_pointers(bytes: &mut [u8], pointers: &[u64]) {
    for (slot, pointer) in bytes.chunks_exact_mut(4).zip(pointers) {
        slot.copy_from_slice(&low32(*pointer).to_le_bytes());
    }
}
