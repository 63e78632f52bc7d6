//! A layer as a stream of tar bytes that cannot end cleanly unless it is the right one.
//!
//! Readers from the store up: blob (exact size, resuming) → SHA-256 of what is stored → gzip or Zstandard
//! → the caller's limit → SHA-256 of the tar. Both digests are checked at the end of the stream, before
//! the caller is told that it ended.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::blob::BlobStream;
use super::error::{ImageError, ImageErrorKind, Result};
use super::manifest::{Compression, Layer};
use super::reference::Digest;

/// The largest Zstandard window, as a power of two: 32 MiB, a quarter of the appliance's smallest memory.
/// All of zstd's levels to 20 stay within it; `--ultra -21`, `-22` and `--long=27` do not.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
const BUFFER_BYTES: usize = 128 << 10;

/// What was checked at the end of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerVerified {
    /// Bytes as they are stored.
    pub(crate) compressed_bytes: u64,
    /// Bytes of the tar.
    pub(crate) uncompressed_bytes: u64,
}

/// Reads the uncompressed tar of a layer.
///
/// Errors are [`ImageError`]s inside [`io::Error`]s (see [`ImageError::from_io`]) and stay: whoever reads
/// again gets the same one. What was read before the end is not verified yet.
pub(crate) struct LayerReader {
    decoder: Decoder,
    layer: Layer,
    shown: String,
    hash: Sha256,
    uncompressed_bytes: u64,
    max_uncompressed_bytes: u64,
    outcome: Option<Result<LayerVerified>>,
}

enum Decoder {
    Plain(Box<BufReader<Stored>>),
    Gzip(Box<MultiGzDecoder<BufReader<Stored>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Stored>>>),
}

/// The stored bytes, hashed as they pass.
struct Stored {
    blob: BlobStream,
    hash: Sha256,
}

impl Read for Stored {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read_some(buf)?;
        self.hash.update(&buf[..read]);
        Ok(read)
    }
}

impl Decoder {
    fn new(compression: Compression, stored: Stored) -> Result<Self> {
        let stored = BufReader::with_capacity(BUFFER_BYTES, stored);
        Ok(match compression {
            Compression::None => Decoder::Plain(Box::new(stored)),
            Compression::Gzip => Decoder::Gzip(Box::new(MultiGzDecoder::new(stored))),
            Compression::Zstd => {
                let decoder = zstd::Decoder::with_buffer(stored).and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                Decoder::Zstd(Box::new(decoder.map_err(|error| {
                    ImageError::new(ImageErrorKind::TooLarge, "no memory for a Zstandard decoder")
                        .caused_by(error)
                })?))
            }
        })
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(stored) => stored.read(buf),
            Decoder::Gzip(decoder) => decoder.read(buf),
            Decoder::Zstd(decoder) => decoder.read(buf),
        }
    }

    fn stored(&self) -> &Stored {
        match self {
            Decoder::Plain(stored) => stored.get_ref(),
            Decoder::Gzip(decoder) => decoder.get_ref().get_ref(),
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref(),
        }
    }

    fn stored_mut(&mut self) -> &mut Stored {
        match self {
            Decoder::Plain(stored) => stored.get_mut(),
            Decoder::Gzip(decoder) => decoder.get_mut().get_mut(),
            Decoder::Zstd(decoder) => decoder.get_mut().get_mut(),
        }
    }
}

impl LayerReader {
    pub(super) fn new(blob: BlobStream, layer: &Layer, max_uncompressed_bytes: u64) -> Result<Self> {
        let shown = blob.shown();
        let stored = Stored { blob, hash: Sha256::new() };
        Ok(Self {
            decoder: Decoder::new(layer.compression, stored)?,
            layer: layer.clone(),
            shown,
            hash: Sha256::new(),
            uncompressed_bytes: 0,
            max_uncompressed_bytes,
            outcome: None,
        })
    }

    /// Stored bytes that arrived so far, of [`Layer::size`].
    pub(crate) fn compressed_bytes(&self) -> u64 {
        self.decoder.stored().blob.position()
    }

    /// Reads what is left and says whether the layer was the right one. Nothing that came from this reader
    /// counts before this returned `Ok`.
    pub(crate) fn finish(mut self) -> Result<LayerVerified> {
        let mut buf = vec![0; BUFFER_BYTES];
        loop {
            if let Some(outcome) = self.outcome.take() {
                return outcome;
            }
            // An error ends up in the outcome.
            let _ = self.read_some(&mut buf);
        }
    }

    fn read_some(&mut self, buf: &mut [u8]) -> Result<usize> {
        let read = match self.decoder.read(buf) {
            Ok(read) => self.take(&buf[..read]),
            Err(error) => Err(self.diagnose(error)),
        };
        match read {
            Ok(0) => self.outcome = Some(self.verify()),
            Ok(_) => return read,
            Err(error) => self.outcome = Some(Err(error)),
        }
        match &self.outcome {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(0),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        let total = self.uncompressed_bytes.saturating_add(bytes.len() as u64);
        if total > self.max_uncompressed_bytes {
            let limit = self.max_uncompressed_bytes;
            let context = format!("{}: it unpacks to more than the {limit} bytes allowed", self.shown);
            return Err(ImageError::new(ImageErrorKind::TooLarge, context));
        }
        if self.layer.diff_id.is_some() {
            self.hash.update(bytes);
        }
        self.uncompressed_bytes = total;
        Ok(bytes.len())
    }

    /// At the end of the tar: are these the bytes that were meant?
    fn verify(&mut self) -> Result<LayerVerified> {
        let compressed_bytes = self.drain_stored()?;
        if let Some(expected) = self.layer.diff_id {
            let diff_id = Digest::from_bytes(std::mem::take(&mut self.hash).finalize().into());
            if diff_id != expected {
                let context = format!(
                    "{}: the uncompressed layer has the digest {diff_id}, its configuration says {expected}",
                    self.shown
                );
                return Err(ImageError::new(ImageErrorKind::DigestMismatch, context));
            }
        }
        Ok(LayerVerified { compressed_bytes, uncompressed_bytes: self.uncompressed_bytes })
    }

    /// Reads the stored bytes to their end and checks their digest.
    fn drain_stored(&mut self) -> Result<u64> {
        let expected = self.layer.digest;
        let stored = self.decoder.stored_mut();
        let mut buf = vec![0; BUFFER_BYTES];
        loop {
            let read = stored.blob.read_some(&mut buf)?;
            if read == 0 {
                break;
            }
            stored.hash.update(&buf[..read]);
        }
        check_digest(&self.shown, std::mem::take(&mut stored.hash), &expected)?;
        Ok(stored.blob.position())
    }

    /// Why decoding failed: the store broke off, the store has other bytes, or the image was made badly.
    /// To tell the last two apart costs the rest of the download, and saves a search in the wrong place.
    fn diagnose(&mut self, error: io::Error) -> ImageError {
        if let Some(known) = ImageError::from_io(&error) {
            return known;
        }
        if self.layer.compression == Compression::Zstd && error.to_string().contains("too much memory") {
            let limit = 1_u64 << ZSTD_WINDOW_LOG_MAX;
            let context = format!("{}: its Zstandard window is larger than {limit} bytes", self.shown);
            return ImageError::new(ImageErrorKind::Unsupported, context).caused_by(error);
        }
        let position = self.compressed_bytes();
        match self.drain_stored() {
            Err(cause) => cause.caused_by(error),
            Ok(_) => {
                let name = if self.layer.compression == Compression::Zstd { "Zstandard" } else { "gzip" };
                let context = format!("{}: not valid {name} before byte {position}", self.shown);
                ImageError::new(ImageErrorKind::Malformed, context).caused_by(error)
            }
        }
    }
}

impl Read for LayerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &self.outcome {
            Some(Ok(_)) => return Ok(0),
            Some(Err(error)) => return Err(error.clone().into()),
            None if buf.is_empty() => return Ok(0),
            None => {}
        }
        Ok(self.read_some(buf)?)
    }
}

/// Compares a finished hash with the digest that was asked for.
pub(super) fn check_digest(shown: &str, hash: Sha256, expected: &Digest) -> Result<()> {
    let actual = Digest::from_bytes(hash.finalize().into());
    if actual == *expected {
        return Ok(());
    }
    let context = format!("{shown}: the bytes have the digest {actual}, expected {expected}");
    Err(ImageError::new(ImageErrorKind::DigestMismatch, context))
}
