//! The one writer.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::dispatch::Dispatcher;
use super::{Asked, OnForget, Shared, store_failed};
use crate::core::{Batch, Core, Input, Options};
use crate::model::{JobKind, JobState};
use crate::store::{Store, StoreError};

/// Requests and outcomes that share one transaction at most. Requests come first: people wait for them.
const MAX_REQUESTS: usize = 256;
const MAX_INPUTS: usize = 256;
/// Longest time without a tick.
const TICK: Duration = Duration::from_secs(1);
/// Pause before a store that failed is tried again.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// How the writer does.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Transactions committed.
    pub commits: u64,
    /// Transactions that failed.
    pub commits_failed: u64,
    /// Seconds spent committing.
    pub commit_seconds: f64,
    /// Changes committed.
    pub changes: u64,
    /// Requests and outcomes taken.
    pub inputs: u64,
    /// Requests and outcomes that wait now.
    pub waiting: usize,
    /// Calls to nodes that run now.
    pub calls_running: usize,
    /// Jobs that ended since the start.
    pub jobs_ended: BTreeMap<(JobKind, JobState), u64>,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) store: Box<dyn Store>,
    pub(super) options: Box<dyn Fn() -> Options + Send>,
    pub(super) on_forget: OnForget,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut last_tick = Instant::now();
        let mut pause = Duration::ZERO;
        loop {
            let Some((asked, mut inputs)) = self.take(pause) else { return };
            let now = self.shared.clock.now();
            let due = self.wakeup();
            if due.is_some_and(|at| at <= now) || last_tick.elapsed() >= TICK {
                inputs.push(Input::Tick);
                last_tick = Instant::now();
            }
            self.round(asked, inputs);
            let until =
                self.wakeup().map(|at| Duration::from_millis(at.saturating_sub(self.shared.clock.now())));
            pause = until.unwrap_or(TICK).min(TICK.saturating_sub(last_tick.elapsed()));
        }
    }

    fn wakeup(&self) -> Option<u64> {
        self.shared.core.read().unwrap_or_else(PoisonError::into_inner).next_wakeup()
    }

    /// What has come in; after a pause nothing perhaps. None where the controller ends.
    fn take(&self, pause: Duration) -> Option<(Vec<Asked>, Vec<Input>)> {
        let mut queue = self.shared.queue();
        if queue.requests.is_empty() && queue.inputs.is_empty() && !queue.stop {
            let waited = self.shared.came.wait_timeout(queue, pause);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if queue.stop && queue.requests.is_empty() {
            return None;
        }
        let requests = queue.requests.len().min(MAX_REQUESTS);
        let inputs = queue.inputs.len().min(MAX_INPUTS);
        Some((queue.requests.drain(..requests).collect(), queue.inputs.drain(..inputs).collect()))
    }

    fn round(&mut self, asked: Vec<Asked>, inputs: Vec<Input>) {
        let count = (asked.len() + inputs.len()) as u64;
        if count == 0 {
            return;
        }
        let mut batch = Batch::default();
        let mut waiting = Vec::with_capacity(asked.len());
        let shared = Arc::clone(&self.shared);
        let mut core = shared.core.write().unwrap_or_else(PoisonError::into_inner);
        let now = shared.clock.now();
        for (index, Asked { request, reply }) in asked.into_iter().enumerate() {
            core.apply(now, Input::Request { reply: index as u64, request: Box::new(request) }, &mut batch);
            waiting.push(Some(reply));
        }
        for input in inputs {
            core.apply(now, input, &mut batch);
        }
        let began = Instant::now();
        let committed = if batch.changes.is_empty() { Ok(()) } else { self.store.commit(&batch.changes) };
        self.count(count, batch.changes.len(), began, committed.is_ok());
        if let Err(error) = committed {
            crate::log::warn(&format!("the store failed: {error}"));
            for reply in waiting.into_iter().flatten() {
                let _ = reply.send(Err(store_failed(copy(&error))));
            }
            *core = self.start_again();
            shared.failing.store(false, Ordering::Relaxed);
            return;
        }
        let last_event = core.state().last_event;
        drop(core);
        shared.last_event.send_if_modified(|known| std::mem::replace(known, last_event) != last_event);
        for (index, result) in batch.replies {
            // Somebody who went away does not hear it; the same request again would.
            if let Some(reply) = waiting.get_mut(index as usize).and_then(Option::take) {
                let _ = reply.send(result);
            }
        }
        self.dispatcher.abandon(&batch.abandoned);
        self.dispatcher.send(batch.effects);
        batch.forget_blobs.into_iter().for_each(|image| (self.on_forget)(image));
    }

    fn count(&self, inputs: u64, changes: usize, began: Instant, committed: bool) {
        let mut metrics = self.shared.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.inputs += inputs;
        if changes == 0 {
            return;
        }
        metrics.commit_seconds += began.elapsed().as_secs_f64();
        if committed {
            metrics.commits += 1;
            metrics.changes += changes as u64;
        } else {
            metrics.commits_failed += 1;
        }
    }

    /// What was decided is not durable, so it did not happen: the core begins anew with what is. Until the store works,
    /// requests are told that it does not.
    fn start_again(&mut self) -> Core {
        self.shared.failing.store(true, Ordering::Relaxed);
        loop {
            let now = self.shared.clock.now();
            let begun = self.store.load().and_then(|loaded| {
                let mut batch = Batch::default();
                let core = Core::new(loaded, (self.options)(), now, &mut batch);
                self.store.commit(&batch.changes).map(|()| (core, batch))
            });
            match begun {
                Ok((core, batch)) => {
                    self.dispatcher.send(batch.effects);
                    return core;
                }
                Err(error) => {
                    let asked: Vec<Asked> = self.shared.queue().requests.drain(..).collect();
                    for Asked { reply, .. } in asked {
                        let _ = reply.send(Err(store_failed(copy(&error))));
                    }
                    if self.shared.queue().stop {
                        // Nothing more is decided; what is durable is complete.
                        let mut batch = Batch::default();
                        return Core::new(Default::default(), (self.options)(), now, &mut batch);
                    }
                    std::thread::sleep(STORE_PAUSE);
                }
            }
        }
    }
}

fn copy(error: &StoreError) -> StoreError {
    StoreError {
        context: error.context.clone(),
        out_of_space: error.out_of_space,
        cause: error.cause.clone(),
    }
}
