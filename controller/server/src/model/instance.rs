//! Instances: a customer's machines.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uvm_api::{BootSpec, CustomizeSpec, PartitionSpec};

use super::{Id, Millis, Problem};

/// What a machine is asked to do, and what is found on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerState {
    /// Executing.
    Running,
    /// Not executing; its memory is gone.
    Stopped,
    /// Held; its memory is kept.
    Paused,
    /// Ended without having been asked to.
    Crashed,
    /// There is no domain on the node yet, or none any more.
    Absent,
    /// The node does not answer. Never the same as `stopped`.
    Unknown,
}

/// A customer's machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Id.
    pub id: Id,
    /// Owner.
    pub project: String,
    /// Name, unique in the project.
    pub name: String,
    /// Counts every change of what is wanted; the `ETag`.
    pub generation: u64,
    /// The node it is on.
    pub node: Id,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Its disks, the boot disk first.
    pub disks: Vec<Id>,
    /// The image it was made of, where it was made of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Id>,
    /// MAC address of its network interface.
    pub mac: String,
    /// Where it may run and beside whom.
    #[serde(default, skip_serializing_if = "PlacementRequest::is_default")]
    pub placement: PlacementRequest,
    /// What is wanted.
    pub desired_state: PowerState,
    /// What was found last.
    pub observed_state: PowerState,
    /// When that was.
    pub observed_at: Millis,
    /// The job that holds it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_job: Option<Id>,
    /// Shares of the node's NUMA nodes it was given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<NumaShare>,
    /// Public half of the guest's SSH host key, as the job that made it reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host_key: Option<String>,
    /// Set once it exists whole: provisioned and defined.
    pub provisioned: bool,
    /// It is being deleted and will not come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
    /// Restarts by the controller after crashes, since the last one that was asked for.
    #[serde(default)]
    pub restarts: u32,
    /// Why the last job on it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_problem: Option<Box<Problem>>,
    /// When it was asked for.
    pub created_at: Millis,
}

/// What an instance holds of one NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumaShare {
    /// Number of the NUMA node.
    pub numa: u8,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// `POST /v1/instances`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceRequest {
    /// Name, unique in the project: letters, digits, `-`, `.`; the host name where `customize` has none.
    pub name: String,
    /// Owner; the token's own project where it is missing. Operators may name any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The boot disk first.
    pub disks: Vec<DiskRequest>,
    /// Name or id of the image; an empty disk where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Layout of the boot disk; the utility VM's default where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionSpec>,
    /// What makes the machine the customer's.
    #[serde(default)]
    pub customize: CustomizeSpec,
    /// How it boots.
    #[serde(default)]
    pub boot: BootSpec,
    /// Where it may run and beside whom.
    #[serde(default)]
    pub placement: PlacementRequest,
    /// Whether it is started once it is made.
    #[serde(default = "yes")]
    pub start: bool,
}

fn yes() -> bool {
    true
}

/// A disk of a new instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskRequest {
    /// Size in MiB.
    pub size_mib: u64,
    /// Name; made from the instance's where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Limits of its I/O.
    #[serde(default, skip_serializing_if = "IoLimits::is_default")]
    pub io_limits: IoLimits,
}

/// Limits of a disk's I/O; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    /// Bytes per second, reading and writing together.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Operations per second, reading and writing together.
    #[serde(default)]
    pub operations_per_second: u64,
}

impl IoLimits {
    /// Whether nothing is limited.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where an instance may run, and beside whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacementRequest {
    /// The one node it may be on, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Kinds of hypervisor it may run under; any where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hypervisors: Vec<String>,
    /// Labels the node must have, as `key=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// NUMA nodes it is spread over evenly; 1 where it is 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub numa_nodes: u8,
    /// A group and its rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupRequest>,
    /// License it uses up, by the name of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// What it mostly does.
    #[serde(default, skip_serializing_if = "Workload::is_default")]
    pub workload: Workload,
    /// No other project's machines on its node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
}

fn is_zero(number: &u8) -> bool {
    *number == 0
}

impl PlacementRequest {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A group of one project's instances and the rule that holds among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRequest {
    /// Name, in the project.
    pub name: String,
    /// The rule.
    pub rule: GroupRule,
}

/// What holds among the members of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GroupRule {
    /// All on one node.
    Affinity,
    /// No two on one node.
    AntiAffinity,
    /// No two in one fault domain (rack).
    FaultDomain,
}

/// What a machine mostly does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// A bit of everything.
    #[default]
    General,
    /// Disks.
    IoHeavy,
    /// Network.
    NetworkHeavy,
}

impl Workload {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Control messages: `POST /v1/instances/{id}/{verb}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerVerb {
    /// Switch on.
    Start,
    /// Ask the guest to power off.
    Shutdown,
    /// Power off at once. Nothing is deleted.
    Destroy,
    /// Hold; the memory stays.
    Suspend,
    /// Go on after `suspend`.
    Resume,
    /// Reset.
    Reboot,
}

/// `PATCH /v1/instances/{id}`: what is missing stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceChange {
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Host name inside the guest; the machine is stopped while it is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Disks to change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskChange>,
    /// Whether the machine may be restarted where the change needs it; refused where it is false and a restart is
    /// needed.
    #[serde(default = "yes")]
    pub allow_restart: bool,
}

/// A change of one disk of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskChange {
    /// Which.
    pub id: Id,
    /// New size in MiB; only larger ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
    /// New limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_limits: Option<IoLimits>,
}

/// `POST /v1/instances/{id}/copy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// Name of the new instance.
    pub name: String,
    /// Where it may run; as the original where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<PlacementRequest>,
    /// Whether it is started once it is made. Both machines then have one identity: see the plan's notes.
    #[serde(default)]
    pub start: bool,
}
