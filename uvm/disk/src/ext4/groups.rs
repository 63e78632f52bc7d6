//! What belongs to block groups: bitmaps, inode tables and the descriptors that tell where they are.

use std::ops::Range;

use super::builder::Ext4Builder;
use super::bytes::{crc, crc16, high16, high32, low16, low32, put_u16, put_u32};
use super::layout::{FIRST_INODE, Flex, Layout};
use super::options::{Backups, Checksums};
use super::writer::WriteBehind;
use crate::{Error, Result};

const INODE_UNINIT: u16 = 0x1;
const BLOCK_UNINIT: u16 = 0x2;
const INODE_TABLE_ZEROED: u16 = 0x4;
/// With 64bit; else the first half of it.
const LARGEST_DESCRIPTOR: usize = 64;
/// Descriptors in memory before they go to all their places.
const DESCRIPTORS_GATHERED: usize = 1 << 20;

/// What a group descriptor says of the inodes of a group.
#[derive(Default)]
struct InodesOfGroup {
    used: u32,
    directories: u32,
    /// Highest one in use, counted from 1 within the group.
    highest: u32,
    bitmap_checksum: u32,
}

/// What it says of the blocks.
struct BlocksOfGroup {
    free: u32,
    uninitialized: bool,
    bitmap_checksum: u32,
}

/// Descriptors on their way to their places: the bytes in memory do not grow with the device.
struct Descriptors {
    layout: Layout,
    bytes: Vec<u8>,
    /// Descriptor block of the first byte.
    first: u32,
    /// Bytes to gather: whole blocks.
    most: usize,
}

impl Descriptors {
    fn new(layout: Layout) -> Self {
        // With meta_bg no two blocks lie together.
        let spread = layout.backups == Backups::MetaGroups;
        let most = if spread { layout.block_size as usize } else { DESCRIPTORS_GATHERED };
        Self { layout, bytes: Vec::new(), first: 0, most }
    }

    fn push(&mut self, descriptor: &[u8], writer: &mut WriteBehind) -> Result<()> {
        self.bytes.extend_from_slice(descriptor);
        if self.bytes.len() >= self.most { self.write(writer) } else { Ok(()) }
    }

    fn write(&mut self, writer: &mut WriteBehind) -> Result<()> {
        let block_size = self.layout.block_size as usize;
        self.bytes.resize(self.bytes.len().next_multiple_of(block_size), 0);
        if !self.bytes.is_empty() {
            for place in self.layout.descriptor_places(self.first) {
                writer.write(self.layout.offset(place), &self.bytes)?;
            }
        }
        self.first += (self.bytes.len() / block_size) as u32;
        self.bytes.clear();
        Ok(())
    }
}

impl Ext4Builder {
    /// Writes what belongs to each group; the number of free inodes.
    pub(super) fn write_groups(&mut self) -> Result<u32> {
        let mut descriptors = Descriptors::new(self.layout);
        let mut free_inodes = 0;
        for index in 0..self.layout.flexes() {
            let flex = self.layout.flex(index)?;
            let blocks = self.write_block_bitmaps(index, &flex)?;
            let inodes = self.write_inode_bitmaps(&flex)?;
            self.write_inode_tables(&flex, &inodes)?;
            for (group, (blocks, inodes)) in flex.groups.clone().zip(blocks.iter().zip(&inodes)) {
                free_inodes += self.layout.inodes_per_group - inodes.used;
                let descriptor = self.descriptor(&flex, group, blocks, inodes);
                descriptors.push(&descriptor[..self.layout.descriptor_size as usize], &mut self.writer)?;
            }
        }
        descriptors.write(&mut self.writer)?;
        Ok(free_inodes)
    }

    /// Bitmaps of the groups of one flex group; one the kernel can compute for itself is not written.
    fn write_block_bitmaps(&mut self, index: u32, flex: &Flex) -> Result<Vec<BlocksOfGroup>> {
        let mut groups = Vec::new();
        for group in flex.groups.clone() {
            let blocks = self.layout.group(group);
            let free = self.allocator.free_in(flex, index, blocks.clone());
            let count: u64 = free.iter().map(|run| run.end - run.start).sum();
            let own = self.layout.backup_blocks(group) + self.layout.own_inside(flex, group);
            let untouched = count + own == blocks.end - blocks.start;
            let ends = group == 0 || group + 1 == self.layout.groups;
            let mut state = BlocksOfGroup {
                free: count as u32,
                uninitialized: untouched && !ends && self.layout.has_uninit(),
                bitmap_checksum: 0,
            };
            if !state.uninitialized {
                let mut bitmap = vec![0xFF; self.layout.block_size as usize];
                for run in free {
                    let start = (run.start - blocks.start) as usize;
                    clear_bits(&mut bitmap, start..start + (run.end - run.start) as usize);
                }
                state.bitmap_checksum = self.bitmap_checksum(&bitmap);
                let at = flex.block_bitmaps + u64::from(group - flex.groups.start);
                self.writer.write(self.layout.offset(at), &bitmap)?;
            }
            groups.push(state);
        }
        Ok(groups)
    }

    fn write_inode_bitmaps(&mut self, flex: &Flex) -> Result<Vec<InodesOfGroup>> {
        let per_group = self.layout.inodes_per_group as usize;
        let mut groups = Vec::new();
        for group in flex.groups.clone() {
            let mut state = InodesOfGroup::default();
            let range = self.inodes_of(group);
            if range.is_empty() && self.layout.has_uninit() {
                groups.push(state);
                continue;
            }
            let mut bitmap = vec![0xFF; self.layout.block_size as usize];
            clear_bits(&mut bitmap, 0..per_group);
            for (index, inode) in self.inodes[range].iter().enumerate() {
                let reserved = group == 0 && index + 1 < FIRST_INODE as usize;
                if !inode.is_unused() || reserved {
                    bitmap[index / 8] |= 1 << (index % 8);
                    state.used += 1;
                    state.directories += u32::from(inode.is_directory());
                    state.highest = index as u32 + 1;
                }
            }
            if state.used > 0 || !self.layout.has_uninit() {
                state.bitmap_checksum = self.bitmap_checksum(&bitmap[..per_group / 8]);
                let at = flex.inode_bitmaps + u64::from(group - flex.groups.start);
                self.writer.write(self.layout.offset(at), &bitmap)?;
            }
            groups.push(state);
        }
        Ok(groups)
    }

    fn bitmap_checksum(&self, bitmap: &[u8]) -> u32 {
        if self.layout.metadata_csum() { crc(self.seed, bitmap) } else { 0 }
    }

    /// Writes the table blocks that hold inodes in use. Those behind them are zeroed only where the group cannot
    /// say that they are not in use.
    fn write_inode_tables(&mut self, flex: &Flex, groups: &[InodesOfGroup]) -> Result<()> {
        let block_size = self.layout.block_size as usize;
        let inode_size = self.layout.inode_size as usize;
        let per_block = block_size / inode_size;
        let mut unused: Vec<Range<u64>> = Vec::new();
        for (index, group) in flex.groups.clone().enumerate() {
            let (first, table) = (self.inodes_of(group).start, flex.inode_tables[index]);
            let used = groups[index].highest as usize;
            for (number, start) in (0..used).step_by(per_block).enumerate() {
                let mut block = vec![0; block_size];
                let slots = block.chunks_exact_mut(inode_size);
                for (slot, index) in slots.zip(first + start..first + used.min(start + per_block)) {
                    let inode = &self.inodes[index];
                    // Reserved and not in use is all zeros, without a checksum.
                    if !inode.is_unused() {
                        let seed = self.inode_seed(index as u32 + 1);
                        inode.encode(&self.layout, seed, self.options.timestamp, slot);
                    }
                }
                self.writer.write(self.layout.offset(table + number as u64), &block)?;
            }
            let rest = table + used.div_ceil(per_block) as u64..table + self.layout.inode_table_blocks;
            match unused.last_mut() {
                Some(run) if run.end == rest.start => run.end = rest.end,
                _ => unused.push(rest),
            }
        }
        if self.layout.has_uninit() { Ok(()) } else { self.zero(&unused) }
    }

    fn zero(&mut self, runs: &[Range<u64>]) -> Result<()> {
        for run in runs.iter().filter(|run| !run.is_empty()) {
            let (offset, length) = (self.layout.offset(run.start), self.layout.offset(run.end - run.start));
            let zeroed = self.writer.device().write_zeroes(offset, length);
            zeroed.map_err(|error| Error::io("zeroing ext4 inode tables", offset, error))?;
        }
        Ok(())
    }

    /// Where the inodes of a group are in `self.inodes`.
    fn inodes_of(&self, group: u32) -> Range<usize> {
        let per_group = self.layout.inodes_per_group as usize;
        let start = (group as usize * per_group).min(self.inodes.len());
        start..(start + per_group).min(self.inodes.len())
    }

    fn descriptor(
        &self,
        flex: &Flex,
        group: u32,
        blocks: &BlocksOfGroup,
        inodes: &InodesOfGroup,
    ) -> [u8; LARGEST_DESCRIPTOR] {
        let index = u64::from(group - flex.groups.start);
        let per_group = self.layout.inodes_per_group;
        let mut bytes = [0; LARGEST_DESCRIPTOR];
        let locations =
            [flex.block_bitmaps + index, flex.inode_bitmaps + index, flex.inode_tables[index as usize]];
        for (at, location) in [0x00, 0x04, 0x08].into_iter().zip(locations) {
            put_u32(&mut bytes, at, low32(location));
            put_u32(&mut bytes, at + 0x20, high32(location));
        }
        let mut flags = 0;
        let mut never_used = 0;
        if self.layout.has_uninit() {
            flags |= if inodes.used == 0 { INODE_UNINIT } else { 0 };
            flags |= if blocks.uninitialized { BLOCK_UNINIT } else { 0 };
            flags |= if inodes.highest == per_group { INODE_TABLE_ZEROED } else { 0 };
            never_used = per_group - inodes.highest;
        }
        put_u16(&mut bytes, 0x12, flags);
        for (at, high_at, value) in [
            (0x0C, 0x2C, blocks.free),
            (0x0E, 0x2E, per_group - inodes.used),
            (0x10, 0x30, inodes.directories),
            (0x18, 0x38, blocks.bitmap_checksum),
            (0x1A, 0x3A, inodes.bitmap_checksum),
            (0x1C, 0x32, never_used),
        ] {
            put_u16(&mut bytes, at, low16(value));
            put_u16(&mut bytes, high_at, high16(value));
        }
        let checksum = self.descriptor_checksum(group, &bytes[..self.layout.descriptor_size as usize]);
        put_u16(&mut bytes, 0x1E, checksum);
        bytes
    }

    fn descriptor_checksum(&self, group: u32, bytes: &[u8]) -> u16 {
        let number = group.to_le_bytes();
        match self.layout.features.checksums {
            Checksums::Metadata => low16(crc(crc(self.seed, &number), bytes)),
            Checksums::Descriptors => {
                let parts = [&self.options.uuid[..], &number, &bytes[..0x1E], &bytes[0x20..]];
                parts.into_iter().fold(0xFFFF, crc16)
            }
            Checksums::None => 0,
        }
    }
}

fn clear_bits(bitmap: &mut [u8], bits: Range<usize>) {
    let first = bits.start.next_multiple_of(8).min(bits.end);
    let last = (bits.end / 8 * 8).max(first);
    bitmap[first.div_ceil(8)..last.div_ceil(8)].fill(0);
    for bit in (bits.start..first).chain(last..bits.end) {
        bitmap[bit / 8] &= !(1 << (bit % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_bits_asked_for_are_cleared() {
        for start in 0..40 {
            for end in start..=40 {
                let mut bitmap = [0xFF; 5];
                clear_bits(&mut bitmap, start..end);
                for bit in 0..40 {
                    let set = bitmap[bit / 8] & 1 << (bit % 8) != 0;
                    assert_eq!(set, !(start..end).contains(&bit), "bit {bit} of {start}..{end}");
                }
            }
        }
    }
}
