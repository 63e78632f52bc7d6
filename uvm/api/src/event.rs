//! What a running job says, in order.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DiskState, JobResult, Problem};

/// One event of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// From 1, without gaps but where progress events were merged; the SSE `id`.
    pub sequence: u64,
    /// When it happened.
    pub time: String,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventBody {
    /// The job was accepted with this plan.
    Planned {
        /// Hash of the plan.
        plan_hash: String,
        /// Names of the steps to come.
        steps: Vec<String>,
    },
    /// A step began.
    StepStarted {
        /// Name of the step.
        step: String,
        /// Number of the step, from 1.
        index: usize,
        /// How many steps there are.
        steps: usize,
        /// Bytes it will move, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_total: Option<u64>,
    },
    /// A step goes on.
    Progress {
        /// Name of the step.
        step: String,
        /// Bytes done.
        bytes_done: u64,
        /// Bytes in all, where known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes_total: Option<u64>,
        /// Bytes per second since the step began.
        bytes_per_second: u64,
    },
    /// Something worth knowing happened.
    Note {
        /// Name of the step.
        step: String,
        /// In words.
        message: String,
    },
    /// A step is done: flushed, and read back where it wrote.
    StepDone {
        /// Name of the step.
        step: String,
        /// Bytes it moved.
        bytes: u64,
        /// How long it took.
        duration_ms: u64,
    },
    /// The job is done and verified.
    Succeeded {
        /// State of the disk.
        disk_state: DiskState,
        /// What it brought.
        result: Box<JobResult>,
    },
    /// The job ended with a problem.
    Failed {
        /// Why, and what state the disk is in.
        problem: Box<Problem>,
    },
    /// The job ended because somebody asked for it.
    Cancelled {
        /// Where it was, and what state the disk is in.
        problem: Box<Problem>,
    },
    /// An event this version does not know.
    #[serde(other)]
    Unknown,
}

impl EventBody {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Succeeded { .. } | Self::Failed { .. } | Self::Cancelled { .. })
    }

    /// The SSE `event` name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Planned { .. } => "planned",
            Self::StepStarted { .. } => "step-started",
            Self::Progress { .. } => "progress",
            Self::Note { .. } => "note",
            Self::StepDone { .. } => "step-done",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}
