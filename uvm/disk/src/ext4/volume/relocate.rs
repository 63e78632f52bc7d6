//! Moving blocks below an end, each step a transaction.
//!
//! Contents go to blocks that were free, and are durable there before a transaction makes them the file's. What the
//! file held before stays untouched until then: blocks behind the end are never given out, and blocks below it that
//! become free are so from the next transaction on.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bitmap;
use super::descriptor::Field;
use super::features::METADATA_CSUM;
use super::inode::{Inode, RESIZE};
use super::map::Run;
use super::superblock::corrupt;
use super::tree;
use super::volume::{BATCH, Volume};
use crate::ext4::bytes::crc;
use crate::field::{le32, put};
use crate::{Error, ErrorKind, Result};

/// Blocks of one file moved in one step.
const MOST_BLOCKS: u64 = 8192;
/// Groups looked at for free blocks in one piece.
const MOST_GROUPS: u32 = 16;
pub(super) const ATTRIBUTES_MAGIC: u32 = 0xEA02_0000;

/// Moves what is behind the end, and remembers what the next transaction needs.
pub(super) struct Mover<'v, 'd> {
    pub(super) volume: &'v mut Volume<'d>,
    /// The first block that goes.
    pub(super) limit: u64,
    /// Before this group nothing is free.
    cursor: u32,
    /// From, to, how many.
    copies: Vec<(u64, u64, u64)>,
    frees: Vec<Range<u64>>,
    /// Where blocks of attributes that several inodes share have gone.
    attributes: BTreeMap<u64, u64>,
    /// Blocks moved so far.
    pub(super) moved: u64,
}

/// What one step may still do.
struct Budget {
    blocks: u64,
    pieces: u64,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.blocks == 0 || self.pieces == 0
    }

    fn spend(&mut self, blocks: u64) {
        self.blocks = self.blocks.saturating_sub(blocks);
        self.pieces = self.pieces.saturating_sub(1);
    }
}

impl<'v, 'd> Mover<'v, 'd> {
    pub(super) fn new(volume: &'v mut Volume<'d>, limit: u64) -> Self {
        Self {
            volume,
            limit,
            cursor: 0,
            copies: Vec::new(),
            frees: Vec::new(),
            attributes: BTreeMap::new(),
            moved: 0,
        }
    }

    /// Makes what was moved so.
    pub(super) fn commit(&mut self) -> Result<()> {
        if self.volume.changed.is_empty() && self.frees.is_empty() {
            return Ok(());
        }
        for (from, to, length) in std::mem::take(&mut self.copies) {
            let mut done = 0;
            while done < length {
                let count = BATCH.min(length - done);
                let bytes = self.volume.source.read(from + done, count, "reading blocks to be moved")?;
                self.volume.write_block(to + done, &bytes, "moving blocks of the ext file system")?;
                done += count;
            }
        }
        self.volume.flush()?;
        for blocks in std::mem::take(&mut self.frees) {
            self.volume.set_blocks(blocks, false)?;
        }
        self.volume.total();
        self.cursor = 0;
        self.volume.commit(u64::MAX)
    }

    /// Makes it so where a transaction has become half as large as one may be.
    pub(super) fn commit_if_full(&mut self) -> Result<()> {
        let changed = self.volume.changed.len() + self.volume.changed_descriptors.len() + self.frees.len();
        let copied: u64 = self.copies.iter().map(|copy| copy.2).sum();
        if changed as u64 > self.volume.capacity() / 4 || copied > MOST_BLOCKS {
            self.commit()
        } else {
            Ok(())
        }
    }

    /// Takes up to `wanted` free blocks below the end, in one piece.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Range<u64>> {
        let groups = self.volume.geometry.group_of(self.limit - 1) + 1;
        let mut best = 0..0;
        let mut looked = 0;
        for group in self.cursor..groups {
            if self.volume.descriptor(group).get(Field::FreeBlocks) == 0 {
                self.cursor += u32::from(group == self.cursor);
                continue;
            }
            let run = self.free_run(group, wanted)?;
            if run.end - run.start > best.end - best.start {
                best = run;
            }
            looked += 1;
            let found = best.end - best.start;
            if found == wanted || found > 0 && looked >= MOST_GROUPS {
                break;
            }
        }
        if best.is_empty() {
            let context = "the ext file system has no free block left below its new end";
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        self.volume.set_blocks(best.clone(), true)?;
        Ok(best)
    }

    /// The first run of `wanted` free blocks of a group below the end, or the longest there is.
    pub(super) fn free_run(&self, group: u32, wanted: u64) -> Result<Range<u64>> {
        let blocks = self.volume.geometry.group(group);
        let length = blocks.end.min(self.limit).saturating_sub(blocks.start);
        let bits = self.volume.block_bitmap(group)?;
        let mut best = 0..0;
        let mut bit = bitmap::next(&bits, 0, length, false);
        while bit < length {
            let end = bitmap::next(&bits, bit, length, true).min(bit + wanted);
            if end - bit > best.end - best.start {
                best = blocks.start + bit..blocks.start + end;
            }
            if end - bit == wanted {
                break;
            }
            bit = bitmap::next(&bits, end, length, false);
        }
        Ok(best)
    }

    fn one(&mut self) -> Result<u64> {
        Ok(self.allocate(1)?.start)
    }

    pub(super) fn copy(&mut self, from: u64, to: u64, length: u64) {
        self.moved += length;
        match self.copies.last_mut() {
            Some((f, t, l)) if *f + *l == from && *t + *l == to => *l += length,
            _ => self.copies.push((from, to, length)),
        }
    }

    pub(super) fn free(&mut self, blocks: Range<u64>) {
        match self.frees.last_mut() {
            Some(last) if last.end == blocks.start => last.end = blocks.end,
            _ => self.frees.push(blocks),
        }
    }

    /// Moves all of a file that is behind the end.
    pub(super) fn relocate(&mut self, mut inode: Inode) -> Result<()> {
        if inode.number == RESIZE {
            return self.relocate_resize_root(inode);
        }
        if let Some(block) = inode.attributes()
            && block >= self.limit
        {
            let new = self.relocate_attributes(block)?;
            inode.set_attributes(new);
            self.volume.set_inode(&mut inode)?;
            self.commit_if_full()?;
        }
        if !inode.has_map() {
            return Ok(());
        }
        loop {
            let mut budget = Budget { blocks: MOST_BLOCKS, pieces: (self.volume.capacity() / 16).max(1) };
            let moved = if inode.has_extents() {
                self.step_extents(&mut inode, &mut budget)?
            } else {
                self.step_pointers(&mut inode, &mut budget)?
            };
            if !moved {
                return Ok(());
            }
            self.volume.set_inode(&mut inode)?;
            self.commit_if_full()?;
        }
    }

    /// A part of a file in extents; whether there was something to move.
    fn step_extents(&mut self, inode: &mut Inode, budget: &mut Budget) -> Result<bool> {
        let map = self.volume.map(inode)?;
        let limit = self.limit;
        if map.runs.iter().all(|run| run.end() <= limit) && map.nodes.iter().all(|node| *node < limit) {
            return Ok(false);
        }
        let mut runs = Vec::with_capacity(map.runs.len() + 1);
        for run in &map.runs {
            let head = limit.saturating_sub(run.physical).min(run.length);
            push(&mut runs, Run { length: head, ..*run });
            let mut done = head;
            while done < run.length {
                let rest = Run {
                    logical: run.logical + done,
                    physical: run.physical + done,
                    length: run.length - done,
                    ..*run
                };
                if budget.is_spent() {
                    push(&mut runs, rest);
                    break;
                }
                let blocks = self.allocate(rest.length.min(budget.blocks))?;
                let length = blocks.end - blocks.start;
                budget.spend(length);
                if !run.unwritten {
                    self.copy(rest.physical, blocks.start, length);
                }
                self.free(rest.physical..rest.physical + length);
                push(&mut runs, Run { physical: blocks.start, length, ..rest });
                done += length;
            }
        }
        self.replant(inode, &map.nodes, &runs)?;
        Ok(true)
    }

    /// Gives an inode a tree over `runs` in place of one with these `nodes`.
    fn replant(&mut self, inode: &mut Inode, nodes: &[u64], runs: &[Run]) -> Result<()> {
        let block_size = self.volume.geometry.block_size;
        let needed = tree::nodes_needed(runs, block_size);
        let (mut kept, gone): (Vec<u64>, Vec<u64>) = nodes.iter().partition(|node| **node < self.limit);
        for node in gone.into_iter().chain(kept.drain(needed.min(kept.len())..)) {
            self.volume.changed.remove(&node);
            self.free(node..node + 1);
        }
        while kept.len() < needed {
            kept.push(self.one()?);
        }
        let checksums = self.volume.superblock.features().ro_compat & METADATA_CSUM != 0;
        let seed = checksums.then(|| inode.seed(&self.volume.superblock));
        let built = tree::build(runs, &kept, block_size, seed);
        inode.set_root(&built.root);
        inode.add_blocks(needed as i64 - nodes.len() as i64, block_size);
        for (block, bytes) in built.nodes {
            self.volume.put_if_other(block, bytes)?;
        }
        Ok(())
    }

    /// A part of a file with a block map; whether there was something to move.
    fn step_pointers(&mut self, inode: &mut Inode, budget: &mut Budget) -> Result<bool> {
        let mut root = inode.root().to_vec();
        for slot in 0..15 {
            let level = (slot as u32).saturating_sub(11);
            let new = self.move_pointer(le32(&root, 4 * slot), level, budget)?;
            put(&mut root, 4 * slot, &new.to_le_bytes());
        }
        inode.set_root(&root);
        // A step always moves something where there is something to move.
        Ok(budget.blocks < MOST_BLOCKS)
    }

    /// Where what a pointer names is from now on.
    fn move_pointer(&mut self, pointer: u32, level: u32, budget: &mut Budget) -> Result<u32> {
        if pointer == 0 || budget.is_spent() {
            return Ok(pointer);
        }
        let old = u64::from(pointer);
        let mut place = old;
        if old >= self.limit {
            place = self.one()?;
            self.free(old..old + 1);
            budget.spend(1);
            // Blocks that follow each other are one piece.
            budget.pieces += u64::from(level == 0);
        }
        if level == 0 {
            if place != old {
                self.copy(old, place, 1);
            }
            return Ok(place as u32);
        }
        let before = self.volume.read(old)?;
        let mut bytes = before.clone();
        for at in (0..bytes.len()).step_by(4) {
            let new = self.move_pointer(le32(&bytes, at), level - 1, budget)?;
            put(&mut bytes, at, &new.to_le_bytes());
        }
        if place != old {
            self.volume.changed.remove(&old);
        }
        if place != old || bytes != before {
            self.volume.changed.insert(place, bytes);
        }
        Ok(place as u32)
    }

    /// The block of the resize inode's own map; what it lists follows from the geometry.
    fn relocate_resize_root(&mut self, mut inode: Inode) -> Result<()> {
        const DOUBLE_INDIRECT: usize = 13;
        let mut root = inode.root().to_vec();
        let old = u64::from(le32(&root, 4 * DOUBLE_INDIRECT));
        if old < self.limit {
            return Ok(());
        }
        let new = self.one()?;
        let bytes = self.volume.read(old)?;
        self.volume.changed.insert(new, bytes);
        self.free(old..old + 1);
        put(&mut root, 4 * DOUBLE_INDIRECT, &(new as u32).to_le_bytes());
        inode.set_root(&root);
        self.volume.set_inode(&mut inode)?;
        self.commit_if_full()
    }

    /// Where the attributes in `block` are for one more of the inodes that have them.
    fn relocate_attributes(&mut self, block: u64) -> Result<u64> {
        let mut old = self.volume.read(block)?;
        let left = le32(&old, 4);
        if le32(&old, 0) != ATTRIBUTES_MAGIC || left == 0 {
            return Err(corrupt(format!("block {block} has no attributes")));
        }
        let (place, held) = match self.attributes.get(&block) {
            Some(place) => (*place, le32(&self.volume.read(*place)?, 4)),
            None => (self.one()?, 0),
        };
        let mut new = old.clone();
        put(&mut new, 4, &(held + 1).to_le_bytes());
        self.seal_attributes(place, &mut new);
        self.volume.changed.insert(place, new);
        self.moved += 1;
        if left == 1 {
            self.attributes.remove(&block);
            self.volume.changed.remove(&block);
            self.free(block..block + 1);
        } else {
            self.attributes.insert(block, place);
            put(&mut old, 4, &(left - 1).to_le_bytes());
            self.seal_attributes(block, &mut old);
            self.volume.changed.insert(block, old);
        }
        Ok(place)
    }

    fn seal_attributes(&self, block: u64, bytes: &mut [u8]) {
        let superblock = &self.volume.superblock;
        if superblock.features().ro_compat & METADATA_CSUM != 0 {
            put(bytes, 16, &[0; 4]);
            let checksum = crc(crc(superblock.seed(), &block.to_le_bytes()), bytes);
            put(bytes, 16, &checksum.to_le_bytes());
        }
    }
}

/// Adds a run, or lengthens the last one by it.
pub(super) fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        _ if run.length == 0 => {}
        Some(last)
            if last.end() == run.physical
                && last.logical + last.length == run.logical
                && last.unwritten == run.unwritten =>
        {
            last.length += run.length;
        }
        _ => runs.push(run),
    }
}
