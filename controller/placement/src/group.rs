//! Who is with whom: the members of groups by the nodes they are on.

use std::collections::HashMap;

use crate::numa::Shape;
use crate::{Group, Level, Rule, Symbol};

/// Members of one group on one node that have the same rule and the same size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Members {
    pub(crate) slot: u32,
    pub(crate) rule: Rule,
    pub(crate) shape: Shape,
    pub(crate) count: u32,
}

impl Members {
    fn is(&self, rule: Rule, slot: u32, shape: Shape) -> bool {
        self.slot == slot && self.rule == rule && self.shape == shape
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Groups {
    groups: HashMap<Symbol, Vec<Members>>,
}

impl Groups {
    pub(crate) fn members(&self, group: Symbol) -> &[Members] {
        self.groups.get(&group).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn has(&self, group: Group, slot: u32, shape: Shape) -> bool {
        self.members(group.name).iter().any(|members| members.is(group.rule, slot, shape))
    }

    pub(crate) fn enter(&mut self, group: Group, slot: u32, shape: Shape) {
        let members = self.groups.entry(group.name).or_default();
        match members.iter_mut().find(|members| members.is(group.rule, slot, shape)) {
            Some(members) => members.count += 1,
            None => members.push(Members { slot, rule: group.rule, shape, count: 1 }),
        }
    }

    pub(crate) fn leave(&mut self, group: Group, slot: u32, shape: Shape) {
        let Some(members) = self.groups.get_mut(&group.name) else { return };
        let found = members.iter().position(|members| members.is(group.rule, slot, shape));
        let Some(at) = found else { return };
        members[at].count -= 1;
        if members[at].count == 0 {
            // The order of the rest has no meaning: every question is about sets and sums.
            members.swap_remove(at);
        }
        if members.is_empty() {
            self.groups.remove(&group.name);
        }
    }

    /// How many members keep the group in the fault domain of the nodes for which `within` holds, and the
    /// least shape that each of them fits into.
    pub(crate) fn bound(&self, group: Symbol, within: impl Fn(u32) -> bool) -> (u64, Shape) {
        let stays =
            |members: &&Members| members.rule == Rule::Affinity(Level::FaultDomain) && within(members.slot);
        self.members(group).iter().filter(stays).fold((0, Shape::default()), |(count, shape), members| {
            (count + u64::from(members.count), shape.max(members.shape))
        })
    }

    /// All groups.
    pub(crate) fn names(&self) -> impl Iterator<Item = Symbol> {
        self.groups.keys().copied()
    }
}
