//! Where a machine goes: a snapshot of the grid in memory, and one pure question to it.
//!
//! The caller keeps one [`Snapshot`], tells it of nodes as they come, change and go, and asks
//! [`place`] where a [`Demand`] fits. The answer is a [`Placement`] (node, NUMA nodes, why) or a
//! [`Refusal`] (what each node fell at, and the least change that would fit). [`Snapshot::reserve`]
//! makes an [`Allocation`] of a placement; the caller stores it with the instance, gives it back with
//! [`Snapshot::release`], and after a restart puts it in again with [`Snapshot::restore`].
//!
//! There is no clock, no I/O, no randomness: the same calls give the same answers. Of equal nodes the
//! one registered in the lowest slot wins.
//!
//! A demand passes the filters in the order of [`Filter::ALL`]; what is left is scored. The terms are in
//! [`Score`], their weights and what they are for in [`Weights`].
//!
//! # Groups
//!
//! [`Rule::Affinity`] and [`Rule::AntiAffinity`] say whether members share a place, and [`Level`] says
//! what a place is: one node, or one fault domain (rack). [`Rule::Partition`] numbers the parts of a
//! group; members of different parts never share a fault domain, so that a fault of one domain stops
//! one part. A node without a fault domain is a domain of its own: nothing is known to fail with it.
//! One member's rule looks at all members of its group, whatever their rules.
//!
//! # Units
//!
//! Memory and storage are in MiB. A node's vCPUs are those that may be given away: who wants
//! overcommitment multiplies before registering the node.

mod allocation;
mod class;
mod demand;
mod domain;
mod error;
mod filter;
mod group;
mod near;
mod numa;
mod place;
mod refusal;
mod reserve;
mod score;
mod snapshot;
mod spec;
mod view;
mod words;

pub use allocation::{Allocation, Amounts, Placement, Share};
pub use demand::{Demand, Group, Level, Rule, Workload};
pub use error::{Error, ErrorKind, Result};
pub use filter::Filter;
pub use place::place;
pub use refusal::{Change, Refusal};
pub use score::{Score, Weights};
pub use snapshot::{
    MAX_LABELS, MAX_LICENSES, MAX_MEMORY_MIB, MAX_NODES, MAX_STORAGE_MIB, MAX_VCPUS, Snapshot,
};
pub use spec::{License, MAX_NUMA, NodeId, NodeSpec, NodeState, Numa, Suitability};
pub use view::{NodeView, NumaView, Totals};
pub use words::{MAX_WORD_BYTES, MAX_WORDS, Symbol};
