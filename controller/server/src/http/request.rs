//! What is read from a request: ids, parameters, bodies, idempotency keys, generations.

use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::Api;
use super::access::{Session, hex};
use super::answer::{Answer, Refusal};
use crate::core::{self, Command};
use crate::model::{ErrorCode, Id};

/// Largest body: a request with many keys and partitions is a few KiB.
const MAX_BODY: usize = 1 << 20;
/// Time a client has for its body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a stranger's body that are taken though nobody will read them.
pub(crate) const STRANGERS: usize = 64 << 10;
/// The same of a body that is too large.
const TOO_LARGE: usize = 8 * MAX_BODY;
/// Time for that.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// Longest idempotency key.
const MAX_KEY: usize = 128;
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The id in a path.
pub(crate) struct IdPath(pub(crate) Id);

impl<S: Send + Sync> FromRequestParts<S> for IdPath {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| Refusal::framework(error.status(), error.body_text()))?;
        let id =
            text.parse().map_err(|_| Refusal::invalid(format!("{text:?} in the path is no id (a UUID)")))?;
        Ok(Self(id))
    }
}

/// The parameters of a request.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Self> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(found)| Self(found)).map_err(|error| Refusal::invalid(error.body_text()))
    }
}

/// A document that is asked about; nothing is changed by it.
pub(crate) struct Document<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Api> for Document<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &Api) -> Answer<Self> {
        parse(&body(request.into_body()).await?).map(Self)
    }
}

/// Something to change, with all that keeps it from being done twice or to something else.
pub(crate) struct Mutation<T> {
    /// What was sent.
    pub(crate) body: T,
    /// Who asks.
    pub(crate) session: Session,
    /// The key made unique by the token, and the hash of the request.
    pub(crate) idempotency: (String, String),
    if_match: Option<u64>,
}

/// No body, or `{}`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

impl<T: DeserializeOwned> FromRequest<Api> for Mutation<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, api: &Api) -> Answer<Self> {
        let (mut parts, sent) = request.into_parts();
        let session = Session::from_request_parts(&mut parts, api).await?;
        let key = idempotency_key(&parts.headers)?;
        let if_match = if_match(&parts.headers)?;
        if parts.method == Method::PATCH && if_match.is_none() {
            let detail = "a change needs `If-Match` with the `ETag` of what was read, or `*`";
            return Err(Refusal::new(ErrorCode::PreconditionRequired, detail));
        }
        let sent = body(sent).await?;
        let hash = request_hash(&parts.method, parts.uri.path(), &sent);
        let body = parse(&sent)?;
        let idempotency = (format!("{}:{key}", session.token), hash);
        Ok(Self { body, session, idempotency, if_match: if_match.flatten() })
    }
}

impl<T> Mutation<T> {
    /// As the core wants to have it.
    pub(crate) fn ask(self, command: impl FnOnce(T) -> Command) -> core::Request {
        core::Request {
            caller: self.session.caller,
            command: command(self.body),
            idempotency: Some(self.idempotency),
            if_match: self.if_match,
        }
    }
}

fn request_hash(method: &Method, path: &str, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    for part in [method.as_str().as_bytes(), path.as_bytes()] {
        hash.update(part);
        // Neither has a line feed in it: no two requests give the same bytes.
        hash.update(b"\n");
    }
    hash.update(body);
    hex(&hash.finalize())
}

fn idempotency_key(headers: &HeaderMap) -> Answer<String> {
    let Some(value) = headers.get(KEY) else {
        let detail = "send `Idempotency-Key: <key>` with a key of your choice, new for each change (a UUID, say) and \
                      the same when the same request is sent again";
        return Err(Refusal::new(ErrorCode::IdempotencyKeyRequired, detail));
    };
    let key = value.to_str().unwrap_or_default().trim_matches('"');
    if key.is_empty() || key.len() > MAX_KEY {
        return Err(Refusal::invalid(format!(
            "Idempotency-Key is to have 1 to {MAX_KEY} visible ASCII characters"
        )));
    }
    Ok(key.to_owned())
}

/// `None`: no such header. `Some(None)`: whatever generation there is.
fn if_match(headers: &HeaderMap) -> Answer<Option<Option<u64>>> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(Some(None));
    }
    let tag = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match tag.and_then(|digits| digits.parse().ok()) {
        Some(generation) => Ok(Some(Some(generation))),
        None => Err(Refusal::invalid("If-Match is to be one `ETag` as it was sent (`\"7\"`), or `*`")),
    }
}

/// Reads a body whole, before anybody decides about it: a request that is refused keeps its connection.
pub(crate) async fn body(body: Body) -> Answer<Bytes> {
    let too_large = || {
        let detail = format!("the request body is larger than {MAX_BODY} bytes");
        Refusal::framework(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        drain(body, TOO_LARGE).await;
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_PATIENCE, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large()),
        Ok(Err(_)) => Err(Refusal::invalid("the request body broke off")),
        Err(_) => {
            Err(Refusal::framework(StatusCode::REQUEST_TIMEOUT, "the request body took too long".to_owned()))
        }
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.to_string().contains("length limit") {
            return true;
        }
        source = cause.source();
    }
    false
}

/// Takes what is left of a body and throws it away, up to a limit: who is refused can read why, instead of finding the
/// connection closed while it writes.
pub(crate) async fn drain(body: Body, limit: usize) {
    let mut parts = body.into_data_stream();
    let all = async {
        let mut seen = 0;
        while let Some(Ok(part)) = parts.next().await {
            seen += part.len();
            if seen > limit {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DRAIN_PATIENCE, all).await;
}

/// Names the field that is wrong.
fn parse<T: DeserializeOwned>(sent: &[u8]) -> Answer<T> {
    let sent = if sent.is_empty() { b"{}" } else { sent };
    let Json(found) = Json::from_bytes(sent).map_err(|error| Refusal::invalid(error.body_text()))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn a_key_is_one_to_128_characters() {
        let code = |value| idempotency_key(&headers(KEY, value)).map_err(|refusal| refusal.0.code);
        assert_eq!(code("a b"), Ok("a b".to_owned()));
        assert_eq!(code("\"quoted\""), Ok("quoted".to_owned()));
        assert_eq!(code(""), Err(ErrorCode::InvalidRequest));
        assert_eq!(code("k".repeat(129).leak()), Err(ErrorCode::InvalidRequest));
        let missing = idempotency_key(&HeaderMap::new()).unwrap_err().0;
        assert_eq!((missing.code, missing.status), (ErrorCode::IdempotencyKeyRequired, 400));
        assert!(missing.detail.contains("Idempotency-Key: <key>"), "{}", missing.detail);
    }

    #[test]
    fn if_match_is_one_strong_tag_or_a_star() {
        let read = |value| if_match(&headers(header::IF_MATCH, value)).map_err(|refusal| refusal.0.status);
        assert_eq!(read("\"7\""), Ok(Some(Some(7))));
        assert_eq!(read("*"), Ok(Some(None)));
        for wrong in ["7", "W/\"7\"", "\"7\", \"8\"", "\"seven\"", ""] {
            assert_eq!(read(wrong), Err(400), "{wrong}");
        }
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn the_hash_is_of_method_path_and_body() {
        let hash = request_hash(&Method::POST, "/v1/disks", b"{}");
        assert_eq!(hash, request_hash(&Method::POST, "/v1/disks", b"{}"));
        assert_ne!(hash, request_hash(&Method::PATCH, "/v1/disks", b"{}"));
        assert_ne!(hash, request_hash(&Method::POST, "/v1/images", b"{}"));
        assert_ne!(hash, request_hash(&Method::POST, "/v1/disks", b"{ }"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let detail = |sent: &str| parse::<crate::model::NewDisk>(sent.as_bytes()).unwrap_err().0.detail;
        let good = r#""name":"d","instance":"00000000-0000-0000-0000-000000000001""#;
        assert!(detail(&format!("{{{good},\"size_mib\":\"x\"}}")).contains("size_mib"));
        assert!(detail(&format!("{{{good},\"size_mib\":1,\"colour\":1}}")).contains("colour"));
        assert!(detail(&format!("{{{good}}}")).contains("size_mib"));
        assert!(
            detail(&format!("{{{good},\"size_mib\":1,\"io_limits\":{{\"bytes_per_second\":-1}}}}"))
                .contains("io_limits.bytes_per_second")
        );
        assert!(detail("{").contains("EOF"));
    }
}
