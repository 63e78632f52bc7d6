//! Workflows as data: what a job does, step by step, and what takes each step back.

use serde::{Deserialize, Serialize};

use crate::model::{Id, InstanceChange, IoLimits, Job, Millis, PowerState, PowerVerb};
use crate::store::InstanceConfig;

/// Where a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the node's utility VM, writable.
    Utility,
    /// In the node's utility VM, read-only.
    UtilityReadOnly,
    /// In its instance.
    Instance,
}

/// One thing to bring about. `do` brings it about, `verify` looks whether it is so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Nothing: a step that has nothing to take back.
    Nothing,
    /// The utility VM is in service.
    EnsureUtilityVm {
        /// The node.
        node: Id,
    },
    /// The utility VM was started anew.
    RestartUtilityVm {
        /// The node.
        node: Id,
    },
    /// The volume is there.
    CreateVolume {
        /// The disk.
        disk: Id,
    },
    /// The volume is not there.
    DeleteVolume {
        /// The disk.
        disk: Id,
    },
    /// The volume has its new size.
    GrowVolume {
        /// The disk.
        disk: Id,
        /// The size.
        size_mib: u64,
    },
    /// The disk's record has the size that the volume really has.
    MeasureVolume {
        /// The disk.
        disk: Id,
    },
    /// The disk is attached.
    Attach {
        /// The disk.
        disk: Id,
        /// Where.
        to: Place,
    },
    /// The disk is not attached there.
    Detach {
        /// The disk.
        disk: Id,
        /// Where.
        from: Place,
    },
    /// The disk is a machine, made of an OCI image.
    Provision {
        /// The disk.
        disk: Id,
        /// The image.
        image: Id,
    },
    /// The disk has the contents of another.
    Clone {
        /// From.
        source: Id,
        /// To.
        target: Id,
    },
    /// The image has the contents of the disk.
    Capture {
        /// The disk.
        disk: Id,
        /// The image.
        image: Id,
    },
    /// The disk has the contents of the captured image.
    Restore {
        /// The image.
        image: Id,
        /// The disk.
        disk: Id,
    },
    /// The utility VM's job of the step that is taken back has ended.
    CancelUvmJob {
        /// The node.
        node: Id,
    },
    /// Nothing of the disk's contents can be read any more.
    Sanitize {
        /// The disk.
        disk: Id,
    },
    /// The machine on the disk has this host name.
    SetHostname {
        /// The disk.
        disk: Id,
        /// The name.
        hostname: String,
    },
    /// The instance's domain is defined as the instance's record says.
    Define {
        /// The instance.
        instance: Id,
    },
    /// It is not defined.
    Undefine {
        /// The instance.
        instance: Id,
    },
    /// The domain does what the verb says.
    Power {
        /// The instance.
        instance: Id,
        /// The verb.
        verb: PowerVerb,
    },
    /// The running domain has so many CPUs.
    SetVcpus {
        /// The instance.
        instance: Id,
        /// How many.
        vcpus: u32,
    },
    /// The running domain has so much memory.
    SetMemory {
        /// The instance.
        instance: Id,
        /// How much.
        memory_mib: u64,
    },
    /// The disk has these limits.
    SetIoLimits {
        /// The instance.
        instance: Id,
        /// The disk.
        disk: Id,
        /// Limits.
        limits: IoLimits,
    },
    /// The instance's record has the amounts that its running domain really has.
    MeasureDomain {
        /// The instance.
        instance: Id,
    },
    /// A domain nobody knows is gone.
    RemoveDomain {
        /// The node.
        node: Id,
        /// Its id.
        domain: Id,
    },
}

/// A step as planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// What is brought about.
    pub action: Action,
    /// What takes it back, in order, where a later step fails.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Action>,
    /// How long one attempt may take, in milliseconds.
    pub deadline_ms: u64,
}

/// A job with its inner workings: everything needed to go on with it after a crash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// What the API tells.
    pub job: Job,
    /// The steps, as many as `job.steps`.
    pub plan: Vec<Planned>,
    /// The step at work, forward or being taken back.
    pub at: usize,
    /// Of a step being taken back: which of its undo actions.
    #[serde(default)]
    pub undo_at: usize,
    /// From this step on it goes on to its end whatever happens: nothing it does can be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firm_from: Option<usize>,
    /// When the step at work gives up.
    pub deadline: Millis,
    /// Things it holds, as `instances/0192…`.
    pub holds: Vec<String>,
    /// What the machine is made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Box<InstanceConfig>>,
    /// What is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<InstanceChange>,
    /// Of a control message: what was wanted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_before: Option<PowerState>,
    /// Records that belong to it: the image, the snapshot, the new instance's disks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Id>,
}

impl JobRecord {
    /// Whether it goes on to its end whatever happens.
    pub fn is_firm(&self) -> bool {
        self.firm_from.is_some_and(|from| self.at >= from)
    }
}
