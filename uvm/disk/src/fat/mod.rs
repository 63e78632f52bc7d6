//! FAT12, FAT16 and FAT32 (Microsoft's FAT specification 1.03), as an EFI system partition needs it.
//!
//! [`FatBuilder`] makes a volume and fills it in one forward pass: the contents of files go to
//! consecutive clusters as they arrive, directories and tables stay in memory until
//! [`FatBuilder::finish`]. Every block is written at most once, the boot sector last. [`FatReader`] reads
//! any volume within bounds.

mod builder;
mod directory;
mod layout;
mod name;
mod reader;
mod usage;

pub use builder::{FatBuilder, FatSummary};
pub use reader::{FatEntry, FatReader};
pub use usage::used_extents;

/// Width of the entries of the allocation table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FatType {
    /// Below 4,085 clusters.
    Fat12,
    /// 4,085 to 65,524 clusters.
    Fat16,
    /// From 65,525 clusters.
    Fat32,
}

impl FatType {
    /// The only thing that decides the type of a volume: its number of clusters.
    fn of(clusters: u32) -> Self {
        match clusters {
            0..4085 => Self::Fat12,
            4085..65525 => Self::Fat16,
            _ => Self::Fat32,
        }
    }

    /// Bits of an entry.
    fn bits(self) -> u32 {
        match self {
            Self::Fat12 => 12,
            Self::Fat16 => 16,
            Self::Fat32 => 32,
        }
    }

    /// Bytes of a table of `entries` entries.
    fn table_len(self, entries: u64) -> u64 {
        (entries * u64::from(self.bits())).div_ceil(8)
    }
}

/// What to make.
#[derive(Debug, Clone, Default)]
pub struct FatOptions {
    /// At most 11 ASCII characters, stored in upper case; empty for none.
    pub label: String,
    /// The serial number, shown as `XXXX-XXXX`.
    pub volume_id: u32,
    /// `None`: FAT32 wherever the size allows it.
    pub fat_type: Option<FatType>,
    /// Bytes; `None`: 4 KiB to 32 KiB by size, less where FAT32 needs more clusters.
    pub cluster_size: Option<u32>,
    /// Blocks in front of the partition.
    pub hidden_sectors: u32,
    /// Time of the label and of directories, seconds since 1970 (UTC).
    pub timestamp: u64,
}
