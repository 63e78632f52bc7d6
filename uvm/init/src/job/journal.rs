//! What a job did, in order: the record that `GET /v1/jobs/{id}/events` reads.
//!
//! Of progress events only the newest of a step is kept, so a journal is bounded by the number of steps.

use std::fs::File;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use uvm_api::{Event, EventBody};

/// The events of one job.
pub(crate) struct Journal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    next: u64,
    sink: Option<File>,
}

/// Now, as RFC 3339.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

impl Journal {
    /// An empty journal; `sink` gets every event but progress as a line of JSON, durable before the job goes on.
    pub(crate) fn new(sink: Option<File>) -> Self {
        Self { state: Mutex::new(State { sink, next: 1, ..State::default() }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event.
    pub(crate) fn record(&self, body: EventBody) {
        let mut state = self.lock();
        if matches!(body, EventBody::Progress { .. })
            && matches!(state.events.last(), Some(Event { body: EventBody::Progress { .. }, .. }))
        {
            state.events.pop();
        }
        let event = Event { sequence: state.next, time: now(), body };
        state.next += 1;
        if !matches!(event.body, EventBody::Progress { .. })
            && let Some(sink) = &mut state.sink
        {
            let written = serde_json::to_string(&event)
                .map_err(std::io::Error::other)
                .and_then(|line| writeln!(sink, "{line}"))
                .and_then(|()| sink.sync_data());
            if let Err(error) = written {
                crate::log::warn(&format!("the journal file cannot be written: {error}"));
                state.sink = None;
            }
        }
        state.events.push(event);
        drop(state);
        self.changed.notify_all();
    }

    /// The events after `sequence`.
    pub(crate) fn after(&self, sequence: u64) -> Vec<Event> {
        self.lock().events.iter().filter(|event| event.sequence > sequence).cloned().collect()
    }

    /// Whether the last event there will ever be has this sequence number or a smaller one.
    pub(crate) fn ended_by(&self, sequence: u64) -> bool {
        self.lock().events.last().is_some_and(|event| event.body.is_last() && event.sequence <= sequence)
    }

    /// Waits until there is an event after `sequence`, or `timeout` is over; then as [`Journal::after`].
    pub(crate) fn wait_after(&self, sequence: u64, timeout: Duration) -> Vec<Event> {
        let state = self.lock();
        let wait = self.changed.wait_timeout_while(state, timeout, |state| state.next <= sequence + 1);
        drop(wait);
        self.after(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(bytes_done: u64) -> EventBody {
        EventBody::Progress { step: "s".into(), bytes_done, bytes_total: None, bytes_per_second: 1 }
    }

    #[test]
    fn progress_is_merged_and_sequence_grows() {
        let journal = Journal::new(None);
        journal.record(EventBody::Planned { plan_hash: String::new(), steps: vec![] });
        for n in 0..1000 {
            journal.record(progress(n));
        }
        journal.record(EventBody::StepDone { step: "s".into(), bytes: 1, duration_ms: 1 });
        let all = journal.after(0);
        assert_eq!(all.iter().map(|e| e.sequence).collect::<Vec<_>>(), [1, 1001, 1002]);
        assert_eq!(journal.after(1001).len(), 1);
        assert!(journal.wait_after(1002, Duration::from_millis(10)).is_empty());
    }

    #[test]
    fn the_sink_gets_every_event_but_progress() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::new(Some(File::create(&path).unwrap()));
        journal.record(progress(1));
        journal.record(EventBody::StepDone { step: "s".into(), bytes: 1, duration_ms: 1 });
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("\"event\":\"step-done\""));
    }
}
