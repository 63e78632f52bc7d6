//! The hash index of a directory (`Documentation/filesystems/ext4`, "Hash Tree Directories").
//!
//! Block 0 is the root of the index behind `.` and `..`; then come the nodes of the second level, where one
//! level has no room, then the blocks of entries, sorted by the hashes of their names:
//!
//! ```text
//! root ──┬─ node ──┬─ entries with hashes from h0
//!        │         └─ entries from h1   (h1 | 1 where h1 is also in the block before)
//!        └─ node ─── …
//! ```

use std::ops::Range;

use super::bytes::{crc, put_u16, put_u32};
use super::dir_blocks::{Block, DOTS, Shape, Written, entry_length};
use super::hash::NameHash;
use crate::{Error, ErrorKind, Result};

const HALF_MD4: u8 = 1;
const INFO: usize = 8;
const ENTRY: usize = 8;
const TAIL: usize = 8;
/// Where the index is in the root and in a node, behind the entries that hide it from who does not know it.
const ROOT_AT: usize = DOTS as usize + INFO;
const NODE_AT: usize = 8;
/// Says of an index entry that its first hash is also in the block before.
const CONTINUED: u32 = 1;

fn most_entries(shape: &Shape, at: usize) -> u64 {
    let tail = if shape.checksums { TAIL } else { 0 };
    ((shape.block_size as usize - at - tail) / ENTRY) as u64
}

/// Nodes of the second level for this many blocks of entries.
fn nodes(leaves: u64, shape: &Shape) -> u64 {
    if leaves <= most_entries(shape, ROOT_AT) { 0 } else { leaves.div_ceil(most_entries(shape, NODE_AT)) }
}

/// Blocks of a directory with this many blocks of entries.
pub(super) fn blocks(leaves: u64, shape: &Shape) -> u64 {
    1 + nodes(leaves, shape) + leaves
}

/// Blocks of the largest directory: two levels, without the large_dir feature.
pub(super) fn most_blocks(shape: &Shape) -> u64 {
    let nodes = most_entries(shape, ROOT_AT);
    1 + nodes + nodes * most_entries(shape, NODE_AT)
}

/// A block of entries: where its names are in the sorted order, and its key in the index.
struct Leaf {
    names: Range<u32>,
    key: u32,
}

/// Encodes root, nodes and blocks of entries in order.
pub(super) fn encode<T: Fn(u32) -> u8>(
    written: &Written<'_, T>,
    hash: NameHash,
    emit: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let (directory, shape) = (written.directory, &written.shape);
    let places = (0..directory.places()).filter_map(|place| Some((place, directory.at(place)?.0)));
    let mut sorted: Vec<(u32, u32)> = places.map(|(place, name)| (hash.of(name), place as u32)).collect();
    // By hash, and names of one hash in the order in which they came.
    sorted.sort_unstable();
    let leaves = pack(written, &sorted);
    let count = leaves.len() as u64;
    let nodes = nodes(count, shape);
    if nodes > most_entries(shape, ROOT_AT) {
        return Err(Error::new(ErrorKind::NoSpace, "a directory is too large for the levels of its index"));
    }
    let first = 1 + nodes as u32;
    let keys = leaves.iter().zip(first..).map(|(leaf, block)| (leaf.key, block)).collect::<Vec<_>>();
    let mut head = Block::new(*shape);
    written.push_dots(&mut head);
    let mut root = head.into_head();
    root[DOTS as usize + 4] = HALF_MD4;
    root[DOTS as usize + 5] = INFO as u8;
    root[DOTS as usize + 6] = u8::from(nodes > 0);
    if nodes == 0 {
        put_index(&mut root, ROOT_AT, &keys, written.seed, shape);
        emit(&root)?;
    } else {
        // All about equally full: each has room for what the kernel adds.
        let bound = |node: u64| (count * node / nodes) as usize;
        let parts: Vec<_> = (0..nodes).map(|node| &keys[bound(node)..bound(node + 1)]).collect();
        let above: Vec<_> = parts.iter().zip(1..).map(|(part, block)| (part[0].0, block)).collect();
        put_index(&mut root, ROOT_AT, &above, written.seed, shape);
        emit(&root)?;
        let mut node = vec![0; shape.block_size as usize];
        for part in parts {
            node.fill(0);
            put_u16(&mut node, 4, shape.block_size as u16);
            put_index(&mut node, NODE_AT, part, written.seed, shape);
            emit(&node)?;
        }
    }
    let mut block = Block::new(*shape);
    for leaf in &leaves {
        for (_, place) in &sorted[leaf.names.start as usize..leaf.names.end as usize] {
            if let Some((name, inode)) = directory.at(*place as usize) {
                block.push(name, inode, (written.type_of)(inode));
            }
        }
        emit(block.finish(written.seed))?;
        block.clear();
    }
    Ok(())
}

/// Cuts the sorted names into blocks. The first block has all hashes from 0.
fn pack<T>(written: &Written<'_, T>, sorted: &[(u32, u32)]) -> Vec<Leaf> {
    let room = written.shape.leaf_room() as usize;
    let mut leaves = Vec::new();
    let (mut start, mut key, mut used) = (0, 0, 0);
    for (index, (hash, place)) in sorted.iter().enumerate() {
        let length = written.directory.at(*place as usize).map_or(0, |(name, _)| entry_length(name));
        if used + length > room {
            leaves.push(Leaf { names: start..index as u32, key });
            let continued = sorted[index - 1].0 == *hash;
            (start, key, used) = (index as u32, hash | if continued { CONTINUED } else { 0 }, 0);
        }
        used += length;
    }
    leaves.push(Leaf { names: start..sorted.len() as u32, key });
    leaves
}

/// Limit and count take the place of the first entry's hash: it is that of the entry above.
fn put_index(bytes: &mut [u8], at: usize, keys: &[(u32, u32)], seed: u32, shape: &Shape) {
    let most = most_entries(shape, at) as usize;
    for (slot, (key, block)) in bytes[at..at + most * ENTRY].chunks_exact_mut(ENTRY).zip(keys) {
        put_u32(slot, 0, *key);
        put_u32(slot, 4, *block);
    }
    put_u16(bytes, at, most as u16);
    put_u16(bytes, at + 2, keys.len() as u16);
    if shape.checksums {
        let covered = crc(seed, &bytes[..at + keys.len() * ENTRY]);
        // The tail counts as four reserved bytes and a checksum of zero.
        let checksum = crc(covered, &[0; TAIL]);
        put_u32(bytes, at + most * ENTRY + 4, checksum);
    }
}
