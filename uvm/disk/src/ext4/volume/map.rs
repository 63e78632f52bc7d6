//! Which blocks an inode has: extent trees and the older indirect blocks, both read into runs.

use super::inode::Inode;
use super::superblock::{Geometry, corrupt};
use crate::Result;
use crate::field::{le16, le32};

/// Runs of one file we hold in memory: 24 bytes each.
const MAX_RUNS: usize = 1 << 22;
/// Levels below the inode; the format has no more.
const MAX_DEPTH: u16 = 5;
pub(super) const EXTENT_MAGIC: u16 = 0xF30A;
/// A longer length marks an extent that reads as zeros.
pub(super) const LONGEST: u16 = 32_768;

/// Consecutive blocks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    /// Allocated, and reads as zeros.
    pub(super) unwritten: bool,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        self.physical + self.length
    }
}

/// All the blocks of an inode but that of its attributes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Map {
    /// In the file's order.
    pub(super) runs: Vec<Run>,
    /// Blocks of the map itself, each parent before its children.
    pub(super) nodes: Vec<u64>,
}

impl Map {
    /// The physical blocks of the first `blocks` logical ones that are mapped.
    pub(super) fn physical(&self, logical: u64) -> Option<u64> {
        let index = self.runs.partition_point(|run| run.logical + run.length <= logical);
        let run = self.runs.get(index).filter(|run| run.logical <= logical)?;
        Some(run.physical + (logical - run.logical))
    }

    pub(super) fn blocks(&self) -> u64 {
        self.runs.iter().map(|run| run.length).sum()
    }

    fn push(&mut self, run: Run, geometry: &Geometry) -> Result<()> {
        let within = run.physical >= geometry.first_data_block
            && run.physical.checked_add(run.length).is_some_and(|end| end <= geometry.blocks);
        if !within || run.length == 0 {
            return Err(corrupt(format!(
                "{} blocks at {} are not in the file system",
                run.length, run.physical
            )));
        }
        if let Some(last) = self.runs.last_mut() {
            if last.logical + last.length > run.logical {
                return Err(corrupt(format!(
                    "logical block {} is mapped twice or out of order",
                    run.logical
                )));
            }
            let joins = last.end() == run.physical
                && last.logical + last.length == run.logical
                && last.unwritten == run.unwritten;
            if joins {
                last.length += run.length;
                return Ok(());
            }
        }
        if self.runs.len() == MAX_RUNS {
            return Err(corrupt(format!("a file in more than {MAX_RUNS} pieces")));
        }
        self.runs.push(run);
        Ok(())
    }

    fn push_node(&mut self, block: u64, geometry: &Geometry) -> Result<()> {
        // A tree has fewer nodes than entries; a loop in it would pass this.
        if block < geometry.first_data_block || block >= geometry.blocks || self.nodes.len() == MAX_RUNS {
            return Err(corrupt(format!("block {block} cannot be part of a block map")));
        }
        self.nodes.push(block);
        Ok(())
    }
}

/// Reads the map of an inode that has one; `read` gives a block of the file system.
pub(super) fn read_map(
    inode: &Inode,
    geometry: &Geometry,
    read: &mut dyn FnMut(u64) -> Result<Vec<u8>>,
) -> Result<Map> {
    let mut map = Map::default();
    if inode.has_extents() {
        let root = inode.root().to_vec();
        let depth = le16(&root, 6);
        if depth > MAX_DEPTH {
            return Err(corrupt(format!("inode {} has an extent tree of depth {depth}", inode.number)));
        }
        read_extents(&root, depth, geometry, read, &mut map)?;
    } else {
        let mut logical = 0;
        let root: Vec<u32> = (0..15).map(|n| le32(inode.root(), 4 * n)).collect();
        for pointer in &root[..12] {
            read_pointer(*pointer, 0, &mut logical, geometry, read, &mut map)?;
        }
        for (level, pointer) in (1..).zip(&root[12..]) {
            read_pointer(*pointer, level, &mut logical, geometry, read, &mut map)?;
        }
    }
    Ok(map)
}

fn read_extents(
    node: &[u8],
    depth: u16,
    geometry: &Geometry,
    read: &mut dyn FnMut(u64) -> Result<Vec<u8>>,
    map: &mut Map,
) -> Result<()> {
    let entries = usize::from(le16(node, 2));
    if le16(node, 0) != EXTENT_MAGIC || le16(node, 6) != depth || 12 + 12 * entries > node.len() {
        return Err(corrupt("a node of an extent tree is none"));
    }
    for entry in node[12..].chunks_exact(12).take(entries) {
        if depth == 0 {
            let length = le16(entry, 4);
            let unwritten = length > LONGEST;
            let run = Run {
                logical: u64::from(le32(entry, 0)),
                physical: u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8)),
                length: u64::from(if unwritten { length - LONGEST } else { length }),
                unwritten,
            };
            map.push(run, geometry)?;
        } else {
            let child = u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4));
            map.push_node(child, geometry)?;
            let bytes = read(child)?;
            read_extents(&bytes, depth - 1, geometry, read, map)?;
        }
    }
    Ok(())
}

fn read_pointer(
    pointer: u32,
    level: u32,
    logical: &mut u64,
    geometry: &Geometry,
    read: &mut dyn FnMut(u64) -> Result<Vec<u8>>,
    map: &mut Map,
) -> Result<()> {
    let per_block = u64::from(geometry.block_size) / 4;
    let span = per_block.pow(level);
    if pointer == 0 {
        *logical += span;
        return Ok(());
    }
    let physical = u64::from(pointer);
    if level == 0 {
        map.push(Run { logical: *logical, physical, length: 1, unwritten: false }, geometry)?;
        *logical += 1;
        return Ok(());
    }
    map.push_node(physical, geometry)?;
    let bytes = read(physical)?;
    for entry in bytes.chunks_exact(4) {
        read_pointer(le32(entry, 0), level - 1, logical, geometry, read, map)?;
    }
    Ok(())
}
