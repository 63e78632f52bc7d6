//! `/v1/capacity`, `/v1/plans`, `/v1/sanitizations`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::access::{Operator, Session, Thing};
use super::answer::{Answer, Refusal};
use super::lens::Lens;
use super::page::{Part, cursor_of};
use super::request::{Document, IdPath, Parameters};
use super::{Api, blocking};
use crate::model::{Capacity, Id, Page, Plan, PlanRequest, SanitizationRecord};

/// What the grid has, uses and has left.
#[utoipa::path(get, path = "/v1/capacity", responses((status = 200, body = Capacity)))]
pub(crate) async fn capacity(State(api): State<Api>, _: Operator) -> Json<Capacity> {
    Json(api.grid().read(|state| state.capacity()))
}

/// What would happen if this were sent. Nothing is changed.
#[utoipa::path(post, path = "/v1/plans", request_body = PlanRequest, responses((status = 200, body = Plan)))]
pub(crate) async fn plan(
    State(api): State<Api>,
    session: Session,
    Document(mut request): Document<PlanRequest>,
) -> Answer<Json<Plan>> {
    match &mut request {
        PlanRequest::CreateInstance { request } => session.adopt(&mut request.project)?,
        PlanRequest::ChangeInstance { instance, .. }
        | PlanRequest::CopyInstance { instance, .. }
        | PlanRequest::DeleteInstance { instance }
        | PlanRequest::Power { instance, .. }
        | PlanRequest::CreateSnapshot { instance }
        | PlanRequest::SaveImage { instance } => api.touch(&session, Thing::Instance, *instance)?,
        PlanRequest::RestoreSnapshot { instance, snapshot } => {
            api.touch(&session, Thing::Instance, *instance)?;
            api.touch(&session, Thing::Snapshot, *snapshot)?;
        }
    }
    let services = api.services.clone();
    let caller = session.caller.clone();
    let result = blocking(move || services.grid.plan(&caller, &request)).await?;
    let lens = api.grid().read(|state| Lens::new(&session, state));
    match result {
        Ok(plan) => Ok(Json(lens.plan(plan))),
        Err(problem) => Err(lens.problem(problem).into()),
    }
}

/// Which records of sanitization.
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

/// The records of sanitization the caller may see, newest first.
#[utoipa::path(get, path = "/v1/sanitizations", params(Filter),
    responses((status = 200, body = Page<SanitizationRecord>)))]
pub(crate) async fn sanitizations(
    State(api): State<Api>,
    session: Session,
    Parameters(filter): Parameters<Filter>,
) -> Answer<Json<Page<SanitizationRecord>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    let project = match (session.project(), filter.project) {
        (Some(own), Some(asked)) if own != asked => {
            return Ok(Json(Page { items: Vec::new(), next_cursor: None }));
        }
        (Some(own), _) => Some(own.to_owned()),
        (None, asked) => asked,
    };
    let limit = part.limit;
    let found =
        api.read_store(move |reader| reader.sanitizations(project.as_deref(), part.after, limit + 1)).await;
    let mut items = found?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|record| cursor_of(record.id));
    Ok(Json(Page { items, next_cursor }))
}

/// A record of sanitization.
#[utoipa::path(get, path = "/v1/sanitizations/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = SanitizationRecord)))]
pub(crate) async fn sanitization(
    State(api): State<Api>,
    session: Session,
    IdPath(id): IdPath,
) -> Answer<Json<SanitizationRecord>> {
    let found = api.read_store(move |reader| reader.sanitization(id)).await?;
    let found = found.filter(|record| session.sees(Some(&record.project)));
    found.map(Json).ok_or_else(|| Refusal::not_found("sanitizations", id))
}

/// With what the signatures of the records are verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublicKey {
    /// `ed25519`.
    pub algorithm: String,
    /// The key's 32 bytes in base64.
    pub public_key: String,
}

/// The key with which the signatures of the records are verified.
#[utoipa::path(get, path = "/v1/sanitizations/public-key", responses((status = 200, body = PublicKey)))]
pub(crate) async fn public_key(State(api): State<Api>, _: Session) -> Json<PublicKey> {
    Json(PublicKey { algorithm: "ed25519".to_owned(), public_key: api.services.signer.public_key() })
}
