//! Directories: kept as a sorted map while names come and go, written as linear blocks in the order
//! in which the names came.

use std::collections::BTreeMap;

use super::bytes::{crc, put_u16, put_u32};
use super::extent::Map;
use crate::{Error, ErrorKind, Result};

/// The checksum entry that ends each directory block.
const TAIL: usize = 12;
/// A directory has at most this many bytes without the large_dir feature.
const LARGEST: u64 = (1 << 31) - 4096;

/// A name's inode, and when the name came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) inode: u32,
    sequence: u32,
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: u32,
    pub(super) subdirectories: u32,
    pub(super) entries: BTreeMap<Box<[u8]>, Entry>,
    next_sequence: u32,
    /// Blocks it takes if every name that ever came is still there: never too few.
    blocks: u32,
    /// Bytes in use in the last of them.
    last_used: u32,
    /// Blocks to write even when empty: lost+found has room before it is needed.
    pub(super) minimum_blocks: u32,
    /// Where it was written, once it was.
    pub(super) map: Map,
}

impl Directory {
    pub(super) fn new(parent: u32) -> Self {
        Self {
            parent,
            subdirectories: 0,
            entries: BTreeMap::new(),
            next_sequence: 0,
            blocks: 1,
            last_used: 24,
            minimum_blocks: 1,
            map: Map::Empty,
        }
    }

    /// Blocks to keep free for it: its own, and those of an extent tree should it be in pieces.
    pub(super) fn reserve(&self) -> u64 {
        reserve_for(self.blocks.max(self.minimum_blocks))
    }

    /// [`Self::reserve`] after `name` is added.
    pub(super) fn reserve_with(&self, name: &[u8], block_size: u32) -> Result<u64> {
        let (blocks, _) = self.grown(name, block_size);
        if u64::from(blocks) * u64::from(block_size) > LARGEST {
            return Err(Error::new(ErrorKind::NoSpace, "an ext4 directory cannot pass 2 GiB"));
        }
        Ok(reserve_for(blocks.max(self.minimum_blocks)))
    }

    fn grown(&self, name: &[u8], block_size: u32) -> (u32, u32) {
        let length = entry_length(name) as u32;
        if self.last_used + length > block_size - TAIL as u32 {
            (self.blocks + 1, length)
        } else {
            (self.blocks, self.last_used + length)
        }
    }

    /// Adds a name that is not there yet.
    pub(super) fn insert(&mut self, name: &[u8], inode: u32, block_size: u32) {
        (self.blocks, self.last_used) = self.grown(name, block_size);
        let sequence = self.next_sequence;
        // Past the end, only the order of names on disk would suffer.
        self.next_sequence = sequence.saturating_add(1);
        self.entries.insert(name.into(), Entry { inode, sequence });
    }

    /// Encodes the blocks in order. `file_type` gives the type byte of an inode.
    pub(super) fn encode(
        &self,
        inode: u32,
        block_size: u32,
        seed: u32,
        file_type: impl Fn(u32) -> u8,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut sorted: Vec<(&[u8], Entry)> = self.entries.iter().map(|(name, e)| (&**name, *e)).collect();
        sorted.sort_by_key(|(_, entry)| entry.sequence);
        let dots: [(&[u8], u32); 2] = [(b".", inode), (b"..", self.parent)];
        let names = dots.into_iter().chain(sorted.into_iter().map(|(name, entry)| (name, entry.inode)));
        let mut block = Block { bytes: vec![0; block_size as usize], used: 0, last: 0 };
        let mut emitted = 0;
        for (name, target) in names {
            if !block.fits(name) {
                emit(block.finish(seed))?;
                emitted += 1;
                block.clear();
            }
            block.push(name, target, file_type(target));
        }
        loop {
            emit(block.finish(seed))?;
            emitted += 1;
            if emitted >= self.minimum_blocks {
                return Ok(());
            }
            block.clear();
        }
    }
}

fn reserve_for(blocks: u32) -> u64 {
    let blocks = u64::from(blocks);
    if blocks > 4 { blocks + blocks.div_ceil(80) + 2 } else { blocks }
}

fn entry_length(name: &[u8]) -> usize {
    (8 + name.len()).next_multiple_of(4)
}

struct Block {
    bytes: Vec<u8>,
    used: usize,
    /// Offset of the last entry.
    last: usize,
}

impl Block {
    fn fits(&self, name: &[u8]) -> bool {
        self.used + entry_length(name) <= self.bytes.len() - TAIL
    }

    fn push(&mut self, name: &[u8], inode: u32, file_type: u8) {
        let (at, length) = (self.used, entry_length(name));
        put_u32(&mut self.bytes, at, inode);
        put_u16(&mut self.bytes, at + 4, length as u16);
        self.bytes[at + 6] = name.len() as u8;
        self.bytes[at + 7] = file_type;
        self.bytes[at + 8..at + 8 + name.len()].copy_from_slice(name);
        self.last = at;
        self.used += length;
    }

    /// Stretches the last entry to the tail (an empty block has one unused entry) and adds the checksum.
    fn finish(&mut self, seed: u32) -> &[u8] {
        let tail = self.bytes.len() - TAIL;
        let length = (tail - self.last) as u16;
        put_u16(&mut self.bytes, self.last + 4, length);
        let checksum = crc(seed, &self.bytes[..tail]);
        put_u16(&mut self.bytes, tail + 4, TAIL as u16);
        self.bytes[tail + 7] = 0xDE;
        put_u32(&mut self.bytes, tail + 8, checksum);
        &self.bytes
    }

    fn clear(&mut self) {
        self.bytes.fill(0);
        (self.used, self.last) = (0, 0);
    }
}

/// Refuses what the kernel could not look up.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    let refused = match name {
        b"" | b"." | b".." => true,
        _ => name.len() > 255 || name.iter().any(|byte| matches!(byte, 0 | b'/')),
    };
    if refused {
        let shown = String::from_utf8_lossy(&name[..name.len().min(300)]);
        return Err(Error::new(ErrorKind::Invalid, format!("{shown:?} cannot be a file name")));
    }
    Ok(())
}
