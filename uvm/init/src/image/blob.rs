//! The bytes of one blob as they are stored, from a file or over HTTP, no more and no fewer than its
//! descriptor says. A connection that breaks is resumed by a range request.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::error::{ImageError, ImageErrorKind, Result};
use super::reference::Location;
use super::transport::{Response, header, status_error};
use super::url::{Credentials, Url};
use super::{Shared, manifest};

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// How often a waiting stream looks at the cancel hook.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// A blob being read.
pub(super) struct BlobStream {
    shared: Arc<Shared>,
    location: Location,
    accept: Option<&'static str>,
    /// Known from the descriptor, else from the first answer's Content-Length.
    expected: Option<u64>,
    /// No blob may be larger.
    limit: u64,
    position: u64,
    body: Option<Box<dyn Read + Send>>,
    etag: Option<String>,
    /// Connections that failed so far; the client's `attempts` bound them for the blob as a whole.
    failures: u32,
    ended: bool,
}

impl BlobStream {
    /// A stream that connects when it is first read.
    pub(super) fn new(
        shared: Arc<Shared>,
        location: Location,
        expected: Option<u64>,
        limit: u64,
    ) -> Result<Self> {
        let stream = Self {
            shared,
            location,
            accept: None,
            expected,
            limit,
            position: 0,
            body: None,
            etag: None,
            failures: 0,
            ended: false,
        };
        stream.check_limit()?;
        Ok(stream)
    }

    /// A stream that asks for an index or a manifest.
    pub(super) fn accepting_manifests(mut self) -> Self {
        self.accept = Some(manifest::ACCEPT);
        self
    }

    /// Bytes so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The blob's place for messages.
    pub(super) fn shown(&self) -> String {
        self.location.shown()
    }

    /// Like [`Read::read`]; `Ok(0)` comes only after exactly the expected bytes.
    pub(super) fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        loop {
            self.shared.check_cancel()?;
            if self.expected == Some(self.position) {
                self.expect_end()?;
                return Ok(0);
            }
            if self.ended || buf.is_empty() {
                return Ok(0);
            }
            self.connect()?;
            if self.expected == Some(self.position) {
                continue;
            }
            let left = self.expected.unwrap_or(u64::MAX).saturating_sub(self.position);
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let Some(body) = self.body.as_mut() else { continue };
            match body.read(&mut buf[..want]) {
                Ok(0) if self.expected.is_none() => self.ended = true,
                Ok(0) => self.broken(None)?,
                Ok(read) => {
                    self.position = self.position.saturating_add(read as u64);
                    if self.expected.is_none() && self.position > self.limit {
                        return Err(self.too_large(self.position));
                    }
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.broken(Some(error))?,
            }
        }
    }

    /// Opens the body at the present position, as often as the attempts allow.
    fn connect(&mut self) -> Result<()> {
        while self.body.is_none() {
            match self.open() {
                Ok(body) => self.body = Some(body),
                Err(error) if error.is_retryable() && error.kind() != ImageErrorKind::Truncated => {
                    self.failures += 1;
                    if self.failures >= self.shared.options.attempts {
                        return Err(if self.position == 0 {
                            error
                        } else {
                            self.truncated().caused_by(error)
                        });
                    }
                    self.back_off()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn open(&mut self) -> Result<Box<dyn Read + Send>> {
        match &self.location {
            Location::File(path) => {
                let fail = |error: io::Error| {
                    let kind = match error.kind() {
                        io::ErrorKind::NotFound => ImageErrorKind::NotFound,
                        io::ErrorKind::PermissionDenied => ImageErrorKind::Unauthorized,
                        _ => ImageErrorKind::Unreachable,
                    };
                    ImageError::new(kind, format!("{}: cannot open", path.display())).caused_by(error)
                };
                let metadata = path.metadata().map_err(fail)?;
                if !metadata.is_file() {
                    let context = format!("{}: not a regular file", path.display());
                    return Err(ImageError::new(ImageErrorKind::Malformed, context));
                }
                let file = File::open(path).map_err(fail)?;
                self.announced(metadata.len())?;
                Ok(Box::new(file))
            }
            Location::Http { url, credentials, scope } => {
                let response = self.request(url, credentials.as_ref(), scope)?;
                self.check_response(&response)?;
                Ok(Box::new(response.into_body().into_reader()))
            }
        }
    }

    fn request(&self, url: &Url, credentials: Option<&Credentials>, scope: &str) -> Result<Response> {
        let range = format!("bytes={}-", self.position);
        let mut headers = Vec::with_capacity(3);
        headers.extend(self.accept.map(|accept| ("accept", accept)));
        if self.position > 0 {
            headers.push(("range", range.as_str()));
            headers.extend(self.etag.as_deref().map(|etag| ("if-range", etag)));
        }
        self.shared.transport.get(url, &headers, credentials, scope)
    }

    /// Checks status, place and length of an answer before a byte of it is used.
    fn check_response(&mut self, response: &Response) -> Result<()> {
        let shown = self.shown();
        let length = response.body().content_length();
        match response.status().as_u16() {
            200 if self.position == 0 => {
                // A weak tag may stand for other bytes (RFC 9110 section 13.1.5).
                self.etag = header(response, "etag").filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
                length.map_or(Ok(()), |length| self.announced(length))
            }
            206 if self.position > 0 => {
                let start = header(response, "content-range").and_then(content_range_start);
                if start != Some(self.position) {
                    let context = format!("{shown}: HTTP 206 with another range than asked for");
                    return Err(ImageError::new(ImageErrorKind::Malformed, context));
                }
                length.map_or(Ok(()), |length| self.announced(self.position.saturating_add(length)))
            }
            200 => {
                let error = ImageError::new(
                    ImageErrorKind::Truncated,
                    format!("{shown}: the server does not resume"),
                );
                Err(self.truncated().caused_by(error))
            }
            416 if self.position > 0 => Err(self.truncated().caused_by(status_error(&shown, response))),
            _ => Err(status_error(&shown, response)),
        }
    }

    /// Takes note of the size that the store announces.
    fn announced(&mut self, size: u64) -> Result<()> {
        match self.expected {
            Some(expected) if expected != size => {
                let context = format!("{}: the store has {size} bytes, expected {expected}", self.shown());
                Err(ImageError::new(ImageErrorKind::SizeMismatch, context))
            }
            _ => {
                self.expected = Some(size);
                self.check_limit()
            }
        }
    }

    fn check_limit(&self) -> Result<()> {
        match self.expected {
            Some(size) if size > self.limit => Err(self.too_large(size)),
            _ => Ok(()),
        }
    }

    /// After the last expected byte: one more is an error. What goes wrong now cannot hurt.
    fn expect_end(&mut self) -> Result<()> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        match body.read(&mut [0]) {
            Ok(more) if more > 0 => {
                let context = format!(
                    "{}: the store sent more than the {} bytes expected",
                    self.shown(),
                    self.position
                );
                Err(ImageError::new(ImageErrorKind::SizeMismatch, context))
            }
            _ => Ok(()),
        }
    }

    /// The body ended early: decides whether to try again.
    fn broken(&mut self, cause: Option<io::Error>) -> Result<()> {
        self.body = None;
        self.failures += 1;
        let resumable = self.expected.is_some() && matches!(self.location, Location::Http { .. });
        if resumable && self.failures < self.shared.options.attempts {
            return self.back_off();
        }
        let error = self.truncated();
        Err(match cause {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }

    fn truncated(&self) -> ImageError {
        let expected = self.expected.map_or("an unknown number of".to_owned(), |size| size.to_string());
        let context = format!("{}: got {} of {expected} bytes", self.shown(), self.position);
        ImageError::new(ImageErrorKind::Truncated, context)
    }

    fn too_large(&self, size: u64) -> ImageError {
        let context = format!("{}: {size} bytes are more than the limit of {}", self.shown(), self.limit);
        ImageError::new(ImageErrorKind::TooLarge, context)
    }

    /// Waits, a little longer after each failure, and not when cancelled.
    fn back_off(&self) -> Result<()> {
        let doubled = FIRST_BACKOFF.saturating_mul(1 << self.failures.saturating_sub(1).min(10));
        let until = Instant::now() + doubled.min(MAX_BACKOFF);
        loop {
            self.shared.check_cancel()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(CANCEL_INTERVAL));
        }
    }
}

impl Shared {
    fn check_cancel(&self) -> Result<()> {
        if self.options.cancel.load(Ordering::Relaxed) {
            return Err(ImageError::new(ImageErrorKind::Cancelled, "the download was cancelled"));
        }
        Ok(())
    }
}

/// The first byte's offset in `bytes 5-9/10`.
fn content_range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
