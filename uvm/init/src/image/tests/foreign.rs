//! Images and registries that others made.

use super::*;

/// Runs a judge; that it is missing is a failure.
fn run(program: &str, arguments: &[&str]) {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn tar_image() -> Handmade {
    let layer = |name: &str, length: usize| {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{length:011o}\0").as_bytes());
        header[156] = b'0';
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        header.extend(noise(length));
        header.resize(512 + length.next_multiple_of(512) + 1024, 0);
        header
    };
    let layers = ["first", "second"].map(|name| layer(name, 100_000 * name.len()));
    Handmade::new(&layers.map(|tar| (GZIP, gzip(&tar), tar)))
}

#[test]
fn a_layout_that_skopeo_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let image = tar_image();
    image.write_layout(&from);
    let digest_file = folder.path().join("digest");
    let (from, to_name) = (format!("oci:{}:one", from.display()), format!("oci:{}:two", to.display()));
    let digest_name = digest_file.display().to_string();
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--dest-compress-format",
            "zstd",
            "--dest-compress",
            "--digestfile",
            &digest_name,
            &from,
            &to_name,
        ],
    );
    let digest = std::fs::read_to_string(&digest_file).unwrap();
    let resolved =
        pull_all(&client(), &layout(&format!("file://{}", to.display()), digest.trim()), &image.tars);
    for layer in &resolved.layers {
        assert_eq!(layer.compression, Compression::Zstd);
        let blob = to.join("blobs/sha256").join(layer.digest.hex());
        assert_eq!(layer.size, blob.metadata().unwrap().len());
    }
}

struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_registry_that_skopeo_pushed_to() {
    let folder = tempfile::tempdir().unwrap();
    let image = tar_image();
    image.write_layout(&folder.path().join("from"));
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = folder.path().join("config.yml");
    let root = folder.path().join("root");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
        root.display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _registry = Registry(child.unwrap_or_else(|error| panic!("docker-registry: {error}")));
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "docker-registry does not listen");
        thread::sleep(Duration::from_millis(50));
    }
    let from = format!("oci:{}:one", folder.path().join("from").display());
    let digest_file = folder.path().join("digest").display().to_string();
    // Once as OCI and once as Docker schema 2.
    for format in ["oci", "v2s2"] {
        let to = format!("docker://{address}/team/{format}:tag");
        run(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                "--format",
                format,
                "--digestfile",
                &digest_file,
                &from,
                &to,
            ],
        );
        let digest = std::fs::read_to_string(&digest_file).unwrap();
        let source =
            Source::Registry { url: format!("http://{address}"), repository: format!("team/{format}") };
        pull_all(&client(), &reference(source.clone(), digest.trim()), &image.tars);
        let error = client().resolve(&reference(source, &self::digest(b"absent"))).unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::NotFound);
    }
}
