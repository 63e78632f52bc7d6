//! What went wrong: one message for people, and the exit status for programs.

use std::fmt::Write;

use super::units::printable;
use crate::model::{ErrorCode, Job, Problem, Refusal};

/// Exit status: the API refused, or the job failed.
pub(super) const REFUSED: u8 = 1;
/// Exit status: the command line, a file or the configuration makes no sense.
pub(super) const USAGE: u8 = 2;
/// Exit status: no controller answers.
pub(super) const UNREACHABLE: u8 = 3;

pub(super) type Result<T> = std::result::Result<T, Failure>;

/// Why a command came to no good end.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: u8,
    /// In words; empty where all is said already.
    pub(super) text: String,
    /// Of the API.
    pub(super) problem: Option<Box<Problem>>,
}

impl Failure {
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self { status: USAGE, text: text.into(), problem: None }
    }

    pub(super) fn unreachable(text: impl Into<String>) -> Self {
        Self { status: UNREACHABLE, text: text.into(), problem: None }
    }

    pub(super) fn refused(problem: Problem) -> Self {
        Self { status: REFUSED, text: words(&problem), problem: Some(Box::new(problem)) }
    }

    /// A refusal of our own.
    pub(super) fn no(text: impl Into<String>) -> Self {
        Self { status: REFUSED, text: text.into(), problem: None }
    }

    /// A job that did not succeed.
    pub(super) fn job(job: &Job) -> Self {
        let text = match &job.problem {
            Some(problem) => words(&Problem { job: Some(job.id), ..(**problem).clone() }),
            None => format!("job {} ended without success", job.id),
        };
        Self { status: REFUSED, text, problem: job.problem.clone() }
    }

    /// Standard output took no more: its reader has seen enough, or its disk is full.
    pub(super) fn output(error: &std::io::Error) -> Self {
        let text = match error.kind() {
            std::io::ErrorKind::BrokenPipe => String::new(),
            _ => format!("writing to standard output: {error}"),
        };
        Self { status: REFUSED, text, problem: None }
    }

    /// Whether it may go well if it is tried again.
    pub(super) fn may_pass(&self) -> bool {
        let overloaded = |problem: &Problem| problem.code == ErrorCode::Overloaded;
        self.status == UNREACHABLE || self.problem.as_deref().is_some_and(overloaded)
    }

    pub(super) fn is(&self, code: ErrorCode) -> bool {
        self.problem.as_ref().is_some_and(|problem| problem.code == code)
    }

    /// What is printed.
    pub(super) fn message(&self) -> String {
        printable(&format!("uvm-controller: {}", self.text))
    }
}

/// Title and detail, then what to do, then what it is about, then why.
fn words(problem: &Problem) -> String {
    let mut text = format!("{}: {}", problem.title, problem.detail);
    let mut line = |name: &str, value: &str| {
        if value.is_empty() {
            return;
        }
        let _ = write!(text, "\n  {name}: {value}");
    };
    for (name, value) in problem.refusal.iter().flat_map(|refusal| why(refusal, &problem.detail)) {
        line(name, &value);
    }
    if let Some(advice) = advice(problem) {
        line("do", &advice);
    }
    if let Some(step) = &problem.step {
        line("step", step);
    }
    if let Some(job) = &problem.job {
        line("job", &job.to_string());
    }
    for cause in &problem.causes {
        line("cause", cause);
    }
    text
}

/// Why no node fits and what would, where the words beside it do not say so.
pub(super) fn why(refusal: &Refusal, words: &str) -> Vec<(&'static str, String)> {
    let change = refusal.least_change.clone().unwrap_or_default();
    match words.contains(&change) && !change.is_empty() {
        true => Vec::new(),
        false => vec![("nodes", fallen(refusal)), ("would fit", change)],
    }
}

/// How many nodes fell at which filter.
fn fallen(refusal: &Refusal) -> String {
    let each: Vec<String> =
        refusal.fell.iter().map(|fell| format!("{} at {}", fell.nodes, fell.filter)).collect();
    let each = if each.is_empty() { "none fell".to_owned() } else { format!("{} fell", each.join(", ")) };
    format!("{} considered: {each}", refusal.considered)
}

/// What one may do about it, where the detail does not say.
fn advice(problem: &Problem) -> Option<String> {
    let words = match problem.code {
        ErrorCode::Unauthorized => "check the token (--token-file, UVM_CONTROLLER_TOKEN)",
        ErrorCode::Forbidden => "use a token that allows it",
        ErrorCode::PreconditionFailed => "somebody else changed it meanwhile: look at it, and try again",
        ErrorCode::RestartNeeded => "leave out --no-restart, or shut the instance down first",
        ErrorCode::Overloaded => "try again in a moment",
        ErrorCode::Busy => match problem.job {
            Some(job) => return Some(format!("wait for its job: uvm-controller job watch {job}")),
            None => "try again when its job has ended",
        },
        _ => return None,
    };
    Some(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Fell, Id};

    #[test]
    fn a_refusal_says_what_why_and_what_to_do() {
        let mut problem = Problem::new(ErrorCode::NoCapacity, "no node fits");
        problem.causes = vec!["first".to_owned(), "second".to_owned()];
        problem.refusal = Some(Box::new(Refusal {
            considered: 3,
            fell: vec![
                Fell { filter: "memory".to_owned(), nodes: 2 },
                Fell { filter: "state".to_owned(), nodes: 1 },
            ],
            least_change: Some("2048 MiB less memory".to_owned()),
        }));
        let failure = Failure::refused(problem);
        assert_eq!(
            failure.message(),
            "uvm-controller: no capacity: no node fits\n  nodes: 3 considered: 2 at memory, 1 at state fell\n  \
             would fit: 2048 MiB less memory\n  cause: first\n  cause: second"
        );
        assert_eq!(failure.status, 1);
    }

    #[test]
    fn what_the_detail_says_is_not_said_again() {
        let mut problem = Problem::new(ErrorCode::NoCapacity, "none of 1 fits; would fit: 63 vCPUs");
        let least_change = Some("63 vCPUs".to_owned());
        problem.refusal = Some(Box::new(Refusal { considered: 1, fell: Vec::new(), least_change }));
        assert_eq!(Failure::refused(problem).message().lines().count(), 1);
    }

    #[test]
    fn who_waits_is_told_for_what() {
        let mut problem = Problem::new(ErrorCode::Busy, "a job holds it");
        let job = Id::new(1, [7; 10]);
        problem.job = Some(job);
        let text = Failure::refused(problem).message();
        assert!(text.contains(&format!("do: wait for its job: uvm-controller job watch {job}")), "{text}");
        assert!(text.contains(&format!("\n  job: {job}")), "{text}");
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        assert!(Failure::unreachable("x").may_pass());
        assert!(Failure::refused(Problem::new(ErrorCode::Overloaded, "x")).may_pass());
        assert!(!Failure::refused(Problem::new(ErrorCode::Busy, "x")).may_pass());
        assert!(!Failure::usage("x").may_pass());
    }
}
