//! Nodes: where machines run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Millis};

/// A place where machines run: a hypervisor, its capacity, and the utility VM beside the guests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Id.
    pub id: Id,
    /// Name, unique.
    pub name: String,
    /// Kind of hypervisor: `qemu`; `fake` in tests.
    pub hypervisor: String,
    /// Where the hypervisor is reached; for `qemu` the folder of the node's pool and domains.
    pub address: String,
    /// `amd64`, `arm64`, as in OCI.
    pub architecture: String,
    /// What instances may use.
    pub capacity: NodeCapacity,
    /// The capacity is what the hypervisor found, not what an operator said.
    #[serde(default)]
    pub capacity_found: bool,
    /// Words for placement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Fault domain (rack).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fault_domain: String,
    /// Licenses it brings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub licenses: BTreeMap<String, LicensePool>,
    /// The one project whose instances may run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated_to: Option<String>,
    /// How well it does disks and networks, 0 to 100.
    #[serde(default)]
    pub suitability: Suitability,
    /// No new instance is placed here.
    pub cordoned: bool,
    /// Whether it answers.
    pub state: NodeState,
    /// When it answered last.
    pub seen_at: Millis,
    /// Its utility VM.
    pub utility_vm: UtilityVmStatus,
    /// The job that holds it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_job: Option<Id>,
    /// The `ETag`.
    pub generation: u64,
    /// When it was registered.
    pub created_at: Millis,
}

/// What instances may use of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeCapacity {
    /// Its NUMA nodes; most machines have one or two.
    pub numa: Vec<NumaCapacity>,
    /// Pool for disks in MiB.
    pub storage_mib: u64,
}

/// What instances may use of one NUMA node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NumaCapacity {
    /// Virtual CPUs that may be given away, overcommitment included.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

/// Licenses a node brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LicensePool {
    /// How many instances may use one.
    pub count: u32,
    /// What one costs, in units of the operator's choice.
    #[serde(default)]
    pub cost: u32,
}

/// How well a node does disks and networks, 0 to 100.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Suitability {
    /// Disks.
    #[serde(default)]
    pub io: u8,
    /// Network.
    #[serde(default)]
    pub network: u8,
}

/// Whether a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Registered; not seen yet.
    Joining,
    /// Answers, and its utility VM is in service.
    Ready,
    /// Its hypervisor answers, its utility VM does not: nothing new is made there.
    Degraded,
    /// Does not answer.
    Unreachable,
}

/// How a node's utility VM stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UtilityVmStatus {
    /// Answers its API.
    pub in_service: bool,
    /// Version it says it has.
    #[serde(default)]
    pub version: String,
    /// When it was booted, by its own account.
    #[serde(default)]
    pub booted_at: String,
    /// Another number after every start.
    #[serde(default)]
    pub starts: u64,
    /// Peak resident memory of its PID 1 in bytes.
    #[serde(default)]
    pub peak_rss_bytes: u64,
    /// Polls in a row that it did not answer.
    #[serde(default)]
    pub missed: u32,
}

/// `POST /v1/nodes`, with an operator's token or an enrolment token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// Name, unique.
    pub name: String,
    /// Kind of hypervisor.
    pub hypervisor: String,
    /// Where the hypervisor is reached; for `qemu` a folder, made where it is missing.
    #[serde(default)]
    pub address: String,
    /// As in OCI.
    #[serde(default = "amd64")]
    pub architecture: String,
    /// What instances may use; found out from the hypervisor where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<NodeCapacity>,
    /// Words for placement.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Fault domain (rack).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fault_domain: String,
    /// Licenses it brings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub licenses: BTreeMap<String, LicensePool>,
    /// The one project whose instances may run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedicated_to: Option<String>,
    /// How well it does disks and networks.
    #[serde(default)]
    pub suitability: Suitability,
    /// A PKCS #10 certificate request in PEM for the node's utility VM; the answer then has the certificate. Where
    /// it is missing, the controller makes the key and hands it over at boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_request: Option<String>,
}

fn amd64() -> String {
    "amd64".to_owned()
}

/// `PATCH /v1/nodes/{id}`: what is missing stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeChange {
    /// No new instance is placed here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
    /// All labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// What instances may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<NodeCapacity>,
}
