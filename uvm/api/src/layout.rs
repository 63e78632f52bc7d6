//! What a disk is to be divided into.
//!
//! Partitions speak Ignition's vocabulary, shares of the room systemd-repart's. Sizes are MiB.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::DeviceRef;

/// `partition`: a disk is divided, and file systems are made where the layout names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionJobSpec {
    /// Job id and idempotency key; made up where it is missing. GUIDs that are not given derive from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device.
    pub device: DeviceRef,
    /// What it is to be divided into. Where `wipe_table` is missing it is false.
    pub disk: DiskSpec,
    /// The plan the caller agreed to; nothing is written where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

/// The layout of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Kind of partition table.
    #[serde(default, skip_serializing_if = "TableKind::is_gpt")]
    pub table: TableKind,
    /// True: the whole disk is replaced. False: the table that is there is edited; partitions are found by number,
    /// GUID, label or type, those that are as they should be stay, and one that is not mentioned refuses the job.
    /// A disk without a table must then be blank. Missing: true for `provision`, false for `partition`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wipe_table: Option<bool>,
    /// GUID of the disk (GPT); derived from the job's id where it is missing. That of an edited table stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guid: Option<String>,
    /// Partitions start on multiples of this: a power of two, 1 where it is missing, at most 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alignment_mib: Option<u64>,
    /// In order on the disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionSpec>,
}

/// Kinds of partition tables that are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// GUID partition table.
    #[default]
    Gpt,
    /// Master boot record: four primary partitions, no labels, 2 TiB with blocks of 512 bytes.
    Mbr,
}

impl TableKind {
    fn is_gpt(&self) -> bool {
        *self == Self::Gpt
    }
}

/// A partition.
///
/// `size_mib` alone is a fixed size. Without it (or with 0, or with `grow`) the partition takes a share of what the
/// fixed ones leave, in proportion to `weight`, within `size_min_mib` and `size_max_mib`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PartitionSpec {
    /// Partition name in the GPT, at most 36 UTF-16 units. Where an existing table is edited, also what the partition
    /// is found by if it has no number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// Number in the table; the place in the list, or the next that is free, where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Size in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// Where it starts, in MiB from the beginning of the disk; the first place with room where it is missing or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_mib: Option<u64>,
    /// It has `size_mib` at least, and takes its share of the rest too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub grow: bool,
    /// Its part of the rest beside the weights of the others, 0 to 1000000; 1000 where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// It has at least this many MiB; where it is missing, what its file system needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_min_mib: Option<u64>,
    /// It has at most this many MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_max_mib: Option<u64>,
    /// Partition type: a GUID, or `esp`, `root-x86-64`, `swap`, `linux-generic`, `home`, …, or `0x83` in an MBR; from
    /// the file system where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_guid: Option<String>,
    /// Identity of the partition (GPT); derived from the job's id where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guid: Option<String>,
    /// GPT attributes by name: `required-partition`, `no-block-io`, `legacy-bios-bootable`, `read-only`, `growfs`,
    /// `no-auto`. In an MBR `legacy-bios-bootable` is the active flag.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
    /// A partition that is there and not as it is wanted may be deleted and made anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wipe_partition_entry: bool,
    /// False for a partition that is to be gone; needs `wipe_partition_entry` where it is there.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub should_exist: bool,
    /// A partition that is there and only has another size may get this one. What is on it stays: it never becomes
    /// smaller than its file system, and a file system is not grown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resize: bool,
    /// The file system on it; none where it is missing.
    #[serde(default, skip_serializing_if = "FileSystemSpec::is_none")]
    pub filesystem: FileSystemSpec,
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

impl Default for PartitionSpec {
    fn default() -> Self {
        Self {
            label: String::new(),
            number: None,
            size_mib: None,
            start_mib: None,
            grow: false,
            weight: None,
            size_min_mib: None,
            size_max_mib: None,
            type_guid: None,
            guid: None,
            attributes: Vec::new(),
            wipe_partition_entry: false,
            should_exist: true,
            resize: false,
            filesystem: FileSystemSpec::default(),
        }
    }
}

/// A file system to make, or to find where a partition is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSystemSpec {
    /// Which.
    #[serde(default)]
    pub format: FileSystemFormat,
    /// Label of the file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// UUID (ext2, ext3, ext4, swap); derived from the job's id where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Where the guest mounts it: `/` for exactly one ext4, `/boot/efi`, `/efi` or `/boot` for exactly one vfat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// On a partition that is there and stays, it is made anew. Otherwise it has to be there already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wipe_filesystem: bool,
    /// Block size of ext2, ext3 and ext4 (1024, 2048, 4096), cluster size of vfat and ntfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size_bytes: Option<u32>,
    /// ext2, ext3, ext4: one inode for this many bytes; 16384 where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_inode: Option<u32>,
    /// ext2, ext3, ext4: percent of the blocks that only root can fill, 0 to 50; 5 where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_percent: Option<u8>,
}

impl FileSystemSpec {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// File systems this version makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystemFormat {
    /// No file system: the partition is left to its user.
    #[default]
    None,
    /// FAT.
    Vfat,
    /// ext2: no journal.
    Ext2,
    /// ext3.
    Ext3,
    /// ext4 with journal and checksums.
    Ext4,
    /// NTFS.
    Ntfs,
    /// A swap area.
    Swap,
}
