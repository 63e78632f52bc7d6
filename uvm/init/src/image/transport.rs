//! One GET or PUT over HTTP: which certificates are trusted, which redirects are followed, and how a store's
//! challenge is answered (RFC 9110 section 11, and the distribution API's bearer tokens).

use std::collections::HashMap;
use std::error::Error as _;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody, http};

use super::ClientOptions;
use super::error::{ImageError, ImageErrorKind, Result};
use super::url::{Credentials, Url};

/// The most redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// The most bytes of a token server's answer.
const MAX_TOKEN_BYTES: u64 = 64 << 10;
/// The longest silence of a server that got everything and makes it durable before it answers.
const STORE_TIMEOUT: Duration = Duration::from_secs(120);

/// An answer, whatever its status.
pub(super) type Response = http::Response<Body>;

/// The HTTP client under a [`Client`](super::Client).
pub(super) struct Transport {
    /// Tried in turn while a server's certificate has an unknown issuer: the caller's own authorities
    /// first, then the public ones. The library takes one set or the other, never both.
    agents: Vec<Agent>,
    /// `Authorization` values that worked, by scope.
    authorizations: Mutex<HashMap<String, String>>,
}

impl Transport {
    pub(super) fn new(options: &ClientOptions) -> Result<Self> {
        let mut agents = Vec::new();
        if let Some(pem) = &options.extra_ca_pem {
            agents.push(agent(options, RootCerts::new_with_certs(&certificates(pem)?)));
        }
        agents.push(agent(options, RootCerts::WebPki));
        Ok(Self { agents, authorizations: Mutex::default() })
    }

    /// The value to send to whatever is in this scope, from the first request on.
    pub(super) fn authorize(&self, scope: &str, authorization: &str) {
        let mut authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        authorizations.insert(scope.to_owned(), authorization.to_owned());
    }

    /// Sends `body` to `url`. Once only: it cannot be read twice, so nothing is redirected or tried again.
    pub(super) fn put(&self, url: &Url, headers: &[(&str, &str)], body: &mut dyn Read) -> Result<Response> {
        self.with_trust(url, |agent| {
            let mut request =
                agent.put(url.to_string()).config().timeout_per_read(Some(STORE_TIMEOUT)).build();
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            // A server whose certificate is refused was not sent a byte of it.
            request.send(SendBody::from_reader(body))
        })
    }

    /// Gets `url`; a 401 is answered once with a token or with the credentials.
    pub(super) fn get(
        &self,
        url: &Url,
        headers: &[(&str, &str)],
        credentials: Option<&Credentials>,
        scope: &str,
    ) -> Result<Response> {
        let known = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned();
        let (response, from) = self.follow(url, headers, known.as_deref())?;
        // A host that we were sent to has no claim to the store's credentials.
        if response.status() != http::StatusCode::UNAUTHORIZED || from.origin() != url.origin() {
            return Ok(response);
        }
        let Some(authorization) = self.answer(&response, url, credentials)? else { return Ok(response) };
        let response = self.follow(url, headers, Some(&authorization))?.0;
        if response.status() != http::StatusCode::UNAUTHORIZED {
            let mut authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
            authorizations.insert(scope.to_owned(), authorization);
        }
        Ok(response)
    }

    /// Follows redirects by our own rules: http and https only, never from https to http, and the
    /// authorization stays with the origin it was made for.
    fn follow(
        &self,
        url: &Url,
        headers: &[(&str, &str)],
        authorization: Option<&str>,
    ) -> Result<(Response, Url)> {
        let mut current = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = authorization.filter(|_| current.origin() == url.origin());
            let response = self.get_once(&current, headers, authorization)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, current));
            }
            let location = header(&response, "location").ok_or_else(|| {
                let status = response.status().as_u16();
                let context = format!("{}: HTTP {status} without a Location", current.shown());
                ImageError::new(ImageErrorKind::Malformed, context)
            })?;
            let next = current.join(location)?;
            if current.is_https() && !next.is_https() {
                let context =
                    format!("{}: refused its redirect from https to {}", current.shown(), next.shown());
                return Err(ImageError::new(ImageErrorKind::Unsupported, context));
            }
            current = next;
        }
        let context = format!("{}: more than {MAX_REDIRECTS} redirects", url.shown());
        Err(ImageError::new(ImageErrorKind::Unsupported, context))
    }

    fn get_once(&self, url: &Url, headers: &[(&str, &str)], authorization: Option<&str>) -> Result<Response> {
        self.with_trust(url, |agent| {
            let mut request = agent.get(url.to_string());
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(value) = authorization {
                request = request.header("authorization", value);
            }
            request.call()
        })
    }

    /// One request, with one set of trusted authorities after the other.
    fn with_trust(
        &self,
        url: &Url,
        mut call: impl FnMut(&Agent) -> std::result::Result<Response, ureq::Error>,
    ) -> Result<Response> {
        let mut untrusted = None;
        for agent in &self.agents {
            match call(agent) {
                Ok(response) => return Ok(response),
                Err(error) if is_certificate_error(&error) => untrusted = Some(error),
                Err(error) => return Err(failure(url, error)),
            }
        }
        let context = format!("{}: the server's certificate is not trusted", url.shown());
        let error = ImageError::new(ImageErrorKind::Untrusted, context);
        Err(match untrusted {
            Some(cause) => error.caused_by(cause),
            None => error,
        })
    }

    /// The `Authorization` value that a 401 asks for, if we can give one.
    fn answer(
        &self,
        response: &Response,
        url: &Url,
        credentials: Option<&Credentials>,
    ) -> Result<Option<String>> {
        let challenges = response.headers().get_all("www-authenticate");
        for challenge in challenges.iter().filter_map(|value| value.to_str().ok()) {
            let (scheme, parameters) = challenge.trim().split_once(' ').unwrap_or((challenge, ""));
            if scheme.eq_ignore_ascii_case("bearer") {
                return self.token(url, &challenge_parameters(parameters), credentials).map(Some);
            }
            if scheme.eq_ignore_ascii_case("basic") {
                return Ok(credentials.map(Credentials::basic));
            }
        }
        Ok(None)
    }

    /// Asks the token server that a challenge names.
    fn token(
        &self,
        store: &Url,
        parameters: &HashMap<String, String>,
        credentials: Option<&Credentials>,
    ) -> Result<String> {
        let Some(realm) = parameters.get("realm") else {
            let context = format!("{}: its bearer challenge names no realm", store.shown());
            return Err(ImageError::new(ImageErrorKind::Malformed, context));
        };
        let realm = Url::parse(realm)?.0;
        if store.is_https() && !realm.is_https() {
            let context =
                format!("{}: refused its token server {} without TLS", store.shown(), realm.shown());
            return Err(ImageError::new(ImageErrorKind::Unsupported, context));
        }
        let query: Vec<(&str, &str)> = ["service", "scope"]
            .into_iter()
            .filter_map(|name| parameters.get(name).map(|value| (name, value.as_str())))
            .collect();
        // Over plain HTTP anybody may have written the challenge: the password goes to the store's host only.
        let credentials = credentials.filter(|_| realm.is_https() || realm.host() == store.host());
        let basic = credentials.map(Credentials::basic);
        let (response, _) = self.follow(&realm.with_query(&query), &[], basic.as_deref())?;
        if response.status() != http::StatusCode::OK {
            return Err(status_error(&realm.shown(), &response));
        }
        let mut bytes = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(MAX_TOKEN_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| unreachable(&realm).caused_by(error))?;
        let answer: TokenAnswer = serde_json::from_slice(&bytes).map_err(|error| {
            // The parser's message quotes no input, so no token slips out with it.
            let context = format!("{}: not a token server's answer", realm.shown());
            ImageError::new(ImageErrorKind::Malformed, context).caused_by(error)
        })?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        token.map(|token| format!("Bearer {token}")).ok_or_else(|| {
            ImageError::new(
                ImageErrorKind::Malformed,
                format!("{}: an answer without a token", realm.shown()),
            )
        })
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn agent(options: &ClientOptions, roots: RootCerts) -> Agent {
    Agent::config_builder()
        .user_agent(&options.user_agent)
        // A blob is hashed as it is stored: no coding on the way.
        .accept_encoding("identity")
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        // An appliance has no environment to take a proxy from, and a host's is not meant for us.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(Some(options.connect_timeout))
        .timeout_resolve(Some(options.connect_timeout))
        .timeout_per_read(Some(options.read_timeout))
        .timeout_per_write(Some(options.read_timeout))
        .max_idle_connections_per_host(2)
        .max_idle_age(Duration::from_secs(10))
        .build()
        .into()
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate<'static>>> {
    let malformed =
        |why: &str| ImageError::new(ImageErrorKind::Malformed, format!("extra CA certificates: {why}"));
    let mut certificates = Vec::new();
    for item in parse_pem(pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(malformed("not PEM").caused_by(error)),
        }
    }
    if certificates.is_empty() { Err(malformed("none found")) } else { Ok(certificates) }
}

fn is_certificate_error(error: &ureq::Error) -> bool {
    let tls = match error {
        ureq::Error::Rustls(tls) => Some(tls),
        ureq::Error::Io(io) => io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        other => other.source().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
    };
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

fn unreachable(url: &Url) -> ImageError {
    ImageError::new(ImageErrorKind::Unreachable, format!("{}: no answer", url.shown()))
}

fn failure(url: &Url, error: ureq::Error) -> ImageError {
    let kind = match &error {
        ureq::Error::Protocol(_) | ureq::Error::Http(_) | ureq::Error::LargeResponseHeader(..) => {
            ImageErrorKind::Malformed
        }
        _ => return unreachable(url).caused_by(error),
    };
    ImageError::new(kind, format!("{}: the answer is not HTTP we understand", url.shown())).caused_by(error)
}

/// The error for a status that is not the one wanted.
pub(super) fn status_error(shown: &str, response: &Response) -> ImageError {
    let status = response.status().as_u16();
    let kind = match status {
        401 | 403 => ImageErrorKind::Unauthorized,
        404 | 410 => ImageErrorKind::NotFound,
        408 | 429 | 500..=599 => ImageErrorKind::ServerError,
        _ => ImageErrorKind::Malformed,
    };
    let reason = response.status().canonical_reason().unwrap_or("no known status");
    ImageError::new(kind, format!("{shown}: HTTP {status} ({reason})"))
}

/// A header's value, if it is text.
pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `name="value", name=value` as in RFC 9110 section 11.2; a quoted value may hold commas.
fn challenge_parameters(text: &str) -> HashMap<String, String> {
    let mut parameters = HashMap::new();
    let mut rest = text;
    while let Some((name, tail)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, tail) = match tail.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => tail.split_once(',').unwrap_or((tail, "")),
        };
        parameters.insert(name, value.trim().to_owned());
        rest = tail;
    }
    parameters
}
