//! What the controller says of itself: `/healthz`, `/readyz`, `/metrics`, `/openapi.json`.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::Operator;
use super::answer::{Answer, Refusal};
use super::{Api, metrics, openapi};
use crate::model::{ErrorCode, Id};

/// That the controller answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

fn ok() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// Whether the API answers. Needs no token.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    ok()
}

/// Whether requests can be carried out: the store answers, and the controller is not about to end. Needs no token.
#[utoipa::path(get, path = "/readyz", responses((status = 200, body = Health)))]
pub(crate) async fn readyz(State(api): State<Api>) -> Answer<Json<Health>> {
    if *api.stopping.borrow() {
        return Err(Refusal::new(ErrorCode::Overloaded, "the controller is about to end"));
    }
    if !api.grid().ready() {
        return Err(Refusal::new(
            ErrorCode::Overloaded,
            "the store takes no changes; the controller's log says why",
        ));
    }
    match api.read_store(|reader| reader.job(Id::default())).await {
        Ok(_) => Ok(ok()),
        Err(_) => Err(Refusal::new(ErrorCode::Overloaded, "the store cannot be read")),
    }
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics_text(State(api): State<Api>, _: Operator) -> Response {
    exposition(&api)
}

/// The same on the address that is for metrics alone, where no token is asked for.
pub(crate) fn exposition(api: &Api) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::text(api)).into_response()
}

/// This document. Needs no token.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, content_type = "application/json")))]
pub(crate) async fn openapi_document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::document()).into_response()
}
