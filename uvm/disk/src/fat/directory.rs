//! Directory entries, and the tree of directories a builder keeps in memory.

use super::name::{NameSpace, Names, ShortName, fold};
use crate::field::put;
use crate::{Error, ErrorKind, Result};

pub(super) const ENTRY_LEN: usize = 32;
/// A directory holds at most this many entries.
pub(super) const MAX_ENTRIES: usize = 65_536;
pub(super) const ATTR_VOLUME: u8 = 0x08;
pub(super) const ATTR_DIRECTORY: u8 = 0x10;
pub(super) const ATTR_ARCHIVE: u8 = 0x20;
pub(super) const ATTR_LONG: u8 = 0x0f;
/// UTF-16 units in one entry of a long name.
pub(super) const LONG_UNITS: usize = 13;
/// Where they lie.
pub(super) const LONG_OFFSETS: [usize; LONG_UNITS] = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];

/// Ties the entries of a long name to the short one.
pub(super) fn checksum(short: &ShortName) -> u8 {
    short.iter().fold(0, |sum: u8, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// DOS date and time of seconds since 1970, within what DOS can say (1980 to 2107).
pub(super) fn dos_time(seconds: u64) -> (u16, u16) {
    const FIRST: u64 = 315_532_800;
    const LAST: u64 = 4_354_819_198;
    let seconds = seconds.clamp(FIRST, LAST);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to a civil date, by eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let date = (year - 1980) << 9 | month << 5 | day;
    let time = (second / 3600) << 11 | (second / 60 % 60) << 5 | ((second % 60) / 2);
    (date as u16, time as u16)
}

/// The entry of a file, a directory or a label.
pub(super) fn short_entry(
    short: &ShortName,
    attributes: u8,
    cluster: u32,
    size: u32,
    mtime: u64,
) -> [u8; ENTRY_LEN] {
    let mut entry = [0; ENTRY_LEN];
    let (date, time) = dos_time(mtime);
    put(&mut entry, 0, short);
    entry[11] = attributes;
    put(&mut entry, 14, &time.to_le_bytes());
    put(&mut entry, 16, &date.to_le_bytes());
    put(&mut entry, 18, &date.to_le_bytes());
    put(&mut entry, 20, &((cluster >> 16) as u16).to_le_bytes());
    put(&mut entry, 22, &time.to_le_bytes());
    put(&mut entry, 24, &date.to_le_bytes());
    put(&mut entry, 26, &(cluster as u16).to_le_bytes());
    put(&mut entry, 28, &size.to_le_bytes());
    entry
}

/// The entries of a long name, in the order they precede the short one.
fn long_entries(names: &Names) -> Vec<u8> {
    let sum = checksum(&names.short);
    let count = names.long.len().div_ceil(LONG_UNITS);
    let mut bytes = Vec::with_capacity(count * ENTRY_LEN);
    for (index, units) in names.long.chunks(LONG_UNITS).enumerate().rev() {
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
    bytes
}

/// What an entry points at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// First cluster (0 for an empty file) and length.
    File { cluster: u32, size: u32 },
    /// Index of the directory in the tree.
    Directory(usize),
}

#[derive(Debug)]
struct Entry {
    names: Names,
    target: Target,
    mtime: u64,
}

/// One directory of the tree.
#[derive(Debug, Default)]
pub(super) struct Directory {
    parent: usize,
    mtime: u64,
    entries: Vec<Entry>,
    names: NameSpace,
    /// By name without case.
    children: std::collections::BTreeMap<String, usize>,
    slots: usize,
}

/// All directories; the first is the root.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) directories: Vec<Directory>,
}

impl Tree {
    pub(super) fn new(label_entries: usize) -> Self {
        Self { directories: vec![Directory { slots: label_entries, ..Directory::default() }] }
    }

    /// The directory that `path` lies in, and its last component.
    pub(super) fn locate<'p>(&self, path: &'p str) -> Result<(usize, &'p str)> {
        let path = path.trim_matches('/');
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut at = 0;
        for part in parents.split('/').filter(|part| !part.is_empty()) {
            at = *self.directories[at].children.get(&fold(part)).ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("{path}: no directory {part:?} on the FAT volume"))
            })?;
        }
        Ok((at, name))
    }

    /// Adds an entry to a directory.
    pub(super) fn insert(&mut self, directory: usize, name: &str, target: Target, mtime: u64) -> Result<()> {
        let parent = &mut self.directories[directory];
        let names = parent.names.take(name)?;
        let slots = parent.slots + names.long.len().div_ceil(LONG_UNITS) + 1;
        if slots > MAX_ENTRIES {
            return Err(Error::new(ErrorKind::NoSpace, format!("{name:?}: the FAT directory is full")));
        }
        parent.slots = slots;
        parent.entries.push(Entry { names, target, mtime });
        Ok(())
    }

    /// Adds an empty directory.
    pub(super) fn insert_directory(&mut self, parent: usize, name: &str, mtime: u64) -> Result<()> {
        let index = self.directories.len();
        self.insert(parent, name, Target::Directory(index), mtime)?;
        self.directories[parent].children.insert(fold(name), index);
        self.directories.push(Directory { parent, mtime, slots: 2, ..Directory::default() });
        Ok(())
    }

    /// Bytes of a directory's entries.
    pub(super) fn len(&self, directory: usize) -> usize {
        self.directories[directory].slots * ENTRY_LEN
    }

    /// A directory's bytes, when `clusters` says where each directory begins (0 for the root).
    pub(super) fn encode(&self, index: usize, clusters: &[u32], label: Option<&[u8]>) -> Vec<u8> {
        let directory = &self.directories[index];
        let mut bytes = Vec::with_capacity(self.len(index));
        bytes.extend_from_slice(label.unwrap_or_default());
        if index != 0 {
            let mut dots = [b' '; 11];
            for cluster in [clusters[index], clusters[directory.parent]] {
                let at = usize::from(dots[0] == b'.');
                dots[at] = b'.';
                bytes.extend_from_slice(&short_entry(&dots, ATTR_DIRECTORY, cluster, 0, directory.mtime));
            }
        }
        for entry in &directory.entries {
            bytes.extend_from_slice(&long_entries(&entry.names));
            let (attributes, cluster, size) = match entry.target {
                Target::File { cluster, size } => (ATTR_ARCHIVE, cluster, size),
                Target::Directory(index) => (ATTR_DIRECTORY, clusters[index], 0),
            };
            bytes.extend_from_slice(&short_entry(&entry.names.short, attributes, cluster, size, entry.mtime));
        }
        bytes
    }
}
