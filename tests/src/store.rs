//! An image store: a static web server over an OCI image layout, with the reading half of the registry API over the
//! same layout, uploads by `PUT` where a test wants them, and faults on demand.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// Connections served at once; more are closed.
const MAX_CONNECTIONS: usize = 32;
/// The largest file that is taken by `PUT`.
const MAX_UPLOAD: u64 = 8 << 30;
/// The longest head of a request.
const MAX_HEAD: u64 = 16 << 10;
/// Time a client has to send its request or take a piece of the answer.
const PATIENCE: Duration = Duration::from_secs(60);
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// What goes wrong with the answers for a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 404.
    NotFound,
    /// 503.
    Unavailable,
    /// The connection closes when this many bytes of the file were sent, over all its range requests.
    CloseAt(u64),
    /// The byte at this offset of the file is another.
    FlipAt(u64),
    /// A `PUT` is answered with 500, and the connection closes, once this many bytes of it came.
    RefuseAt(u64),
    /// Nothing more comes from this offset on, and the connection stays open while the fault is set.
    StallAt(u64),
}

struct Shared {
    folder: PathBuf,
    faults: Mutex<BTreeMap<String, Fault>>,
    /// What a `PUT` is answered with, in JSON; none is taken without it.
    receipt: Mutex<Option<String>>,
    /// What every request must carry.
    authorization: Mutex<Option<String>>,
    fired: AtomicUsize,
    connections: AtomicUsize,
    ended: AtomicBool,
}

/// See the module. The server ends when this is dropped.
pub struct Store {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Store {
    /// Serves the layout in `folder` on a free port of 127.0.0.1.
    pub fn start(folder: &Path) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("listening for the image store")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            faults: Mutex::default(),
            receipt: Mutex::default(),
            authorization: Mutex::default(),
            fired: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("image-store".to_owned())
            .spawn(move || accept(&listener, &serving))?;
        Ok(Self { shared, address })
    }

    /// Its URL on this machine.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its URL for a machine behind QEMU's user networking.
    pub fn guest_url(&self) -> String {
        format!("http://10.0.2.2:{}", self.address.port())
    }

    /// Lets the answers for paths that hold `part` go wrong.
    pub fn set_fault(&self, part: &str, fault: Fault) {
        self.shared.faults().insert(part.to_owned(), fault);
    }

    /// Takes files by `PUT` from now on, and answers with `receipt` (JSON; empty for 204 and no answer).
    pub fn take_uploads(&self, receipt: &str) {
        *self.shared.receipt.lock().unwrap_or_else(PoisonError::into_inner) = Some(receipt.to_owned());
    }

    /// Answers 401 to every request whose `Authorization` header is not this one.
    pub fn require_authorization(&self, value: &str) {
        *self.shared.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value.to_owned());
    }

    /// How many answers went wrong since the faults were last cleared.
    pub fn fired(&self) -> usize {
        self.shared.fired.load(Ordering::Relaxed)
    }

    /// Ends all faults, and tells how many answers went wrong since the last call.
    pub fn clear_faults(&self) -> usize {
        self.shared.faults().clear();
        self.shared.fired.swap(0, Ordering::Relaxed)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn faults(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Fault>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        self.faults().iter().find(|(part, _)| path.contains(part.as_str())).map(|(_, fault)| *fault)
    }

    fn fire(&self) {
        self.fired.fetch_add(1, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ended.load(Ordering::Relaxed) {
            return;
        }
        let Ok(stream) = stream else { continue };
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A client that goes away is its own affair.
            let _ = serve(&shared, stream);
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

struct Request {
    method: String,
    path: String,
    range: Option<(u64, Option<u64>)>,
    authorization: Option<String>,
    /// Chunked, or of that length.
    length: Option<u64>,
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Request> {
    let mut lines = reader.take(MAX_HEAD).lines();
    let mut next = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let first = next()?;
    let mut words = first.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
    let (mut range, mut authorization, mut length) = (None, None, None);
    loop {
        let line = next()?;
        if line.is_empty() {
            return Ok(Request { method, path, range, authorization, length });
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("authorization") {
            authorization = Some(value.trim().to_owned());
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
        if name.eq_ignore_ascii_case("range") {
            let ends = value.trim().strip_prefix("bytes=").and_then(|ends| ends.split_once('-'));
            range = ends.and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok())));
        }
    }
}

fn serve(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let request = read_request(&mut reader)?;
    let demanded = shared.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if demanded.is_some() && demanded != request.authorization {
        return answer(&mut stream, "401 Unauthorized", "who are you\n");
    }
    let fault = shared.fault(&request.path);
    match fault {
        Some(Fault::NotFound) => {
            shared.fire();
            return answer(&mut stream, "404 Not Found", "no such file\n");
        }
        Some(Fault::Unavailable) => {
            shared.fire();
            return answer(&mut stream, "503 Service Unavailable", "come back later\n");
        }
        _ => {}
    }
    let receipt = shared.receipt.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let ("PUT", Some(receipt)) = (request.method.as_str(), receipt) {
        return receive(shared, &mut stream, reader, &request, fault, &receipt);
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return answer(&mut stream, "405 Method Not Allowed", "this store is read-only\n");
    }
    if matches!(request.path.as_str(), "/v2" | "/v2/") {
        return answer(&mut stream, "200 OK", "{}");
    }
    match find(&shared.folder, &request.path).and_then(|(path, kind)| Some((File::open(path).ok()?, kind))) {
        Some((file, kind)) => send(shared, &mut stream, &request, file, kind, fault),
        None => answer(&mut stream, "404 Not Found", "no such file\n"),
    }
}

fn answer(stream: &mut TcpStream, status: &str, text: &str) -> io::Result<()> {
    let length = text.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}")
}

/// Takes a file, which is there only once all of it came.
fn receive(
    shared: &Shared,
    stream: &mut TcpStream,
    reader: BufReader<TcpStream>,
    request: &Request,
    fault: Option<Fault>,
    receipt: &str,
) -> io::Result<()> {
    let path = Path::new(request.path.trim_start_matches('/'));
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return answer(stream, "403 Forbidden", "not below the folder\n");
    }
    // The client waits for this before it sends.
    stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    let to = shared.folder.join(path);
    let part = to.with_extension("part");
    let mut file = File::create(&part)?;
    let mut body: Box<dyn Read> = match request.length {
        Some(length) => Box::new(Whole { left: length, reader }),
        None => Box::new(Chunked { reader, left: 0, ended: false }),
    };
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        match fault {
            Some(Fault::RefuseAt(offset)) if at >= offset => {
                shared.fire();
                return answer(stream, "500 Internal Server Error", "no more\n");
            }
            Some(Fault::CloseAt(offset)) if at >= offset => {
                shared.fire();
                return Ok(());
            }
            _ => {}
        }
        let count = body.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        at += count as u64;
        if at > MAX_UPLOAD {
            return answer(stream, "413 Content Too Large", "too large\n");
        }
        file.write_all(&buffer[..count])?;
    }
    std::fs::rename(part, to)?;
    if receipt.is_empty() {
        return write!(stream, "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    }
    let length = receipt.len();
    write!(
        stream,
        "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{receipt}"
    )
}

/// A body of a known length; less is an error.
struct Whole {
    reader: BufReader<TcpStream>,
    left: u64,
}

impl Read for Whole {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.reader).take(self.left).read(buf)?;
        if count == 0 && self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// A chunked body (RFC 9112 section 7.1); one without its last chunk is an error.
struct Chunked {
    reader: BufReader<TcpStream>,
    left: u64,
    ended: bool,
}

impl Chunked {
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.reader).take(MAX_HEAD).read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Read for Chunked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            let line = self.line()?;
            self.left = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            if self.left == 0 {
                self.ended = true;
                self.line()?;
                return Ok(0);
            }
        }
        let count = (&mut self.reader).take(self.left).read(buf)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        if self.left == 0 {
            self.line()?;
        }
        Ok(count)
    }
}

/// The file that a path names, and its media type.
fn find(folder: &Path, path: &str) -> Option<(PathBuf, &'static str)> {
    const BYTES: &str = "application/octet-stream";
    if let Some(path) = path.strip_prefix("/v2/") {
        let (head, reference) = path.rsplit_once('/')?;
        let digest = match head.rsplit_once('/')? {
            (_, "manifests") if reference.contains(':') => reference.to_owned(),
            (_, "manifests") => tagged(folder, reference)?,
            (_, "blobs") => reference.to_owned(),
            _ => return None,
        };
        let hex = digest.strip_prefix("sha256:")?;
        let known = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        let file = folder.join("blobs/sha256").join(hex);
        let kind = if head.ends_with("manifests") { manifest_type(&file) } else { BYTES };
        return known.then_some((file, kind));
    }
    let path = Path::new(path.strip_prefix('/')?);
    let below = path.components().all(|part| matches!(part, Component::Normal(_)));
    let file = folder.join(path);
    (below && file.is_file()).then_some((file, BYTES))
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn manifest_type(path: &Path) -> &'static str {
    match json(path) {
        Some(document) if document.get("manifests").is_some() => INDEX_TYPE,
        _ => MANIFEST_TYPE,
    }
}

fn tagged(folder: &Path, tag: &str) -> Option<String> {
    let index = json(&folder.join("index.json"))?;
    let named =
        |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(tag);
    let entry = index["manifests"].as_array()?.iter().find(named)?;
    entry["digest"].as_str().map(str::to_owned)
}

fn send(
    shared: &Shared,
    stream: &mut TcpStream,
    request: &Request,
    mut file: File,
    kind: &str,
    fault: Option<Fault>,
) -> io::Result<()> {
    let size = file.metadata()?.len();
    let (start, status) = match request.range {
        Some((from, _)) if from >= size => {
            return answer(stream, "416 Range Not Satisfiable", "");
        }
        Some((from, _)) => (from, "206 Partial Content"),
        None => (0, "200 OK"),
    };
    let end = match request.range {
        Some((from, Some(to))) => to.saturating_add(1).clamp(from, size),
        _ => size,
    };
    let mut head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\naccept-ranges: bytes\r\nconnection: close\r\n",
        end - start
    );
    if request.range.is_some() {
        head.push_str(&format!("content-range: bytes {start}-{}/{size}\r\n", end.saturating_sub(1)));
    }
    write!(stream, "{head}\r\n")?;
    if request.method == "HEAD" {
        return Ok(());
    }
    file.seek(SeekFrom::Start(start))?;
    send_body(shared, stream, &request.path, &mut file, start..end, fault)
}

fn send_body(
    shared: &Shared,
    stream: &mut TcpStream,
    path: &str,
    file: &mut File,
    range: std::ops::Range<u64>,
    fault: Option<Fault>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let stop = match fault {
            Some(Fault::CloseAt(offset) | Fault::StallAt(offset)) if at >= offset => offset,
            Some(Fault::CloseAt(offset) | Fault::StallAt(offset)) => offset.min(range.end),
            _ => range.end,
        };
        if stop <= at {
            shared.fire();
            // A stalled answer goes on when its fault is gone, so that no thread outlives a test by much.
            while matches!(fault, Some(Fault::StallAt(_)))
                && shared.fault(path) == fault
                && !shared.ended.load(Ordering::Relaxed)
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            return Ok(());
        }
        let want = usize::try_from(stop - at).unwrap_or(usize::MAX).min(buffer.len());
        let count = file.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(Fault::FlipAt(offset)) = fault
            && (at..at + count as u64).contains(&offset)
        {
            shared.fire();
            buffer[usize::try_from(offset - at).unwrap_or_default()] ^= 1;
        }
        stream.write_all(&buffer[..count])?;
        at += count as u64;
    }
    Ok(())
}
