//! FAT12, FAT16 and FAT32 (Microsoft's FAT specification 1.03).
//!
//! [`FatBuilder`] is a new volume under construction. Contents go to consecutive clusters as they arrive; directories
//! and tables stay in memory until [`FatBuilder::finish`] writes them, the boot sector last. Until then the device
//! carries no file system, and files may be replaced, renamed, removed and read back. The same calls with the same
//! options write the same bytes. [`FatReader`] reads any volume within bounds, [`used_extents`] says which of its
//! bytes are in use.
//!
//! Memory of a builder: about 150 bytes and twice the name for each file or directory, nothing for their contents, and
//! some 20 bytes for each stretch that removed files left free.
//!
//! Names are compared without case (one character by one, as Windows does), so two names that differ in case alone
//! cannot be in one directory. Short names are given out when the volume is finished: a name that is a short one
//! keeps it, the others get a numeric tail.

mod builder;
mod clusters;
mod contents;
mod directory;
mod finish;
mod layout;
mod name;
mod reader;
mod time;
mod tree;
mod usage;

pub use builder::{FatBuilder, FatKind};
pub use finish::FatSummary;
pub use reader::{FatEntry, FatReader};
pub use tree::FatNode;
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
    /// `None`: as mkfs.fat chooses, FAT32 from 512 MiB, else FAT16 where there are enough clusters, else FAT12.
    pub fat_type: Option<FatType>,
    /// Bytes, a power of two from a sector to 64 KiB (some systems stop at 32 KiB). `None`: as mkfs.fat chooses, less
    /// where the type needs more clusters.
    pub cluster_size: Option<u32>,
    /// Bytes: 512, 1024, 2048 or 4096, not less than the device's. `None`: the device's.
    pub sector_size: Option<u32>,
    /// Copies of the allocation table, 1 or 2; `None`: 2.
    pub fats: Option<u8>,
    /// Entries of the root directory of FAT12 and FAT16, 16 to 65,535, rounded up to whole sectors; `None`: 512.
    pub root_entries: Option<u16>,
    /// Blocks in front of the partition.
    pub hidden_sectors: u32,
    /// Time of the label and of the root directory, seconds since 1970 (UTC).
    pub timestamp: u64,
}
