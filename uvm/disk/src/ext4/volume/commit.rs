//! Changes reach the device as one transaction of the file system's own journal.
//!
//! ```text
//! begin   superblock: needs_recovery             from here on whoever opens it looks into the journal
//! commit  what lies past the old end             nobody has a way there yet
//!         log: descriptors, blocks, commit       the journal's superblock still says that the log is empty
//!         journal superblock: log begins here    <- the one write, of one sector, that makes all of it so
//!         every block in place, superblock last
//!         journal superblock: log is empty
//! end     superblock: needs_recovery no more
//! ```
//!
//! A flush stands between any two of these lines. Whatever interrupts, the kernel, e2fsck and we find the old state or
//! replay to the new one. A file system without a journal has its superblock written last instead: its changes have to
//! be such that they may be made again.

use super::journal::Journal;
use super::source::Logged;
use super::superblock::{OFFSET, corrupt};
use super::volume::Volume;
use crate::field::{self, be32, put};
use crate::{Error, ErrorKind, Result};

/// Blocks of one transaction we hold in memory.
const MAX_TRANSACTION: u64 = 4096;
/// Bytes that leave in one write.
const WRITE: usize = 1 << 20;

impl Volume<'_> {
    /// Blocks one transaction may change.
    pub(super) fn capacity(&self) -> u64 {
        self.journal.as_ref().map_or(MAX_TRANSACTION, |journal| journal.capacity().min(MAX_TRANSACTION))
    }

    /// Carries out what the journal holds; the superblock comes out of it as it should be.
    pub(super) fn recover(&mut self) -> Result<()> {
        let logged: Vec<(u64, Logged)> = std::mem::take(&mut self.source.logged).into_iter().collect();
        let (superblock, _) = self.geometry.superblock_block();
        for last in [false, true] {
            for (block, place) in logged.iter().filter(|(block, _)| (*block == superblock) == last) {
                let bytes = self.source.logged_block(*place)?;
                self.write_block(*block, &bytes, "replaying the ext journal")?;
            }
            self.flush()?;
        }
        let sequence = self.next_sequence;
        self.set_journal_start(0, sequence)
    }

    /// From here on an interruption leaves something to recover.
    pub(super) fn begin(&mut self) -> Result<()> {
        if self.journal.is_none() {
            return Ok(());
        }
        self.superblock.set_needs_recovery(true);
        self.write_superblock()?;
        if self.geometry.blocks > u64::from(u32::MAX)
            && let Some(journal) = &mut self.journal
            && !journal.is_wide()
        {
            journal.widen();
        }
        Ok(())
    }

    /// All is in place.
    pub(super) fn end(&mut self) -> Result<()> {
        if self.superblock.needs_recovery() {
            self.superblock.set_needs_recovery(false);
            self.write_superblock()?;
        }
        Ok(())
    }

    /// The primary superblock, on its own.
    pub(super) fn write_superblock(&mut self) -> Result<()> {
        self.superblock.seal();
        field::write(self.source.device, OFFSET, &self.superblock.0, "writing the ext superblock")?;
        self.flush()
    }

    pub(super) fn flush(&self) -> Result<()> {
        field::flush(self.source.device, "making the ext file system durable")
    }

    pub(super) fn write_block(&self, block: u64, bytes: &[u8], context: &str) -> Result<()> {
        field::write(self.source.device, self.geometry.offset(block), bytes, context)
    }

    /// Makes everything changed so, at once. Blocks from `unreachable` on belong to nothing before: they need no
    /// journal.
    pub(super) fn commit(&mut self, unreachable: u64) -> Result<()> {
        self.render();
        let outside = self.changed.split_off(&unreachable);
        self.write_in_place(outside.into_iter().collect())?;
        self.flush()?;
        let changed: Vec<(u64, Vec<u8>)> = std::mem::take(&mut self.changed).into_iter().collect();
        if changed.len() as u64 > self.capacity() && self.journal.is_some() {
            let context = format!("{} blocks do not fit one transaction of the ext journal", changed.len());
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let (superblock, _) = self.geometry.superblock_block();
        if let Some(journal) = &self.journal {
            let (sequence, first) = (journal.sequence(), journal.first);
            self.write_log(journal, sequence, &changed)?;
            self.flush()?;
            self.set_journal_start(first, sequence)?;
        }
        let (last, others): (Vec<_>, Vec<_>) =
            changed.into_iter().partition(|(block, _)| *block == superblock);
        self.write_in_place(others)?;
        self.flush()?;
        self.write_in_place(last)?;
        self.flush()?;
        if let Some(journal) = &self.journal {
            let sequence = journal.sequence().wrapping_add(1);
            self.set_journal_start(0, sequence)?;
        }
        Ok(())
    }

    /// Puts superblock and changed descriptors among the changed blocks.
    fn render(&mut self) {
        let (block, at) = self.geometry.superblock_block();
        self.superblock.seal();
        let mut bytes = self.read(block).unwrap_or_else(|_| vec![0; self.geometry.block_size as usize]);
        put(&mut bytes, at, &self.superblock.0);
        self.changed.insert(block, bytes);
        for index in std::mem::take(&mut self.changed_descriptors) {
            if index < self.geometry.descriptor_blocks() {
                let bytes = self.descriptor_block(index);
                self.changed.insert(self.geometry.descriptor_place(index), bytes);
            }
        }
    }

    fn set_journal_start(&mut self, start: u32, sequence: u32) -> Result<()> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        journal.set_start(start, sequence);
        let place = journal.place(0)?;
        let offset = self.geometry.offset(place);
        let context = "writing the superblock of the ext journal";
        field::write(self.source.device, offset, &journal.superblock, context)?;
        self.flush()
    }

    /// A transaction from the first block of the log on.
    pub(super) fn write_log(
        &self,
        journal: &Journal,
        sequence: u32,
        changed: &[(u64, Vec<u8>)],
    ) -> Result<()> {
        let mut log = Vec::with_capacity(changed.len() + 2);
        for part in changed.chunks(journal.tags_per_block()) {
            let mut escaped = Vec::with_capacity(part.len());
            for (block, bytes) in part {
                let mut bytes = bytes.clone();
                let escape = be32(&bytes, 0) == super::journal::MAGIC;
                if escape {
                    put(&mut bytes, 0, &[0; 4]);
                }
                escaped.push((*block, bytes, escape));
            }
            let tags: Vec<(u64, &[u8], bool)> =
                escaped.iter().map(|(block, bytes, escape)| (*block, &bytes[..], *escape)).collect();
            log.push(journal.descriptor(sequence, &tags));
            log.extend(escaped.into_iter().map(|(_, bytes, _)| bytes));
        }
        log.push(journal.commit(sequence));
        let mut placed = Vec::with_capacity(log.len());
        for (at, bytes) in (journal.first..journal.end).zip(log) {
            placed.push((journal.place(at)?, bytes));
        }
        if placed.len() < changed.len() + 2 {
            return Err(corrupt("the ext journal is too short"));
        }
        self.write_in_place(placed)
    }

    /// Writes blocks; what is adjacent leaves together.
    fn write_in_place(&self, blocks: Vec<(u64, Vec<u8>)>) -> Result<()> {
        let mut gathered: Vec<u8> = Vec::new();
        let mut start = 0;
        for (block, bytes) in blocks {
            let next = start + (gathered.len() / self.geometry.block_size as usize) as u64;
            if block != next || gathered.len() >= WRITE {
                if !gathered.is_empty() {
                    self.write_block(start, &gathered, "writing ext metadata")?;
                    gathered.clear();
                }
                start = block;
            }
            gathered.extend_from_slice(&bytes);
        }
        if gathered.is_empty() { Ok(()) } else { self.write_block(start, &gathered, "writing ext metadata") }
    }

    /// Brings the copies of superblock and descriptors up to the first; writes only what differs.
    pub(super) fn refresh_copies(&mut self) -> Result<()> {
        let geometry = self.geometry;
        for index in 0..geometry.descriptor_blocks() {
            let bytes = self.descriptor_block(index);
            for place in geometry.descriptor_places(index).into_iter().skip(1) {
                if self.source.raw(place, 1, "reading a copy of ext group descriptors")? != bytes {
                    self.write_block(place, &bytes, "writing a copy of ext group descriptors")?;
                }
            }
        }
        for group in geometry.superblock_groups().skip(1) {
            let mut copy = self.superblock.clone();
            put(&mut copy.0, 0x5A, &((group & 0xFFFF) as u16).to_le_bytes());
            copy.set_needs_recovery(false);
            let place = geometry.offset(geometry.group_start(group));
            let found = field::read(self.source.device, place, copy.0.len(), "reading an ext superblock")?;
            if found != copy.0 {
                field::write(self.source.device, place, &copy.0, "writing a copy of the ext superblock")?;
            }
        }
        self.flush()
    }
}
