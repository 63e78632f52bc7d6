//! What goes wrong between an image store and us, as a kind that callers branch on.

use std::error::Error;
use std::sync::Arc;
use std::{fmt, io};

/// The result of everything in this module.
pub(crate) type Result<T> = std::result::Result<T, ImageError>;

/// The kind of an [`ImageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageErrorKind {
    /// No answer: name not found, refused, reset, no answer in time, unreadable file.
    Unreachable,
    /// The server's certificate does not verify.
    Untrusted,
    /// The store does not have it (HTTP 404 or 410, or no such file).
    NotFound,
    /// HTTP 401 or 403, also from the token server.
    Unauthorized,
    /// The store is in trouble and says so (HTTP 5xx, 408, 429).
    ServerError,
    /// The bytes ended before the size that was promised.
    Truncated,
    /// All bytes arrived and they are not the ones that the digest names.
    DigestMismatch,
    /// The store has more bytes, or announces another number of them, than the descriptor says.
    SizeMismatch,
    /// Well formed, and outside what we take: media type, platform, digest algorithm, redirect.
    Unsupported,
    /// Not what it claims to be: broken JSON, broken compression, a nonsensical answer.
    Malformed,
    /// Larger than the limit for its sort, or more uncompressed bytes than the caller allows.
    TooLarge,
    /// The cancel hook was set.
    Cancelled,
}

/// An error with its cause. `Display` leaves the cause out: the reader sees the chain.
///
/// Clones, because a failed stream repeats its error to whoever asks again.
#[derive(Debug, Clone)]
pub(crate) struct ImageError {
    kind: ImageErrorKind,
    context: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ImageError {
    /// An error that is its own cause.
    pub(crate) fn new(kind: ImageErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// The same error with what caused it.
    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// The same error, naming what it is about first.
    pub(super) fn about(mut self, subject: impl fmt::Display) -> Self {
        self.context = format!("{subject}: {}", self.context);
        self
    }

    /// What sort of failure this is.
    pub(crate) fn kind(&self) -> ImageErrorKind {
        self.kind
    }

    /// Whether the same request may succeed later, with nothing repaired.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ImageErrorKind::Unreachable | ImageErrorKind::ServerError | ImageErrorKind::Truncated
        )
    }

    /// The `ImageError` that travelled inside an I/O error through a decoder or a tar reader.
    pub(crate) fn from_io(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().cloned()
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl Error for ImageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> Self {
        let kind = match error.kind {
            ImageErrorKind::Truncated => io::ErrorKind::UnexpectedEof,
            ImageErrorKind::NotFound => io::ErrorKind::NotFound,
            ImageErrorKind::Unauthorized | ImageErrorKind::Untrusted => io::ErrorKind::PermissionDenied,
            ImageErrorKind::Unreachable => io::ErrorKind::NotConnected,
            ImageErrorKind::Unsupported => io::ErrorKind::Unsupported,
            // Never Interrupted for Cancelled: readers take that as "ask again".
            ImageErrorKind::ServerError | ImageErrorKind::Cancelled => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}
