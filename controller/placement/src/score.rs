//! What makes one node better than another, in points.
//!
//! Packing decides: a machine goes beside others, where it leaves little over and what is left is
//! balanced, and where a new node must be opened a large one is. Two things hold against that: a fault
//! domain with much room is kept whole for groups that must stay together, and so is what such groups
//! will need of the domain they are in. What a node is suited for and what a license costs weigh about
//! as much as a difference in packing.
//!
//! All is whole numbers, so that an answer never depends on the machine it is computed on. Amounts are
//! compared in MiB of memory; vCPUs and storage are converted at the grid's own ratio of capacities.

use crate::class::Traits;
use crate::domain::{Domain, Room};
use crate::numa::Shape;
use crate::snapshot::Row;
use crate::{Amounts, Demand, Suitability, Workload};

/// Members that a new group is expected to grow to where all of it must be on one node.
const NODE_ROOM: u64 = 4;
/// Bits after the point of factors.
const FACTOR_BITS: u32 = 20;
/// Bits after the point of the price of storage.
const STORAGE_BITS: u32 = 12;
/// Missing members above this are all the same.
const MAX_SHORT: u64 = 64;
/// Costs of licenses above this are all the same.
const MAX_LICENSE_COST: u32 = 100;
/// Members of a group in one fault domain above this are all the same.
pub(crate) const MAX_SPREAD: u8 = 5;
/// Points of what may not be; no sum of others comes near.
pub(crate) const NEVER: i64 = i64::MIN / 8;
/// Largest weight; with it no sum of points can overflow.
const MAX_WEIGHT: i64 = 1_000_000;

/// How much each thing counts, in thousandths of a point.
///
/// The defaults of `occupied` and `size` say that an empty node never wins against an occupied one by its
/// size. With that given, those down to `partition` were found by a random search over the sequences c1 and
/// c2 of the "Dataset for Topology-Aware VM Placement" (Huawei Cloud, CC0), as they are, reversed and
/// shuffled: nothing refused first, few hosts used second. That c1 and c2 see no refusal was selected for.
/// It holds on a knife's edge for c2: of 40 sets of weights within 5 percent of these, 2 refused nothing of
/// either sequence, and the others up to 7 requests. Of requests in orders the search had not seen, 13 in
/// ten thousand were refused: nobody knows how large a group bound to one rack will become. The rest of the
/// weights were chosen to weigh as much as a difference in packing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weights {
    /// A node that has machines already.
    pub occupied: i64,
    /// An empty node as large as the mean of the grid; up to twice as much for larger ones.
    pub size: i64,
    /// Against stranding: as much imbalance more between vCPUs and memory as the machine is large.
    pub balance: i64,
    /// Against waste: as much left free as the mean node has.
    pub fit: i64,
    /// Against breaking up large room: as much free in the fault domain as the mean domain has; up to
    /// twice as much for more.
    pub room: i64,
    /// Against taking room in a fault domain that a group which must stay there will need.
    pub claim: i64,
    /// Members that a group in one fault domain is expected to grow to.
    pub group_room: i64,
    /// For a new group that must stay together: each member less than expected that would fit.
    pub group_short: i64,
    /// For a new group that must stay together: each member of groups already there that would not fit.
    pub group_crowd: i64,
    /// Against each member of the group in the fault domain, where members are kept apart.
    pub spread: i64,
    /// A fault domain that the same part of the group uses already; the others stay free for other parts.
    pub partition: i64,
    /// A node with suitability 100 for an I/O-heavy or network-heavy machine.
    pub workload: i64,
    /// A node that runs the guest's family of operating systems best.
    pub guest: i64,
    /// Each unit of a license's cost, up to 100.
    pub license: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            occupied: 10_000,
            size: 5_000,
            balance: 700,
            fit: 1_600,
            room: 690,
            claim: 240_000,
            group_room: 18,
            group_short: 23_000,
            group_crowd: 2_400,
            spread: 1_600,
            partition: 2_400,
            workload: 4_000,
            guest: 2_000,
            license: 100,
        }
    }
}

impl Weights {
    pub(crate) fn bounded(self) -> Self {
        let bound = |weight: i64| weight.clamp(0, MAX_WEIGHT);
        Self {
            occupied: bound(self.occupied),
            size: bound(self.size),
            balance: bound(self.balance),
            fit: bound(self.fit),
            room: bound(self.room),
            claim: bound(self.claim),
            group_room: bound(self.group_room),
            group_short: bound(self.group_short),
            group_crowd: bound(self.group_crowd),
            spread: bound(self.spread),
            partition: bound(self.partition),
            workload: bound(self.workload),
            guest: bound(self.guest),
            license: bound(self.license),
        }
    }
}

/// Why a node was chosen, in thousandths of a point; the highest total wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// Beside other machines, or on a large node.
    pub occupancy: i64,
    /// vCPUs and memory stay balanced.
    pub balance: i64,
    /// Little is left over.
    pub fit: i64,
    /// The room of its fault domain is not needed otherwise.
    pub domain: i64,
    /// Its group: room to grow, or members far apart.
    pub group: i64,
    /// The hypervisor suits the workload and the guest.
    pub suitability: i64,
    /// The license is cheap.
    pub license: i64,
}

impl Score {
    /// The sum.
    pub fn total(&self) -> i64 {
        let packing = self.occupancy + self.balance + self.fit;
        packing + self.domain + self.group + self.suitability + self.license
    }
}

/// What amounts are compared by; it changes when nodes come, change or go, not when machines do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) memory_per_vcpu: i64,
    /// Fixed point, [`STORAGE_BITS`].
    memory_per_storage: i64,
    /// Memory of the mean node in MiB.
    mean_node: i64,
    /// Memory of the mean fault domain in MiB.
    mean_domain: i64,
}

impl Default for Scale {
    fn default() -> Self {
        Self::new(Amounts::default(), 0, 0)
    }
}

impl Scale {
    // The limits on nodes keep every sum of capacities below 2^58.
    pub(crate) fn new(capacity: Amounts, nodes: usize, domains: usize) -> Self {
        let [vcpus, memory, storage] =
            [capacity.vcpus, capacity.memory_mib, capacity.storage_mib].map(|sum| sum as i64);
        Self {
            memory_per_vcpu: round((memory / vcpus.max(1)).max(1)),
            memory_per_storage: round((memory << STORAGE_BITS) / storage.max(1)),
            mean_node: round((memory / (nodes as i64).max(1)).max(1)),
            mean_domain: round((memory / (domains as i64).max(1)).max(1)),
        }
    }
}

/// Down to the first four binary digits, so that one node more rarely changes how all are compared.
fn round(number: i64) -> i64 {
    let drop = (i64::BITS - number.leading_zeros()).saturating_sub(4);
    number >> drop << drop
}

fn factor(weight: i64, per: i64) -> i64 {
    (weight << FACTOR_BITS) / per.max(1)
}

fn times(amount: i64, factor: i64) -> i64 {
    (amount * factor) >> FACTOR_BITS
}

/// Points for what a node is now, whatever is asked for.
pub(crate) fn standing(weights: &Weights, scale: &Scale, row: &Row) -> i64 {
    if row.open { occupancy(weights, scale, row) + leftover(weights, scale, row) } else { NEVER }
}

fn occupancy(weights: &Weights, scale: &Scale, row: &Row) -> i64 {
    if row.instances > 0 {
        return weights.occupied;
    }
    let vcpus = i64::from(row.capacity_vcpus) * scale.memory_per_vcpu;
    let usable = vcpus.min(row.capacity_memory_mib as i64).min(2 * scale.mean_node);
    times(usable, factor(weights.size, scale.mean_node))
}

/// Against what the node has free now. What the demand takes of it is the same everywhere, and added to
/// the winner's points only.
fn leftover(weights: &Weights, scale: &Scale, row: &Row) -> i64 {
    let vcpus = i64::from(row.free_vcpus) * scale.memory_per_vcpu;
    let storage = (row.free_storage_mib as i64 * scale.memory_per_storage) >> STORAGE_BITS;
    -times(vcpus + row.free_memory_mib as i64 + storage, factor(weights.fit, scale.mean_node))
}

/// Points for one demand.
#[derive(Debug, Clone)]
pub(crate) struct Scorer {
    weights: Weights,
    scale: Scale,
    balance: i64,
    room: i64,
}

impl Scorer {
    pub(crate) fn new(weights: Weights, scale: Scale, demand: &Demand) -> Self {
        let memory = i64::try_from(demand.memory_mib).unwrap_or(i64::MAX);
        let demanded = i64::from(demand.vcpus).saturating_mul(scale.memory_per_vcpu).max(memory);
        Self {
            weights,
            scale,
            balance: factor(weights.balance, demanded),
            room: factor(weights.room, scale.mean_domain),
        }
    }

    /// For NUMA nodes that become so much more unbalanced.
    pub(crate) fn balance(&self, stranded: i64) -> i64 {
        -times(stranded, self.balance)
    }

    /// The most that [`Self::balance`] can be: no NUMA node gets more balanced than by what is taken.
    pub(crate) fn best_balance(&self, shape: Shape) -> i64 {
        let skew =
            i128::from(shape.vcpus) * i128::from(self.scale.memory_per_vcpu) - i128::from(shape.memory_mib);
        let most = (skew.abs() * i128::from(shape.parts) * i128::from(self.balance)) >> FACTOR_BITS;
        i64::try_from(most).map_or(MAX_WEIGHT * 2, |most| most + 1)
    }

    /// For a fault domain, where the demand's group does not say which it is.
    pub(crate) fn room(&self, room: &Room) -> i64 {
        let vcpus = room.vcpus as i64 * self.scale.memory_per_vcpu;
        let free = vcpus.min(room.memory_mib as i64).min(2 * self.scale.mean_domain);
        -times(free, self.room)
    }

    /// For a node whose fault domain has less room than groups in it claim, and that would lose some.
    pub(crate) fn claim(&self, domain: &Domain) -> i64 {
        let short = domain.wanted.saturating_sub(domain.copies).min(MAX_SHORT) as i64;
        -(self.weights.claim + self.weights.claim * short / domain.wanted.clamp(1, MAX_SHORT) as i64)
    }

    /// For a new group that must stay on a node where as many machines like this fit.
    pub(crate) fn node_growth(&self, copies: u64) -> i64 {
        -(NODE_ROOM.saturating_sub(copies) as i64 * self.weights.group_short)
    }

    /// For a new group that must stay in a fault domain where as many machines like this fit.
    pub(crate) fn domain_growth(&self, copies: u64, domain: &Domain) -> i64 {
        let room = self.weights.group_room.unsigned_abs();
        let short = room.saturating_sub(copies);
        let crowded = (room + domain.wanted).saturating_sub(copies) - short;
        let points = |machines: u64, weight: i64| -(machines.min(MAX_SHORT) as i64 * weight);
        points(short, self.weights.group_short) + points(crowded, self.weights.group_crowd)
    }

    pub(crate) fn spread(&self, members: u8) -> i64 {
        -(i64::from(members) * self.weights.spread)
    }

    pub(crate) fn partition(&self) -> i64 {
        self.weights.partition
    }

    /// The parts of a node's standing, for a demand that goes there.
    pub(crate) fn explain_standing(&self, row: &Row, demand: &Demand) -> Score {
        let left = Row {
            free_vcpus: row.free_vcpus - demand.vcpus,
            free_memory_mib: row.free_memory_mib - demand.memory_mib,
            free_storage_mib: row.free_storage_mib - demand.storage_mib,
            ..row.clone()
        };
        Score {
            occupancy: occupancy(&self.weights, &self.scale, row),
            fit: leftover(&self.weights, &self.scale, &left),
            ..Score::default()
        }
    }
}

/// Points for what nodes are suited for.
pub(crate) fn suitability(weights: &Weights, of: Suitability, is_preferred: bool, demand: &Demand) -> i64 {
    let suited = match demand.workload {
        Workload::General => 0,
        Workload::IoHeavy => of.io,
        Workload::NetworkHeavy => of.network,
    };
    weights.workload * i64::from(suited) / 100 + if is_preferred { weights.guest } else { 0 }
}

/// Points for what the demanded license costs there.
pub(crate) fn license(weights: &Weights, traits: &Traits, demand: &Demand) -> i64 {
    let pool = traits.licenses.iter().find(|(name, _)| Some(*name) == demand.license);
    let cost = pool.map_or(0, |(_, cost)| i64::from((*cost).min(MAX_LICENSE_COST)));
    -(weights.license * cost)
}
