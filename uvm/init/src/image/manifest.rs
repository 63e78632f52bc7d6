//! Index, manifest and configuration of an image: the OCI image specification 1.1 and the Docker v2
//! schema 2 documents it grew from. Pure: bytes in, values out.
//!
//! The documents are hostile until their digest was checked, and no friend afterwards: a digest says that
//! they are the ones meant, not that they were written with care.

use serde::Deserialize;

use super::error::{ImageError, ImageErrorKind, Result};
use super::reference::{Digest, Platform};

/// The most bytes an index, a manifest or a configuration may have (the distribution API's own advice).
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// The most layers of an image. Container engines stop at 127.
const MAX_LAYERS: usize = 256;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What we ask a registry for; without it some convert the manifest, and the digest no longer holds.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/octet-stream;q=0.5, */*;q=0.1";

/// How a layer's tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// A plain tar.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames.
    Zstd,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    /// Of the bytes as they are stored.
    pub(crate) digest: Digest,
    /// Bytes as they are stored.
    pub(crate) size: u64,
    /// How the tar is packed.
    pub(crate) compression: Compression,
    /// Of the uncompressed tar; a stream that is no layer of an image has none.
    pub(crate) diff_id: Option<Digest>,
}

/// What we use of an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageConfig {
    /// GOOS.
    pub(crate) os: String,
    /// GOARCH.
    pub(crate) architecture: String,
    /// The digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// A descriptor that we follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// What a digest turned out to name.
#[derive(Debug)]
pub(super) enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// The images of an index, not yet looked at.
#[derive(Debug)]
pub(super) struct Index(Vec<RawDescriptor>);

/// A manifest whose media types we know.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    layers: Vec<(Descriptor, Compression)>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
}

#[derive(Debug, Clone, Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
}

#[derive(Debug, Deserialize)]
struct RawConfig {
    os: String,
    architecture: String,
    rootfs: RawRootfs,
}

#[derive(Debug, Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

fn malformed(context: impl Into<String>) -> ImageError {
    ImageError::new(ImageErrorKind::Malformed, context)
}

fn unsupported(context: impl Into<String>) -> ImageError {
    ImageError::new(ImageErrorKind::Unsupported, context)
}

impl RawDescriptor {
    fn parse(&self) -> Result<Descriptor> {
        let digest = Digest::parse(&self.digest)?;
        Ok(Descriptor { media_type: self.media_type.clone(), digest, size: self.size })
    }
}

impl Document {
    /// Parses an index or a manifest; `announced` is the media type that the descriptor gave, if any.
    pub(super) fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self> {
        let raw: RawDocument = serde_json::from_slice(bytes)
            .map_err(|error| malformed("not an image index or manifest").caused_by(error))?;
        if let (Some(own), Some(announced)) = (raw.media_type.as_deref(), announced)
            && own != announced
        {
            return Err(malformed(format!("the descriptor says {announced:?}, the document says {own:?}")));
        }
        let media_type = raw.media_type.as_deref().or(announced);
        if let Some(unknown) = media_type.filter(|name| !is_index(name) && !is_manifest(name)) {
            return Err(unsupported(format!("media type {unknown:?} is not an image index or manifest")));
        }
        if raw.schema_version != 2 {
            return Err(unsupported(format!("schema version {} is not 2", raw.schema_version)));
        }
        // A document that could be read as both is how one digest was made to name two images (CVE-2021-41190).
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if media_type.is_none_or(is_index) => {
                Ok(Document::Index(Index(manifests)))
            }
            (None, Some(config), Some(layers)) if media_type.is_none_or(is_manifest) => {
                Ok(Document::Manifest(Manifest::parse(&config, &layers)?))
            }
            _ => {
                let name = media_type.unwrap_or("a document without a media type");
                Err(malformed(format!("{name} has the fields of something else, or misses its own")))
            }
        }
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

impl Index {
    /// The first entry for the platform; else the only one that names no platform.
    pub(super) fn select(&self, platform: &Platform) -> Result<Descriptor> {
        let usable =
            || self.0.iter().filter(|entry| is_index(&entry.media_type) || is_manifest(&entry.media_type));
        let fits = |entry: &&RawDescriptor| {
            entry
                .platform
                .as_ref()
                .is_some_and(|own| own.os == platform.os && own.architecture == platform.architecture)
        };
        if let Some(entry) = usable().find(fits) {
            return entry.parse();
        }
        let mut unnamed = usable().filter(|entry| entry.platform.is_none());
        if let (Some(entry), None) = (unnamed.next(), unnamed.next()) {
            return entry.parse();
        }
        let offered: Vec<String> = usable()
            .map(|entry| match &entry.platform {
                Some(own) => format!("{}/{}", own.os, own.architecture),
                None => "one without a platform".to_owned(),
            })
            .take(16)
            .collect();
        let offered = if offered.is_empty() { "no image".to_owned() } else { offered.join(", ") };
        Err(unsupported(format!("the index has no image for {platform}; it offers {offered}")))
    }
}

impl Manifest {
    fn parse(config: &RawDescriptor, layers: &[RawDescriptor]) -> Result<Self> {
        if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(unsupported(format!(
                "media type {:?} is not an image configuration",
                config.media_type
            )));
        }
        if layers.len() > MAX_LAYERS {
            let context = format!("{} layers are more than the limit of {MAX_LAYERS}", layers.len());
            return Err(ImageError::new(ImageErrorKind::TooLarge, context));
        }
        let config = config.parse()?;
        let layers: Result<_> =
            layers.iter().map(|layer| Ok((layer.parse()?, compression(&layer.media_type)?))).collect();
        Ok(Self { config, layers: layers? })
    }

    /// Joins the manifest with the configuration it names.
    pub(super) fn with_config(self, bytes: &[u8], platform: &Platform) -> Result<(ImageConfig, Vec<Layer>)> {
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|error| malformed("not an image configuration").caused_by(error))?;
        if raw.os != platform.os || raw.architecture != platform.architecture {
            let own = format!("{}/{}", raw.os, raw.architecture);
            return Err(unsupported(format!("the image is for {own:?}, not for {platform}")));
        }
        if raw.rootfs.kind != "layers" {
            return Err(unsupported(format!("rootfs type {:?} is not \"layers\"", raw.rootfs.kind)));
        }
        let diff_ids: Vec<Digest> =
            raw.rootfs.diff_ids.iter().map(|id| Digest::parse(id)).collect::<Result<_>>()?;
        if diff_ids.len() != self.layers.len() {
            let (layers, ids) = (self.layers.len(), diff_ids.len());
            return Err(malformed(format!(
                "the manifest has {layers} layers, the configuration {ids} diff_ids"
            )));
        }
        let layers = self
            .layers
            .into_iter()
            .zip(&diff_ids)
            .map(|((blob, compression), &diff_id)| Layer {
                digest: blob.digest,
                size: blob.size,
                compression,
                diff_id: Some(diff_id),
            })
            .collect();
        Ok((ImageConfig { os: raw.os, architecture: raw.architecture, diff_ids }, layers))
    }
}

/// Reads the compression off a layer's media type.
fn compression(media_type: &str) -> Result<Compression> {
    Ok(match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Compression::None
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd,
        other if other.ends_with("+encrypted") => {
            return Err(unsupported(format!("layer of media type {other:?} is encrypted")));
        }
        other if other.contains(".nondistributable.") || other.contains(".foreign.") => {
            return Err(unsupported(format!("layer of media type {other:?} is not kept by its store")));
        }
        other => return Err(unsupported(format!("media type {other:?} is not a layer we know"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn manifest(layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",
            "config":{{"mediaType":"{OCI_CONFIG}","digest":"sha256:{HEX}","size":2}},
            "layers":[{{"mediaType":"{layer_type}","digest":"sha256:{HEX}","size":5}}]}}"#
        )
    }

    fn refusal(text: &str, announced: Option<&str>) -> (ImageErrorKind, String) {
        let error = Document::parse(text.as_bytes(), announced).unwrap_err();
        (error.kind(), error.to_string())
    }

    #[test]
    fn layers_that_nobody_can_unpack_are_refused_by_name() {
        for name in [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.example.layer",
        ] {
            let (kind, context) = refusal(&manifest(name), None);
            assert_eq!(kind, ImageErrorKind::Unsupported);
            assert!(context.contains(name), "{context}");
        }
        let known = manifest("application/vnd.oci.image.layer.v1.tar+zstd");
        assert!(matches!(Document::parse(known.as_bytes(), Some(OCI_MANIFEST)), Ok(Document::Manifest(_))));
        assert_eq!(refusal(&known, Some(DOCKER_MANIFEST)).0, ImageErrorKind::Malformed);
    }

    #[test]
    fn ambiguous_old_and_other_documents_are_refused() {
        let both = manifest("application/vnd.oci.image.layer.v1.tar").replacen('{', r#"{"manifests":[],"#, 1);
        assert_eq!(refusal(&both, None).0, ImageErrorKind::Malformed);
        let old = r#"{"schemaVersion":1,"name":"x","tag":"y"}"#;
        assert_eq!(refusal(old, None).0, ImageErrorKind::Unsupported);
        let sha512 = manifest("application/vnd.oci.image.layer.v1.tar").replace("sha256:", "sha512:");
        let (kind, context) = refusal(&sha512, None);
        assert_eq!((kind, context.contains("sha512")), (ImageErrorKind::Unsupported, true));
        let traversal = manifest("application/vnd.oci.image.layer.v1.tar").replace(HEX, "../../etc/passwd");
        assert_eq!(refusal(&traversal, None).0, ImageErrorKind::Malformed);
        let negative = manifest("application/vnd.oci.image.layer.v1.tar").replace(":5}", ":-5}");
        assert_eq!(refusal(&negative, None).0, ImageErrorKind::Malformed);
        assert_eq!(refusal("{", None).0, ImageErrorKind::Malformed);
    }

    #[test]
    fn an_index_without_the_platform_says_what_it_has() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{HEX}","size":1,
            "platform":{{"os":"linux","architecture":"arm64"}}}}]}}"#
        );
        let Ok(Document::Index(index)) = Document::parse(index.as_bytes(), None) else {
            panic!("not an index")
        };
        let error = index.select(&Platform::default()).unwrap_err();
        assert_eq!(error.to_string(), "the index has no image for linux/amd64; it offers linux/arm64");
        let arm = Platform { architecture: "arm64".to_owned(), ..Platform::default() };
        assert_eq!(index.select(&arm).unwrap().size, 1);
    }

    #[test]
    fn configuration_and_manifest_must_agree() {
        let parse =
            || match Document::parse(manifest("application/vnd.oci.image.layer.v1.tar").as_bytes(), None) {
                Ok(Document::Manifest(manifest)) => manifest,
                other => panic!("not a manifest: {other:?}"),
            };
        let config = |os: &str, ids: &str| {
            format!(
                r#"{{"os":"{os}","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
            )
        };
        let id = format!(r#""sha256:{HEX}""#);
        let kind = |text: String| {
            parse()
                .with_config(text.as_bytes(), &Platform::default())
                .map(|_| ())
                .map_err(|error| error.kind())
        };
        assert_eq!(kind(config("linux", &id)), Ok(()));
        assert_eq!(kind(config("linux", "")), Err(ImageErrorKind::Malformed));
        assert_eq!(kind(config("windows", &id)), Err(ImageErrorKind::Unsupported));
    }
}
