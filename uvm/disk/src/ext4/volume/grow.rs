//! Growing: new groups behind the old ones, some at a time, each time one transaction.
//!
//! More descriptors go where the resize inode kept room for them. Where none is left, or never was, the file system
//! changes to meta block groups, each of which has its descriptors in itself: what the kernel does.

use std::ops::Range;

use super::bitmap;
use super::descriptor::{BLOCK_UNINIT, Descriptor, Field, INODE_UNINIT};
use super::features::{META_BG, RESIZE_INODE};
use super::superblock::{Geometry, corrupt, has_descriptor_checksums};
use super::volume::Volume;
use crate::{Error, Result};

/// Groups added in one transaction: their bitmaps are in memory meanwhile.
const MOST_GROUPS: u32 = 512;

impl Volume<'_> {
    /// Grows towards `blocks` by one transaction; `blocks` is what the plan said.
    pub(super) fn grow_step(&mut self, blocks: u64) -> Result<()> {
        let old = self.geometry;
        if self.must_convert(blocks)? {
            return self.convert_to_meta_bg();
        }
        let blocks = blocks.min(self.next_stop(blocks));
        let mut new = old.with_blocks(blocks)?;
        if old.first_meta_bg.is_none() {
            new.reserved_descriptors = old.joint_span().saturating_sub(u64::from(new.descriptor_blocks()));
        }
        self.geometry = new;
        self.describe(&old)?;
        self.lengthen_last_group(&old)?;
        for flex in old.groups / new.flex..new.groups.div_ceil(new.flex) {
            let groups = (flex * new.flex).max(old.groups)..((flex + 1) * new.flex).min(new.groups);
            if !groups.is_empty() {
                self.add_groups(groups)?;
            }
        }
        if self.superblock.features().compat & RESIZE_INODE != 0 {
            self.rebuild_resize_inode()?;
        }
        self.total();
        self.commit(old.blocks)
    }

    /// Where this transaction ends at the latest.
    fn next_stop(&self, blocks: u64) -> u64 {
        let geometry = &self.geometry;
        let mut groups = u64::from(geometry.groups + MOST_GROUPS);
        if geometry.first_meta_bg.is_none() {
            let per_block = u64::from(geometry.descriptors_per_block());
            groups = groups.min(geometry.joint_span() * per_block);
        }
        let stop = geometry.first_data_block + groups * geometry.blocks_per_group;
        stop.min(blocks)
    }

    /// Whether not even one more group has room for its descriptor.
    fn must_convert(&self, blocks: u64) -> Result<bool> {
        let geometry = &self.geometry;
        let full = geometry.joint_span() * u64::from(geometry.descriptors_per_block());
        let needs_group = geometry.with_blocks(blocks)?.groups > geometry.groups;
        Ok(geometry.first_meta_bg.is_none() && needs_group && u64::from(geometry.groups) >= full)
    }

    /// From here on, descriptors are in the groups they describe.
    fn convert_to_meta_bg(&mut self) -> Result<()> {
        let mut features = self.superblock.features();
        if features.compat & RESIZE_INODE != 0 {
            self.drop_resize_inode()?;
            features.compat &= !RESIZE_INODE;
        }
        features.incompat |= META_BG;
        self.superblock.set_features(features);
        let joint = self.geometry.descriptor_blocks();
        self.superblock.set_u32(0x104, joint);
        self.geometry.first_meta_bg = Some(joint);
        self.geometry.reserved_descriptors = 0;
        self.total();
        self.commit(u64::MAX)
    }

    /// The new sizes in the superblock.
    pub(super) fn describe(&mut self, old: &Geometry) -> Result<()> {
        let new = self.geometry;
        let reserved = u128::from(self.superblock.reserved_blocks()) * u128::from(new.blocks);
        self.superblock.set_reserved_blocks((reserved / u128::from(old.blocks)) as u64);
        self.superblock.set_blocks(new.blocks);
        let inodes = new.groups.checked_mul(new.inodes_per_group);
        let inodes = inodes.ok_or_else(|| corrupt("an ext file system cannot have 2^32 inodes"))?;
        self.superblock.set_u32(0x00, inodes);
        let word = self.superblock.u32(0xCC) & 0xFFFF;
        if self.superblock.features().compat & RESIZE_INODE != 0 {
            self.superblock.set_u32(0xCC, word | (new.reserved_descriptors as u32) << 16);
        }
        // Blocks of metadata: the kernel counts them anew where this is 0.
        self.superblock.set_u32(0x248, 0);
        Ok(())
    }

    /// What of the last old group was not there becomes free.
    fn lengthen_last_group(&mut self, old: &Geometry) -> Result<()> {
        let last = old.groups - 1;
        let (before, after) = (old.group(last), self.geometry.group(last));
        if before.end == after.end {
            return Ok(());
        }
        let descriptor = self.descriptor(last);
        if self.is_block_uninit(&descriptor) {
            let mut descriptor = descriptor;
            let bits = bitmap::uninitialized(&self.geometry, &descriptor, last);
            descriptor.set(Field::FreeBlocks, bitmap::count_clear(&bits, after.end - after.start));
            self.set_descriptor(last, descriptor);
            return Ok(());
        }
        self.set_blocks(before.end..after.end, false)
    }

    /// New groups of one flex group: their metadata lies together, as far as it finds room in one piece.
    fn add_groups(&mut self, groups: Range<u32>) -> Result<()> {
        let geometry = self.geometry;
        let mut free = free_runs(&geometry, groups.clone());
        let mut take = |length: u64| -> Result<u64> {
            let run = free.iter_mut().find(|run| run.end - run.start >= length);
            let run = run.ok_or_else(|| no_room(&geometry))?;
            run.start += length;
            Ok(run.start - length)
        };
        let mut descriptors = vec![Descriptor(vec![0; geometry.descriptor_size as usize]); groups.len()];
        for (field, length) in [
            (Field::BlockBitmap, 1),
            (Field::InodeBitmap, 1),
            (Field::InodeTable, geometry.inode_table_blocks()),
        ] {
            for descriptor in &mut descriptors {
                descriptor.set(field, take(length)?);
            }
        }
        let lazy = has_descriptor_checksums(self.superblock.features());
        for (group, descriptor) in groups.clone().zip(&descriptors) {
            let bits = used_bits(&geometry, group, &descriptors);
            let untouched = bits == bitmap::uninitialized(&geometry, descriptor, group);
            self.add_group(group, descriptor.clone(), bits, lazy, untouched)?;
        }
        Ok(())
    }

    fn add_group(
        &mut self,
        group: u32,
        mut descriptor: Descriptor,
        bits: Vec<u8>,
        lazy: bool,
        untouched: bool,
    ) -> Result<()> {
        let geometry = self.geometry;
        let inodes = u64::from(geometry.inodes_per_group);
        descriptor.set(Field::FreeInodes, inodes);
        let mut inode_bits = vec![0; geometry.block_size as usize];
        bitmap::set(&mut inode_bits, inodes..u64::from(geometry.block_size) * 8);
        if lazy {
            descriptor.set(Field::UnusedInodes, inodes);
            descriptor.set_flags(INODE_UNINIT);
        } else {
            let (start, length) = (descriptor.get(Field::InodeTable), geometry.inode_table_blocks());
            let (offset, length) = (geometry.offset(start), geometry.offset(length));
            let zeroed = self.source.device.write_zeroes(offset, length);
            zeroed.map_err(|error| Error::io("zeroing an ext inode table", offset, error))?;
            self.changed.insert(descriptor.get(Field::InodeBitmap), inode_bits);
        }
        let blocks = geometry.group(group);
        if lazy && untouched && group + 1 < geometry.groups {
            descriptor.set(Field::FreeBlocks, bitmap::count_clear(&bits, blocks.end - blocks.start));
            descriptor.set_flags(descriptor.flags() | BLOCK_UNINIT);
            self.set_descriptor(group, descriptor);
        } else {
            self.set_descriptor(group, descriptor);
            self.set_block_bitmap(group, bits);
        }
        Ok(())
    }
}

/// What is left for metadata in groups that are new: all behind the copies; across groups where they are in one flex
/// group.
fn free_runs(geometry: &Geometry, groups: Range<u32>) -> Vec<Range<u64>> {
    let mut free: Vec<Range<u64>> = Vec::new();
    for group in groups {
        let (start, end) = (geometry.base_metadata(group).end, geometry.group(group).end);
        match free.last_mut() {
            Some(run) if run.end == start => run.end = end,
            _ => free.push(start..end),
        }
    }
    free
}

/// The bitmap of a new group whose flex group has these descriptors.
fn used_bits(geometry: &Geometry, group: u32, descriptors: &[Descriptor]) -> Vec<u8> {
    let blocks = geometry.group(group);
    let mut bits = vec![0; geometry.block_size as usize];
    bitmap::mark(&mut bits, geometry, &blocks, geometry.base_metadata(group));
    for descriptor in descriptors {
        for (field, length) in [
            (Field::BlockBitmap, 1),
            (Field::InodeBitmap, 1),
            (Field::InodeTable, geometry.inode_table_blocks()),
        ] {
            let start = descriptor.get(field);
            bitmap::mark(&mut bits, geometry, &blocks, start..start + length);
        }
    }
    bitmap::set(&mut bits, blocks.end - blocks.start..u64::from(geometry.block_size) * 8);
    bits
}

fn no_room(geometry: &Geometry) -> Error {
    let context = format!("the metadata of new groups does not fit {} blocks", geometry.blocks);
    Error::new(crate::ErrorKind::NoSpace, context)
}
