//! Which path is whose.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware;
use axum::routing::{get, post};

use super::access::authenticate;
use super::answer::Refusal;
use super::{Api, blobs, disks, events, grid, images, instances, jobs, metrics, nodes, service, tokens};
use crate::model::ErrorCode;

/// All routes.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .merge(machines())
        .merge(rest())
        .fallback(async |request: Request| {
            Refusal::new(ErrorCode::NotFound, format!("there is no {}", request.uri().path()))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let detail = format!("{} does not take {}", request.uri().path(), request.method());
            Refusal::new(ErrorCode::MethodNotAllowed, detail)
        })
        // Bodies have their limit where they are read; blobs are streamed.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(api.clone(), authenticate))
        .layer(middleware::from_fn_with_state(api.clone(), metrics::count))
        .with_state(api)
}

fn machines() -> Router<Api> {
    Router::new()
        .route("/v1/instances", get(instances::list).post(instances::create))
        .route("/v1/instances/{id}", get(instances::one).patch(instances::change).delete(instances::delete))
        .route("/v1/instances/{id}/{verb}", post(instances::power))
        .route("/v1/instances/{id}/snapshots", post(instances::snapshot))
        .route("/v1/instances/{id}/restore", post(instances::restore))
        .route("/v1/instances/{id}/save-image", post(instances::save_image))
        .route("/v1/instances/{id}/copy", post(instances::copy))
        .route("/v1/instances/{id}/statistics", get(instances::statistics))
        .route("/v1/instances/{id}/config", get(instances::config))
        .route("/v1/disks", get(disks::list).post(disks::create))
        .route("/v1/disks/{id}", get(disks::one).delete(disks::delete))
        .route("/v1/disks/{id}/sanitize", post(disks::sanitize))
        .route("/v1/snapshots", get(disks::snapshots))
        .route("/v1/snapshots/{id}", get(disks::snapshot).delete(disks::delete_snapshot))
        .route("/v1/images", get(images::list).post(images::create))
        .route("/v1/images/{id}", get(images::one).delete(images::delete))
}

fn rest() -> Router<Api> {
    Router::new()
        .route("/v1/nodes", get(nodes::list).post(nodes::create))
        .route("/v1/nodes/{id}", get(nodes::one).patch(nodes::change).delete(nodes::delete))
        .route("/v1/nodes/{id}/cordon", post(nodes::cordon))
        .route("/v1/nodes/{id}/uncordon", post(nodes::uncordon))
        .route("/v1/nodes/{id}/statistics", get(nodes::statistics))
        .route("/v1/jobs", get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::one))
        .route("/v1/jobs/{id}/cancel", post(jobs::cancel))
        .route("/v1/jobs/{id}/events", get(jobs::stream))
        .route("/v1/events", get(events::list))
        .route("/v1/events/stream", get(events::stream))
        .route("/v1/capacity", get(grid::capacity))
        .route("/v1/plans", post(grid::plan))
        .route("/v1/sanitizations", get(grid::sanitizations))
        .route("/v1/sanitizations/public-key", get(grid::public_key))
        .route("/v1/sanitizations/{id}", get(grid::sanitization))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", get(tokens::one).delete(tokens::delete))
        .route("/v1/blobs/{image}", get(blobs::get).put(blobs::put))
        .route("/healthz", get(service::healthz))
        .route("/readyz", get(service::readyz))
        .route("/metrics", get(service::metrics_text))
        .route("/openapi.json", get(service::openapi_document))
}
