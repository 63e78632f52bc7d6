//! A client of the appliance's API.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Body, http};
use uvm_api::{Device, Event, Health, Job, JobSpec, Node, Plan, PowerAction, PowerRequest, Problem};

use crate::KeyPair;

/// Longest silence of the appliance; its event streams send a comment every 15 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections of an event stream that may break before its reader gives up.
const MAX_RECONNECTIONS: u32 = 20;
/// Largest answer.
const MAX_ANSWER: u64 = 16 << 20;

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// The appliance answered with a problem.
    Problem(Box<Problem>),
    /// There was no answer, or none that can be understood.
    Transport(String),
}

impl ClientError {
    /// The appliance's problem.
    ///
    /// # Panics
    /// Where there was no answer at all: in a test that is the failure to show.
    pub fn problem(self) -> Problem {
        match self {
            Self::Problem(problem) => *problem,
            Self::Transport(why) => panic!("a problem was expected, there is no answer: {why}"),
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Problem(problem) => {
                write!(f, "{} ({}): {}", problem.title, problem.status, problem.detail)?;
                problem.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
            }
            Self::Transport(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ClientError {}

type Result<T> = std::result::Result<T, ClientError>;

fn transport(error: impl fmt::Display) -> ClientError {
    ClientError::Transport(error.to_string())
}

/// See the module.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    /// A client of `https://127.0.0.1:port` that trusts `authority` and shows `identity`, where it has one.
    pub fn new(port: u16, authority: &str, identity: Option<&KeyPair>) -> Result<Self> {
        Self::with_patience(port, authority, identity, PATIENCE)
    }

    /// The same, with another limit for the silence of the appliance.
    pub fn with_patience(
        port: u16,
        authority: &str,
        identity: Option<&KeyPair>,
        patience: Duration,
    ) -> Result<Self> {
        let root = Certificate::from_pem(authority.as_bytes()).map_err(transport)?;
        let shown = match identity {
            Some(pair) => {
                let certificate = Certificate::from_pem(pair.certificate.as_bytes()).map_err(transport)?;
                let key = PrivateKey::from_pem(pair.private_key.as_bytes()).map_err(transport)?;
                Some(ClientCert::new_with_certs(&[certificate], key))
            }
            None => None,
        };
        let tls =
            TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root])).client_cert(shown).build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            // Each call has a connection of its own: one that the appliance closed meanwhile is no failure.
            .max_idle_connections(0)
            .proxy(None)
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .build();
        Ok(Self { agent: config.into(), base: format!("https://127.0.0.1:{port}") })
    }

    /// `GET`, decoded.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        decode(self.agent.get(format!("{}{path}", self.base)).call().map_err(transport)?)
    }

    /// `GET`, as text.
    pub fn get_text(&self, path: &str) -> Result<String> {
        let response = self.agent.get(format!("{}{path}", self.base)).call().map_err(transport)?;
        String::from_utf8(accepted(response)?).map_err(transport)
    }

    /// `POST` of JSON: the status, and the answer (`null` where there is none).
    pub fn post(&self, path: &str, body: &impl Serialize) -> Result<(u16, serde_json::Value)> {
        let text = serde_json::to_vec(body).map_err(transport)?;
        let request = self.agent.post(format!("{}{path}", self.base));
        let response = request.content_type("application/json").send(&text[..]).map_err(transport)?;
        let status = response.status().as_u16();
        let bytes = accepted(response)?;
        let value =
            if bytes.is_empty() { Ok(serde_json::Value::Null) } else { serde_json::from_slice(&bytes) };
        Ok((status, value.map_err(transport)?))
    }

    fn post_for<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        serde_json::from_value(self.post(path, body)?.1).map_err(transport)
    }

    /// `GET /healthz`.
    pub fn healthz(&self) -> Result<Health> {
        self.get("/healthz")
    }

    /// `GET /v1/node`.
    pub fn node(&self) -> Result<Node> {
        self.get("/v1/node")
    }

    /// `GET /v1/devices`.
    pub fn devices(&self) -> Result<Vec<Device>> {
        self.get("/v1/devices")
    }

    /// `GET /v1/jobs/{id}`.
    pub fn job(&self, id: &str) -> Result<Job> {
        self.get(&format!("/v1/jobs/{id}"))
    }

    /// Submits a job.
    pub fn submit(&self, spec: &JobSpec) -> Result<Job> {
        self.post_for("/v1/jobs", spec)
    }

    /// The plan of a job.
    pub fn dry_run(&self, spec: &JobSpec) -> Result<Plan> {
        self.post_for("/v1/jobs?dry_run=true", spec)
    }

    /// Asks a job to end.
    pub fn cancel(&self, id: &str) -> Result<Job> {
        self.post_for(&format!("/v1/jobs/{id}/cancel"), &serde_json::json!({}))
    }

    /// Powers the node off or reboots it.
    pub fn power(&self, action: PowerAction, cancel_jobs: bool) -> Result<()> {
        self.post("/v1/power", &PowerRequest { action, cancel_jobs }).map(drop)
    }

    /// One connection's events after the sequence number `after`; ends when `on_event` says false.
    pub fn events(&self, id: &str, after: u64, on_event: &mut dyn FnMut(Event) -> bool) -> Result<()> {
        let request = self.agent.get(format!("{}/v1/jobs/{id}/events", self.base));
        let response = request.header("last-event-id", after.to_string()).call().map_err(transport)?;
        if !response.status().is_success() {
            return accepted(response).map(drop);
        }
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(transport)?;
            let Some(data) = line.strip_prefix("data:") else { continue };
            if !on_event(serde_json::from_str(data).map_err(transport)?) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Follows a job to its end; a broken connection is taken up after the last event seen.
    pub fn wait(&self, id: &str, on_event: &mut dyn FnMut(&Event)) -> Result<Job> {
        let (mut after, mut ended, mut broken) = (0, false, 0);
        while !ended {
            let result = self.events(id, after, &mut |event| {
                after = event.sequence;
                ended = event.body.is_last();
                on_event(&event);
                !ended
            });
            match result {
                Err(ClientError::Transport(_)) if !ended && broken < MAX_RECONNECTIONS => {
                    broken += 1;
                    std::thread::sleep(Duration::from_millis(200));
                }
                Err(error) if !ended => return Err(error),
                // A stream that ended well without its last event: the job is forgotten, or the server ended it.
                Ok(()) if !ended && broken < MAX_RECONNECTIONS => broken += 1,
                Ok(()) if !ended => return Err(transport(format!("no last event of job {id}"))),
                _ => {}
            }
        }
        self.job(id)
    }

    /// Waits until `done` is content with the devices; the list and how long it took.
    pub fn wait_for_devices(
        &self,
        timeout: Duration,
        done: impl Fn(&[Device]) -> bool,
    ) -> Result<(Vec<Device>, Duration)> {
        let started = Instant::now();
        loop {
            let devices = self.devices()?;
            if done(&devices) {
                return Ok((devices, started.elapsed()));
            }
            if started.elapsed() > timeout {
                return Err(transport(format!("after {timeout:?} the devices are {devices:?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn decode<T: DeserializeOwned>(response: http::Response<Body>) -> Result<T> {
    serde_json::from_slice(&accepted(response)?).map_err(transport)
}

/// The body of a good answer; the problem of another.
fn accepted(response: http::Response<Body>) -> Result<Vec<u8>> {
    let status = response.status();
    let problem = response
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
    let bytes = response.into_body().into_with_config().limit(MAX_ANSWER).read_to_vec().map_err(transport)?;
    if status.is_success() {
        return Ok(bytes);
    }
    if problem && let Ok(problem) = serde_json::from_slice(&bytes) {
        return Err(ClientError::Problem(Box::new(problem)));
    }
    Err(transport(format!("HTTP {status} without a problem: {}", String::from_utf8_lossy(&bytes))))
}
