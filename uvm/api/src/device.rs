//! What a device is and what is on it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A block device the hypervisor gave to this node, with what was found on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// The serial number the hypervisor gave it; jobs name devices by it.
    pub serial: String,
    /// The kernel's name at this moment, or the path of the file; never used to choose a device.
    pub node: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The unit of an LBA in bytes.
    pub logical_block_size: u32,
    /// The unit the device writes without reading first, in bytes.
    pub physical_block_size: u32,
    /// The device refuses writes.
    pub read_only: bool,
    /// Id of the job that holds the device now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// The partition table, where the device could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<PartitionTable>,
    /// A file system on the whole device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FileSystem>,
    /// `PRETTY_NAME` of `os-release`, where a root file system was readable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_release: Option<String>,
    /// Why the contents could not be read, where they could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionTable {
    /// `gpt` or `mbr`.
    pub kind: String,
    /// GUID of the disk (GPT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_guid: Option<String>,
    /// In order of their numbers.
    pub partitions: Vec<Partition>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Partition {
    /// Number in the table, from 1.
    pub number: u32,
    /// Partition name (GPT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Partition type GUID (GPT) or type byte as `0x83` (MBR).
    pub type_guid: String,
    /// First LBA.
    pub starting_lba: u64,
    /// Last LBA, inclusive.
    pub ending_lba: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// The file system on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FileSystem>,
}

/// A file system, swap area or encryption header, by the names that blkid uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileSystem {
    /// `ext4`, `vfat`, `swap`, `crypto_LUKS`, …
    pub format: String,
    /// Label, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// UUID or volume id, printed as blkid does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Size the file system says it has, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Bytes in use, as the file system's own counters say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
}
