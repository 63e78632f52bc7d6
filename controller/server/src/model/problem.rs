//! Problems by RFC 9457.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Id;

/// What to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request cannot be understood, or contradicts itself.
    InvalidRequest,
    /// No token, or one that is not known.
    Unauthorized,
    /// The token does not allow it.
    Forbidden,
    /// There is no such thing, or it is not the caller's.
    NotFound,
    /// The path does not take the method.
    MethodNotAllowed,
    /// The name is taken.
    NameTaken,
    /// A job holds it; `job` names it.
    Busy,
    /// It is in a state in which that cannot be done.
    WrongState,
    /// `If-Match` names another generation.
    PreconditionFailed,
    /// `If-Match` is missing.
    PreconditionRequired,
    /// `Idempotency-Key` is missing.
    IdempotencyKeyRequired,
    /// The key was used for another request.
    IdempotencyKeyReused,
    /// No node fits; `detail` and `refusal` say why and what would.
    NoCapacity,
    /// The hypervisor or this version cannot do that.
    Unsupported,
    /// A restart would be needed and was not allowed.
    RestartNeeded,
    /// A node does not answer.
    NodeUnreachable,
    /// A hypervisor refused.
    HypervisorFailed,
    /// A utility VM's job failed; `detail` has its words.
    UvmJobFailed,
    /// A step did not come to its end in time.
    DeadlineExceeded,
    /// What a step should have brought about is not so.
    VerificationFailed,
    /// Somebody asked for the job's end.
    Cancelled,
    /// The store did not take the change; nothing happened.
    StoreFailed,
    /// Too much at once; try again.
    Overloaded,
    /// A fault in the controller.
    Internal,
    /// A code this version does not know.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid-request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::NameTaken => "name-taken",
            Self::Busy => "busy",
            Self::WrongState => "wrong-state",
            Self::PreconditionFailed => "precondition-failed",
            Self::PreconditionRequired => "precondition-required",
            Self::IdempotencyKeyRequired => "idempotency-key-required",
            Self::IdempotencyKeyReused => "idempotency-key-reused",
            Self::NoCapacity => "no-capacity",
            Self::Unsupported => "unsupported",
            Self::RestartNeeded => "restart-needed",
            Self::NodeUnreachable => "node-unreachable",
            Self::HypervisorFailed => "hypervisor-failed",
            Self::UvmJobFailed => "uvm-job-failed",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::VerificationFailed => "verification-failed",
            Self::Cancelled => "cancelled",
            Self::StoreFailed => "store-failed",
            Self::Overloaded => "overloaded",
            Self::Internal => "internal",
            Self::Unknown => "unknown",
        }
    }

    /// The HTTP status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::InvalidRequest | Self::IdempotencyKeyRequired => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NameTaken
            | Self::Busy
            | Self::WrongState
            | Self::NoCapacity
            | Self::RestartNeeded
            | Self::Cancelled => 409,
            Self::PreconditionFailed => 412,
            Self::IdempotencyKeyReused | Self::Unsupported => 422,
            Self::PreconditionRequired => 428,
            Self::NodeUnreachable | Self::HypervisorFailed | Self::UvmJobFailed => 502,
            Self::Overloaded => 503,
            Self::DeadlineExceeded => 504,
            Self::StoreFailed => 507,
            Self::VerificationFailed | Self::Internal | Self::Unknown => 500,
        }
    }
}

/// An RFC 9457 problem (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:uvm:controller:problem:` and the code.
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The code in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened, and what to do about it.
    pub detail: String,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The code to branch on.
    pub code: ErrorCode,
    /// The job that holds the thing, or that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// The step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Why no node fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<Refusal>>,
    /// The chain of causes, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// Why no node fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// Nodes looked at.
    pub considered: usize,
    /// How many fell at each filter.
    pub fell: Vec<Fell>,
    /// The least change that would fit, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub least_change: Option<String>,
}

/// How many nodes fell at a filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fell {
    /// The filter.
    pub filter: String,
    /// Nodes.
    pub nodes: usize,
}

impl Problem {
    /// A problem with the code's type and status.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let name = code.name();
        Self {
            problem_type: format!("urn:uvm:controller:problem:{name}"),
            title: name.replace('-', " "),
            status: code.status(),
            detail: detail.into(),
            instance: None,
            code,
            job: None,
            step: None,
            refusal: None,
            causes: Vec::new(),
        }
    }
}
