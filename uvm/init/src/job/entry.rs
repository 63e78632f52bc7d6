//! What the engine remembers of a job.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uvm_api::{Job, JobResult, JobSpec, JobState, Problem, Retry};

use super::Progress;
use super::journal::Journal;
use super::plan::Plan;

/// A job that was taken.
pub(super) struct Entry {
    pub(super) id: String,
    pub(super) spec: JobSpec,
    pub(super) plan: Plan,
    pub(super) journal: Arc<Journal>,
    pub(super) progress: Arc<Progress>,
    pub(super) created_at: String,
    pub(super) outcome: Mutex<Option<Outcome>>,
}

/// How it ended.
pub(super) struct Outcome {
    pub(super) ended_at: String,
    pub(super) state: JobState,
    pub(super) result: Option<JobResult>,
    pub(super) problem: Option<Problem>,
}

impl Entry {
    pub(super) fn ended(&self) -> bool {
        lock(&self.outcome).is_some()
    }

    /// Whether it ended in a way after which the same job may be sent again.
    pub(super) fn may_begin_anew(&self) -> bool {
        let outcome = lock(&self.outcome);
        let problem = outcome.as_ref().and_then(|outcome| outcome.problem.as_ref());
        problem.is_some_and(|problem| matches!(problem.retry, Some(Retry::Same | Retry::AfterRepair)))
    }

    pub(super) fn describe(&self) -> Job {
        let outcome = lock(&self.outcome);
        let outcome = outcome.as_ref();
        Job {
            id: self.id.clone(),
            kind: self.spec.kind().to_owned(),
            device: self.plan.device.serial.clone(),
            state: outcome.map_or(JobState::Running, |outcome| outcome.state),
            cancel_requested: self.progress.is_cancelled(),
            disk_state: self.progress.disk_state(),
            plan_hash: self.plan.wire.plan_hash.clone(),
            created_at: self.created_at.clone(),
            ended_at: outcome.map(|outcome| outcome.ended_at.clone()),
            progress: self.progress.snapshot(),
            result: outcome.and_then(|outcome| outcome.result.clone()),
            problem: outcome.and_then(|outcome| outcome.problem.clone()),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
