//! Writing the metadata: directories and attribute blocks first, which still take blocks; then inode
//! tables, bitmaps and descriptors, which say what is taken; the superblock last.

use std::ops::Range;

use super::builder::Ext4Builder;
use super::bytes::{crc, high16, high32, low16, low32, put_u16, put_u32};
use super::dir_blocks::Written;
use super::extent;
use super::inode::{Body, NodeKind, entry_type};
use super::journal;
use super::layout::{DESCRIPTOR_SIZE, FIRST_INODE, Flex, INODE_SIZE, has_superblock};
use super::superblock::{self, Superblock};
use crate::{Error, ErrorKind, Result};

const INODE_UNINIT: u16 = 0x1;
const BLOCK_UNINIT: u16 = 0x2;
const INODE_TABLE_ZEROED: u16 = 0x4;

/// What a finished file system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ext4Summary {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks of the file system.
    pub blocks: u64,
    /// Blocks free for data, those reserved for root among them.
    pub free_blocks: u64,
    /// All inodes.
    pub inodes: u32,
    /// Inodes not in use.
    pub free_inodes: u32,
    /// Regular files.
    pub files: u32,
    /// Directories, the root and lost+found among them.
    pub directories: u32,
}

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

impl Ext4Builder {
    /// Writes all metadata. The file system exists when this returns, and not before.
    pub fn finish(mut self) -> Result<Ext4Summary> {
        self.reserved = 0;
        for number in 1..=self.inodes.len() as u32 {
            self.write_directory(number)?;
        }
        for number in 1..=self.inodes.len() as u32 {
            self.write_xattr_block(number)?;
        }
        let mut descriptors = Vec::new();
        let mut free_inodes = 0;
        for index in 0..self.layout.flexes() {
            let flex = self.layout.flex(index)?;
            let blocks = self.write_block_bitmaps(index, &flex)?;
            let inodes = self.write_inode_bitmaps(&flex)?;
            self.write_inode_tables(&flex, &inodes)?;
            for (group, (blocks, inodes)) in flex.groups.clone().zip(blocks.iter().zip(&inodes)) {
                free_inodes += self.layout.inodes_per_group - inodes.used;
                descriptors.extend_from_slice(&self.descriptor(&flex, group, blocks, inodes));
            }
        }
        self.write_superblocks(descriptors, free_inodes)?;
        let count = |kind| self.inodes.iter().filter(|inode| inode.kind() == Some(kind)).count() as u32;
        Ok(Ext4Summary {
            block_size: self.layout.block_size,
            blocks: self.layout.blocks,
            free_blocks: self.allocator.free(),
            inodes: self.layout.inodes(),
            free_inodes,
            files: count(NodeKind::File) - u32::from(self.options.journal),
            directories: count(NodeKind::Directory),
        })
    }

    /// Allocates and writes the blocks of a directory one by one: they are adjacent where space is.
    fn write_directory(&mut self, number: u32) -> Result<()> {
        if !self.slot(number).is_directory() {
            return Ok(());
        }
        let body = std::mem::take(&mut self.slot(number).body);
        let Body::Directory(mut directory) = body else { return Ok(()) };
        let (shape, seed) = (self.shape, self.inode_seed(number));
        let Self { layout, allocator, writer, inodes, .. } = self;
        let mut extents = Vec::new();
        let mut logical = 0;
        let type_of = |target: u32| inodes.get(target as usize - 1).map_or(0, |inode| entry_type(inode.mode));
        let written = Written { directory: &directory, shape, inode: number, seed, type_of };
        let indexed = written.encode(|bytes| {
            let Some(block) = allocator.allocate(1)? else {
                return Err(full("a directory"));
            };
            writer.write(layout.offset(block.start), bytes)?;
            extent::append(&mut extents, logical, block);
            logical += 1;
            Ok(())
        })?;
        directory.indexed = indexed;
        directory.map = self.build_map(number, extents)?;
        self.slot(number).body = Body::Directory(directory);
        Ok(())
    }

    fn write_xattr_block(&mut self, number: u32) -> Result<()> {
        let Self { layout, allocator, writer, inodes, seed, .. } = self;
        let Some(xattrs) = inodes[number as usize - 1].xattrs.as_mut().filter(|xattrs| xattrs.needs_block())
        else {
            return Ok(());
        };
        let block = allocator.allocate(1)?.ok_or_else(|| full("extended attributes"))?.start;
        xattrs.block = block;
        writer.write(layout.offset(block), &xattrs.encode_block(block, layout.block_size as usize, *seed))
    }

    /// Bitmaps of the groups of one flex group; one the kernel can compute for itself is not written.
    fn write_block_bitmaps(&mut self, index: u32, flex: &Flex) -> Result<Vec<BlocksOfGroup>> {
        let mut groups = Vec::new();
        for group in flex.groups.clone() {
            let blocks = self.layout.group(group);
            let free = self.allocator.free_in(flex, index, blocks.clone());
            let count: u64 = free.iter().map(|run| run.end - run.start).sum();
            let all_free = count + self.layout.backup_blocks(group) == blocks.end - blocks.start;
            let mut state = BlocksOfGroup {
                free: count as u32,
                uninitialized: all_free && group != 0 && group + 1 != self.layout.groups,
                bitmap_checksum: 0,
            };
            if !state.uninitialized {
                let mut bitmap = vec![0xFF; self.layout.block_size as usize];
                for run in free {
                    let start = (run.start - blocks.start) as usize;
                    clear_bits(&mut bitmap, start..start + (run.end - run.start) as usize);
                }
                state.bitmap_checksum = crc(self.seed, &bitmap);
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
            if range.is_empty() {
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
            if state.used > 0 {
                state.bitmap_checksum = crc(self.seed, &bitmap[..per_group / 8]);
                let at = flex.inode_bitmaps + u64::from(group - flex.groups.start);
                self.writer.write(self.layout.offset(at), &bitmap)?;
            }
            groups.push(state);
        }
        Ok(groups)
    }

    /// Writes the table blocks that hold inodes in use, and none behind them.
    fn write_inode_tables(&mut self, flex: &Flex, groups: &[InodesOfGroup]) -> Result<()> {
        let block_size = self.layout.block_size as usize;
        let per_block = block_size / INODE_SIZE as usize;
        for (index, group) in flex.groups.clone().enumerate() {
            let first = self.inodes_of(group).start;
            let used = groups[index].highest as usize;
            for (number, start) in (0..used).step_by(per_block).enumerate() {
                let mut block = vec![0; block_size];
                let slots = block.chunks_exact_mut(INODE_SIZE as usize);
                for (slot, index) in slots.zip(first + start..first + used.min(start + per_block)) {
                    let inode = &self.inodes[index];
                    // Reserved and not in use is all zeros, without a checksum.
                    if !inode.is_unused() {
                        let seed = self.inode_seed(index as u32 + 1);
                        slot.copy_from_slice(&inode.encode(
                            seed,
                            self.layout.block_size,
                            self.options.timestamp,
                        ));
                    }
                }
                let offset = self.layout.offset(flex.inode_tables[index] + number as u64);
                self.writer.write(offset, &block)?;
            }
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
    ) -> [u8; DESCRIPTOR_SIZE as usize] {
        let index = u64::from(group - flex.groups.start);
        let per_group = self.layout.inodes_per_group;
        let mut bytes = [0; DESCRIPTOR_SIZE as usize];
        let locations =
            [flex.block_bitmaps + index, flex.inode_bitmaps + index, flex.inode_tables[index as usize]];
        for (at, location) in [0x00, 0x04, 0x08].into_iter().zip(locations) {
            put_u32(&mut bytes, at, low32(location));
            put_u32(&mut bytes, at + 0x20, high32(location));
        }
        let mut flags = 0;
        flags |= if inodes.used == 0 { INODE_UNINIT } else { 0 };
        flags |= if blocks.uninitialized { BLOCK_UNINIT } else { 0 };
        flags |= if inodes.highest == per_group { INODE_TABLE_ZEROED } else { 0 };
        put_u16(&mut bytes, 0x12, flags);
        for (at, high_at, value) in [
            (0x0C, 0x2C, blocks.free),
            (0x0E, 0x2E, per_group - inodes.used),
            (0x10, 0x30, inodes.directories),
            (0x18, 0x38, blocks.bitmap_checksum),
            (0x1A, 0x3A, inodes.bitmap_checksum),
            (0x1C, 0x32, per_group - inodes.highest),
        ] {
            put_u16(&mut bytes, at, low16(value));
            put_u16(&mut bytes, high_at, high16(value));
        }
        let checksum = crc(crc(self.seed, &group.to_le_bytes()), &bytes);
        put_u16(&mut bytes, 0x1E, low16(checksum));
        bytes
    }

    /// Copies first; the superblock that makes it a file system when all else is durable.
    fn write_superblocks(&mut self, mut descriptors: Vec<u8>, free_inodes: u32) -> Result<()> {
        descriptors.resize(self.layout.offset(self.layout.descriptor_blocks) as usize, 0);
        let Self { layout, options, allocator, writer, inodes, .. } = self;
        let superblock = Superblock {
            layout,
            options,
            free_blocks: allocator.free(),
            free_inodes,
            journal: options.journal.then(|| &inodes[journal::INODE as usize - 1]),
        };
        let mut block = vec![0; layout.block_size as usize];
        for group in (0..layout.groups).filter(|group| has_superblock(*group)) {
            let start = layout.group(group).start;
            if group > 0 {
                block[..superblock::SIZE].copy_from_slice(&superblock.encode(group));
                writer.write(layout.offset(start), &block)?;
            }
            writer.write(layout.offset(start + 1), &descriptors)?;
        }
        writer.flush()?;
        let flush = |context: &str| writer.device().flush().map_err(|error| Error::io(context, 0, error));
        flush("making the ext4 metadata durable")?;
        let offset = 1024;
        let written = writer.device().write_at(offset, &superblock.encode(0));
        written.map_err(|error| Error::io("writing the ext4 superblock", offset, error))?;
        flush("making the ext4 superblock durable")
    }
}

fn clear_bits(bitmap: &mut [u8], bits: Range<usize>) {
    let mut bit = bits.start;
    while bit < bits.end {
        if bit.is_multiple_of(8) && bit + 8 <= bits.end {
            bitmap[bit / 8] = 0;
            bit += 8;
        } else {
            bitmap[bit / 8] &= !(1 << (bit % 8));
            bit += 1;
        }
    }
}

fn full(what: &str) -> Error {
    Error::new(ErrorKind::NoSpace, format!("no block is left for {what}"))
}
