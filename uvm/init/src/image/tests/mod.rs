//! The client against a web server that misbehaves on command, and against tools that others wrote.

mod foreign;
mod limits;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::layer::LayerVerified;
use super::manifest::Compression;
use super::*;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// A request as the server saw it.
struct Seen {
    path: String,
    headers: HashMap<String, String>,
}

/// What the server does with a request.
#[derive(Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Announce this length in place of the body's own.
    length: Option<usize>,
    /// No Content-Length: the end of the connection ends the body.
    close_delimited: bool,
    /// Keep the connection open and silent after the body.
    stall: bool,
}

fn ok(body: &[u8]) -> Reply {
    Reply { status: 200, body: body.to_vec(), ..Reply::default() }
}

fn status(status: u16) -> Reply {
    Reply { status, ..Reply::default() }
}

type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

struct Server {
    url: String,
    requests: Arc<AtomicUsize>,
}

fn serve(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    serve_with(Arc::new(script), None)
}

fn serve_with(script: Script, tls: Option<Arc<rustls::ServerConfig>>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = requests.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(std::result::Result::ok) {
            let (script, counter, tls) = (script.clone(), counter.clone(), tls.clone());
            thread::spawn(move || match tls {
                Some(tls) => {
                    let connection = rustls::ServerConnection::new(tls).unwrap();
                    converse(rustls::StreamOwned::new(connection, stream), &script, &counter);
                }
                None => converse::<TcpStream>(stream, &script, &counter),
            });
        }
    });
    Server { url, requests }
}

/// One request, one answer, and the connection closes.
fn converse<S: Read + Write>(stream: S, script: &Script, counter: &AtomicUsize) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    counter.fetch_add(1, Ordering::SeqCst);
    let reply = script(&Seen { path, headers });
    let mut head = format!("HTTP/1.1 {} Scripted\r\nconnection: close\r\n", reply.status);
    if !reply.close_delimited {
        head.push_str(&format!("content-length: {}\r\n", reply.length.unwrap_or(reply.body.len())));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let stream = stream.get_mut();
    // A client that has seen enough closes first.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes());
    let _ = stream.write_all(&reply.body);
    let _ = stream.flush();
    if reply.stall {
        thread::sleep(Duration::from_secs(20));
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::from_bytes(Sha256::digest(bytes).into()).hex())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress away, always the same.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// An image by hand: blobs by their digest, the digest of its index, and the tars.
#[derive(Clone)]
struct Handmade {
    blobs: HashMap<String, Vec<u8>>,
    index: String,
    manifest: (String, usize),
    tars: Vec<Vec<u8>>,
}

impl Handmade {
    /// Layers as (media type, stored bytes, tar).
    fn new(layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Self {
        let mut blobs = HashMap::new();
        let mut add = |bytes: &[u8]| {
            blobs.insert(digest(bytes), bytes.to_vec());
            (digest(bytes), bytes.len())
        };
        let ids: Vec<String> = layers.iter().map(|layer| format!("{:?}", digest(&layer.2))).collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        let (config, config_size) = add(config.as_bytes());
        let descriptors: Vec<String> = layers
            .iter()
            .map(|(media_type, stored, _)| {
                let (digest, size) = add(stored);
                format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#)
            })
            .collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":
            "application/vnd.oci.image.config.v1+json","digest":"{config}","size":{config_size}}},"layers":[{}]}}"#,
            descriptors.join(",")
        );
        let manifest = add(manifest.as_bytes());
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "digest":"{}","size":{},"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#,
            manifest.0, manifest.1
        );
        let index = add(index.as_bytes()).0;
        Self { blobs, index, manifest, tars: layers.iter().map(|layer| layer.2.clone()).collect() }
    }

    fn gzipped(length: usize) -> Self {
        let tar = noise(length);
        Self::new(&[(GZIP, gzip(&tar), tar)])
    }

    fn answer(&self, path: &str) -> Reply {
        let hex = path.rsplit(['/', ':']).next().unwrap();
        self.blobs.get(&format!("sha256:{hex}")).map_or_else(|| status(404), |blob| ok(blob))
    }

    fn layer_path(&self, image: &Image) -> String {
        format!("/blobs/sha256/{}", image.layers[0].digest.hex())
    }

    fn write_layout(&self, folder: &Path) {
        std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"one"}}}}]}}"#,
            self.manifest.0, self.manifest.1
        );
        std::fs::write(folder.join("index.json"), index).unwrap();
        for (digest, blob) in &self.blobs {
            std::fs::write(folder.join("blobs/sha256").join(&digest[7..]), blob).unwrap();
        }
    }
}

fn layout(url: &str, digest: &str) -> ImageReference {
    reference(Source::Layout { url: url.to_owned() }, digest)
}

fn reference(source: Source, digest: &str) -> ImageReference {
    ImageReference {
        source,
        reference: String::new(),
        digest: digest.to_owned(),
        platform: Platform::default(),
    }
}

fn options() -> ClientOptions {
    ClientOptions { read_timeout: Duration::from_millis(400), attempts: 3, ..ClientOptions::default() }
}

fn client() -> Client {
    Client::new(options()).unwrap()
}

/// Reads a layer to its end, as an unpacker does, and says what both ways of ending it say.
fn pull(client: &Client, reference: &ImageReference, layer: &Layer) -> Result<(Vec<u8>, LayerVerified)> {
    let mut reader = client.open_layer(reference, layer, 1 << 30)?;
    let mut tar = Vec::new();
    let read = reader.read_to_end(&mut tar);
    let again = reader.read(&mut [0; 16]);
    let verified = reader.finish();
    assert_eq!(read.is_ok(), verified.is_ok(), "{read:?}, {verified:?}");
    match (&verified, read) {
        (Err(error), Err(read)) => {
            assert_eq!(ImageError::from_io(&read).unwrap().kind(), error.kind());
            assert!(again.is_err(), "a failed layer ended cleanly when asked again");
        }
        _ => assert_eq!(again.unwrap(), 0),
    }
    verified.map(|verified| (tar, verified))
}

fn pull_all(client: &Client, reference: &ImageReference, tars: &[Vec<u8>]) -> Image {
    let image = client.resolve(reference).unwrap();
    assert_eq!(image.layers.len(), tars.len());
    for (layer, tar) in image.layers.iter().zip(tars) {
        let (bytes, verified) = pull(client, reference, layer).unwrap();
        assert!(bytes == *tar, "a layer's tar differs");
        assert_eq!(
            verified,
            LayerVerified { compressed_bytes: layer.size, uncompressed_bytes: tar.len() as u64 }
        );
    }
    image
}

/// Serves an image properly but for its first layer, which goes by `script`.
fn pull_with_layer_script(
    image: Handmade,
    script: impl Fn(&Seen, &[u8]) -> Reply + Send + Sync + 'static,
) -> (Result<(Vec<u8>, LayerVerified)>, usize) {
    let good = serve({
        let blobs = image.clone();
        move |seen| blobs.answer(&seen.path)
    });
    let resolved = client().resolve(&layout(&good.url, &image.index)).unwrap();
    let path = image.layer_path(&resolved);
    let bad = serve(move |seen| {
        let reply = image.answer(&seen.path);
        if seen.path == path { script(seen, &reply.body) } else { reply }
    });
    let result = pull(&client(), &layout(&bad.url, ""), &resolved.layers[0]);
    let requests = bad.requests.load(Ordering::SeqCst);
    (result, requests)
}

#[test]
fn a_layout_over_http_with_every_compression() {
    let tar = noise(300_000);
    let two_members = [gzip(&tar[..1000]), gzip(&tar[1000..])].concat();
    let image = Handmade::new(&[
        ("application/vnd.oci.image.layer.v1.tar", tar.clone(), tar.clone()),
        (GZIP, two_members, tar.clone()),
        (ZSTD, zstd::encode_all(&tar[..], 3).unwrap(), tar.clone()),
        (GZIP, gzip(b""), Vec::new()),
    ]);
    let (tars, index, manifest) = (image.tars.clone(), image.index.clone(), image.manifest.0.clone());
    let server = serve(move |seen| image.answer(&seen.path));
    let by_index = pull_all(&client(), &layout(&server.url, &index), &tars);
    let by_manifest = pull_all(&client(), &layout(&format!("{}/", server.url), &manifest), &tars);
    assert_eq!(by_index, by_manifest);
    assert_eq!(by_index.total_size, by_index.layers.iter().map(|layer| layer.size).sum::<u64>());
}

#[test]
fn what_is_not_there_is_named() {
    let server = serve(|_| status(404));
    let digest = digest(b"");
    let url = server.url.replace("http://", "http://user:secret@");
    let error = client().resolve(&layout(&url, &digest)).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        format!("{}/blobs/sha256/{}: HTTP 404 (Not Found)", server.url, &digest[7..])
    );
    assert_eq!(server.requests.load(Ordering::SeqCst), 1);
    let folder = tempfile::tempdir().unwrap();
    let missing = layout(&format!("file://{}", folder.path().display()), &digest);
    assert_eq!(client().resolve(&missing).unwrap_err().kind(), ImageErrorKind::NotFound);
}

#[test]
fn a_server_in_trouble_is_asked_again_and_no_more_than_agreed() {
    let server = serve(|_| status(503));
    let error = client().resolve(&layout(&server.url, &digest(b""))).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ImageErrorKind::ServerError, true));
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client().resolve(&layout(&format!("http://{closed}"), &digest(b""))).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ImageErrorKind::Unreachable, true));
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen_ranges = ranges.clone();
    let image = Handmade::gzipped(200_000);
    let (result, requests) = pull_with_layer_script(image, move |seen, body| {
        let etag = ("etag", "\"abc\"".to_owned());
        let Some(range) = seen.headers.get("range") else {
            let part = body[..70_000].to_vec();
            return Reply { headers: vec![etag], length: Some(body.len()), ..ok(&part) };
        };
        assert_eq!(seen.headers.get("if-range").map(String::as_str), Some("\"abc\""));
        seen_ranges.lock().unwrap().push(range.clone());
        let start: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
        let content_range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
        Reply { status: 206, headers: vec![("content-range", content_range)], ..ok(&body[start..]) }
    });
    assert_eq!(result.unwrap().0, noise(200_000));
    assert_eq!(requests, 2);
    assert_eq!(*ranges.lock().unwrap(), ["bytes=70000-"]);
}

#[test]
fn a_server_without_ranges_that_stops_half_way_is_a_truncation() {
    let (result, requests) = pull_with_layer_script(Handmade::gzipped(200_000), |_, body| Reply {
        length: Some(body.len()),
        ..ok(&body[..70_000])
    });
    let error = result.unwrap_err();
    assert_eq!((error.kind(), requests), (ImageErrorKind::Truncated, 2));
    assert!(error.to_string().contains("got 70000 of "), "{error}");
}

#[test]
fn an_early_clean_end_is_a_truncation() {
    let (result, _) = pull_with_layer_script(Handmade::gzipped(200_000), |seen, body| {
        if seen.headers.contains_key("range") {
            return status(416);
        }
        Reply { close_delimited: true, ..ok(&body[..100]) }
    });
    assert_eq!(result.unwrap_err().kind(), ImageErrorKind::Truncated);
}

#[test]
fn a_silent_server_is_left_and_a_cancel_is_heard() {
    let stalled =
        |_: &Seen, body: &[u8]| Reply { length: Some(body.len()), stall: true, ..ok(&body[..10_000]) };
    let begin = Instant::now();
    let (result, requests) = pull_with_layer_script(Handmade::gzipped(200_000), stalled);
    assert_eq!((result.unwrap_err().kind(), requests), (ImageErrorKind::Truncated, 2));
    assert!(begin.elapsed() < Duration::from_secs(10), "the stall was waited out");

    let cancel = Arc::new(AtomicBool::new(false));
    let client = Client::new(ClientOptions { cancel: cancel.clone(), ..options() }).unwrap();
    let image = Handmade::gzipped(2_000_000);
    let index = image.index.clone();
    let server = serve(move |seen| {
        let reply = image.answer(&seen.path);
        // Only the layer is that large.
        cancel.fetch_or(reply.body.len() > 1_000_000, Ordering::SeqCst);
        reply
    });
    let reference = layout(&server.url, &index);
    let layer = client.resolve(&reference).unwrap().layers[0].clone();
    let error = pull(&client, &reference, &layer).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ImageErrorKind::Cancelled, false));
}
