use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use uvm_api::{DeviceRef, ErrorCode, InspectSpec, JobSpec, JobState};

use super::{HttpsUtilityVm, UtilityVm, UvmError};
use crate::ca::{Authority, KeyPair};

const NOW: u64 = 1_900_000_000_000;

/// How a request is answered: status, type and body; `None` hangs up without a word.
type Answer = Option<(u16, &'static str, String)>;

/// Something that speaks as a utility VM does, with its configuration of TLS.
struct Server {
    _folder: tempfile::TempDir,
    authority: Authority,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

fn good(body: &Value) -> Answer {
    Some((200, "application/json", body.to_string()))
}

fn problem(code: ErrorCode) -> Answer {
    let problem = uvm_api::Problem::new(code, "in words");
    Some((problem.status, "application/problem+json", serde_json::to_string(&problem).unwrap()))
}

fn millis() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis().try_into().unwrap()
}

fn node() -> Value {
    json!({
        "name": "n1", "version": "1", "kernel": "6", "cpus": 1, "memory_bytes": 1, "rss_bytes": 1,
        "peak_rss_bytes": 1, "boot_time": "now", "boot_ms": 1, "public_key": "k",
    })
}

fn job(id: &str, state: &str) -> Value {
    json!({
        "id": id, "kind": "inspect", "device": "d", "state": state, "cancel_requested": false,
        "disk_state": "untouched", "plan_hash": "h", "created_at": "now",
    })
}

impl Server {
    /// `answer` gets the number of the connection and the request's method and path.
    fn start(answer: impl Fn(usize, &str) -> Answer + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path(), millis()).unwrap();
        let config = tls_config(&authority, &authority.issue_node("n1", &[], millis()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, requests) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let (counted, heard) = (Arc::clone(&connections), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let _ = serve(stream.unwrap(), Arc::clone(&config), &heard, |path| answer(number, path));
            }
        });
        Self { _folder: folder, authority, address, connections, requests }
    }

    fn client(&self) -> HttpsUtilityVm {
        let identity = self.authority.issue_client("controller", millis()).unwrap();
        self.client_as("n1", &identity)
    }

    fn client_as(&self, name: &str, identity: &KeyPair) -> HttpsUtilityVm {
        HttpsUtilityVm::new(self.address, name, self.authority.certificate_pem(), identity).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// As the utility VM's, but that a certificate is needed for everything.
fn tls_config(authority: &Authority, identity: &KeyPair) -> Arc<ServerConfig> {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der(authority.certificate_pem())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_slice(identity.private_key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![der(&identity.certificate)], key)
        .unwrap();
    Arc::new(config)
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    heard: &Mutex<Vec<String>>,
    answer: impl Fn(&str) -> Answer,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if stream.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let path = first.trim().trim_end_matches(" HTTP/1.1").to_owned();
        heard.lock().unwrap().push(format!("{path} {}", String::from_utf8(body).unwrap()).trim().to_owned());
        let Some((status, kind, body)) = answer(&path) else { return Ok(()) };
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
        stream.get_mut().flush()?;
    }
}

fn unreachable<T: std::fmt::Debug>(result: Result<T, UvmError>) -> String {
    match result {
        Err(UvmError::Unreachable(why)) => why,
        other => panic!("no answer was expected, not {other:?}"),
    }
}

#[test]
fn the_node_is_told_by_its_name_and_the_controller_by_its_certificate() {
    let server = Server::start(|_, _| good(&node()));
    assert_eq!(server.client().node().unwrap().name, "n1");
    let client = server.authority.issue_client("controller", millis()).unwrap();
    let why = unreachable(server.client_as("n2", &client).node());
    assert!(why.contains("certificate"), "another node's: {why}");
    // What a node has been given is worth nothing towards another.
    let node = server.authority.issue_node("n2", &[], millis()).unwrap();
    unreachable(server.client_as("n1", &node).node());
    let expired = server.authority.issue_client("controller", NOW - 1_000_000_000_000).unwrap();
    unreachable(server.client_as("n1", &expired).node());
    let other = Server::start(|_, _| good(&self::node()));
    let stranger = other.authority.issue_client("controller", millis()).unwrap();
    unreachable(server.client_as("n1", &stranger).node());
    let root = other.authority.certificate_pem();
    let deceived = HttpsUtilityVm::new(server.address, "n1", root, &client).unwrap();
    assert!(unreachable(deceived.node()).contains("certificate"));
    assert_eq!(server.requests(), ["GET /v1/node"], "the others were never heard");
}

#[test]
fn calls_are_what_the_utility_vm_knows() {
    let server = Server::start(|_, path| match path {
        "GET /v1/devices" => good(&json!([])),
        "POST /v1/jobs" | "GET /v1/jobs/j1" => good(&job("j1", "running")),
        "GET /v1/jobs" => good(&json!([job("a", "running"), job("b", "failed"), job("c", "running")])),
        "POST /v1/jobs/j1/cancel" => good(&job("j1", "running")),
        _ => problem(ErrorCode::NotFound),
    });
    let client = server.client();
    assert!(client.devices().unwrap().is_empty());
    let device = DeviceRef { serial: "d".to_owned(), size_bytes: None, must_be_blank: false };
    let spec = JobSpec::Inspect(InspectSpec { id: Some("j1".to_owned()), device });
    assert_eq!(client.submit(&spec).unwrap().state, JobState::Running);
    let sent = server.requests().pop().unwrap();
    assert_eq!(sent, r#"POST /v1/jobs {"kind":"inspect","id":"j1","device":{"serial":"d"}}"#);
    assert_eq!(client.job("j1").unwrap().unwrap().id, "j1");
    assert!(client.job("j2").unwrap().is_none());
    client.cancel("j1").unwrap();
    client.cancel("j2").unwrap();
    assert_eq!(client.jobs_running().unwrap(), 2);
    let heard = server.requests().len();
    for id in ["", "..", "a/b", "a?b", &"a".repeat(65)] {
        assert!(matches!(client.job(id), Err(UvmError::Problem(_))), "{id:?}");
        assert!(matches!(client.cancel(id), Err(UvmError::Problem(_))), "{id:?}");
    }
    assert_eq!(server.requests().len(), heard);
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "one connection carries them all");
}

#[test]
fn a_problem_is_told_and_nonsense_is_no_answer() {
    let server = Server::start(|_, path| match path {
        "GET /v1/node" => problem(ErrorCode::Overloaded),
        "GET /v1/devices" => good(&json!({ "devices": [] })),
        "GET /v1/jobs/redirected" => Some((302, "text/plain", String::new())),
        "GET /v1/jobs/endless" => Some((200, "application/json", " ".repeat(9 << 20))),
        _ => Some((500, "text/html", "<h1>Oops</h1>".to_owned())),
    });
    let client = server.client();
    let Err(UvmError::Problem(problem)) = client.node() else { panic!("a problem was expected") };
    assert_eq!((problem.code, problem.detail.as_str()), (ErrorCode::Overloaded, "in words"));
    assert!(unreachable(client.devices()).contains("cannot be understood"));
    assert!(unreachable(client.job("redirected")).contains("302"));
    assert!(unreachable(client.job("other")).contains("500"));
    unreachable(client.job("endless"));
}

#[test]
fn a_kept_connection_that_is_closed_is_no_failure() {
    let asked = AtomicUsize::new(0);
    let server = Server::start(move |connection, _| {
        // The first connection answers once, and dies with the next request on it.
        let first = connection > 0 || asked.fetch_add(1, Ordering::SeqCst) == 0;
        if first { good(&node()) } else { None }
    });
    let client = server.client();
    client.node().unwrap();
    client.node().unwrap();
    assert_eq!(server.requests().len(), 3, "the fault fired");
    assert_eq!(server.connections.load(Ordering::SeqCst), 2);
    // Hanging up every time is one.
    let server = Server::start(|_, _| None);
    unreachable(server.client().node());
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn who_takes_a_connection_and_says_nothing_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(|_, _| good(&node()));
    let identity = server.authority.issue_client("controller", millis()).unwrap();
    let patience = Duration::from_millis(100);
    let root = server.authority.certificate_pem();
    let address = silent.local_addr().unwrap();
    let client = HttpsUtilityVm::with_patience(address, "n1", root, &identity, patience).unwrap();
    assert!(unreachable(client.node()).contains("timeout"));
    drop(silent);
    unreachable(client.node());
}
