//! The utility VM as the controller sees it.

mod https;
#[cfg(test)]
mod https_tests;

use std::collections::BTreeSet;
use std::fmt;

pub use https::HttpsUtilityVm;

use uvm_api::{Device, Job, JobSpec, Node};

/// Why a call failed.
#[derive(Debug, Clone)]
pub enum UvmError {
    /// There was no answer; whether the call took effect is not known.
    Unreachable(String),
    /// The utility VM answered with a problem.
    Problem(Box<uvm_api::Problem>),
}

impl fmt::Display for UvmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "the utility VM does not answer: {why}"),
            Self::Problem(problem) => {
                write!(f, "{}: {}", problem.title, problem.detail)?;
                problem.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
            }
        }
    }
}

impl std::error::Error for UvmError {}

/// One node's utility VM. Calls block and may come from several threads at once.
pub trait UtilityVm: Send + Sync {
    /// What it says of itself; the sign that it is in service.
    fn node(&self) -> Result<Node, UvmError>;

    /// The devices it sees.
    fn devices(&self) -> Result<Vec<Device>, UvmError>;

    /// Submits a job; the same again is answered with the job as it stands.
    fn submit(&self, spec: &JobSpec) -> Result<Job, UvmError>;

    /// A job as it stands; `None` where it does not know it (any more: it was rebooted).
    fn job(&self, id: &str) -> Result<Option<Job>, UvmError>;

    /// Asks a job to end; one that is not known has ended.
    fn cancel(&self, id: &str) -> Result<(), UvmError>;

    /// How many jobs it runs now.
    fn jobs_running(&self) -> Result<usize, UvmError> {
        let holders: BTreeSet<String> =
            self.devices()?.into_iter().filter_map(|device| device.held_by).collect();
        Ok(holders.len())
    }
}
