//! Who calls, and what that caller may do.
//!
//! A token's secret is looked up by its SHA-256, so that how long it takes says nothing about other secrets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::Api;
use super::answer::{Answer, Refusal};
use super::request::{STRANGERS, body, drain};
use crate::core::Caller;
use crate::model::{ErrorCode, Id, Role, Token};

/// Paths that need no token. The blobs have an authorization of their own, made for one image and one verb.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/openapi.json"];
/// Where the blobs are.
pub(crate) const BLOBS: &str = "/v1/blobs/";
/// Longest secret that is looked at.
const MAX_SECRET: usize = 512;
/// Tokens remembered by the hash of their secret.
const MAX_KNOWN: usize = 65_536;
/// How long one is remembered. One that is revoked is forgotten at once, unless whoever revokes it hangs up just then.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// The caller of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    /// Its token.
    pub(crate) token: Id,
    /// What it may do.
    pub(crate) caller: Caller,
}

impl Session {
    /// The project to which everything it sees belongs; `None` for an operator, who sees all.
    pub(crate) fn project(&self) -> Option<&str> {
        match &self.caller {
            Caller::Tenant { project } => Some(project),
            Caller::Operator | Caller::Enrolment { .. } => None,
        }
    }

    /// Whether it may see what belongs to that project; what belongs to none is the operators'.
    pub(crate) fn sees(&self, owner: Option<&str>) -> bool {
        match &self.caller {
            Caller::Operator => true,
            Caller::Tenant { project } => owner == Some(project),
            Caller::Enrolment { .. } => false,
        }
    }

    /// The project that a new thing belongs to: a tenant's own, whatever it leaves out, and never another one.
    pub(crate) fn adopt(&self, project: &mut Option<String>) -> Answer<()> {
        let Some(own) = self.project() else { return Ok(()) };
        if project.as_deref().is_some_and(|named| named != own) {
            return Err(Refusal::new(
                ErrorCode::Forbidden,
                format!("this token is for the project {own} alone"),
            ));
        }
        *project = Some(own.to_owned());
        Ok(())
    }
}

/// Hexadecimal SHA-256 of a token's secret, as the store keeps it.
pub(crate) fn secret_hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Tokens that were looked up before, so that a request need not wait for the writer only to learn who sends it.
#[derive(Debug, Default)]
pub(crate) struct KnownTokens {
    known: RwLock<HashMap<String, Known>>,
    /// Rises when tokens were taken away: what was known before is looked up again.
    epoch: AtomicU64,
}

#[derive(Debug)]
struct Known {
    token: Token,
    epoch: u64,
    at: Instant,
}

impl KnownTokens {
    /// Some token may be gone.
    pub(crate) fn forget(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    fn get(&self, hash: &str) -> Option<Token> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(hash)?;
        let fresh = found.epoch == self.epoch.load(Ordering::Acquire) && found.at.elapsed() < KNOWN_FOR;
        fresh.then(|| found.token.clone())
    }

    fn remember(&self, hash: String, token: Token, epoch: u64) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(hash, Known { token, epoch, at: Instant::now() });
    }
}

impl Api {
    /// Whether the token is still there and worth something.
    pub(crate) fn token_holds(&self, id: Id) -> bool {
        let now = self.grid().now();
        self.grid().read(|state| state.tokens.get(&id).is_some_and(|token| holds(token, now)))
    }

    fn token(&self, secret: &str) -> Option<Token> {
        let hash = secret_hash(secret);
        if let Some(token) = self.tokens.get(&hash) {
            return Some(token).filter(|token| holds(token, self.grid().now()));
        }
        // Before the look: what is taken away during it is looked up again.
        let epoch = self.tokens.epoch.load(Ordering::Acquire);
        let found = self
            .grid()
            .read(|state| state.tokens.values().find(|token| token.secret_hash == hash).cloned())?;
        self.tokens.remember(hash, found.clone(), epoch);
        holds(&found, self.grid().now()).then_some(found)
    }

    fn session(&self, headers: &HeaderMap) -> Answer<Session> {
        let secret = bearer(headers)?;
        let Some(token) = self.token(secret) else {
            return Err(Refusal::new(ErrorCode::Unauthorized, "the token is not known, or no longer"));
        };
        let caller = match (token.role, token.project) {
            (Role::Operator, _) => Caller::Operator,
            (Role::Enrolment, _) => Caller::Enrolment { token: token.id },
            (Role::Tenant, Some(project)) => Caller::Tenant { project },
            (Role::Tenant, None) => {
                return Err(Refusal::new(ErrorCode::Unauthorized, "the token names no project"));
            }
        };
        Ok(Session { token: token.id, caller })
    }
}

fn holds(token: &Token, now: u64) -> bool {
    token.expires_at.is_none_or(|at| now < at)
}

fn bearer(headers: &HeaderMap) -> Answer<&str> {
    let refuse = |detail: &str| Refusal::new(ErrorCode::Unauthorized, detail);
    let header = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| refuse("this call needs a token: `Authorization: Bearer <secret>`"))?;
    let (scheme, secret) = header.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(refuse("the header is to be `Authorization: Bearer <secret>`"));
    }
    Ok(secret.trim())
}

/// Finds out who calls, before anything else is looked at; only then the body is read.
pub(crate) async fn authenticate(State(api): State<Api>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if OPEN.contains(&path) || path.starts_with(BLOBS) {
        return next.run(request).await;
    }
    let (mut parts, sent) = request.into_parts();
    let session = match admitted(&api, &parts) {
        Ok(session) => session,
        Err(refusal) => {
            drain(sent, STRANGERS).await;
            return refusal.into_response();
        }
    };
    parts.extensions.insert(session);
    match body(sent).await {
        Ok(bytes) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Err(refusal) => refusal.into_response(),
    }
}

fn admitted(api: &Api, parts: &Parts) -> Answer<Session> {
    let session = api.session(&parts.headers)?;
    let enrols = parts.method == Method::POST && parts.uri.path() == "/v1/nodes";
    if matches!(session.caller, Caller::Enrolment { .. }) && !enrols {
        let detail = "an enrolment token registers a node (POST /v1/nodes), and nothing else";
        return Err(Refusal::new(ErrorCode::Forbidden, detail));
    }
    Ok(session)
}

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let session = parts.extensions.get::<Self>().cloned();
        session.ok_or_else(|| Refusal::new(ErrorCode::Unauthorized, "this call needs a token"))
    }
}

/// A caller that is an operator.
pub(crate) struct Operator;

impl<S: Sync> FromRequestParts<S> for Operator {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let session = Session::from_request_parts(parts, state).await?;
        match session.caller {
            Caller::Operator => Ok(Self),
            _ => Err(Refusal::new(ErrorCode::Forbidden, "this call needs an operator's token")),
        }
    }
}

/// What has an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    Instance,
    Disk,
    Snapshot,
    Image,
}

impl Api {
    /// Refuses to change what is another project's, as if there were no such thing. What is not there passes: the
    /// core refuses it, unless it answered the same request before.
    pub(crate) fn touch(&self, session: &Session, thing: Thing, id: Id) -> Answer<()> {
        let Some(own) = session.project() else { return Ok(()) };
        let (table, owner) = self.grid().read(|state| match thing {
            Thing::Instance => {
                ("instances", state.instances.get(&id).map(|found| Some(found.project.clone())))
            }
            Thing::Disk => ("disks", state.disks.get(&id).map(|found| Some(found.project.clone()))),
            Thing::Snapshot => {
                ("snapshots", state.snapshots.get(&id).map(|found| Some(found.project.clone())))
            }
            Thing::Image => ("images", state.images.get(&id).map(|found| found.project.clone())),
        });
        match owner {
            Some(Some(project)) if project != own => Err(Refusal::not_found(table, id)),
            Some(None) => {
                let detail = format!("{table}/{id} is everybody's: changing it needs an operator's token");
                Err(Refusal::new(ErrorCode::Forbidden, detail))
            }
            _ => Ok(()),
        }
    }
}
