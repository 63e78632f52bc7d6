//! Nodes of one kind: what never changes by placing is looked at once per class, not once per node.

use std::collections::HashMap;

use crate::snapshot::{Tenancy, VACANT, tenancy};
use crate::{NodeSpec, Suitability, Symbol};

/// All of a specification that a reservation does not change, apart from its fault domain and amounts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Traits {
    pub(crate) hypervisor: Symbol,
    pub(crate) architecture: Symbol,
    pub(crate) labels: Vec<Symbol>,
    pub(crate) dedicated_to: Option<Symbol>,
    /// Pool and cost. How many are left is the node's own.
    pub(crate) licenses: Vec<(Symbol, u32)>,
    pub(crate) suitability: Suitability,
    pub(crate) preferred_guests: Vec<Symbol>,
}

impl Traits {
    pub(crate) fn of(spec: &NodeSpec) -> Self {
        let sorted = |symbols: &[Symbol]| {
            let mut symbols = symbols.to_vec();
            symbols.sort_unstable();
            symbols.dedup();
            symbols
        };
        let mut licenses: Vec<_> = spec.licenses.iter().map(|pool| (pool.name, pool.cost)).collect();
        licenses.sort_unstable();
        Self {
            hypervisor: spec.hypervisor,
            architecture: spec.architecture,
            labels: sorted(&spec.labels),
            dedicated_to: spec.dedicated_to,
            licenses,
            suitability: spec.suitability,
            preferred_guests: sorted(&spec.preferred_guests),
        }
    }
}

/// Labels and guests that have a bit of their own. Later ones are looked up in the lists.
const MAX_BITS: usize = 64;

/// Traits in a form that many classes are compared in quickly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    pub(crate) hypervisor: Symbol,
    pub(crate) architecture: Symbol,
    /// [`VACANT`] where every tenant may come.
    pub(crate) dedicated_to: Tenancy,
    pub(crate) suitability: Suitability,
    pub(crate) labels: u64,
    pub(crate) guests: u64,
}

#[derive(Debug, Clone)]
struct Class {
    traits: Traits,
    nodes: u32,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Classes {
    numbers: HashMap<Traits, u32>,
    /// `None` is free to be used again.
    classes: Vec<Option<Class>>,
    /// As `classes`; of a free one nothing is asked.
    pub(crate) profiles: Vec<Profile>,
    free: Vec<u32>,
    bits: HashMap<Symbol, u32>,
}

impl Classes {
    pub(crate) fn enter(&mut self, traits: Traits) -> u32 {
        if let Some(number) = self.numbers.get(&traits) {
            self.classes[*number as usize].as_mut().expect("a numbered class has nodes").nodes += 1;
            return *number;
        }
        let profile = Profile {
            hypervisor: traits.hypervisor,
            architecture: traits.architecture,
            dedicated_to: traits.dedicated_to.map_or(VACANT, |tenant| tenancy(Some(tenant))),
            suitability: traits.suitability,
            labels: self.assign(&traits.labels),
            guests: self.assign(&traits.preferred_guests),
        };
        let class = Some(Class { traits: traits.clone(), nodes: 1 });
        let number = self.free.pop().unwrap_or(self.classes.len() as u32);
        if number as usize == self.classes.len() {
            self.classes.push(class);
            self.profiles.push(profile);
        } else {
            self.classes[number as usize] = class;
            self.profiles[number as usize] = profile;
        }
        self.numbers.insert(traits, number);
        number
    }

    fn assign(&mut self, symbols: &[Symbol]) -> u64 {
        for symbol in symbols {
            let next = self.bits.len();
            if next < MAX_BITS {
                self.bits.entry(*symbol).or_insert(next as u32);
            }
        }
        symbols.iter().filter_map(|symbol| self.bit(*symbol)).fold(0, |bits, bit| bits | bit)
    }

    /// The bit of a label or guest, if it has one.
    pub(crate) fn bit(&self, symbol: Symbol) -> Option<u64> {
        self.bits.get(&symbol).map(|bit| 1 << bit)
    }

    pub(crate) fn leave(&mut self, number: u32) {
        let place = &mut self.classes[number as usize];
        let class = place.as_mut().expect("a node leaves the class it is in");
        class.nodes -= 1;
        if class.nodes == 0 {
            self.numbers.remove(&class.traits);
            *place = None;
            self.free.push(number);
        }
    }

    /// `None` for a class without nodes.
    pub(crate) fn get(&self, number: u32) -> Option<&Traits> {
        self.classes[number as usize].as_ref().map(|class| &class.traits)
    }
}
