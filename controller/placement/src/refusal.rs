//! Why no node fits, and what would have to be otherwise.
//!
//! The least change is found by looking at every node: what it falls at says what would have to change
//! for it, each change has a price, and the cheapest node's changes are the answer. They are all needed
//! together, and with them the demand fits on that node.

use std::fmt;

use crate::filter::Filter;
use crate::place::{Fallen, Query, bit};
use crate::snapshot::{VACANT, tenancy};
use crate::{Demand, Level, NodeId, NodeState, Rule, Symbol};

/// Prices of changes: what an operator can do alone is cheap, what changes the machine is dear.
mod price {
    /// One percent less of an amount. It is this fine so that of two reductions the smaller one is found.
    pub(super) const PERCENT: u64 = 10_000_000;
    /// Any reduction, before its percents.
    pub(super) const LESS: u64 = 5 * PERCENT;
    pub(super) const UNCORDON: u64 = 10 * PERCENT;
    pub(super) const NUMA_NODES: u64 = 15 * PERCENT;
    pub(super) const ANOTHER_NODE: u64 = 20 * PERCENT;
    pub(super) const LABEL: u64 = 25 * PERCENT;
    pub(super) const GROUP: u64 = 35 * PERCENT;
    pub(super) const SHARED: u64 = 40 * PERCENT;
    pub(super) const HYPERVISOR: u64 = 45 * PERCENT;
    pub(super) const UNREACHABLE: u64 = 60 * PERCENT;
    pub(super) const LICENSE: u64 = 60 * PERCENT;
    pub(super) const ARCHITECTURE: u64 = 90 * PERCENT;
}

/// One thing that would have to be otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Let machines on the node again.
    Uncordon,
    /// Bring the node back into service.
    BringBack,
    /// Ask for another node, or do not exclude this one.
    AnotherNode,
    /// Allow its hypervisor.
    AllowHypervisor(String),
    /// Take an image for its architecture.
    AnotherArchitecture(String),
    /// Do not ask for a label.
    WithoutLabel(String),
    /// Share the node with other tenants.
    NotExclusive,
    /// Do without a license of this pool, or buy one more.
    WithoutLicense(String),
    /// Leave a rule of the group out.
    WithoutRule {
        /// The group.
        group: String,
        /// Its rule.
        rule: Rule,
    },
    /// Spread over another number of NUMA nodes.
    NumaNodes {
        /// As asked for.
        from: u8,
        /// What would fit.
        to: u8,
    },
    /// Fewer vCPUs.
    Vcpus {
        /// As asked for.
        from: u32,
        /// The most that would fit.
        to: u32,
    },
    /// Less memory, in MiB.
    Memory {
        /// As asked for.
        from: u64,
        /// The most that would fit.
        to: u64,
    },
    /// Less storage, in MiB.
    Storage {
        /// As asked for.
        from: u64,
        /// The most that would fit.
        to: u64,
    },
}

/// Why no node fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// How many nodes were looked at.
    pub considered: usize,
    /// How many nodes fell, by the first filter each fell at, in the order of the filters.
    pub fell: Vec<(Filter, usize)>,
    /// The node that is nearest to fitting.
    pub nearest: Option<NodeId>,
    /// Its name.
    pub nearest_name: String,
    /// All of these together, and it would fit there; empty where no change would do.
    pub least_change: Vec<Change>,
}

impl Query<'_> {
    pub(crate) fn explain(&self) -> Refusal {
        let mut fell = [0; Filter::COUNT];
        let mut considered = 0;
        let mut nearest: Option<(u64, u32, Fallen)> = None;
        for slot in self.registered() {
            let fallen = self.fallen(slot);
            considered += 1;
            if let Some(first) = Filter::ALL.into_iter().find(|filter| fallen & bit(*filter) != 0) {
                fell[first as usize] += 1;
            }
            let price = self.changes(slot, fallen, Changes::default()).map(|changes| changes.price);
            if let Some(price) = price.filter(|price| nearest.is_none_or(|(least, ..)| *price < least)) {
                nearest = Some((price, slot, fallen));
            }
        }
        let listed = nearest.and_then(|(_, slot, fallen)| {
            self.changes(slot, fallen, Changes { list: Some(Vec::new()), ..Changes::default() })
        });
        let slot = nearest.map(|(_, slot, _)| slot);
        Refusal {
            considered,
            fell: Filter::ALL.into_iter().zip(fell).filter(|(_, count)| *count > 0).collect(),
            nearest: slot.map(|slot| self.snapshot.id(slot)),
            nearest_name: slot.map(|slot| self.snapshot.record(slot).spec.name.clone()).unwrap_or_default(),
            least_change: listed.and_then(|changes| changes.list).unwrap_or_default(),
        }
    }

    fn registered(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.snapshot.records).filter_map(|(slot, record)| record.as_ref().map(|_| slot))
    }

    /// What would have to change for one node; `None` where nothing helps.
    fn changes(&self, slot: u32, fallen: Fallen, mut changes: Changes) -> Option<Changes> {
        let falls = |filter| fallen & bit(filter) != 0;
        let spec = &self.snapshot.record(slot).spec;
        let word = |symbol: Symbol| self.snapshot.word(symbol).to_owned();
        match spec.state {
            NodeState::Ready => {}
            NodeState::Cordoned => changes.push(price::UNCORDON, || Change::Uncordon),
            NodeState::Unreachable => changes.push(price::UNREACHABLE, || Change::BringBack),
        }
        if falls(Filter::RequestedNode) {
            changes.push(price::ANOTHER_NODE, || Change::AnotherNode);
        }
        if falls(Filter::Hypervisor) {
            changes.push(price::HYPERVISOR, || Change::AllowHypervisor(word(spec.hypervisor)));
        }
        if falls(Filter::Architecture) {
            changes.push(price::ARCHITECTURE, || Change::AnotherArchitecture(word(spec.architecture)));
        }
        if falls(Filter::Labels) {
            for label in self.demand.labels.iter().filter(|label| !spec.labels.contains(label)) {
                changes.push(price::LABEL, || Change::WithoutLabel(word(*label)));
            }
        }
        if falls(Filter::TenantIsolation) {
            // What belongs to another tenant stays that tenant's; only an own wish can be given up.
            let row = &self.snapshot.rows[slot as usize];
            let tenant = tenancy(self.demand.tenant);
            let foreign = row.exclusive_to != VACANT && row.exclusive_to != tenant;
            let dedicated = spec.dedicated_to.is_some() && spec.dedicated_to != self.demand.tenant;
            if foreign || dedicated {
                return None;
            }
            changes.push(price::SHARED, || Change::NotExclusive);
        }
        if let Some(license) = self.demand.license.filter(|_| falls(Filter::License)) {
            changes.push(price::LICENSE, || Change::WithoutLicense(word(license)));
        }
        let by_group = falls(Filter::Affinity) || falls(Filter::AntiAffinity) || falls(Filter::FaultDomain);
        if let Some(group) = self.demand.group.filter(|_| by_group) {
            let rule = group.rule;
            changes.push(price::GROUP, || Change::WithoutRule { group: word(group.name), rule });
        }
        if falls(Filter::Numa) {
            self.offer(slot)?.charge(self.demand, &mut changes);
        }
        let (from, to) = (self.demand.storage_mib, self.snapshot.rows[slot as usize].free_storage_mib);
        if from > to {
            changes.push(reduction(from, to)?, || Change::Storage { from, to });
        }
        Some(changes)
    }

    /// The cheapest way to fit, over all choices of the node's NUMA nodes. Who lacks vCPUs or memory on the
    /// whole node lacks them on NUMA nodes too.
    fn offer(&self, slot: u32) -> Option<Offer> {
        let free = self.snapshot.free_numa(slot);
        let mut best: Option<Offer> = None;
        for mask in 1..1u32 << free.len() {
            let parts = mask.count_ones();
            let chosen = || (0..).zip(free).filter(|(numa, _)| mask & (1 << numa) != 0).map(|(_, free)| free);
            let vcpus = chosen().map(|free| free.vcpus).min().unwrap_or(0).saturating_mul(parts);
            let memory = chosen().map(|free| free.memory_mib).min().unwrap_or(0);
            let offer = Offer::new(self.demand, parts, vcpus, u64::from(memory) * u64::from(parts));
            if let Some(offer) = offer
                && best.as_ref().is_none_or(|best| offer.price < best.price)
            {
                best = Some(offer);
            }
        }
        best
    }
}

/// What some NUMA nodes can give, and what it costs a demand to be content with it.
struct Offer {
    price: u64,
    parts: u32,
    vcpus: u32,
    memory_mib: u64,
}

impl Offer {
    /// `None` where nothing would be left of the demand.
    fn new(demand: &Demand, parts: u32, vcpus: u32, memory_mib: u64) -> Option<Self> {
        let mut changes = Changes::default();
        let offer = Self { price: 0, parts, vcpus, memory_mib };
        let lost = demand.vcpus > 0 && vcpus == 0 || demand.memory_mib > 0 && memory_mib == 0;
        offer.charge(demand, &mut changes);
        (!lost).then_some(Self { price: changes.price, ..offer })
    }

    fn charge(&self, demand: &Demand, changes: &mut Changes) {
        if self.parts != demand.parts() {
            let (from, to) = (demand.numa_nodes.max(1), self.parts as u8);
            changes.push(price::NUMA_NODES, || Change::NumaNodes { from, to });
        }
        let (from, to) = (demand.vcpus, self.vcpus);
        if from > to {
            changes.push(percents(from.into(), to.into()), || Change::Vcpus { from, to });
        }
        let (from, to) = (demand.memory_mib, self.memory_mib);
        if from > to {
            changes.push(percents(from, to), || Change::Memory { from, to });
        }
    }
}

fn percents(from: u64, to: u64) -> u64 {
    let percents = u128::from(from - to) * u128::from(100 * price::PERCENT) / u128::from(from);
    price::LESS + percents as u64
}

fn reduction(from: u64, to: u64) -> Option<u64> {
    (to > 0).then(|| percents(from, to))
}

/// What changes cost together; listed where that is asked for.
#[derive(Default)]
struct Changes {
    price: u64,
    list: Option<Vec<Change>>,
}

impl Changes {
    fn push(&mut self, price: u64, change: impl FnOnce() -> Change) {
        self.price += price;
        if let Some(list) = &mut self.list {
            list.push(change());
        }
    }
}

/// Amounts as people say them.
struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            whole if whole > 0 && whole.is_multiple_of(1024) => write!(f, "{} GiB", whole / 1024),
            mib => write!(f, "{mib} MiB"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Affinity(Level::Node) => f.write_str("affinity"),
            Self::Affinity(Level::FaultDomain) => f.write_str("affinity by fault domain"),
            Self::AntiAffinity(Level::Node) => f.write_str("anti-affinity"),
            Self::AntiAffinity(Level::FaultDomain) => f.write_str("anti-affinity by fault domain"),
            Self::Partition(part) => write!(f, "partition {part}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uncordon => f.write_str("the node uncordoned"),
            Self::BringBack => f.write_str("the node back in service"),
            Self::AnotherNode => f.write_str("that node allowed"),
            Self::AllowHypervisor(kind) => write!(f, "hypervisor {kind} allowed"),
            Self::AnotherArchitecture(name) => write!(f, "an image for {name}"),
            Self::WithoutLabel(label) => write!(f, "label {label} not asked for"),
            Self::NotExclusive => f.write_str("the node shared with other tenants"),
            Self::WithoutLicense(pool) => write!(f, "no license of {pool}, or one more"),
            Self::WithoutRule { group, rule } => write!(f, "no {rule} in group {group}"),
            Self::NumaNodes { from, to: 1 } => write!(f, "1 NUMA node instead of {from}"),
            Self::NumaNodes { from, to } => write!(f, "{to} NUMA nodes instead of {from}"),
            Self::Vcpus { from, to } => write!(f, "at most {to} vCPUs instead of {from}"),
            Self::Memory { from, to } => {
                write!(f, "at most {} of memory instead of {}", Mib(*to), Mib(*from))
            }
            Self::Storage { from, to } => {
                write!(f, "at most {} of storage instead of {}", Mib(*to), Mib(*from))
            }
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.considered {
            0 => return f.write_str("the grid has no nodes"),
            1 => f.write_str("the one node does not fit:")?,
            nodes => write!(f, "none of {nodes} nodes fits:")?,
        }
        for (at, (filter, count)) in self.fell.iter().enumerate() {
            let (comma, verb) = if at == 0 { ("", " fell") } else { (",", "") };
            write!(f, "{comma} {count}{verb} at {filter}")?;
        }
        if self.least_change.is_empty() {
            return f.write_str("; no change of the demand would help");
        }
        write!(f, "; it would fit on {} with ", self.nearest_name)?;
        for (at, change) in self.least_change.iter().enumerate() {
            let between = if at == 0 { "" } else { ", and " };
            write!(f, "{between}{change}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}
