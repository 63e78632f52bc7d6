//! GUID partition tables (UEFI 2.10, chapter 5.3).
//!
//! [`PartitionTable`] is the value, and is edited as one: [`PartitionTable::add`], `delete`, `resize`, `set_name` and so
//! on. [`read`], [`write`], [`update`], [`grow`], [`shrink`], [`repair`] and [`wipe_tables`] move it between device and
//! memory; [`verify`] says what is wrong.
//!
//! # The states of an update
//!
//! An array of entries is many blocks and can tear; a header is one, and cannot. So the new entries are written where
//! nothing refers to them, and the header switches to them. Each arrow is flushed and read back before the next; above
//! it is what is written, below it how the two copies stand then:
//!
//! ```text
//!           backup           entries beside        header            entries              header
//! (old,old) ──────▶ (old,new) ──────▶ (old,new) ──────▶ (new beside,new) ──────▶ (new beside,new) ──────▶ (new,new)
//! ```
//!
//! While the backup is written, the primary is old and whole, and it is valid at every instant from there: Linux uses
//! no backup unless it is told to. "Beside" is directly behind the array's place. Where that is not free (a partition
//! at the first usable block, a board's boot loader), the backup carries the table alone for a while:
//!
//! ```text
//!           backup           no header             entries            header
//! (old,old) ──────▶ (old,new) ──────▶ (none,new) ──────▶ (none,new) ──────▶ (new,new)
//! ```
//!
//! Where only the backup is sound, the primary is written first, in that second way. [`grow`] and [`shrink`] change the
//! headers alone: the backup where the device will end, then the primary header; then the old backup is zeroed. LBA 0 is
//! written after both copies. [`repair`] leads from every state to (x, x), where x is what [`read`] said before.

mod areas;
pub mod attribute;
mod commit;
mod edit;
mod guard;
mod guid;
mod header;
pub mod partition_type;
mod store;
mod verify;

pub(crate) use areas::areas;
pub use commit::{grow, repair, shrink, update, write};
pub use edit::NewPartition;
pub use guard::{MAX_MIRRORS, Mirror, write_hybrid, write_protective};
pub use guid::Guid;
pub use store::{ReadTable, read, wipe_tables};
pub use verify::{Problem, verify};

use crate::{Error, ErrorKind, Geometry, Result};

/// Partitions of our own layouts start on multiples of this many bytes, and never below it.
pub const ALIGNMENT: u64 = 1 << 20;
/// Entries in a table that we create.
pub const MAX_PARTITIONS: u32 = 128;
/// Bytes of an entry in a table that we create.
const ENTRY_SIZE: u32 = 128;
/// No tool makes larger arrays; more would only be memory for a hostile disk.
const MAX_ENTRY_COUNT: u32 = 1024;
const MAX_ENTRY_SIZE: u32 = 4096;
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
    /// Slots in the array of entries: [`MAX_PARTITIONS`], unless another tool chose otherwise.
    pub entry_count: u32,
    /// Bytes of an entry: 128, unless another tool chose otherwise.
    pub entry_size: u32,
    /// In order of `number`; gaps are kept.
    pub partitions: Vec<Partition>,
}

impl PartitionTable {
    /// An empty table for a whole device.
    pub fn new(geometry: &Geometry, disk_guid: Guid) -> Result<Self> {
        let mut table = Self {
            disk_guid,
            first_usable_lba: 0,
            last_usable_lba: 0,
            entry_count: MAX_PARTITIONS,
            entry_size: ENTRY_SIZE,
            partitions: Vec::new(),
        };
        (table.first_usable_lba, table.last_usable_lba) = table.widest(geometry)?;
        Ok(table)
    }

    /// Blocks of one copy of the array of entries.
    fn entry_blocks(&self, geometry: &Geometry) -> u64 {
        let bytes = u64::from(self.entry_count) * u64::from(self.entry_size);
        bytes.div_ceil(u64::from(geometry.logical_block_size))
    }

    /// The blocks that both copies leave for partitions, first and last.
    fn widest(&self, geometry: &Geometry) -> Result<(u64, u64)> {
        if !matches!(geometry.logical_block_size, 512 | 4096) {
            let context = format!("GPT on logical blocks of {} bytes", geometry.logical_block_size);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let metadata = 2 + self.entry_blocks(geometry);
        if geometry.blocks() < 2 * metadata {
            return Err(Error::new(ErrorKind::NoSpace, format!("GPT on {} blocks", geometry.blocks())));
        }
        Ok((metadata, geometry.blocks() - metadata))
    }

    /// Refuses what may not be written to a device of that geometry.
    pub fn validate(&self, geometry: &Geometry) -> Result<()> {
        if self.entry_count == 0
            || self.entry_count > MAX_ENTRY_COUNT
            || !(ENTRY_SIZE..=MAX_ENTRY_SIZE).contains(&self.entry_size)
            || !self.entry_size.is_power_of_two()
        {
            let context = format!("{} entries of {} bytes", self.entry_count, self.entry_size);
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        let (first, last) = self.widest(geometry)?;
        if self.first_usable_lba < first || self.last_usable_lba > last {
            let context = format!(
                "usable blocks {}..={} exceed the device's {first}..={last}",
                self.first_usable_lba, self.last_usable_lba
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        match self.problems().into_iter().next() {
            Some(problem) => Err(Error::new(ErrorKind::Invalid, problem)),
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
                let [a, b] = [pair[0], pair[1]];
                problems.push(format!(
                    "partitions {} and {} overlap: {}..={} and {}..={}",
                    a.number, b.number, a.starting_lba, a.ending_lba, b.starting_lba, b.ending_lba
                ));
            }
        }
        let mut numbers = std::collections::BTreeSet::new();
        let mut identities = std::collections::BTreeSet::new();
        for p in &self.partitions {
            if !(1..=self.entry_count).contains(&p.number) || !numbers.insert(p.number) {
                problems.push(format!(
                    "partition number {} is not valid (1 to {}) or not unique",
                    p.number, self.entry_count
                ));
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
