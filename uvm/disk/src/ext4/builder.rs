//! The builder's state, contents of files, and what can be asked of a node.

use std::hash::RandomState;
use std::io::Read;
use std::num::NonZeroU32;
use std::ops::Range;

use super::alloc::Allocator;
use super::bytes::crc;
use super::dir_blocks::Shape;
use super::extent::{self, Extent, Map};
use super::hash::NameHash;
use super::inode::{Attributes, Body, Ino, Inode, NodeKind, check_attributes};
use super::layout::{FIRST_INODE, Layout};
use super::options::Ext4Options;
use super::writer::{WINDOW, WriteBehind};
use super::xattr::Xattrs;
use crate::{Device, Error, ErrorKind, Result};

pub(super) const ROOT: u32 = 2;
static ZEROS: [u8; 4096] = [0; 4096];

/// A new ext4 file system under construction.
pub struct Ext4Builder {
    pub(super) layout: Layout,
    pub(super) options: Ext4Options,
    pub(super) shape: Shape,
    /// Of the indexes of directories in memory; nothing on disk depends on it.
    pub(super) hasher: RandomState,
    /// Seed of all checksums.
    pub(super) seed: u32,
    pub(super) allocator: Allocator,
    pub(super) writer: WriteBehind,
    /// By inode number, from 1.
    pub(super) inodes: Vec<Inode>,
    pub(super) free_inodes: Vec<u32>,
    /// Blocks that finishing will need: directories and attribute blocks.
    pub(super) reserved: u64,
}

impl Ext4Builder {
    /// Starts a file system over the whole of `device`. What was there is gone with this call, unless it refuses
    /// the options.
    pub fn new(device: Device, options: Ext4Options) -> Result<Self> {
        let geometry = device.geometry();
        options.check(geometry.logical_block_size)?;
        let layout = Layout::new(geometry.size, &options)?;
        let seed = crc(!0, &options.uuid);
        let allocator = Allocator::new(layout)?;
        let inodes = (0..FIRST_INODE).map(|_| Inode::default()).collect();
        let writer = WriteBehind::new(device);
        let hash = layout.features.dir_index.then(|| NameHash::new(&options.hash_seed));
        let mut new = Self {
            layout,
            shape: Shape { block_size: layout.block_size, checksums: layout.metadata_csum(), hash },
            options,
            hasher: RandomState::new(),
            seed,
            allocator,
            writer,
            inodes,
            free_inodes: Vec::new(),
            reserved: 0,
        };
        new.begin()?;
        Ok(new)
    }

    /// The root directory.
    pub fn root(&self) -> Ino {
        ino(ROOT)
    }

    /// What the node is.
    pub fn kind(&self, ino: Ino) -> Result<NodeKind> {
        self.inode(ino)?.kind().ok_or_else(|| gone(ino))
    }

    /// Mode, owner and time of the node.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        Ok(self.inode(ino)?.attributes())
    }

    /// Changes mode, owner and time of the node.
    pub fn set_attributes(&mut self, ino: Ino, attributes: Attributes) -> Result<()> {
        check_attributes(&attributes)?;
        self.inode_mut(ino)?.set_attributes(attributes);
        Ok(())
    }

    /// Bytes in a file or in a link's target; 0 for everything else.
    pub fn size(&self, ino: Ino) -> Result<u64> {
        Ok(self.inode(ino)?.size(self.layout.block_size))
    }

    /// Number of links.
    pub fn links(&self, ino: Ino) -> Result<u32> {
        Ok(self.inode(ino)?.links())
    }

    /// The extended attributes: full names and values, ACLs in the form of `getxattr(2)`.
    pub fn xattrs(&self, ino: Ino) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(self.inode(ino)?.xattrs.as_ref().map_or_else(Vec::new, |xattrs| xattrs.all()))
    }

    /// Sets an extended attribute: `user.`, `trusted.`, `security.` or `system.` names, an ACL in the form
    /// of `setxattr(2)`. The mode is left as it is.
    pub fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
        let inode = self.inode(ino)?;
        let old_needs = inode.xattrs.as_ref().is_some_and(|xattrs| xattrs.needs_block());
        let none = Xattrs::default();
        let old = inode.xattrs.as_deref().unwrap_or(&none);
        let new = old.with(name, value, inode.is_directory(), &self.layout)?;
        let needs = new.needs_block();
        if needs && !old_needs {
            self.reserve(1)?;
        }
        self.reserved -= u64::from(old_needs && !needs);
        self.inode_mut(ino)?.xattrs = Some(Box::new(new));
        Ok(())
    }

    /// Reads a file; the number of bytes is short only at its end. Holes are zeros.
    pub fn read_at(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match &self.inode(ino)?.body {
            Body::File { size, map } => self.read_map(map, *size, offset, buf),
            _ => Err(Error::new(ErrorKind::Invalid, format!("inode {} is not a file", ino.get()))),
        }
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.inode(ino)?.body {
            Body::FastSymlink(target) => Ok(target.to_vec()),
            Body::SlowSymlink { size, map } => {
                let mut target = vec![0; *size as usize];
                self.read_map(map, u64::from(*size), 0, &mut target)?;
                Ok(target)
            }
            _ => Err(Error::new(ErrorKind::Invalid, format!("inode {} is not a symbolic link", ino.get()))),
        }
    }

    fn read_map(&self, map: &Map, size: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let length = size.saturating_sub(offset).min(buf.len() as u64);
        let wanted = offset..offset + length;
        let buf = &mut buf[..length as usize];
        buf.fill(0);
        let first = map.extents().partition_point(|extent| self.bytes_of(extent).end <= wanted.start);
        for extent in &map.extents()[first..] {
            let bytes = self.bytes_of(extent);
            let part = bytes.start.max(wanted.start)..bytes.end.min(wanted.end);
            if part.is_empty() {
                break;
            }
            let at = self.layout.offset(extent.physical().start) + (part.start - bytes.start);
            let into = (part.start - wanted.start) as usize..(part.end - wanted.start) as usize;
            self.writer.read(at, &mut buf[into])?;
        }
        Ok(buf.len())
    }

    /// The bytes of the file an extent has.
    fn bytes_of(&self, extent: &Extent) -> Range<u64> {
        let blocks = extent.physical().end - extent.physical().start;
        self.layout.offset(extent.logical())..self.layout.offset(extent.logical() + blocks)
    }

    /// Streams `size` bytes to the device as a file's contents from its block `first`, and adds where they went
    /// to `extents`, also when it fails.
    pub(super) fn write_contents(
        &mut self,
        first: u64,
        size: u64,
        contents: &mut dyn Read,
        extents: &mut Vec<Extent>,
    ) -> Result<()> {
        let block_size = self.layout.block_size as usize;
        let mut run = Undecided { zeros: 0, logical: first, in_hole: false };
        let mut position = 0;
        while position < size {
            let length = (WINDOW as u64).min(size - position) as usize;
            let window = self.writer.window()?;
            window.bytes[..run.zeros].fill(0);
            let (fresh, end) = (run.zeros + length, run.zeros + length.next_multiple_of(block_size));
            contents.read_exact(&mut window.bytes[run.zeros..fresh]).map_err(|error| {
                let context =
                    format!("reading contents of a file: {size} bytes were announced, {position} came whole");
                Error::source_stream(context, error)
            })?;
            window.bytes[fresh..end].fill(0);
            position += length as u64;
            let data = run.decide(&window.bytes[..end], block_size, position == size);
            let (base, logical) = (window.base, run.logical);
            for part in data {
                self.write_part(base, part, logical, extents)?;
            }
            run.logical += ((end - run.zeros) / block_size) as u64;
        }
        Ok(())
    }

    /// Gives blocks to one piece of a window, whose first block is `logical` in the file.
    fn write_part(
        &mut self,
        base: usize,
        part: Range<usize>,
        logical: u64,
        extents: &mut Vec<Extent>,
    ) -> Result<()> {
        let block_size = self.layout.block_size as usize;
        let mut at = part.start;
        while at < part.end {
            let blocks = self.allocate(((part.end - at) / block_size) as u64)?;
            let end = at + (blocks.end - blocks.start) as usize * block_size;
            extent::append(extents, logical + (at / block_size) as u64, blocks.clone());
            self.writer.gather(self.layout.offset(blocks.start), base, at..end)?;
            at = end;
        }
        Ok(())
    }

    /// The map over `extents`; blocks it takes for itself are given back should it fail.
    pub(super) fn build_map(&mut self, inode: u32, extents: Vec<Extent>) -> Result<Map> {
        let mapping = self.layout.mapping();
        let mut nodes = Vec::new();
        for _ in 0..Map::nodes_needed(&extents, mapping) {
            match self.allocate(1) {
                Ok(block) => nodes.push(block.start),
                Err(error) => {
                    nodes.into_iter().for_each(|node| self.allocator.release(node..node + 1));
                    return Err(error);
                }
            }
        }
        let (seed, layout, writer) = (self.inode_seed(inode), self.layout, &mut self.writer);
        Map::build(extents, nodes, mapping, seed, |block, bytes| writer.write(layout.offset(block), bytes))
    }

    /// Up to `wanted` blocks, leaving what finishing needs.
    pub(super) fn allocate(&mut self, wanted: u64) -> Result<Range<u64>> {
        let wanted = wanted.min(self.available());
        let blocks = if wanted == 0 { None } else { self.allocator.allocate(wanted)? };
        blocks.ok_or_else(|| self.no_space(1))
    }

    fn available(&self) -> u64 {
        self.allocator.free().saturating_sub(self.reserved)
    }

    /// Keeps blocks for finishing.
    pub(super) fn reserve(&mut self, blocks: u64) -> Result<()> {
        if blocks > self.available() {
            return Err(self.no_space(blocks));
        }
        self.reserved += blocks;
        Ok(())
    }

    fn no_space(&self, needed: u64) -> Error {
        let context = format!(
            "the ext4 file system is full: {needed} blocks of {} bytes needed, {} of {} free, {} of them kept for directories",
            self.layout.block_size,
            self.allocator.free(),
            self.layout.blocks,
            self.reserved
        );
        Error::new(ErrorKind::NoSpace, context)
    }

    /// Seed of the checksums of what belongs to one inode (whose generation is 0).
    pub(super) fn inode_seed(&self, inode: u32) -> u32 {
        crc(crc(self.seed, &inode.to_le_bytes()), &[0; 4])
    }

    pub(super) fn inode(&self, ino: Ino) -> Result<&Inode> {
        let inode = self.inodes.get(ino.get() as usize - 1).filter(|inode| !inode.is_unused());
        inode.ok_or_else(|| gone(ino))
    }

    pub(super) fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        let inode = self.inodes.get_mut(ino.get() as usize - 1).filter(|inode| !inode.is_unused());
        inode.ok_or_else(|| gone(ino))
    }

    /// The place of an inode that is known to exist, in use or not.
    pub(super) fn slot(&mut self, inode: u32) -> &mut Inode {
        &mut self.inodes[inode as usize - 1]
    }
}

/// What is not decided at the start of a window.
struct Undecided {
    /// Bytes of zero blocks at its start: data or the beginning of a hole.
    zeros: usize,
    /// The file's block at its start.
    logical: u64,
    /// Whether the blocks before it are a hole that zeros lengthen.
    in_hole: bool,
}

impl Undecided {
    /// The parts of `bytes` that are data. `self.zeros` becomes what is left undecided at the end.
    fn decide(&mut self, bytes: &[u8], block_size: usize, last: bool) -> Vec<Range<usize>> {
        let mut data: Vec<Range<usize>> = Vec::new();
        let mut add = |part: Range<usize>| match data.last_mut() {
            Some(previous) if previous.end == part.start => previous.end = part.end,
            _ if part.is_empty() => {}
            _ => data.push(part),
        };
        let mut zeros_from = 0;
        for (index, block) in bytes.chunks(block_size).enumerate() {
            if block == &ZEROS[..block.len()] {
                continue;
            }
            let at = index * block_size;
            if at - zeros_from < WINDOW && !self.in_hole {
                add(zeros_from..at);
            }
            add(at..at + block.len());
            self.in_hole = false;
            zeros_from = at + block.len();
        }
        let zeros = bytes.len() - zeros_from;
        self.in_hole |= zeros >= WINDOW;
        self.zeros = if self.in_hole || last { 0 } else { zeros };
        if last && !self.in_hole {
            add(zeros_from..bytes.len());
        }
        data
    }
}

pub(super) fn ino(number: u32) -> Ino {
    Ino(NonZeroU32::new(number).expect("inode numbers start at 1"))
}

pub(super) fn gone(ino: Ino) -> Error {
    Error::new(ErrorKind::NotFound, format!("inode {} is not in use", ino.get()))
}
