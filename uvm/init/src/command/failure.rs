//! How a command on a path ends where it does not succeed: one line, and the exit status.

use std::error::Error as StdError;
use std::fmt::{Display, Write as _};
use std::path::Path;

use super::output::plain;
use super::{FAILED, REFUSED};
use crate::job::JobError;

/// The line and the exit status.
pub(super) struct Failure {
    status: u8,
    text: String,
}

impl Failure {
    /// Nothing was written.
    pub(super) fn refused(path: &Path, reason: impl Display) -> Self {
        Self { status: REFUSED, text: format!("{}: {reason}", path.display()) }
    }

    /// `error` ended the work on `path`, which may have been written to before.
    pub(super) fn ended(path: &Path, written: bool, error: &(dyn StdError + 'static)) -> Self {
        let job = JobError::from_source(error);
        let mut text = format!("{}: {}", path.display(), job.detail);
        for cause in job.causes {
            let _ = write!(text, ": {cause}");
        }
        Self { status: if written { FAILED } else { REFUSED }, text }
    }

    /// Says more, of a path that was written to.
    pub(super) fn when_written(mut self, more: &str) -> Self {
        if self.status == FAILED {
            self.text.push_str("; ");
            self.text.push_str(more);
        }
        self
    }

    /// Prints the line.
    pub(super) fn say(&self) -> u8 {
        say_aside!("uvm: {}", plain(&self.text));
        self.status
    }
}
