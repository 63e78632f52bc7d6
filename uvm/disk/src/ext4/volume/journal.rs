//! The journal (jbd2) as it is found: its superblock, and what a replay of it would change.

use std::collections::BTreeMap;

use super::map::Map;
use super::source::{Logged, Source};
use super::superblock::corrupt;
use crate::ext4::bytes::crc;
use crate::field::{be32, be64, put};
use crate::{Error, ErrorKind, Result};

pub(super) const MAGIC: u32 = 0xC03B_3998;
// `h_blocktype`.
pub(super) const DESCRIPTOR: u32 = 1;
pub(super) const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
pub(super) const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;
// `s_feature_incompat` of the journal.
pub(super) const BIT64: u32 = 0x2;
const ASYNC_COMMIT: u32 = 0x4;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
const KNOWN: u32 = 0x1 | BIT64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
// `t_flags`.
pub(super) const ESCAPED: u32 = 1;
pub(super) const SAME_UUID: u32 = 2;
pub(super) const LAST: u32 = 8;
/// Blocks of a journal we read: 64 GiB in blocks of 64 KiB.
const MAX_BLOCKS: u32 = 1 << 20;
/// Fast commits have this many blocks at the end where the superblock does not say.
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;

/// The journal's superblock and where its blocks are.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    pub(super) map: Map,
    pub(super) block_size: u32,
    /// The first 1024 bytes.
    pub(super) superblock: Vec<u8>,
    /// First block of the log, and the one behind its last.
    pub(super) first: u32,
    pub(super) end: u32,
    incompat: u32,
    seed: u32,
}

/// What a journal holds that is not in place yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) logged: BTreeMap<u64, Logged>,
    /// The sequence number behind the last transaction.
    pub(super) next_sequence: u32,
}

impl Journal {
    /// Reads the superblock of the journal in `map`.
    pub(super) fn read(source: &Source<'_>, map: Map) -> Result<Self> {
        let place = map.physical(0).ok_or_else(|| corrupt("the ext journal has no first block"))?;
        let mut superblock = source.raw(place, 1, "reading the superblock of the ext journal")?;
        superblock.truncate(1024);
        Self::of(superblock, map, source.block_size)
    }

    /// Takes the superblock for what it says.
    pub(super) fn of(superblock: Vec<u8>, map: Map, block_size: u32) -> Result<Self> {
        let version = be32(&superblock, 4);
        let incompat = if version == SUPERBLOCK_V2 { be32(&superblock, 0x28) } else { 0 };
        let mut end = be32(&superblock, 0x10);
        let first = be32(&superblock, 0x14);
        let fits = be32(&superblock, 0) == MAGIC
            && (version == SUPERBLOCK_V1 || version == SUPERBLOCK_V2)
            && be32(&superblock, 0x0C) == block_size
            && end <= MAX_BLOCKS
            && map.blocks() >= u64::from(end)
            && first >= 1
            && first < end
            && be32(&superblock, 0x1C) < end;
        if !fits {
            return Err(corrupt("the superblock of the ext journal is none"));
        }
        if incompat & !KNOWN != 0 {
            let context = format!("features {:#x} of the ext journal are not known", incompat & !KNOWN);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        if incompat & FAST_COMMIT != 0 {
            let blocks = match be32(&superblock, 0x54) {
                0 => DEFAULT_FAST_COMMIT_BLOCKS,
                blocks => blocks,
            };
            end = end
                .checked_sub(blocks)
                .filter(|end| *end > first)
                .ok_or_else(|| corrupt("the ext journal is smaller than what it keeps for fast commits"))?;
        }
        let seed = crc(!0, &superblock[0x30..0x40]);
        let journal = Self { map, block_size, superblock, first, end, incompat, seed };
        if journal.has_checksums() && be32(&journal.superblock, 0xFC) != journal.checksum() {
            return Err(corrupt("the checksum of the ext journal's superblock does not fit"));
        }
        Ok(journal)
    }

    fn has_checksums(&self) -> bool {
        self.incompat & (CSUM_V2 | CSUM_V3) != 0
    }

    fn checksum(&self) -> u32 {
        let mut blank = self.superblock.clone();
        put(&mut blank, 0xFC, &[0; 4]);
        crc(!0, &blank)
    }

    pub(super) fn sequence(&self) -> u32 {
        be32(&self.superblock, 0x18)
    }

    /// Where the log begins; 0 where it is empty.
    pub(super) fn start(&self) -> u32 {
        be32(&self.superblock, 0x1C)
    }

    /// Whether its last user found an error and wrote it down here.
    pub(super) fn has_error(&self) -> bool {
        be32(&self.superblock, 0x20) != 0
    }

    /// Says where the log begins, and with which transaction.
    pub(super) fn set_start(&mut self, start: u32, sequence: u32) {
        put(&mut self.superblock, 0x18, &sequence.to_be_bytes());
        put(&mut self.superblock, 0x1C, &start.to_be_bytes());
        if self.has_checksums() {
            let checksum = self.checksum();
            put(&mut self.superblock, 0xFC, &checksum.to_be_bytes());
        }
    }

    /// Lets it name blocks past 2^32.
    pub(super) fn widen(&mut self) {
        self.incompat |= BIT64;
        put(&mut self.superblock, 0x28, &self.incompat.to_be_bytes());
    }

    pub(super) fn is_wide(&self) -> bool {
        self.incompat & BIT64 != 0
    }

    /// Blocks one transaction can have beside its descriptors and its commit.
    pub(super) fn capacity(&self) -> u64 {
        let room = u64::from(self.end - self.first);
        room.saturating_sub(2 + room.div_ceil(self.tags_per_block() as u64))
    }

    /// Where a block of the journal is on the device.
    pub(super) fn place(&self, block: u32) -> Result<u64> {
        self.map.physical(u64::from(block)).ok_or_else(|| corrupt("the ext journal has a hole"))
    }

    fn tag_size(&self) -> usize {
        match (self.incompat & CSUM_V3 != 0, self.incompat & CSUM_V2 != 0, self.is_wide()) {
            (true, ..) => 16,
            (_, false, false) => 8,
            (_, false, true) => 12,
            (_, true, false) => 10,
            (_, true, true) => 14,
        }
    }

    fn tail(&self) -> usize {
        if self.has_checksums() { 4 } else { 0 }
    }

    pub(super) fn tags_per_block(&self) -> usize {
        (self.block_size as usize - 12 - 16 - self.tail()) / self.tag_size()
    }

    /// The checksum over a block with a tail, which reads as zero meanwhile.
    fn block_checksum(&self, block: &[u8], at: usize) -> u32 {
        let mut blank = block.to_vec();
        put(&mut blank, at, &[0; 4]);
        crc(self.seed, &blank)
    }

    fn data_checksum(&self, sequence: u32, data: &[u8]) -> u32 {
        crc(crc(self.seed, &sequence.to_be_bytes()), data)
    }

    /// A descriptor block for `blocks` with their contents as they are in the log.
    pub(super) fn descriptor(&self, sequence: u32, blocks: &[(u64, &[u8], bool)]) -> Vec<u8> {
        let mut bytes = self.header(DESCRIPTOR, sequence);
        let mut at = 12;
        for (index, (block, data, escaped)) in blocks.iter().enumerate() {
            let last = index + 1 == blocks.len();
            let flag = |set: bool, flag| if set { flag } else { 0 };
            let flags = flag(*escaped, ESCAPED) | flag(index > 0, SAME_UUID) | flag(last, LAST);
            let checksum = self.data_checksum(sequence, data);
            put(&mut bytes, at, &((block & 0xFFFF_FFFF) as u32).to_be_bytes());
            let high = ((block >> 32) as u32).to_be_bytes();
            if self.incompat & CSUM_V3 != 0 {
                put(&mut bytes, at + 4, &flags.to_be_bytes());
                put(&mut bytes, at + 8, &high);
                put(&mut bytes, at + 12, &checksum.to_be_bytes());
            } else {
                if self.incompat & CSUM_V2 != 0 {
                    put(&mut bytes, at + 4, &((checksum & 0xFFFF) as u16).to_be_bytes());
                }
                put(&mut bytes, at + 6, &(flags as u16).to_be_bytes());
                if self.is_wide() {
                    put(&mut bytes, at + 8, &high);
                }
            }
            at += self.tag_size();
            if index == 0 {
                put(&mut bytes, at, &self.superblock[0x30..0x40]);
                at += 16;
            }
        }
        self.seal(&mut bytes);
        bytes
    }

    pub(super) fn commit(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.header(COMMIT, sequence);
        if self.has_checksums() {
            let checksum = self.block_checksum(&bytes, 16);
            put(&mut bytes, 16, &checksum.to_be_bytes());
        }
        bytes
    }

    fn header(&self, kind: u32, sequence: u32) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size as usize];
        for (at, value) in [(0, MAGIC), (4, kind), (8, sequence)] {
            put(&mut bytes, at, &value.to_be_bytes());
        }
        bytes
    }

    fn seal(&self, bytes: &mut [u8]) {
        if self.has_checksums() {
            let at = bytes.len() - 4;
            let checksum = self.block_checksum(bytes, at);
            put(bytes, at, &checksum.to_be_bytes());
        }
    }

    fn is_sealed(&self, bytes: &[u8]) -> bool {
        let at = bytes.len() - 4;
        !self.has_checksums() || be32(bytes, at) == self.block_checksum(bytes, at)
    }

    /// What a replay would change: every committed transaction in order, less what later ones revoked.
    pub(super) fn pending(&self, source: &Source<'_>) -> Result<Pending> {
        if self.start() == 0 {
            return Ok(Pending { logged: BTreeMap::new(), next_sequence: self.sequence() });
        }
        if self.incompat & FAST_COMMIT != 0 {
            let context = "the ext journal may hold fast commits: let the kernel or e2fsck recover it first";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let mut scan = Scan::default();
        let end_sequence = self.scan(source, &mut scan)?;
        let mut latest = BTreeMap::new();
        for (sequence, tag, logged) in scan.tags {
            if sequence_before(sequence, end_sequence)
                && scan.revoked.get(&tag.block).is_none_or(|at| sequence_before(*at, sequence))
            {
                latest.insert(tag.block, (sequence, tag.checksum, logged));
            }
        }
        let mut logged = BTreeMap::new();
        for (block, (sequence, checksum, place)) in latest {
            if !self.data_fits(source, sequence, checksum, place.place)? {
                return Err(corrupt(format!("the ext journal's copy of block {block} is damaged")));
            }
            logged.insert(block, place);
        }
        Ok(Pending { logged, next_sequence: end_sequence })
    }

    fn data_fits(&self, source: &Source<'_>, sequence: u32, checksum: u32, place: u64) -> Result<bool> {
        if !self.has_checksums() {
            return Ok(true);
        }
        let data = source.raw(place, 1, "reading a block of the ext journal")?;
        let mask = if self.incompat & CSUM_V3 != 0 { u32::MAX } else { 0xFFFF };
        Ok(self.data_checksum(sequence, &data) & mask == checksum)
    }

    /// Walks the log up to the first block that does not continue it; the sequence number that was not committed.
    fn scan(&self, source: &Source<'_>, scan: &mut Scan) -> Result<u32> {
        let (mut at, mut sequence) = (self.start().max(self.first), self.sequence());
        let mut revoked = Vec::new();
        let mut left = self.end - self.first;
        let mut step = |at: &mut u32, by: u32| {
            left = left.checked_sub(by)?;
            *at += by;
            if *at >= self.end {
                *at -= self.end - self.first;
            }
            Some(())
        };
        loop {
            let bytes = source.raw(self.place(at)?, 1, "reading the ext journal")?;
            if be32(&bytes, 0) != MAGIC || be32(&bytes, 8) != sequence {
                return Ok(sequence);
            }
            let whole = match be32(&bytes, 4) {
                DESCRIPTOR if self.is_sealed(&bytes) => {
                    let tags = self.tags(&bytes);
                    let mut place = at;
                    let mut whole = step(&mut place, 1);
                    for tag in tags {
                        if whole.is_none() {
                            break;
                        }
                        let logged = Logged { place: self.place(place)?, escaped: tag.escaped };
                        scan.tags.push((sequence, tag, logged));
                        whole = step(&mut place, 1);
                    }
                    at = place;
                    whole
                }
                REVOKE if self.is_sealed(&bytes) => {
                    revoked.extend(self.revoked(&bytes));
                    step(&mut at, 1)
                }
                COMMIT if !self.has_checksums() || be32(&bytes, 16) == self.block_checksum(&bytes, 16) => {
                    for block in revoked.drain(..) {
                        scan.revoked.insert(block, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                    step(&mut at, 1)
                }
                _ => None,
            };
            if whole.is_none() {
                return Ok(sequence);
            }
        }
    }

    /// The tags of a descriptor.
    fn tags(&self, bytes: &[u8]) -> Vec<Tag> {
        let mut tags = Vec::new();
        let (mut at, end) = (12, bytes.len() - self.tail());
        while at + self.tag_size() <= end {
            let word = be32(bytes, at + 4);
            let (flags, checksum) = if self.incompat & CSUM_V3 != 0 {
                (word, be32(bytes, at + 12))
            } else {
                (word & 0xFFFF, word >> 16)
            };
            let high = if self.is_wide() { be32(bytes, at + 8) } else { 0 };
            let block = u64::from(high) << 32 | u64::from(be32(bytes, at));
            tags.push(Tag { block, escaped: flags & ESCAPED != 0, checksum });
            at += self.tag_size() + if flags & SAME_UUID == 0 { 16 } else { 0 };
            if flags & LAST != 0 {
                break;
            }
        }
        tags
    }

    fn revoked(&self, bytes: &[u8]) -> Vec<u64> {
        let end = (be32(bytes, 12) as usize).min(bytes.len() - self.tail());
        let entries = bytes.get(16..end).unwrap_or(&[]);
        if self.is_wide() {
            entries.chunks_exact(8).map(|entry| be64(entry, 0)).collect()
        } else {
            entries.chunks_exact(4).map(|entry| u64::from(be32(entry, 0))).collect()
        }
    }
}

/// One block in a transaction.
struct Tag {
    block: u64,
    escaped: bool,
    checksum: u32,
}

#[derive(Default)]
struct Scan {
    /// Sequence, block, and where the log has it.
    tags: Vec<(u32, Tag, Logged)>,
    /// The last transaction that revoked a block.
    revoked: BTreeMap<u64, u32>,
}

/// Sequence numbers wrap.
fn sequence_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 > i32::MIN && (a.wrapping_sub(b) as i32) < 0
}
