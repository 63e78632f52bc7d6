//! The utility VM of a node: having it in service, and its jobs from submission to their end.

use std::sync::Arc;
use std::time::Duration;

use uvm_api::{Job, JobState};

use super::perform::hypervisor_error;
use super::{Site, work};
use crate::core::{CallAnswer, CallError, CallErrorKind, UvmWork};
use crate::hypervisor::{Attachment, Domain, DomainSpec, DomainState, Role};
use crate::model::{Id, IoLimits, Progress};
use crate::uvm::UtilityVm;

/// Virtual CPUs of a utility VM.
const VCPUS: u32 = 1;
/// Memory of a utility VM in MiB.
const MEMORY_MIB: u64 = 128;
/// How long a utility VM may take to boot.
const BOOT: Duration = Duration::from_secs(60);
/// Times it is asked meanwhile, however fast the answers come.
const MAX_PROBES: usize = 2000;
/// Pauses between two questions while it boots.
const PROBE_PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// Time to connect while it boots: the first, and the longest. A connection that was made before it could take one
/// hangs for seconds, so the first ones are given up early.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));
/// Times a job is submitted to a utility VM that was rebooted and forgot it.
const MAX_SUBMISSIONS: usize = 5;
/// Pauses between two looks at a job.
const JOB_PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Looks at one job: a day of it, which is more than any step may take.
const MAX_LOOKS: usize = 200_000;
/// Looks in a row that may get no answer.
const MAX_MISSED: usize = 3;
/// How long a cancelled job may take to end.
const CANCEL: Duration = Duration::from_secs(60);
/// Looks at a cancelled job, however fast they are.
const MAX_CANCEL_LOOKS: usize = 1000;

/// Pauses that double from the first to the longest.
struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    fn new((next, longest): (Duration, Duration)) -> Self {
        Self { next, longest }
    }

    fn pass(&mut self, site: &dyn Site) {
        site.sleep(self.next);
        self.next = (self.next * 2).min(self.longest);
    }
}

fn away(message: impl Into<String>) -> CallError {
    CallError::new(CallErrorKind::UtilityVmAway, message)
}

fn transient(message: impl Into<String>) -> CallError {
    CallError::new(CallErrorKind::Transient, message)
}

fn given_up() -> CallError {
    transient("nobody waits for it any more")
}

/// The utility VM is in service; started where it does not run.
pub(super) fn ensure(site: &dyn Site, cancelled: &dyn Fn() -> bool) -> Result<CallAnswer, CallError> {
    {
        let _turn = site.boot_turn();
        let id = site.node().id;
        let found = site.manager().domain(id).map_err(hypervisor_error)?;
        match found.as_ref().map(|domain| domain.state) {
            Some(DomainState::Running) => {}
            Some(DomainState::Paused) => site.manager().resume(id).map_err(hypervisor_error)?,
            Some(DomainState::ShutOff | DomainState::Crashed) | None => start_anew(site, found.as_ref())?,
        }
    }
    wait_for_service(site, cancelled)
}

/// The utility VM is powered off and started anew, with a new certificate.
pub(super) fn restart(site: &dyn Site, cancelled: &dyn Fn() -> bool) -> Result<CallAnswer, CallError> {
    {
        let _turn = site.boot_turn();
        let id = site.node().id;
        let found = site.manager().domain(id).map_err(hypervisor_error)?;
        if found.is_some() {
            site.manager().destroy(id).map_err(hypervisor_error)?;
        }
        start_anew(site, found.as_ref())?;
    }
    wait_for_service(site, cancelled)
}

/// Defines the utility VM's domain with what it had attached, and starts it.
fn start_anew(site: &dyn Site, found: Option<&Domain>) -> Result<(), CallError> {
    let node = site.node();
    let disks = found.map_or(&[][..], |domain| &domain.disks);
    let spec = DomainSpec {
        id: node.id,
        name: format!("utility-vm-{}", node.name),
        role: Role::Utility,
        vcpus: VCPUS,
        memory_mib: MEMORY_MIB,
        numa: Vec::new(),
        disks: disks.iter().map(|(volume, read_only)| attachment(*volume, *read_only)).collect(),
        mac: mac(node.id),
        boot: site.utility_boot()?,
    };
    site.manager().define(&spec).map_err(hypervisor_error)?;
    site.manager().start(node.id).map_err(hypervisor_error)
}

/// A disk in a utility VM: its serial number follows from its id, and its limits are the guest's alone.
fn attachment(volume: Id, read_only: bool) -> Attachment {
    Attachment { volume, serial: volume.serial(), read_only, io_limits: IoLimits::default() }
}

/// A MAC address of the locally administered kind, from the random half of the id.
fn mac(id: Id) -> String {
    let (_, low) = id.0.as_u64_pair();
    let [.., a, b, c, d] = low.to_be_bytes();
    format!("52:55:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn wait_for_service(site: &dyn Site, cancelled: &dyn Fn() -> bool) -> Result<CallAnswer, CallError> {
    let (started, mut pauses) = (site.now(), Pauses::new(PROBE_PAUSES));
    let id = site.node().id;
    let mut why = away("the utility VM was not asked");
    for _ in 0..MAX_PROBES {
        let waited = site.now().saturating_sub(started);
        match site.probe((PATIENCE.0 + waited / 4).min(PATIENCE.1)) {
            Ok(_) => return Ok(CallAnswer::Done),
            Err(error) if error.kind != CallErrorKind::UtilityVmAway => return Err(error),
            Err(error) => why = error,
        }
        if cancelled() {
            return Err(given_up());
        }
        let domain = site.manager().domain(id).map_err(hypervisor_error)?;
        if domain.is_none_or(|domain| domain.state != DomainState::Running) {
            return Err(away("the utility VM ended while it booted; its serial log on the node says why"));
        }
        if waited >= BOOT {
            break;
        }
        pauses.pass(site);
    }
    let message = format!("the utility VM did not answer within {} s of its start", BOOT.as_secs());
    Err(CallError { causes: vec![why.message], ..away(message) })
}

/// A job from submission to its end. The same again finds the same job.
pub(super) fn run_job(
    site: &dyn Site,
    id: &str,
    work: &UvmWork,
    on_progress: &mut dyn FnMut(Progress),
    cancelled: &dyn Fn() -> bool,
) -> Result<Job, CallError> {
    let spec = work::job_spec(site, id, work)?;
    for _ in 0..MAX_SUBMISSIONS {
        let utility = site.utility()?;
        let job = utility.submit(&spec).map_err(work::uvm_error)?;
        if let Some(job) = follow(site, utility, job, on_progress, cancelled)? {
            return outcome(job);
        }
    }
    Err(transient(format!("the utility VM was rebooted {MAX_SUBMISSIONS} times during job {id}")))
}

/// Looks at a job until it ends; `None` where the utility VM does not know it any more.
fn follow(
    site: &dyn Site,
    mut utility: Arc<dyn UtilityVm>,
    mut job: Job,
    on_progress: &mut dyn FnMut(Progress),
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<Job>, CallError> {
    let (mut pauses, mut missed) = (Pauses::new(JOB_PAUSES), 0);
    for _ in 0..MAX_LOOKS {
        if has_ended(&job) {
            return Ok(Some(job));
        }
        if let Some(progress) = work::progress(&job) {
            on_progress(progress);
        }
        if cancelled() {
            return Err(given_up());
        }
        pauses.pass(site);
        match utility.job(&job.id).map_err(work::uvm_error) {
            Ok(Some(next)) => (job, missed) = (next, 0),
            Ok(None) => return Ok(None),
            Err(error) if error.kind == CallErrorKind::UtilityVmAway && missed < MAX_MISSED => {
                missed += 1;
                // It may have been started anew, and be reached elsewhere now.
                utility = site.utility()?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(transient(format!("job {} of the utility VM does not end", job.id)))
}

fn has_ended(job: &Job) -> bool {
    matches!(job.state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

fn outcome(job: Job) -> Result<Job, CallError> {
    if job.state == JobState::Succeeded {
        return Ok(job);
    }
    Err(match &job.problem {
        Some(problem) => work::problem_error(problem),
        None => transient(format!("job {} of the utility VM failed and does not say why", job.id)),
    })
}

/// Asks a job to end and waits for it. A utility VM that does not run has forgotten its jobs.
pub(super) fn cancel_job(
    site: &dyn Site,
    id: &str,
    cancelled: &dyn Fn() -> bool,
) -> Result<CallAnswer, CallError> {
    let domain = site.manager().domain(site.node().id).map_err(hypervisor_error)?;
    if domain.is_none_or(|domain| matches!(domain.state, DomainState::ShutOff | DomainState::Crashed)) {
        return Ok(CallAnswer::Done);
    }
    let utility = site.utility()?;
    utility.cancel(id).map_err(work::uvm_error)?;
    let (started, mut pauses) = (site.now(), Pauses::new(JOB_PAUSES));
    for _ in 0..MAX_CANCEL_LOOKS {
        if utility.job(id).map_err(work::uvm_error)?.is_none_or(|job| has_ended(&job)) {
            return Ok(CallAnswer::Done);
        }
        if cancelled() {
            return Err(given_up());
        }
        if site.now().saturating_sub(started) >= CANCEL {
            break;
        }
        pauses.pass(site);
    }
    Err(transient(format!("job {id} of the utility VM did not end within {} s", CANCEL.as_secs())))
}
