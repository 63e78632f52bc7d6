//! Server-sent events: a job's journal as it grows, resumable by sequence number.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse;
use futures_util::Stream;
use futures_util::stream::unfold;

use crate::job::Engine;

/// How often the journal is looked at. Progress is journaled every 250 ms.
const POLL: Duration = Duration::from_millis(100);

struct Cursor {
    engine: Arc<Engine>,
    job: String,
    after: u64,
    pending: VecDeque<uvm_api::Event>,
    ended: bool,
}

/// The events after `after`, until the job's last one.
pub(crate) fn stream(
    engine: Arc<Engine>,
    job: String,
    after: u64,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let cursor = Cursor { engine, job, after, pending: VecDeque::new(), ended: false };
    unfold(cursor, |mut cursor| async move {
        loop {
            if let Some(event) = cursor.pending.pop_front() {
                cursor.after = event.sequence;
                cursor.ended = event.body.is_last();
                let data = serde_json::to_string(&event).unwrap_or_default();
                let message =
                    sse::Event::default().id(event.sequence.to_string()).event(event.body.name()).data(data);
                return Some((Ok(message), cursor));
            }
            if cursor.ended {
                return None;
            }
            match cursor.engine.events(&cursor.job, cursor.after) {
                Ok(events) if !events.is_empty() => cursor.pending = events.into(),
                // Nothing new and nothing to come: the client has seen the last event already.
                Ok(_) if cursor.engine.has_ended(&cursor.job, cursor.after) => return None,
                Ok(_) => tokio::time::sleep(POLL).await,
                Err(_) => return None,
            }
        }
    })
}
