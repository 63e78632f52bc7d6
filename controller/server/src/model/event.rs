//! Events: what happened in the grid, in order.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Millis};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// From 1, rising; the SSE `id`.
    pub sequence: u64,
    /// When.
    pub time: Millis,
    /// What, as `job.step-done` or `node.unreachable`.
    pub kind: String,
    /// Whose; operators' alone where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What it is about, as `instances/0192…`.
    pub subject: String,
    /// The job it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// In words.
    pub message: String,
}
