//! What is known of a node.

use crate::Symbol;

/// Most NUMA nodes of one node.
pub const MAX_NUMA: usize = 8;

/// A node of one snapshot. It carries the generation of its slot: the id of a removed node never means
/// the node that came after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Whether new machines may go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeState {
    /// They may.
    Ready,
    /// The operator wants none.
    Cordoned,
    /// It does not answer, or its utility VM is not in service.
    Unreachable,
}

/// What machines may use of one NUMA node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Numa {
    /// vCPUs that may be given away, overcommitment included.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// A pool of licenses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct License {
    /// Name of the pool.
    pub name: Symbol,
    /// How many machines may use one.
    pub count: u32,
    /// What one costs, in units of the operator's choice; see [`crate::Weights::license`].
    pub cost: u32,
}

/// How well a node does disks and networks, 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Suitability {
    /// Disks.
    pub io: u8,
    /// Network.
    pub network: u8,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// What an operator calls it; refusals name it.
    pub name: String,
    /// Its NUMA nodes, at least one.
    pub numa: Vec<Numa>,
    /// Pool for disks in MiB.
    pub storage_mib: u64,
    /// Kind of hypervisor.
    pub hypervisor: Symbol,
    /// Architecture of its CPUs.
    pub architecture: Symbol,
    /// What it shares its power and switch with (rack).
    pub fault_domain: Option<Symbol>,
    /// Words a demand may ask for.
    pub labels: Vec<Symbol>,
    /// Whether new machines may go there.
    pub state: NodeState,
    /// The one tenant whose machines may run there.
    pub dedicated_to: Option<Symbol>,
    /// Licenses it brings.
    pub licenses: Vec<License>,
    /// How well it does disks and networks.
    pub suitability: Suitability,
    /// Families of guests its hypervisor runs best.
    pub preferred_guests: Vec<Symbol>,
}

impl NodeSpec {
    /// A ready node with nothing special about it.
    pub fn new(name: impl Into<String>, numa: Vec<Numa>, hypervisor: Symbol, architecture: Symbol) -> Self {
        Self {
            name: name.into(),
            numa,
            storage_mib: 0,
            hypervisor,
            architecture,
            fault_domain: None,
            labels: Vec::new(),
            state: NodeState::Ready,
            dedicated_to: None,
            licenses: Vec::new(),
            suitability: Suitability::default(),
            preferred_guests: Vec::new(),
        }
    }
}
