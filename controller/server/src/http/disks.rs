//! `/v1/disks` and `/v1/snapshots`.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::Api;
use super::access::{Session, Thing};
use super::answer::{Answer, Done, Refusal, accepted, tagged};
use super::page::{Part, met, node_of, page};
use super::request::{IdPath, Mutation, Nothing, Parameters};

use crate::core::Command;
use crate::model::{Accepted, Disk, DiskState, Id, NewDisk, Page, Snapshot};

/// Which disks.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DiskFilter {
    /// Most records of the page, 1 to 1000; 100 where it is missing.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Those of this name.
    name: Option<String>,
    /// Those of this project.
    project: Option<String>,
    /// Those on this node: its id or its name.
    node: Option<String>,
    /// Those of this instance.
    instance: Option<Id>,
    /// Those in this state.
    state: Option<DiskState>,
}

/// The disks the caller may see, oldest first.
#[utoipa::path(get, path = "/v1/disks", params(DiskFilter), responses((status = 200, body = Page<Disk>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    session: Session,
    Parameters(filter): Parameters<DiskFilter>,
) -> Answer<Json<Page<Disk>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    Ok(Json(api.grid().read(|state| {
        let node = filter.node.as_deref().map(|text| node_of(state, text));
        page(&state.disks, part, |disk| {
            session.sees(Some(&disk.project))
                && met(filter.name.as_ref(), &disk.name)
                && met(filter.project.as_ref(), &disk.project)
                && node.is_none_or(|node| node == Some(disk.node))
                && filter.instance.is_none_or(|instance| disk.instance == Some(instance))
                && met(filter.state.as_ref(), &disk.state)
        })
    })))
}

/// A disk as it stands.
#[utoipa::path(get, path = "/v1/disks/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Disk, headers(("ETag" = String, description = "The generation")))))]
pub(crate) async fn one(State(api): State<Api>, session: Session, IdPath(id): IdPath) -> Answer<Response> {
    let found = api.grid().read(|state| state.disks.get(&id).cloned());
    let found = found.filter(|disk| session.sees(Some(&disk.project)));
    let found = found.ok_or_else(|| Refusal::not_found("disks", id))?;
    Ok(tagged(found.generation, &found))
}

/// Makes a disk and attaches it to its instance.
#[utoipa::path(post, path = "/v1/disks", request_body = NewDisk,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn create(State(api): State<Api>, mut sent: Mutation<NewDisk>) -> Answer<Response> {
    sent.session.adopt(&mut sent.body.project)?;
    api.touch(&sent.session, Thing::Instance, sent.body.instance)?;
    let done = api.submit(sent, Command::CreateDisk).await?;
    Ok(accepted(Done::Made, &done))
}

/// Detaches, sanitizes and deletes a disk.
#[utoipa::path(delete, path = "/v1/disks/{id}", params(("id" = Id, Path)),
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn delete(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Disk, id)?;
    let done = api.submit(sent, |_| Command::DeleteDisk(id)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Tries again to sanitize and delete a quarantined disk.
#[utoipa::path(post, path = "/v1/disks/{id}/sanitize", params(("id" = Id, Path)),
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn sanitize(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Disk, id)?;
    let done = api.submit(sent, |_| Command::SanitizeDisk(id)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Which snapshots.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SnapshotFilter {
    /// Most records of the page, 1 to 1000; 100 where it is missing.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Those of this name.
    name: Option<String>,
    /// Those of this project.
    project: Option<String>,
    /// Those on this node: its id or its name.
    node: Option<String>,
    /// Those of this instance.
    instance: Option<Id>,
}

/// The snapshots the caller may see, oldest first.
#[utoipa::path(get, path = "/v1/snapshots", params(SnapshotFilter),
    responses((status = 200, body = Page<Snapshot>)))]
pub(crate) async fn snapshots(
    State(api): State<Api>,
    session: Session,
    Parameters(filter): Parameters<SnapshotFilter>,
) -> Answer<Json<Page<Snapshot>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    Ok(Json(api.grid().read(|state| {
        let node = filter.node.as_deref().map(|text| node_of(state, text));
        page(&state.snapshots, part, |snapshot| {
            session.sees(Some(&snapshot.project))
                && met(filter.name.as_ref(), &snapshot.name)
                && met(filter.project.as_ref(), &snapshot.project)
                && node.is_none_or(|node| node == Some(snapshot.node))
                && met(filter.instance.as_ref(), &snapshot.instance)
        })
    })))
}

/// A snapshot as it stands.
#[utoipa::path(get, path = "/v1/snapshots/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Snapshot, headers(("ETag" = String, description = "The generation")))))]
pub(crate) async fn snapshot(
    State(api): State<Api>,
    session: Session,
    IdPath(id): IdPath,
) -> Answer<Response> {
    let found = api.grid().read(|state| state.snapshots.get(&id).cloned());
    let found = found.filter(|snapshot| session.sees(Some(&snapshot.project)));
    let found = found.ok_or_else(|| Refusal::not_found("snapshots", id))?;
    Ok(tagged(found.generation, &found))
}

/// Sanitizes and deletes a snapshot.
#[utoipa::path(delete, path = "/v1/snapshots/{id}", params(("id" = Id, Path)),
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn delete_snapshot(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Snapshot, id)?;
    let done = api.submit(sent, |_| Command::DeleteSnapshot(id)).await?;
    Ok(accepted(Done::Changed, &done))
}
