//! API tokens: who may call.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Millis};

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Everything.
    Operator,
    /// What belongs to one project.
    Tenant,
    /// Register one node, once.
    Enrolment,
}

/// A token. Its secret is told once, when it is made; only a hash is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Id.
    pub id: Id,
    /// What it is for, in words.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Of a tenant: the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// From when on it is worth nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Millis>,
    /// SHA-256 of the secret, hexadecimal. Never sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub secret_hash: String,
    /// When it was made.
    pub created_at: Millis,
}

/// `POST /v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What it is for, in words.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Of a tenant: the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Seconds until it is worth nothing; an enrolment token's default is one hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// The answer, with the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IssuedToken {
    /// The token.
    pub token: Token,
    /// Its secret; not kept.
    pub secret: String,
}
