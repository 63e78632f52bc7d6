//! The engine: takes jobs, holds their devices, runs each on a thread of its own, and remembers how they ended.
//!
//! ```text
//! submit ── hold device ── plan ── thread ── steps ── outcome ── release device
//!    └ same id again: the same job        └ a panic is this job's failure, not the node's
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;
use uvm_api::{
    Device, DeviceRef, DiskState, ErrorCode, Event, EventBody, Job, JobResult, JobSpec, JobState,
    Plan as WirePlan, Problem,
};

use super::context::Context;
use super::entry::{Entry, Outcome, lock};
use super::journal::{Journal, now};
use super::plan::{self, Observed, Plan, Work};
use super::{JobError, Progress, copy, customize, inspect, partition, provision, sanitize};
use crate::image::ClientOptions;
use crate::inventory::{self, Inventory};

/// Jobs that may run at once, however much memory there is.
const MAX_RUNNING: usize = 32;
/// Memory that PID 1 and the kernel keep for themselves, and what one job may need: a provisioning of a Debian
/// image takes 12 MiB.
const RESERVED_MEMORY: u64 = 24 << 20;
const MEMORY_PER_JOB: u64 = 16 << 20;
/// Jobs remembered; of those that ended the oldest are forgotten first.
const MAX_REMEMBERED: usize = 1000;
/// How long a shutdown waits for cancelled jobs.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(20);

/// What the engine needs to know beside the devices.
#[derive(Clone)]
pub(crate) struct Options {
    /// How image stores are reached.
    pub(crate) image: ClientOptions,
    /// Folder for one journal file a job; in memory alone where there is none.
    pub(crate) journal_dir: Option<PathBuf>,
    /// Jobs that may run at once.
    pub(crate) max_running: usize,
}

/// How many jobs a machine with that much memory carries; two in any case, so that devices never wait in line.
pub(crate) fn max_running(memory_bytes: u64) -> usize {
    let jobs = memory_bytes.saturating_sub(RESERVED_MEMORY) / MEMORY_PER_JOB;
    usize::try_from(jobs).unwrap_or(MAX_RUNNING).clamp(2, MAX_RUNNING)
}

/// The answer to a submission.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) job: Job,
    /// False where the same job had been submitted before.
    pub(crate) created: bool,
}

/// See the module.
pub(crate) struct Engine {
    inventory: Arc<dyn Inventory>,
    options: Options,
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    by_id: HashMap<String, Arc<Entry>>,
    order: VecDeque<String>,
    /// Device serial to the id of the job that holds it; a job's devices come and go together.
    held: HashMap<String, String>,
    shutting_down: bool,
}

impl Jobs {
    /// The jobs that hold a device, in order of their ids; a job may hold two.
    fn running(&self) -> BTreeSet<&str> {
        self.held.values().map(String::as_str).collect()
    }

    fn release(&mut self, id: &str) {
        self.held.retain(|_, holder| holder != id);
    }
}

fn check_id(id: &str) -> Result<(), Problem> {
    let fits = (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && !id.starts_with('.');
    if fits {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::InvalidRequest,
        "a job id has 1 to 64 letters, digits, '-', '_' or '.', and does not begin with '.'",
    ))
}

impl Engine {
    pub(crate) fn new(inventory: Arc<dyn Inventory>, options: Options) -> Arc<Self> {
        Arc::new(Self { inventory, options, jobs: Mutex::new(Jobs::default()) })
    }

    /// The plan of a job, without carrying it out.
    pub(crate) fn plan(&self, mut spec: JobSpec) -> Result<WirePlan, Problem> {
        let id = Self::identify(&mut spec)?;
        self.make_plan(&spec, &id).map(|plan| plan.wire)
    }

    fn identify(spec: &mut JobSpec) -> Result<String, Problem> {
        let id = spec.id().map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
        check_id(&id)?;
        spec.set_id(id.clone());
        Ok(id)
    }

    fn make_plan(&self, spec: &JobSpec, id: &str) -> Result<Plan, Problem> {
        let made = self.observe(spec.device()).and_then(|mut observed| {
            if plan::edits_in_place(spec) {
                observed.existing = Some(inspect::existing(&observed.attached)?);
            }
            let source = spec.source_device().map(|source| self.observe(source)).transpose()?;
            if let Some(source) = &source
                && inventory::is_same(&observed.attached, &source.attached)
            {
                let detail = format!("{:?} is the source and the target", source.attached.serial);
                return Err(JobError::new(ErrorCode::InvalidRequest, detail));
            }
            let plan = plan::plan(spec, id, &observed, source.as_ref())?;
            if let Some(layout) = plan.layout().filter(|layout| layout.edit.is_some()) {
                inspect::rehearse(&observed.attached, layout)?;
            }
            Ok(plan)
        });
        made.map_err(|error| Problem {
            instance: None,
            ..error.into_problem(&spec.device().serial, Some("plan"), Some(DiskState::Untouched))
        })
    }

    fn observe(&self, device: &DeviceRef) -> Result<Observed, JobError> {
        let attached = self.inventory.find(&device.serial)?;
        let contents = inspect::observe(&attached);
        let blank_edges = match device.must_be_blank {
            true => Some(inspect::has_blank_edges(&attached)?),
            false => None,
        };
        Ok(Observed { attached, contents, blank_edges, existing: None })
    }

    /// Takes a job and starts it. The same job again is answered with the job as it stands.
    pub(crate) fn submit(self: &Arc<Self>, mut spec: JobSpec) -> Result<Submitted, Problem> {
        let id = Self::identify(&mut spec)?;
        if let Some(job) = self.hold(&id, &spec)? {
            return Ok(Submitted { job, created: false });
        }
        let mut hold = Hold { engine: self, id: &id, handed_over: false };
        let started = self.make_plan(&spec, &id).and_then(|plan| self.start(&id, &spec, plan));
        match started {
            Ok(entry) => {
                hold.handed_over = true;
                Ok(Submitted { job: entry.describe(), created: true })
            }
            Err(problem) => Err(Problem { instance: Some(format!("/v1/jobs/{id}")), ..problem }),
        }
    }

    /// Reserves the job's devices, all or none; the job itself where it is known already. One that failed for a reason
    /// that may have gone away is forgotten and begins anew: that is what `retry` promised.
    fn hold(&self, id: &str, spec: &JobSpec) -> Result<Option<Job>, Problem> {
        let serial = &spec.device().serial;
        let refuse = |code, detail: String| Err(JobError::new(code, detail).into_problem(serial, None, None));
        let mut jobs = lock(&self.jobs);
        if let Some(known) = jobs.by_id.get(id) {
            if known.spec != spec.without_credentials() {
                let detail =
                    format!("job {id:?} was submitted before with another specification; use a new id");
                return refuse(ErrorCode::JobConflict, detail);
            }
            if !known.may_begin_anew() {
                return Ok(Some(known.describe()));
            }
        }
        if jobs.shutting_down {
            return refuse(ErrorCode::Overloaded, "the node is shutting down".to_owned());
        }
        let devices = spec.devices();
        if let Some((busy, holder)) =
            devices.iter().find_map(|device| jobs.held.get_key_value(&device.serial))
        {
            let detail = format!("device {busy:?} is held by job {holder:?}; wait for it or cancel it");
            let error =
                JobError { holder: Some(holder.clone()), ..JobError::new(ErrorCode::DeviceBusy, detail) };
            return Err(error.into_problem(busy, None, None));
        }
        if jobs.running().contains(id) {
            let detail = format!("job {id:?} is being planned for another device; a job has one id");
            return refuse(ErrorCode::JobConflict, detail);
        }
        let most = self.options.max_running;
        if jobs.running().len() >= most {
            let detail =
                format!("{most} jobs run, as many as this node's memory carries; send the job again later");
            return refuse(ErrorCode::Overloaded, detail);
        }
        jobs.by_id.remove(id);
        jobs.order.retain(|known| known != id);
        jobs.held.extend(devices.iter().map(|device| (device.serial.clone(), id.to_owned())));
        Ok(None)
    }

    fn start(self: &Arc<Self>, id: &str, spec: &JobSpec, plan: Plan) -> Result<Arc<Entry>, Problem> {
        let serial = plan.device.serial.clone();
        if let Some(agreed) = spec.plan_hash()
            && agreed != plan.wire.plan_hash
        {
            let detail = format!(
                "the job agreed to plan {agreed}, the plan is {} now; ask for it with dry_run=true",
                plan.wire.plan_hash
            );
            let error = JobError::new(ErrorCode::PlanChanged, detail);
            return Err(error.into_problem(&serial, Some("plan"), Some(DiskState::Untouched)));
        }
        let sink = self.journal_file(id)?;
        let journal = Arc::new(Journal::new(sink));
        journal.record(EventBody::Planned {
            plan_hash: plan.wire.plan_hash.clone(),
            steps: plan.steps.iter().map(|step| step.name.to_owned()).collect(),
        });
        let progress = Arc::new(Progress::new(Arc::clone(&journal)));
        progress.set_steps(plan.steps.len());
        let in_place = match &plan.work {
            Work::Customize(_) => true,
            Work::Partition(layout) => layout.is_gentle(),
            _ => false,
        };
        if in_place {
            progress.set_in_place();
        }
        let entry = Arc::new(Entry {
            id: id.to_owned(),
            spec: spec.without_credentials(),
            plan,
            journal,
            progress,
            created_at: now(),
            outcome: Mutex::new(None),
        });
        let engine = Arc::clone(self);
        let running = Arc::clone(&entry);
        self.remember(&entry)?;
        let spawned =
            std::thread::Builder::new().name(format!("job-{id}")).spawn(move || engine.run(&running));
        if let Err(error) = spawned {
            let mut jobs = lock(&self.jobs);
            jobs.by_id.remove(id);
            jobs.order.retain(|known| known != id);
            return Err(Problem::new(ErrorCode::Overloaded, format!("no thread for the job: {error}")));
        }
        Ok(entry)
    }

    fn journal_file(&self, id: &str) -> Result<Option<std::fs::File>, Problem> {
        let Some(dir) = &self.options.journal_dir else { return Ok(None) };
        let path = dir.join(format!("{id}.jsonl"));
        let file = std::fs::create_dir_all(dir)
            .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(&path));
        file.map(Some).map_err(|error| {
            Problem::new(ErrorCode::Internal, format!("journal {}: {error}", path.display()))
        })
    }

    fn remember(&self, entry: &Arc<Entry>) -> Result<(), Problem> {
        let mut jobs = lock(&self.jobs);
        if jobs.shutting_down {
            return Err(Problem::new(ErrorCode::Overloaded, "the node is shutting down"));
        }
        jobs.by_id.insert(entry.id.clone(), Arc::clone(entry));
        jobs.order.push_back(entry.id.clone());
        while jobs.order.len() > MAX_REMEMBERED {
            let ended = jobs.order.iter().position(|id| jobs.by_id.get(id).is_none_or(|entry| entry.ended()));
            let Some(id) = ended.and_then(|index| jobs.order.remove(index)) else { break };
            jobs.by_id.remove(&id);
        }
        Ok(())
    }

    fn run(&self, entry: &Entry) {
        let context = Context {
            plan: &entry.plan,
            progress: &entry.progress,
            inventory: &*self.inventory,
            options: &self.options,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| match &entry.plan.work {
            Work::Inspect => inspect::execute(&context),
            Work::Sanitize(work) => sanitize::execute(&context, work),
            Work::Provision(work) => provision::execute(&context, work),
            Work::Clone => copy::clone(&context),
            Work::Capture(work) => copy::capture(&context, work),
            Work::Restore(work) => copy::restore(&context, work),
            Work::Customize(work) => customize::execute(&context, work),
            Work::Partition(layout) => partition::execute(&context, layout),
        }))
        .unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without words");
            Err(JobError::new(ErrorCode::Internal, format!("a fault in the utility VM: {text}")))
        });
        let outcome = outcome.map_err(|error| Self::find_the_cause(&context, error));
        let (outcome, last_event) = Self::end(entry, outcome);
        *lock(&entry.outcome) = Some(outcome);
        lock(&self.jobs).release(&entry.id);
        // Last, so that whoever sees it finds the job ended and its devices free.
        entry.journal.record(last_event);
    }

    /// A device that was pulled out fails with an I/O error like a broken one: tell the two apart, and put a
    /// cancellation before whatever error it provoked.
    fn find_the_cause(context: &Context<'_>, error: JobError) -> JobError {
        if context.progress.is_cancelled() && error.code != ErrorCode::Cancelled {
            let causes = std::iter::once(error.detail).chain(error.causes).collect();
            return JobError { causes, ..JobError::new(ErrorCode::Cancelled, "the job was cancelled") };
        }
        if matches!(error.code, ErrorCode::Io | ErrorCode::VerificationFailed)
            && let Err(gone) = context.check_identity()
        {
            let causes = std::iter::once(error.detail).chain(error.causes).collect();
            return JobError { causes, offset: error.offset, ..gone };
        }
        error
    }

    fn end(entry: &Entry, outcome: Result<JobResult, JobError>) -> (Outcome, EventBody) {
        let disk_state = entry.progress.disk_state();
        let step = entry.progress.step_name();
        entry.progress.end();
        let ended_at = now();
        match outcome {
            Ok(result) => {
                let event = EventBody::Succeeded { disk_state, result: Box::new(result.clone()) };
                (Outcome { ended_at, state: JobState::Succeeded, result: Some(result), problem: None }, event)
            }
            Err(error) => {
                let cancelled = error.code == ErrorCode::Cancelled;
                let mut problem =
                    error.into_problem(&entry.plan.device.serial, step.or(Some("start")), Some(disk_state));
                problem.instance = Some(format!("/v1/jobs/{}", entry.id));
                crate::log::info(&format!("job {}: {}: {}", entry.id, problem.title, problem.detail));
                let boxed = Box::new(problem.clone());
                let (state, event) = if cancelled {
                    (JobState::Cancelled, EventBody::Cancelled { problem: boxed })
                } else {
                    (JobState::Failed, EventBody::Failed { problem: boxed })
                };
                (Outcome { ended_at, state, result: None, problem: Some(problem) }, event)
            }
        }
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Problem> {
        lock(&self.jobs)
            .by_id
            .get(id)
            .cloned()
            .ok_or_else(|| Problem::new(ErrorCode::NotFound, format!("there is no job {id:?} on this node")))
    }

    /// A job as it stands.
    pub(crate) fn job(&self, id: &str) -> Result<Job, Problem> {
        self.entry(id).map(|entry| entry.describe())
    }

    /// All jobs remembered, oldest first.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let jobs = lock(&self.jobs);
        jobs.order.iter().filter_map(|id| jobs.by_id.get(id)).map(|entry| entry.describe()).collect()
    }

    /// Events of a job after a sequence number.
    pub(crate) fn events(&self, id: &str, after: u64) -> Result<Vec<Event>, Problem> {
        self.entry(id).map(|entry| entry.journal.after(after))
    }

    /// Whether the job's last event has this sequence number or a smaller one.
    pub(crate) fn has_ended(&self, id: &str, after: u64) -> bool {
        self.entry(id).map_or(true, |entry| entry.journal.ended_by(after))
    }

    /// As [`Engine::events`], waiting up to `timeout` for the first.
    pub(crate) fn wait_events(&self, id: &str, after: u64, timeout: Duration) -> Result<Vec<Event>, Problem> {
        self.entry(id).map(|entry| entry.journal.wait_after(after, timeout))
    }

    /// Asks a job to end. A job that ended stays as it is.
    pub(crate) fn cancel(&self, id: &str) -> Result<Job, Problem> {
        let entry = self.entry(id)?;
        if !entry.ended() {
            entry.progress.cancel();
        }
        Ok(entry.describe())
    }

    /// The devices attached now, with what is on those that no job holds.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, Problem> {
        let attached = self.inventory.attached().map_err(|error| {
            let error = inventory::unlisted(&error);
            Problem::new(error.code, error.detail)
        })?;
        let held = lock(&self.jobs).held.clone();
        Ok(attached
            .iter()
            .map(|device| match held.get(&device.serial) {
                Some(job) => Device { held_by: Some(job.clone()), ..inspect::describe(device) },
                None => inspect::observe(device),
            })
            .collect())
    }

    /// How many jobs run now.
    pub(crate) fn running(&self) -> usize {
        lock(&self.jobs).running().len()
    }

    /// Takes jobs again: the power did not go away.
    pub(crate) fn resume(&self) {
        lock(&self.jobs).shutting_down = false;
    }

    /// No job is taken any more; running ones are a reason to refuse, or cancelled and waited for.
    pub(crate) fn shut_down(&self, cancel_jobs: bool) -> Result<(), Problem> {
        let running: Vec<String> = {
            let mut jobs = lock(&self.jobs);
            if !jobs.held.is_empty() && !cancel_jobs {
                let ids: Vec<&str> = jobs.running().into_iter().collect();
                let detail = format!("jobs are running: {}; wait, or send cancel_jobs: true", ids.join(", "));
                return Err(Problem { status: 409, ..Problem::new(ErrorCode::DeviceBusy, detail) });
            }
            jobs.shutting_down = true;
            jobs.running().into_iter().map(str::to_owned).collect()
        };
        // What is still being planned finds the flag when it wants to start.
        for id in &running {
            let _ = self.cancel(id);
        }
        let deadline = Instant::now() + SHUTDOWN_WAIT;
        while self.running() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// The devices held for a job that is not running yet; let go if it never will be, whatever the reason.
struct Hold<'e> {
    engine: &'e Engine,
    id: &'e str,
    /// The job's thread lets go of them now.
    handed_over: bool,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.handed_over {
            lock(&self.engine.jobs).release(self.id);
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
