//! How far a job is, shared between the thread that works and those that ask.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use uvm_api::{DiskState, EventBody, StepProgress};

use super::journal::Journal;
use super::plan::StepPlan;
use super::{CancelledMarker, JobError};

/// The step that takes partition tables away.
pub(crate) const CLEAR: &str = "clear";
/// The step after which the disk is complete.
pub(crate) const COMMIT: &str = "commit";
/// Time between two progress events.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// What a step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Bytes written to the device.
    Writes,
    /// Bytes read back from the device.
    Reads,
}

struct Running {
    step: StepPlan,
    index: usize,
    counts: Counts,
    started: Instant,
    reported: Instant,
}

/// Progress and fate of one job.
pub(crate) struct Progress {
    journal: Arc<Journal>,
    cancel: Arc<AtomicBool>,
    on_tables: AtomicBool,
    touched: AtomicBool,
    complete: AtomicBool,
    in_place: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    steps: AtomicUsize,
    running: Mutex<Option<Running>>,
}

impl Progress {
    pub(crate) fn new(journal: Arc<Journal>) -> Self {
        Self {
            journal,
            cancel: Arc::new(AtomicBool::new(false)),
            on_tables: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            in_place: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            steps: AtomicUsize::new(0),
            running: Mutex::new(None),
        }
    }

    pub(crate) fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancel)
    }

    pub(crate) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) && !self.on_tables.load(Ordering::Acquire)
    }

    /// The first write is about to happen.
    pub(crate) fn touch(&self) {
        self.touched.store(true, Ordering::Release);
    }

    /// The job edits a machine that stays one: its tables are never away.
    pub(crate) fn set_in_place(&self) {
        self.in_place.store(true, Ordering::Release);
    }

    /// Everything is in place and verified.
    pub(crate) fn set_complete(&self) {
        self.complete.store(true, Ordering::Release);
    }

    /// What the disk is now.
    pub(crate) fn disk_state(&self) -> DiskState {
        if self.complete.load(Ordering::Acquire) {
            DiskState::Complete
        } else if !self.touched.load(Ordering::Acquire) {
            DiskState::Untouched
        } else if self.in_place.load(Ordering::Acquire) {
            DiskState::Modified
        } else {
            DiskState::PartialUnbootable
        }
    }

    pub(crate) fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    pub(crate) fn add_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
        self.report();
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, counts: Counts) -> u64 {
        match counts {
            Counts::Writes => self.written.load(Ordering::Relaxed),
            Counts::Reads => self.read.load(Ordering::Relaxed),
        }
    }

    fn report(&self) {
        let mut guard = self.running();
        let Some(running) = guard.as_mut() else { return };
        if running.reported.elapsed() < REPORT_EVERY {
            return;
        }
        running.reported = Instant::now();
        let now = self.describe(running);
        drop(guard);
        self.journal.record(EventBody::Progress {
            step: now.step,
            bytes_done: now.bytes_done,
            bytes_total: now.bytes_total,
            bytes_per_second: now.bytes_per_second,
        });
    }

    fn describe(&self, running: &Running) -> StepProgress {
        let bytes_done = self.done(running.counts);
        let millis = running.started.elapsed().as_millis().max(1);
        StepProgress {
            step: running.step.name.to_owned(),
            index: running.index,
            steps: self.steps.load(Ordering::Relaxed),
            bytes_done,
            bytes_total: running.step.bytes,
            bytes_per_second: u64::try_from(u128::from(bytes_done) * 1000 / millis).unwrap_or(u64::MAX),
        }
    }

    /// How the running step stands.
    pub(crate) fn snapshot(&self) -> Option<StepProgress> {
        self.running().as_ref().map(|running| self.describe(running))
    }

    pub(crate) fn set_steps(&self, steps: usize) {
        self.steps.store(steps, Ordering::Relaxed);
    }

    /// Name of the step that runs, or was running when the job ended.
    pub(crate) fn step_name(&self) -> Option<&'static str> {
        self.running().as_ref().map(|running| running.step.name)
    }

    /// The job is over; nothing is running.
    pub(crate) fn end(&self) {
        *self.running() = None;
    }

    /// Says something worth knowing about the running step.
    pub(crate) fn note(&self, message: String) {
        let step = self.step_name().unwrap_or_default().to_owned();
        self.journal.record(EventBody::Note { step, message });
    }

    /// Carries out one step: journaled before and after.
    pub(crate) fn step<T>(
        &self,
        index: usize,
        step: &StepPlan,
        work: impl FnOnce() -> Result<T, JobError>,
    ) -> Result<T, JobError> {
        if self.is_cancelled() {
            return Err(JobError::from_source(&CancelledMarker));
        }
        // A table is written or wiped whole: a cancellation waits for the end of the wipe, and comes too late for
        // the commit.
        self.on_tables.store(matches!(step.name, CLEAR | COMMIT), Ordering::Release);
        self.read.store(0, Ordering::Relaxed);
        self.written.store(0, Ordering::Relaxed);
        let started = Instant::now();
        *self.running() =
            Some(Running { step: step.clone(), index, counts: step.counts, started, reported: started });
        self.journal.record(EventBody::StepStarted {
            step: step.name.to_owned(),
            index,
            steps: self.steps.load(Ordering::Relaxed),
            bytes_total: step.bytes,
        });
        let value = work()?;
        self.journal.record(EventBody::StepDone {
            step: step.name.to_owned(),
            bytes: self.done(step.counts),
            duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        Ok(value)
    }
}
