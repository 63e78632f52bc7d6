//! What the grid has, uses and has left.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, NodeState};

/// Amounts of what machines need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Amounts {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Pool for disks in MiB.
    pub storage_mib: u64,
}

/// One node's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeAmounts {
    /// Id.
    pub id: Id,
    /// Name.
    pub name: String,
    /// Whether it answers.
    pub state: NodeState,
    /// No new instance is placed here.
    pub cordoned: bool,
    /// Instances on it.
    pub instances: u64,
    /// What it has.
    pub capacity: Amounts,
    /// What is reserved on it.
    pub used: Amounts,
    /// What is kept out of use: the storage of quarantined disks.
    pub quarantined_mib: u64,
}

/// `GET /v1/capacity`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    /// All nodes together.
    pub total: Amounts,
    /// What is reserved.
    pub used: Amounts,
    /// What new instances may use: free on nodes that are ready and not cordoned.
    pub available: Amounts,
    /// Node by node.
    pub nodes: Vec<NodeAmounts>,
}
