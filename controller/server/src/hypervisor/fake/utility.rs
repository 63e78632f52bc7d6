//! The fake utility VM: its devices are what the fake hypervisor has attached to the utility domain, and its jobs
//! change what is on the fake volumes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uvm_api::{Device, DiskState, ErrorCode, Job, JobResult, JobSpec, JobState, Node, Problem, Retry};

use super::contents::{Contents, Violation};
use super::state::State;
use super::{FakeHypervisor, Moment};
use crate::hypervisor::{Attachment, DomainState, Role};
use crate::model::Id;
use crate::uvm::{UtilityVm, UvmError};

/// Jobs remembered at most, those that ended longest ago are forgotten first.
const MAX_REMEMBERED: usize = 100;
/// Captured streams whose contents are remembered at most.
const MAX_CAPTURED: usize = 1000;
const MIB: u64 = 1 << 20;

/// What the utility VM knows; all but the captured streams is gone with a reboot.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Utility {
    boots: u64,
    boot_polls: u32,
    jobs: BTreeMap<String, FakeJob>,
    order: VecDeque<String>,
    /// Contents by digest: the store that captured streams went to.
    captured: BTreeMap<String, Contents>,
    captured_order: VecDeque<String>,
    jobs_started: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FakeJob {
    spec: JobSpec,
    polls_left: u32,
    /// How it is going to end.
    fault: Option<Problem>,
    job: Job,
}

impl Utility {
    pub(super) fn boot(&mut self, boot_polls: u32) {
        self.forget();
        self.boots += 1;
        self.boot_polls = boot_polls;
    }

    /// It was powered off or reset: it knows no jobs any more, and what ran is lost as it was.
    pub(super) fn forget(&mut self) {
        self.jobs.clear();
        self.order.clear();
    }

    /// The running job that holds a device.
    fn holder(&self, serial: &str) -> Option<&str> {
        let running = self.jobs.iter().filter(|(_, job)| job.job.state == JobState::Running);
        let mut holds = running.filter(|(_, job)| job.spec.devices().iter().any(|d| d.serial == serial));
        holds.next().map(|(id, _)| id.as_str())
    }

    pub(super) fn running(&self) -> usize {
        self.jobs.values().filter(|job| job.job.state == JobState::Running).count()
    }

    /// A device went away; the job that was at work on it has failed.
    pub(super) fn lose_device(&mut self, serial: &str) -> Option<String> {
        let id = self.holder(serial)?.to_owned();
        let job = self.jobs.get_mut(&id)?;
        let detail = format!("device {serial:?} disappeared");
        job.end(JobState::Failed, Some(problem(ErrorCode::DeviceGone, Retry::AfterRepair, serial, detail)));
        Some(id)
    }

    fn remember(&mut self, id: String, job: FakeJob) {
        self.order.retain(|known| *known != id);
        self.order.push_back(id.clone());
        self.jobs.insert(id, job);
        if self.order.len() > MAX_REMEMBERED {
            let ended = |id: &String| self.jobs.get(id).is_none_or(|job| job.job.state != JobState::Running);
            if let Some(id) = self.order.iter().position(ended).and_then(|at| self.order.remove(at)) {
                self.jobs.remove(&id);
            }
        }
    }

    fn keep_captured(&mut self, digest: &str, contents: Contents) {
        if self.captured.insert(digest.to_owned(), contents).is_none() {
            self.captured_order.push_back(digest.to_owned());
        }
        if self.captured_order.len() > MAX_CAPTURED
            && let Some(oldest) = self.captured_order.pop_front()
        {
            self.captured.remove(&oldest);
        }
    }
}

impl FakeJob {
    fn end(&mut self, state: JobState, problem: Option<Problem>) {
        self.job.state = state;
        self.job.ended_at = Some(TIME.to_owned());
        self.job.problem = problem;
    }

    fn may_begin_anew(&self) -> bool {
        let retry = self.job.problem.as_ref().and_then(|problem| problem.retry);
        matches!(retry, Some(Retry::Same | Retry::AfterRepair))
    }
}

/// The fake has no clock.
const TIME: &str = "2000-01-01T00:00:00Z";

fn problem(code: ErrorCode, retry: Retry, serial: &str, detail: String) -> Problem {
    Problem { retry: Some(retry), device: Some(serial.to_owned()), ..Problem::new(code, detail) }
}

type Answer<T> = Result<T, UvmError>;

impl State {
    /// The disks of the utility domain, where it executes and answers.
    fn utility_disks(&self) -> Answer<&[Attachment]> {
        let domain = self.utility_id.and_then(|id| self.domains.get(&id));
        match domain
            .filter(|domain| domain.state == DomainState::Running)
            .and_then(|domain| domain.live.as_ref())
        {
            Some(live) if !self.utility_away => Ok(&live.disks),
            _ => Err(UvmError::Unreachable("no connection".to_owned())),
        }
    }

    /// Every call counts towards the end of its boot.
    fn utility_call(&mut self) -> Answer<()> {
        self.utility_disks()?;
        if self.utility.boot_polls > 0 {
            self.utility.boot_polls -= 1;
            return Err(UvmError::Unreachable("it boots".to_owned()));
        }
        Ok(())
    }

    fn uvm_node(&self) -> Node {
        let domain = self.utility_id.and_then(|id| self.domains.get(&id));
        let boots = self.utility.boots;
        Node {
            name: domain.map(|domain| domain.spec.name.clone()).unwrap_or_default(),
            version: "fake".to_owned(),
            kernel: "fake".to_owned(),
            cpus: domain.map_or(1, |domain| domain.spec.vcpus as usize),
            memory_bytes: domain.map_or(0, |domain| domain.spec.memory_mib * MIB),
            rss_bytes: 4 * MIB,
            peak_rss_bytes: 4 * MIB,
            boot_time: format!(
                "{:04}-01-01T{:02}:{:02}:{:02}Z",
                2000 + boots / 86_400,
                boots / 3600 % 24,
                boots / 60 % 60,
                boots % 60
            ),
            boot_ms: 1,
            public_key: "A".repeat(43) + "=",
        }
    }

    fn uvm_devices(&self) -> Answer<Vec<Device>> {
        let device = |(index, disk): (usize, &Attachment)| Device {
            serial: disk.serial.clone(),
            node: format!("/dev/fake{index}"),
            size_bytes: self.volumes.get(&disk.volume).map_or(0, |volume| volume.size_mib * MIB),
            logical_block_size: 512,
            physical_block_size: 4096,
            read_only: disk.read_only,
            held_by: self.utility.holder(&disk.serial).map(str::to_owned),
            table: None,
            filesystem: None,
            os_release: None,
            notes: Vec::new(),
        };
        Ok(self.utility_disks()?.iter().enumerate().map(device).collect())
    }

    /// The volumes a job works on, the one it is about first.
    fn volumes_of(&self, spec: &JobSpec) -> Result<Vec<Id>, Problem> {
        let disks = self.utility_disks().unwrap_or_default();
        let mut volumes = Vec::new();
        for (index, device) in spec.devices().into_iter().enumerate() {
            let serial = &device.serial;
            let refuse = |code, retry, detail: String| {
                let untouched = Some(DiskState::Untouched);
                Err(Problem { disk_state: untouched, ..problem(code, retry, serial, detail) })
            };
            let Some(disk) = disks.iter().find(|disk| disk.serial == *serial) else {
                let detail = format!("no device has the serial number {serial:?}");
                return refuse(ErrorCode::DeviceNotFound, Retry::AfterRepair, detail);
            };
            if index == 0 && spec.writes() && disk.read_only {
                let detail = format!("device {serial:?} cannot be written");
                return refuse(ErrorCode::DeviceReadOnly, Retry::AfterRepair, detail);
            }
            let size = self.volumes.get(&disk.volume).map_or(0, |volume| volume.size_mib * MIB);
            if device.size_bytes.is_some_and(|wanted| wanted != size) {
                let detail = format!("device {serial:?} has {size} bytes");
                return refuse(ErrorCode::DeviceChanged, Retry::AfterRepair, detail);
            }
            volumes.push(disk.volume);
        }
        if let [target, source] = volumes[..]
            && self.volumes.get(&target).map(|v| v.size_mib) < self.volumes.get(&source).map(|v| v.size_mib)
        {
            let (serial, detail) = (&spec.device().serial, "the source is larger than the target".to_owned());
            let refused = problem(ErrorCode::DeviceTooSmall, Retry::Never, serial, detail);
            return Err(Problem { disk_state: Some(DiskState::Untouched), ..refused });
        }
        Ok(volumes)
    }

    fn uvm_submit(&mut self, spec: &JobSpec, fault: Option<Problem>) -> Answer<Job> {
        let spec = spec.without_credentials();
        self.utility.jobs_started += 1;
        let id = spec.id().map_or_else(|| format!("job-{}", self.utility.jobs_started), str::to_owned);
        let serial = spec.device().serial.clone();
        if let Some(known) = self.utility.jobs.get(&id) {
            if known.spec != spec {
                let detail = format!("job {id:?} was submitted before with another specification");
                let refused = problem(ErrorCode::JobConflict, Retry::Never, &serial, detail);
                return Err(UvmError::Problem(Box::new(refused)));
            }
            if !known.may_begin_anew() {
                return Ok(known.job.clone());
            }
        }
        for device in spec.devices() {
            if let Some(holder) = self.utility.holder(&device.serial).map(str::to_owned) {
                let serial = device.serial.clone();
                let detail = format!("device {serial:?} is held by job {holder:?}");
                let refused = problem(ErrorCode::DeviceBusy, Retry::Same, &serial, detail);
                self.violate(Violation::TwoJobs { serial, holder: holder.clone(), job: id });
                return Err(UvmError::Problem(Box::new(Problem { holder: Some(holder), ..refused })));
            }
        }
        let volumes = self.volumes_of(&spec).map_err(|problem| UvmError::Problem(Box::new(problem)))?;
        let job = self.begin(&id, &spec, &volumes, fault);
        self.utility.remember(id.clone(), job);
        if self.settings.job_polls == 0 {
            self.finish(&id);
        }
        Ok(self.utility.jobs[&id].job.clone())
    }

    fn begin(&mut self, id: &str, spec: &JobSpec, volumes: &[Id], fault: Option<Problem>) -> FakeJob {
        self.look_for_torn_reads(id, spec, volumes);
        if spec.replaces_contents()
            && let Some(volume) = self.volumes.get_mut(&volumes[0])
        {
            volume.contents = Contents::Partial { job: id.to_owned() };
        }
        let job = Job {
            id: id.to_owned(),
            kind: spec.kind().to_owned(),
            device: spec.device().serial.clone(),
            state: JobState::Running,
            cancel_requested: false,
            disk_state: match spec {
                _ if spec.replaces_contents() => DiskState::PartialUnbootable,
                _ if spec.writes() => DiskState::Modified,
                _ => DiskState::Untouched,
            },
            plan_hash: "sha256:fake".to_owned(),
            created_at: TIME.to_owned(),
            ended_at: None,
            progress: None,
            result: None,
            problem: None,
        };
        FakeJob { spec: spec.clone(), polls_left: self.settings.job_polls, fault, job }
    }

    /// What a job reads must stand still: its sources, and the device itself where it is not written.
    fn look_for_torn_reads(&mut self, id: &str, spec: &JobSpec, volumes: &[Id]) {
        let read = if spec.writes() { &volumes[1..] } else { volumes };
        let runs = |id: Id| {
            let domain = self.domains.get(&id);
            domain.is_some_and(|d| d.spec.role == Role::Guest && d.state == DomainState::Running)
        };
        let torn: Vec<Id> = read
            .iter()
            .copied()
            .filter(|volume| self.volumes.get(volume).is_some_and(|volume| volume.writers().any(runs)))
            .collect();
        for volume in torn {
            self.violate(Violation::ReadWhileWritten { volume, job: id.to_owned() });
        }
    }

    /// A job that was asked for comes a poll nearer to its end.
    fn uvm_job(&mut self, id: &str) -> Option<Job> {
        let job = self.utility.jobs.get_mut(id)?;
        if job.job.state == JobState::Running {
            job.polls_left = job.polls_left.saturating_sub(1);
            if job.job.cancel_requested {
                let serial = job.job.device.clone();
                let detail = "somebody asked for its end".to_owned();
                job.end(
                    JobState::Cancelled,
                    Some(problem(ErrorCode::Cancelled, Retry::Same, &serial, detail)),
                );
            } else if job.polls_left == 0 {
                self.finish(id);
            }
        }
        self.utility.jobs.get(id).map(|job| job.job.clone())
    }

    fn finish(&mut self, id: &str) {
        let Some(mut job) = self.utility.jobs.remove(id) else { return };
        match (job.fault.take(), self.volumes_of(&job.spec)) {
            (Some(problem), _) | (None, Err(problem)) => job.end(JobState::Failed, Some(problem)),
            (None, Ok(volumes)) => {
                self.look_for_torn_reads(id, &job.spec, &volumes);
                match self.take_effect(id, &job.spec, &volumes) {
                    Ok(result) => {
                        job.end(JobState::Succeeded, None);
                        job.job.result = Some(result);
                        if job.spec.writes() {
                            job.job.disk_state = DiskState::Complete;
                        }
                    }
                    Err(problem) => job.end(JobState::Failed, Some(problem)),
                }
            }
        }
        self.utility.jobs.insert(id.to_owned(), job);
    }

    /// What a job brings about, and what it tells of it.
    fn take_effect(&mut self, id: &str, spec: &JobSpec, volumes: &[Id]) -> Result<JobResult, Problem> {
        let missing = || problem(ErrorCode::DeviceGone, Retry::AfterRepair, "", "no volume".to_owned());
        let target = self.volumes.get(&volumes[0]).cloned().ok_or_else(missing)?;
        let bytes = target.size_mib * MIB;
        let job = id.to_owned();
        let (contents, result) = match spec {
            JobSpec::Inspect(_) => {
                let serial = &spec.device().serial;
                let devices = self.uvm_devices().unwrap_or_default();
                let device = devices.into_iter().find(|device| device.serial == *serial);
                (None, JobResult::Inspect { device: Box::new(device.ok_or_else(missing)?) })
            }
            JobSpec::Provision(spec) => {
                let hostname = spec.customize.hostname.clone();
                let result = JobResult::Provision {
                    manifest_digest: spec.image.digest.clone(),
                    root_uuid: "00000000-0000-4000-8000-000000000000".to_owned(),
                    machine_id: "0".repeat(32),
                    ssh_host_key: Some("ssh-ed25519 fake".to_owned()),
                    kernels: vec!["fake".to_owned()],
                    entries: 1,
                    verified_bytes: bytes,
                };
                (Some(Contents::Provisioned { job, hostname }), result)
            }
            JobSpec::Sanitize(spec) => {
                let result = JobResult::Sanitize {
                    method: "clear".to_owned(),
                    technique: "overwrite".to_owned(),
                    pattern: spec.pattern,
                    overwritten_bytes: bytes,
                    verified_bytes: bytes,
                };
                (Some(Contents::Sanitized { job }), result)
            }
            JobSpec::Clone(_) => {
                let source = volumes.get(1).and_then(|id| self.volumes.get(id)).ok_or_else(missing)?;
                let device_bytes = source.size_mib * MIB;
                let result = JobResult::Clone {
                    device_bytes,
                    copied_bytes: device_bytes,
                    zero_bytes: 0,
                    verified_bytes: bytes,
                    digest: source.contents.digest(),
                };
                (Some(source.contents.clone()), result)
            }
            JobSpec::Capture(_) => {
                let digest = target.contents.digest();
                self.utility.keep_captured(&digest, target.contents);
                let size_bytes = bytes / 4;
                (None, JobResult::Capture { digest, size_bytes, device_bytes: bytes, zero_bytes: bytes / 2 })
            }
            JobSpec::Restore(spec) => {
                let digest = spec.source.digest.clone();
                let known = self.utility.captured.get(&digest).cloned();
                let contents = known.unwrap_or_else(|| Contents::Restored { digest: digest.clone() });
                let device_bytes = spec.source.device_bytes;
                (
                    Some(contents),
                    JobResult::Restore { digest, device_bytes, zero_bytes: 0, verified_bytes: bytes },
                )
            }
            JobSpec::Customize(spec) => {
                let Contents::Provisioned { job, hostname } = target.contents else {
                    let contents = target.contents.digest();
                    return self.customize_other(volumes[0], &contents, spec.customize.hostname.as_deref());
                };
                let hostname = spec.customize.hostname.clone().or(hostname);
                (Some(Contents::Provisioned { job, hostname }), changed())
            }
            JobSpec::Partition(_) => {
                let detail = "the controller partitions no disk by itself".to_owned();
                return Err(problem(ErrorCode::InvalidRequest, Retry::Never, "plan", detail));
            }
        };
        if let (Some(contents), Some(volume)) = (contents, self.volumes.get_mut(&volumes[0])) {
            volume.contents = contents;
        }
        Ok(result)
    }

    /// A machine that a guest has written to, or that was restored, is another one with another host name.
    fn customize_other(
        &mut self,
        volume: Id,
        contents: &str,
        hostname: Option<&str>,
    ) -> Result<JobResult, Problem> {
        let Some(volume) = self.volumes.get_mut(&volume).filter(|volume| !volume.contents.is_clean()) else {
            let detail = "there is no machine on it".to_owned();
            return Err(problem(ErrorCode::GuestUnsuitable, Retry::Never, "", detail));
        };
        if let Some(hostname) = hostname {
            volume.contents =
                Contents::Provisioned { job: contents.to_owned(), hostname: Some(hostname.to_owned()) };
        }
        Ok(changed())
    }
}

fn changed() -> JobResult {
    JobResult::Customize { changed: vec!["hostname".to_owned()], notes: Vec::new() }
}

/// The utility VM of a fake node.
#[derive(Clone)]
pub struct FakeUtilityVm {
    node: Arc<FakeHypervisor>,
}

impl FakeUtilityVm {
    /// Of that node.
    pub fn new(node: Arc<FakeHypervisor>) -> Self {
        Self { node }
    }

    /// A call, with faults before and after it.
    fn call<T>(&self, name: &'static str, act: impl FnOnce(&mut State) -> Answer<T>) -> Answer<T> {
        let fault = |moment| match self.node.fault(moment, name) {
            Some(error) => Err(UvmError::Unreachable(error.message)),
            None => Ok(()),
        };
        fault(Moment::Before)?;
        let answer = self.node.change(|state| {
            state.utility_call()?;
            act(state)
        })?;
        fault(Moment::After)?;
        Ok(answer)
    }
}

impl UtilityVm for FakeUtilityVm {
    fn node(&self) -> Answer<Node> {
        self.call("uvm.node", |state| Ok(state.uvm_node()))
    }

    fn devices(&self) -> Answer<Vec<Device>> {
        self.call("uvm.devices", |state| state.uvm_devices())
    }

    fn submit(&self, spec: &JobSpec) -> Answer<Job> {
        let fault = self.node.job_fault(spec);
        self.call("uvm.submit", |state| state.uvm_submit(spec, fault))
    }

    fn job(&self, id: &str) -> Answer<Option<Job>> {
        self.call("uvm.job", |state| Ok(state.uvm_job(id)))
    }

    fn cancel(&self, id: &str) -> Answer<()> {
        self.call("uvm.cancel", |state| {
            if let Some(job) = state.utility.jobs.get_mut(id).filter(|job| job.job.state == JobState::Running)
            {
                job.job.cancel_requested = true;
            }
            Ok(())
        })
    }
}
