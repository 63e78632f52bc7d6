//! Directories on disk: entries in blocks, each with a checksum at its end where the file system has them.

use super::bytes::{crc, put_u16, put_u32};
use super::dir::Directory;
use super::hash::NameHash;
use super::htree;
use crate::Result;

/// The checksum entry that ends each block of entries.
const TAIL: usize = 12;
/// Bytes of `.` and `..`.
pub(super) const DOTS: u32 = 24;

/// What a directory looks like in one file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) block_size: u32,
    /// Whether blocks end in a checksum.
    pub(super) checksums: bool,
    /// The hash of names, where directories past a block get an index.
    pub(super) hash: Option<NameHash>,
}

impl Shape {
    /// Bytes for entries in a block.
    pub(super) fn room(&self) -> u32 {
        self.block_size - if self.checksums { TAIL as u32 } else { 0 }
    }

    /// The same in a block below an index, of which an eighth stays free: else the kernel had to split one for
    /// the first name it adds to it.
    pub(super) fn leaf_room(&self) -> u32 {
        if self.hash.is_some() { self.room() / 8 * 7 / 4 * 4 } else { self.room() }
    }
}

/// A directory about to be written.
pub(super) struct Written<'a, T> {
    pub(super) directory: &'a Directory,
    pub(super) shape: Shape,
    pub(super) inode: u32,
    /// Seed of the checksums of what belongs to the directory.
    pub(super) seed: u32,
    /// The type byte of an inode.
    pub(super) type_of: T,
}

impl<T: Fn(u32) -> u8> Written<'_, T> {
    /// Encodes the blocks in order; whether there is an index.
    pub(super) fn encode(&self, mut emit: impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        if let Some(hash) = self.shape.hash.filter(|_| self.directory.bytes() > self.shape.room()) {
            htree::encode(self, hash, &mut emit)?;
            return Ok(true);
        }
        let mut block = Block::new(self.shape);
        self.push_dots(&mut block);
        let mut emitted = 0;
        for (name, target) in self.directory.iter() {
            if !block.fits(name, self.shape.room()) {
                emit(block.finish(self.seed))?;
                emitted += 1;
                block.clear();
            }
            block.push(name, target, (self.type_of)(target));
        }
        loop {
            emit(block.finish(self.seed))?;
            emitted += 1;
            if emitted >= self.directory.minimum_blocks {
                return Ok(false);
            }
            block.clear();
        }
    }

    pub(super) fn push_dots(&self, block: &mut Block) {
        let parent = self.directory.parent;
        block.push(b".", self.inode, (self.type_of)(self.inode));
        block.push(b"..", parent, (self.type_of)(parent));
    }
}

pub(super) fn entry_length(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

/// A block of entries.
pub(super) struct Block {
    shape: Shape,
    bytes: Vec<u8>,
    used: usize,
    /// Offset of the last entry.
    last: usize,
}

impl Block {
    pub(super) fn new(shape: Shape) -> Self {
        Self { shape, bytes: vec![0; shape.block_size as usize], used: 0, last: 0 }
    }

    /// Whether the name still fits the first `room` bytes.
    pub(super) fn fits(&self, name: &[u8], room: u32) -> bool {
        self.used + entry_length(name) <= room as usize
    }

    pub(super) fn push(&mut self, name: &[u8], inode: u32, file_type: u8) {
        let (at, length) = (self.used, entry_length(name));
        put_u32(&mut self.bytes, at, inode);
        put_u16(&mut self.bytes, at + 4, length as u16);
        self.bytes[at + 6] = name.len() as u8;
        self.bytes[at + 7] = file_type;
        self.bytes[at + 8..at + 8 + name.len()].copy_from_slice(name);
        self.last = at;
        self.used += length;
    }

    /// Stretches the last entry to the end (an empty block has one unused entry) and adds the checksum.
    pub(super) fn finish(&mut self, seed: u32) -> &[u8] {
        let end = self.shape.room() as usize;
        let length = (end - self.last) as u16;
        put_u16(&mut self.bytes, self.last + 4, length);
        if self.shape.checksums {
            let checksum = crc(seed, &self.bytes[..end]);
            put_u16(&mut self.bytes, end + 4, TAIL as u16);
            self.bytes[end + 7] = 0xDE;
            put_u32(&mut self.bytes, end + 8, checksum);
        }
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.fill(0);
        (self.used, self.last) = (0, 0);
    }

    /// The block before an index goes into it: the last entry reaches to its very end.
    pub(super) fn into_head(mut self) -> Vec<u8> {
        let length = (self.bytes.len() - self.last) as u16;
        put_u16(&mut self.bytes, self.last + 4, length);
        self.bytes
    }
}
