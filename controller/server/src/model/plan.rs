//! Plans: what would happen.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CopyRequest, Id, InstanceChange, InstanceRequest, JobKind, NumaShare, PowerVerb, Refusal};

/// `POST /v1/plans`: what would happen if this were sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PlanRequest {
    /// Make an instance.
    CreateInstance {
        /// As it would be sent.
        request: Box<InstanceRequest>,
    },
    /// Change an instance.
    ChangeInstance {
        /// Which.
        instance: Id,
        /// As it would be sent.
        request: InstanceChange,
    },
    /// Copy an instance.
    CopyInstance {
        /// Which.
        instance: Id,
        /// As it would be sent.
        request: CopyRequest,
    },
    /// Delete an instance.
    DeleteInstance {
        /// Which.
        instance: Id,
    },
    /// A control message.
    Power {
        /// To which.
        instance: Id,
        /// Which.
        verb: PowerVerb,
    },
    /// Take a snapshot.
    CreateSnapshot {
        /// Of which.
        instance: Id,
    },
    /// Capture an image.
    SaveImage {
        /// Of which.
        instance: Id,
    },
    /// Give an instance the contents of a snapshot.
    RestoreSnapshot {
        /// Which.
        instance: Id,
        /// The snapshot.
        snapshot: Id,
    },
}

/// What would happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What the job would do.
    pub kind: JobKind,
    /// Whether it would be accepted.
    pub feasible: bool,
    /// The node, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it would be given of the node's NUMA nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<NumaShare>,
    /// Steps in order.
    pub steps: Vec<PlannedStep>,
    /// The machine would be restarted.
    pub restart: bool,
    /// The machine would be held or off for a while.
    pub interrupts: bool,
    /// What one should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Why it would be refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why no node fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<Refusal>>,
}

/// A step that would be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedStep {
    /// What it does.
    pub name: String,
    /// In words.
    pub description: String,
    /// Seconds it may take.
    pub deadline_seconds: u32,
    /// What takes it back where a later one fails; empty where nothing does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub undo: String,
}
