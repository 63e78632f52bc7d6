//! Directory entries as bytes.

use super::FatBuilder;
use super::name::{ShortName, ShortNames, long_entries};
use super::time::DosTime;
use super::tree::{Body, FatNode, ROOT};
use crate::Result;
use crate::field::put;

pub(super) const ENTRY_LEN: usize = 32;
/// A directory holds at most this many entries: two MiB of them.
pub(super) const MAX_ENTRIES: usize = 65_536;
pub(super) const ATTR_VOLUME: u8 = 0x08;
pub(super) const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_ARCHIVE: u8 = 0x20;
pub(super) const ATTR_LONG: u8 = 0x0f;
/// UTF-16 units in one entry of a long name.
pub(super) const LONG_UNITS: usize = 13;
/// Where they lie.
pub(super) const LONG_OFFSETS: [usize; LONG_UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Ties the entries of a long name to the short one.
pub(super) fn checksum(short: &ShortName) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// The entry of a file, a directory or a label.
fn short_entry(
    short: &ShortName,
    attributes: u8,
    cluster: u32,
    size: u32,
    mtime: DosTime,
) -> [u8; ENTRY_LEN] {
    let mut entry = [0; ENTRY_LEN];
    let (date, time) = (mtime.date.to_le_bytes(), mtime.time.to_le_bytes());
    put(&mut entry, 0, short);
    entry[11] = attributes;
    put(&mut entry, 14, &time);
    put(&mut entry, 16, &date);
    put(&mut entry, 18, &date);
    put(&mut entry, 20, &((cluster >> 16) as u16).to_le_bytes());
    put(&mut entry, 22, &time);
    put(&mut entry, 24, &date);
    put(&mut entry, 26, &(cluster as u16).to_le_bytes());
    put(&mut entry, 28, &size.to_le_bytes());
    entry
}

/// Appends the entries of a long name, in the order they precede the short one.
fn put_long(bytes: &mut Vec<u8>, name: &str, short: &ShortName) {
    let sum = checksum(short);
    let units: Vec<u16> = name.encode_utf16().collect();
    let count = units.len().div_ceil(LONG_UNITS);
    for (index, units) in units.chunks(LONG_UNITS).enumerate().rev() {
        let mut entry = [0; ENTRY_LEN];
        entry[0] = (index + 1) as u8 | if index + 1 == count { 0x40 } else { 0 };
        entry[11] = ATTR_LONG;
        entry[13] = sum;
        for (i, at) in LONG_OFFSETS.into_iter().enumerate() {
            // One NUL ends a name that does not fill its last entry, then come ones.
            let unit = match i.cmp(&units.len()) {
                std::cmp::Ordering::Less => units[i],
                std::cmp::Ordering::Equal => 0,
                std::cmp::Ordering::Greater => 0xffff,
            };
            put(&mut entry, at, &unit.to_le_bytes());
        }
        bytes.extend_from_slice(&entry);
    }
}

impl FatBuilder {
    /// A directory's bytes, when `starts` says where each directory begins, by node.
    pub(super) fn encode_directory(&self, dir: FatNode, starts: &[u32]) -> Result<Vec<u8>> {
        let directory = self.tree.directory(dir)?;
        let mtime = self.tree.node(dir)?.mtime;
        let start = |node: FatNode| if node == ROOT { 0 } else { starts[node.0 as usize] };
        let mut bytes = Vec::with_capacity(directory.len() as usize);
        if dir == ROOT {
            let label = self.label.map(|label| short_entry(&label, ATTR_VOLUME, 0, 0, mtime));
            bytes.extend(label.into_iter().flatten());
        } else {
            let dots = [(b".          ", dir), (b"..         ", directory.parent)];
            for (name, node) in dots {
                bytes.extend_from_slice(&short_entry(name, ATTR_DIRECTORY, start(node), 0, mtime));
            }
        }
        let mut shorts = ShortNames::new(directory.entries.values().map(|entry| &*entry.name));
        for entry in directory.entries.values() {
            let short = shorts.give(&entry.name)?;
            if long_entries(&entry.name) > 0 {
                put_long(&mut bytes, &entry.name, &short);
            }
            let node = self.tree.node(entry.node)?;
            let (attributes, cluster, size) = match &node.body {
                Body::File { size, runs } => (ATTR_ARCHIVE, runs.first().map_or(0, |run| run.first), *size),
                Body::Directory(_) => (ATTR_DIRECTORY, start(entry.node), 0),
            };
            bytes.extend_from_slice(&short_entry(&short, attributes, cluster, size, node.mtime));
        }
        Ok(bytes)
    }
}
