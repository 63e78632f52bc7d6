//! One stream to a server or from one: a whole device as one Zstandard frame. What comes is read like a layer, its
//! size and digest exact and mandatory; what goes is one `PUT`.

use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::http;

use super::blob::BlobStream;
use super::error::{ImageError, ImageErrorKind, Result};
use super::layer::LayerReader;
use super::manifest::Compression;
use super::reference::{Digest, Location};
use super::transport::{Response, header, status_error};
use super::url::{Url, percent_decode, without_secrets};
use super::{Client, Layer};

/// The longest `Authorization` value.
const MAX_AUTHORIZATION: usize = 8 << 10;
/// The most bytes of an answer to a `PUT`.
const MAX_ANSWER: u64 = 64 << 10;

/// Where a stream is, checked. `Debug` and `Display` leave out what opens doors.
pub(crate) struct StreamPlace {
    location: Location,
    authorization: Option<String>,
}

impl StreamPlace {
    /// A place behind `http(s)://`, or for a stream to read a file behind `file://`.
    pub(crate) fn parse(url: &str, authorization: Option<&str>) -> Result<Self> {
        let malformed = |why: &str| {
            ImageError::new(ImageErrorKind::Malformed, format!("URL {:?}: {why}", without_secrets(url)))
        };
        if let Some(value) = authorization {
            let sendable = value.len() <= MAX_AUTHORIZATION && http::HeaderValue::from_str(value).is_ok();
            if value.is_empty() || !sendable {
                return Err(malformed("its authorization is not the value of a header"));
            }
        }
        let location = match url.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Location::File(PathBuf::from(percent_decode(path))),
            Some(_) => return Err(malformed("a file URL names an absolute path, file:///...")),
            None => {
                let (url, credentials) = Url::parse(url)?;
                if credentials.is_some() {
                    return Err(malformed("credentials go into authorization, not into the URL"));
                }
                let scope = url.origin();
                Location::Http { url, credentials: None, scope }
            }
        };
        Ok(Self { location, authorization: authorization.map(str::to_owned) })
    }

    /// Whether it is behind a server, which alone takes a stream.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.location, Location::Http { .. })
    }
}

impl fmt::Display for StreamPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location.shown())
    }
}

/// What was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Of the stream.
    pub(crate) digest: Digest,
    /// Bytes of the stream.
    pub(crate) size: u64,
}

/// What a server says it stored; both fields may be missing.
#[derive(Deserialize)]
struct Receipt {
    digest: Option<String>,
    size_bytes: Option<u64>,
}

/// Why the stream could not be sent.
pub(crate) enum SendError {
    /// The stream itself failed, whatever the server then said.
    Stream(io::Error),
    /// The server, or the way to it.
    Server(ImageError),
}

impl Client {
    /// A stream to read; the connection is made on the first read. [`LayerReader::finish`] says whether it was the
    /// right one. Unpacking to more than `max_unpacked_bytes` is an error.
    pub(crate) fn open_stream(
        &self,
        place: &StreamPlace,
        digest: Digest,
        size: u64,
        max_unpacked_bytes: u64,
    ) -> Result<LayerReader> {
        if let (Some(authorization), Location::Http { scope, .. }) = (&place.authorization, &place.location) {
            self.shared.transport.authorize(scope, authorization);
        }
        let blob = BlobStream::new(self.shared.clone(), place.location.clone(), Some(size), u64::MAX)?;
        // Nothing names the digest of what is inside: that of the stream, and the frame's checksum, have to do.
        let stream = Layer { digest, size, compression: Compression::Zstd, diff_id: None };
        LayerReader::new(blob, &stream, max_unpacked_bytes)
    }

    /// Sends everything `stream` yields by one chunked `PUT`, hashed as it passes. Done only once the server said
    /// that it has everything, and nothing else than what was sent.
    pub(crate) fn send_stream(
        &self,
        place: &StreamPlace,
        stream: &mut dyn Read,
    ) -> std::result::Result<Sent, SendError> {
        let Location::Http { url, .. } = &place.location else {
            let context = format!("{place}: a stream goes to http:// or https://");
            return Err(SendError::Server(ImageError::new(ImageErrorKind::Unsupported, context)));
        };
        let mut body = Sending { stream, hash: Sha256::new(), size: 0, ended: false, failed: None };
        // Who refuses says so before the device is read.
        let mut headers = vec![("content-type", "application/zstd"), ("expect", "100-continue")];
        headers.extend(place.authorization.as_deref().map(|value| ("authorization", value)));
        let answer = self.shared.transport.put(url, &headers, &mut body);
        if let Some(error) = body.failed {
            return Err(SendError::Stream(error));
        }
        let sent = Sent { digest: Digest::from_bytes(body.hash.finalize().into()), size: body.size };
        let ended = body.ended;
        answer
            .and_then(|answer| check_answer(&url.shown(), answer, ended, &sent))
            .map_err(SendError::Server)?;
        Ok(sent)
    }
}

/// The stream on its way, which remembers what went wrong with it.
struct Sending<'s> {
    stream: &'s mut dyn Read,
    hash: Sha256,
    size: u64,
    /// Everything was taken.
    ended: bool,
    failed: Option<io::Error>,
}

impl Read for Sending<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.stream.read(buf) {
            Ok(count) => {
                self.hash.update(&buf[..count]);
                self.size += count as u64;
                self.ended |= count == 0 && !buf.is_empty();
                Ok(count)
            }
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(io::Error::new(kind, "the stream failed"))
            }
        }
    }
}

fn check_answer(shown: &str, answer: Response, ended: bool, sent: &Sent) -> Result<()> {
    if !matches!(answer.status().as_u16(), 200 | 201 | 204) {
        return Err(status_error(shown, &answer));
    }
    if !ended {
        let context = format!("{shown}: the server was content before it had everything");
        return Err(ImageError::new(ImageErrorKind::Truncated, context));
    }
    let media_type = header(&answer, "content-type").unwrap_or_default().to_ascii_lowercase();
    let media_type = media_type.split(';').next().unwrap_or_default().trim();
    if media_type != "application/json" && !media_type.ends_with("+json") {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let read = answer.into_body().into_reader().take(MAX_ANSWER).read_to_end(&mut bytes);
    read.map_err(|error| {
        ImageError::new(ImageErrorKind::Unreachable, format!("{shown}: its answer broke off"))
            .caused_by(error)
    })?;
    let receipt: Receipt = serde_json::from_slice(&bytes).map_err(|error| {
        ImageError::new(ImageErrorKind::Malformed, format!("{shown}: its answer is not the JSON it says"))
            .caused_by(error)
    })?;
    let digest = sent.digest.to_string();
    if let Some(other) = receipt.digest.filter(|stored| *stored != digest) {
        let context = format!("{shown}: the server stored {other:.80?}, sent was {digest}");
        return Err(ImageError::new(ImageErrorKind::DigestMismatch, context));
    }
    if let Some(other) = receipt.size_bytes.filter(|stored| *stored != sent.size) {
        let context = format!("{shown}: the server stored {other} bytes, sent were {}", sent.size);
        return Err(ImageError::new(ImageErrorKind::SizeMismatch, context));
    }
    Ok(())
}
