//! Inodes of groups that go get numbers of groups that stay.
//!
//! Where metadata has checksums, those of all that belongs to an inode begin with its number and its generation. A
//! CRC-32C over a word maps different words to different values, so for every new number there is one generation with
//! which they begin as before: the inode gets that one, and its directory blocks, index nodes and extent nodes stay as
//! they are. Only the entries that name it are written anew.

use std::collections::BTreeMap;

use super::bitmap;
use super::descriptor::{Field, INODE_UNINIT};
use super::features::METADATA_CSUM;
use super::inode::Inode;
use super::relocate::Mover;
use super::superblock::{Geometry, corrupt};
use super::volume::Volume;
use crate::ext4::bytes::crc;
use crate::field::{le16, le32, put};
use crate::{Error, ErrorKind, Result};

/// The entry that ends a block of entries with its checksum.
const TAIL: usize = 12;
/// Where the index of a directory's first block has its length, from which on it follows.
const INFO_LENGTH: usize = 0x1D;
const DOTS: usize = 24;
/// Entries naming inodes that move; each is 8 bytes in memory.
const MAX_REFERENCES: u64 = 1 << 24;

/// For each inode that moves, the directories and the blocks in them that name it.
pub(super) type References = BTreeMap<u32, Vec<(u32, u32)>>;

impl Volume<'_> {
    /// Finds every entry that names an inode behind the last of `new`.
    pub(super) fn references(&self, new: &Geometry) -> Result<References> {
        let mut found = References::new();
        let last = new.inodes();
        self.for_each_inode(new.groups..self.geometry.groups, &mut |inode| {
            found.insert(inode.number, Vec::new());
            Ok(())
        })?;
        if found.is_empty() {
            return Ok(found);
        }
        let mut count = 0;
        self.for_each_inode(0..self.geometry.groups, &mut |inode| {
            if !inode.is_directory() {
                return Ok(());
            }
            if !inode.has_map() {
                return Err(unmoved("inodes beside directories kept in their inodes"));
            }
            for run in self.map(&inode)?.runs {
                for offset in 0..run.length {
                    let bytes = self.read(run.physical + offset)?;
                    let place = (inode.number, (run.logical + offset) as u32);
                    for_each_entry(&bytes, &mut |_, target| {
                        if target <= last {
                            return Ok(());
                        }
                        let named = found.get_mut(&target);
                        let named = named.ok_or_else(|| {
                            corrupt(format!("an entry names inode {target}, which is free"))
                        })?;
                        if named.last() != Some(&place) {
                            named.push(place);
                            count += 1;
                        }
                        if count > MAX_REFERENCES {
                            return Err(unmoved("that many inodes"));
                        }
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })?;
        let most = self.capacity() / 4;
        match found.iter().find(|(_, named)| named.len() as u64 > most) {
            None => Ok(found),
            Some((number, named)) => Err(unmoved(&format!(
                "inode {number}, which {} blocks name while the ext journal takes {most} at once,",
                named.len()
            ))),
        }
    }

    /// Stores an inode bitmap, and what follows from it.
    fn set_inode_bitmap(&mut self, group: u32, bits: Vec<u8>, directories: i64) {
        let mut descriptor = self.descriptor(group);
        let inodes = u64::from(self.geometry.inodes_per_group);
        descriptor.set(Field::FreeInodes, bitmap::count_clear(&bits, inodes));
        let held = descriptor.get(Field::UsedDirectories).saturating_add_signed(directories);
        descriptor.set(Field::UsedDirectories, held);
        descriptor.seal_bitmap(Field::InodeBitmapChecksum, &self.superblock, &bits[..(inodes / 8) as usize]);
        descriptor.set_flags(descriptor.flags() & !INODE_UNINIT);
        self.changed.insert(descriptor.get(Field::InodeBitmap), bits);
        self.set_descriptor(group, descriptor);
    }

    /// Takes the first free inode of the groups up to `groups`.
    fn take_inode(&mut self, groups: u32, directories: i64) -> Result<u32> {
        let inodes = u64::from(self.geometry.inodes_per_group);
        for group in 0..groups {
            let descriptor = self.descriptor(group);
            if descriptor.get(Field::FreeInodes) == 0 {
                continue;
            }
            let mut bits = self.inode_bitmap(group)?;
            let bit = bitmap::next(&bits, 0, inodes, false);
            if bit == inodes {
                return Err(corrupt(format!("group {group} has no free inode and says it has")));
            }
            bitmap::set(&mut bits, bit..bit + 1);
            let unused = descriptor.get(Field::UnusedInodes).min(inodes - bit - 1);
            let mut descriptor = descriptor;
            descriptor.set(Field::UnusedInodes, unused);
            self.set_descriptor(group, descriptor);
            self.set_inode_bitmap(group, bits, directories);
            return Ok(group * self.geometry.inodes_per_group + bit as u32 + 1);
        }
        Err(Error::new(ErrorKind::NoSpace, "the ext file system has no free inode in the groups that stay"))
    }

    /// Gives back an inode; its slot is empty from then on.
    fn give_inode(&mut self, number: u32, directories: i64) -> Result<()> {
        let (block, at) = self.inode_place(number)?;
        let mut bytes = self.read(block)?;
        bytes[at..at + self.geometry.inode_size as usize].fill(0);
        self.changed.insert(block, bytes);
        let (group, bit) = (
            (number - 1) / self.geometry.inodes_per_group,
            u64::from((number - 1) % self.geometry.inodes_per_group),
        );
        let mut bits = self.inode_bitmap(group)?;
        bitmap::clear(&mut bits, bit..bit + 1);
        self.set_inode_bitmap(group, bits, directories);
        Ok(())
    }

    /// Lets the entries of one block of a directory name `new` in place of `old`.
    fn rename_in(&mut self, directory: u32, logical: u32, old: u32, new: u32) -> Result<()> {
        let inode = self.inode(directory)?;
        let block = self.map(&inode)?.physical(u64::from(logical));
        let block = block.ok_or_else(|| corrupt(format!("directory {directory} lost block {logical}")))?;
        let mut bytes = self.read(block)?;
        let mut places = Vec::new();
        for_each_entry(&bytes, &mut |at, target| {
            if target == old {
                places.push(at);
            }
            Ok(())
        })?;
        for at in places {
            put(&mut bytes, at, &new.to_le_bytes());
        }
        if self.superblock.features().ro_compat & METADATA_CSUM != 0 {
            let seed = inode.seed(&self.superblock);
            if logical == 0 && inode.is_indexed() {
                seal_root(&mut bytes, seed)?
            } else {
                seal_entries(&mut bytes, seed)?
            }
        }
        self.changed.insert(block, bytes);
        Ok(())
    }
}

impl Mover<'_, '_> {
    /// All inodes of groups that go.
    pub(super) fn renumber(&mut self, new: &Geometry) -> Result<()> {
        let references = self.volume.references(new)?;
        let mut moved: BTreeMap<u32, u32> = BTreeMap::new();
        for (old, named) in references {
            let inode = self.volume.inode(old)?;
            let directories = i64::from(inode.is_directory());
            let number = self.volume.take_inode(new.groups, directories)?;
            let mut placed = Inode { number, bytes: inode.bytes.clone() };
            if self.volume.superblock.features().ro_compat & METADATA_CSUM != 0 {
                let seed = self.volume.superblock.seed();
                let (before, after) = (crc(seed, &old.to_le_bytes()), crc(seed, &number.to_le_bytes()));
                placed.set_generation(inode.generation() ^ before ^ after);
            }
            self.volume.set_inode(&mut placed)?;
            moved.insert(old, number);
            for (directory, logical) in named {
                let directory = moved.get(&directory).copied().unwrap_or(directory);
                self.volume.rename_in(directory, logical, old, number)?;
            }
            self.volume.give_inode(old, -directories)?;
            self.commit_if_full()?;
        }
        self.commit()
    }
}

/// Visits the entries in use of a block of a directory: where they are and what they name.
fn for_each_entry(bytes: &[u8], visit: &mut dyn FnMut(usize, u32) -> Result<()>) -> Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let length = match usize::from(le16(bytes, at + 4)) {
            0 | 0xFFFF if bytes.len() == 0x1_0000 => bytes.len(),
            length => length,
        };
        if length < 8 || !length.is_multiple_of(4) || length > bytes.len() - at {
            return Err(corrupt(format!("a directory has an entry of {length} bytes")));
        }
        let target = le32(bytes, at);
        if target != 0 {
            visit(at, target)?;
        }
        at += length;
    }
    Ok(())
}

/// The checksum at the end of a block of entries.
fn seal_entries(bytes: &mut [u8], seed: u32) -> Result<()> {
    let at = bytes.len() - TAIL;
    if le32(bytes, at) != 0 || le16(bytes, at + 4) != TAIL as u16 || bytes[at + 7] != 0xDE {
        return Err(corrupt("a block of a directory has no checksum"));
    }
    let checksum = crc(seed, &bytes[..at]);
    put(bytes, at + 8, &checksum.to_le_bytes());
    Ok(())
}

/// The checksum behind the index in the first block of a directory.
fn seal_root(bytes: &mut [u8], seed: u32) -> Result<()> {
    let start = DOTS + usize::from(bytes[INFO_LENGTH]);
    let (limit, count) = (usize::from(le16(bytes, start)), usize::from(le16(bytes, start + 2)));
    let tail = start + 8 * limit;
    if count > limit || tail + 8 > bytes.len() {
        return Err(corrupt("the index of a directory is larger than its block"));
    }
    let covered = crc(crc(seed, &bytes[..start + 8 * count]), &bytes[tail..tail + 4]);
    let checksum = crc(covered, &[0; 4]);
    put(bytes, tail + 4, &checksum.to_le_bytes());
    Ok(())
}

fn unmoved(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} cannot get other numbers: not shrunk"))
}
