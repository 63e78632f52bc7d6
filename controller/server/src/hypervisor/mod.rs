//! Hypervisor managers: each drives one kind of hypervisor on one node in its own language.
//!
//! The verbs are libvirt's. Every verb is idempotent: doing again what is so already succeeds, so that a controller
//! that was killed may begin a step again. What a hypervisor lacks stands in its [`Capabilities`], and the verb then
//! answers [`ErrorKind::Unsupported`]; what is not in the map every manager can do. Nothing here knows of customers,
//! jobs or placement, and nothing outside knows how a hypervisor is spoken to.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{Id, IoLimits, NodeCapacity};

pub mod conformance;
pub mod fake;
pub mod qemu;

/// Characters of a disk's serial number at most: virtio's limit.
pub const MAX_SERIAL: usize = 20;

/// How a change of a running domain takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// At once.
    Live,
    /// At the next start; the domain has to be stopped first.
    Restart,
    /// Never.
    Unsupported,
}

/// What a hypervisor can do, said in advance. Xen's libxl, for one, has no snapshots, no block copy and no resize.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// `suspend` and `resume`.
    pub suspend: bool,
    /// `shutdown` reaches the guest (ACPI or an agent).
    pub shutdown: bool,
    /// `attach` and `detach` on a running domain.
    pub hot_plug: bool,
    /// A volume attached to one domain for writing may be attached read-only to another one meanwhile, so that the
    /// utility VM can read the disk of a suspended guest.
    pub shared_read: bool,
    /// More virtual CPUs.
    pub vcpus_up: Change,
    /// Fewer virtual CPUs.
    pub vcpus_down: Change,
    /// More memory.
    pub memory_up: Change,
    /// Less memory.
    pub memory_down: Change,
    /// Larger volumes.
    pub volume_grow: Change,
    /// I/O limits.
    pub io_limits: Change,
    /// CPU pinning and memory by NUMA node.
    pub numa: bool,
    /// Statistics of each CPU, not the sum alone.
    pub per_cpu_statistics: bool,
}

/// What a domain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A customer's.
    Guest,
    /// The node's utility VM.
    Utility,
}

/// A domain to define.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainSpec {
    /// Id; the instance's, or the node's for its utility VM.
    pub id: Id,
    /// Name, for people who look at the hypervisor.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// NUMA nodes of the host it is bound to, where the hypervisor can.
    pub numa: Vec<u8>,
    /// Its disks, in order.
    pub disks: Vec<Attachment>,
    /// Its network interface.
    pub mac: String,
    /// What it boots.
    pub boot: Boot,
}

/// A volume in a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The volume.
    pub volume: Id,
    /// Serial number the domain sees, at most 20 characters.
    pub serial: String,
    /// The domain cannot write to it.
    pub read_only: bool,
    /// Limits.
    pub io_limits: IoLimits,
}

impl Attachment {
    /// Whether one domain cannot have both.
    pub(crate) fn conflicts_with(&self, other: &Self) -> bool {
        self.volume == other.volume || self.serial == other.serial
    }
}

/// What a domain boots.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Boot {
    /// Its first disk, by UEFI.
    Disk,
    /// A kernel given by the hypervisor.
    Kernel {
        /// Path of the kernel on the node.
        kernel: String,
        /// Path of the initial file system on the node.
        initramfs: String,
        /// Kernel command line, without secrets.
        command_line: String,
        /// The utility VM's configuration: handed over by the hypervisor (fw_cfg, xenstore or a config disk). It
        /// holds a private key: readable for the hypervisor alone, and in no log.
        config: String,
        /// TCP port of the domain that the controller must be able to reach.
        service_port: u16,
    },
}

impl fmt::Debug for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => f.write_str("Disk"),
            Self::Kernel { kernel, .. } => write!(f, "Kernel({kernel})"),
        }
    }
}

/// What a domain was found to be doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// Executing.
    Running,
    /// Held.
    Paused,
    /// Not executing: asked for, or the guest powered itself off.
    ShutOff,
    /// Not executing, and nobody asked for it: the hypervisor's process ended, the guest's kernel panicked.
    Crashed,
}

/// A domain as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Id.
    pub id: Id,
    /// What it is for.
    pub role: Role,
    /// What it is doing.
    pub state: DomainState,
    /// Virtual CPUs it has now.
    pub vcpus: u32,
    /// Memory it has now in MiB.
    pub memory_mib: u64,
    /// Volumes attached now, with whether read-only.
    pub disks: Vec<(Id, bool)>,
    /// Changes with every start: who compares two sees whether it was restarted in between.
    pub starts: u64,
}

/// A volume as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its name: the disk's id.
    pub id: Id,
    /// Size in MiB.
    pub size_mib: u64,
    /// Bytes it takes up in the pool.
    pub allocated_bytes: u64,
}

/// Counters of a domain since its start, in base units whatever the hypervisor says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DomainStatistics {
    /// CPU time in nanoseconds, one for each virtual CPU; a single sum where the hypervisor tells no more.
    pub cpu_ns: Vec<u64>,
    /// Memory the domain takes of the host, in bytes.
    pub memory_bytes: u64,
    /// Block devices, by volume.
    pub block: Vec<BlockStatistics>,
    /// Network, all interfaces together; `None` where the hypervisor does not count (QEMU's user networking): that is
    /// not the same as zero.
    pub network: Option<NetworkStatistics>,
}

/// Counters of a block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockStatistics {
    /// The volume.
    pub volume: Id,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Counters of a network interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkStatistics {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
}

/// What is on a node.
#[derive(Debug, Clone, Default)]
pub struct NodeReport {
    /// Domains this controller defined; what others run there is not touched and not told.
    pub domains: Vec<Domain>,
    /// Volumes in the pool.
    pub volumes: Vec<Volume>,
    /// Bytes of the pool that are free.
    pub pool_free_bytes: u64,
    /// CPU time of the host in nanoseconds by core: busy, total.
    pub host_cpu_ns: Vec<(u64, u64)>,
    /// Memory of the host in bytes: available, total.
    pub host_memory_bytes: (u64, u64),
    /// Counters of the running domains.
    pub statistics: Vec<(Id, DomainStatistics)>,
    /// What happened to domains since the last report, oldest first.
    pub events: Vec<DomainEvent>,
}

/// Something that happened to a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainEvent {
    /// The domain.
    pub domain: Id,
    /// What, in libvirt's words: `started`, `shutdown`, `stopped`, `crashed`, `suspended`, `resumed`, `reboot`,
    /// `io-error`.
    pub what: String,
}

/// What to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The hypervisor does not answer; whether the verb took effect is not known.
    Unreachable,
    /// There is no such domain or volume.
    NotFound,
    /// The thing is in a state in which the verb makes no sense (starting what is not defined, deleting an attached
    /// volume, a volume of that name with another size).
    WrongState,
    /// The pool, the host's memory or its CPUs do not suffice.
    NoResources,
    /// Not in this hypervisor; the capability map said so.
    Unsupported,
    /// It took too long; whether the verb took effect is not known.
    TimedOut,
    /// The hypervisor refused or failed.
    Failed,
}

/// Why a verb failed.
#[derive(Debug, Clone)]
pub struct Error {
    /// What to branch on.
    pub kind: ErrorKind,
    /// What was being done, and the hypervisor's own words.
    pub message: String,
}

impl Error {
    /// An error.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Result of a verb.
pub type Result<T> = std::result::Result<T, Error>;

/// One node's hypervisor. Calls block, may come from several threads at once, and end within a minute.
pub trait HypervisorManager: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// What the node has, as found out from the host: vCPUs one for each core, the memory, the pool's size.
    fn capacity(&self) -> Result<NodeCapacity>;

    /// Everything there is, and the counters.
    fn report(&self) -> Result<NodeReport>;

    /// One domain.
    fn domain(&self, id: Id) -> Result<Option<Domain>>;

    /// One volume.
    fn volume(&self, id: Id) -> Result<Option<Volume>>;

    /// A new volume that reads as zeroes. One of that name and size that is there already is left as it is.
    fn create_volume(&self, id: Id, size_mib: u64) -> Result<Volume>;

    /// Makes a volume larger, under a running domain too where the capability says `live`.
    fn grow_volume(&self, id: Id, size_mib: u64) -> Result<Volume>;

    /// Deletes a volume that no domain has attached; one that is not there is deleted already.
    fn delete_volume(&self, id: Id) -> Result<()>;

    /// Defines a domain, or changes the definition of one; what is running goes on with what it has until its next
    /// start.
    fn define(&self, spec: &DomainSpec) -> Result<()>;

    /// Forgets a domain that is not running; one that is not there is forgotten already.
    fn undefine(&self, id: Id) -> Result<()>;

    /// Starts a domain; one that is running or paused is left as it is.
    fn start(&self, id: Id) -> Result<()>;

    /// Asks the guest to power off, and returns at once.
    fn shutdown(&self, id: Id) -> Result<()>;

    /// Powers off at once; what does not run is off already.
    fn destroy(&self, id: Id) -> Result<()>;

    /// Holds a running domain.
    fn suspend(&self, id: Id) -> Result<()>;

    /// Lets a held domain go on.
    fn resume(&self, id: Id) -> Result<()>;

    /// Resets a running domain.
    fn reboot(&self, id: Id) -> Result<()>;

    /// Attaches a volume to a domain, running or not; stays until it is detached. For writing, a volume is attached
    /// to one domain only.
    fn attach(&self, id: Id, attachment: &Attachment) -> Result<()>;

    /// Detaches a volume, and returns when the domain has let go of it; one that is not attached is detached
    /// already. A guest that is held cannot let go: [`ErrorKind::WrongState`].
    fn detach(&self, id: Id, volume: Id) -> Result<()>;

    /// Changes the number of virtual CPUs of a running domain, where the capability says `live`.
    fn set_vcpus(&self, id: Id, vcpus: u32) -> Result<()>;

    /// Changes the memory of a running domain, where the capability says `live`.
    fn set_memory(&self, id: Id, memory_mib: u64) -> Result<()>;

    /// Changes the limits of an attached volume.
    fn set_io_limits(&self, id: Id, volume: Id, limits: IoLimits) -> Result<()>;

    /// Where the service port of a running domain that boots a kernel is reached from the controller.
    fn service_address(&self, id: Id) -> Result<SocketAddr>;
}
