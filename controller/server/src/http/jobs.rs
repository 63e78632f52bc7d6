//! `/v1/jobs`: the controller's workflows.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;

use super::access::Session;
use super::answer::{Answer, Done, Refusal, accepted};
use super::lens::Lens;
use super::page::{Part, cursor_of, met, node_of};
use super::request::{IdPath, Mutation, Nothing, Parameters};
use super::stream::{Position, Watch};
use super::{Api, stream};
use crate::core::Command;
use crate::model::{Accepted, Event, Id, Job, JobKind, JobState, Page};
use crate::store::EventFilter;

/// Records read at once from the store, where not every one meets the filter.
const CHUNK: usize = 1_000;
/// Chunks looked through for one page; where few jobs meet the filter, a page may be short and another follow.
const MAX_CHUNKS: usize = 10;

/// Which jobs.
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
    /// Those about this thing, as `instances/0192…`.
    subject: Option<String>,
    /// Those on this node: its id or its name.
    node: Option<String>,
    /// Those that do this.
    kind: Option<JobKind>,
    /// Those in this state.
    state: Option<JobState>,
}

/// The jobs the caller may see, newest first. With a filter a page may be short, and more follow.
#[utoipa::path(get, path = "/v1/jobs", params(Filter), responses((status = 200, body = Page<Job>)))]
pub(crate) async fn list(
    State(api): State<Api>,
    session: Session,
    Parameters(filter): Parameters<Filter>,
) -> Answer<Json<Page<Job>>> {
    let part = Part::new(filter.limit, filter.cursor.as_deref())?;
    // A tenant that asks for another project's gets none, as everywhere.
    let project = session.project().map(str::to_owned).or_else(|| filter.project.clone());
    if project.is_some() && filter.project.is_some() && project != filter.project {
        return Ok(Json(Page { items: Vec::new(), next_cursor: None }));
    }
    let (lens, node) = api
        .grid()
        .read(|state| (Lens::new(&session, state), filter.node.as_deref().map(|text| node_of(state, text))));
    let filtered = filter.kind.is_some() || filter.state.is_some() || node.is_some();
    // One more than is shown says whether there is another page.
    let size = if filtered { CHUNK } else { part.limit + 1 };
    let keep = move |job: &Job| {
        met(filter.kind.as_ref(), &job.kind)
            && met(filter.state.as_ref(), &job.state)
            && node.is_none_or(|node| node.is_some() && job.node == node)
    };
    let found = api.read_store(move |reader| {
        let (mut items, mut before) = (Vec::new(), part.after);
        for _ in 0..MAX_CHUNKS {
            let chunk = reader.jobs(project.as_deref(), filter.subject.as_deref(), before, size)?;
            let last = chunk.len() < size;
            for record in chunk {
                if items.len() == part.limit {
                    return Ok(Page { items, next_cursor: before.map(cursor_of) });
                }
                before = Some(record.job.id);
                items.extend(Some(record.job).filter(&keep));
            }
            if last {
                return Ok(Page { items, next_cursor: None });
            }
        }
        Ok(Page { items, next_cursor: before.map(cursor_of) })
    });
    let found = found.await?;
    let items = found.items.into_iter().map(|job| lens.job(api.with_progress(job))).collect();
    Ok(Json(Page { items, next_cursor: found.next_cursor }))
}

/// A job as it stands.
#[utoipa::path(get, path = "/v1/jobs/{id}", params(("id" = Id, Path)), responses((status = 200, body = Job)))]
pub(crate) async fn one(State(api): State<Api>, session: Session, IdPath(id): IdPath) -> Answer<Json<Job>> {
    let job = api.visible_job(&session, id).await?;
    let lens = api.grid().read(|state| Lens::new(&session, state));
    Ok(Json(lens.job(job)))
}

/// Asks a job to take back what it did and end. One that cannot goes on to its end.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", params(("id" = Id, Path)),
    responses((status = 202, body = Accepted, description = "Asked; `Location` names the job"),
        (status = 200, body = Accepted, description = "It has ended")))]
pub(crate) async fn cancel(
    State(api): State<Api>,
    session: Session,
    IdPath(id): IdPath,
    sent: Mutation<Nothing>,
) -> Answer<Response> {
    api.visible_job(&session, id).await?;
    let done = api.submit(sent, |_| Command::CancelJob(id)).await?;
    Ok(accepted(Done::Changed, &done))
}

/// A job's events as server-sent events, from its first one or after `Last-Event-ID` or `?after=`; ends after its last
/// one. Between them, `progress` events without an id tell how far the utility VM's job is.
#[utoipa::path(get, path = "/v1/jobs/{id}/events",
    params(("id" = Id, Path), Position, ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, body = Event, content_type = "text/event-stream")))]
pub(crate) async fn stream(
    State(api): State<Api>,
    session: Session,
    IdPath(id): IdPath,
    Parameters(position): Parameters<Position>,
    headers: HeaderMap,
) -> Answer<Response> {
    api.visible_job(&session, id).await?;
    let after = position.after(&headers)?.unwrap_or(0);
    let filter = EventFilter { job: Some(id), ..EventFilter::default() };
    stream::answer(&api, Watch { session, filter, after, job: Some(id) })
}

impl Api {
    /// The store knows every job; how far one is that runs, the memory alone.
    fn with_progress(&self, mut job: Job) -> Job {
        if !job.state.ended() {
            job.progress = self.progress(job.id);
        }
        job
    }

    pub(crate) fn progress(&self, id: Id) -> Option<crate::model::Progress> {
        self.grid().read(|state| state.jobs.get(&id).and_then(|record| record.job.progress.clone()))
    }

    async fn visible_job(&self, session: &Session, id: Id) -> Answer<Job> {
        let running = self.grid().read(|state| state.jobs.get(&id).map(|record| record.job.clone()));
        let found = match running {
            Some(job) => Some(job),
            None => self.read_store(move |reader| reader.job(id)).await?.map(|record| record.job),
        };
        let found = found.filter(|job| session.sees(job.project.as_deref()));
        found.ok_or_else(|| Refusal::not_found("jobs", id))
    }
}
