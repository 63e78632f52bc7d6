//! What was decided, and what is held because of it.

use crate::{Group, NodeId, Score, Symbol};

/// Amounts of what machines use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Amounts {
    /// vCPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Pool for disks in MiB.
    pub storage_mib: u64,
}

/// What a machine has of one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Share {
    /// Which NUMA node, counted from 0.
    pub numa: u8,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// Where a machine goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Node.
    pub node: NodeId,
    /// NUMA nodes and what it gets of each.
    pub shares: Vec<Share>,
    /// Why this node.
    pub score: Score,
}

/// What a machine holds of its node. The fields are all there is to it: one made from what the caller
/// has stored is as good as the one [`crate::Snapshot::reserve`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Node.
    pub node: NodeId,
    /// NUMA nodes and what it has of each. None for storage alone, a disk without its machine: that is
    /// neither a machine nor a tenant on the node, and is of no group.
    pub shares: Vec<Share>,
    /// Pool for disks in MiB.
    pub storage_mib: u64,
    /// Whose it is.
    pub tenant: Option<Symbol>,
    /// No other tenant's machine on its node.
    pub exclusive: bool,
    /// Its group.
    pub group: Option<Group>,
    /// License it uses up.
    pub license: Option<Symbol>,
}

impl Allocation {
    /// Whether it is more than storage.
    pub(crate) fn is_machine(&self) -> bool {
        !self.shares.is_empty()
    }

    /// What it holds, all NUMA nodes together.
    pub fn amounts(&self) -> Amounts {
        Amounts {
            vcpus: self.shares.iter().map(|share| u64::from(share.vcpus)).sum(),
            memory_mib: self.shares.iter().map(|share| share.memory_mib).sum(),
            storage_mib: self.storage_mib,
        }
    }
}
