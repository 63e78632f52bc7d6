//! Every decision: a deterministic machine. Time, requests, outcomes and observations go in; durable changes, calls
//! to nodes and answers come out. It has no clock, no threads, no randomness but a seed, and no I/O: the same inputs
//! give the same outputs, in production, in tests and in simulations of years.
//!
//! ```text
//! Input ─▶ Core::apply ─▶ Batch { changes, effects, replies }
//!                             │ committed first
//!                             └▶ then effects are performed, replies sent
//! ```

mod call;
mod command;
mod engine;
mod finish;
mod grid;
mod ids;
mod observe;
mod plan;
mod prepare;
mod state;
mod work;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;

pub use call::{Call, CallAnswer, CallError, CallErrorKind, Observation, UvmWork};
pub use command::{Caller, Command, Request};
pub use state::State;
pub use work::{Action, JobRecord, Place, Planned};

use crate::model::{
    Accepted, ErrorCode, Id, JobKind, JobState, Millis, Plan, PlanRequest, Problem, Progress,
    SanitizationRecord,
};
use crate::store::{Answer, Change, Loaded};
use engine::Flight;
use ids::Ids;
use observe::Watch;
use plan::{Draft, Planner};

/// A call to a node that the core wants made, after its batch was committed.
#[derive(Debug, Clone)]
pub struct Effect {
    /// Comes back with the outcome.
    pub token: EffectToken,
    /// The node.
    pub node: Id,
    /// The call.
    pub call: Call,
}

/// What an effect is for; outcomes of what nobody waits for any more are recognized by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EffectToken {
    /// A step of a job.
    Step {
        /// The job.
        job: Id,
        /// Counts the calls of the job.
        call: u64,
    },
    /// A look at a node.
    Poll {
        /// The node.
        node: Id,
    },
}

/// What the core hears.
#[derive(Debug)]
pub enum Input {
    /// Somebody asks for something.
    Request {
        /// To answer by.
        reply: u64,
        /// What.
        request: Box<Request>,
    },
    /// A call came to its end.
    Outcome {
        /// Which.
        token: EffectToken,
        /// How.
        result: Result<CallAnswer, CallError>,
    },
    /// A job of a utility VM goes on.
    Progress {
        /// Of which effect.
        token: EffectToken,
        /// How far.
        progress: Progress,
    },
    /// Time went by; comes at least once a second.
    Tick,
}

/// What came of inputs: to be committed, then performed and answered.
#[derive(Debug, Default)]
pub struct Batch {
    /// Durable changes, in order.
    pub changes: Vec<Change>,
    /// Calls to make once they are durable.
    pub effects: Vec<Effect>,
    /// Answers to give once they are durable.
    pub replies: Vec<(u64, Result<Accepted, Problem>)>,
    /// Calls whose outcomes nobody waits for any more.
    pub abandoned: Vec<EffectToken>,
    /// Captured images whose contents nobody needs any more.
    pub forget_blobs: Vec<Id>,
}

/// Time of an input.
pub type Now = Millis;

/// What the core is told once.
pub struct Options {
    /// Time between two looks at a node.
    pub poll_interval_ms: u64,
    /// Seed of ids; another one for every start.
    pub seed: u64,
    /// Signs records of sanitization.
    pub sign: Box<dyn Fn(&SanitizationRecord) -> String + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Options {{ poll_interval_ms: {} }}", self.poll_interval_ms)
    }
}

/// Answers kept in memory: older ones are looked up in the store before a request comes here.
const MAX_ANSWERS: usize = 16_384;
/// Time between two roundups of what is old.
const HOUSEKEEPING_MS: u64 = 5_000;

/// See the module.
#[derive(Debug)]
pub struct Core {
    state: State,
    options: Options,
    ids: Ids,
    flights: BTreeMap<Id, Flight>,
    timers: BTreeSet<(Now, Id)>,
    timer_of: HashMap<Id, Now>,
    /// Jobs that have their turn at a node's utility VM.
    turns: HashMap<Id, BTreeSet<Id>>,
    watches: BTreeMap<Id, Watch>,
    calls: u64,
    answers: HashMap<String, Answer>,
    answered: VecDeque<String>,
    tombstones: VecDeque<Id>,
    buried: HashSet<Id>,
    reported: HashSet<Id>,
    running_since: BTreeMap<Id, Now>,
    ended: BTreeMap<(JobKind, JobState), u64>,
    next_housekeeping: Now,
}

impl Core {
    /// The core over what the store has; what was going on goes on with the first batch.
    pub fn new(loaded: Loaded, options: Options, now: Now, batch: &mut Batch) -> Self {
        let mut core = Self {
            state: State::new(loaded),
            ids: Ids::new(options.seed),
            options,
            flights: BTreeMap::new(),
            timers: BTreeSet::new(),
            timer_of: HashMap::new(),
            turns: HashMap::new(),
            watches: BTreeMap::new(),
            // Calls made before a restart may still come to an end: their numbers are none of ours.
            calls: now << 20,
            answers: HashMap::new(),
            answered: VecDeque::new(),
            tombstones: VecDeque::new(),
            buried: HashSet::new(),
            reported: HashSet::new(),
            running_since: BTreeMap::new(),
            ended: BTreeMap::new(),
            next_housekeeping: now,
        };
        let unfinished: Vec<Id> = core.state.jobs.keys().copied().collect();
        for job in unfinished {
            core.begin(now, job, batch);
        }
        core
    }

    /// The picture of the grid.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Jobs that ended since the start, by kind and how.
    pub fn ended(&self) -> &BTreeMap<(JobKind, JobState), u64> {
        &self.ended
    }

    /// When the next [`Input::Tick`] is due at the latest.
    pub fn next_wakeup(&self) -> Option<Now> {
        let timer = self.timers.first().map(|(at, _)| *at);
        let poll =
            self.watches.values().filter(|watch| watch.pending.is_none()).map(|watch| watch.next).min();
        timer.into_iter().chain(poll).min()
    }

    /// Takes an input; what comes of it is added to the batch.
    pub fn apply(&mut self, now: Now, input: Input, batch: &mut Batch) {
        match input {
            Input::Request { reply, request } => {
                let result = self.request(now, &request, batch);
                batch.replies.push((reply, result));
            }
            Input::Outcome { token: EffectToken::Step { job, call }, result } => {
                self.outcome(now, (job, call), result, batch);
            }
            Input::Outcome { token: EffectToken::Poll { node }, result } => {
                self.observe(now, node, result, batch)
            }
            Input::Progress { token, progress } => self.progress(token, progress),
            Input::Tick => self.tick(now, batch),
        }
    }

    fn tick(&mut self, now: Now, batch: &mut Batch) {
        while let Some((at, job)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.no_timer(job);
            self.wake(now, job, batch);
        }
        self.look_around(now, batch);
        if self.next_housekeeping <= now {
            self.next_housekeeping = now + HOUSEKEEPING_MS;
            self.housekeeping(now, batch);
        }
    }

    fn request(&mut self, now: Now, request: &Request, batch: &mut Batch) -> Result<Accepted, Problem> {
        if let Some((key, hash)) = &request.idempotency
            && let Some(answer) = self.answers.get(key)
        {
            return answered(answer, hash);
        }
        if let Command::CancelJob(job) = request.command {
            self.may_cancel(&request.caller, job)?;
            self.cancel(now, job, batch)?;
            return Ok(Accepted { subject: state::name("jobs", job), id: job, job: Some(job) });
        }
        let draft = self.draft(now, request)?;
        let accepted = draft.accepted.clone();
        self.adopt(now, draft, batch);
        if let Some((key, hash)) = &request.idempotency {
            let answer = Answer {
                key: key.clone(),
                request_hash: hash.clone(),
                accepted: accepted.clone(),
                created_at: now,
            };
            batch.changes.push(Change::Answer(answer.clone()));
            self.answers.insert(key.clone(), answer);
            self.answered.push_back(key.clone());
            while self.answered.len() > MAX_ANSWERS {
                if let Some(old) = self.answered.pop_front() {
                    self.answers.remove(&old);
                }
            }
        }
        Ok(accepted)
    }

    fn may_cancel(&self, caller: &Caller, job: Id) -> Result<(), Problem> {
        let project = self.state.jobs.get(&job).map(|record| record.job.project.as_deref());
        let allowed = match (caller, project) {
            (Caller::Operator, _) => true,
            (Caller::Tenant { project: own }, Some(Some(project))) => own == project,
            _ => false,
        };
        match allowed {
            true => Ok(()),
            false => {
                Err(Problem::new(ErrorCode::NotFound, format!("there is no job {job} that has not ended")))
            }
        }
    }

    fn draft(&mut self, now: Now, request: &Request) -> Result<Draft, Problem> {
        self.learn(&request.command);
        let mut planner = Planner {
            state: &self.state,
            now,
            ids: &mut self.ids,
            caller: &request.caller,
            if_match: request.if_match,
        };
        planner.draft(request)
    }

    fn draft_for_operator(&mut self, now: Now, command: Command) -> Result<Draft, Problem> {
        let request = Request { caller: Caller::Operator, command, idempotency: None, if_match: None };
        self.draft(now, &request)
    }

    /// Placement knows words only once they were said.
    fn learn(&mut self, command: &Command) {
        match command {
            Command::CreateInstance(request) => {
                let project = request.project.clone().unwrap_or_default();
                self.state.grid.learn_request(&project, &request.placement);
            }
            Command::CopyInstance(id, request) => {
                let project = self.state.instances.get(id).map(|instance| instance.project.clone());
                if let (Some(project), Some(placement)) = (project, &request.placement) {
                    self.state.grid.learn_request(&project, placement);
                }
            }
            _ => {}
        }
    }

    /// What would happen. Nothing is changed; what is refused is told as a plan that is not feasible.
    pub fn plan(&mut self, now: Now, caller: &Caller, request: &PlanRequest) -> Result<Plan, Problem> {
        match request {
            PlanRequest::CreateInstance { request } => self.learn(&Command::CreateInstance(request.clone())),
            PlanRequest::CopyInstance { instance, request } => {
                self.learn(&Command::CopyInstance(*instance, request.clone()));
            }
            _ => {}
        }
        let mut ids = self.ids.clone();
        let mut planner = Planner { state: &self.state, now, ids: &mut ids, caller, if_match: None };
        match planner.preview(request) {
            Ok(draft) => match draft.show(&self.state) {
                Some(plan) => Ok(plan),
                None => {
                    Ok(infeasible(request, Problem::new(ErrorCode::InvalidRequest, "nothing would change")))
                }
            },
            Err(problem) => match problem.code {
                ErrorCode::NoCapacity
                | ErrorCode::Busy
                | ErrorCode::WrongState
                | ErrorCode::Unsupported
                | ErrorCode::RestartNeeded
                | ErrorCode::NameTaken
                | ErrorCode::NodeUnreachable => Ok(infeasible(request, problem)),
                _ => Err(problem),
            },
        }
    }

    /// A draft becomes so: its records, its locks and its job, in one transaction.
    fn adopt(&mut self, now: Now, draft: Draft, batch: &mut Batch) {
        for record in draft.puts {
            self.state.put(record, batch);
        }
        for (table, id) in draft.removes {
            self.state.remove(table, id, batch);
        }
        batch.forget_blobs.extend(draft.forget_blob);
        let job = draft.job.as_ref().map(|record| record.job.id);
        let (kind, words) = draft.event;
        if !words.is_empty() {
            self.state.event(now, kind, draft.accepted.subject, (draft.project, job), words, batch);
        }
        let Some(record) = draft.job else { return };
        for resource in &record.holds {
            self.state.lock(resource, record.job.id, now, batch);
        }
        let job = record.job.id;
        self.state.jobs.insert(job, record);
        self.begin(now, job, batch);
    }

    /// A job of one step on a node itself.
    fn node_job(&mut self, now: Now, node: Id, action: Action, kind: JobKind) -> Draft {
        let job = self.ids.id(now);
        plan::node_job(&self.state, (now, job), node, action, kind)
    }
}

/// The answer that was given to a key, where the request is the same.
pub fn answered(answer: &Answer, request_hash: &str) -> Result<Accepted, Problem> {
    if answer.request_hash == request_hash {
        return Ok(answer.accepted.clone());
    }
    let detail = "the Idempotency-Key was used for another request; use a new one";
    Err(Problem::new(ErrorCode::IdempotencyKeyReused, detail))
}

fn infeasible(request: &PlanRequest, problem: Problem) -> Plan {
    use crate::model::PowerVerb;
    let kind = match request {
        PlanRequest::CreateInstance { .. } => JobKind::CreateInstance,
        PlanRequest::ChangeInstance { .. } => JobKind::ChangeInstance,
        PlanRequest::CopyInstance { .. } => JobKind::CopyInstance,
        PlanRequest::DeleteInstance { .. } => JobKind::DeleteInstance,
        PlanRequest::Power { verb, .. } => match verb {
            PowerVerb::Start => JobKind::Start,
            PowerVerb::Shutdown => JobKind::Shutdown,
            PowerVerb::Destroy => JobKind::Destroy,
            PowerVerb::Suspend => JobKind::Suspend,
            PowerVerb::Resume => JobKind::Resume,
            PowerVerb::Reboot => JobKind::Reboot,
        },
        PlanRequest::CreateSnapshot { .. } => JobKind::CreateSnapshot,
        PlanRequest::SaveImage { .. } => JobKind::SaveImage,
        PlanRequest::RestoreSnapshot { .. } => JobKind::RestoreSnapshot,
    };
    Plan {
        kind,
        feasible: false,
        node: None,
        numa: Vec::new(),
        steps: Vec::new(),
        restart: false,
        interrupts: false,
        notes: Vec::new(),
        reason: Some(problem.detail),
        refusal: problem.refusal,
    }
}
