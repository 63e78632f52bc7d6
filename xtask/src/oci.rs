//! Writes an OCI image layout (image-spec 1.1): `oci-layout`, `index.json`, `blobs/sha256`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cache::hex;

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Level 9 packs a Debian within a hundredth of level 15, in an eighth of the time.
const ZSTD_LEVEL: i32 = 9;

/// A writer that counts and hashes what passes through it.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// The inner writer, the digest in OCI's spelling, and the count.
    fn finish(self) -> (W, String, u64) {
        (self.inner, format!("sha256:{}", hex(&self.hash.finalize())), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A layer being written: the caller writes a tar archive, which goes hashed, compressed and hashed again to its blob.
pub(crate) struct LayerWriter {
    stream: Hashing<zstd::Encoder<'static, Hashing<BufWriter<File>>>>,
    path: PathBuf,
}

impl Write for LayerWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A complete layer.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Digest of the compressed blob.
    pub(crate) digest: String,
    /// Digest of the tar archive.
    pub(crate) diff_id: String,
    /// Length of the compressed blob.
    pub(crate) bytes: u64,
    /// Length of the tar archive.
    pub(crate) tar_bytes: u64,
}

/// An image layout being written into a folder.
pub(crate) struct LayoutWriter {
    folder: PathBuf,
    layers: Vec<Layer>,
}

impl LayoutWriter {
    /// Starts a layout in an existing empty folder.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder.join("blobs/sha256")).context("making the image layout's folders")?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self { folder: folder.to_owned(), layers: Vec::new() })
    }

    /// Starts the next layer.
    pub(crate) fn layer(&self) -> Result<LayerWriter> {
        let path = self.folder.join("blobs/sha256").join(format!(".layer-{}", self.layers.len()));
        let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
        let encoder = zstd::Encoder::new(Hashing::new(BufWriter::with_capacity(1 << 20, file)), ZSTD_LEVEL)?;
        Ok(LayerWriter { stream: Hashing::new(encoder), path })
    }

    /// Completes a layer: what was written is the whole archive.
    pub(crate) fn add(&mut self, layer: LayerWriter) -> Result<Layer> {
        let (encoder, diff_id, tar_bytes) = layer.stream.finish();
        let (file, digest, bytes) = encoder.finish().context("compressing a layer")?.finish();
        file.into_inner().map_err(io::IntoInnerError::into_error).context("writing a layer")?;
        fs::rename(&layer.path, self.blob(&digest)).context("naming a layer by its digest")?;
        let layer = Layer { digest, diff_id, bytes, tar_bytes };
        self.layers.push(layer.clone());
        Ok(layer)
    }

    /// Writes config, manifest and index, and returns the manifest's digest.
    pub(crate) fn finish(self, title: &str, reference: &str) -> Result<String> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = self.document(
            CONFIG_TYPE,
            &json!({
                "architecture": "amd64",
                "os": "linux",
                "config": { "Labels": { "org.opencontainers.image.title": title } },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
        )?;
        let layers: Vec<_> =
            self.layers.iter().map(|layer| descriptor(LAYER_TYPE, &layer.digest, layer.bytes)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config,
            "layers": layers,
            "annotations": { "org.opencontainers.image.title": title },
        });
        let mut manifest = self.document(MANIFEST_TYPE, &manifest)?;
        let digest = manifest["digest"].as_str().unwrap_or_default().to_owned();
        manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [manifest] });
        fs::write(self.folder.join("index.json"), serde_json::to_vec(&index)?)
            .context("writing index.json")?;
        Ok(digest)
    }

    /// Writes a JSON blob and returns its descriptor.
    fn document(&self, media_type: &str, value: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        fs::write(self.blob(&digest), &bytes).context("writing a blob")?;
        Ok(descriptor(media_type, &digest, bytes.len() as u64))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs").join(digest.replacen(':', "/", 1))
    }
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}
