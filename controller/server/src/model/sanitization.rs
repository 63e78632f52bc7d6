//! Records of sanitization: what was done to storage before it was used again.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Millis};

/// What was done to a disk before its storage was given back, in the words of NIST SP 800-88.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SanitizationRecord {
    /// Id.
    pub id: Id,
    /// The disk.
    pub disk: Id,
    /// Whose it was.
    pub project: String,
    /// The instance it belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Id>,
    /// The node.
    pub node: Id,
    /// The node's name.
    pub node_name: String,
    /// Serial number.
    pub serial: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// `clear`; `none` where the disk had never been handed to anything that writes.
    pub method: String,
    /// `overwrite`; `none`.
    pub technique: String,
    /// `random` or `zero`; empty where nothing was written.
    pub pattern: String,
    /// Bytes overwritten.
    pub overwritten_bytes: u64,
    /// Bytes read back and compared.
    pub verified_bytes: u64,
    /// Whether it came to a good end. Where not, the storage is kept out of the pool.
    pub complete: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The controller's job.
    pub job: Id,
    /// When it began.
    pub started_at: Millis,
    /// When it ended.
    pub ended_at: Millis,
    /// Version of the controller.
    pub version: String,
    /// Ed25519 signature in base64, by the controller's key, of the record's canonical JSON (keys in order, no
    /// spaces) without this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}
