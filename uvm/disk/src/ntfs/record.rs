//! A record of the `$MFT` being made: attributes, run lists, the update sequence.

use super::{FILE_MAGIC, STRIDE, kind, utf16};
use crate::field::put;

/// Where the update sequence array of a record lies.
const SEQUENCE_AT: usize = 0x30;
pub(super) const IN_USE: u16 = 1;
pub(super) const DIRECTORY: u16 = 2;
/// A file of `$Extend`.
pub(super) const EXTENSION: u16 = 4;
/// It has an index of something else than file names.
pub(super) const VIEW_INDEX: u16 = 8;

/// Clusters that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first one; `None` for a hole.
    pub(super) lcn: Option<u64>,
    pub(super) clusters: u64,
}

/// An attribute whose value lies in clusters of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) extent: Extent,
    pub(super) cluster_size: u32,
    pub(super) size: u64,
    /// What lies after it reads as zero.
    pub(super) initialized: u64,
}

/// A record in the making.
pub(super) struct Record {
    number: u32,
    sequence: u16,
    flags: u16,
    links: u16,
    /// Type, name and the whole attribute but its instance, in the order they came.
    attributes: Vec<(u32, &'static str, Vec<u8>)>,
}

impl Record {
    /// A file's record. The sequence number of a system file is its number, that of the others 1.
    pub(super) fn new(number: u32, flags: u16) -> Self {
        Self { number, sequence: sequence(number), flags, links: 0, attributes: Vec::new() }
    }

    /// The reference by which others know it.
    pub(super) fn reference(&self) -> u64 {
        reference(self.number)
    }

    /// Adds an attribute whose value lies in the record.
    pub(super) fn resident(&mut self, kind: u32, name: &'static str, value: &[u8]) {
        let name_bytes = utf16(name);
        let value_at = (24 + name_bytes.len()).next_multiple_of(8);
        let mut bytes = vec![0; (value_at + value.len()).next_multiple_of(8)];
        head(&mut bytes, kind, &name_bytes, 24);
        put(&mut bytes, 16, &(value.len() as u32).to_le_bytes());
        put(&mut bytes, 20, &(value_at as u16).to_le_bytes());
        if kind == kind::FILE_NAME {
            // An index has it.
            bytes[22] = 1;
            self.links += 1;
        }
        put(&mut bytes, value_at, value);
        self.attributes.push((kind, name, bytes));
    }

    /// Adds an attribute whose value lies elsewhere.
    pub(super) fn placed(&mut self, kind: u32, name: &'static str, placed: Placed) {
        let name_bytes = utf16(name);
        let runs = encode_runs(&[placed.extent]);
        let runs_at = (0x40 + name_bytes.len()).next_multiple_of(8);
        let mut bytes = vec![0; (runs_at + runs.len()).next_multiple_of(8)];
        head(&mut bytes, kind, &name_bytes, 0x40);
        bytes[8] = 1;
        let clusters = placed.extent.clusters;
        put(&mut bytes, 24, &(clusters - 1).to_le_bytes());
        put(&mut bytes, 32, &(runs_at as u16).to_le_bytes());
        put(&mut bytes, 40, &(clusters * u64::from(placed.cluster_size)).to_le_bytes());
        put(&mut bytes, 48, &placed.size.to_le_bytes());
        put(&mut bytes, 56, &placed.initialized.to_le_bytes());
        put(&mut bytes, runs_at, &runs);
        self.attributes.push((kind, name, bytes));
    }

    /// The record as the disk has it. What this module puts into one fits in 1024 bytes: the longest is that of
    /// `$Volume` with a label of 128 characters, some 700 bytes.
    pub(super) fn seal(&self, record_size: u32) -> Vec<u8> {
        let mut bytes = vec![0; record_size as usize];
        let sequence_len = 2 * (record_size as usize / STRIDE + 1);
        let first = (SEQUENCE_AT + sequence_len).next_multiple_of(8);
        put(&mut bytes, 0, FILE_MAGIC);
        put(&mut bytes, 16, &self.sequence.to_le_bytes());
        put(&mut bytes, 18, &self.links.to_le_bytes());
        put(&mut bytes, 20, &(first as u16).to_le_bytes());
        put(&mut bytes, 22, &self.flags.to_le_bytes());
        put(&mut bytes, 28, &record_size.to_le_bytes());
        put(&mut bytes, 40, &(self.attributes.len() as u16).to_le_bytes());
        put(&mut bytes, 44, &self.number.to_le_bytes());
        // By type, then by name; the instance keeps the order in which they came.
        let mut order: Vec<usize> = (0..self.attributes.len()).collect();
        order.sort_by_key(|at| (self.attributes[*at].0, self.attributes[*at].1));
        let mut at = first;
        for instance in order {
            let attribute = &self.attributes[instance].2;
            put(&mut bytes, at, attribute);
            put(&mut bytes, at + 14, &(instance as u16).to_le_bytes());
            at += attribute.len();
        }
        put(&mut bytes, at, &kind::END.to_le_bytes());
        put(&mut bytes, 24, &(at as u32 + 8).to_le_bytes());
        protect(&mut bytes, SEQUENCE_AT);
        bytes
    }
}

/// What every attribute begins with.
fn head(bytes: &mut [u8], kind: u32, name: &[u8], name_at: usize) {
    let len = bytes.len() as u32;
    put(bytes, 0, &kind.to_le_bytes());
    put(bytes, 4, &len.to_le_bytes());
    bytes[9] = (name.len() / 2) as u8;
    put(bytes, 10, &(name_at as u16).to_le_bytes());
    put(bytes, name_at, name);
}

fn sequence(number: u32) -> u16 {
    if (1..super::file::QUOTA).contains(&number) { number as u16 } else { 1 }
}

/// The number of a record with its sequence number.
pub(super) fn reference(number: u32) -> u64 {
    u64::from(sequence(number)) << 48 | u64::from(number)
}

/// Mapping pairs: for each run a byte with the sizes of the two numbers that follow, the length and how far the run
/// lies from the one before it.
pub(super) fn encode_runs(extents: &[Extent]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut before = 0_i64;
    for extent in extents {
        let length = signed(extent.clusters as i64);
        let offset = extent.lcn.map_or_else(Vec::new, |lcn| {
            let offset = lcn as i64 - before;
            before = lcn as i64;
            signed(offset)
        });
        bytes.push((offset.len() << 4 | length.len()) as u8);
        bytes.extend(length);
        bytes.extend(offset);
    }
    bytes.push(0);
    bytes
}

/// The fewest bytes that have this number, little-endian, the topmost bit its sign.
fn signed(number: i64) -> Vec<u8> {
    let len = (1..8).find(|len| (number << (64 - 8 * len)) >> (64 - 8 * len) == number).unwrap_or(8);
    number.to_le_bytes()[..len].to_vec()
}

/// Sets up the update sequence array at `at`, and moves the last two bytes of each stride there.
pub(super) fn protect(bytes: &mut [u8], at: usize) {
    const NUMBER: [u8; 2] = [1, 0];
    let strides = bytes.len() / STRIDE;
    put(bytes, 4, &(at as u16).to_le_bytes());
    put(bytes, 6, &(strides as u16 + 1).to_le_bytes());
    put(bytes, at, &NUMBER);
    for stride in 1..=strides {
        let end = stride * STRIDE - 2;
        let saved = [bytes[end], bytes[end + 1]];
        put(bytes, at + 2 * stride, &saved);
        put(bytes, end, &NUMBER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_fewest_bytes_and_keep_their_sign() {
        assert_eq!(signed(0), [0]);
        assert_eq!(signed(127), [127]);
        assert_eq!(signed(128), [128, 0]);
        assert_eq!(signed(-1), [255]);
        assert_eq!(signed(-128), [128]);
        assert_eq!(signed(-129), [127, 255]);
        assert_eq!(signed(1 << 32), [0, 0, 0, 0, 1]);
        assert_eq!(signed(i64::MAX).len(), 8);
    }
}
