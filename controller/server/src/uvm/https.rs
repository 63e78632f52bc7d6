//! The utility VM over HTTPS with mutual TLS.
//!
//! A utility VM is reached at an address that its hypervisor tells and that changes with every start. Its certificate
//! is for its node's name: the name is what is called, and leads to that address alone.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, http};
use uvm_api::{Device, ErrorCode, Job, JobSpec, JobState, Node, Problem};

use super::{UtilityVm, UvmError};
use crate::ca::KeyPair;

/// Time to connect, the TLS handshake included.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Largest answer: a thousand jobs, or the devices of a full node.
const MAX_ANSWER: u64 = 8 << 20;
/// Idle connections are closed by the utility VM after 10 s; they are given up before.
const MAX_IDLE: Duration = Duration::from_secs(5);
/// Connections kept: polls of several jobs go on at once.
const MAX_IDLE_CONNECTIONS: usize = 4;
/// Times a call is made: again once where a kept connection turns out to be closed. Every call is idempotent.
const MAX_ATTEMPTS: usize = 2;
/// Longest job id that is put in a path, as the utility VM has it.
const MAX_ID: usize = 64;

type Result<T> = std::result::Result<T, UvmError>;

/// See the module.
pub struct HttpsUtilityVm {
    agent: Agent,
    base: String,
}

/// Leads every name to one address.
#[derive(Debug)]
struct Pinned(SocketAddr);

impl Resolver for Pinned {
    fn resolve(
        &self,
        _: &http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(self.0);
        Ok(addresses)
    }
}

fn unreachable(error: impl std::fmt::Display) -> UvmError {
    UvmError::Unreachable(error.to_string())
}

impl HttpsUtilityVm {
    /// The utility VM of the node `name` at `address`, which must show a certificate of `authority` (PEM) for that
    /// name, and is shown `identity`.
    pub fn new(address: SocketAddr, name: &str, authority: &str, identity: &KeyPair) -> Result<Self> {
        Self::with_patience(address, name, authority, identity, CONNECT)
    }

    /// The same with another time to connect: a hypervisor takes connections before its utility VM can, and one that
    /// came too early hangs for long.
    pub fn with_patience(
        address: SocketAddr,
        name: &str,
        authority: &str,
        identity: &KeyPair,
        connect: Duration,
    ) -> Result<Self> {
        let root = Certificate::from_pem(authority.as_bytes()).map_err(unreachable)?;
        let certificate = Certificate::from_pem(identity.certificate.as_bytes()).map_err(unreachable)?;
        let key = PrivateKey::from_pem(identity.private_key.as_bytes()).map_err(unreachable)?;
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&[root]))
            .client_cert(Some(ClientCert::new_with_certs(&[certificate], key)))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .accept_encoding("identity")
            .timeout_connect(Some(connect))
            .timeout_per_call(Some(connect + ANSWER))
            .max_idle_age(MAX_IDLE)
            .max_idle_connections(MAX_IDLE_CONNECTIONS)
            .max_idle_connections_per_host(MAX_IDLE_CONNECTIONS)
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::default(), Pinned(address));
        Ok(Self { agent, base: format!("https://{name}:{}", address.port()) })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        decode(&attempt(|| self.agent.get(format!("{}{path}", self.base)).call())?)
    }

    fn post(&self, path: &str, body: &impl Serialize) -> Result<Vec<u8>> {
        let text = serde_json::to_vec(body).map_err(unreachable)?;
        attempt(|| {
            let request = self.agent.post(format!("{}{path}", self.base));
            request.content_type("application/json").send(&text[..])
        })
    }
}

impl UtilityVm for HttpsUtilityVm {
    fn node(&self) -> Result<Node> {
        self.get("/v1/node")
    }

    fn devices(&self) -> Result<Vec<Device>> {
        self.get("/v1/devices")
    }

    fn submit(&self, spec: &JobSpec) -> Result<Job> {
        decode(&self.post("/v1/jobs", spec)?)
    }

    fn job(&self, id: &str) -> Result<Option<Job>> {
        known(self.get(&format!("/v1/jobs/{}", checked(id)?)))
    }

    fn cancel(&self, id: &str) -> Result<()> {
        let nothing = serde_json::json!({});
        known(self.post(&format!("/v1/jobs/{}/cancel", checked(id)?), &nothing)).map(drop)
    }

    fn jobs_running(&self) -> Result<usize> {
        let jobs: Vec<Job> = self.get("/v1/jobs")?;
        Ok(jobs.iter().filter(|job| job.state == JobState::Running).count())
    }
}

/// An id that is nothing but one part of a path.
fn checked(id: &str) -> Result<&str> {
    let fits = (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !id.starts_with('.');
    if fits {
        return Ok(id);
    }
    let problem = Problem::new(ErrorCode::InvalidRequest, format!("{id:?} is no id of a job"));
    Err(UvmError::Problem(Box::new(problem)))
}

/// `None` for what the utility VM does not know.
fn known<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(UvmError::Problem(problem)) if problem.code == ErrorCode::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// The body of a good answer, after another attempt where the connection was a dead one.
fn attempt(
    mut call: impl FnMut() -> std::result::Result<http::Response<Body>, ureq::Error>,
) -> Result<Vec<u8>> {
    for _ in 1..MAX_ATTEMPTS {
        match call() {
            Err(ureq::Error::Io(error)) if is_dead_connection(error.kind()) => {}
            other => return accepted(other.map_err(unreachable)?),
        }
    }
    accepted(call().map_err(unreachable)?)
}

fn is_dead_connection(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

/// The body of a good answer; the problem of another.
fn accepted(response: http::Response<Body>) -> Result<Vec<u8>> {
    let status = response.status();
    let problem = response
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    let bytes =
        response.into_body().into_with_config().limit(MAX_ANSWER).read_to_vec().map_err(unreachable)?;
    if status.is_success() {
        return Ok(bytes);
    }
    if problem && let Ok(problem) = serde_json::from_slice(&bytes) {
        return Err(UvmError::Problem(Box::new(problem)));
    }
    Err(unreachable(format!("HTTP {status} without a problem")))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| unreachable(format!("an answer that cannot be understood: {error}")))
}
