//! The real grid: hypervisor managers, opened once for each node, and utility VMs over HTTPS.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::perform::hypervisor_error;
use super::work::uvm_error;
use super::{BlobPlace, NodeAddress, Nodes, SERVICE_PORT, Site, perform};
use crate::blobs::{Blobs, Verb};
use crate::ca::{self, Authority};
use crate::core::{Call, CallAnswer, CallError, CallErrorKind};
use crate::hypervisor::qemu::{QemuManager, QemuOptions};
use crate::hypervisor::{self, Boot, ErrorKind, HypervisorManager};
use crate::model::{Id, Millis, NodeCapacity, Progress};
use crate::uvm::{HttpsUtilityVm, UtilityVm};

/// How long what a node has is taken for true.
const CAPACITY_AGE: Duration = Duration::from_secs(600);
/// How long a client of a utility VM is used, its certificate with it.
const CLIENT_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A node that was not called for so long is closed.
const IDLE: Duration = Duration::from_secs(3600);

/// A node's hypervisor, and its utility VM where that is not reached over HTTPS.
#[derive(Clone)]
pub struct Opened {
    /// The hypervisor.
    pub manager: Arc<dyn HypervisorManager>,
    /// The utility VM of a fake; a real one is found through the hypervisor.
    pub utility: Option<Arc<dyn UtilityVm>>,
}

/// Opens a node by its kind of hypervisor.
pub type Factory = Box<dyn Fn(&NodeAddress) -> hypervisor::Result<Opened> + Send + Sync>;

/// Opens nodes of kind `qemu`, whose address is a folder of this machine.
pub fn qemu(options: QemuOptions) -> Factory {
    Box::new(move |node| {
        if node.hypervisor != "qemu" {
            let message = format!("there is no manager for hypervisors of kind {:?}", node.hypervisor);
            return Err(hypervisor::Error::new(ErrorKind::Unsupported, message));
        }
        let manager = QemuManager::open(Path::new(&node.address), options.clone())?;
        Ok(Opened { manager: Arc::new(manager), utility: None })
    })
}

/// What utility VMs boot, and how they reach the controller.
#[derive(Debug, Clone)]
pub struct GridOptions {
    /// Path of the appliance's kernel on the nodes.
    pub kernel: PathBuf,
    /// Path of its initial file system on the nodes.
    pub initramfs: PathBuf,
    /// Its kernel command line; see [`command_line`].
    pub command_line: String,
    /// URL of the controller's API as utility VMs reach it. Under QEMU's user networking the host is 10.0.2.2.
    pub controller_url: String,
    /// Names for utility VMs to know, where the URL has one that no name server tells.
    pub hosts: BTreeMap<String, IpAddr>,
}

/// The appliance's kernel command line.
pub fn command_line(translated: bool) -> String {
    // Calibrating the local APIC's timer waits for ticks that come late where instructions are translated.
    let more = if translated { " nolapic_timer" } else { "" };
    format!("console=ttyS0 quiet{more}")
}

/// See the module.
pub struct GridNodes {
    options: GridOptions,
    authority: Arc<Authority>,
    blobs: Arc<Blobs>,
    factory: Factory,
    started: Instant,
    slots: Mutex<HashMap<Id, Slot>>,
}

/// A node's place; opening it, which may take long, holds up nobody but those who call the same node.
struct Slot {
    open: Arc<Mutex<Option<Arc<OpenNode>>>>,
    used: Instant,
}

struct OpenNode {
    node: NodeAddress,
    opened: Opened,
    client: Mutex<Option<CachedClient>>,
    capacity: Mutex<Option<(Instant, NodeCapacity)>>,
    boot: Mutex<()>,
}

struct CachedClient {
    address: SocketAddr,
    made: Instant,
    utility: Arc<dyn UtilityVm>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(Millis::MAX)
}

impl GridNodes {
    /// A grid whose nodes are opened by `factory`.
    pub fn new(options: GridOptions, authority: Arc<Authority>, blobs: Arc<Blobs>, factory: Factory) -> Self {
        let slots = Mutex::default();
        Self { options, authority, blobs, factory, started: Instant::now(), slots }
    }

    fn open(&self, node: &NodeAddress) -> Result<Arc<OpenNode>, CallError> {
        let slot = {
            let (mut slots, used) = (lock(&self.slots), Instant::now());
            if !slots.contains_key(&node.id) {
                slots.retain(|_, slot| used.duration_since(slot.used) < IDLE);
            }
            let slot = slots.entry(node.id).or_insert_with(|| Slot { open: Arc::default(), used });
            slot.used = used;
            Arc::clone(&slot.open)
        };
        let mut open = lock(&slot);
        if let Some(open) = open.as_ref().filter(|open| open.node == *node) {
            return Ok(Arc::clone(open));
        }
        // Two managers of one node must not be at work.
        *open = None;
        let opened = (self.factory)(node).map_err(hypervisor_error)?;
        let (client, capacity, boot) = (Mutex::default(), Mutex::default(), Mutex::default());
        let fresh = Arc::new(OpenNode { node: node.clone(), opened, client, capacity, boot });
        *open = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

impl Nodes for GridNodes {
    fn perform(
        &self,
        node: &NodeAddress,
        call: &Call,
        on_progress: &mut dyn FnMut(Progress),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<CallAnswer, CallError> {
        let open = self.open(node)?;
        perform(&GridSite { grid: self, open: &open }, call, on_progress, cancelled)
    }
}

struct GridSite<'a> {
    grid: &'a GridNodes,
    open: &'a OpenNode,
}

impl GridSite<'_> {
    fn service_address(&self) -> Result<SocketAddr, CallError> {
        self.manager().service_address(self.open.node.id).map_err(|error| match error.kind {
            ErrorKind::Unreachable | ErrorKind::TimedOut => hypervisor_error(error),
            _ => CallError::new(CallErrorKind::UtilityVmAway, error.message),
        })
    }

    fn client(&self, address: SocketAddr, patience: Option<Duration>) -> Result<HttpsUtilityVm, CallError> {
        let (name, authority) = (&self.open.node.name, &self.grid.authority);
        let identity = authority.issue_client("utility VM controller", now()).map_err(|e| ca_error(&e))?;
        let root = authority.certificate_pem();
        match patience {
            None => HttpsUtilityVm::new(address, name, root, &identity),
            Some(patience) => HttpsUtilityVm::with_patience(address, name, root, &identity, patience),
        }
        .map_err(uvm_error)
    }
}

impl Site for GridSite<'_> {
    fn node(&self) -> &NodeAddress {
        &self.open.node
    }

    fn manager(&self) -> &dyn HypervisorManager {
        &*self.open.opened.manager
    }

    fn utility(&self) -> Result<Arc<dyn UtilityVm>, CallError> {
        if let Some(utility) = &self.open.opened.utility {
            return Ok(Arc::clone(utility));
        }
        let address = self.service_address()?;
        let mut cached = lock(&self.open.client);
        if let Some(client) = cached.as_ref()
            && client.address == address
            && client.made.elapsed() < CLIENT_AGE
        {
            return Ok(Arc::clone(&client.utility));
        }
        let utility: Arc<dyn UtilityVm> = Arc::new(self.client(address, None)?);
        *cached = Some(CachedClient { address, made: Instant::now(), utility: Arc::clone(&utility) });
        Ok(utility)
    }

    fn probe(&self, patience: Duration) -> Result<uvm_api::Node, CallError> {
        if let Some(utility) = &self.open.opened.utility {
            return utility.node().map_err(uvm_error);
        }
        self.client(self.service_address()?, Some(patience))?.node().map_err(uvm_error)
    }

    fn utility_boot(&self) -> Result<Boot, CallError> {
        let (node, authority, options) = (&self.open.node, &self.grid.authority, &self.grid.options);
        let identity = authority.issue_node(&node.name, &[], now()).map_err(|error| ca_error(&error))?;
        let config = json!({
            "node": node.name,
            "hosts": options.hosts,
            "api": {
                "certificate": identity.certificate,
                "private_key": *identity.private_key,
                "client_ca": authority.certificate_pem(),
            },
            "image_store_ca": authority.certificate_pem(),
        });
        Ok(Boot::Kernel {
            kernel: options.kernel.display().to_string(),
            initramfs: options.initramfs.display().to_string(),
            command_line: options.command_line.clone(),
            config: config.to_string(),
            service_port: SERVICE_PORT,
        })
    }

    fn boot_turn(&self) -> Option<MutexGuard<'_, ()>> {
        Some(lock(&self.open.boot))
    }

    fn blob(&self, verb: Verb, image: Id) -> BlobPlace {
        let base = self.grid.options.controller_url.trim_end_matches('/');
        BlobPlace {
            url: format!("{base}/v1/blobs/{image}"),
            authorization: self.grid.blobs.authorization(verb, image),
        }
    }

    fn capacity(&self) -> hypervisor::Result<NodeCapacity> {
        if let Some((found, capacity)) = &*lock(&self.open.capacity)
            && found.elapsed() < CAPACITY_AGE
        {
            return Ok(capacity.clone());
        }
        let capacity = self.manager().capacity()?;
        *lock(&self.open.capacity) = Some((Instant::now(), capacity.clone()));
        Ok(capacity)
    }

    fn now(&self) -> Duration {
        self.grid.started.elapsed()
    }

    fn sleep(&self, pause: Duration) {
        std::thread::sleep(pause);
    }
}

fn ca_error(error: &ca::Error) -> CallError {
    let kind = match error.kind {
        ca::ErrorKind::Refused => CallErrorKind::Permanent,
        ca::ErrorKind::Failed => CallErrorKind::Transient,
    };
    let causes = error.source.iter().map(ToString::to_string).collect();
    CallError { causes, ..CallError::new(kind, error.to_string()) }
}
