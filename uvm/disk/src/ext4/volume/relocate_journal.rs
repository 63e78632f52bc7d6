//! Moving the journal, which cannot go into a transaction of itself.
//!
//! ```text
//! transaction   the new blocks are marked as used       a cut from here on leaves them to nobody
//! end           the log is empty, nothing to recover
//! copy          the log, its map, its superblock        nobody has a way there yet
//! inode         one write of one sector                 <- from here on the journal is in its new place
//! begin
//! transaction   the old blocks are marked as free
//! ```
//!
//! Blocks that are left to nobody do no harm; the next shrink frees them, as e2fsck does.

use super::bitmap;
use super::inode::Inode;
use super::journal::Journal;
use super::map::{Map, Run};
use super::relocate::{Mover, push};
use super::superblock::{Geometry, corrupt};
use super::tree;
use super::volume::Volume;
use super::{features::METADATA_CSUM, inode::RESIZE};
use crate::Result;
use crate::field::put;

/// `s_jnl_backup_type`: the superblock has a copy of the journal's `i_block`.
const BACKUP_TYPE: usize = 0xFD;
const BACKUP: usize = 0x10C;
/// Blocks whose owners are looked for at a time: 16 MiB of memory.
const WINDOW: u64 = 1 << 27;

impl Mover<'_, '_> {
    /// Moves what of the journal is behind the end.
    pub(super) fn relocate_journal(&mut self) -> Result<()> {
        let number = self.volume.superblock.journal_inode();
        let mut inode = self.volume.inode(number.ok_or_else(|| corrupt("the ext journal has no inode"))?)?;
        let old = self.volume.map(&inode)?;
        let runs = self.journal_runs(&old)?;
        let nodes = self.plant_journal(&mut inode, &old, &runs)?;
        self.commit()?;
        self.volume.end()?;
        for (block, bytes) in nodes {
            self.volume.write_block(block, &bytes, "writing the map of the ext journal")?;
        }
        let map = Map { runs, nodes: Vec::new() };
        if let (Some(journal), Some(place)) = (&self.volume.journal, map.physical(0)) {
            self.volume.write_block(
                place,
                &journal.superblock,
                "writing the superblock of the ext journal",
            )?;
        }
        self.volume.flush()?;
        self.switch_journal(&mut inode)?;
        self.volume.begin()?;
        let limit = self.limit;
        for run in old.runs.iter().filter(|run| run.end() > limit) {
            self.free(run.physical.max(limit)..run.end());
        }
        for node in old.nodes {
            self.free(node..node + 1);
        }
        self.volume.copy_journal_map(&inode);
        self.commit()
    }

    /// New blocks for those behind the end.
    fn journal_runs(&mut self, old: &Map) -> Result<Vec<Run>> {
        let mut runs = Vec::with_capacity(old.runs.len());
        for run in &old.runs {
            let mut done = self.limit.saturating_sub(run.physical).min(run.length);
            push(&mut runs, Run { length: done, ..*run });
            while done < run.length {
                let blocks = self.allocate(run.length - done)?;
                let length = blocks.end - blocks.start;
                self.copy(run.physical + done, blocks.start, length);
                let (logical, physical) = (run.logical + done, blocks.start);
                push(&mut runs, Run { logical, physical, length, unwritten: false });
                done += length;
            }
        }
        Ok(runs)
    }

    /// Gives the journal's inode its new map; the blocks of that are yet to be written.
    fn plant_journal(&mut self, inode: &mut Inode, old: &Map, runs: &[Run]) -> Result<Vec<(u64, Vec<u8>)>> {
        let block_size = self.volume.geometry.block_size;
        let needed = if inode.has_extents() {
            tree::nodes_needed(runs, block_size)
        } else {
            tree::pointer_nodes_needed(runs, block_size)?
        };
        let mut blocks = Vec::with_capacity(needed);
        while blocks.len() < needed {
            blocks.push(self.allocate(1)?.start);
        }
        let checksums = self.volume.superblock.features().ro_compat & METADATA_CSUM != 0;
        let seed = checksums.then(|| inode.seed(&self.volume.superblock));
        let built = if inode.has_extents() {
            tree::build(runs, &blocks, block_size, seed)
        } else {
            tree::build_pointers(runs, &blocks, block_size)
        };
        inode.set_root(&built.root);
        inode.add_blocks(needed as i64 - old.nodes.len() as i64, block_size);
        Ok(built.nodes)
    }

    /// The one write that makes the new place the journal's: what differs is in one sector.
    fn switch_journal(&mut self, inode: &mut Inode) -> Result<()> {
        inode.seal(&self.volume.superblock);
        let (block, at) = self.volume.inode_place(inode.number)?;
        let mut bytes = self.volume.read(block)?;
        put(&mut bytes, at, &inode.bytes);
        self.volume.write_block(block, &bytes, "writing the inode of the ext journal")?;
        self.volume.flush()?;
        let map = self.volume.map(inode)?;
        self.volume.journal = Some(Journal::read(&self.volume.source, map)?);
        Ok(())
    }
}

impl Volume<'_> {
    /// The superblock's copy of where the journal is.
    pub(super) fn copy_journal_map(&mut self, inode: &Inode) {
        if self.superblock.0[BACKUP_TYPE] == 1 {
            put(&mut self.superblock.0, BACKUP, inode.root());
        }
    }

    /// Frees blocks that are marked as used and belong to nobody: an interrupted move of the journal leaves some.
    pub(super) fn free_leaks(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let mut start = 0;
        while start < geometry.blocks {
            let window = start..(start + WINDOW).min(geometry.blocks);
            let mut owned = vec![0; ((window.end - window.start).div_ceil(8)) as usize];
            let mut mark = |blocks: std::ops::Range<u64>| {
                let (from, to) = (blocks.start.max(window.start), blocks.end.min(window.end));
                if from < to {
                    bitmap::set(&mut owned, from - window.start..to - window.start);
                }
            };
            self.for_each_owned(&geometry, &mut mark)?;
            for group in 0..geometry.groups {
                let blocks = geometry.group(group);
                let (from, to) = (blocks.start.max(window.start), blocks.end.min(window.end));
                if from < to {
                    self.free_unowned(group, from..to, window.start, &owned)?;
                }
            }
            start = window.end;
        }
        self.total();
        self.commit(u64::MAX)
    }

    fn for_each_owned(&self, geometry: &Geometry, mark: &mut dyn FnMut(std::ops::Range<u64>)) -> Result<()> {
        for group in 0..geometry.groups {
            mark(geometry.base_metadata(group));
            self.metadata_of(group).into_iter().for_each(|(_, blocks)| mark(blocks));
        }
        self.for_each_inode(0..geometry.groups, &mut |inode| {
            let map = self.owned(&inode)?;
            map.nodes.iter().for_each(|node| mark(*node..node + 1));
            if inode.number != RESIZE {
                map.runs.iter().for_each(|run| mark(run.physical..run.end()));
            }
            inode.attributes().into_iter().for_each(|block| mark(block..block + 1));
            Ok(())
        })
    }

    fn free_unowned(
        &mut self,
        group: u32,
        blocks: std::ops::Range<u64>,
        origin: u64,
        owned: &[u8],
    ) -> Result<()> {
        let start = self.geometry.group_start(group);
        let mut bits = self.block_bitmap(group)?;
        let before = bits.clone();
        for block in blocks {
            if bitmap::is_set(&before, block - start) && !bitmap::is_set(owned, block - origin) {
                bitmap::clear(&mut bits, block - start..block - start + 1);
            }
        }
        if bits != before {
            self.set_block_bitmap(group, bits);
            if self.changed.len() as u64 > self.capacity() / 4 {
                self.total();
                self.commit(u64::MAX)?;
            }
        }
        Ok(())
    }
}
