//! The filters, by name and in order.

use std::fmt;

/// What a node can fall at. The order is the order of testing: a node counts for the first filter it
/// falls at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// The node is cordoned or does not answer.
    NodeState,
    /// Another node is asked for, or this one is excluded.
    RequestedNode,
    /// A kind of hypervisor that is not allowed.
    Hypervisor,
    /// Another architecture.
    Architecture,
    /// A label is missing.
    Labels,
    /// The node is another tenant's, or the two tenants may not share it.
    TenantIsolation,
    /// No license of the pool is left.
    License,
    /// The group is elsewhere.
    Affinity,
    /// A member of the group is there.
    AntiAffinity,
    /// The fault domain has a member that must not share it.
    FaultDomain,
    /// Too few free vCPUs on the whole node.
    Vcpus,
    /// Too little free memory on the whole node.
    Memory,
    /// Too little left of the pool for disks.
    Storage,
    /// Enough in total, not in the NUMA nodes it would need.
    Numa,
}

impl Filter {
    /// How many there are.
    pub const COUNT: usize = 14;

    /// All, in the order of testing.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NodeState,
        Self::RequestedNode,
        Self::Hypervisor,
        Self::Architecture,
        Self::Labels,
        Self::TenantIsolation,
        Self::License,
        Self::Affinity,
        Self::AntiAffinity,
        Self::FaultDomain,
        Self::Vcpus,
        Self::Memory,
        Self::Storage,
        Self::Numa,
    ];

    /// The stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::NodeState => "node-state",
            Self::RequestedNode => "requested-node",
            Self::Hypervisor => "hypervisor",
            Self::Architecture => "architecture",
            Self::Labels => "labels",
            Self::TenantIsolation => "tenant-isolation",
            Self::License => "license",
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::FaultDomain => "fault-domain",
            Self::Vcpus => "vcpus",
            Self::Memory => "memory",
            Self::Storage => "storage",
            Self::Numa => "numa",
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
