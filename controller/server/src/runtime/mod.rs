//! Threads: the one writer that decides and commits, those that call nodes, and the handle that everybody else has.
//!
//! The writer takes what has come in, lets the core decide, commits all of it in one transaction, and only then lets
//! calls be made and answers be given: many requests share one flush of the disk. Readers wait while it does so, and
//! never see what is not durable.

mod clock;
mod dispatch;
pub mod nodes;
mod writer;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

pub use clock::Clock;
pub use writer::Metrics;

use crate::core::{
    Batch, Caller, Command, Core, EffectToken, Input, Observation, Options, Request, State, answered,
};
use crate::model::{Accepted, ErrorCode, Id, Millis, Plan, PlanRequest, Problem};
use crate::store::{Reader, Store, StoreError};
use dispatch::Dispatcher;
use nodes::Nodes;

/// Requests that may wait for the writer; more are asked to come again.
const MAX_WAITING: usize = 16_384;
/// How long a request waits for its answer at most.
const ANSWER: Duration = Duration::from_secs(30);

/// Takes note of what looks at nodes showed.
pub type OnObservation = Box<dyn Fn(Id, Millis, &Observation) + Send + Sync>;
/// Takes note of captured images whose contents nobody needs any more.
pub type OnForget = Box<dyn Fn(Id) + Send + Sync>;

/// What a grid is made of.
pub struct Parts {
    /// What is durable.
    pub store: Box<dyn Store>,
    /// Who calls nodes.
    pub nodes: Arc<dyn Nodes>,
    /// What the core is told; again for each new start of it.
    pub options: Box<dyn Fn() -> Options + Send>,
    /// See there.
    pub on_observation: OnObservation,
    /// See there.
    pub on_forget: OnForget,
}

struct Asked {
    request: Request,
    reply: oneshot::Sender<Result<Accepted, Problem>>,
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Asked>,
    inputs: VecDeque<Input>,
    stop: bool,
}

struct Shared {
    core: RwLock<Core>,
    queue: Mutex<Queue>,
    came: Condvar,
    clock: Clock,
    metrics: Mutex<Metrics>,
    last_event: watch::Sender<u64>,
    failing: AtomicBool,
    on_observation: OnObservation,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self, input: Input) {
        self.queue().inputs.push_back(input);
        self.came.notify_one();
    }
}

/// The grid, for those that read and ask.
pub struct Grid {
    shared: Arc<Shared>,
    reader: Arc<dyn Reader>,
    writer: Mutex<Option<JoinHandle<()>>>,
    dispatcher: Arc<Dispatcher>,
}

impl Grid {
    /// Loads what the store has, and goes on with what was going on.
    pub fn start(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let Parts { mut store, nodes, options, on_observation, on_forget } = parts;
        let clock = Clock::default();
        let loaded = store.load()?;
        let mut batch = Batch::default();
        let core = Core::new(loaded, options(), clock.now(), &mut batch);
        store.commit(&batch.changes)?;
        let reader = store.reader();
        let last_event = watch::Sender::new(core.state().last_event);
        let shared = Arc::new(Shared {
            core: RwLock::new(core),
            queue: Mutex::default(),
            came: Condvar::new(),
            clock,
            metrics: Mutex::default(),
            last_event,
            failing: AtomicBool::new(false),
            on_observation,
        });
        let dispatcher = Arc::new(Dispatcher::new(Arc::clone(&shared), nodes));
        dispatcher.send(batch.effects);
        let writer = writer::Writer {
            shared: Arc::clone(&shared),
            dispatcher: Arc::clone(&dispatcher),
            store,
            options,
            on_forget,
        };
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let run = std::panic::AssertUnwindSafe(|| writer.run());
            if std::panic::catch_unwind(run).is_err() {
                // Nothing decides any more. What is durable is whole; the next start goes on from it.
                crate::log::warn("a fault in the writer: the controller ends");
                std::process::abort();
            }
        });
        let thread = thread.map_err(|error| StoreError {
            context: "starting the writer's thread".to_owned(),
            out_of_space: false,
            cause: error.to_string(),
        })?;
        Ok(Arc::new(Self { shared, reader, writer: Mutex::new(Some(thread)), dispatcher }))
    }

    /// Looks at the picture of the grid. Be quick: the writer waits.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(self.shared.core.read().unwrap_or_else(PoisonError::into_inner).state())
    }

    /// Asks for a change; the answer is durable when it comes.
    pub async fn submit(&self, request: Request) -> Result<Accepted, Problem> {
        if let Some((key, hash)) = &request.idempotency
            && let Some(answer) = self.reader.answer(key).map_err(store_failed)?
        {
            return answered(&answer, hash);
        }
        let (reply, answer) = oneshot::channel();
        {
            let mut queue = self.shared.queue();
            if queue.stop {
                return Err(Problem::new(ErrorCode::Overloaded, "the controller is ending"));
            }
            if queue.requests.len() >= MAX_WAITING {
                let detail = format!("{MAX_WAITING} requests wait; send it again in a moment");
                return Err(Problem::new(ErrorCode::Overloaded, detail));
            }
            queue.requests.push_back(Asked { request, reply });
        }
        self.shared.came.notify_one();
        match tokio::time::timeout(ANSWER, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Problem::new(ErrorCode::Internal, "the writer ended before it answered")),
            Err(_) => Err(Problem::new(
                ErrorCode::Overloaded,
                "no answer in time; send the request again with the same Idempotency-Key to learn what became of it",
            )),
        }
    }

    /// What would happen.
    pub fn plan(&self, caller: &Caller, request: &PlanRequest) -> Result<Plan, Problem> {
        let now = self.now();
        self.shared.core.write().unwrap_or_else(PoisonError::into_inner).plan(now, caller, request)
    }

    /// What is durable, for readers.
    pub fn reader(&self) -> &Arc<dyn Reader> {
        &self.reader
    }

    /// The sequence number of the last committed event.
    pub fn events(&self) -> watch::Receiver<u64> {
        self.shared.last_event.subscribe()
    }

    /// The time.
    pub fn now(&self) -> Millis {
        self.shared.clock.now()
    }

    /// Whether the store takes changes.
    pub fn ready(&self) -> bool {
        !self.shared.failing.load(Ordering::Relaxed)
    }

    /// How the writer does.
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.shared.metrics.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let queue = self.shared.queue();
        metrics.waiting = queue.requests.len() + queue.inputs.len();
        drop(queue);
        metrics.calls_running = self.dispatcher.running();
        metrics.jobs_ended = self.shared.core.read().unwrap_or_else(PoisonError::into_inner).ended().clone();
        metrics
    }

    /// Takes no more requests, finishes the batch at work and ends. What goes on at nodes is taken up at the next start.
    pub fn stop(&self) {
        self.shared.queue().stop = true;
        self.shared.came.notify_one();
        self.dispatcher.stop();
        let thread = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A writer that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Grid {
    fn drop(&mut self) {
        self.stop();
    }
}

fn store_failed(error: StoreError) -> Problem {
    let advice = if error.out_of_space { "; free space for the store" } else { "" };
    Problem::new(ErrorCode::StoreFailed, format!("{error}{advice}; nothing was changed"))
}

fn token_of_job(token: EffectToken) -> Option<Id> {
    match token {
        EffectToken::Step { job, .. } => Some(job),
        EffectToken::Poll { .. } => None,
    }
}

/// A request by an operator who is the controller itself.
pub fn own_request(command: Command) -> Request {
    Request { caller: Caller::Operator, command, idempotency: None, if_match: None }
}
