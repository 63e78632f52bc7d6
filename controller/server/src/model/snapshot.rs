//! Snapshots: the contents of an instance's disks at one moment, on its node.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Millis};

/// The contents of an instance's disks at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Id.
    pub id: Id,
    /// Owner.
    pub project: String,
    /// Name.
    pub name: String,
    /// Whose disks.
    pub instance: Id,
    /// The node it lies on.
    pub node: Id,
    /// The disks that hold it, in the order of the instance's.
    pub disks: Vec<SnapshotDisk>,
    /// Whether it is whole.
    pub ready: bool,
    /// The job that holds it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_job: Option<Id>,
    /// The `ETag`.
    pub generation: u64,
    /// When it was asked for.
    pub created_at: Millis,
}

/// One disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDisk {
    /// The instance's disk.
    pub of: Id,
    /// The disk that holds its contents.
    pub disk: Id,
    /// SHA-256 of the contents, once it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// `POST /v1/instances/{id}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// Name.
    pub name: String,
}

/// `POST /v1/instances/{id}/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreRequest {
    /// The snapshot whose contents the instance gets.
    pub snapshot: Id,
}
