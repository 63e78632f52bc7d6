//! How an error below becomes the one error a job ends with.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use uvm_api::{DiskState, ErrorCode, Problem, Retry};

use crate::image::{ImageError, ImageErrorKind};

/// Why a job ended, before the engine adds the step, the device and the state of the disk.
#[derive(Debug)]
pub(crate) struct JobError {
    pub(crate) code: ErrorCode,
    pub(crate) detail: String,
    pub(crate) causes: Vec<String>,
    pub(crate) offset: Option<u64>,
    pub(crate) holder: Option<String>,
    /// The device at fault, where it is not the one that the job is about.
    pub(crate) device: Option<String>,
}

impl JobError {
    pub(crate) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), causes: Vec::new(), offset: None, holder: None, device: None }
    }

    /// `error` ended it. The code comes from the innermost cause that has one.
    pub(crate) fn from_source(error: &(dyn StdError + 'static)) -> Self {
        let mut job = Self::new(ErrorCode::Internal, error.to_string());
        for cause in chain(error) {
            if let Some(code) = classify(cause, job.code) {
                job.code = code;
            }
            if let Some(disk) = cause.downcast_ref::<uvm_disk::Error>() {
                job.offset = disk.offset().or(job.offset);
            }
            if let Some(source) = cause.downcast_ref::<SourceFault>() {
                job.device = Some(source.serial.clone());
            }
            let text = cause.to_string();
            if job.causes.last() != Some(&text) {
                job.causes.push(text);
            }
        }
        job.causes.remove(0);
        job
    }

    /// Advice on sending the same job again.
    pub(crate) fn retry(&self) -> Retry {
        match self.code {
            ErrorCode::ImageUnreachable
            | ErrorCode::ImageTruncated
            | ErrorCode::Cancelled
            | ErrorCode::DeviceBusy
            | ErrorCode::Overloaded => Retry::Same,
            ErrorCode::DeviceNotFound
            | ErrorCode::DeviceGone
            | ErrorCode::DeviceReadOnly
            | ErrorCode::DeviceChanged
            | ErrorCode::Io
            | ErrorCode::VerificationFailed
            | ErrorCode::ImageNotFound
            | ErrorCode::ImageDenied
            | ErrorCode::DigestMismatch => Retry::AfterRepair,
            _ => Retry::Never,
        }
    }

    /// The problem on the wire.
    pub(crate) fn into_problem(
        self,
        device: &str,
        step: Option<&str>,
        disk_state: Option<DiskState>,
    ) -> Problem {
        let retry = self.retry();
        Problem {
            device: Some(self.device.unwrap_or_else(|| device.to_owned())),
            step: step.map(str::to_owned),
            disk_state,
            retry: Some(retry),
            offset: self.offset,
            causes: self.causes,
            holder: self.holder,
            ..Problem::new(self.code, self.detail)
        }
    }
}

impl From<uvm_disk::Error> for JobError {
    fn from(error: uvm_disk::Error) -> Self {
        Self::from_source(&error)
    }
}

impl From<uvm_guest::Error> for JobError {
    fn from(error: uvm_guest::Error) -> Self {
        Self::from_source(&error)
    }
}

impl From<ImageError> for JobError {
    fn from(error: ImageError) -> Self {
        Self::from_source(&error)
    }
}

/// Marks an I/O error that is no fault of the device: somebody cancelled the job.
#[derive(Debug)]
pub(crate) struct CancelledMarker;

impl fmt::Display for CancelledMarker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the job was cancelled")
    }
}

impl StdError for CancelledMarker {}

/// Marks an I/O error of the device that is read, where another is written.
#[derive(Debug)]
pub(crate) struct SourceFault {
    pub(crate) serial: String,
    pub(crate) error: io::Error,
}

impl fmt::Display for SourceFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reading the source {:?}", self.serial)
    }
}

impl StdError for SourceFault {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

/// The error and its causes. An I/O error hides the error it was made from; this looks inside.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> Vec<&'a (dyn StdError + 'static)> {
    const MAX_DEPTH: usize = 16;
    let mut chain: Vec<&'a (dyn StdError + 'static)> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if chain.len() == MAX_DEPTH {
            break;
        }
        chain.push(error);
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    chain
}

/// The code of one cause; `outer` is what the causes around it said.
fn classify(error: &(dyn StdError + 'static), outer: ErrorCode) -> Option<ErrorCode> {
    if error.is::<CancelledMarker>() {
        return Some(ErrorCode::Cancelled);
    }
    if let Some(error) = error.downcast_ref::<ImageError>() {
        return Some(image_code(error.kind()));
    }
    if let Some(error) = error.downcast_ref::<uvm_disk::Error>() {
        return disk_code(error.kind(), outer);
    }
    error.downcast_ref::<uvm_guest::Error>().and_then(|error| guest_code(error.kind()))
}

fn image_code(kind: ImageErrorKind) -> ErrorCode {
    match kind {
        ImageErrorKind::Unreachable | ImageErrorKind::ServerError => ErrorCode::ImageUnreachable,
        ImageErrorKind::Untrusted | ImageErrorKind::Unauthorized => ErrorCode::ImageDenied,
        ImageErrorKind::NotFound => ErrorCode::ImageNotFound,
        ImageErrorKind::Truncated => ErrorCode::ImageTruncated,
        ImageErrorKind::DigestMismatch | ImageErrorKind::SizeMismatch => ErrorCode::DigestMismatch,
        ImageErrorKind::Unsupported | ImageErrorKind::Malformed | ImageErrorKind::TooLarge => {
            ErrorCode::ImageInvalid
        }
        ImageErrorKind::Cancelled => ErrorCode::Cancelled,
    }
}

fn disk_code(kind: uvm_disk::ErrorKind, outer: ErrorCode) -> Option<ErrorCode> {
    use uvm_disk::ErrorKind as Kind;
    match kind {
        Kind::Io => Some(ErrorCode::Io),
        Kind::NoSpace => Some(ErrorCode::NoSpace),
        Kind::VerificationFailed => Some(ErrorCode::VerificationFailed),
        // Where an image asked for it, the layer above has said so already.
        Kind::Invalid | Kind::Unsupported if outer == ErrorCode::Internal => Some(ErrorCode::InvalidRequest),
        Kind::Corrupt if outer == ErrorCode::Internal => Some(ErrorCode::Io),
        _ => None,
    }
}

fn guest_code(kind: uvm_guest::ErrorKind) -> Option<ErrorCode> {
    use uvm_guest::ErrorKind as Kind;
    match kind {
        Kind::UnsafePath => Some(ErrorCode::UnsafePath),
        Kind::NoSpace => Some(ErrorCode::NoSpace),
        Kind::Cancelled => Some(ErrorCode::Cancelled),
        Kind::Truncated
        | Kind::Corrupt
        | Kind::Unsupported
        | Kind::Duplicate
        | Kind::TooLarge
        | Kind::Invalid => Some(ErrorCode::ImageInvalid),
        Kind::MissingPackage
        | Kind::SymlinkInPath
        | Kind::SymlinkLoop
        | Kind::NotFound
        | Kind::Exists
        | Kind::WrongType
        | Kind::NotEmpty
        | Kind::Fixed => Some(ErrorCode::GuestUnsuitable),
        Kind::Io | Kind::Source => None,
    }
}
