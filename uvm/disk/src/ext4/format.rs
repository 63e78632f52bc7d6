//! What is there before the first file comes: a blank device, then journal, resize inode, root and lost+found.

use super::builder::{Ext4Builder, ROOT};
use super::dir::Directory;
use super::inode::{Attributes, Body, Inode, NodeKind, Timestamp};
use super::layout::{FIRST_INODE, Layout};
use super::{extent, growth, journal, mapping};
use crate::{Device, Error, ErrorKind, Result};

/// Signatures of what was on the device before are at its two ends.
const WIPED: u64 = 1 << 20;

impl Ext4Builder {
    /// Blanks the device and makes the inodes that mke2fs makes. What does not fit is refused before.
    pub(super) fn begin(&mut self) -> Result<()> {
        let mut root = Directory::new(ROOT);
        let mut lost_found = Directory::new(ROOT);
        // As many as a block map reaches without indirect blocks.
        lost_found.minimum_blocks = (16_384 / self.options.block_size).min(mapping::DIRECT as u32);
        root.subdirectories = 1;
        root.insert(b"lost+found", FIRST_INODE, &self.hasher);
        let directories = root.reserve(&self.shape) + lost_found.reserve(&self.shape);
        self.check_room(directories)?;
        wipe(self.writer.device())?;
        self.create_journal()?;
        self.create_resize_inode()?;
        self.reserve(directories)?;
        let (uid, gid) = self.options.root_owner;
        let owned = Attributes { uid, gid, ..self.attributes_of_reserved(0o755) };
        let root = Inode::new(NodeKind::Directory, owned, Body::Directory(Box::new(root)));
        let attributes = self.attributes_of_reserved(0o700);
        let lost_found = Inode::new(NodeKind::Directory, attributes, Body::Directory(Box::new(lost_found)));
        *self.slot(ROOT) = root;
        *self.slot(FIRST_INODE) = lost_found;
        Ok(())
    }

    fn attributes_of_reserved(&self, mode: u16) -> Attributes {
        let seconds = i64::try_from(self.options.timestamp).unwrap_or(i64::MAX);
        Attributes { mode, mtime: Timestamp { seconds, nanoseconds: 0 }, ..Attributes::default() }
    }

    fn check_room(&self, directories: u64) -> Result<()> {
        let journal = self.layout.journal_blocks()?;
        let needed = journal + most_map_blocks(&self.layout, journal) + 1 + directories;
        let free = self.allocator.free();
        if needed <= free {
            return Ok(());
        }
        let context = format!(
            "of {} blocks of {} bytes {free} are left beside the metadata; journal and first directories take {needed}",
            self.layout.blocks, self.layout.block_size
        );
        Err(Error::new(ErrorKind::NoSpace, context))
    }

    fn create_journal(&mut self) -> Result<()> {
        let runs = journal::create(&self.layout, &self.options, &mut self.allocator, &mut self.writer)?;
        if runs.is_empty() {
            return Ok(());
        }
        let mut extents = Vec::new();
        let mut blocks = 0;
        for run in runs {
            extent::append(&mut extents, blocks, run.clone());
            blocks += run.end - run.start;
        }
        let map = self.build_map(journal::INODE, extents)?;
        self.set_reserved_file(journal::INODE, Body::File { size: self.layout.offset(blocks), map });
        Ok(())
    }

    fn create_resize_inode(&mut self) -> Result<()> {
        if !self.layout.features.resize_inode {
            return Ok(());
        }
        let map = growth::create(&self.layout, &mut self.allocator, &mut self.writer)?;
        self.set_reserved_file(growth::INODE, Body::File { size: growth::size(&self.layout), map });
        Ok(())
    }

    fn set_reserved_file(&mut self, number: u32, body: Body) {
        let mut inode = Inode::new(NodeKind::File, self.attributes_of_reserved(0o600), body);
        inode.links = 1;
        *self.slot(number) = inode;
    }
}

/// Blocks the map of a journal takes at most: it lies in a run for each flex group it passes.
fn most_map_blocks(layout: &Layout, blocks: u64) -> u64 {
    if layout.features.extents {
        blocks / layout.blocks_per_group / 40 + 2
    } else {
        mapping::nodes_of(blocks, layout.block_size)
    }
}

/// Makes both ends of the device zeros, for good before anything else is written: from then on until the
/// superblock is there the device carries no file system. Cut short, this itself may leave parts of an old one.
///
/// What tools for rescue may still find: backup superblocks of an earlier ext2, ext3 or ext4 inside the device,
/// until those of the new one or files go over them, and copies of btrfs's superblock at 64 MiB and 256 GiB.
fn wipe(device: &Device) -> Result<()> {
    let size = device.geometry().size;
    let end = size.saturating_sub(WIPED).max(WIPED.min(size));
    for (offset, length) in [(0, WIPED.min(size)), (end, size - end)] {
        if length > 0 {
            let wiped = device.write_zeroes(offset, length);
            wiped.map_err(|error| {
                Error::io("wiping the ends of the device before formatting", offset, error)
            })?;
        }
    }
    device.flush().map_err(|error| Error::io("making the wiped ends durable before formatting", 0, error))
}
