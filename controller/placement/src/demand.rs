//! What a machine asks for.

use crate::{NodeId, Symbol};

/// What a place is to a group's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// One node.
    Node,
    /// One fault domain (rack).
    FaultDomain,
}

/// What holds between a machine and the other members of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// They share the place.
    Affinity(Level),
    /// No other member is in the place.
    AntiAffinity(Level),
    /// The machine is of this part of the group; other parts are in other fault domains.
    Partition(u16),
}

/// A group and the rule of this member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// Which group. Names of different tenants must differ.
    pub name: Symbol,
    /// Its rule.
    pub rule: Rule,
}

/// What a machine mostly does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Workload {
    /// A bit of everything.
    #[default]
    General,
    /// Disks.
    IoHeavy,
    /// Network.
    NetworkHeavy,
}

/// What a machine asks for. The lists are searched one by one; the caller bounds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demand {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Pool for disks in MiB.
    pub storage_mib: u64,
    /// NUMA nodes it is spread over evenly; 0 and 1 both mean that it fits into one.
    pub numa_nodes: u8,
    /// Architecture of the image; any where it is missing.
    pub architecture: Option<Symbol>,
    /// Kinds of hypervisor it may run under; any where it is empty.
    pub hypervisors: Vec<Symbol>,
    /// Labels the node must have.
    pub labels: Vec<Symbol>,
    /// Whose it is. Machines of nobody count as one more tenant.
    pub tenant: Option<Symbol>,
    /// No other tenant's machine on its node.
    pub exclusive: bool,
    /// Its group.
    pub group: Option<Group>,
    /// License it uses up.
    pub license: Option<Symbol>,
    /// What it mostly does.
    pub workload: Workload,
    /// Family of its operating system.
    pub guest_os: Option<Symbol>,
    /// Nodes it must not be on.
    pub exclude: Vec<NodeId>,
    /// The one node it may be on.
    pub node: Option<NodeId>,
}

impl Demand {
    /// Parts it is split into.
    pub(crate) fn parts(&self) -> u32 {
        u32::from(self.numa_nodes.max(1))
    }

    /// What each of its NUMA nodes must have free. Where the amounts do not divide evenly, the first
    /// parts get one more; all are tested for that.
    pub(crate) fn share(&self) -> (u32, u64) {
        (self.vcpus.div_ceil(self.parts()), self.memory_mib.div_ceil(u64::from(self.parts())))
    }
}
