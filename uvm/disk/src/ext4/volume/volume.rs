//! An existing file system, opened: superblock, descriptors and journal, and every block as the journal leaves it.

use std::collections::{BTreeMap, BTreeSet};

use super::descriptor::{Descriptor, Field};
use super::inode::Inode;
use super::journal::Journal;
use super::map::{Map, read_map};
use super::source::Source;
use super::superblock::{Geometry, OFFSET, SIZE, Superblock, corrupt, has_descriptor_checksums};
use crate::{BlockDevice, ErrorKind, Result, field};

/// Blocks read at a time where many lie together: 1 MiB in blocks of 4 KiB.
pub(super) const BATCH: u64 = 256;

/// An ext2, ext3 or ext4. What is changed stays in memory until [`Self::commit`].
pub(super) struct Volume<'d> {
    pub(super) source: Source<'d>,
    pub(super) superblock: Superblock,
    pub(super) geometry: Geometry,
    pub(super) journal: Option<Journal>,
    /// The superblock is a copy: what the primary one said of the state is lost.
    pub(super) is_copy: bool,
    /// What the journal's log ends with, where it is not empty.
    pub(super) next_sequence: u32,
    /// All descriptors, one behind the other.
    pub(super) descriptors: Vec<u8>,
    /// Descriptor blocks that differ from those on the device: the copies of broken ones, which say where things are
    /// but not what is in use, and what was changed since.
    pub(super) changed_descriptors: BTreeSet<u32>,
    /// Other blocks that differ from those on the device.
    pub(super) changed: BTreeMap<u64, Vec<u8>>,
}

impl<'d> Volume<'d> {
    /// Reads superblock, descriptors and journal; copies where the first are broken.
    pub(super) fn open(device: &'d dyn BlockDevice) -> Result<Self> {
        let (superblock, is_copy) = find_superblock(device)?;
        superblock.features().check_readable()?;
        let mut volume = Self::with(device, superblock)?;
        volume.is_copy = is_copy;
        // Before the replay some may be half written; only the first counts now, the journal's inode is in its group.
        volume.read_descriptors(!volume.superblock.needs_recovery())?;
        volume.read_journal()?;
        if volume.superblock.needs_recovery() {
            volume.see_through_journal()?;
        }
        Ok(volume)
    }

    /// The same without looking into the journal; `None` where that alone cannot be read.
    pub(super) fn open_unrecovered(device: &'d dyn BlockDevice) -> Result<Option<Self>> {
        let mut volume = Self::with(device, find_superblock(device)?.0)?;
        match volume.read_descriptors(true) {
            Ok(()) => Ok(Some(volume)),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn with(device: &'d dyn BlockDevice, superblock: Superblock) -> Result<Self> {
        let geometry = Geometry::of(&superblock)?;
        let size = geometry.blocks.saturating_mul(u64::from(geometry.block_size));
        if size > device.geometry().size {
            let has = device.geometry().size;
            return Err(corrupt(format!("the ext file system has {size} bytes, the device {has}")));
        }
        Ok(Self {
            source: Source { device, block_size: geometry.block_size, logged: BTreeMap::new() },
            superblock,
            geometry,
            journal: None,
            is_copy: false,
            next_sequence: 0,
            descriptors: Vec::new(),
            changed_descriptors: BTreeSet::new(),
            changed: BTreeMap::new(),
        })
    }

    /// Superblock and descriptors once more, as a replay leaves them.
    fn see_through_journal(&mut self) -> Result<()> {
        let (block, at) = self.geometry.superblock_block();
        if self.source.logged.contains_key(&block) {
            let bytes = self.source.read(block, 1, "reading the ext superblock")?;
            self.superblock = Superblock::parse(&bytes[at..])?;
            self.is_copy = false;
            self.superblock.features().check_readable()?;
            let geometry = Geometry::of(&self.superblock)?;
            let size = geometry.blocks.saturating_mul(u64::from(geometry.block_size));
            if geometry.block_size != self.geometry.block_size || size > self.source.device.geometry().size {
                return Err(corrupt("the ext journal holds the superblock of another file system"));
            }
            self.geometry = geometry;
        }
        self.read_descriptors(true)
    }

    /// The journal inside the file system, and what is in it.
    fn read_journal(&mut self) -> Result<()> {
        let Some(number) = self.superblock.journal_inode() else { return Ok(()) };
        let inode = self.inode(number)?;
        let map = self.map(&inode)?;
        let journal = Journal::read(&self.source, map)?;
        self.next_sequence = journal.sequence();
        if self.superblock.needs_recovery() {
            let pending = journal.pending(&self.source)?;
            self.source.logged = pending.logged;
            self.next_sequence = pending.next_sequence;
        }
        self.journal = Some(journal);
        Ok(())
    }

    /// The descriptors; from the copies where a checksum of the first does not fit.
    fn read_descriptors(&mut self, strict: bool) -> Result<()> {
        let geometry = self.geometry;
        self.changed_descriptors.clear();
        let block_size = geometry.block_size as usize;
        self.descriptors = Vec::new();
        let joint = u64::from(geometry.joint_descriptor_blocks());
        let mut index = 0;
        while index < u64::from(geometry.descriptor_blocks()) {
            let count = if index < joint { BATCH.min(joint - index) } else { 1 };
            let place = geometry.descriptor_place(index as u32);
            let bytes = self.source.read(place, count, "reading ext group descriptors")?;
            for (block, bytes) in (index as u32..).zip(bytes.chunks_exact(block_size)) {
                if self.descriptors_fit(block, bytes) || !strict && block > 0 {
                    self.descriptors.extend_from_slice(bytes);
                } else {
                    let copy = self.copy_of_descriptors(block)?;
                    self.descriptors.extend_from_slice(&copy);
                    self.changed_descriptors.insert(block);
                }
            }
            index += count;
        }
        Ok(())
    }

    fn descriptors_fit(&self, block: u32, bytes: &[u8]) -> bool {
        let first = block * self.geometry.descriptors_per_block();
        let slots = bytes.chunks_exact(self.geometry.descriptor_size as usize);
        (first..self.geometry.groups).zip(slots).all(|(group, slot)| {
            let descriptor = Descriptor(slot.to_vec());
            descriptor.fits(&self.superblock, group) && descriptor.is_possible(&self.geometry)
        })
    }

    fn copy_of_descriptors(&self, block: u32) -> Result<Vec<u8>> {
        for place in self.geometry.descriptor_places(block).into_iter().skip(1) {
            let bytes = self.source.read(place, 1, "reading a copy of ext group descriptors")?;
            if self.descriptors_fit(block, &bytes) {
                return Ok(bytes);
            }
        }
        let at = self.geometry.offset(self.geometry.descriptor_place(block));
        Err(corrupt(format!("block {block} of the ext group descriptors and all its copies are broken"))
            .at(at))
    }

    /// Whether the descriptor of a group is a copy whose flags and checksums nobody brought up to date: the kernel
    /// writes copies when it resizes, and never else.
    pub(super) fn is_stale(&self, group: u32) -> bool {
        let block = group / self.geometry.descriptors_per_block();
        has_descriptor_checksums(self.superblock.features()) && self.changed_descriptors.contains(&block)
    }

    pub(super) fn descriptor(&self, group: u32) -> Descriptor {
        let size = self.geometry.descriptor_size as usize;
        let at = group as usize * size;
        Descriptor(self.descriptors.get(at..at + size).map_or_else(|| vec![0; size], <[u8]>::to_vec))
    }

    /// Blocks from `block` on as they will be once all is committed.
    pub(super) fn read(&self, block: u64) -> Result<Vec<u8>> {
        match self.changed.get(&block) {
            Some(bytes) => Ok(bytes.clone()),
            None => self.source.read(block, 1, "reading a block of the ext file system"),
        }
    }

    /// The same of several blocks. Callers bound `count`.
    pub(super) fn read_many(&self, block: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = self.source.read(block, count, "reading blocks of the ext file system")?;
        for (number, changed) in self.changed.range(block..block + count) {
            field::put(
                &mut bytes,
                ((number - block) * u64::from(self.geometry.block_size)) as usize,
                changed,
            );
        }
        Ok(bytes)
    }

    /// The block of the inode table with an inode, and where in it.
    pub(super) fn inode_place(&self, number: u32) -> Result<(u64, usize)> {
        let geometry = &self.geometry;
        let index = number.checked_sub(1).filter(|_| number <= geometry.inodes());
        let index = index.ok_or_else(|| corrupt(format!("there is no inode {number}")))?;
        let (group, within) = (index / geometry.inodes_per_group, index % geometry.inodes_per_group);
        let at = u64::from(within) * u64::from(geometry.inode_size);
        let block_size = u64::from(geometry.block_size);
        Ok((self.descriptor(group).get(Field::InodeTable) + at / block_size, (at % block_size) as usize))
    }

    pub(super) fn inode(&self, number: u32) -> Result<Inode> {
        let (block, at) = self.inode_place(number)?;
        let bytes = self.read(block)?[at..at + self.geometry.inode_size as usize].to_vec();
        let inode = Inode { number, bytes };
        if !inode.fits(&self.superblock) {
            return Err(corrupt(format!("the checksum of inode {number} does not fit")));
        }
        Ok(inode)
    }

    pub(super) fn map(&self, inode: &Inode) -> Result<Map> {
        read_map(inode, &self.geometry, &mut |block| self.read(block))
    }

    /// The map of an inode that may have none.
    pub(super) fn owned(&self, inode: &Inode) -> Result<Map> {
        if inode.has_map() { self.map(inode) } else { Ok(Map::default()) }
    }
}

/// The primary superblock, or the first copy that fits and that it is one.
fn find_superblock(device: &dyn BlockDevice) -> Result<(Superblock, bool)> {
    let bytes = field::read(device, OFFSET, SIZE, "reading the ext superblock")?;
    let primary = Superblock::parse(&bytes).and_then(|found| Geometry::of(&found).map(|_| found));
    let error = match primary {
        Ok(found) => return Ok((found, false)),
        Err(error) => error,
    };
    for block_size in [4096, 1024, 2048, 8192, 16_384, 32_768, 65_536_u64] {
        for group in [1, 3, 5, 7, 9, 25, 27, 49, 81, 125_u64] {
            let offset = (u64::from(block_size == 1024) + group * block_size * 8) * block_size;
            if offset + SIZE as u64 > device.geometry().size {
                break;
            }
            let bytes = field::read(device, offset, SIZE, "reading a copy of the ext superblock")?;
            if let Ok(found) = Superblock::parse(&bytes)
                && Geometry::of(&found).is_ok_and(|g| u64::from(g.block_size) == block_size)
                && u64::from(found.u16(0x5A)) == group
            {
                let mut found = found;
                field::put(&mut found.0, 0x5A, &[0, 0]);
                // Whether there was something to recover, only the lost one knew.
                if found.journal_inode().is_some() {
                    found.set_needs_recovery(true);
                }
                return Ok((found, true));
            }
        }
    }
    Err(error)
}
