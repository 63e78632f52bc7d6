//! Problems by RFC 9457, with the members every error of this product carries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::DiskState;

/// What kind of error it was; the last part of a problem's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request does not parse: an unknown field, a wrong type, a value out of range.
    InvalidRequest,
    /// No such path, or no such job.
    NotFound,
    /// The path is there, the method is not.
    MethodNotAllowed,
    /// A client certificate is needed.
    Unauthorized,
    /// The same job id was used with another specification.
    JobConflict,
    /// No device has this serial.
    DeviceNotFound,
    /// Another job holds the device, or somebody else has it open.
    DeviceBusy,
    /// The plan needs more room than the device has.
    DeviceTooSmall,
    /// The device is not the one the plan was made for.
    DeviceChanged,
    /// The device disappeared while it was worked on.
    DeviceGone,
    /// The device cannot be written.
    DeviceReadOnly,
    /// The plan is not the one the job agreed to (`plan_hash`).
    PlanChanged,
    /// The image store cannot be reached or answered with an error.
    ImageUnreachable,
    /// The image store refused us, or its certificate is not trusted.
    ImageDenied,
    /// The image store has no such image or blob.
    ImageNotFound,
    /// The image store closed the connection before everything was there.
    ImageTruncated,
    /// What came is not what the digest promised.
    DigestMismatch,
    /// The image is malformed or of a kind that is not handled.
    ImageInvalid,
    /// A layer holds a path that leads out of the guest's tree.
    UnsafePath,
    /// The contents do not fit the file system.
    NoSpace,
    /// The guest lacks what was asked to be changed or to boot it.
    GuestUnsuitable,
    /// The device refused a read or a write.
    Io,
    /// What was read back is not what was written.
    VerificationFailed,
    /// Somebody cancelled the job.
    Cancelled,
    /// A limit of the appliance was reached; try again later.
    Overloaded,
    /// A fault in the utility VM itself.
    Internal,
    /// A code this version does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The name on the wire.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => "unknown".to_owned(),
        }
    }

    /// The HTTP status a request gets that fails with this code.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::JobConflict | Self::DeviceBusy | Self::DeviceChanged | Self::PlanChanged => 409,
            Self::Overloaded => 503,
            Self::Internal | Self::Io | Self::Unknown => 500,
            _ => 422,
        }
    }
}

/// Whether the same job may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// It would fail again the same way.
    Never,
    /// The same job may succeed: a fault outside of it.
    Same,
    /// Something named in `detail` must be mended first.
    AfterRepair,
    /// Advice this version does not know.
    #[serde(other)]
    Unknown,
}

/// An RFC 9457 problem (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:uvm:problem:` and the error code.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The code's short description.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened, and what to do about it.
    pub detail: String,
    /// The job or path it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The code to branch on.
    pub code: ErrorCode,
    /// What state the disk is in now, for errors of jobs that write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_state: Option<DiskState>,
    /// The step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Serial of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Byte offset on the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Whether to send the same job again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// The job that holds the device (`device-busy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

impl Problem {
    /// A problem with the code's type and status.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let name = code.name();
        Self {
            problem_type: format!("urn:uvm:problem:{name}"),
            title: name.replace('-', " "),
            status: code.status(),
            detail: detail.into(),
            instance: None,
            code,
            disk_state: None,
            step: None,
            device: None,
            offset: None,
            retry: None,
            causes: Vec::new(),
            holder: None,
        }
    }
}
