//! A plan as a client sees it: everything that will happen, before it does.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to `?dry_run=true`. The same job on the same device gives the same plan and hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// `sha256:` over the rest of the plan; name it in a job to agree to exactly this.
    pub plan_hash: String,
    /// Id of the job: GUIDs, UUIDs and the machine id derive from it, so send the job with this id.
    pub job_id: String,
    /// Kind of the job.
    pub kind: String,
    /// Serial of the device.
    pub device: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its logical block size: the unit of the LBAs below.
    pub logical_block_size: u32,
    /// What is on these extents will be lost.
    pub destroys: Vec<Extent>,
    /// The partitions the disk will have, and those that go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PlannedPartition>,
    /// In the order they are carried out.
    pub steps: Vec<PlannedStep>,
}

/// A run of blocks, both ends inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// First LBA.
    pub starting_lba: u64,
    /// Last LBA.
    pub ending_lba: u64,
    /// What is there now.
    pub contents: String,
}

/// A partition to come, to stay or to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedPartition {
    /// Number in the table.
    pub number: u32,
    /// Partition name.
    pub label: String,
    /// Partition type GUID.
    pub type_guid: String,
    /// Unique GUID.
    pub unique_guid: String,
    /// First LBA.
    pub starting_lba: u64,
    /// Last LBA.
    pub ending_lba: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// What happens to it.
    pub action: PartitionAction,
    /// Why.
    pub reason: String,
    /// `vfat`, `ext4`, `swap`, …; of a partition that stays, what is on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// UUID of the file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem_uuid: Option<String>,
    /// Where the guest mounts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// What happens to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionAction {
    /// It is new.
    Create,
    /// It stays, byte for byte.
    Keep,
    /// What is on it is made anew.
    Wipe,
    /// It gets another size; what is on it stays.
    Resize,
    /// It goes.
    Delete,
    /// An action this version does not know.
    #[serde(other)]
    Unknown,
}

/// A step to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedStep {
    /// Name, as in events and errors.
    pub name: String,
    /// What it does.
    pub description: String,
    /// Bytes it will move, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}
