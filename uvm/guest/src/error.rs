//! The one error of this crate.

use std::fmt;

/// What went wrong, stable enough to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The tree's backing store failed.
    Io,
    /// The stream of an image layer failed; the tree did not.
    Source,
    /// The stream ended before its archive did.
    Truncated,
    /// The bytes read are not what their format demands.
    Corrupt,
    /// The format is known, this variant of it is not handled.
    Unsupported,
    /// An archive entry that points outside the tree, or at something it may not touch.
    UnsafePath,
    /// The archive names the same entry twice.
    Duplicate,
    /// A limit on size, number or depth is passed.
    TooLarge,
    /// A component before the last one is a symbolic link.
    SymlinkInPath,
    /// More symbolic links than a path may cross.
    SymlinkLoop,
    /// The name is not there.
    NotFound,
    /// The name is there already.
    Exists,
    /// The entry is there, and is of another type than the operation needs.
    WrongType,
    /// The directory still has entries.
    NotEmpty,
    /// The entry belongs to the file system itself and stays: lost+found, a mount point.
    Fixed,
    /// The file system has no room left.
    NoSpace,
    /// A request that can never be carried out (bad name, bad value).
    Invalid,
    /// The guest's image lacks a program that the request needs.
    MissingPackage,
    /// The caller asked to stop.
    Cancelled,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// `Display` says what was being done; the cause is in [`std::error::Error::source`].
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Cause>,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of our own finding.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// An error with the cause beneath it.
    pub fn with_source(kind: ErrorKind, context: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// The same kind, told from one level further up; the error itself becomes the cause.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
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
        self.source.as_deref().map(|e| e as _)
    }
}
