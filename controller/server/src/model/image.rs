//! Images: what instances are made of.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uvm_api::ImageSource;

use super::{Id, Millis};

/// What instances are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// Id.
    pub id: Id,
    /// Owner; everybody's where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Name, unique among what the owner sees.
    pub name: String,
    /// Where its contents are.
    pub contents: ImageContents,
    /// `amd64`, `arm64`, as in OCI.
    pub architecture: String,
    /// Operating system family (`linux`, `windows`, …).
    pub os: String,
    /// Smallest boot disk in MiB.
    pub min_disk_mib: u64,
    /// Smallest memory in MiB.
    pub min_memory_mib: u64,
    /// Kinds of hypervisor it runs under; any where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hypervisors: Vec<String>,
    /// Whether its contents are in place.
    pub ready: bool,
    /// The job that holds it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_job: Option<Id>,
    /// The `ETag`.
    pub generation: u64,
    /// When it was registered.
    pub created_at: Millis,
}

/// Where an image's contents are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageContents {
    /// An OCI image.
    Oci {
        /// The store.
        source: ImageSource,
        /// Tag, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// `sha256:…` of the index or manifest.
        digest: String,
    },
    /// A whole disk, captured from an instance, kept by the controller: a zstd stream of the raw device.
    Disk {
        /// `sha256:…` of the stream; empty until it is captured.
        #[serde(default)]
        digest: String,
        /// Bytes of the stream.
        #[serde(default)]
        size_bytes: u64,
        /// Bytes of the device.
        #[serde(default)]
        device_bytes: u64,
    },
}

/// `POST /v1/images`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Name.
    pub name: String,
    /// Owner; operators may leave it out: everybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The store.
    pub source: ImageSource,
    /// Tag, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// `sha256:…` of the index or manifest.
    pub digest: String,
    /// As in OCI.
    #[serde(default = "amd64")]
    pub architecture: String,
    /// Operating system family.
    #[serde(default = "linux")]
    pub os: String,
    /// Smallest boot disk in MiB.
    #[serde(default)]
    pub min_disk_mib: u64,
    /// Smallest memory in MiB.
    #[serde(default)]
    pub min_memory_mib: u64,
    /// Kinds of hypervisor it runs under; any where it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hypervisors: Vec<String>,
}

fn amd64() -> String {
    "amd64".to_owned()
}

fn linux() -> String {
    "linux".to_owned()
}

/// `POST /v1/instances/{id}/save-image`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SaveImageRequest {
    /// Name of the image.
    pub name: String,
}
