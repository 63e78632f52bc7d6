//! Changes to bitmaps, descriptors and inodes, in memory until they are committed.

use super::bitmap;
use super::descriptor::{BLOCK_UNINIT, Descriptor, Field};
use super::inode::Inode;
use super::superblock::{corrupt, has_descriptor_checksums};
use super::volume::Volume;
use crate::Result;
use crate::field::put;

impl Volume<'_> {
    /// Contents of a block of descriptors.
    pub(super) fn descriptor_block(&self, index: u32) -> Vec<u8> {
        let size = self.geometry.block_size as usize;
        let at = index as usize * size;
        let mut bytes =
            self.descriptors.get(at..(at + size).min(self.descriptors.len())).unwrap_or(&[]).to_vec();
        bytes.resize(size, 0);
        // What is behind the last group is nobody's.
        let left = (self.geometry.groups - index * self.geometry.descriptors_per_block()) as usize;
        let used = left.saturating_mul(self.geometry.descriptor_size as usize).min(size);
        bytes[used..].fill(0);
        bytes
    }

    pub(super) fn set_descriptor(&mut self, group: u32, mut descriptor: Descriptor) {
        descriptor.seal(&self.superblock, group);
        let size = self.geometry.descriptor_size as usize;
        let at = group as usize * size;
        if self.descriptors.len() < at + size {
            self.descriptors.resize(at + size, 0);
        }
        put(&mut self.descriptors, at, &descriptor.0);
        self.changed_descriptors.insert(group / self.geometry.descriptors_per_block());
    }

    /// Bytes of a block bitmap its checksum covers.
    fn summed(&self) -> usize {
        (self.geometry.blocks_per_group / self.geometry.cluster / 8) as usize
    }

    /// The block bitmap of a group, computed where the group's own is not initialized.
    pub(super) fn block_bitmap(&self, group: u32) -> Result<Vec<u8>> {
        let descriptor = self.descriptor(group);
        if self.is_block_uninit(&descriptor) {
            return Ok(bitmap::uninitialized(&self.geometry, &descriptor, group));
        }
        let bits = self.read(descriptor.get(Field::BlockBitmap))?;
        if !descriptor.bitmap_fits(Field::BlockBitmapChecksum, &self.superblock, &bits[..self.summed()]) {
            return Err(corrupt(format!("the checksum of the block bitmap of group {group} does not fit")));
        }
        Ok(bits)
    }

    pub(super) fn is_block_uninit(&self, descriptor: &Descriptor) -> bool {
        descriptor.flags() & BLOCK_UNINIT != 0 && has_descriptor_checksums(self.superblock.features())
    }

    /// Stores a block bitmap, and what follows from it: the count of free blocks and the checksum.
    pub(super) fn set_block_bitmap(&mut self, group: u32, bits: Vec<u8>) {
        let mut descriptor = self.descriptor(group);
        let blocks = self.geometry.group(group);
        descriptor.set(Field::FreeBlocks, bitmap::count_clear(&bits, blocks.end - blocks.start));
        descriptor.seal_bitmap(Field::BlockBitmapChecksum, &self.superblock, &bits[..self.summed()]);
        descriptor.set_flags(descriptor.flags() & !BLOCK_UNINIT);
        self.changed.insert(descriptor.get(Field::BlockBitmap), bits);
        self.set_descriptor(group, descriptor);
    }

    /// Marks blocks as used or as free.
    pub(super) fn set_blocks(&mut self, blocks: std::ops::Range<u64>, used: bool) -> Result<()> {
        let mut start = blocks.start;
        while start < blocks.end {
            let group = self.geometry.group_of(start);
            let whole = self.geometry.group(group);
            let end = blocks.end.min(whole.end);
            if end <= start {
                return Err(corrupt(format!("blocks {start} to {} are not in the file system", blocks.end)));
            }
            let mut bits = self.block_bitmap(group)?;
            let range = start - whole.start..end - whole.start;
            if used {
                bitmap::set(&mut bits, range);
            } else {
                bitmap::clear(&mut bits, range);
            }
            self.set_block_bitmap(group, bits);
            start = end;
        }
        Ok(())
    }

    /// Stores an inode with its checksum.
    pub(super) fn set_inode(&mut self, inode: &mut Inode) -> Result<()> {
        inode.seal(&self.superblock);
        let (block, at) = self.inode_place(inode.number)?;
        let mut bytes = self.read(block)?;
        put(&mut bytes, at, &inode.bytes);
        self.changed.insert(block, bytes);
        Ok(())
    }

    /// Totals of the superblock from what the descriptors say.
    pub(super) fn total(&mut self) {
        let sum =
            |field| (0..self.geometry.groups).map(|group| self.descriptor(group).get(field)).sum::<u64>();
        let (blocks, inodes) = (sum(Field::FreeBlocks), sum(Field::FreeInodes));
        self.superblock.set_free_blocks(blocks);
        self.superblock.set_u32(0x10, inodes as u32);
    }
}
