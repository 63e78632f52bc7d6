//! The workflow engine: one step of a job after the other, each written down before it is begun.
//!
//! ```text
//! begin ─▶ call ─▶ outcome ─▶ verify ─▶ done ─▶ next step … ─▶ finish
//!   ▲                │ fails       │ not so
//!   └── wait ◀───────┴─────────────┘        deadline, no retry ─▶ undo, from this step back to the first
//! ```
//!
//! Calls are idempotent, so a step that was begun before a crash is simply begun again. Only one outcome is waited for:
//! the call with the job's latest number; what comes late is not listened to.

use super::prepare::{Prepared, Verdict};
use super::work::{Action, JobRecord, Place};
use super::{Batch, CallAnswer, CallError, CallErrorKind, Core, Effect, EffectToken, Now};
use crate::model::{DiskState, ErrorCode, Id, JobState, Problem, Progress, StepState};

/// Pauses between attempts of one step.
const BACKOFF_MS: u64 = 500;
const MAX_BACKOFF_MS: u64 = 30_000;
/// Pause between two looks whether a step has come about.
const VERIFY_MS: u64 = 200;
const MAX_VERIFY_MS: u64 = 2_000;
/// Disks that are attached to one utility VM at once, by different jobs; more jobs wait for their turn.
const MAX_AT_UTILITY_VM: usize = 32;
/// Pause of a job that waits for its turn.
const TURN_MS: u64 = 250;
/// Pause before what cannot be taken back at once is tried again.
const STUBBORN_MS: u64 = 10_000;

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The outcome of a call.
    Do,
    /// A look whether it came about.
    Verify,
    /// A time, to begin again.
    Pause,
    /// A time, to look again.
    PauseVerify,
}

/// What of a job is not worth keeping over a restart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flight {
    pub(super) call: u64,
    pub(super) phase: Phase,
    /// Attempts and looks of this step since the last change, for the pauses.
    tries: u32,
    /// A utility VM's job, which may take long and can be ended.
    long: bool,
}

impl Core {
    /// A job that is new, or that was running when the controller ended: its step is begun (again).
    pub(super) fn begin(&mut self, now: Now, job: Id, batch: &mut Batch) {
        loop {
            let Some(mut record) = self.state.jobs.get(&job).cloned() else { return };
            let Some(action) = current(&record) else {
                if self.next(now, &mut record, batch) {
                    continue;
                }
                return;
            };
            if !self.has_turn(job, &action) {
                return self.pause(now, job, Phase::Pause, TURN_MS, 0);
            }
            let tries = self.flights.get(&job).map_or(0, |flight| flight.tries);
            if tries == 0 {
                record.deadline = now + record.plan[record.at].deadline_ms;
            }
            let at = record.at;
            let undoing = record.job.state == JobState::Undoing;
            let step = &mut record.job.steps[at];
            step.state = if undoing { StepState::Undoing } else { StepState::Running };
            step.attempts += 1;
            step.started_at.get_or_insert(now);
            match self.prepare(&record, &action) {
                Prepared::Call(node, call) => {
                    self.mark_written(&action, batch);
                    self.step_event(now, &record, batch);
                    self.state.put(record, batch);
                    let long = matches!(call, super::Call::UvmJob { .. });
                    self.send(now, job, (Phase::Do, tries, long), node, call, batch);
                    return;
                }
                Prepared::Skip => self.step_done(now, record, batch),
                Prepared::Fail(problem) if undoing || record.is_firm() => {
                    // What the action is about is gone: there is nothing left to do to it.
                    record.job.steps[at].message = problem.detail;
                    self.step_done(now, record, batch);
                }
                Prepared::Fail(problem) => {
                    self.fail(now, record, problem, batch);
                    return;
                }
            }
        }
    }

    /// Who follows a job is told of each step that is begun for the first time.
    fn step_event(&mut self, now: Now, record: &JobRecord, batch: &mut Batch) {
        let step = &record.job.steps[record.at];
        if record.job.state == JobState::Running && step.attempts == 1 {
            let whose = (record.job.project.clone(), Some(record.job.id));
            let (subject, words) = (record.job.subject.clone(), step.description.clone());
            self.state.event(now, "job.step", subject, whose, words, batch);
        }
    }

    fn send(
        &mut self,
        now: Now,
        job: Id,
        (phase, tries, long): (Phase, u32, bool),
        node: Id,
        call: super::Call,
        batch: &mut Batch,
    ) {
        self.calls += 1;
        self.flights.insert(job, Flight { call: self.calls, phase, tries, long });
        self.no_timer(job);
        let token = EffectToken::Step { job, call: self.calls };
        batch.effects.push(Effect { token, node, call });
        if long && let Some(record) = self.state.jobs.get(&job) {
            // A job of a utility VM that never ends.
            let at = record.deadline.max(now + 1);
            self.timer(job, at);
        }
    }

    fn pause(&mut self, now: Now, job: Id, phase: Phase, millis: u64, tries: u32) {
        self.calls += 1;
        self.flights.insert(job, Flight { call: self.calls, phase, tries, long: false });
        self.no_timer(job);
        self.timer(job, now + millis);
    }

    fn timer(&mut self, job: Id, at: Now) {
        self.no_timer(job);
        self.timers.insert((at, job));
        self.timer_of.insert(job, at);
    }

    pub(super) fn no_timer(&mut self, job: Id) {
        if let Some(at) = self.timer_of.remove(&job) {
            self.timers.remove(&(at, job));
        }
    }

    /// Whether the job has its turn at the node's utility VM, which takes only so many disks at once. It keeps it until
    /// its disk is detached again.
    fn has_turn(&mut self, job: Id, action: &Action) -> bool {
        let Action::Attach { disk, to: Place::Utility | Place::UtilityReadOnly } = action else {
            return true;
        };
        let Some(node) = self.state.disks.get(disk).map(|disk| disk.node) else { return true };
        let turns = self.turns.entry(node).or_default();
        if turns.len() >= MAX_AT_UTILITY_VM && !turns.contains(&job) {
            return false;
        }
        turns.insert(job);
        true
    }

    /// A time has come that a job waited for.
    pub(super) fn wake(&mut self, now: Now, job: Id, batch: &mut Batch) {
        let Some(flight) = self.flights.get(&job).copied() else { return };
        match flight.phase {
            Phase::Pause => self.begin(now, job, batch),
            Phase::PauseVerify => self.verify(now, job, flight.tries, batch),
            Phase::Do if flight.long => {
                let Some(record) = self.state.jobs.get(&job).cloned() else { return };
                batch.abandoned.push(EffectToken::Step { job, call: flight.call });
                let error =
                    CallError::new(CallErrorKind::Transient, "the utility VM's job did not end in time");
                self.step_failed(now, record, error, batch);
            }
            Phase::Do | Phase::Verify => {}
        }
    }

    /// How far a utility VM's job is. Not worth a write.
    pub(super) fn progress(&mut self, token: EffectToken, progress: Progress) {
        let EffectToken::Step { job, call } = token else { return };
        if self.flights.get(&job).is_some_and(|flight| flight.call == call)
            && let Some(record) = self.state.jobs.get_mut(&job)
        {
            record.job.progress = Some(progress);
        }
    }

    /// A call came to its end.
    pub(super) fn outcome(
        &mut self,
        now: Now,
        (job, call): (Id, u64),
        result: Result<CallAnswer, CallError>,
        batch: &mut Batch,
    ) {
        let Some(flight) = self.flights.get(&job).copied().filter(|flight| flight.call == call) else {
            return;
        };
        let Some(mut record) = self.state.jobs.get(&job).cloned() else { return };
        record.job.progress = None;
        let Some(action) = current(&record) else { return };
        match (flight.phase, result) {
            (Phase::Do, Ok(answer)) => {
                if let Err(problem) = self.absorb(now, &mut record, &action, &answer, batch) {
                    let error = CallError::new(CallErrorKind::Permanent, problem.detail);
                    return self.step_failed(now, record, error, batch);
                }
                if record.job.cancel_requested && record.job.state == JobState::Running && !record.is_firm() {
                    return self.cancelled(now, record, batch);
                }
                self.state.jobs.insert(job, record);
                self.verify(now, job, 0, batch);
            }
            (Phase::Verify, Ok(answer)) => match self.verdict(&record, &action, &answer) {
                Verdict::Yes => {
                    self.step_done(now, record, batch);
                    self.begin(now, job, batch);
                }
                Verdict::NotYet(_) if now < record.deadline => {
                    let millis = (VERIFY_MS << flight.tries.min(8)).min(MAX_VERIFY_MS);
                    self.pause(now, job, Phase::PauseVerify, millis, flight.tries + 1);
                }
                Verdict::NotYet(why) => {
                    let error = CallError::new(CallErrorKind::Transient, why);
                    self.step_failed(now, record, error, batch);
                }
                Verdict::No(why) => {
                    let error = CallError::new(CallErrorKind::Transient, why);
                    self.step_failed(now, record, error, batch);
                }
            },
            (_, Err(error)) => self.step_failed(now, record, error, batch),
            (Phase::Pause | Phase::PauseVerify, Ok(_)) => {}
        }
    }

    fn verify(&mut self, now: Now, job: Id, tries: u32, batch: &mut Batch) {
        let Some(record) = self.state.jobs.get(&job).cloned() else { return };
        let Some(action) = current(&record) else { return };
        match self.verify_call(&record, &action) {
            Some((node, call)) => self.send(now, job, (Phase::Verify, tries, false), node, call, batch),
            None => {
                self.step_done(now, record, batch);
                self.begin(now, job, batch);
            }
        }
    }

    /// The action at work is done; on to the next one, which is begun by the caller.
    fn step_done(&mut self, now: Now, mut record: JobRecord, batch: &mut Batch) {
        let job = record.job.id;
        self.after(&record, batch);
        self.flights.remove(&job);
        self.no_timer(job);
        if record.job.state == JobState::Undoing {
            record.undo_at += 1;
        } else {
            let step = &mut record.job.steps[record.at];
            step.state = StepState::Done;
            step.ended_at = Some(now);
            record.at += 1;
        }
        self.state.jobs.insert(job, record);
    }

    /// Where the job stands between two actions: true where there is another one to begin.
    fn next(&mut self, now: Now, record: &mut JobRecord, batch: &mut Batch) -> bool {
        if record.job.state != JobState::Undoing {
            self.finish(now, record.clone(), JobState::Succeeded, batch);
            return false;
        }
        // All that takes the step back is done.
        record.job.steps[record.at].state = StepState::Undone;
        record.job.steps[record.at].ended_at = Some(now);
        record.undo_at = 0;
        if record.at == 0 {
            let cancelled =
                record.job.problem.as_ref().is_some_and(|found| found.code == ErrorCode::Cancelled);
            let state = if cancelled { JobState::Cancelled } else { JobState::Failed };
            self.finish(now, record.clone(), state, batch);
            return false;
        }
        record.at -= 1;
        self.state.put(record.clone(), batch);
        true
    }

    fn step_failed(&mut self, now: Now, mut record: JobRecord, error: CallError, batch: &mut Batch) {
        let job = record.job.id;
        let tries = self.flights.get(&job).map_or(0, |flight| flight.tries);
        let again = matches!(
            error.kind,
            CallErrorKind::Unreachable | CallErrorKind::UtilityVmAway | CallErrorKind::Transient
        );
        if record.job.state == JobState::Running && !record.is_firm() {
            if record.job.cancel_requested {
                return self.cancelled(now, record, batch);
            }
            if again && now < record.deadline {
                return self.try_again(now, record, error.message, tries, batch);
            }
            let problem = self.problem(&record, error, again);
            return self.fail(now, record, problem, batch);
        }
        let Some(action) = current(&record) else { return };
        if self.may_be_left(&record, &action, &error, (again, now >= record.deadline)) {
            self.leave_behind(now, &mut record, &action, &error, batch);
            self.step_done(now, record, batch);
            return self.begin(now, job, batch);
        }
        if now >= record.deadline {
            record.deadline = now + record.plan[record.at].deadline_ms;
        }
        let pause = if again { None } else { Some(STUBBORN_MS) };
        record.job.steps[record.at].message = error.message.clone();
        match pause {
            None => self.try_again(now, record, error.message, tries, batch),
            Some(millis) => {
                self.state.put(record, batch);
                self.pause(now, job, Phase::Pause, millis, tries + 1);
            }
        }
    }

    fn try_again(&mut self, now: Now, mut record: JobRecord, why: String, tries: u32, batch: &mut Batch) {
        let job = record.job.id;
        let step = &mut record.job.steps[record.at];
        if step.message != why {
            step.message = why;
            self.state.put(record, batch);
        } else {
            self.state.jobs.insert(job, record);
        }
        let millis = (BACKOFF_MS << tries.min(10)).min(MAX_BACKOFF_MS);
        self.pause(now, job, Phase::Pause, millis, tries + 1);
    }

    /// Of what has to be done whatever happens: whether to go on without it. A sanitization that cannot succeed leaves
    /// its disk in quarantine; what has vanished cannot be held back.
    fn may_be_left(
        &self,
        record: &JobRecord,
        action: &Action,
        error: &CallError,
        (again, late): (bool, bool),
    ) -> bool {
        match action {
            Action::Power { .. }
            | Action::SetVcpus { .. }
            | Action::SetMemory { .. }
            | Action::SetIoLimits { .. } => {
                // The domain is not there, or not in that state, any more; the next look at the node tells.
                record.job.state == JobState::Undoing
                    && matches!(error.kind, CallErrorKind::NotFound | CallErrorKind::WrongState)
            }
            Action::Sanitize { .. } => {
                let away = matches!(error.kind, CallErrorKind::Unreachable | CallErrorKind::UtilityVmAway);
                !away && (late || !again)
            }
            Action::DeleteVolume { .. } => late && error.kind == CallErrorKind::Permanent,
            _ => false,
        }
    }

    fn leave_behind(
        &mut self,
        now: Now,
        record: &mut JobRecord,
        action: &Action,
        error: &CallError,
        batch: &mut Batch,
    ) {
        record.job.steps[record.at].message.clone_from(&error.message);
        if let Action::Sanitize { disk } | Action::DeleteVolume { disk } = action {
            if matches!(action, Action::Sanitize { .. }) {
                self.record_sanitization(now, record, *disk, Err(&error.message), batch);
            }
            let Some(mut disk) = self.state.disks.get(disk).cloned() else { return };
            disk.state = DiskState::Quarantined;
            let (subject, words) = (
                super::state::name("disks", disk.id),
                format!("disk {} stays out of the pool: {}", disk.name, error.message),
            );
            let whose = (Some(disk.project.clone()), Some(record.job.id));
            self.state.put(disk, batch);
            self.state.event(now, "disk.quarantined", subject, whose, words, batch);
        }
    }

    /// The step gave up: everything is taken back, this step first.
    pub(super) fn fail(&mut self, now: Now, mut record: JobRecord, mut problem: Problem, batch: &mut Batch) {
        let job = record.job.id;
        problem.job = Some(job);
        let step = &mut record.job.steps[record.at];
        problem.step = Some(step.name.clone());
        step.state = StepState::Failed;
        step.message.clone_from(&problem.detail);
        record.job.state = JobState::Undoing;
        record.undo_at = 0;
        let (subject, whose) = (record.job.subject.clone(), (record.job.project.clone(), Some(job)));
        let words = format!("{} failed: {}", step.name, problem.detail);
        record.job.problem = Some(Box::new(problem));
        self.flights.remove(&job);
        self.no_timer(job);
        self.state.put(record, batch);
        self.state.event(now, "job.undoing", subject, whose, words, batch);
        self.begin(now, job, batch);
    }

    fn cancelled(&mut self, now: Now, record: JobRecord, batch: &mut Batch) {
        let problem = Problem::new(ErrorCode::Cancelled, "somebody asked for the job's end");
        self.fail(now, record, problem, batch);
    }

    fn problem(&self, record: &JobRecord, error: CallError, timed_out: bool) -> Problem {
        let code = match error.kind {
            _ if timed_out && error.kind == CallErrorKind::Unreachable => ErrorCode::NodeUnreachable,
            _ if timed_out => ErrorCode::DeadlineExceeded,
            CallErrorKind::Unsupported => ErrorCode::Unsupported,
            CallErrorKind::NoResources => ErrorCode::NoCapacity,
            _ if current(record).is_some_and(|action| action.is_uvm_job()) => ErrorCode::UvmJobFailed,
            _ => ErrorCode::HypervisorFailed,
        };
        let mut detail = error.message;
        if timed_out {
            let seconds = record.plan[record.at].deadline_ms / 1000;
            detail = format!("it did not come about within {seconds} s: {detail}");
        }
        Problem { causes: error.causes, ..Problem::new(code, detail) }
    }

    /// Somebody asks for a job's end.
    pub(super) fn cancel(&mut self, now: Now, job: Id, batch: &mut Batch) -> Result<(), Problem> {
        let Some(mut record) = self.state.jobs.get(&job).cloned() else {
            return Err(Problem::new(ErrorCode::WrongState, format!("job {job} has ended")));
        };
        if record.is_firm() {
            let detail = format!("job {job} goes on to its end: what it has erased cannot be taken back");
            return Err(Problem::new(ErrorCode::WrongState, detail));
        }
        if record.job.cancel_requested || record.job.state != JobState::Running {
            return Ok(());
        }
        record.job.cancel_requested = true;
        let flight = self.flights.get(&job).copied();
        match flight {
            // What a hypervisor was told is waited for; the rest need not go on.
            Some(Flight { phase: Phase::Do | Phase::Verify, long: false, .. }) => {
                self.state.put(record, batch)
            }
            _ => {
                if let Some(flight) = flight {
                    batch.abandoned.push(EffectToken::Step { job, call: flight.call });
                }
                self.cancelled(now, record, batch);
            }
        }
        Ok(())
    }
}

/// The action at work; none where the job stands between two.
pub(super) fn current(record: &JobRecord) -> Option<Action> {
    if record.job.state == JobState::Undoing {
        // A step that was never begun has nothing to take back.
        let step = &record.job.steps[record.at];
        if step.state == StepState::Pending {
            return None;
        }
        return record.plan[record.at].undo.get(record.undo_at).cloned();
    }
    record.plan.get(record.at).map(|planned| planned.action.clone())
}
