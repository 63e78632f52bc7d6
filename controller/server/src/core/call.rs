//! Calls to nodes: the uniform messages, before a manager translates them into its hypervisor's language.

use crate::hypervisor::{Attachment, Capabilities, Domain, DomainSpec, NodeReport, Volume};
use crate::model::{Id, ImageContents, IoLimits, NodeCapacity};
use crate::store::InstanceConfig;

/// A call to a node. Each is idempotent: it may be made again whatever became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// Everything there is, statistics, and whether the utility VM is in service.
    Observe,
    /// One domain.
    InspectDomain(Id),
    /// One volume.
    InspectVolume(Id),
    /// A new volume.
    CreateVolume {
        /// Its name.
        volume: Id,
        /// Its size.
        size_mib: u64,
    },
    /// A larger volume.
    GrowVolume {
        /// Its name.
        volume: Id,
        /// Its new size.
        size_mib: u64,
    },
    /// No volume.
    DeleteVolume(Id),
    /// A definition.
    Define(Box<DomainSpec>),
    /// No definition.
    Undefine(Id),
    /// Switch on.
    Start(Id),
    /// Ask the guest to power off.
    Shutdown(Id),
    /// Power off.
    Destroy(Id),
    /// Hold.
    Suspend(Id),
    /// Go on.
    Resume(Id),
    /// Reset.
    Reboot(Id),
    /// A volume for a domain.
    Attach {
        /// The domain.
        domain: Id,
        /// What.
        attachment: Attachment,
    },
    /// A volume away from a domain.
    Detach {
        /// The domain.
        domain: Id,
        /// The volume.
        volume: Id,
    },
    /// More or fewer CPUs for a running domain.
    SetVcpus {
        /// The domain.
        domain: Id,
        /// How many.
        vcpus: u32,
    },
    /// More or less memory for a running domain.
    SetMemory {
        /// The domain.
        domain: Id,
        /// How much.
        memory_mib: u64,
    },
    /// Other limits of an attached volume.
    SetIoLimits {
        /// The domain.
        domain: Id,
        /// The volume.
        volume: Id,
        /// Limits.
        limits: IoLimits,
    },
    /// The node's utility VM defined, running and answering: started where it is not.
    EnsureUtilityVm,
    /// The node's utility VM powered off, and started anew.
    RestartUtilityVm,
    /// Which of these serial numbers the utility VM sees.
    UvmDevices(Vec<String>),
    /// A job of the utility VM, from submission to its end.
    UvmJob {
        /// Its id: the idempotency key.
        id: String,
        /// What.
        work: Box<UvmWork>,
    },
    /// The end of a job of the utility VM: asked for and waited for.
    CancelUvmJob(String),
}

/// What a utility VM is to do, by serial number.
#[derive(Debug, Clone, PartialEq)]
pub enum UvmWork {
    /// Make a machine of an OCI image.
    Provision {
        /// The disk.
        serial: String,
        /// Its size in MiB.
        size_mib: u64,
        /// The image.
        contents: ImageContents,
        /// What makes it the customer's.
        config: Box<InstanceConfig>,
    },
    /// A disk's contents onto another.
    Clone {
        /// From.
        source: String,
        /// To.
        target: String,
    },
    /// A disk's contents into the controller's image store.
    Capture {
        /// The disk.
        serial: String,
        /// The image.
        image: Id,
    },
    /// A captured image onto a disk.
    Restore {
        /// The disk.
        serial: String,
        /// The image.
        image: Id,
        /// Its stream.
        contents: ImageContents,
    },
    /// Overwrite a disk and read it back.
    Sanitize {
        /// The disk.
        serial: String,
        /// Its size in MiB.
        size_mib: u64,
    },
    /// Give an installed machine another host name.
    SetHostname {
        /// The disk.
        serial: String,
        /// The name.
        hostname: String,
    },
}

/// What a call brought.
#[derive(Debug, Clone)]
pub enum CallAnswer {
    /// Done.
    Done,
    /// Of `Observe`.
    Observed(Box<Observation>),
    /// Of `InspectDomain`.
    Domain(Option<Box<Domain>>),
    /// Of `InspectVolume`.
    Volume(Option<Volume>),
    /// Of `UvmDevices`: those it sees.
    Devices(Vec<String>),
    /// Of `UvmJob`: the job that succeeded.
    UvmJob(Box<uvm_api::Job>),
}

/// What a look at a node showed.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The hypervisor's report.
    pub report: NodeReport,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What the node has, as found out from the host.
    pub capacity: NodeCapacity,
    /// The utility VM's word, where it answers.
    pub utility: Option<Box<uvm_api::Node>>,
    /// Jobs the utility VM runs now.
    pub uvm_jobs_running: usize,
}

/// Why a call failed.
#[derive(Debug, Clone)]
pub struct CallError {
    /// What to branch on.
    pub kind: CallErrorKind,
    /// In words.
    pub message: String,
    /// Causes, outermost first.
    pub causes: Vec<String>,
}

/// What to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallErrorKind {
    /// No answer; whether it took effect is not known. Begin again.
    Unreachable,
    /// The utility VM does not answer. Begin again once it is in service.
    UtilityVmAway,
    /// There is no such thing.
    NotFound,
    /// The thing is in a state in which that makes no sense.
    WrongState,
    /// Resources do not suffice.
    NoResources,
    /// Not in this hypervisor.
    Unsupported,
    /// Failed; the same again may succeed.
    Transient,
    /// Failed; the same again fails again.
    Permanent,
}

impl CallError {
    /// An error.
    pub fn new(kind: CallErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new() }
    }
}
