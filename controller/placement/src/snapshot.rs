//! The grid as placement sees it: one compact row per node for the scan, and a record of the rest.
//!
//! What is free, and what a fault domain has together, follows from the records; it is kept up to date by
//! the one function through which a record's amounts change ([`Snapshot::alter`]).

use crate::class::{Classes, Traits};
use crate::domain::Domains;
use crate::group::Groups;
use crate::numa::Free;
use crate::score::{self, NEVER, Scale};
use crate::words::Words;
use crate::{
    Amounts, Error, ErrorKind, License, MAX_NUMA, NodeId, NodeSpec, NodeState, Numa, Result, Symbol, Weights,
};

/// Most nodes.
pub const MAX_NODES: usize = 1 << 17;
/// Most vCPUs of one NUMA node.
pub const MAX_VCPUS: u32 = 1 << 16;
/// Most memory of one NUMA node: 256 TiB.
pub const MAX_MEMORY_MIB: u64 = 1 << 28;
/// Largest pool for disks: 1 EiB.
pub const MAX_STORAGE_MIB: u64 = 1 << 40;
/// Most labels, and most preferred guests, of one node.
pub const MAX_LABELS: usize = 256;
/// Most pools of licenses of one node.
pub const MAX_LICENSES: usize = 64;

/// Who is on a node, in a form the scan compares at once.
pub(crate) type Tenancy = u32;
/// Nobody is.
pub(crate) const VACANT: Tenancy = u32::MAX;
/// Several are.
pub(crate) const SHARED: Tenancy = u32::MAX - 1;

/// Machines of nobody belong to one more tenant.
pub(crate) fn tenancy(tenant: Option<Symbol>) -> Tenancy {
    tenant.map_or(0, |tenant| tenant.0 + 1)
}

/// What the scan reads of every node: most are left at that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Points that the node has whatever is asked for; [`NEVER`] where nothing may go there.
    pub(crate) points: i64,
    pub(crate) class: u32,
    pub(crate) domain: u32,
}

impl Default for Key {
    fn default() -> Self {
        Self { points: NEVER, class: 0, domain: 0 }
    }
}

/// What the scan reads of a node that could still be the best.
#[derive(Debug, Clone, Default)]
pub(crate) struct Row {
    pub(crate) open: bool,
    pub(crate) numa_nodes: u8,
    pub(crate) instances: u32,
    /// The one tenant on it, [`VACANT`] or [`SHARED`].
    pub(crate) tenancy: Tenancy,
    /// The tenant that has it to itself; [`SHARED`] where, against the rule, several do.
    pub(crate) exclusive_to: Tenancy,
    pub(crate) free_vcpus: u32,
    pub(crate) capacity_vcpus: u32,
    pub(crate) free_memory_mib: u64,
    pub(crate) capacity_memory_mib: u64,
    pub(crate) free_storage_mib: u64,
}

/// A tenant's machines on one node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TenantUse {
    pub(crate) tenant: Option<Symbol>,
    pub(crate) instances: u32,
    pub(crate) exclusive: u32,
}

/// All of a node.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) spec: NodeSpec,
    pub(crate) used: [Numa; MAX_NUMA],
    pub(crate) used_storage_mib: u64,
    pub(crate) instances: u32,
    pub(crate) tenants: Vec<TenantUse>,
    pub(crate) licenses: Vec<(Symbol, u32)>,
}

impl Record {
    fn new(spec: NodeSpec) -> Self {
        let used = [Numa::default(); MAX_NUMA];
        Self { spec, used, used_storage_mib: 0, instances: 0, tenants: Vec::new(), licenses: Vec::new() }
    }

    pub(crate) fn capacity(&self, numa: usize) -> Numa {
        self.spec.numa.get(numa).copied().unwrap_or_default()
    }

    pub(crate) fn free(&self, numa: usize) -> Numa {
        let (capacity, used) = (self.capacity(numa), self.used[numa]);
        Numa {
            vcpus: capacity.vcpus.saturating_sub(used.vcpus),
            memory_mib: capacity.memory_mib.saturating_sub(used.memory_mib),
        }
    }

    pub(crate) fn free_storage_mib(&self) -> u64 {
        self.spec.storage_mib.saturating_sub(self.used_storage_mib)
    }

    pub(crate) fn licenses_left(&self, name: Symbol) -> u32 {
        let pools = self.spec.licenses.iter().filter(|pool| pool.name == name);
        let used = self.licenses.iter().find(|(used, _)| *used == name).map_or(0, |(_, count)| *count);
        pools.fold(0u32, |count, pool| count.saturating_add(pool.count)).saturating_sub(used)
    }

    fn tenancy(&self) -> Tenancy {
        sole(self.tenants.iter())
    }

    fn exclusive_to(&self) -> Tenancy {
        sole(self.tenants.iter().filter(|of| of.exclusive > 0))
    }

    fn sum(numa: impl Iterator<Item = Numa>, storage_mib: u64) -> Amounts {
        numa.fold(Amounts { storage_mib, ..Amounts::default() }, |sum, numa| Amounts {
            vcpus: sum.vcpus + u64::from(numa.vcpus),
            memory_mib: sum.memory_mib + numa.memory_mib,
            ..sum
        })
    }

    pub(crate) fn total_capacity(&self) -> Amounts {
        Self::sum(self.spec.numa.iter().copied(), self.spec.storage_mib)
    }

    pub(crate) fn total_used(&self) -> Amounts {
        Self::sum(self.used.iter().copied(), self.used_storage_mib)
    }

    pub(crate) fn total_free(&self) -> Amounts {
        Self::sum((0..MAX_NUMA).map(|numa| self.free(numa)), self.free_storage_mib())
    }
}

fn sole<'t>(mut tenants: impl Iterator<Item = &'t TenantUse>) -> Tenancy {
    match (tenants.next(), tenants.next()) {
        (None, _) => VACANT,
        (Some(one), None) => tenancy(one.tenant),
        _ => SHARED,
    }
}

/// The grid as placement sees it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) weights: Weights,
    pub(crate) keys: Vec<Key>,
    pub(crate) words: Words,
    pub(crate) rows: Vec<Row>,
    /// Free amounts of NUMA nodes, `stride` of them for each row.
    pub(crate) numa: Vec<Free>,
    pub(crate) stride: usize,
    pub(crate) records: Vec<Option<Record>>,
    generations: Vec<u32>,
    vacant: Vec<u32>,
    pub(crate) classes: Classes,
    pub(crate) domains: Domains,
    pub(crate) groups: Groups,
    capacity: Amounts,
    nodes: usize,
    pub(crate) scale: Scale,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::with_weights(Weights::default())
    }
}

impl Snapshot {
    /// An empty grid.
    pub fn new() -> Self {
        Self::with_weights(Weights::default())
    }

    /// An empty grid whose operator weighs otherwise.
    pub fn with_weights(weights: Weights) -> Self {
        let weights = weights.bounded();
        Self {
            weights,
            keys: Vec::new(),
            words: Words::default(),
            rows: Vec::new(),
            numa: Vec::new(),
            stride: 0,
            records: Vec::new(),
            generations: Vec::new(),
            vacant: Vec::new(),
            classes: Classes::default(),
            domains: Domains::new(weights.group_room),
            groups: Groups::default(),
            capacity: Amounts::default(),
            nodes: 0,
            scale: Scale::default(),
        }
    }

    /// The symbol of a word, new or known.
    ///
    /// # Errors
    /// `TooLarge` past [`crate::MAX_WORDS`] or [`crate::MAX_WORD_BYTES`].
    pub fn intern(&mut self, word: &str) -> Result<Symbol> {
        self.words.intern(word)
    }

    /// The symbol of a known word.
    pub fn symbol(&self, word: &str) -> Option<Symbol> {
        self.words.symbol(word)
    }

    /// The word of a symbol.
    pub fn word(&self, symbol: Symbol) -> &str {
        self.words.word(symbol)
    }

    /// Registers a node.
    ///
    /// # Errors
    /// `Invalid` or `TooLarge` where the specification is past a limit, `TooLarge` where the grid is full.
    pub fn add_node(&mut self, spec: NodeSpec) -> Result<NodeId> {
        check(&spec)?;
        let slot = match self.vacant.pop() {
            Some(slot) => slot,
            None if self.rows.len() < MAX_NODES => self.push_slot(),
            None => {
                return Err(Error::new(ErrorKind::TooLarge, format!("a grid of {MAX_NODES} nodes is full")));
            }
        };
        self.make_room_for_numa(spec.numa.len());
        let class = self.classes.enter(Traits::of(&spec));
        let domain = self.domains.enter(spec.fault_domain, slot);
        self.keys[slot as usize] = Key { points: NEVER, class, domain };
        let record = Record::new(spec);
        self.count_capacity(&record, 1);
        self.records[slot as usize] = Some(record);
        self.refresh(slot);
        self.contribute(slot, 1);
        self.rescale();
        Ok(NodeId { slot, generation: self.generations[slot as usize] })
    }

    fn push_slot(&mut self) -> u32 {
        self.keys.push(Key::default());
        self.rows.push(Row::default());
        self.records.push(None);
        self.generations.push(0);
        self.numa.resize(self.rows.len() * self.stride, Free::default());
        self.rows.len() as u32 - 1
    }

    fn make_room_for_numa(&mut self, numa_nodes: usize) {
        if numa_nodes <= self.stride {
            return;
        }
        let mut wider = vec![Free::default(); self.rows.len() * numa_nodes];
        if self.stride > 0 {
            for (old, new) in self.numa.chunks(self.stride).zip(wider.chunks_mut(numa_nodes)) {
                new[..self.stride].copy_from_slice(old);
            }
        }
        self.numa = wider;
        self.stride = numa_nodes;
    }

    /// Replaces what is known of a node. Machines on it stay; where it has become too small for them, the
    /// view shows it and nothing new goes there.
    ///
    /// # Errors
    /// `NotFound`, or as [`Self::add_node`].
    pub fn update_node(&mut self, id: NodeId, spec: NodeSpec) -> Result<()> {
        check(&spec)?;
        let slot = self.slot(id)?;
        self.make_room_for_numa(spec.numa.len());
        self.contribute(slot, -1);
        let record = self.records[slot as usize].take().expect("an id with a slot has a record");
        self.count_capacity(&record, -1);
        let moves = record.spec.fault_domain != spec.fault_domain;
        let Key { class, domain, .. } = self.keys[slot as usize];
        self.classes.leave(class);
        self.keys[slot as usize].class = self.classes.enter(Traits::of(&spec));
        let record = Record { spec, ..record };
        self.count_capacity(&record, 1);
        let fault_domain = record.spec.fault_domain;
        self.records[slot as usize] = Some(record);
        self.refresh(slot);
        if moves {
            self.domains.leave(domain, slot);
            let entered = self.domains.enter(fault_domain, slot);
            self.keys[slot as usize].domain = entered;
            self.contribute(slot, 1);
            self.claim_anew(domain);
            self.claim_anew(entered);
        } else {
            self.contribute(slot, 1);
        }
        self.rescale();
        Ok(())
    }

    /// Lets machines on a node, or not.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_state(&mut self, id: NodeId, state: NodeState) -> Result<()> {
        let slot = self.slot(id)?;
        self.alter(slot, |record| record.spec.state = state);
        Ok(())
    }

    /// Forgets a node. Its id never comes back.
    ///
    /// # Errors
    /// `NotFound`; `Busy` where machines or disks are on it.
    pub fn remove_node(&mut self, id: NodeId) -> Result<()> {
        let slot = self.slot(id)?;
        let record = self.record(slot);
        if record.instances > 0 || record.total_used() != Amounts::default() {
            let context = format!("node {} has {} machines, or disks", record.spec.name, record.instances);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        self.contribute(slot, -1);
        let record = self.records[slot as usize].take().expect("an id with a slot has a record");
        self.count_capacity(&record, -1);
        self.rows[slot as usize] = Row::default();
        let key = std::mem::take(&mut self.keys[slot as usize]);
        self.classes.leave(key.class);
        self.domains.leave(key.domain, slot);
        self.rescale();
        // A slot whose generations are used up is never used again.
        if let Some(next) = self.generations[slot as usize].checked_add(1) {
            self.generations[slot as usize] = next;
            self.vacant.push(slot);
        }
        Ok(())
    }

    pub(crate) fn id(&self, slot: u32) -> NodeId {
        NodeId { slot, generation: self.generations[slot as usize] }
    }

    pub(crate) fn slot(&self, id: NodeId) -> Result<u32> {
        let at = id.slot as usize;
        let known = self.generations.get(at) == Some(&id.generation) && self.records[at].is_some();
        known.then_some(id.slot).ok_or_else(|| Error::new(ErrorKind::NotFound, "the node is not in the grid"))
    }

    pub(crate) fn record(&self, slot: u32) -> &Record {
        self.records[slot as usize].as_ref().expect("a slot in use has a record")
    }

    pub(crate) fn free_numa(&self, slot: u32) -> &[Free] {
        let at = slot as usize * self.stride;
        &self.numa[at..at + usize::from(self.rows[slot as usize].numa_nodes)]
    }

    /// Changes a record, and with it what follows from it.
    pub(crate) fn alter(&mut self, slot: u32, change: impl FnOnce(&mut Record)) {
        self.contribute(slot, -1);
        change(self.records[slot as usize].as_mut().expect("a slot in use has a record"));
        self.refresh(slot);
        self.contribute(slot, 1);
    }

    /// Derives the row from the record.
    fn refresh(&mut self, slot: u32) {
        let record = self.records[slot as usize].as_ref().expect("a slot in use has a record");
        let row = &mut self.rows[slot as usize];
        let (free, capacity) = (record.total_free(), record.total_capacity());
        // At most MAX_NUMA times MAX_VCPUS, far from the end of u32.
        row.free_vcpus = free.vcpus as u32;
        row.capacity_vcpus = capacity.vcpus as u32;
        row.free_memory_mib = free.memory_mib;
        row.capacity_memory_mib = capacity.memory_mib;
        row.free_storage_mib = free.storage_mib;
        row.open = record.spec.state == NodeState::Ready;
        row.numa_nodes = record.spec.numa.len() as u8;
        row.instances = record.instances;
        row.tenancy = record.tenancy();
        row.exclusive_to = record.exclusive_to();
        self.keys[slot as usize].points = score::standing(&self.weights, &self.scale, row);
        let at = slot as usize * self.stride;
        for (numa, free) in self.numa[at..at + self.stride].iter_mut().enumerate() {
            let left = record.free(numa);
            // At most MAX_MEMORY_MIB.
            *free = Free { vcpus: left.vcpus, memory_mib: left.memory_mib as u32 };
        }
    }

    /// Adds what a node has free to its fault domain, or takes it away.
    fn contribute(&mut self, slot: u32, sign: i64) {
        let row = &self.rows[slot as usize];
        if !row.open {
            return;
        }
        let number = self.keys[slot as usize].domain as usize;
        let (vcpus, memory) = (u64::from(row.free_vcpus), row.free_memory_mib);
        let copies = self.domains.domains[number].shape.copies(self.free_numa(slot));
        let domain = &mut self.domains.domains[number];
        let change = |sum: &mut u64, by: u64| *sum = sum.wrapping_add_signed(sign * by as i64);
        change(&mut domain.copies, copies);
        if domain.name.is_some() {
            let room = &mut self.domains.rooms[number];
            change(&mut room.vcpus, vcpus);
            change(&mut room.memory_mib, memory);
        }
    }

    /// Counts what still fits of the shape that the domain's claims have now.
    fn count_copies(&mut self, domain: u32) {
        let of = &self.domains.domains[domain as usize];
        let open = of.nodes.iter().filter(|slot| self.rows[**slot as usize].open);
        let copies = open.map(|slot| of.shape.copies(self.free_numa(*slot))).sum();
        self.domains.domains[domain as usize].copies = copies;
    }

    /// Counts a group's claim on a domain after a member came or went.
    pub(crate) fn claim(&mut self, group: Symbol, domain: u32) {
        let (members, shape) = self.groups.bound(group, |slot| self.keys[slot as usize].domain == domain);
        if self.domains.domains[domain as usize].claim(group, members, shape) {
            self.count_copies(domain);
        }
    }

    /// Counts all claims on a domain; for the rare case that nodes move between domains.
    fn claim_anew(&mut self, domain: u32) {
        self.domains.domains[domain as usize].forget_claims();
        let groups: Vec<Symbol> = self.groups.names().collect();
        for group in groups {
            self.claim(group, domain);
        }
        self.count_copies(domain);
    }

    fn count_capacity(&mut self, record: &Record, sign: i64) {
        let capacity = record.total_capacity();
        let change = |sum: &mut u64, by: u64| *sum = sum.wrapping_add_signed(sign * by as i64);
        change(&mut self.capacity.vcpus, capacity.vcpus);
        change(&mut self.capacity.memory_mib, capacity.memory_mib);
        change(&mut self.capacity.storage_mib, capacity.storage_mib);
        self.nodes = self.nodes.wrapping_add_signed(sign as isize);
    }

    fn rescale(&mut self) {
        let scale = Scale::new(self.capacity, self.nodes, self.domains.len());
        if std::mem::replace(&mut self.scale, scale) != scale {
            for (key, row) in self.keys.iter_mut().zip(&self.rows) {
                key.points = score::standing(&self.weights, &scale, row);
            }
        }
    }
}

fn check(spec: &NodeSpec) -> Result<()> {
    let name = &spec.name;
    let refuse = |kind, what: &str| Err(Error::new(kind, format!("node {name}: {what}")));
    if spec.numa.is_empty() {
        return refuse(ErrorKind::Invalid, "it has no NUMA node");
    }
    let too_large = spec.numa.len() > MAX_NUMA
        || spec.numa.iter().any(|numa| numa.vcpus > MAX_VCPUS || numa.memory_mib > MAX_MEMORY_MIB)
        || spec.storage_mib > MAX_STORAGE_MIB;
    if too_large {
        return refuse(ErrorKind::TooLarge, "its capacity is past what is believed");
    }
    if spec.labels.len().max(spec.preferred_guests.len()) > MAX_LABELS {
        return refuse(ErrorKind::TooLarge, "too many labels");
    }
    if spec.licenses.len() > MAX_LICENSES {
        return refuse(ErrorKind::TooLarge, "too many pools of licenses");
    }
    let mut pools: Vec<_> = spec.licenses.iter().map(|License { name, .. }| *name).collect();
    pools.sort_unstable();
    if pools.windows(2).any(|pair| pair[0] == pair[1]) {
        return refuse(ErrorKind::Invalid, "one pool of licenses is named twice");
    }
    if spec.suitability.io.max(spec.suitability.network) > 100 {
        return refuse(ErrorKind::Invalid, "suitability ends at 100");
    }
    Ok(())
}
