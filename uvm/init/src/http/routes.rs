//! The routes, each with its document.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uvm_api::{Device, ErrorCode, Event, Health, Job, JobSpec, Node, Plan, PowerRequest, Problem};

use super::problem::Refusal;
use super::{Api, Peer, events, metrics, openapi};

/// Largest request body: a job with many keys and partitions is a few KiB.
const MAX_BODY: usize = 1 << 20;
/// Time between the answer to `POST /v1/power` and the action.
const GRACE: Duration = Duration::from_millis(200);

type Answer<T> = Result<T, Refusal>;

/// All routes. Everything but `/healthz` needs a client certificate.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .route("/openapi.json", get(openapi_document))
        .route("/v1/node", get(node))
        .route("/v1/devices", get(devices))
        .route("/v1/jobs", get(jobs).post(submit))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/events", get(job_events))
        .route("/v1/jobs/{id}/cancel", post(cancel))
        .route("/v1/power", post(power))
        .fallback(async |request: Request| {
            Refusal::new(ErrorCode::NotFound, format!("there is no {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let detail = format!("{} does not take {}", request.uri().path(), request.method());
            Refusal::new(ErrorCode::MethodNotAllowed, detail)
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn(authenticate))
        .with_state(api)
}

async fn authenticate(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    if peer.0.is_none() && request.uri().path() != "/healthz" {
        let detail = "this call needs a client certificate of this node's client CA";
        return Refusal::new(ErrorCode::Unauthorized, detail).into_response();
    }
    next.run(request).await
}

/// Runs what reads devices off the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Refusal),
        Err(_) => Err(Refusal::new(ErrorCode::Internal, "a fault in the utility VM; see its log")),
    }
}

fn parse<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Answer<T> {
    let body = body.map_err(|error| refused(error.status(), error.body_text()))?;
    serde_json::from_slice(&body)
        .map_err(|error| Refusal::new(ErrorCode::InvalidRequest, format!("the request body: {error}")))
}

/// What the framework refused, in our words.
fn refused(status: StatusCode, detail: String) -> Refusal {
    Refusal(Problem { status: status.as_u16(), ..Problem::new(ErrorCode::InvalidRequest, detail) })
}

fn id_of(path: Result<Path<String>, PathRejection>) -> Answer<String> {
    path.map(|Path(id)| id).map_err(|error| refused(error.status(), error.body_text()))
}

/// Whether the API answers. The only call without a client certificate.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
pub(crate) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

/// Facts about this node.
#[utoipa::path(get, path = "/v1/node", responses((status = 200, body = Node)))]
pub(crate) async fn node(State(api): State<Api>) -> Json<Node> {
    Json(api.node.describe())
}

/// The devices attached now, with what is on them.
#[utoipa::path(get, path = "/v1/devices", responses((status = 200, body = [Device])))]
pub(crate) async fn devices(State(api): State<Api>) -> Answer<Json<Vec<Device>>> {
    blocking(move || api.engine.devices()).await.map(Json)
}

/// The jobs this node remembers, oldest first.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = [Job])))]
pub(crate) async fn jobs(State(api): State<Api>) -> Json<Vec<Job>> {
    Json(api.engine.jobs())
}

/// Parameters of `POST /v1/jobs`.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SubmitParameters {
    /// Answer with the plan; carry nothing out.
    #[serde(default)]
    dry_run: bool,
}

/// Submits a job, or plans it.
///
/// The job's `id` (or the `Idempotency-Key` header) makes it the same job however often it is sent.
#[utoipa::path(post, path = "/v1/jobs", params(SubmitParameters, ("Idempotency-Key" = Option<String>, Header)),
    request_body = JobSpec,
    responses(
        (status = 202, body = Job, description = "Accepted; `Location` names the job"),
        (status = 200, body = Plan, description = "The plan (`dry_run=true`), or the same job submitted before"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "The device is held by another job, or the plan changed"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn submit(
    State(api): State<Api>,
    parameters: Result<Query<SubmitParameters>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Response> {
    let Query(parameters) =
        parameters.map_err(|error| Refusal::new(ErrorCode::InvalidRequest, error.body_text()))?;
    let mut spec: JobSpec = parse(body)?;
    adopt_idempotency_key(&mut spec, &headers)?;
    if parameters.dry_run {
        let plan = blocking(move || api.engine.plan(spec)).await?;
        return Ok(Json(plan).into_response());
    }
    let submitted = blocking(move || api.engine.submit(spec)).await?;
    let status = if submitted.created { StatusCode::ACCEPTED } else { StatusCode::OK };
    let location = HeaderValue::from_str(&format!("/v1/jobs/{}", submitted.job.id));
    let mut response = (status, Json(submitted.job)).into_response();
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

fn adopt_idempotency_key(spec: &mut JobSpec, headers: &HeaderMap) -> Answer<()> {
    const KEY: HeaderName = HeaderName::from_static("idempotency-key");
    let Some(key) = headers.get(KEY) else { return Ok(()) };
    let key = key.to_str().unwrap_or_default().trim_matches('"').to_owned();
    match spec.id() {
        Some(id) if id != key => Err(Refusal::new(
            ErrorCode::InvalidRequest,
            "the Idempotency-Key header and the job's id differ; send one of them",
        )),
        _ => {
            spec.set_id(key);
            Ok(())
        }
    }
}

/// A job as it stands.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Job),
        (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn job(
    State(api): State<Api>,
    id: Result<Path<String>, PathRejection>,
) -> Answer<Json<Job>> {
    Ok(Json(api.engine.job(&id_of(id)?)?))
}

/// Parameters of `GET /v1/jobs/{id}/events`.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventParameters {
    /// Only events after this sequence number; as the `Last-Event-ID` header.
    after: Option<u64>,
}

/// The events of a job as server-sent events, until the last.
#[utoipa::path(get, path = "/v1/jobs/{id}/events",
    params(("id" = String, Path), EventParameters, ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, body = Event, content_type = "text/event-stream"),
        (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn job_events(
    State(api): State<Api>,
    id: Result<Path<String>, PathRejection>,
    parameters: Result<Query<EventParameters>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Answer<Response> {
    let id = id_of(id)?;
    let Query(parameters) =
        parameters.map_err(|error| Refusal::new(ErrorCode::InvalidRequest, error.body_text()))?;
    let last = match headers.get("last-event-id") {
        None => None,
        Some(value) => Some(value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Refusal::new(ErrorCode::InvalidRequest, "Last-Event-ID is not a sequence number")
        })?),
    };
    api.engine.job(&id)?;
    let stream = events::stream(api.engine, id, last.or(parameters.after).unwrap_or(0));
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()).into_response())
}

/// Asks a job to end. It ends at its next read or write; its last event says in what state the disk is.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", params(("id" = String, Path)),
    responses((status = 202, body = Job),
        (status = 404, body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn cancel(
    State(api): State<Api>,
    id: Result<Path<String>, PathRejection>,
) -> Answer<(StatusCode, Json<Job>)> {
    Ok((StatusCode::ACCEPTED, Json(api.engine.cancel(&id_of(id)?)?)))
}

/// Powers the node off or reboots it.
#[utoipa::path(post, path = "/v1/power", request_body = PowerRequest,
    responses((status = 202, description = "It will happen now"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Jobs are running")))]
pub(crate) async fn power(State(api): State<Api>, body: Result<Bytes, BytesRejection>) -> Answer<StatusCode> {
    let request: PowerRequest = parse(body)?;
    let engine = api.engine.clone();
    // A thread of its own: the pool may be waiting for a disk that hangs.
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(engine.shut_down(request.cancel_jobs)));
    match ended.await {
        Ok(result) => result?,
        Err(_) => return Err(Refusal::new(ErrorCode::Internal, "a fault in the utility VM; see its log")),
    }
    std::thread::spawn(move || {
        std::thread::sleep(GRACE);
        (api.power)(request.action);
    });
    Ok(StatusCode::ACCEPTED)
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics_text(State(api): State<Api>) -> Response {
    let text = metrics::text(&api);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, content_type = "application/json")))]
pub(crate) async fn openapi_document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], openapi::document()).into_response()
}
