//! `/v1/nodes`: operators' alone, but that an enrolment token registers one.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Api;
use super::access::{Operator, Session};
use super::answer::{Answer, Done, Refusal, accepted, accepted_as, tagged};
use super::page::{Part, met, page};
use super::request::{IdPath, Mutation, Nothing, Parameters};
use super::statistics::{Statistics, StatisticsParameters};
use crate::core::Command;
use crate::model::{Accepted, ErrorCode, Id, NewNode, Node, NodeChange, NodeState, Page};

/// Which nodes.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Filter {
    /// Most records of the page, 1 to 1000; 100 where it is missing.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// The one of this name.
    name: Option<String>,
    /// Those in this state.
    state: Option<NodeState>,
}

/// The nodes, oldest first.
#[utoipa::path(get, path = "/v1/nodes", params(Filter), responses((status = 200, body = Page<Node>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    _: Operator,
    Parameters(filter): Parameters<Filter>,
) -> Answer<Json<Page<Node>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    Ok(Json(api.grid().read(|state| {
        page(&state.nodes, part, |node| {
            met(filter.name.as_ref(), &node.name) && met(filter.state.as_ref(), &node.state)
        })
    })))
}

/// A node as it stands.
#[utoipa::path(get, path = "/v1/nodes/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Node, headers(("ETag" = String, description = "The generation")))))]
pub(crate) async fn one(State(api): State<Api>, _: Operator, IdPath(id): IdPath) -> Answer<Response> {
    let found = api.grid().read(|state| state.nodes.get(&id).cloned());
    let found = found.ok_or_else(|| Refusal::not_found("nodes", id))?;
    Ok(tagged(found.generation, &found))
}

/// The answer to `POST /v1/nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegisteredNode {
    /// The node, as `nodes/0192…`.
    pub subject: String,
    /// Its id.
    pub id: Id,
    /// The job that boots its utility VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
    /// Certificate for the key of the certificate request, in PEM; absent where none was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Certificate of the controller's authority, in PEM: whose clients the utility VM admits.
    pub authority: String,
}

/// Registers a node, with an operator's token or an enrolment token, which is used up by it.
#[utoipa::path(post, path = "/v1/nodes", request_body = NewNode,
    responses((status = 202, body = RegisteredNode, description = "Registered; `Location` names the job"),
        (status = 201, body = RegisteredNode)))]
pub(crate) async fn create(
    State(api): State<Api>,
    session: Session,
    sent: Mutation<Box<NewNode>>,
) -> Answer<Response> {
    if session.project().is_some() {
        return Err(Refusal::new(
            ErrorCode::Forbidden,
            "registering a node needs an operator's token or an enrolment token",
        ));
    }
    // Before anything is kept: a request that cannot be signed registers nothing.
    let certificate = match &sent.body.certificate_request {
        None => None,
        Some(request) => {
            let signed = api.services.authority.sign_request(request, &sent.body.name, api.grid().now());
            Some(signed.map_err(|error| Refusal::invalid(format!("certificate_request: {error}")))?)
        }
    };
    let done = api.submit(sent, Command::CreateNode).await?;
    let answer = RegisteredNode {
        subject: done.subject.clone(),
        id: done.id,
        job: done.job,
        certificate,
        authority: api.services.authority.certificate_pem().to_owned(),
    };
    Ok(accepted_as(Done::Made, &done, &answer))
}

/// Changes a node.
#[utoipa::path(patch, path = "/v1/nodes/{id}", params(("id" = Id, Path)), request_body = NodeChange,
    responses((status = 200, body = Accepted)))]
pub(crate) async fn change(
    State(api): State<Api>,
    _: Operator,
    IdPath(id): IdPath,
    sent: Mutation<NodeChange>,
) -> Answer<Response> {
    let done = api.submit(sent, |change| Command::ChangeNode(id, change)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Forgets a node that has nothing on it.
#[utoipa::path(delete, path = "/v1/nodes/{id}", params(("id" = Id, Path)),
    responses((status = 200, body = Accepted)))]
pub(crate) async fn delete(
    State(api): State<Api>,
    _: Operator,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    let done = api.submit(sent, |_| Command::DeleteNode(id)).await?;
    Ok(accepted(Done::Changed, &done))
}

async fn set_cordon(api: Api, id: Id, sent: Mutation<Nothing>, cordoned: bool) -> Answer<Response> {
    let change = NodeChange { cordoned: Some(cordoned), ..NodeChange::default() };
    let done = api.submit(sent, |_| Command::ChangeNode(id, change)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// Places no new instance on the node from now on. What runs there goes on.
#[utoipa::path(post, path = "/v1/nodes/{id}/cordon", params(("id" = Id, Path)),
    responses((status = 200, body = Accepted)))]
pub(crate) async fn cordon(
    State(api): State<Api>,
    _: Operator,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    set_cordon(api, id, sent, true).await
}

/// Places new instances on the node again.
#[utoipa::path(post, path = "/v1/nodes/{id}/uncordon", params(("id" = Id, Path)),
    responses((status = 200, body = Accepted)))]
pub(crate) async fn uncordon(
    State(api): State<Api>,
    _: Operator,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    set_cordon(api, id, sent, false).await
}

/// A node's statistics.
#[utoipa::path(get, path = "/v1/nodes/{id}/statistics", params(("id" = Id, Path), StatisticsParameters),
    responses((status = 200, body = Statistics)))]
pub(crate) async fn statistics(
    State(api): State<Api>,
    _: Operator,
    IdPath(id): IdPath,
    Parameters(asked): Parameters<StatisticsParameters>,
) -> Answer<Json<Statistics>> {
    if !api.grid().read(|state| state.nodes.contains_key(&id)) {
        return Err(Refusal::not_found("nodes", id));
    }
    let measured = api.of_node(id).await?;
    api.statistics(measured, asked).await.map(Json)
}
