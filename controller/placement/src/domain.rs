//! Fault domains: what they have free together, and the groups that will want more of it.
//!
//! A group that must stay within one domain is refused once the domain is full, however empty the grid
//! is. Nobody says in advance how large a group will become, so each such group claims room for
//! [`crate::Weights::group_room`] members of its largest size. A claim is soft: where it runs short, others are asked to
//! go elsewhere by [`crate::Weights::claim`], and still come if there is no elsewhere.

use std::collections::HashMap;

use crate::Symbol;
use crate::numa::Shape;

/// A group that stays in this domain.
#[derive(Debug, Clone, Copy)]
struct Claim {
    group: Symbol,
    members: u64,
    shape: Shape,
}

/// What a named domain has free, on nodes that are ready. Of a node by itself it stays empty: it is no
/// room that could be kept whole for many.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    pub(crate) vcpus: u64,
    pub(crate) memory_mib: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Domain {
    /// `None` is a node by itself.
    pub(crate) name: Option<Symbol>,
    /// Slots of its nodes.
    pub(crate) nodes: Vec<u32>,
    claims: Vec<Claim>,
    group_room: u64,
    /// Machines that claims ask room for.
    pub(crate) wanted: u64,
    /// What every claim fits into.
    pub(crate) shape: Shape,
    /// Machines of that shape that still fit, on nodes that are ready.
    pub(crate) copies: u64,
}

impl Domain {
    /// Whether one machine more would take room that is claimed.
    pub(crate) fn is_short(&self) -> bool {
        self.wanted > 0 && self.copies <= self.wanted
    }

    /// Says how many members of a group stay here now, none included; true where the shape has changed,
    /// and `copies` must be counted anew.
    pub(crate) fn claim(&mut self, group: Symbol, members: u64, shape: Shape) -> bool {
        self.claims.retain(|claim| claim.group != group);
        if members > 0 {
            self.claims.push(Claim { group, members, shape });
        }
        self.reshape()
    }

    pub(crate) fn forget_claims(&mut self) {
        self.claims.clear();
        self.reshape();
    }

    fn reshape(&mut self) -> bool {
        // However large it is, a group may become a quarter larger.
        let wanted = |claim: &Claim| self.group_room.saturating_sub(claim.members).max(claim.members / 4);
        self.wanted = self.claims.iter().map(wanted).sum();
        let shape = self.claims.iter().fold(Shape::default(), |shape, claim| shape.max(claim.shape));
        std::mem::replace(&mut self.shape, shape) != shape
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Domains {
    numbers: HashMap<Symbol, u32>,
    pub(crate) domains: Vec<Domain>,
    /// One for each of `domains`.
    pub(crate) rooms: Vec<Room>,
    free: Vec<u32>,
    group_room: u64,
}

impl Domains {
    pub(crate) fn new(group_room: i64) -> Self {
        Self { group_room: group_room.unsigned_abs(), ..Self::default() }
    }

    /// Puts a node into the domain of that name, or into one of its own.
    pub(crate) fn enter(&mut self, name: Option<Symbol>, slot: u32) -> u32 {
        let known = name.and_then(|name| self.numbers.get(&name).copied());
        let number = known.unwrap_or_else(|| self.open(name));
        self.domains[number as usize].nodes.push(slot);
        number
    }

    fn open(&mut self, name: Option<Symbol>) -> u32 {
        let number = self.free.pop().unwrap_or(self.domains.len() as u32);
        if number as usize == self.domains.len() {
            self.domains.push(Domain::default());
            self.rooms.push(Room::default());
        }
        self.domains[number as usize] = Domain { name, group_room: self.group_room, ..Domain::default() };
        if let Some(name) = name {
            self.numbers.insert(name, number);
        }
        number
    }

    pub(crate) fn leave(&mut self, number: u32, slot: u32) {
        let domain = &mut self.domains[number as usize];
        domain.nodes.retain(|node| *node != slot);
        if domain.nodes.is_empty() {
            if let Some(name) = domain.name {
                self.numbers.remove(&name);
            }
            *domain = Domain::default();
            self.rooms[number as usize] = Room::default();
            self.free.push(number);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.domains.len() - self.free.len()
    }
}
