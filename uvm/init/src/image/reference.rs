//! Which image is meant, and where it is.

use std::path::PathBuf;
use std::{fmt, str};

use super::error::{ImageError, ImageErrorKind, Result};
use super::url::{Credentials, Url, percent_decode, without_secrets};

/// Where images are kept.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// An OCI image layout behind an `http(s)://` URL or in a `file://` folder.
    Layout {
        /// The folder that holds `oci-layout` and `blobs`; userinfo in it is used as credentials.
        url: String,
    },
    /// A registry that speaks the OCI distribution API.
    Registry {
        /// Scheme, host and port, and a path before `/v2/` if there is one.
        url: String,
        /// The name of the repository, such as `library/debian`.
        repository: String,
    },
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Layout { url } => f.debug_struct("Layout").field("url", &without_secrets(url)).finish(),
            Source::Registry { url, repository } => f
                .debug_struct("Registry")
                .field("url", &without_secrets(url))
                .field("repository", repository)
                .finish(),
        }
    }
}

/// The operating system and CPU that an image is for, in Go's words (`linux`, `amd64`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    /// GOOS.
    pub(crate) os: String,
    /// GOARCH.
    pub(crate) architecture: String,
}

impl Default for Platform {
    fn default() -> Self {
        Self { os: "linux".to_owned(), architecture: "amd64".to_owned() }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// One image, named so that nobody can swap it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageReference {
    /// The store.
    pub(crate) source: Source,
    /// A tag, for people. It is never looked up: the digest decides.
    pub(crate) reference: String,
    /// `sha256:<hex>` of the image's manifest or of an index that leads to it.
    pub(crate) digest: String,
    /// Which image of an index.
    pub(crate) platform: Platform,
}

/// A SHA-256 digest as OCI writes it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// The digest that a finished hash yields.
    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses `sha256:<64 lower-case hex digits>`; another algorithm is refused by its name.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let malformed = || {
            ImageError::new(
                ImageErrorKind::Malformed,
                format!("digest {text:?} is not sha256:<64 hex digits>"),
            )
        };
        let (algorithm, hex) = text.split_once(':').ok_or_else(malformed)?;
        if matches!(algorithm, "sha384" | "sha512" | "blake3") {
            let context = format!("digest algorithm {algorithm} is not supported, only sha256");
            return Err(ImageError::new(ImageErrorKind::Unsupported, context));
        }
        let lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if algorithm != "sha256" || hex.len() != 64 || !hex.bytes().all(lower_hex) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).map_err(|_| malformed())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }

    /// The hex digits alone, which name the blob's file in a layout.
    pub(crate) fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What sort of document a digest names: a registry keeps them in two places.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// An index or a manifest.
    Manifest,
    /// A configuration or a layer.
    Blob,
}

/// Where one blob is.
#[derive(Clone)]
pub(super) enum Location {
    /// Behind a URL.
    Http {
        /// The blob itself.
        url: Url,
        /// From the userinfo of the store's URL.
        credentials: Option<Credentials>,
        /// What a token is good for: one store, one repository.
        scope: String,
    },
    /// In a local folder.
    File(PathBuf),
}

impl Location {
    /// The place for messages, without secrets.
    pub(super) fn shown(&self) -> String {
        match self {
            Location::Http { url, .. } => url.shown(),
            Location::File(path) => path.display().to_string(),
        }
    }
}

impl Source {
    /// Where the store keeps what `digest` names.
    pub(super) fn locate(&self, digest: &Digest, sort: Sort) -> Result<Location> {
        match self {
            Source::Layout { url } => {
                let blob = format!("blobs/sha256/{}", digest.hex());
                if let Some(folder) = url.strip_prefix("file://") {
                    if !folder.starts_with('/') {
                        let context = format!("URL {url:?}: a file URL names an absolute path, file:///...");
                        return Err(ImageError::new(ImageErrorKind::Malformed, context));
                    }
                    return Ok(Location::File(PathBuf::from(percent_decode(folder)).join(blob)));
                }
                let (base, credentials) = base(url)?;
                Ok(Location::Http { url: base.append(&blob), credentials, scope: base.origin() })
            }
            Source::Registry { url, repository } => {
                check_repository(repository)?;
                let (base, credentials) = base(url)?;
                let folder = if sort == Sort::Manifest { "manifests" } else { "blobs" };
                let scope = format!("{}/{repository}", base.origin());
                let url = base.append(&format!("v2/{repository}/{folder}/{digest}"));
                Ok(Location::Http { url, credentials, scope })
            }
        }
    }
}

fn base(url: &str) -> Result<(Url, Option<Credentials>)> {
    let (base, credentials) = Url::parse(url)?;
    if base.has_query() {
        let context = format!("URL {}: a store's URL has no query", base.shown());
        return Err(ImageError::new(ImageErrorKind::Malformed, context));
    }
    Ok((base, credentials))
}

/// The distribution API's grammar of names, a little wider, and without `..` or empty components.
fn check_repository(repository: &str) -> Result<()> {
    let good = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    let good_component =
        |part: &str| part.bytes().all(good) && part.starts_with(|first: char| first.is_ascii_alphanumeric());
    if repository.len() <= 255 && repository.split('/').all(good_component) {
        return Ok(());
    }
    let context = format!("repository {repository:?} is not lower-case words joined by '/'");
    Err(ImageError::new(ImageErrorKind::Malformed, context))
}
