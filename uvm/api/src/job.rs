//! Jobs: what is asked, and how it stands.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    CaptureSpec, CloneSpec, CustomizeSpec, Device, PartitionJobSpec, Problem, ProvisionSpec, RestoreSpec,
};

/// A job to carry out, told apart by `kind`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobSpec {
    /// Tell what is on a device. Writes nothing.
    Inspect(InspectSpec),
    /// Turn a disk into a bootable machine.
    Provision(Box<ProvisionSpec>),
    /// Overwrite a whole device and read it back.
    Sanitize(SanitizeSpec),
    /// Copy a whole device onto another.
    Clone(CloneSpec),
    /// Send a whole device to an HTTP server as one Zstandard stream. Writes nothing to the device.
    Capture(CaptureSpec),
    /// Write a captured device back.
    Restore(Box<RestoreSpec>),
    /// Change a machine that is installed on a disk.
    Customize(Box<CustomizeJobSpec>),
    /// Divide a disk into partitions.
    Partition(Box<PartitionJobSpec>),
}

impl JobSpec {
    /// The job's id: the idempotency key.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Inspect(spec) => spec.id.as_deref(),
            Self::Provision(spec) => spec.id.as_deref(),
            Self::Sanitize(spec) => spec.id.as_deref(),
            Self::Clone(spec) => spec.id.as_deref(),
            Self::Capture(spec) => spec.id.as_deref(),
            Self::Restore(spec) => spec.id.as_deref(),
            Self::Customize(spec) => spec.id.as_deref(),
            Self::Partition(spec) => spec.id.as_deref(),
        }
    }

    /// Sets the id, where the caller gave it beside the document.
    pub fn set_id(&mut self, id: String) {
        let of_spec = match self {
            Self::Inspect(spec) => &mut spec.id,
            Self::Provision(spec) => &mut spec.id,
            Self::Sanitize(spec) => &mut spec.id,
            Self::Clone(spec) => &mut spec.id,
            Self::Capture(spec) => &mut spec.id,
            Self::Restore(spec) => &mut spec.id,
            Self::Customize(spec) => &mut spec.id,
            Self::Partition(spec) => &mut spec.id,
        };
        *of_spec = Some(id);
    }

    /// The plan the caller agreed to.
    pub fn plan_hash(&self) -> Option<&str> {
        match self {
            Self::Inspect(_) => None,
            Self::Provision(spec) => spec.plan_hash.as_deref(),
            Self::Sanitize(spec) => spec.plan_hash.as_deref(),
            Self::Clone(spec) => spec.plan_hash.as_deref(),
            Self::Capture(spec) => spec.plan_hash.as_deref(),
            Self::Restore(spec) => spec.plan_hash.as_deref(),
            Self::Customize(spec) => spec.plan_hash.as_deref(),
            Self::Partition(spec) => spec.plan_hash.as_deref(),
        }
    }

    /// The device it is about: the one written to, where one is.
    pub fn device(&self) -> &DeviceRef {
        match self {
            Self::Inspect(spec) => &spec.device,
            Self::Provision(spec) => &spec.device,
            Self::Sanitize(spec) => &spec.device,
            Self::Clone(spec) => &spec.device,
            Self::Capture(spec) => &spec.device,
            Self::Restore(spec) => &spec.device,
            Self::Customize(spec) => &spec.device,
            Self::Partition(spec) => &spec.device,
        }
    }

    /// The device that is read besides the one it is about.
    pub fn source_device(&self) -> Option<&DeviceRef> {
        match self {
            Self::Clone(spec) => Some(&spec.source),
            _ => None,
        }
    }

    /// Every device that the job holds, the one it is about first.
    pub fn devices(&self) -> Vec<&DeviceRef> {
        std::iter::once(self.device()).chain(self.source_device()).collect()
    }

    /// The name of the kind on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Inspect(_) => "inspect",
            Self::Provision(_) => "provision",
            Self::Sanitize(_) => "sanitize",
            Self::Clone(_) => "clone",
            Self::Capture(_) => "capture",
            Self::Restore(_) => "restore",
            Self::Customize(_) => "customize",
            Self::Partition(_) => "partition",
        }
    }

    /// Whether it writes to the device it is about.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Inspect(_) | Self::Capture(_))
    }

    /// Whether nothing of what is on the device stays.
    pub fn replaces_contents(&self) -> bool {
        match self {
            Self::Inspect(_) | Self::Capture(_) | Self::Customize(_) => false,
            Self::Sanitize(_) | Self::Clone(_) | Self::Restore(_) => true,
            Self::Provision(spec) => spec.disk.wipe_table != Some(false),
            Self::Partition(spec) => spec.disk.wipe_table == Some(true),
        }
    }

    /// The same job without what only opens doors: a renewed credential makes it no other job.
    #[must_use]
    pub fn without_credentials(&self) -> Self {
        let mut spec = self.clone();
        match &mut spec {
            Self::Capture(spec) => spec.destination.authorization = None,
            Self::Restore(spec) => spec.source.authorization = None,
            _ => {}
        }
        spec
    }
}

/// A device by its serial, with what the caller expects of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceRef {
    /// Serial number.
    pub serial: String,
    /// The size it must have in bytes; refused before anything is written where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The device must hold no partition table and no file system.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub must_be_blank: bool,
}

/// `inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InspectSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device to look at.
    pub device: DeviceRef,
}

/// `sanitize`: NIST SP 800-88 Clear by overwriting. An overwritten virtual disk is Clear, never Purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SanitizeSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device whose whole contents go.
    pub device: DeviceRef,
    /// Only `overwrite`.
    #[serde(default)]
    pub technique: Technique,
    /// What is written.
    #[serde(default)]
    pub pattern: OverwritePattern,
    /// The plan the caller agreed to; nothing is written where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

/// `customize`: changes a machine that is installed on a disk and not running. What is not named stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomizeJobSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The disk of the machine.
    pub device: DeviceRef,
    /// What changes; a missing `network` leaves the machine's as it is.
    pub customize: CustomizeSpec,
    /// The plan the caller agreed to; nothing is written where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

/// Technique of sanitization.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Technique {
    /// Every addressable byte is written.
    #[default]
    Overwrite,
}

/// What an overwrite writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverwritePattern {
    /// An AES-256-CTR keystream from a seed made for this job and forgotten after verification.
    #[default]
    Random,
    /// Zeroes, really written.
    Zero,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Being carried out.
    Running,
    /// Done and verified.
    Succeeded,
    /// Ended with a problem.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
    /// A state this version does not know.
    #[serde(other)]
    Unknown,
}

/// What state a disk is in after a job ended, however it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskState {
    /// Not one byte was written.
    Untouched,
    /// Something was written; there is no partition table, or only partitions that were to be kept are in it, so
    /// nothing will boot.
    PartialUnbootable,
    /// A disk was being changed in place. Its partition table and file systems stand and every file is whole, but not all of what was asked need be there; the same job again completes it.
    Modified,
    /// Everything is in place, verified.
    Complete,
    /// A state this version does not know.
    #[serde(other)]
    Unknown,
}

/// How far the running step is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepProgress {
    /// Name of the step.
    pub step: String,
    /// Number of the step, from 1.
    pub index: usize,
    /// How many steps there are.
    pub steps: usize,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes per second since the step began.
    pub bytes_per_second: u64,
}

/// What a job brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobResult {
    /// Of `inspect`.
    Inspect {
        /// What was found.
        device: Box<Device>,
    },
    /// Of `provision`.
    Provision {
        /// Digest of the image's manifest that was written.
        manifest_digest: String,
        /// UUID of the root file system.
        root_uuid: String,
        /// The machine id the guest got.
        machine_id: String,
        /// Public half of the guest's SSH host key, so that the first connection can be trusted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ssh_host_key: Option<String>,
        /// Kernel versions that can be booted, default first.
        kernels: Vec<String>,
        /// Entries of the image's layers.
        entries: u64,
        /// Bytes read back and compared.
        verified_bytes: u64,
    },
    /// Of `sanitize`.
    Sanitize {
        /// NIST SP 800-88 method: `clear`.
        method: String,
        /// NIST SP 800-88 technique: `overwrite`.
        technique: String,
        /// `random` or `zero`.
        pattern: OverwritePattern,
        /// Bytes overwritten.
        overwritten_bytes: u64,
        /// Bytes read back and compared.
        verified_bytes: u64,
    },
    /// Of `clone`.
    Clone {
        /// Size of the source.
        device_bytes: u64,
        /// Bytes of the source that were written, those in ranges of zeroes left out.
        copied_bytes: u64,
        /// Bytes of the source in ranges of zeroes, which the target reads as zero too.
        zero_bytes: u64,
        /// Bytes of the target read back and compared.
        verified_bytes: u64,
        /// SHA-256 of the source's whole contents, as `sha256:…`.
        digest: String,
    },
    /// Of `capture`.
    Capture {
        /// SHA-256 of the stream that was sent, as `sha256:…`.
        digest: String,
        /// Size of the stream.
        size_bytes: u64,
        /// Size of the device.
        device_bytes: u64,
        /// Bytes of the device in ranges of zeroes.
        zero_bytes: u64,
    },
    /// Of `restore`.
    Restore {
        /// SHA-256 of the stream that came, as `sha256:…`.
        digest: String,
        /// Bytes the stream unpacked to.
        device_bytes: u64,
        /// Bytes of them in ranges of zeroes.
        zero_bytes: u64,
        /// Bytes of the device read back and compared.
        verified_bytes: u64,
    },
    /// Of `partition`.
    Partition {
        /// Partitions in the table now.
        partitions: usize,
        /// File systems made.
        formatted: usize,
        /// Bytes read back and compared, the table's own apart.
        verified_bytes: u64,
    },
    /// Of `customize`.
    Customize {
        /// What was changed, in words.
        changed: Vec<String>,
        /// What is worth knowing besides.
        notes: Vec<String>,
    },
}

/// A job as `GET /v1/jobs/{id}` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Id.
    pub id: String,
    /// Its kind, as in its specification.
    pub kind: String,
    /// Serial of its device.
    pub device: String,
    /// Where it stands.
    pub state: JobState,
    /// Whether somebody asked for its end.
    pub cancel_requested: bool,
    /// State of the disk now.
    pub disk_state: DiskState,
    /// Hash of the plan being carried out.
    pub plan_hash: String,
    /// When it was accepted.
    pub created_at: String,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// The running step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<StepProgress>,
    /// What it brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}
