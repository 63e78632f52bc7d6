//! The resize inode: inode 7 holds the blocks kept behind the descriptors, and their counterparts in the groups with
//! copies, so that nothing else takes them.
//!
//! Its double indirect block lists the kept blocks of group 0; each of these is an indirect block that lists its
//! counterparts. All of it follows from the geometry.
//!
//! One more group with copies changes every one of the kept blocks, in one transaction. Where the journal is too small
//! for that, fewer are kept.

use super::inode::RESIZE;
use super::superblock::{Geometry, corrupt};
use super::volume::Volume;
use crate::Result;
use crate::field::{le32, put};

const DOUBLE_INDIRECT: usize = 13;

impl Volume<'_> {
    /// The block of the resize inode's map.
    fn resize_root(&self) -> Result<u64> {
        match le32(self.inode(RESIZE)?.root(), 4 * DOUBLE_INDIRECT) {
            0 => Err(corrupt("the resize inode has no blocks")),
            block => Ok(u64::from(block)),
        }
    }

    /// Blocks kept for descriptors at most.
    fn most_reserved(&self) -> u64 {
        if self.journal.is_some() { self.capacity() / 2 } else { u64::MAX }
    }

    /// What is left with an end at `blocks`.
    pub(super) fn shrunk(&self, blocks: u64) -> Result<Geometry> {
        let mut new = self.geometry.shrunk(blocks)?;
        new.reserved_descriptors = new.reserved_descriptors.min(self.most_reserved());
        Ok(new)
    }

    /// Gives back kept blocks where growing to `blocks` changes more of them than one transaction may.
    pub(super) fn trim_reserve(&mut self, blocks: u64) -> Result<()> {
        let old = self.geometry;
        let grown = old.with_blocks(blocks)?;
        let same_copies = grown.superblock_groups().count() == old.superblock_groups().count();
        if old.reserved_descriptors <= self.most_reserved() || same_copies {
            return Ok(());
        }
        let mut new = old;
        new.reserved_descriptors = self.most_reserved();
        for group in old.superblock_groups() {
            let kept = new.base_metadata(group).end..old.base_metadata(group).end;
            self.free_base(kept, old.groups - 1)?;
        }
        self.geometry = new;
        self.describe(&old)?;
        self.rebuild_resize_inode()?;
        self.total();
        self.commit(u64::MAX)
    }

    /// Makes the resize inode what the geometry demands of it.
    pub(super) fn rebuild_resize_inode(&mut self) -> Result<()> {
        let geometry = self.geometry;
        let root = self.resize_root()?;
        let per_block = u64::from(geometry.block_size) / 4;
        let copies: Vec<u64> =
            geometry.superblock_groups().skip(1).map(|g| geometry.group_start(g)).collect();
        let first = u64::from(geometry.descriptor_blocks());
        let mut list = vec![0; geometry.block_size as usize];
        for index in first..first + geometry.reserved_descriptors {
            let place = geometry.group_start(0) + 1 + index;
            put(&mut list, (index % per_block * 4) as usize, &(place as u32).to_le_bytes());
            let mut counterparts = vec![0; geometry.block_size as usize];
            for (at, start) in copies.iter().enumerate().take(per_block as usize) {
                put(&mut counterparts, 4 * at, &((start + 1 + index) as u32).to_le_bytes());
            }
            self.put_if_other(place, counterparts)?;
        }
        self.put_if_other(root, list)?;
        let mut inode = self.inode(RESIZE)?;
        let blocks = 1 + geometry.reserved_descriptors * (1 + copies.len() as u64);
        inode.set_blocks(blocks, geometry.block_size);
        self.set_inode(&mut inode)
    }

    pub(super) fn put_if_other(&mut self, block: u64, bytes: Vec<u8>) -> Result<()> {
        if self.read(block)? != bytes {
            self.changed.insert(block, bytes);
        }
        Ok(())
    }

    /// Empties the resize inode, of which nothing but its own block is left.
    pub(super) fn drop_resize_inode(&mut self) -> Result<()> {
        let root = self.resize_root()?;
        let mut inode = self.inode(RESIZE)?;
        inode.set_root(&[0; 60]);
        inode.set_blocks(0, self.geometry.block_size);
        self.set_inode(&mut inode)?;
        self.set_blocks(root..root + 1, false)
    }
}
