//! The one error of this crate.

use std::fmt;

/// What went wrong, stable enough to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No such node, or it was removed.
    NotFound,
    /// The node still has allocations.
    Busy,
    /// There is no room for it (any more).
    Full,
    /// What is given back was never taken.
    Inconsistent,
    /// A number or a list is past its limit.
    TooLarge,
    /// A value that can never be right.
    Invalid,
}

/// `Display` says what was being done; the cause is in [`std::error::Error::source`].
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<Error>>,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The same kind, told from one level further up; the error itself becomes the cause.
    pub(crate) fn within(self, context: impl Into<String>) -> Self {
        Self { kind: self.kind, context: context.into(), source: Some(Box::new(self)) }
    }

    /// The stable kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as _)
    }
}
