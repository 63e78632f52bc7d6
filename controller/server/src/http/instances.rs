//! `/v1/instances`: a customer's machines.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;

use super::Api;
use super::access::{Session, Thing};
use super::answer::{Answer, Done, Refusal, accepted, tagged};
use super::lens::Lens;
use super::page::{Part, met, node_of, page};
use super::request::{IdPath, Mutation, Nothing, Parameters};
use super::statistics::{Statistics, StatisticsParameters, of_instance};
use crate::core::Command;
use crate::model::{
    Accepted, CopyRequest, Id, Instance, InstanceChange, InstanceRequest, Page, PowerState, PowerVerb,
    RestoreRequest, SaveImageRequest, SnapshotRequest,
};
use crate::store::InstanceConfig;

const TABLE: &str = "instances";

/// Which instances.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Filter {
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
    /// Those observed in this state.
    state: Option<PowerState>,
}

/// The instances the caller may see, oldest first.
#[utoipa::path(get, path = "/v1/instances", params(Filter), responses((status = 200, body = Page<Instance>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    session: Session,
    Parameters(filter): Parameters<Filter>,
) -> Answer<Json<Page<Instance>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    let (lens, found) = api.grid().read(|state| {
        let node = filter.node.as_deref().map(|text| node_of(state, text));
        let keep = |instance: &Instance| {
            session.sees(Some(&instance.project))
                && met(filter.name.as_ref(), &instance.name)
                && met(filter.project.as_ref(), &instance.project)
                && node.is_none_or(|node| node == Some(instance.node))
                && met(filter.state.as_ref(), &instance.observed_state)
        };
        (Lens::new(&session, state), page(&state.instances, part, keep))
    });
    let items = found.items.into_iter().map(|instance| lens.instance(instance)).collect();
    Ok(Json(Page { items, next_cursor: found.next_cursor }))
}

/// An instance as it stands.
#[utoipa::path(get, path = "/v1/instances/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Instance, headers(("ETag" = String, description = "The generation")))))]
pub(crate) async fn one(State(api): State<Api>, session: Session, IdPath(id): IdPath) -> Answer<Response> {
    let found = api.visible_instance(&session, id)?;
    let lens = api.grid().read(|state| Lens::new(&session, state));
    Ok(tagged(found.generation, &lens.instance(found)))
}

/// Makes an instance.
#[utoipa::path(post, path = "/v1/instances", request_body = InstanceRequest,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn create(
    State(api): State<Api>,
    mut sent: Mutation<Box<InstanceRequest>>,
) -> Answer<Response> {
    sent.session.adopt(&mut sent.body.project)?;
    let done = api.submit(sent, Command::CreateInstance).await?;
    Ok(accepted(Done::Made, &done))
}

/// Changes an instance: CPUs, memory, disks, limits, host name.
#[utoipa::path(patch, path = "/v1/instances/{id}", params(("id" = Id, Path)), request_body = InstanceChange,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job"),
        (status = 200, body = Accepted, description = "There was nothing to change")))]
pub(crate) async fn change(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<InstanceChange>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Instance, id)?;
    let done = api.submit(sent, |change| Command::ChangeInstance(id, change)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Sanitizes an instance's disks and deletes it.
#[utoipa::path(delete, path = "/v1/instances/{id}", params(("id" = Id, Path)),
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn delete(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Instance, id)?;
    let done = api.submit(sent, |_| Command::DeleteInstance(id)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Control messages: start, shutdown, destroy (power off), suspend, resume, reboot.
#[utoipa::path(post, path = "/v1/instances/{id}/{verb}",
    params(("id" = Id, Path), ("verb" = PowerVerb, Path)),
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job"),
        (status = 200, body = Accepted, description = "It is so already")))]
pub(crate) async fn power(
    State(api): State<Api>,
    Path((id, verb)): Path<(String, String)>,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    let no_such = || Refusal::not_found(&format!("{TABLE}/{id}"), &verb);
    let parsed = serde_json::from_value(serde_json::Value::String(verb.clone()));
    let verb: PowerVerb = parsed.map_err(|_| no_such())?;
    let id: Id = id.parse().map_err(|_| Refusal::invalid(format!("{id:?} in the path is no id (a UUID)")))?;
    api.touch(&sent.session, Thing::Instance, id)?;
    let done = api.submit(sent, |_| Command::Power(id, verb)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Takes a snapshot of an instance's disks.
#[utoipa::path(post, path = "/v1/instances/{id}/snapshots", params(("id" = Id, Path)),
    request_body = SnapshotRequest,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn snapshot(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<SnapshotRequest>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Instance, id)?;
    let done = api.submit(sent, |request| Command::CreateSnapshot(id, request)).await?;
    Ok(accepted(Done::Made, &done))
}

/// Gives an instance the contents of a snapshot of it.
#[utoipa::path(post, path = "/v1/instances/{id}/restore", params(("id" = Id, Path)),
    request_body = RestoreRequest,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn restore(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<RestoreRequest>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Instance, id)?;
    api.touch(&sent.session, Thing::Snapshot, sent.body.snapshot)?;
    let done = api.submit(sent, |request| Command::RestoreSnapshot(id, request)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Captures an instance's boot disk as an image.
#[utoipa::path(post, path = "/v1/instances/{id}/save-image", params(("id" = Id, Path)),
    request_body = SaveImageRequest,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn save_image(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<SaveImageRequest>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Instance, id)?;
    let done = api.submit(sent, |request| Command::SaveImage(id, request)).await?;
    Ok(accepted(Done::Made, &done))
}

/// Makes an instance with the contents of another.
#[utoipa::path(post, path = "/v1/instances/{id}/copy", params(("id" = Id, Path)), request_body = CopyRequest,
    responses((status = 202, body = Accepted, description = "Accepted; `Location` names the job")))]
pub(crate) async fn copy(
    State(api): State<Api>,
    IdPath(id): IdPath,
    sent: Mutation<CopyRequest>,
) -> Answer<Response> {
    api.touch(&sent.session, Thing::Instance, id)?;
    let done = api.submit(sent, |request| Command::CopyInstance(id, request)).await?;
    Ok(accepted(Done::Made, &done))
}

/// An instance's statistics: CPUs, memory, disks, network.
#[utoipa::path(get, path = "/v1/instances/{id}/statistics", params(("id" = Id, Path), StatisticsParameters),
    responses((status = 200, body = Statistics)))]
pub(crate) async fn statistics(
    State(api): State<Api>,
    session: Session,
    IdPath(id): IdPath,
    Parameters(asked): Parameters<StatisticsParameters>,
) -> Answer<Json<Statistics>> {
    let instance = api.visible_instance(&session, id)?;
    api.statistics(of_instance(&instance), asked).await.map(Json)
}

/// What an instance was made with: layout, users, keys, network, boot.
#[utoipa::path(get, path = "/v1/instances/{id}/config", params(("id" = Id, Path)),
    responses((status = 200, body = InstanceConfig)))]
pub(crate) async fn config(
    State(api): State<Api>,
    session: Session,
    IdPath(id): IdPath,
) -> Answer<Json<InstanceConfig>> {
    api.visible_instance(&session, id)?;
    let found = api.read_store(move |reader| reader.config(id)).await?;
    found.map(Json).ok_or_else(|| Refusal::not_found(TABLE, format!("{id}/config")))
}

impl Api {
    fn visible_instance(&self, session: &Session, id: Id) -> Answer<Instance> {
        let found = self.grid().read(|state| state.instances.get(&id).cloned());
        let found = found.filter(|instance| session.sees(Some(&instance.project)));
        found.ok_or_else(|| Refusal::not_found(TABLE, id))
    }
}
