//! The client against a web server that misbehaves on command, and against tools that others wrote.

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

#[test]
fn indexes_inside_each_other_end_at_two() {
    let mut image = Handmade::gzipped(1000);
    let wrap = |image: &mut Handmade| {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json",
            "digest":"{}","size":{}}}]}}"#,
            image.index,
            image.blobs[&image.index].len()
        );
        image.index = digest(index.as_bytes());
        image.blobs.insert(image.index.clone(), index.into_bytes());
        image.index.clone()
    };
    let (two, three) = (wrap(&mut image), wrap(&mut image));
    let tars = image.tars.clone();
    let server = serve(move |seen| image.answer(&seen.path));
    pull_all(&client(), &layout(&server.url, &two), &tars);
    let error = client().resolve(&layout(&server.url, &three)).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unsupported);
}

#[test]
fn wrong_bytes_and_wrong_sizes_are_told_apart() {
    let flip = |at: usize| {
        move |_: &Seen, body: &[u8]| {
            let mut body = body.to_vec();
            body[at] ^= 1;
            ok(&body)
        }
    };
    // In the gzip header, where the decoder fails first, and in the data.
    for at in [1, 100_000] {
        let (result, _) = pull_with_layer_script(Handmade::gzipped(200_000), flip(at));
        assert_eq!(result.unwrap_err().kind(), ImageErrorKind::DigestMismatch, "byte {at}");
    }
    let longer = |_: &Seen, body: &[u8]| ok(&[body, b"x"].concat());
    let (result, _) = pull_with_layer_script(Handmade::gzipped(1000), longer);
    assert_eq!(result.unwrap_err().kind(), ImageErrorKind::SizeMismatch);
    let unannounced = |_: &Seen, body: &[u8]| Reply { close_delimited: true, ..ok(&[body, b"x"].concat()) };
    let (result, _) = pull_with_layer_script(Handmade::gzipped(1000), unannounced);
    assert_eq!(result.unwrap_err().kind(), ImageErrorKind::SizeMismatch);
}

#[test]
fn layers_that_are_not_what_their_image_says() {
    let tar = noise(50_000);
    let cut = gzip(&tar)[..20_000].to_vec();
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&tar).unwrap();
    let cases = [
        (GZIP, gzip(&tar), b"another tar".to_vec(), ImageErrorKind::DigestMismatch),
        (GZIP, tar.clone(), tar.clone(), ImageErrorKind::Malformed),
        (GZIP, cut, tar.clone(), ImageErrorKind::Malformed),
        (ZSTD, gzip(&tar), tar.clone(), ImageErrorKind::Malformed),
        (ZSTD, wide.finish().unwrap(), tar.clone(), ImageErrorKind::Unsupported),
    ];
    for (media_type, stored, tar, kind) in cases {
        let image = Handmade::new(&[(media_type, stored, tar)]);
        let index = image.index.clone();
        let server = serve(move |seen| image.answer(&seen.path));
        let reference = layout(&server.url, &index);
        let resolved = client().resolve(&reference).unwrap();
        let error = pull(&client(), &reference, &resolved.layers[0]).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[test]
fn a_bomb_stops_at_the_callers_limit() {
    let tar = vec![0; 50 << 20];
    let image = Handmade::new(&[(ZSTD, zstd::encode_all(&tar[..], 1).unwrap(), tar)]);
    let index = image.index.clone();
    let server = serve(move |seen| image.answer(&seen.path));
    let reference = layout(&server.url, &index);
    let layer = client().resolve(&reference).unwrap().layers[0].clone();
    let error = client().open_layer(&reference, &layer, 1 << 20).unwrap().finish().unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::TooLarge);
    assert!(client().open_layer(&reference, &layer, 50 << 20).unwrap().finish().is_ok());
}

#[test]
fn documents_are_verified_and_bounded() {
    let server = serve(|_| ok(b"{}"));
    let error = client().resolve(&layout(&server.url, &digest(b"other"))).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::DigestMismatch);
    let endless = serve(|_| Reply { close_delimited: true, ..ok(&vec![b' '; 5 << 20]) });
    let announced = serve(|_| Reply { length: Some(5 << 20), ..ok(b"{") });
    for url in [&endless.url, &announced.url] {
        let error = client().resolve(&layout(url, &digest(b""))).unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::TooLarge);
    }
}

#[test]
fn redirects_are_bounded_and_carry_no_credentials_away() {
    let image = Handmade::gzipped(1000);
    let (index, tars) = (image.index.clone(), image.tars.clone());
    let leaked = Arc::new(AtomicUsize::new(0));
    let leaks = leaked.clone();
    let storage = serve(move |seen| {
        leaks.fetch_add(seen.headers.contains_key("authorization").into(), Ordering::SeqCst);
        image.answer(seen.path.split('?').next().unwrap())
    });
    let target = storage.url.clone();
    let authorized = Arc::new(AtomicUsize::new(0));
    let authorizations = authorized.clone();
    let front = serve(move |seen| {
        if seen.headers.get("authorization").map(String::as_str) != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Reply {
                headers: vec![("www-authenticate", "Basic realm=\"x\"".to_owned())],
                ..status(401)
            };
        }
        authorizations.fetch_add(1, Ordering::SeqCst);
        Reply { headers: vec![("location", format!("{target}{}?signature=1", seen.path))], ..status(307) }
    });
    let url = front.url.replace("http://", "http://user:secret@");
    pull_all(&client(), &layout(&url, &index), &tars);
    assert_eq!((authorized.load(Ordering::SeqCst), leaked.load(Ordering::SeqCst)), (4, 0));
    assert_eq!(
        client().resolve(&layout(&front.url, &index)).unwrap_err().kind(),
        ImageErrorKind::Unauthorized
    );

    for (location, requests) in [("/again", 6), ("file:///etc/passwd", 1), ("ftp://host/x", 1)] {
        let server =
            serve(move |_| Reply { headers: vec![("location", location.to_owned())], ..status(302) });
        let error = client().resolve(&layout(&server.url, &index)).unwrap_err();
        assert_eq!(error.kind(), ImageErrorKind::Unsupported, "{location}");
        assert_eq!(server.requests.load(Ordering::SeqCst), requests, "{location}");
    }
}

#[test]
fn a_bearer_challenge_is_answered_with_a_token() {
    let image = Handmade::gzipped(1000);
    let (index, tars) = (image.index.clone(), image.tars.clone());
    let tokens = serve(|seen| {
        assert_eq!(seen.path, "/token?service=s%2C1&scope=repository%3Aa%2Fb%3Apull%2Cpush");
        assert_eq!(seen.headers.get("authorization").map(String::as_str), Some("Basic dXNlcjpzZWNyZXQ="));
        ok(br#"{"token":"t0"}"#)
    });
    let realm = format!("{}/token", tokens.url);
    let registry = serve(move |seen| {
        assert!(seen.path.starts_with("/v2/a/b/"), "{}", seen.path);
        if seen.headers.get("authorization").map(String::as_str) == Some("Bearer t0") {
            return image.answer(&seen.path);
        }
        let challenge = format!(r#"Bearer realm="{realm}",service="s,1",scope="repository:a/b:pull,push""#);
        Reply { headers: vec![("www-authenticate", challenge)], ..status(401) }
    });
    let url = registry.url.replace("http://", "http://user:secret@");
    let source = Source::Registry { url, repository: "a/b".to_owned() };
    assert!(!format!("{source:?}").contains("secret"));
    pull_all(&client(), &reference(source, &index), &tars);
    assert_eq!(tokens.requests.load(Ordering::SeqCst), 1, "the token was not kept");
}

#[test]
fn https_with_an_own_authority_and_no_way_back_to_http() {
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let pem = key.cert.pem().into_bytes();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let image = Handmade::gzipped(100_000);
    let (index, tars) = (image.index.clone(), image.tars.clone());
    let script: Script = Arc::new(move |seen: &Seen| {
        if seen.path.starts_with("/down/") {
            return Reply { headers: vec![("location", "http://127.0.0.1:9/".to_owned())], ..status(302) };
        }
        image.answer(&seen.path)
    });
    let server = serve_with(script, Some(Arc::new(tls)));
    let error = client().resolve(&layout(&server.url, &index)).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ImageErrorKind::Untrusted, false), "{error}");
    let trusting = Client::new(ClientOptions { extra_ca_pem: Some(pem), ..options() }).unwrap();
    pull_all(&trusting, &layout(&server.url, &index), &tars);
    let error = trusting.resolve(&layout(&format!("{}/down", server.url), &index)).unwrap_err();
    assert_eq!(error.kind(), ImageErrorKind::Unsupported);
    assert!(error.to_string().contains("from https to http://127.0.0.1:9/"), "{error}");
    let none = Client::new(ClientOptions { extra_ca_pem: Some(b"no PEM".to_vec()), ..options() });
    assert_eq!(none.err().unwrap().kind(), ImageErrorKind::Malformed);
}

#[test]
fn references_that_cannot_be_meant_are_refused_unasked() {
    let kind =
        |source: Source, digest: &str| client().resolve(&reference(source, digest)).unwrap_err().kind();
    let registry = |repository: &str| Source::Registry {
        url: "http://127.0.0.1:9".to_owned(),
        repository: repository.to_owned(),
    };
    for repository in ["", "../x", "a//b", "A", "a?b", "a/../b"] {
        assert_eq!(kind(registry(repository), &digest(b"")), ImageErrorKind::Malformed, "{repository}");
    }
    for (text, expected) in [
        ("", ImageErrorKind::Malformed),
        ("sha256:../../../etc/passwd", ImageErrorKind::Malformed),
        (&digest(b"").to_uppercase(), ImageErrorKind::Malformed),
        ("sha512:00", ImageErrorKind::Unsupported),
    ] {
        assert_eq!(kind(registry("a"), text), expected, "{text}");
    }
}

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
