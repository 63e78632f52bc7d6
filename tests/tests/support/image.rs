//! OCI image layouts made by hand, entry by entry.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const KERNEL: &str = "6.1.0-1-amd64";
pub const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// How a layer is stored.
#[derive(Clone, Copy)]
pub enum Stored {
    Plain,
    Gzip,
    Zstd,
}

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// One tar entry; a hostile name is written as it is.
pub fn entry(name: &str, typeflag: u8, link: &str, contents: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, if typeflag == b'5' { b"0000755\0" } else { b"0000644\0" });
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", contents.len()).as_bytes());
    put(136, b"14000000000\0");
    put(148, b"        ");
    put(156, &[typeflag]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = vec![0; contents.len().next_multiple_of(512) - contents.len()];
    [&header, contents, &padding].concat()
}

pub fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// What a guest needs to be customized and booted, with a kernel of `kernel_bytes`.
pub fn guest(kernel_bytes: usize, leave_out: &str) -> Vec<Vec<u8>> {
    let kernel = [b"MZ".to_vec(), noise(kernel_bytes)].concat();
    let vmlinuz = format!("boot/vmlinuz-{KERNEL}");
    let initrd = format!("boot/initrd.img-{KERNEL}");
    let modules = format!("usr/lib/modules/{KERNEL}/modules.dep");
    let files: [(&str, &[u8]); 11] = [
        (&vmlinuz, &kernel),
        (&initrd, b"an initial RAM disk"),
        (&modules, b"\n"),
        (LOADER, b"MZ a boot loader"),
        ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/shadow", b"root:*:19000:0:99999:7:::\n"),
        ("etc/group", b"root:x:0:\n"),
        ("etc/gshadow", b"root:*::\n"),
        ("usr/lib/os-release", b"ID=debian\nPRETTY_NAME=\"A small guest\"\n"),
        ("usr/bin/sh", b"#!\n"),
        (
            "usr/lib/systemd/system/systemd-networkd.service",
            b"[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
        ),
    ];
    let mut entries: Vec<Vec<u8>> = files
        .iter()
        .filter(|(name, _)| leave_out.is_empty() || !name.contains(leave_out))
        .map(|(name, contents)| entry(name, b'0', "", contents))
        .collect();
    entries.push(entry("lib", b'2', "usr/lib", b""));
    entries.push(entry("bin", b'2', "usr/bin", b""));
    entries.push(entry("etc/os-release", b'2', "../usr/lib/os-release", b""));
    entries
}

/// Bytes that no compressor makes smaller, the same each time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub fn compress(tar: &[u8], stored: Stored) -> Vec<u8> {
    let tool = match stored {
        Stored::Plain => return tar.to_vec(),
        Stored::Gzip => "gzip",
        Stored::Zstd => "zstd",
    };
    let mut child =
        Command::new(tool).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(tool);
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(tar).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{tool}");
    output.stdout
}

/// A layout in a folder of its own.
pub struct Layout {
    pub folder: tempfile::TempDir,
    pub manifest: String,
    pub config: String,
    pub layers: Vec<String>,
}

impl Layout {
    pub fn new(layers: &[(Vec<u8>, Stored)]) -> Self {
        let stored: Vec<_> =
            layers.iter().map(|(tar, how)| (sha256(tar), compress(tar, *how), *how)).collect();
        Self::of_stored(&stored)
    }

    /// Of layers as (diff id, stored bytes, how they claim to be stored).
    pub fn of_stored(stored: &[(String, Vec<u8>, Stored)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        let diff_ids: Vec<&String> = stored.iter().map(|(id, ..)| id).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = blob(folder.path(), &serde_json::to_vec(&config).unwrap(), CONFIG_TYPE);
        let layers: Vec<Value> = stored
            .iter()
            .map(|(_, bytes, how)| {
                let suffix = match how {
                    Stored::Plain => "",
                    Stored::Gzip => "+gzip",
                    Stored::Zstd => "+zstd",
                };
                blob(folder.path(), bytes, &format!("application/vnd.oci.image.layer.v1.tar{suffix}"))
            })
            .collect();
        let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
        let (config_digest, layer_digests) = (digest(&config), layers.iter().map(digest).collect());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers});
        let mut manifest = blob(folder.path(), &serde_json::to_vec(&manifest).unwrap(), MANIFEST_TYPE);
        let manifest_digest = digest(&manifest);
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        std::fs::write(folder.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        std::fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { folder, manifest: manifest_digest, config: config_digest, layers: layer_digests }
    }

    /// A bootable guest, and these entries as a layer on top.
    pub fn with_entries(entries: &[Vec<u8>]) -> Self {
        Self::new(&[(archive(&guest(5000, "")), Stored::Zstd), (archive(entries), Stored::Gzip)])
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.folder.path().display())
    }

    pub fn blob_path(&self, digest: &str) -> std::path::PathBuf {
        self.folder.path().join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }
}

fn blob(folder: &Path, bytes: &[u8], media_type: &str) -> Value {
    let digest = sha256(bytes);
    std::fs::write(folder.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}
