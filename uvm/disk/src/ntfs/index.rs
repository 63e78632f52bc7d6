//! Indexes: sorted entries in the record itself, or in a block of clusters where they are more.

use super::record::protect;
use super::{INDEX_BLOCK_SIZE, STRIDE};
use crate::field::put;

/// How the keys of an index are sorted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Collation {
    FileName = 1,
    /// One little-endian number.
    Number = 0x10,
    SecurityIdentifier = 0x11,
    SecurityHash = 0x12,
    /// Several little-endian numbers.
    Numbers = 0x13,
}

/// The last entry of every node.
const LAST: u16 = 2;
/// The entry has a block below it.
const HAS_CHILD: u16 = 1;
/// Where the entries of a block begin, from the node's header.
const BLOCK_ENTRIES_AT: usize = 0x28;
/// Where the node's header lies in a block.
const BLOCK_NODE_AT: usize = 0x18;

/// An entry that leads to a file.
pub(super) fn file_entry(reference: u64, key: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; (16 + key.len()).next_multiple_of(8)];
    put(&mut bytes, 0, &reference.to_le_bytes());
    lengths(&mut bytes, key);
    bytes
}

/// An entry of a view: a key, and what it stands for.
pub(super) fn view_entry(key: &[u8], data: &[u8], padding: &[u8]) -> Vec<u8> {
    let data_at = 16 + key.len();
    let mut bytes = vec![0; (data_at + data.len() + padding.len()).next_multiple_of(8)];
    put(&mut bytes, 0, &(data_at as u16).to_le_bytes());
    put(&mut bytes, 2, &(data.len() as u16).to_le_bytes());
    lengths(&mut bytes, key);
    put(&mut bytes, data_at, data);
    put(&mut bytes, data_at + data.len(), padding);
    bytes
}

fn lengths(bytes: &mut [u8], key: &[u8]) {
    let len = bytes.len() as u16;
    put(bytes, 8, &len.to_le_bytes());
    put(bytes, 10, &(key.len() as u16).to_le_bytes());
    put(bytes, 16, key);
}

fn last_entry(child: Option<u64>) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[12] = LAST as u8;
    if let Some(vcn) = child {
        bytes[12] |= HAS_CHILD as u8;
        bytes.extend(vcn.to_le_bytes());
    }
    let len = bytes.len() as u16;
    put(&mut bytes, 8, &len.to_le_bytes());
    bytes
}

/// The value of `$INDEX_ROOT`. `indexed` is the type of the attribute that is the key, 0 for a view.
fn root(indexed: u32, collation: Collation, cluster_size: u32, entries: &[u8], large: bool) -> Vec<u8> {
    let unit = if cluster_size <= INDEX_BLOCK_SIZE { cluster_size } else { STRIDE as u32 };
    let len = (16 + entries.len() as u32).to_le_bytes();
    let mut bytes = vec![0; 32];
    put(&mut bytes, 0, &indexed.to_le_bytes());
    put(&mut bytes, 4, &(collation as u32).to_le_bytes());
    put(&mut bytes, 8, &INDEX_BLOCK_SIZE.to_le_bytes());
    bytes[12] = (INDEX_BLOCK_SIZE / unit) as u8;
    put(&mut bytes, 16, &16_u32.to_le_bytes());
    put(&mut bytes, 20, &len);
    put(&mut bytes, 24, &len);
    bytes[28] = u8::from(large);
    bytes.extend(entries);
    bytes
}

/// An index that lies in its root altogether; `entries` are sorted.
pub(super) fn small_root(indexed: u32, by: Collation, cluster_size: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut entries = entries.concat();
    entries.extend(last_entry(None));
    root(indexed, by, cluster_size, &entries, false)
}

/// The root of an index whose entries all lie in its first block.
pub(super) fn root_of_block(indexed: u32, by: Collation, cluster_size: u32) -> Vec<u8> {
    root(indexed, by, cluster_size, &last_entry(Some(0)), true)
}

/// The first block of an index. `entries` are sorted; those of a new root directory take 1.2 of its 4 KiB.
pub(super) fn block(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; INDEX_BLOCK_SIZE as usize];
    let mut entries = entries.concat();
    entries.extend(last_entry(None));
    put(&mut bytes, 0, b"INDX");
    let node = BLOCK_NODE_AT;
    put(&mut bytes, node, &(BLOCK_ENTRIES_AT as u32).to_le_bytes());
    put(&mut bytes, node + 4, &((BLOCK_ENTRIES_AT + entries.len()) as u32).to_le_bytes());
    put(&mut bytes, node + 8, &(INDEX_BLOCK_SIZE - node as u32).to_le_bytes());
    put(&mut bytes, node + BLOCK_ENTRIES_AT, &entries);
    protect(&mut bytes, BLOCK_ENTRIES_AT);
    bytes
}
