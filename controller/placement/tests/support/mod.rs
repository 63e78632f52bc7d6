//! A grid in few words, for all tests.
#![allow(dead_code)]

pub(crate) mod naive;

use uvm_placement::{
    Allocation, Demand, Filter, Group, NodeId, NodeSpec, Numa, Placement, Refusal, Rule, Snapshot, Symbol,
    Weights, place,
};

pub(crate) const GIB: u64 = 1024;

/// A snapshot and the two words every node needs.
pub(crate) struct Grid {
    pub(crate) snapshot: Snapshot,
    pub(crate) qemu: Symbol,
    pub(crate) amd64: Symbol,
}

impl Grid {
    pub(crate) fn new() -> Self {
        Self::weighing(Weights::default())
    }

    pub(crate) fn weighing(weights: Weights) -> Self {
        let mut snapshot = Snapshot::with_weights(weights);
        let qemu = snapshot.intern("qemu").unwrap();
        let amd64 = snapshot.intern("amd64").unwrap();
        Self { snapshot, qemu, amd64 }
    }

    pub(crate) fn word(&mut self, word: &str) -> Symbol {
        self.snapshot.intern(word).unwrap()
    }

    /// A specification with NUMA nodes of so many vCPUs and GiB, and 1 TiB of pool.
    pub(crate) fn spec(&self, name: &str, numa: &[(u32, u64)]) -> NodeSpec {
        let numa = numa.iter().map(|(vcpus, gib)| Numa { vcpus: *vcpus, memory_mib: gib * GIB }).collect();
        NodeSpec { storage_mib: 1024 * GIB, ..NodeSpec::new(name, numa, self.qemu, self.amd64) }
    }

    pub(crate) fn add(&mut self, name: &str, numa: &[(u32, u64)]) -> NodeId {
        let spec = self.spec(name, numa);
        self.snapshot.add_node(spec).unwrap()
    }

    pub(crate) fn add_in(&mut self, name: &str, rack: &str, numa: &[(u32, u64)]) -> NodeId {
        let fault_domain = Some(self.word(rack));
        let spec = NodeSpec { fault_domain, ..self.spec(name, numa) };
        self.snapshot.add_node(spec).unwrap()
    }

    pub(crate) fn change(&mut self, node: NodeId, change: impl FnOnce(&mut NodeSpec)) {
        let mut spec = self.snapshot.node(node).unwrap().spec.clone();
        change(&mut spec);
        self.snapshot.update_node(node, spec).unwrap();
    }

    pub(crate) fn group(&mut self, name: &str, rule: Rule) -> Option<Group> {
        Some(Group { name: self.word(name), rule })
    }

    pub(crate) fn place(&self, demand: &Demand) -> Placement {
        place(&self.snapshot, demand).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    pub(crate) fn refusal(&self, demand: &Demand) -> Refusal {
        place(&self.snapshot, demand).unwrap_err()
    }

    pub(crate) fn put(&mut self, demand: &Demand) -> Allocation {
        let placement = self.place(demand);
        self.snapshot.reserve(demand, &placement).unwrap()
    }

    /// Puts it on this node, or fails.
    pub(crate) fn put_on(&mut self, node: NodeId, demand: &Demand) -> Allocation {
        self.put(&Demand { node: Some(node), ..demand.clone() })
    }
}

pub(crate) fn demand(vcpus: u32, gib: u64) -> Demand {
    Demand { vcpus, memory_mib: gib * GIB, ..Demand::default() }
}

/// How many nodes fell at the filter.
pub(crate) fn fell(refusal: &Refusal, filter: Filter) -> usize {
    refusal.fell.iter().find(|(of, _)| *of == filter).map_or(0, |(_, count)| *count)
}

/// xorshift64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}
