//! Calls to nodes: each [`Call`] of the core becomes verbs of the node's hypervisor manager and jobs of its utility VM,
//! here and nowhere else. The grid, tests with fakes and simulations all go through [`perform`]; what is different
//! among them is a [`Site`].

mod grid;
mod local;
mod perform;
mod utility;
mod work;

#[cfg(test)]
mod tests;

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

pub use grid::{Factory, GridNodes, GridOptions, Opened, command_line, qemu};
pub use local::LocalSite;
pub use perform::perform;

use crate::blobs::Verb;
use crate::core::{Call, CallAnswer, CallError};
use crate::hypervisor::{self, Boot, HypervisorManager};
use crate::model::{Id, NodeCapacity, Progress};
use crate::uvm::UtilityVm;

/// The port on which a utility VM serves its API.
pub const SERVICE_PORT: u16 = 8443;

/// What must be known of a node to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddress {
    /// Id; also that of the domain of its utility VM.
    pub id: Id,
    /// Name; also that of its utility VM's certificate.
    pub name: String,
    /// Kind of hypervisor.
    pub hypervisor: String,
    /// Where the hypervisor is reached.
    pub address: String,
}

/// Whoever can call nodes.
pub trait Nodes: Send + Sync {
    /// Makes a call and returns with its outcome. Progress of a utility VM's job is reported meanwhile. Once
    /// `cancelled` says so, nobody waits for the outcome: a wait ends, and what was begun on the node goes on.
    fn perform(
        &self,
        node: &NodeAddress,
        call: &Call,
        on_progress: &mut dyn FnMut(Progress),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<CallAnswer, CallError>;
}

/// Where a captured disk is in the controller's image store, and the `Authorization` that opens it.
#[derive(Clone)]
pub struct BlobPlace {
    /// URL, as utility VMs reach it.
    pub url: String,
    /// Value of the header.
    pub authorization: String,
}

/// A node while a call is made to it.
pub trait Site {
    /// Which one.
    fn node(&self) -> &NodeAddress;

    /// Its hypervisor.
    fn manager(&self) -> &dyn HypervisorManager;

    /// Its utility VM, where that runs now.
    fn utility(&self) -> Result<Arc<dyn UtilityVm>, CallError>;

    /// Asks a utility VM that may be booting still whether it is in service; connecting may take so long.
    fn probe(&self, _patience: Duration) -> Result<uvm_api::Node, CallError> {
        self.utility()?.node().map_err(work::uvm_error)
    }

    /// What its utility VM boots, with a certificate made for this start.
    fn utility_boot(&self) -> Result<Boot, CallError>;

    /// Only who has this starts the utility VM: two who do it at once would not agree on its definition.
    fn boot_turn(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }

    /// Where an image is in the controller's image store.
    fn blob(&self, verb: Verb, image: Id) -> BlobPlace;

    /// What the node has, found out not long ago.
    fn capacity(&self) -> hypervisor::Result<NodeCapacity> {
        self.manager().capacity()
    }

    /// Time since some moment.
    fn now(&self) -> Duration;

    /// Lets time go by.
    fn sleep(&self, pause: Duration);
}
