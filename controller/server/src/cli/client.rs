//! A client of the API: HTTPS, a bearer token, and patience with connections that fail.

use std::io::Read;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, http};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::failure::{Failure, Result};
use crate::config::ClientConfig;
use crate::model::Problem;

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for an answer: the API gives up on its own after 30 s, and says so.
const ANSWER: Duration = Duration::from_secs(40);
/// Longest silence in a stream of events: the API sends a comment every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// Largest answer: a page of a thousand records.
const MAX_ANSWER: u64 = 16 << 20;
/// Pauses before a call is made again, the same key with it.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(600), Duration::from_millis(1_500)];
/// Records asked for at once.
const PAGE: usize = 1_000;
/// Pages of one list.
const MAX_PAGES: usize = 1_000;

/// Parameters of a request.
pub(super) type Query = Vec<(&'static str, String)>;

/// How something is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Post,
    Patch,
    Delete,
}

/// See the module.
pub(super) struct Client {
    agent: Agent,
    base: String,
    authorization: Zeroizing<String>,
}

impl Client {
    pub(super) fn new(config: &ClientConfig) -> Result<Self> {
        let mut tls = TlsConfig::builder();
        if let Some(pem) = &config.ca {
            let authority = Certificate::from_pem(pem.as_bytes()).map_err(|error| {
                Failure::usage(format!("the certificate authority is no PEM certificate: {error}"))
            })?;
            tls = tls.root_certs(RootCerts::new_with_certs(&[authority]));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .https_only(true)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_per_read(Some(SILENCE))
            .build()
            .new_agent();
        let authorization = Zeroizing::new(format!("Bearer {}", config.token()));
        Ok(Self { agent, base: config.url.clone(), authorization })
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn getting(&self, path: &str, query: &Query) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let pairs = query.iter().map(|(name, value)| (*name, value.as_str()));
        self.agent.get(self.url(path)).query_pairs(pairs).header("authorization", self.authorization.as_str())
    }

    pub(super) fn get(&self, path: &str, query: &Query) -> Result<Value> {
        self.patiently(|| self.getting(path, query).call())
    }

    /// Sends what changes nothing.
    pub(super) fn ask(&self, path: &str, body: &impl Serialize) -> Result<Value> {
        let body = encode(body)?;
        self.patiently(|| {
            let request = self.agent.post(self.url(path)).content_type("application/json");
            request.header("authorization", self.authorization.as_str()).send(&body[..])
        })
    }

    /// Changes something once, however often it has to be sent.
    pub(super) fn change(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        if_match: Option<u64>,
    ) -> Result<Value> {
        let (url, body) = (self.url(path), encode(body)?);
        let key = Uuid::new_v4().to_string();
        self.patiently(|| {
            let request = match method {
                Method::Post => self.agent.post(&url),
                Method::Patch => self.agent.patch(&url),
                // The API takes a body with any change; an empty one says the same.
                Method::Delete => self.agent.delete(&url).force_send_body(),
            };
            let mut request = request
                .content_type("application/json")
                .header("authorization", self.authorization.as_str())
                .header("idempotency-key", key.as_str());
            if let Some(generation) = if_match {
                request = request.header("if-match", format!("\"{generation}\""));
            }
            request.send(&body[..])
        })
    }

    /// At most `limit` records, and whether there are more.
    pub(super) fn list(&self, path: &str, query: &Query, limit: usize) -> Result<(Vec<Value>, bool)> {
        let mut found = Vec::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut query = query.clone();
            query.push(("limit", (limit - found.len()).clamp(1, PAGE).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
            let mut page = self.get(path, &query)?;
            let Value::Array(items) = page["items"].take() else {
                return Err(Failure::unreachable("the answer is no list of the controller's API"));
            };
            found.extend(items);
            cursor = page["next_cursor"].as_str().map(str::to_owned);
            if cursor.is_none() || found.len() >= limit {
                break;
            }
        }
        let more = cursor.is_some() || found.len() > limit;
        found.truncate(limit);
        Ok((found, more))
    }

    /// A stream of events, taken up after one of them.
    pub(super) fn stream(
        &self,
        path: &str,
        query: &Query,
        last_event_id: Option<u64>,
    ) -> Result<impl Read + use<>> {
        let mut request = self.getting(path, query).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id.to_string());
        }
        let response = request.call().map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response.into_body().into_reader());
        }
        Err(accepted(response).err().unwrap_or_else(|| Failure::unreachable("there is no stream of events")))
    }

    /// Makes a call until it is answered, a few times.
    fn patiently(
        &self,
        mut call: impl FnMut() -> std::result::Result<http::Response<Body>, ureq::Error>,
    ) -> Result<Value> {
        let mut pauses = PAUSES.iter();
        loop {
            let failure = match call().map_err(unreachable).and_then(accepted) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            match pauses.next().filter(|_| failure.may_pass()) {
                Some(pause) => std::thread::sleep(*pause),
                None => return Err(failure),
            }
        }
    }
}

/// A record of the API.
pub(super) fn record<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| {
        Failure::unreachable(format!("the answer is not of this version of the API: {error}"))
    })
}

/// No body to speak of.
pub(super) fn nothing() -> Value {
    json!({})
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|error| Failure::usage(error.to_string()))
}

fn unreachable(error: ureq::Error) -> Failure {
    let advice = match &error {
        ureq::Error::HostNotFound => "check --url",
        ureq::Error::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            "is the controller running there (uvm-controller serve)?"
        }
        ureq::Error::Io(_) | ureq::Error::Timeout(_) => {
            "check --url, --ca, and whether the controller is well"
        }
        _ => "check --url and --ca",
    };
    Failure::unreachable(format!("no answer from the controller: {error}\n  do: {advice}"))
}

/// The document of a good answer; the problem of another.
fn accepted(response: http::Response<Body>) -> Result<Value> {
    let status = response.status();
    let bytes =
        response.into_body().into_with_config().limit(MAX_ANSWER).read_to_vec().map_err(unreachable)?;
    if status.is_success() {
        return serde_json::from_slice(&bytes)
            .map_err(|error| Failure::unreachable(format!("an answer that is no JSON: {error}")));
    }
    match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => Err(Failure::refused(problem)),
        Err(_) => Err(Failure::unreachable(format!("HTTP {status} that is not from the controller's API"))),
    }
}
