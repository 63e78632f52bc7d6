//! What the other members of its group mean for a demand.

use crate::filter::Filter;
use crate::place::{Fallen, bit};
use crate::score::MAX_SPREAD;
use crate::{Demand, Level, Rule, Snapshot};

/// A set of small numbers.
#[derive(Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    fn insert(&mut self, at: u32) {
        let word = at as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (at % 64);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let all = (0..).zip(&self.0);
        all.flat_map(|(word, bits)| {
            (0..64).filter(move |at| bits & (1 << at) != 0).map(move |at| word * 64 + at)
        })
    }

    pub(crate) fn contains(&self, at: u32) -> bool {
        self.0.get(at as usize / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

/// What a demand's group means for nodes and fault domains.
#[derive(Default)]
pub(crate) struct Near {
    /// Slots of which it must be one.
    pub(crate) only_slots: Option<Vec<u32>>,
    /// Fault domains of which it must be in one.
    pub(crate) only_domains: Option<Vec<u32>>,
    pub(crate) not_slots: Bits,
    pub(crate) not_domains: Bits,
    /// Fault domains its part uses.
    pub(crate) own_domains: Bits,
    /// Members in each fault domain, where nearness costs points.
    pub(crate) spread: Vec<u8>,
}

impl Near {
    pub(crate) fn new(snapshot: &Snapshot, demand: &Demand) -> Self {
        let mut near = Self::default();
        let Some(group) = demand.group else { return near };
        let domain = |slot: u32| snapshot.keys[slot as usize].domain;
        for members in snapshot.groups.members(group.name) {
            match group.rule {
                Rule::Affinity(Level::Node) => near.only_slots.get_or_insert_default().push(members.slot),
                Rule::Affinity(Level::FaultDomain) => {
                    near.only_domains.get_or_insert_default().push(domain(members.slot));
                }
                Rule::AntiAffinity(Level::Node) => {
                    near.not_slots.insert(members.slot);
                    near.spread.resize(snapshot.domains.domains.len(), 0);
                    let count = &mut near.spread[domain(members.slot) as usize];
                    *count = (u32::from(*count) + members.count).min(u32::from(MAX_SPREAD)) as u8;
                }
                Rule::AntiAffinity(Level::FaultDomain) => near.not_domains.insert(domain(members.slot)),
                Rule::Partition(own) => match members.rule {
                    Rule::Partition(part) if part == own => near.own_domains.insert(domain(members.slot)),
                    Rule::Partition(_) => near.not_domains.insert(domain(members.slot)),
                    Rule::Affinity(_) | Rule::AntiAffinity(_) => {}
                },
            }
        }
        for only in [&mut near.only_slots, &mut near.only_domains].into_iter().flatten() {
            only.sort_unstable();
            only.dedup();
        }
        near
    }

    pub(crate) fn fallen(&self, slot: u32, domain: u32) -> Fallen {
        let elsewhere = |only: &Option<Vec<u32>>, at| only.as_ref().is_some_and(|only| !only.contains(&at));
        let mut fallen = 0;
        if elsewhere(&self.only_slots, slot) || elsewhere(&self.only_domains, domain) {
            fallen |= bit(Filter::Affinity);
        }
        if self.not_slots.contains(slot) {
            fallen |= bit(Filter::AntiAffinity);
        }
        if self.not_domains.contains(domain) {
            fallen |= bit(Filter::FaultDomain);
        }
        fallen
    }

    pub(crate) fn is_new(&self) -> bool {
        self.only_slots.is_none() && self.only_domains.is_none()
    }
}
