//! `/v1/tokens`: operators' alone.
//!
//! A token's secret is derived from the request that asks for it: the same request sent again, because its answer was
//! lost, gives the same secret, though only its hash is kept.

use std::io;
use std::path::Path;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Deserialize;

use super::Api;
use super::access::{Operator, secret_hash};
use super::answer::{Answer, Done, Refusal, accepted, accepted_as};
use super::page::{Part, page};
use super::request::{IdPath, Mutation, Nothing, Parameters};
use crate::core::Command;
use crate::durable;
use crate::model::{Accepted, Id, IssuedToken, Millis, NewToken, Page, Role, Token};

/// Name of the key's file in the state folder.
const KEY_FILE: &str = "tokens.key";
/// Longest name of a token.
const MAX_NAME: usize = 128;
/// Seconds an enrolment token is worth something where nothing else is said.
const ENROLMENT_TTL: u64 = 3_600;
/// Most seconds a token may be worth something.
const MAX_TTL: u64 = 10 * 365 * 86_400;

/// What the secrets of tokens are derived from.
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// The key in that state folder, made where there is none.
    ///
    /// # Errors
    /// Where the folder cannot be read or written.
    pub fn open_or_create(folder: &Path) -> io::Result<Self> {
        let bytes = durable::read_or_create(&folder.join(KEY_FILE), durable::PRIVATE, || {
            Ok(durable::random::<32>()?.to_vec())
        })?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    fn secret(&self, (key, hash): &(String, String)) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(hash.as_bytes());
        context.update(key.as_bytes());
        format!("uvm_{}", URL_SAFE_NO_PAD.encode(context.sign()))
    }
}

/// A token with this secret, for the controller's first start.
pub fn operator_token(name: &str, secret: &str, now: Millis) -> Token {
    Token {
        id: Id::new(now, rand::random()),
        name: name.to_owned(),
        role: Role::Operator,
        project: None,
        expires_at: None,
        secret_hash: secret_hash(secret),
        created_at: now,
    }
}

fn shown(token: &Token) -> Token {
    Token { secret_hash: String::new(), ..token.clone() }
}

/// Which tokens.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Filter {
    /// Most records of the page, 1 to 1000; 100 where it is missing.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Those of this project.
    project: Option<String>,
}

/// The tokens, oldest first, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", params(Filter), responses((status = 200, body = Page<Token>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    _: Operator,
    Parameters(filter): Parameters<Filter>,
) -> Answer<Json<Page<Token>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    let found = api.grid().read(|state| {
        page(&state.tokens, part, |token| filter.project.is_none() || filter.project == token.project)
    });
    Ok(Json(Page { items: found.items.iter().map(shown).collect(), next_cursor: found.next_cursor }))
}

/// A token, without its secret.
#[utoipa::path(get, path = "/v1/tokens/{id}", params(("id" = Id, Path)), responses((status = 200, body = Token)))]
pub(crate) async fn one(State(api): State<Api>, _: Operator, IdPath(id): IdPath) -> Answer<Json<Token>> {
    let found = api.grid().read(|state| state.tokens.get(&id).map(shown));
    found.map(Json).ok_or_else(|| Refusal::not_found("tokens", id))
}

fn token(new: NewToken, secret: &str, now: Millis) -> Answer<Token> {
    if new.name.is_empty() || new.name.len() > MAX_NAME {
        return Err(Refusal::invalid(format!("name is to have 1 to {MAX_NAME} bytes")));
    }
    match (new.role, new.project.as_deref()) {
        (Role::Tenant, None | Some("")) => {
            return Err(Refusal::invalid("a tenant's token needs a project"));
        }
        (Role::Operator | Role::Enrolment, Some(_)) => {
            return Err(Refusal::invalid("project is for a tenant's token alone"));
        }
        _ => {}
    }
    let ttl = new.ttl_seconds.or((new.role == Role::Enrolment).then_some(ENROLMENT_TTL));
    if let Some(ttl) = ttl.filter(|ttl| !(1..=MAX_TTL).contains(ttl)) {
        return Err(Refusal::invalid(format!("ttl_seconds is {ttl}; it is to be 1 to {MAX_TTL}")));
    }
    Ok(Token {
        id: Id::new(now, rand::random()),
        name: new.name,
        role: new.role,
        project: new.project,
        expires_at: ttl.map(|ttl| now.saturating_add(ttl * 1_000)),
        secret_hash: secret_hash(secret),
        created_at: now,
    })
}

/// Issues a token. Its secret is in the answer, and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", request_body = NewToken, responses((status = 201, body = IssuedToken)))]
pub(crate) async fn create(
    State(api): State<Api>,
    _: Operator,
    sent: Mutation<NewToken>,
) -> Answer<Response> {
    let secret = api.services.token_key.secret(&sent.idempotency);
    let made = token(sent.body.clone(), &secret, api.grid().now())?;
    let done = api.submit(sent, |_| Command::CreateToken(made.clone())).await?;
    // Sent again, it is the token of the first time.
    let kept = api.grid().read(|state| state.tokens.get(&done.id).map(shown));
    let token = kept.unwrap_or_else(|| Token { id: done.id, ..shown(&made) });
    Ok(accepted_as(Done::Made, &done, &IssuedToken { token, secret }))
}

/// Revokes a token.
#[utoipa::path(delete, path = "/v1/tokens/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Accepted)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    _: Operator,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    let done = api.submit(sent, |_| Command::DeleteToken(id)).await?;
    Ok(accepted(Done::Changed, &done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(role: Role, project: Option<&str>, ttl_seconds: Option<u64>) -> NewToken {
        NewToken { name: "n".to_owned(), role, project: project.map(str::to_owned), ttl_seconds }
    }

    #[test]
    fn a_secret_is_the_same_for_the_same_request_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let key = TokenKey::open_or_create(folder.path()).unwrap();
        let asked = |key: &str, hash: &str| (key.to_owned(), hash.to_owned());
        let first = key.secret(&asked("k", "h"));
        assert!(first.starts_with("uvm_") && first.len() == 47, "{first}");
        assert_eq!(first, key.secret(&asked("k", "h")));
        assert_ne!(first, key.secret(&asked("k2", "h")));
        assert_ne!(first, key.secret(&asked("k", "h2")));
        assert_eq!(first, TokenKey::open_or_create(folder.path()).unwrap().secret(&asked("k", "h")));
        let other = tempfile::tempdir().unwrap();
        assert_ne!(first, TokenKey::open_or_create(other.path()).unwrap().secret(&asked("k", "h")));
    }

    #[test]
    fn a_tenant_has_a_project_and_an_enrolment_an_end() {
        let made = token(new(Role::Enrolment, None, None), "s", 1_000).unwrap();
        assert_eq!(made.expires_at, Some(3_601_000));
        assert_eq!(token(new(Role::Tenant, Some("p"), None), "s", 1_000).unwrap().expires_at, None);
        for wrong in [
            new(Role::Tenant, None, None),
            new(Role::Tenant, Some(""), None),
            new(Role::Operator, Some("p"), None),
            new(Role::Operator, None, Some(0)),
            new(Role::Operator, None, Some(u64::MAX)),
        ] {
            assert_eq!(token(wrong, "s", 1_000).unwrap_err().0.status, 400);
        }
    }
}
