//! What is on a fake volume, as a small value: two volumes with the same value hold the same bytes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::model::Id;

/// What is on a fake volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contents {
    /// Reads as zeroes: never written.
    Zero,
    /// A job began to write and did not come to its end.
    Partial {
        /// The job.
        job: String,
    },
    /// A machine, made by `provision`.
    Provisioned {
        /// The job.
        job: String,
        /// Its host name, where one was given then or later.
        hostname: Option<String>,
    },
    /// Written by a guest: an empty disk that was put to use, or a machine that went on.
    Guest {
        /// What the guest found.
        base: String,
        /// Tells apart what was written.
        mark: u64,
    },
    /// Restored from a stream that this fake did not capture itself.
    Restored {
        /// Digest of the stream.
        digest: String,
    },
    /// Overwritten by `sanitize`.
    Sanitized {
        /// The job.
        job: String,
    },
}

impl Contents {
    /// Digest of what is on the volume, `sha256:…`; the same for a copy, whatever way it went.
    pub fn digest(&self) -> String {
        if let Self::Restored { digest } = self {
            return digest.clone();
        }
        let text = serde_json::to_vec(self).expect("a value of strings and numbers is JSON");
        let hash = Sha256::digest(&text);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    /// Whether the storage may go to somebody else.
    pub fn is_clean(&self) -> bool {
        matches!(self, Self::Zero | Self::Sanitized { .. })
    }

    /// The same after a guest wrote to it.
    #[must_use]
    pub(super) fn written(&self, mark: u64) -> Self {
        Self::Guest { base: self.digest(), mark }
    }
}

/// A rule that was broken. The fake goes on; tests and simulations ask for these after every event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Violation {
    /// A volume was deleted that was not sanitized.
    DeletedUnsanitized {
        /// The volume.
        volume: Id,
        /// What was on it.
        contents: Contents,
    },
    /// A job was sent to a device that another one holds.
    TwoJobs {
        /// Serial number of the device.
        serial: String,
        /// The job that holds it.
        holder: String,
        /// The other one.
        job: String,
    },
    /// A volume was taken away from the utility VM while a job was at work on it.
    DetachedUnderJob {
        /// The volume.
        volume: Id,
        /// The job.
        job: String,
    },
    /// A job read a volume that a running guest could write to: the copy is torn.
    ReadWhileWritten {
        /// The volume.
        volume: Id,
        /// The job.
        job: String,
    },
    /// Guests were defined beyond the node's capacity.
    OverAllocated {
        /// Virtual CPUs of all guests.
        vcpus: u64,
        /// Memory of all guests in MiB.
        memory_mib: u64,
    },
}
