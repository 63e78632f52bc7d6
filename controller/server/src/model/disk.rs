//! Disks: volumes in a node's pool.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, IoLimits, Millis};

/// A volume in a node's pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disk {
    /// Id; also the name of the volume in the pool.
    pub id: Id,
    /// Owner.
    pub project: String,
    /// Name.
    pub name: String,
    /// The node whose pool it is in.
    pub node: Id,
    /// Size in MiB.
    pub size_mib: u64,
    /// What is set aside for it in the pool in MiB: more than its size while it is being grown.
    pub reserved_mib: u64,
    /// Serial number under which guests and the utility VM see it (20 characters, virtio's limit).
    pub serial: String,
    /// What it is for.
    pub role: DiskRole,
    /// How it stands.
    pub state: DiskState,
    /// The instance it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Id>,
    /// Limits of its I/O.
    #[serde(default, skip_serializing_if = "IoLimits::is_default")]
    pub io_limits: IoLimits,
    /// The job that holds it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_job: Option<Id>,
    /// Counts every change of what is wanted; the `ETag`.
    pub generation: u64,
    /// When it was asked for.
    pub created_at: Millis,
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskRole {
    /// The one an instance boots from.
    Boot,
    /// Any other of a customer.
    Data,
    /// The contents of a snapshot.
    Snapshot,
}

/// How a disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskState {
    /// Being made; nothing of a customer is on it yet.
    Creating,
    /// It may hold a customer's data from here on: it is sanitized before its storage is used again.
    Ready,
    /// Being sanitized and deleted.
    Deleting,
    /// Its sanitization did not come to a good end: the storage stays out of the pool.
    Quarantined,
}

/// `POST /v1/disks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// Name.
    pub name: String,
    /// Owner; the token's own project where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Size in MiB.
    pub size_mib: u64,
    /// The instance it is for: it lies on that one's node, and is attached to it.
    pub instance: Id,
    /// Limits of its I/O.
    #[serde(default, skip_serializing_if = "IoLimits::is_default")]
    pub io_limits: IoLimits,
}
