//! The question itself: the filters and the score over all nodes.

use crate::class::{Profile, Traits};
use crate::filter::Filter;
use crate::near::Near;
use crate::numa::{self, Mask, Shape};
use crate::score::{self, NEVER, Scorer};
use crate::snapshot::{Key, Row, Tenancy, VACANT, tenancy};
use crate::{Demand, Level, MAX_NUMA, Placement, Refusal, Rule, Score, Share, Snapshot};

/// The best node for a demand.
///
/// # Errors
/// A [`Refusal`] where there is none; it says why.
pub fn place(snapshot: &Snapshot, demand: &Demand) -> Result<Placement, Refusal> {
    let query = Query::new(snapshot, demand);
    match query.best() {
        Some(best) => Ok(Placement {
            node: snapshot.id(best.slot),
            shares: split(demand, best.mask),
            score: query.score(&best),
        }),
        None => Err(query.explain()),
    }
}

/// Divides the amounts over the NUMA nodes; the first ones get what does not divide evenly.
fn split(demand: &Demand, mask: Mask) -> Vec<Share> {
    let parts = demand.parts();
    let chosen = (0..MAX_NUMA as u8).filter(|numa| mask & (1 << numa) != 0);
    let share = |(part, numa): (u32, u8)| Share {
        numa,
        vcpus: demand.vcpus / parts + u32::from(part < demand.vcpus % parts),
        memory_mib: demand.memory_mib / u64::from(parts)
            + u64::from(u64::from(part) < demand.memory_mib % u64::from(parts)),
    };
    (0..).zip(chosen).map(share).collect()
}

/// Filters, one bit each.
pub(crate) type Fallen = u16;

pub(crate) fn bit(filter: Filter) -> Fallen {
    1 << filter as u16
}

/// Slots that are left out together.
const STRETCH: u32 = 64;

/// A node that passes.
struct Candidate {
    slot: u32,
    mask: Mask,
    /// How much more unbalanced its NUMA nodes become.
    stranded: i64,
    /// What candidates are compared by.
    points: i64,
}

/// A demand, with all that is the same for many nodes looked at once.
///
/// The points of a node are those it has as it stands, plus its class's, plus its fault domain's, plus
/// what balancing its NUMA nodes adds, which has a known maximum. So one sum says of most nodes that they
/// cannot be better than the best so far; only the others are looked at.
pub(crate) struct Query<'q> {
    pub(crate) snapshot: &'q Snapshot,
    pub(crate) demand: &'q Demand,
    shape: Shape,
    tenant: Tenancy,
    near: Near,
    /// A new group that must stay together, and where.
    growth: Option<Level>,
    /// Its group says which fault domain it is, or will.
    stays: bool,
    scorer: Scorer,
    /// By class; [`NEVER`] where it falls at a filter.
    classes: Vec<i64>,
    /// By fault domain: likewise.
    domains: Vec<i64>,
    /// The most that is added to a node's known points.
    most: i64,
}

impl<'q> Query<'q> {
    fn new(snapshot: &'q Snapshot, demand: &'q Demand) -> Self {
        let (vcpus, memory_mib) = demand.share();
        let shape = Shape { parts: demand.parts(), vcpus, memory_mib };
        let scorer = Scorer::new(snapshot.weights, snapshot.scale, demand);
        let near = Near::new(snapshot, demand);
        let growth = match demand.group.map(|group| group.rule) {
            Some(Rule::Affinity(level)) if near.is_new() => Some(level),
            _ => None,
        };
        let most = scorer.best_balance(shape);
        let tenant = tenancy(demand.tenant);
        let (classes, domains) = (class_points(snapshot, demand), Vec::new());
        let stays = growth.is_some() || !near.is_new();
        let mut query =
            Self { snapshot, demand, shape, tenant, near, growth, stays, scorer, classes, domains, most };
        query.domains = query.domain_points();
        query
    }

    fn domain_points(&self) -> Vec<i64> {
        let rooms = &self.snapshot.domains.rooms;
        let mut points: Vec<i64> = match self.stays {
            true => vec![0; rooms.len()],
            false => rooms.iter().map(|room| self.scorer.room(room)).collect(),
        };
        if self.growth == Some(Level::FaultDomain) {
            let copies = self.copies_by_domain();
            for ((points, copies), domain) in
                points.iter_mut().zip(copies).zip(&self.snapshot.domains.domains)
            {
                *points += self.scorer.domain_growth(copies, domain);
            }
        }
        for (points, members) in points.iter_mut().zip(&self.near.spread) {
            *points += self.scorer.spread(*members);
        }
        for domain in self.near.own_domains.iter() {
            points[domain as usize] += self.scorer.partition();
        }
        for domain in self.near.not_domains.iter() {
            points[domain as usize] = NEVER;
        }
        points
    }

    fn copies_by_domain(&self) -> Vec<u64> {
        let mut copies = vec![0; self.snapshot.domains.domains.len()];
        for (slot, key) in (0..).zip(&self.snapshot.keys) {
            if key.points > NEVER && self.classes[key.class as usize] > NEVER {
                copies[key.domain as usize] += self.shape.copies(self.snapshot.free_numa(slot));
            }
        }
        copies
    }

    /// Of equal nodes the one in the lowest slot: slots are visited in their order.
    fn best(&self) -> Option<Candidate> {
        if let Some(node) = self.demand.node {
            return self.best_of(self.snapshot.slot(node).into_iter());
        }
        if let Some(slots) = &self.near.only_slots {
            return self.best_of(slots.iter().copied());
        }
        if let Some(domains) = &self.near.only_domains {
            let nodes = domains.iter().flat_map(|of| &self.snapshot.domains.domains[*of as usize].nodes);
            let mut slots: Vec<u32> = nodes.copied().collect();
            slots.sort_unstable();
            return self.best_of(slots.into_iter());
        }
        self.best_of_all()
    }

    fn best_of(&self, slots: impl Iterator<Item = u32>) -> Option<Candidate> {
        let mut best = None;
        let mut least = NEVER / 2;
        for slot in slots {
            if let Some(found) = self.consider(slot, self.known(slot), least) {
                least = found.points;
                best = Some(found);
            }
        }
        best
    }

    /// Looks first at the likeliest node of each stretch of slots: with what the best of these has, nearly
    /// all others are left out by one comparison for the whole stretch.
    fn best_of_all(&self) -> Option<Candidate> {
        let slots = self.snapshot.keys.len() as u32;
        let mut least = NEVER / 2;
        let mut stretches = Vec::with_capacity(slots as usize / STRETCH as usize + 1);
        for begin in (0..slots).step_by(STRETCH as usize) {
            let mut likeliest = (begin, self.known(begin));
            for slot in begin + 1..slots.min(begin + STRETCH) {
                let known = self.known(slot);
                if known > likeliest.1 {
                    likeliest = (slot, known);
                }
            }
            let (slot, known) = likeliest;
            if known + self.most > least
                && let Some(found) = self.consider(slot, known, least)
            {
                // One less, so that the node itself, or an equal one before it, is found again below.
                least = found.points - 1;
            }
            stretches.push((begin, known));
        }
        let mut best = None;
        for (begin, most_known) in stretches {
            if most_known + self.most <= least {
                continue;
            }
            for slot in begin..slots.min(begin + STRETCH) {
                let known = self.known(slot);
                if known + self.most > least
                    && let Some(found) = self.consider(slot, known, least)
                {
                    least = found.points;
                    best = Some(found);
                }
            }
        }
        best
    }

    /// The points of a node but for those of its NUMA nodes.
    #[inline]
    fn known(&self, slot: u32) -> i64 {
        let key = &self.snapshot.keys[slot as usize];
        key.points + self.classes[key.class as usize] + self.domains[key.domain as usize]
    }

    /// A node that passes all filters and has more points than `least`.
    fn consider(&self, slot: u32, known: i64, least: i64) -> Option<Candidate> {
        if known + self.most <= least {
            return None;
        }
        let row = &self.snapshot.rows[slot as usize];
        let enough = row.free_vcpus >= self.demand.vcpus
            && row.free_memory_mib >= self.demand.memory_mib
            && row.free_storage_mib >= self.demand.storage_mib;
        if !enough || !may_share(self.demand, self.tenant, row) {
            return None;
        }
        if self.near.fallen(slot, self.snapshot.keys[slot as usize].domain) != 0
            || !is_requested(self.snapshot, self.demand, slot)
            || !has_license(self.snapshot, self.demand, slot)
        {
            return None;
        }
        let free = self.snapshot.free_numa(slot);
        let (mask, stranded) = numa::choose(free, self.shape, self.snapshot.scale.memory_per_vcpu)?;
        let points = known + self.scorer.balance(stranded) + self.node_growth(slot) + self.claim(slot, mask);
        (points > least).then_some(Candidate { slot, mask, stranded, points })
    }

    /// Points for room that groups in the fault domain will need, and that would be taken from them.
    fn claim(&self, slot: u32, mask: Mask) -> i64 {
        let domain = &self.snapshot.domains.domains[self.snapshot.keys[slot as usize].domain as usize];
        if !domain.is_short() || self.stays {
            return 0;
        }
        let free = self.snapshot.free_numa(slot);
        let (left, count) = numa::after(free, mask, self.shape);
        let is_taken = domain.shape.copies(&left[..count]) < domain.shape.copies(free);
        if is_taken { self.scorer.claim(domain) } else { 0 }
    }

    fn node_growth(&self, slot: u32) -> i64 {
        match self.growth {
            Some(Level::Node) => self.scorer.node_growth(self.shape.copies(self.snapshot.free_numa(slot))),
            Some(Level::FaultDomain) | None => 0,
        }
    }

    /// The candidate's points by what they are for.
    fn score(&self, of: &Candidate) -> Score {
        let Key { class, domain, .. } = self.snapshot.keys[of.slot as usize];
        let row = &self.snapshot.rows[of.slot as usize];
        let traits = self.snapshot.classes.get(class).expect("a node's class has nodes");
        let license = score::license(&self.snapshot.weights, traits, self.demand);
        let room = &self.snapshot.domains.rooms[domain as usize];
        let packing = if self.stays { 0 } else { self.scorer.room(room) };
        Score {
            balance: self.scorer.balance(of.stranded),
            domain: packing + self.claim(of.slot, of.mask),
            group: self.domains[domain as usize] - packing + self.node_growth(of.slot),
            suitability: self.classes[class as usize] - license,
            license,
            ..self.scorer.explain_standing(row, self.demand)
        }
    }

    /// Every filter that a registered node falls at.
    pub(crate) fn fallen(&self, slot: u32) -> Fallen {
        fallen(self.snapshot, self.demand, &self.near, slot)
    }
}

/// Points of each class of nodes; [`NEVER`] where it falls at a filter.
fn class_points(snapshot: &Snapshot, demand: &Demand) -> Vec<i64> {
    let classes = &snapshot.classes;
    let bits: Vec<Option<u64>> = demand.labels.iter().map(|label| classes.bit(*label)).collect();
    let wanted = bits.iter().flatten().fold(0, |bits, bit| bits | bit);
    let has_bits = bits.iter().all(Option::is_some);
    let guest = demand.guest_os.map(|guest| (guest, classes.bit(guest)));
    let tenant = tenancy(demand.tenant);
    let points = |(number, profile): (u32, &Profile)| {
        let hypervisors = &demand.hypervisors;
        let passes = (hypervisors.is_empty() || hypervisors.contains(&profile.hypervisor))
            && demand.architecture.is_none_or(|wanted| wanted == profile.architecture)
            && profile.labels & wanted == wanted
            && (profile.dedicated_to == VACANT || profile.dedicated_to == tenant);
        let listed = || classes.get(number);
        let has_rest = || {
            has_bits || listed().is_some_and(|of| demand.labels.iter().all(|label| of.labels.contains(label)))
        };
        if !passes || !has_rest() {
            return NEVER;
        }
        let is_preferred = guest.is_some_and(|(guest, bit)| match bit {
            Some(bit) => profile.guests & bit != 0,
            None => listed().is_some_and(|of| of.preferred_guests.contains(&guest)),
        });
        let priced = if demand.license.is_some() { listed() } else { None };
        score::suitability(&snapshot.weights, profile.suitability, is_preferred, demand)
            + priced.map_or(0, |of| score::license(&snapshot.weights, of, demand))
    };
    (0..).zip(&classes.profiles).map(points).collect()
}

fn may_share(demand: &Demand, tenant: Tenancy, row: &Row) -> bool {
    let free_of = |tenancy: Tenancy| tenancy == VACANT || tenancy == tenant;
    free_of(row.exclusive_to) && (!demand.exclusive || free_of(row.tenancy))
}

fn is_requested(snapshot: &Snapshot, demand: &Demand, slot: u32) -> bool {
    let id = || snapshot.id(slot);
    demand.node.is_none_or(|node| node == id()) && !demand.exclude.iter().any(|no| *no == id())
}

fn has_license(snapshot: &Snapshot, demand: &Demand, slot: u32) -> bool {
    demand.license.is_none_or(|license| snapshot.record(slot).licenses_left(license) > 0)
}

/// Every filter that a registered node falls at.
pub(crate) fn fallen(snapshot: &Snapshot, demand: &Demand, near: &Near, slot: u32) -> Fallen {
    let row = &snapshot.rows[slot as usize];
    let (vcpus, memory_mib) = demand.share();
    let shape = Shape { parts: demand.parts(), vcpus, memory_mib };
    let Key { class, domain, .. } = snapshot.keys[slot as usize];
    let traits = snapshot.classes.get(class).expect("a node's class has nodes");
    let mut fallen = class_fallen(traits, demand) | near.fallen(slot, domain);
    let mut falls = |falls: bool, filter| {
        if falls {
            fallen |= bit(filter);
        }
    };
    falls(!row.open, Filter::NodeState);
    falls(!is_requested(snapshot, demand, slot), Filter::RequestedNode);
    falls(!may_share(demand, tenancy(demand.tenant), row), Filter::TenantIsolation);
    falls(!has_license(snapshot, demand, slot), Filter::License);
    falls(row.free_vcpus < demand.vcpus, Filter::Vcpus);
    falls(row.free_memory_mib < demand.memory_mib, Filter::Memory);
    falls(row.free_storage_mib < demand.storage_mib, Filter::Storage);
    falls(numa::choose(snapshot.free_numa(slot), shape, 1).is_none(), Filter::Numa);
    fallen
}

fn class_fallen(traits: &Traits, demand: &Demand) -> Fallen {
    let mut fallen = 0;
    let mut falls = |falls: bool, filter| {
        if falls {
            fallen |= bit(filter);
        }
    };
    let hypervisors = &demand.hypervisors;
    falls(!hypervisors.is_empty() && !hypervisors.contains(&traits.hypervisor), Filter::Hypervisor);
    falls(demand.architecture.is_some_and(|wanted| wanted != traits.architecture), Filter::Architecture);
    falls(demand.labels.iter().any(|label| traits.labels.binary_search(label).is_err()), Filter::Labels);
    let dedicated = traits.dedicated_to.is_some() && traits.dedicated_to != demand.tenant;
    falls(dedicated, Filter::TenantIsolation);
    fallen
}
