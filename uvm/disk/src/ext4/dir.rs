//! Directories while names come and go: kept in one piece of memory each, with an index of their own where
//! they are long. How one is written is in `dir_blocks.rs` and `htree.rs`.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::dir_blocks::{DOTS, Shape, entry_length};
use super::extent::Map;
use super::htree;
use crate::{Error, ErrorKind, Result};

/// A directory has at most this many bytes without the large_dir feature.
const LARGEST: u64 = (1 << 31) - 4096;
/// Up to this many names are searched one by one.
const FEW: usize = 8;

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where the name's length is in `names`, the name behind it.
    at: u32,
    /// 0 where the name was taken back.
    inode: u32,
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: u32,
    pub(super) subdirectories: u32,
    names: Vec<u8>,
    /// In the order in which they came.
    entries: Vec<Entry>,
    /// The entries by their names' hashes; empty while there are few.
    table: HashTable<u32>,
    live: u32,
    /// Bytes that its entries take on disk.
    bytes: u32,
    /// Bytes of the longest entry it ever had.
    longest: u16,
    /// Whether it was written with an index.
    pub(super) indexed: bool,
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
            names: Vec::new(),
            entries: Vec::new(),
            table: HashTable::new(),
            live: 0,
            bytes: DOTS,
            longest: DOTS as u16,
            indexed: false,
            minimum_blocks: 1,
            map: Map::Empty,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Bytes that `.`, `..` and its names take.
    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Blocks to keep free for it: its own, and those of an extent tree should it be in pieces.
    pub(super) fn reserve(&self, shape: &Shape) -> u64 {
        reserve_for(most_blocks(self.bytes, self.longest, shape).max(u64::from(self.minimum_blocks)))
    }

    /// [`Self::reserve`] after `name` is added.
    pub(super) fn reserve_with(&self, name: &[u8], shape: &Shape) -> Result<u64> {
        let length = entry_length(name) as u16;
        let bytes = self.bytes.saturating_add(u32::from(length));
        let blocks = most_blocks(bytes, self.longest.max(length), shape);
        if blocks * u64::from(shape.block_size) > LARGEST {
            return Err(Error::new(ErrorKind::NoSpace, "an ext4 directory cannot pass 2 GiB"));
        }
        if shape.hash.is_some() && blocks > htree::most_blocks(shape) {
            let context = format!("{} names fill the two levels of an ext4 directory's index", self.live);
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        Ok(reserve_for(blocks.max(u64::from(self.minimum_blocks))))
    }

    /// The inode of a name.
    pub(super) fn get(&self, name: &[u8], hasher: &RandomState) -> Option<u32> {
        self.find(name, hasher).map(|index| self.entries[index].inode)
    }

    /// Adds a name that is not there yet.
    pub(super) fn insert(&mut self, name: &[u8], inode: u32, hasher: &RandomState) {
        let length = entry_length(name);
        self.bytes += length as u32;
        self.longest = self.longest.max(length as u16);
        self.live += 1;
        self.push(name, inode, hasher);
    }

    /// Gives a name that is there another inode.
    pub(super) fn replace(&mut self, name: &[u8], inode: u32, hasher: &RandomState) {
        if let Some(index) = self.find(name, hasher) {
            self.entries[index].inode = inode;
        }
    }

    pub(super) fn remove(&mut self, name: &[u8], hasher: &RandomState) {
        let Some(index) = self.find(name, hasher) else { return };
        if let Ok(found) = self.table.find_entry(hasher.hash_one(name), |other| *other as usize == index) {
            found.remove();
        }
        self.entries[index].inode = 0;
        self.bytes -= entry_length(name) as u32;
        self.live -= 1;
        let dead = self.entries.len() - self.live as usize;
        if dead > FEW && dead > self.live as usize {
            self.compact(hasher);
        }
    }

    /// Names and inodes, in the order in which they came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        self.entries
            .iter()
            .filter(|entry| entry.inode != 0)
            .map(|entry| (name_at(&self.names, entry.at), entry.inode))
    }

    /// The name and inode at a place among all that ever came; `None` where the name was taken back.
    pub(super) fn at(&self, index: usize) -> Option<(&[u8], u32)> {
        let entry = self.entries.get(index).filter(|entry| entry.inode != 0)?;
        Some((name_at(&self.names, entry.at), entry.inode))
    }

    /// Places for [`Self::at`].
    pub(super) fn places(&self) -> usize {
        self.entries.len()
    }

    fn find(&self, name: &[u8], hasher: &RandomState) -> Option<usize> {
        let is_it = |entry: &Entry| entry.inode != 0 && name_at(&self.names, entry.at) == name;
        if self.table.is_empty() {
            return self.entries.iter().position(is_it);
        }
        let found = self.table.find(hasher.hash_one(name), |index| is_it(&self.entries[*index as usize]));
        found.map(|index| *index as usize)
    }

    fn push(&mut self, name: &[u8], inode: u32, hasher: &RandomState) {
        let (names, entries) = (&mut self.names, &mut self.entries);
        grow(names, 1 + name.len(), 64);
        grow(entries, 1, 4);
        // A directory of 2 GiB has less than as many bytes of names, and no more dead ones than live.
        entries.push(Entry { at: names.len() as u32, inode });
        names.push(name.len() as u8);
        names.extend_from_slice(name);
        let index = entries.len() - 1;
        if !self.table.is_empty() {
            let hash_of = |other: &u32| hasher.hash_one(name_at(names, entries[*other as usize].at));
            self.table.insert_unique(hasher.hash_one(name), index as u32, hash_of);
        } else if index >= FEW {
            self.build_table(hasher);
        }
    }

    fn build_table(&mut self, hasher: &RandomState) {
        let Self { names, entries, table, live, .. } = self;
        let hash_of = |index: &u32| hasher.hash_one(name_at(names, entries[*index as usize].at));
        *table = HashTable::with_capacity(*live as usize);
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.inode != 0) {
            table.insert_unique(hasher.hash_one(name_at(names, entry.at)), index as u32, hash_of);
        }
    }

    /// Forgets the names that were taken back.
    fn compact(&mut self, hasher: &RandomState) {
        let (names, entries) = (std::mem::take(&mut self.names), std::mem::take(&mut self.entries));
        self.table = HashTable::new();
        for entry in entries.iter().filter(|entry| entry.inode != 0) {
            self.push(name_at(&names, entry.at), entry.inode, hasher);
        }
    }
}

/// Room for `more`, an eighth at a time where there is much: memory is what a builder has little of.
pub(super) fn grow<T>(vec: &mut Vec<T>, more: usize, least: usize) {
    if vec.capacity() - vec.len() < more {
        vec.reserve_exact(more.max(least).max(vec.len() / 8));
    }
}

fn name_at(names: &[u8], at: u32) -> &[u8] {
    let at = at as usize;
    &names[at + 1..at + 1 + names[at] as usize]
}

/// Blocks that suffice for entries of `bytes` in all, whatever their order.
fn most_blocks(bytes: u32, longest: u16, shape: &Shape) -> u64 {
    let room = shape.room();
    if bytes <= room {
        return 1;
    }
    // A block is left for the next one with less than the longest entry free.
    let filled = shape.leaf_room() - u32::from(longest) + 4;
    let leaves = u64::from(bytes.div_ceil(filled));
    if shape.hash.is_some() { htree::blocks(leaves, shape) } else { leaves }
}

fn reserve_for(blocks: u64) -> u64 {
    if blocks > 4 { blocks + blocks.div_ceil(80) + 2 } else { blocks }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go() {
        let hasher = RandomState::new();
        let mut directory = Directory::new(2);
        let name = |index: u32| format!("{index}{:x>1$}", "", (index % 200) as usize).into_bytes();
        for index in 1..=3000 {
            directory.insert(&name(index), index, &hasher);
        }
        for index in (1..=3000).filter(|index| index % 7 != 0) {
            directory.remove(&name(index), &hasher);
        }
        directory.replace(&name(70), 99, &hasher);
        for index in 1..=3000 {
            let expected = if index == 70 { Some(99) } else { Some(index).filter(|index| index % 7 == 0) };
            assert_eq!(directory.get(&name(index), &hasher), expected, "{index}");
        }
        assert_eq!(directory.iter().count(), 3000 / 7);
        assert!(directory.places() < 3000 / 3, "what went is forgotten: {}", directory.places());
        for index in (7..=3000).step_by(7) {
            directory.remove(&name(index), &hasher);
        }
        assert!(directory.is_empty() && directory.bytes() == DOTS);
    }
}
