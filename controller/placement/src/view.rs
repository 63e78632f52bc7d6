//! The grid as people see it: what nodes have, what machines hold of it, what is left.

use crate::{Amounts, NodeId, NodeSpec, NodeState, Numa, Snapshot};

/// One NUMA node as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NumaView {
    /// What machines may use.
    pub capacity: Numa,
    /// What they hold. More than `capacity` where the node has shrunk beneath them.
    pub used: Numa,
    /// What is left.
    pub free: Numa,
}

/// A node as it stands.
#[derive(Debug, Clone)]
pub struct NodeView<'s> {
    /// Which.
    pub id: NodeId,
    /// What is known of it.
    pub spec: &'s NodeSpec,
    /// Its NUMA nodes; those it no longer has are listed while machines hold something of them.
    pub numa: Vec<NumaView>,
    /// What machines may use.
    pub capacity: Amounts,
    /// What they hold.
    pub used: Amounts,
    /// What is left.
    pub free: Amounts,
    /// How many machines it has.
    pub instances: u32,
}

/// The grid as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Nodes.
    pub nodes: usize,
    /// Machines.
    pub instances: u64,
    /// What machines may use, on all nodes.
    pub capacity: Amounts,
    /// What they hold.
    pub used: Amounts,
    /// What new machines may use: free on nodes that are ready.
    pub available: Amounts,
}

impl Snapshot {
    /// A node as it stands.
    pub fn node(&self, id: NodeId) -> Option<NodeView<'_>> {
        let slot = self.slot(id).ok()?;
        let record = self.record(slot);
        let held = record.used.iter().rposition(|used| *used != Numa::default()).map_or(0, |at| at + 1);
        let view = |numa| NumaView {
            capacity: record.capacity(numa),
            used: record.used[numa],
            free: record.free(numa),
        };
        Some(NodeView {
            id,
            spec: &record.spec,
            numa: (0..record.spec.numa.len().max(held)).map(view).collect(),
            capacity: record.total_capacity(),
            used: record.total_used(),
            free: record.total_free(),
            instances: record.instances,
        })
    }

    /// All nodes, by slot.
    pub fn nodes(&self) -> impl Iterator<Item = NodeView<'_>> {
        (0..self.records.len() as u32).filter_map(|slot| self.node(self.id(slot)))
    }

    /// The grid as it stands.
    pub fn totals(&self) -> Totals {
        let add = |a: Amounts, b: Amounts| Amounts {
            vcpus: a.vcpus + b.vcpus,
            memory_mib: a.memory_mib + b.memory_mib,
            storage_mib: a.storage_mib + b.storage_mib,
        };
        self.records.iter().flatten().fold(Totals::default(), |totals, record| {
            let ready = record.spec.state == NodeState::Ready;
            let free = if ready { record.total_free() } else { Amounts::default() };
            Totals {
                nodes: totals.nodes + 1,
                instances: totals.instances + u64::from(record.instances),
                capacity: add(totals.capacity, record.total_capacity()),
                used: add(totals.used, record.total_used()),
                available: add(totals.available, free),
            }
        })
    }
}
