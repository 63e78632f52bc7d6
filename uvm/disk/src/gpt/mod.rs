//! GUID partition tables (UEFI 2.10, chapter 5.3).
//!
//! [`PartitionTable`] is the value; [`read`], [`write`] and [`wipe_tables`] move it between device and
//! memory. A table is written backup first and protective MBR last, so that one valid copy exists at
//! every instant of an edit.

mod areas;
mod guid;
mod header;
mod store;

pub(crate) use areas::areas;
pub use guid::{Guid, partition_type};
pub use store::{ReadTable, read, wipe_tables, write};

use crate::{Error, ErrorKind, Geometry, Result};

/// Partitions of our own layouts start on multiples of this many bytes, and never below it.
pub const ALIGNMENT: u64 = 1 << 20;
/// Entries in a table we write.
pub const MAX_PARTITIONS: u32 = 128;
/// Longest partition name, in UTF-16 code units.
pub const MAX_NAME_UNITS: usize = 36;

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Slot in the table, from 1.
    pub number: u32,
    /// What the partition is for: see [`partition_type`].
    pub type_guid: Guid,
    /// Identity of this very partition.
    pub unique_guid: Guid,
    /// First block.
    pub starting_lba: u64,
    /// Last block, included.
    pub ending_lba: u64,
    /// Attribute bits, as on disk.
    pub attributes: u64,
    /// Name, at most [`MAX_NAME_UNITS`] UTF-16 units.
    pub name: String,
}

impl Partition {
    /// First byte and length on a device of that logical block size; `None` where they overflow.
    pub fn extent(&self, logical_block_size: u32) -> Option<(u64, u64)> {
        let block = u64::from(logical_block_size);
        let blocks = self.ending_lba.checked_sub(self.starting_lba)?.checked_add(1)?;
        Some((self.starting_lba.checked_mul(block)?, blocks.checked_mul(block)?))
    }
}

/// A table, free of where its two copies lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionTable {
    /// Identity of the disk.
    pub disk_guid: Guid,
    /// First block a partition may take.
    pub first_usable_lba: u64,
    /// Last block a partition may take.
    pub last_usable_lba: u64,
    /// In order of `number`; gaps are kept.
    pub partitions: Vec<Partition>,
}

/// Blocks of one copy of the entry array as we write it.
fn entry_blocks(geometry: &Geometry) -> u64 {
    u64::from(MAX_PARTITIONS * header::ENTRY_SIZE).div_ceil(u64::from(geometry.logical_block_size))
}

impl PartitionTable {
    /// An empty table for a whole device.
    pub fn new(geometry: &Geometry, disk_guid: Guid) -> Result<Self> {
        if !matches!(geometry.logical_block_size, 512 | 4096) {
            let context = format!("GPT on logical blocks of {} bytes", geometry.logical_block_size);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let metadata = 2 + entry_blocks(geometry);
        if geometry.blocks() < 2 * metadata {
            return Err(Error::new(ErrorKind::NoSpace, format!("GPT on {} blocks", geometry.blocks())));
        }
        Ok(Self {
            disk_guid,
            first_usable_lba: metadata,
            last_usable_lba: geometry.blocks() - metadata,
            partitions: Vec::new(),
        })
    }

    /// Refuses what may not be written to a device of that geometry.
    pub fn validate(&self, geometry: &Geometry) -> Result<()> {
        let widest = Self::new(geometry, self.disk_guid)?;
        if self.first_usable_lba < widest.first_usable_lba || self.last_usable_lba > widest.last_usable_lba {
            let context = format!(
                "usable blocks {}..={} exceed the device's {}..={}",
                self.first_usable_lba, self.last_usable_lba, widest.first_usable_lba, widest.last_usable_lba
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        if let Some(problem) = self.problems().into_iter().next() {
            return Err(Error::new(ErrorKind::Invalid, problem));
        }
        match self.partitions.iter().find(|p| p.number > MAX_PARTITIONS) {
            Some(p) => Err(Error::new(ErrorKind::Invalid, format!("partition number {}", p.number))),
            None => Ok(()),
        }
    }

    /// What is wrong with the partitions among themselves, one line each.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut by_start: Vec<&Partition> = self.partitions.iter().collect();
        by_start.sort_by_key(|p| p.starting_lba);
        for pair in by_start.windows(2) {
            if pair[1].starting_lba <= pair[0].ending_lba {
                problems.push(format!("partitions {} and {} overlap", pair[0].number, pair[1].number));
            }
        }
        let mut numbers = std::collections::BTreeSet::new();
        let mut identities = std::collections::BTreeSet::new();
        for p in &self.partitions {
            if p.number == 0 || !numbers.insert(p.number) {
                problems.push(format!("partition number {} is not valid or not unique", p.number));
            }
            if p.unique_guid == Guid::UNUSED || !identities.insert(p.unique_guid) {
                problems.push(format!("the GUID of partition {} is zero or not unique", p.number));
            }
            if p.type_guid == Guid::UNUSED {
                problems.push(format!("the type of partition {} is zero", p.number));
            }
            if p.starting_lba > p.ending_lba {
                problems.push(format!("partition {} ends before it starts", p.number));
            }
            if p.starting_lba < self.first_usable_lba || p.ending_lba > self.last_usable_lba {
                problems.push(format!(
                    "partition {} ({}..={}) is outside the usable blocks {}..={}",
                    p.number, p.starting_lba, p.ending_lba, self.first_usable_lba, self.last_usable_lba
                ));
            }
            if p.name.encode_utf16().count() > MAX_NAME_UNITS || p.name.contains('\0') {
                problems.push(format!("the name of partition {} is too long or holds a NUL", p.number));
            }
        }
        problems
    }
}
