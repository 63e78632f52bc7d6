//! The client of the image store: OCI images from a layout behind any static web server, from a layout in
//! a local folder, and from a registry; captured devices to a server and back. Owns everything between a digest in
//! a job and a verified stream of bytes; what they say is somebody else's business.
//!
//! Standards: OCI image specification 1.1 (layout, index, manifest, config, layer), the pull part of the
//! OCI distribution specification 1.1, RFC 9110 (ranges, authentication, redirects).
//!
//! ```text
//! digest ─▶ index ─▶ (index) ─▶ manifest ─▶ config        resolve: small documents, each checked whole
//!                                   └─▶ layers ─▶ tar     open_layer: a stream, checked at its end
//! ```
//!
//! The digest decides: a tag is never looked up, and no byte counts before its digest was verified.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod blob;
mod error;
mod layer;
mod manifest;
mod reference;
mod stream;
#[cfg(test)]
mod tests;
mod transport;
mod url;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use blob::BlobStream;
use manifest::{Document, MAX_DOCUMENT_BYTES};
use reference::Sort;
use transport::Transport;

pub(crate) use archive::{Archive, is_stdin};
pub(crate) use error::{ImageError, ImageErrorKind, Result};
pub(crate) use layer::LayerReader;
pub(crate) use manifest::{ImageConfig, Layer};
pub(crate) use reference::{Digest, ImageReference, Platform, Source};
pub(crate) use stream::{SendError, StreamPlace};

/// The most indexes on the way to a manifest.
const MAX_INDEX_DEPTH: u32 = 2;

/// How a [`Client`] behaves.
#[derive(Clone)]
pub(crate) struct ClientOptions {
    /// The `User-Agent` header.
    pub(crate) user_agent: String,
    /// For resolving a name, and again for the connection with its TLS handshake.
    pub(crate) connect_timeout: Duration,
    /// The longest silence of a server before the connection counts as broken.
    pub(crate) read_timeout: Duration,
    /// Certificates to trust besides the public ones, in PEM.
    pub(crate) extra_ca_pem: Option<Vec<u8>>,
    /// How many connections one document or layer may take; at least 1 is made.
    pub(crate) attempts: u32,
    /// Set to end every transfer; looked at on each read, so a silent server is left at its timeout.
    pub(crate) cancel: Arc<AtomicBool>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            user_agent: concat!("uvm/", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(30),
            extra_ca_pem: None,
            attempts: 5,
            cancel: Arc::default(),
        }
    }
}

/// An image whose documents were fetched and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Of the manifest that the index led to.
    pub(crate) manifest_digest: Digest,
    /// Its configuration.
    pub(crate) config: ImageConfig,
    /// Lowest first.
    pub(crate) layers: Vec<Layer>,
    /// Stored bytes of all layers.
    pub(crate) total_size: u64,
}

/// What all streams of a client share.
struct Shared {
    options: ClientOptions,
    transport: Transport,
}

/// Fetches images.
#[derive(Clone)]
pub(crate) struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// A client; fails on certificates that are none.
    pub(crate) fn new(options: ClientOptions) -> Result<Self> {
        let transport = Transport::new(&options)?;
        Ok(Self { shared: Arc::new(Shared { options, transport }) })
    }

    /// Fetches and verifies index, manifest and configuration; no layer is touched.
    pub(crate) fn resolve(&self, reference: &ImageReference) -> Result<Image> {
        let mut digest = Digest::parse(&reference.digest)?;
        let mut size = None;
        let mut media_type: Option<String> = None;
        let mut depth = 0;
        let manifest = loop {
            let bytes = self.document(&reference.source, &digest, size, Sort::Manifest)?;
            let document =
                Document::parse(&bytes, media_type.as_deref()).map_err(|error| error.about(digest))?;
            match document {
                Document::Manifest(manifest) => break manifest,
                Document::Index(_) if depth == MAX_INDEX_DEPTH => {
                    let context = format!("{digest}: more than {MAX_INDEX_DEPTH} indexes inside each other");
                    return Err(ImageError::new(ImageErrorKind::Unsupported, context));
                }
                Document::Index(index) => {
                    let entry = index.select(&reference.platform).map_err(|error| error.about(digest))?;
                    (digest, size, media_type) = (entry.digest, Some(entry.size), Some(entry.media_type));
                    depth += 1;
                }
            }
        };
        let config = manifest.config.clone();
        let bytes = self.document(&reference.source, &config.digest, Some(config.size), Sort::Blob)?;
        let (config, layers) =
            manifest.with_config(&bytes, &reference.platform).map_err(|error| error.about(config.digest))?;
        let total_size = layers.iter().try_fold(0_u64, |total, layer| total.checked_add(layer.size));
        let total_size = total_size.ok_or_else(|| {
            ImageError::new(ImageErrorKind::Malformed, format!("{digest}: the sizes of the layers overflow"))
        })?;
        Ok(Image { manifest_digest: digest, config, layers, total_size })
    }

    /// Opens a layer; the connection is made on the first read. Unpacking to more than
    /// `max_uncompressed_bytes` is an error.
    pub(crate) fn open_layer(
        &self,
        reference: &ImageReference,
        layer: &Layer,
        max_uncompressed_bytes: u64,
    ) -> Result<LayerReader> {
        let location = reference.source.locate(&layer.digest, Sort::Blob)?;
        let blob = BlobStream::new(self.shared.clone(), location, Some(layer.size), u64::MAX)?;
        LayerReader::new(blob, layer, max_uncompressed_bytes)
    }

    /// A small document, verified whole.
    fn document(&self, source: &Source, digest: &Digest, size: Option<u64>, sort: Sort) -> Result<Vec<u8>> {
        let location = source.locate(digest, sort)?;
        let mut blob = BlobStream::new(self.shared.clone(), location, size, MAX_DOCUMENT_BYTES)?;
        if sort == Sort::Manifest {
            blob = blob.accepting_manifests();
        }
        let mut bytes = Vec::new();
        let mut buf = vec![0; 16 << 10];
        loop {
            let read = blob.read_some(&mut buf)?;
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&buf[..read]);
        }
        layer::check_digest(&blob.shown(), Sha256::new_with_prefix(&bytes), digest)?;
        Ok(bytes)
    }
}
