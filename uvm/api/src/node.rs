//! The node itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /healthz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// `GET /v1/node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Name from the configuration.
    pub name: String,
    /// Version of the utility VM.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// CPUs online.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Resident set of the utility VM in bytes.
    pub rss_bytes: u64,
    /// Largest resident set since boot in bytes.
    pub peak_rss_bytes: u64,
    /// When it booted.
    pub boot_time: String,
    /// Milliseconds from the kernel's start to the API listening.
    pub boot_ms: u64,
    /// X25519 public key made at this boot, base64: what secrets for this node are sealed to.
    pub public_key: String,
}

/// `POST /v1/power`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What to do.
    pub action: PowerAction,
    /// Cancel running jobs instead of refusing.
    #[serde(default)]
    pub cancel_jobs: bool,
}

/// What `POST /v1/power` can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PowerAction {
    /// Power the node off.
    PowerOff,
    /// Reboot the node.
    Reboot,
}
