//! Writing the metadata: directories and attribute blocks first, which still take blocks; then inode
//! tables, bitmaps and descriptors, which say what is taken; the superblock last.

use super::builder::Ext4Builder;
use super::dir_blocks::Written;
use super::extent;
use super::inode::{Body, NodeKind, entry_type};
use super::journal;
use super::layout::FIRST_INODE;
use super::superblock::{self, Superblock};
use crate::{Error, ErrorKind, Result};

/// Where the superblock is, whatever the block size.
const SUPERBLOCK: u64 = 1024;
/// What a device writes whole or not at all.
const SECTOR: usize = 512;

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
        let free_inodes = self.write_groups()?;
        self.write_superblocks(free_inodes)?;
        let count = |kind| self.inodes.iter().filter(|inode| inode.kind() == Some(kind)).count() as u32;
        Ok(Ext4Summary {
            block_size: self.layout.block_size,
            blocks: self.layout.blocks,
            free_blocks: self.allocator.free(),
            inodes: self.layout.inodes(),
            free_inodes,
            files: count(NodeKind::File) - self.reserved_files(),
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
        writer.write(layout.offset(block), &xattrs.encode_block(block, layout, *seed))
    }

    /// Journal and resize inode, which nobody would call files.
    fn reserved_files(&self) -> u32 {
        let reserved = self.inodes.iter().take(FIRST_INODE as usize - 1);
        reserved.filter(|inode| inode.kind() == Some(NodeKind::File)).count() as u32
    }

    /// Copies first. When all else is durable comes the sector with the magic number, which makes it a file system:
    /// a device writes one sector or none. Of the other half of the superblock nothing can be told.
    fn write_superblocks(&mut self, free_inodes: u32) -> Result<()> {
        let Self { layout, options, allocator, writer, inodes, .. } = self;
        let journal = &inodes[journal::INODE as usize - 1];
        let superblock = Superblock {
            layout,
            options,
            free_blocks: allocator.free(),
            free_inodes,
            journal: (!journal.is_unused()).then_some(journal),
        };
        let mut block = vec![0; layout.block_size as usize];
        for group in layout.superblock_groups().into_iter().filter(|group| *group > 0) {
            block[..superblock::SIZE].copy_from_slice(&superblock.encode(group));
            writer.write(layout.offset(layout.group(group).start), &block)?;
        }
        let bytes = superblock.encode(0);
        let (magic, rest) = bytes.split_at(SECTOR);
        writer.write(SUPERBLOCK + SECTOR as u64, rest)?;
        writer.flush()?;
        let flush = |context: &str| writer.device().flush().map_err(|error| Error::io(context, 0, error));
        flush("making the ext4 metadata durable")?;
        let written = writer.device().write_at(SUPERBLOCK, magic);
        written.map_err(|error| Error::io("writing the ext4 superblock", SUPERBLOCK, error))?;
        flush("making the ext4 superblock durable")
    }
}

fn full(what: &str) -> Error {
    Error::new(ErrorKind::NoSpace, format!("no block is left for {what}"))
}
