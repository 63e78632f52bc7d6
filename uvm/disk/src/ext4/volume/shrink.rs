//! Shrinking: what is behind the new end moves below it, then one transaction cuts the rest off.
//!
//! Each transaction leaves a file system that is sound, of the old size: whoever is interrupted plans once more and
//! finds less to move.

use super::bitmap;
use super::descriptor::{BLOCK_UNINIT, Field};
use super::features::{FLEX_BG, RESIZE_INODE};
use super::inode::RESIZE;
use super::relocate::Mover;
use super::superblock::{Geometry, corrupt};
use super::volume::Volume;
use crate::{Error, ErrorKind, Result};

impl Volume<'_> {
    /// Cuts the file system off at `blocks`; `progress` hears how many blocks were moved.
    pub(super) fn shrink(&mut self, blocks: u64, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let new = self.shrunk(blocks)?;
        let survey = self.survey(&new)?;
        if survey.leaked > 0 {
            self.free_leaks()?;
        }
        let mut mover = Mover::new(self, blocks);
        mover.relocate_metadata(&new)?;
        if survey.journal > 0 {
            mover.relocate_journal()?;
        }
        mover.renumber(&new)?;
        mover.relocate_files(&new, progress)?;
        self.cut_off(new)
    }

    /// The last transaction: the new end, and what the geometry says in front of it.
    fn cut_off(&mut self, new: Geometry) -> Result<()> {
        let old = self.geometry;
        let freed: Vec<_> = (0..new.groups)
            .map(|group| new.base_metadata(group).end..old.base_metadata(group).end.min(new.blocks))
            .filter(|blocks| !blocks.is_empty())
            .collect();
        for blocks in freed {
            self.free_base(blocks, new.groups - 1)?;
        }
        // Of groups that go, flex groups have metadata in groups that stay.
        for group in new.groups..old.groups {
            for (_, blocks) in self.metadata_of(group) {
                let end = blocks.end.min(new.blocks);
                if blocks.start < end {
                    self.set_blocks(blocks.start..end, false)?;
                }
            }
        }
        let last = new.groups - 1;
        let mut bits = self.block_bitmap(last)?;
        let blocks = new.group(last);
        bitmap::set(&mut bits, blocks.end - blocks.start..u64::from(new.block_size) * 8);
        self.geometry = new;
        self.set_block_bitmap(last, bits);
        self.descriptors.truncate((new.groups * new.descriptor_size) as usize);
        self.describe(&old)?;
        if let Some(first) = new.first_meta_bg {
            self.superblock.set_u32(0x104, first);
        }
        if let Some([one, two]) = new.named_copies() {
            self.superblock.set_u32(0x24C, one);
            self.superblock.set_u32(0x250, two);
        }
        if self.superblock.features().compat & RESIZE_INODE != 0 {
            self.rebuild_resize_inode()?;
        }
        if let Some(number) = self.superblock.journal_inode() {
            let inode = self.inode(number)?;
            self.copy_journal_map(&inode);
        }
        // The last block of descriptors has lost some.
        self.changed_descriptors.insert(new.descriptor_blocks() - 1);
        self.total();
        self.commit(u64::MAX)
    }

    /// Frees blocks that were a group's for superblock and descriptors. A bitmap that is not there follows from the
    /// geometry; the last group gets one.
    pub(super) fn free_base(&mut self, blocks: std::ops::Range<u64>, last: u32) -> Result<()> {
        let group = self.geometry.group_of(blocks.start);
        let mut descriptor = self.descriptor(group);
        if group == last || !self.is_block_uninit(&descriptor) {
            return self.set_blocks(blocks, false);
        }
        descriptor.set(Field::FreeBlocks, descriptor.get(Field::FreeBlocks) + blocks.end - blocks.start);
        descriptor.set_flags(descriptor.flags() | BLOCK_UNINIT);
        self.set_descriptor(group, descriptor);
        Ok(())
    }
}

impl Mover<'_, '_> {
    /// Bitmaps and inode tables of kept groups that are behind the end.
    fn relocate_metadata(&mut self, new: &Geometry) -> Result<()> {
        let flexible = self.volume.superblock.features().incompat & FLEX_BG != 0;
        for group in 0..new.groups {
            for (field, old) in self.volume.metadata_of(group) {
                if old.end <= self.limit {
                    continue;
                }
                let length = old.end - old.start;
                let place = self.room(group, length, flexible)?;
                self.volume.set_blocks(place..place + length, true)?;
                for offset in 0..length {
                    if let Some(bytes) = self.volume.changed.remove(&(old.start + offset)) {
                        self.volume.changed.insert(place + offset, bytes);
                    }
                }
                self.copy(old.start, place, length);
                self.free(old);
                let mut descriptor = self.volume.descriptor(group);
                descriptor.set(field, place);
                self.volume.set_descriptor(group, descriptor);
                self.commit()?;
            }
        }
        Ok(())
    }

    /// Free blocks in one piece below the end, in the group itself where it is not part of a flex group.
    fn room(&self, group: u32, length: u64, flexible: bool) -> Result<u64> {
        let groups = self.volume.geometry.group_of(self.limit - 1) + 1;
        let elsewhere = 0..if flexible { groups } else { 0 };
        for group in std::iter::once(group).chain(elsewhere.rev()) {
            let run = self.free_run(group, length)?;
            if run.end - run.start == length {
                return Ok(run.start);
            }
        }
        let context =
            format!("metadata of ext group {group} needs {length} free blocks in one piece below the end");
        Err(Error::new(ErrorKind::NoSpace, context))
    }

    /// All of files that is behind the end.
    fn relocate_files(&mut self, new: &Geometry, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut behind = Vec::new();
        let journal = self.volume.superblock.journal_inode();
        let limit = self.limit;
        for group in 0..self.volume.geometry.groups {
            self.volume.for_each_inode(group..group + 1, &mut |inode| {
                let map = self.volume.owned(&inode)?;
                let has_some = inode.attributes().is_some_and(|block| block >= limit)
                    || map.nodes.iter().any(|node| *node >= limit)
                    || inode.number != RESIZE && map.runs.iter().any(|run| run.end() > limit);
                if has_some && Some(inode.number) != journal {
                    behind.push(inode.number);
                }
                Ok(())
            })?;
            for number in behind.drain(..) {
                let inode = self.volume.inode(number)?;
                if number > new.inodes() {
                    return Err(corrupt(format!("inode {number} is behind the end")));
                }
                self.relocate(inode)?;
                progress(self.moved);
            }
        }
        self.commit()
    }
}
