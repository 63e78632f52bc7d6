//! A node within this process, for fakes and simulations: no certificates, and time that goes by at once.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::{BlobPlace, NodeAddress, SERVICE_PORT, Site};
use crate::blobs::Verb;
use crate::core::CallError;
use crate::hypervisor::{Boot, HypervisorManager};
use crate::model::Id;
use crate::uvm::UtilityVm;

/// See the module.
pub struct LocalSite<'a> {
    node: &'a NodeAddress,
    manager: &'a dyn HypervisorManager,
    utility: Arc<dyn UtilityVm>,
    now: Cell<Duration>,
}

impl<'a> LocalSite<'a> {
    /// A node of that hypervisor and utility VM.
    pub fn new(
        node: &'a NodeAddress,
        manager: &'a dyn HypervisorManager,
        utility: Arc<dyn UtilityVm>,
    ) -> Self {
        Self { node, manager, utility, now: Cell::new(Duration::ZERO) }
    }
}

impl Site for LocalSite<'_> {
    fn node(&self) -> &NodeAddress {
        self.node
    }

    fn manager(&self) -> &dyn HypervisorManager {
        self.manager
    }

    fn utility(&self) -> Result<Arc<dyn UtilityVm>, CallError> {
        Ok(Arc::clone(&self.utility))
    }

    fn utility_boot(&self) -> Result<Boot, CallError> {
        Ok(Boot::Kernel {
            kernel: "vmlinux".to_owned(),
            initramfs: "initramfs".to_owned(),
            command_line: String::new(),
            config: "{}".to_owned(),
            service_port: SERVICE_PORT,
        })
    }

    fn blob(&self, _: Verb, image: Id) -> BlobPlace {
        BlobPlace { url: format!("https://controller/v1/blobs/{image}"), authorization: String::new() }
    }

    fn now(&self) -> Duration {
        self.now.get()
    }

    fn sleep(&self, pause: Duration) {
        self.now.set(self.now.get() + pause);
    }
}
