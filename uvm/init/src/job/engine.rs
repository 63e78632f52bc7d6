//! The engine: takes jobs, holds their devices, runs each on a thread of its own, and remembers how they ended.
//!
//! ```text
//! submit ── hold device ── plan ── thread ── steps ── outcome ── release device
//!    └ same id again: the same job        └ a panic is this job's failure, not the node's
//! ```

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use uvm_api::{
    Device, DeviceRef, DiskState, ErrorCode, Event, EventBody, Job, JobResult, JobSpec, JobState,
    Plan as WirePlan, Problem, Retry,
};

use super::context::Context;
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

struct Entry {
    id: String,
    spec: JobSpec,
    plan: Plan,
    journal: Arc<Journal>,
    progress: Arc<Progress>,
    created_at: String,
    outcome: Mutex<Option<Outcome>>,
}

struct Outcome {
    ended_at: String,
    state: JobState,
    result: Option<JobResult>,
    problem: Option<Problem>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Entry {
    fn ended(&self) -> bool {
        lock(&self.outcome).is_some()
    }

    /// Whether it ended in a way after which the same job may be sent again.
    fn may_begin_anew(&self) -> bool {
        let outcome = lock(&self.outcome);
        let problem = outcome.as_ref().and_then(|outcome| outcome.problem.as_ref());
        problem.is_some_and(|problem| matches!(problem.retry, Some(Retry::Same | Retry::AfterRepair)))
    }

    fn describe(&self) -> Job {
        let outcome = lock(&self.outcome);
        let outcome = outcome.as_ref();
        Job {
            id: self.id.clone(),
            kind: self.spec.kind().to_owned(),
            device: self.plan.device.serial.clone(),
            state: outcome.map_or(JobState::Running, |outcome| outcome.state),
            cancel_requested: self.progress.is_cancelled(),
            disk_state: self.progress.disk_state(),
            plan_hash: self.plan.wire.plan_hash.clone(),
            created_at: self.created_at.clone(),
            ended_at: outcome.map(|outcome| outcome.ended_at.clone()),
            progress: self.progress.snapshot(),
            result: outcome.and_then(|outcome| outcome.result.clone()),
            problem: outcome.and_then(|outcome| outcome.problem.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use uvm_api::{
        CaptureSpec, CloneSpec, DeviceRef, OverwritePattern, SanitizeSpec, Secret, StreamTarget, Technique,
    };

    use super::*;
    use crate::inventory::{Attached, CommandLineInventory};

    /// A real inventory that fails from its n-th question on.
    struct Failing {
        real: CommandLineInventory,
        asked: AtomicUsize,
        fails_from: usize,
        fault: fn() -> std::io::Result<Vec<Attached>>,
    }

    impl Inventory for Failing {
        fn attached(&self) -> std::io::Result<Vec<Attached>> {
            if self.asked.fetch_add(1, Ordering::SeqCst) >= self.fails_from {
                return (self.fault)();
            }
            self.real.attached()
        }
    }

    fn sanitize(id: &str) -> JobSpec {
        JobSpec::Sanitize(SanitizeSpec {
            id: Some(id.to_owned()),
            device: DeviceRef { serial: "disk".to_owned(), size_bytes: None, must_be_blank: false },
            technique: Technique::Overwrite,
            pattern: OverwritePattern::Zero,
            plan_hash: None,
        })
    }

    fn run_with(fault: fn() -> std::io::Result<Vec<Attached>>) -> (Job, usize, Arc<Engine>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 << 20).unwrap();
        let real = CommandLineInventory {
            devices: vec![("disk".to_owned(), file.path().to_owned())],
            file_block_size: 512,
        };
        let inventory = Arc::new(Failing { real, asked: AtomicUsize::new(0), fails_from: 1, fault });
        let options = Options { image: ClientOptions::default(), journal_dir: None, max_running: 2 };
        let engine = Engine::new(Arc::clone(&inventory) as Arc<dyn Inventory>, options);
        engine.submit(sanitize("j1")).unwrap();
        let mut after = 0;
        loop {
            let events = engine.wait_events("j1", after, Duration::from_secs(10)).unwrap();
            after = events.last().expect("the job ends within ten seconds").sequence;
            if events.iter().any(|event| event.body.is_last()) {
                break;
            }
        }
        (engine.job("j1").unwrap(), inventory.asked.load(Ordering::SeqCst), engine)
    }

    #[test]
    fn a_panic_in_a_job_is_its_failure_and_the_engine_goes_on() {
        let (job, asked, engine) = run_with(|| panic!("planted"));
        assert!(asked > 1, "the fault did not fire");
        let problem = job.problem.unwrap();
        assert_eq!((job.state, problem.code), (JobState::Failed, ErrorCode::Internal));
        assert!(problem.detail.contains("planted"), "{}", problem.detail);
        assert_eq!(problem.disk_state, Some(DiskState::Untouched));
        assert_eq!(engine.running(), 0);
        assert!(engine.shut_down(false).is_ok());
    }

    #[test]
    fn a_device_that_went_away_before_the_first_write_leaves_the_disk_untouched() {
        let (job, asked, _) = run_with(|| Ok(Vec::new()));
        assert!(asked > 1, "the fault did not fire");
        let problem = job.problem.unwrap();
        assert_eq!(problem.code, ErrorCode::DeviceGone);
        assert_eq!(problem.disk_state, Some(DiskState::Untouched));
    }

    #[test]
    fn the_same_id_is_the_same_job_or_refused() {
        let (_, _, engine) = run_with(|| panic!("planted"));
        let JobSpec::Sanitize(mut other) = sanitize("j1") else { unreachable!() };
        other.pattern = OverwritePattern::Random;
        let problem = engine.submit(JobSpec::Sanitize(other)).unwrap_err();
        assert_eq!(problem.code, ErrorCode::JobConflict);
        assert!(!engine.submit(sanitize("j1")).unwrap().created);
        assert!(engine.submit(sanitize("../etc")).is_err());
    }

    #[test]
    fn a_job_whose_failure_may_have_gone_away_begins_anew() {
        let (job, _, engine) = run_with(|| Ok(Vec::new()));
        assert_eq!(job.problem.unwrap().retry, Some(Retry::AfterRepair));
        // The device is still away, and that is found by planning again.
        let problem = engine.submit(sanitize("j1")).unwrap_err();
        assert_eq!(problem.code, ErrorCode::DeviceNotFound);
        assert_eq!(engine.running(), 0, "a refused job holds nothing");
    }

    #[test]
    fn nothing_starts_once_the_node_is_shutting_down() {
        let (_, _, engine) = run_with(|| Ok(Vec::new()));
        engine.shut_down(true).unwrap();
        assert_eq!(engine.submit(sanitize("j2")).unwrap_err().code, ErrorCode::Overloaded);
        engine.resume();
        assert_eq!(engine.submit(sanitize("j2")).unwrap_err().code, ErrorCode::DeviceNotFound);
    }

    /// An engine with two files as devices.
    fn engine_of_two(fails_from: usize) -> (Arc<Engine>, Arc<Failing>, [tempfile::NamedTempFile; 2]) {
        let files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        for file in &files {
            std::fs::write(file.path(), noise(32 << 20)).unwrap();
        }
        let path = |index: usize| files[index].path().to_owned();
        let real = CommandLineInventory {
            devices: vec![("disk".to_owned(), path(0)), ("golden".to_owned(), path(1))],
            file_block_size: 512,
        };
        let fault = || Ok(Vec::new());
        let inventory = Arc::new(Failing { real, asked: AtomicUsize::new(0), fails_from, fault });
        let options = Options { image: ClientOptions::default(), journal_dir: None, max_running: 2 };
        (Engine::new(Arc::clone(&inventory) as Arc<dyn Inventory>, options), inventory, files)
    }

    /// Bytes that no compressor makes smaller.
    fn noise(length: usize) -> Vec<u8> {
        (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 29) as u8 ^ at as u8).collect()
    }

    fn named(serial: &str) -> DeviceRef {
        DeviceRef { serial: serial.to_owned(), size_bytes: None, must_be_blank: false }
    }

    fn clone_of(id: &str, target: &str, source: &str) -> JobSpec {
        let (id, device, source) = (Some(id.to_owned()), named(target), named(source));
        JobSpec::Clone(CloneSpec { id, device, source, plan_hash: None })
    }

    fn ended(engine: &Engine, id: &str) -> Job {
        let mut after = 0;
        loop {
            let events = engine.wait_events(id, after, Duration::from_secs(60)).unwrap();
            after = events.last().expect("the job goes on").sequence;
            if events.iter().any(|event| event.body.is_last()) {
                return engine.job(id).unwrap();
            }
        }
    }

    #[test]
    fn a_clone_holds_both_devices_or_none() {
        let (engine, _, _files) = engine_of_two(usize::MAX);
        for busy in ["disk", "golden"] {
            lock(&engine.jobs).held.insert(busy.to_owned(), "other".to_owned());
            let problem = engine.submit(clone_of("j1", "disk", "golden")).unwrap_err();
            assert_eq!((problem.code, problem.holder.as_deref()), (ErrorCode::DeviceBusy, Some("other")));
            assert_eq!(problem.device.as_deref(), Some(busy), "the one that is busy is named");
            lock(&engine.jobs).release("other");
            assert!(lock(&engine.jobs).held.is_empty(), "and the other one is not held");
        }
        let problem = engine.submit(clone_of("j1", "disk", "disk")).unwrap_err();
        assert_eq!(problem.code, ErrorCode::InvalidRequest);
        assert_eq!(engine.running(), 0);
        engine.hold("j1", &clone_of("j1", "disk", "golden")).unwrap();
        assert_eq!(engine.running(), 1, "one job, however many devices");
        let held: Vec<_> =
            engine.devices().unwrap().into_iter().map(|device| device.held_by.unwrap()).collect();
        assert_eq!(held, ["j1", "j1"]);
        lock(&engine.jobs).release("j1");
        engine.submit(clone_of("j2", "disk", "golden")).unwrap();
        let job = ended(&engine, "j2");
        assert_eq!((job.state, job.disk_state), (JobState::Succeeded, DiskState::Complete));
        assert_eq!(engine.running(), 0);
    }

    #[test]
    fn a_source_that_went_away_is_named() {
        // Asked for each device before the plan and twice at each opening; the next question is of the first step.
        let (engine, inventory, _files) = engine_of_two(6);
        engine.submit(clone_of("j1", "disk", "golden")).unwrap();
        let job = ended(&engine, "j1");
        assert!(inventory.asked.load(Ordering::SeqCst) > 6, "the fault did not fire");
        let problem = job.problem.unwrap();
        assert_eq!((problem.code, problem.disk_state), (ErrorCode::DeviceGone, Some(DiskState::Untouched)));
        assert_eq!(problem.step.as_deref(), Some("clear"));
        let (engine, inventory, _files) = engine_of_two(5);
        engine.submit(clone_of("j1", "disk", "golden")).unwrap();
        let problem = ended(&engine, "j1").problem.unwrap();
        assert!(inventory.asked.load(Ordering::SeqCst) > 5, "the fault did not fire");
        assert_eq!((problem.code, problem.device.as_deref()), (ErrorCode::DeviceGone, Some("golden")));
    }

    #[test]
    fn a_capture_ends_when_it_is_cancelled_and_forgets_its_credential() {
        use std::io::{Read, Write};
        let (engine, _, _files) = engine_of_two(usize::MAX);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/disk", listener.local_addr().unwrap());
        let authorization = Some(Secret::new("Bearer hidden"));
        let destination = StreamTarget { url, authorization };
        let spec =
            CaptureSpec { id: Some("j1".to_owned()), device: named("golden"), destination, plan_hash: None };
        assert!(!format!("{spec:?}").contains("hidden"));
        let mut renewed = spec.clone();
        renewed.destination.authorization = None;
        engine.submit(JobSpec::Capture(spec)).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        let head = String::from_utf8_lossy(&bytes[..count]).to_lowercase();
        assert!(head.starts_with("put /disk") && head.contains("authorization: bearer hidden"), "{head}");
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        stream.read_exact(&mut bytes).unwrap();
        engine.cancel("j1").unwrap();
        // More than all buffers between hold is still to come.
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(
            rest.len() < 32 << 20 && !rest.ends_with(b"0\r\n\r\n"),
            "the stream was not ended as a whole"
        );
        let job = ended(&engine, "j1");
        assert_eq!((job.state, job.disk_state), (JobState::Cancelled, DiskState::Untouched));
        // The same job with another credential is the same job: a cancelled one begins anew, and finds nobody.
        drop((stream, listener));
        assert!(engine.submit(JobSpec::Capture(renewed)).unwrap().created);
        assert_eq!(ended(&engine, "j1").problem.unwrap().code, ErrorCode::ImageUnreachable);
    }

    #[test]
    fn jobs_are_admitted_by_the_memory_there_is() {
        assert_eq!(max_running(112 << 20), 5);
        assert_eq!(max_running(0), 2);
        assert_eq!(max_running(u64::MAX), MAX_RUNNING);
        let (_, _, engine) = run_with(|| Ok(Vec::new()));
        for serial in ["a", "b"] {
            lock(&engine.jobs).held.insert(serial.to_owned(), serial.to_owned());
        }
        let problem = engine.submit(sanitize("j2")).unwrap_err();
        assert_eq!((problem.code, problem.retry), (ErrorCode::Overloaded, Some(Retry::Same)));
    }
}
