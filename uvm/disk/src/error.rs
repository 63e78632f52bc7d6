//! The one error of this crate.

use std::fmt;

/// What went wrong, stable enough to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The device refused a read, a write or a flush.
    Io,
    /// The bytes read are not what their format demands.
    Corrupt,
    /// What was asked does not fit the device or the file system.
    NoSpace,
    /// A request that can never be carried out (bad size, bad name, bad option).
    Invalid,
    /// The format is known, this variant of it is not handled.
    Unsupported,
    /// The name is not there.
    NotFound,
    /// The name is there already.
    Exists,
    /// What was read back differs from what was written.
    VerificationFailed,
    /// The caller's stream of contents failed, the device did not.
    Source,
}

/// `Display` says what was being done; the cause is in [`std::error::Error::source`].
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    offset: Option<u64>,
    source: Option<std::io::Error>,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of our own finding.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), offset: None, source: None }
    }

    /// The device failed while `context` was being done at byte `offset`.
    pub fn io(context: impl Into<String>, offset: u64, source: std::io::Error) -> Self {
        Self { kind: ErrorKind::Io, context: context.into(), offset: Some(offset), source: Some(source) }
    }

    /// The caller's stream failed while `context` was being done.
    pub fn source_stream(context: impl Into<String>, source: std::io::Error) -> Self {
        Self { kind: ErrorKind::Source, context: context.into(), offset: None, source: Some(source) }
    }

    /// The same error, with the byte offset on the device it belongs to.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// The stable kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Byte offset on the device, where one is known.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The I/O error underneath, taken out.
    pub fn into_io(self) -> Option<std::io::Error> {
        self.source
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}
