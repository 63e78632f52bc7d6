//! `/v1/events`: what happened in the grid, in order.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::access::Session;
use super::answer::{Answer, Refusal};
use super::lens::Lens;
use super::page::{cursor_of_sequence, limit_of, sequence_of};
use super::request::Parameters;
use super::stream::{Position, Watch};
use super::{Api, stream};
use crate::model::{Event, Id, Page};
use crate::store::EventFilter;

/// Which events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Filter {
    /// Most records of the page, 1 to 1000; 100 where it is missing.
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Those after this sequence number.
    after: Option<u64>,
    /// Those of this project.
    project: Option<String>,
    /// Those about this thing, as `instances/0192…`.
    subject: Option<String>,
    /// Those of this job.
    job: Option<Id>,
}

/// Which events, as they happen.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StreamFilter {
    /// Those after this sequence number; from now on where neither it nor `Last-Event-ID` is given.
    after: Option<u64>,
    /// Those of this project.
    project: Option<String>,
    /// Those about this thing, as `instances/0192…`.
    subject: Option<String>,
    /// Those of this job.
    job: Option<Id>,
}

/// A tenant's events are those of its project, whatever it asks for.
fn filter_of(
    session: &Session,
    project: Option<String>,
    subject: Option<String>,
    job: Option<Id>,
) -> Answer<EventFilter> {
    let project = match (session.project(), project) {
        (Some(own), Some(asked)) if own != asked => return Err(Refusal::not_found("projects", asked)),
        (Some(own), _) => Some(own.to_owned()),
        (None, asked) => asked,
    };
    Ok(EventFilter { project, job, subject })
}

/// The events the caller may see, oldest first. With `Accept: text/event-stream` the same as `/v1/events/stream`.
#[utoipa::path(get, path = "/v1/events", params(Filter), responses((status = 200, body = Page<Event>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    session: Session,
    Parameters(asked): Parameters<Filter>,
    headers: HeaderMap,
) -> Answer<Response> {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepts.contains("text/event-stream") {
        let Filter { after, project, subject, job, .. } = asked;
        return follow(&api, session, StreamFilter { after, project, subject, job }, &headers);
    }
    let limit = limit_of(asked.limit)?;
    let after = match (&asked.cursor, asked.after) {
        (Some(cursor), _) => sequence_of(cursor)?,
        (None, after) => after.unwrap_or(0),
    };
    let filter = filter_of(&session, asked.project, asked.subject, asked.job)?;
    let mut items = api.read_store(move |reader| reader.events(after, &filter, limit + 1)).await?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|event| cursor_of_sequence(event.sequence));
    let lens = api.grid().read(|state| Lens::new(&session, state));
    let items = items.into_iter().map(|event| lens.event(event)).collect();
    Ok(Json(Page { items, next_cursor }).into_response())
}

/// Events as they happen, as server-sent events; takes up after `Last-Event-ID` or `?after=`.
#[utoipa::path(get, path = "/v1/events/stream",
    params(StreamFilter, ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, body = Event, content_type = "text/event-stream")))]
pub(crate) async fn stream(
    State(api): State<Api>,
    session: Session,
    Parameters(asked): Parameters<StreamFilter>,
    headers: HeaderMap,
) -> Answer<Response> {
    follow(&api, session, asked, &headers)
}

fn follow(api: &Api, session: Session, asked: StreamFilter, headers: &HeaderMap) -> Answer<Response> {
    let after = Position::new(asked.after).after(headers)?;
    let after = after.unwrap_or_else(|| *api.grid().events().borrow());
    let filter = filter_of(&session, asked.project, asked.subject, asked.job)?;
    stream::answer(api, Watch { session, filter, after, job: None })
}
