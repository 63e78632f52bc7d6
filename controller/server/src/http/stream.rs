//! Server-sent events: what was committed, as it is committed, resumable by sequence number.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::Api;
use super::access::Session;
use super::answer::{Answer, Refusal};
use super::lens::Lens;
use crate::model::{ErrorCode, Event, Id, Progress};
use crate::store::EventFilter;

/// A comment is sent after this silence, so that whoever is between does not take the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events read at once.
const CHUNK: usize = 100;
/// Pause between two looks at the store while the grid is busy: one look serves many commits.
const BREATH: Duration = Duration::from_millis(50);
/// How often a stream looks how far its job is, and whether its token still holds.
const GLANCE: Duration = Duration::from_millis(500);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Where a stream is taken up.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Position {
    /// The sequence number of the last event seen.
    after: Option<u64>,
}

impl Position {
    pub(crate) fn new(after: Option<u64>) -> Self {
        Self { after }
    }

    /// `Last-Event-ID`, which a browser sends when it connects again, before `?after=`, which was in the first request.
    pub(crate) fn after(&self, headers: &HeaderMap) -> Answer<Option<u64>> {
        let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(self.after) };
        let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
        number.map(Some).ok_or_else(|| Refusal::invalid("Last-Event-ID is to be the id of an event"))
    }
}

/// What is watched, and by whom.
pub(crate) struct Watch {
    pub(crate) session: Session,
    pub(crate) filter: EventFilter,
    pub(crate) after: u64,
    /// The stream ends when this job has ended.
    pub(crate) job: Option<Id>,
}

struct Stream {
    api: Api,
    watch: Watch,
    committed: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    pending: VecDeque<Event>,
    progress: Option<Progress>,
    _place: OwnedSemaphorePermit,
}

/// The stream as an answer.
pub(crate) fn answer(api: &Api, watch: Watch) -> Answer<Response> {
    let place = std::sync::Arc::clone(&api.streams).try_acquire_owned().map_err(|_| {
        Refusal::new(ErrorCode::Overloaded, "too many streams of events are open; try again later")
    })?;
    let stream = Stream {
        api: api.clone(),
        watch,
        committed: api.grid().events(),
        stopping: api.stopping.clone(),
        pending: VecDeque::new(),
        progress: None,
        _place: place,
    };
    let messages = unfold(stream, |mut stream| async move {
        let message = stream.next().await?;
        Some((Ok::<_, Infallible>(message), stream))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

impl Stream {
    /// The next message; `None` at the stream's end.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                self.watch.after = event.sequence;
                return Some(self.message(event));
            }
            if *self.stopping.borrow() || !self.api.token_holds(self.watch.session.token) {
                return None;
            }
            // Asked before the events are read: the last event is committed together with the job's end.
            let ended = self.job_has_ended().await?;
            self.committed.mark_unchanged();
            self.pending = self.read().await?.into();
            if !self.pending.is_empty() {
                continue;
            }
            if ended {
                return None;
            }
            if let Some(message) = self.new_progress() {
                return Some(message);
            }
            self.wait().await;
        }
    }

    async fn read(&self) -> Option<Vec<Event>> {
        let (after, filter) = (self.watch.after, self.watch.filter.clone());
        // A store that cannot be read ends the stream; the client takes it up again where it was.
        self.api.read_store(move |reader| reader.events(after, &filter, CHUNK)).await.ok()
    }

    async fn job_has_ended(&self) -> Option<bool> {
        let Some(id) = self.watch.job else { return Some(false) };
        if self.api.grid().read(|state| state.jobs.contains_key(&id)) {
            return Some(false);
        }
        let found = self.api.read_store(move |reader| reader.job(id)).await.ok()?;
        Some(found.is_none_or(|record| record.job.state.ended()))
    }

    fn new_progress(&mut self) -> Option<sse::Event> {
        let progress = self.api.progress(self.watch.job?);
        if progress.is_none() || progress == self.progress {
            return None;
        }
        self.progress.clone_from(&progress);
        let data = serde_json::to_string(&progress).unwrap_or_default();
        Some(sse::Event::default().event("progress").data(data))
    }

    fn message(&self, event: Event) -> sse::Event {
        let event = self.api.grid().read(|state| Lens::new(&self.watch.session, state)).event(event);
        let data = serde_json::to_string(&event).unwrap_or_default();
        sse::Event::default().id(event.sequence.to_string()).event(event.kind).data(data)
    }

    async fn wait(&mut self) {
        let happened = async {
            // The sender is gone only when everything ends.
            if self.committed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(BREATH).await;
        };
        tokio::select! {
            () = happened => {}
            () = tokio::time::sleep(GLANCE) => {}
            _ = self.stopping.changed() => {}
        }
    }
}
