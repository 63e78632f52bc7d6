//! A hypervisor in memory, with faults, and the utility VM on it: for tests, simulations and benchmarks.
//!
//! It has no threads, no clock and no randomness: the same calls give the same answers. Time passes in calls alone
//! (see [`FakeSettings`]). What it holds is a value that can be written down ([`FakeHypervisor::to_json`]), or is
//! kept in a file after every change ([`FakeHypervisor::open`]), as domains go on when a controller is killed.

mod capabilities;
mod contents;
mod pool;
mod report;
mod state;
#[cfg(test)]
mod tests;
mod utility;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uvm_api::{JobSpec, Problem};

pub use capabilities::FakeCapabilities;
pub use contents::{Contents, Violation};
pub use state::FakeSettings;
use state::State;
pub use utility::FakeUtilityVm;

use super::{
    Attachment, Capabilities, Domain, DomainSpec, DomainState, Error, ErrorKind, HypervisorManager,
    NodeReport, Result, Volume,
};
use crate::model::{Id, IoLimits, NodeCapacity};

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The call fails and has no effect.
    Before,
    /// The call takes effect, and its answer is lost.
    After,
}

/// Asked before and after every call, by the verb's name (`create_volume`, `start`, `uvm.submit`, …): an error it
/// gives is the answer. Of the utility VM's calls the caller sees no answer at all.
pub type Faults = Box<dyn FnMut(Moment, &'static str) -> Option<Error> + Send>;

/// Asked for every job that is submitted: a problem it gives is how the job ends.
pub type JobFaults = Box<dyn FnMut(&JobSpec) -> Option<Problem> + Send>;

/// A hypervisor in memory.
pub struct FakeHypervisor {
    state: Mutex<State>,
    faults: Mutex<Option<Faults>>,
    job_faults: Mutex<Option<JobFaults>>,
    /// Where the state is kept.
    file: Option<PathBuf>,
}

/// A poisoned lock says that a test panicked elsewhere; the state is as whole as the test left it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeHypervisor {
    /// An empty node.
    pub fn new(capacity: NodeCapacity, capabilities: Capabilities) -> Self {
        Self::with(State::new(capacity, capabilities), None)
    }

    fn with(state: State, file: Option<PathBuf>) -> Self {
        Self { state: Mutex::new(state), faults: Mutex::new(None), job_faults: Mutex::new(None), file }
    }

    /// The node kept in `file`, or an empty one that is kept there from now on: in place after every call that
    /// changed something, so that it outlives a killed process.
    pub fn open(file: &Path, capacity: NodeCapacity, capabilities: Capabilities) -> std::io::Result<Self> {
        let state = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::new(capacity, capabilities),
            Err(error) => return Err(error),
        };
        let node = Self::with(state, Some(file.to_owned()));
        node.keep(&lock(&node.state))?;
        Ok(node)
    }

    /// The whole node.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&*lock(&self.state)).expect("the state has string keys alone")
    }

    /// The node of [`Self::to_json`]; faults are not part of it.
    pub fn from_json(text: &str) -> serde_json::Result<Self> {
        serde_json::from_str(text).map(|state| Self::with(state, None))
    }

    fn keep(&self, state: &State) -> std::io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let begun = file.with_extension("new");
        // Definitions hold private keys.
        let mut out =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&begun)?;
        out.write_all(&serde_json::to_vec(state)?)?;
        fs::rename(&begun, file)
    }

    /// Looks at the state, changes it, and keeps it.
    fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let answer = act(&mut state);
        self.keep(&state).expect("the fake's file can be written");
        answer
    }

    fn fault(&self, moment: Moment, name: &'static str) -> Option<Error> {
        lock(&self.faults).as_mut().and_then(|faults| faults(moment, name))
    }

    fn job_fault(&self, spec: &JobSpec) -> Option<Problem> {
        lock(&self.job_faults).as_mut().and_then(|faults| faults(spec))
    }

    /// A verb, with faults before and after it.
    fn verb<T>(&self, name: &'static str, act: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        if let Some(error) = self.fault(Moment::Before, name) {
            return Err(error);
        }
        let answer = self.change(|state| match state.down {
            true => Err(Error::new(ErrorKind::Unreachable, "the hypervisor does not answer")),
            false => act(state),
        })?;
        self.fault(Moment::After, name).map_or(Ok(answer), Err)
    }

    // --- what tests do

    /// Puts faults in place of those that were there.
    pub fn set_faults(&self, faults: Option<Faults>) {
        *lock(&self.faults) = faults;
    }

    /// Puts faults of jobs in place of those that were there.
    pub fn set_job_faults(&self, faults: Option<JobFaults>) {
        *lock(&self.job_faults) = faults;
    }

    /// Changes how it behaves.
    pub fn set(&self, change: impl FnOnce(&mut FakeSettings)) {
        self.change(|state| change(&mut state.settings));
    }

    /// Changes the size of the pool, as when somebody else fills it.
    pub fn set_storage_mib(&self, storage_mib: u64) {
        self.change(|state| state.capacity.storage_mib = storage_mib);
    }

    /// The hypervisor does not answer any more, or does again; its domains go on.
    pub fn set_down(&self, down: bool) {
        self.change(|state| state.down = down);
    }

    /// The utility VM does not answer any more, or does again; its jobs stand still meanwhile.
    pub fn set_utility_away(&self, away: bool) {
        self.change(|state| state.utility_away = away);
    }

    /// A domain ends without having been asked to; for the utility VM's, its jobs are lost.
    pub fn crash(&self, domain: Id) -> Result<()> {
        self.change(|state| state.crash(domain))
    }

    /// The running domains end, as after a power cut; volumes and definitions stay.
    pub fn crash_all(&self) {
        self.change(|state| {
            let ids: Vec<Id> = state.domains.keys().copied().collect();
            for id in ids {
                state.crash(id).expect("it is among the domains");
            }
        });
    }

    /// The utility VM reboots of its own: it forgets its jobs, the running one is lost.
    pub fn reboot_utility_vm(&self) {
        self.change(|state| {
            if let Some(id) = state.utility_id {
                // One that does not run has no jobs to forget.
                let _ = state.reboot(id);
            }
        });
    }

    /// A guest writes something to a volume that was on no disk before.
    pub fn guest_writes(&self, volume: Id) -> Result<()> {
        self.change(|state| state.guest_writes(volume))
    }

    // --- what tests ask

    /// What is on a volume.
    pub fn contents(&self, volume: Id) -> Option<Contents> {
        lock(&self.state).volumes.get(&volume).map(|volume| volume.contents.clone())
    }

    /// A domain's definition.
    pub fn definition(&self, domain: Id) -> Option<DomainSpec> {
        lock(&self.state).domains.get(&domain).map(|domain| domain.spec.clone())
    }

    /// Ids of all volumes.
    pub fn volumes(&self) -> Vec<Id> {
        lock(&self.state).volumes.keys().copied().collect()
    }

    /// Ids of all domains.
    pub fn domains(&self) -> Vec<Id> {
        lock(&self.state).domains.keys().copied().collect()
    }

    /// How many jobs the utility VM runs.
    pub fn jobs_running(&self) -> usize {
        lock(&self.state).utility.running()
    }

    /// Rules that were broken, oldest first; must be empty.
    pub fn violations(&self) -> Vec<Violation> {
        lock(&self.state).violations.clone()
    }
}

impl HypervisorManager for FakeHypervisor {
    fn capabilities(&self) -> Capabilities {
        lock(&self.state).capabilities.clone()
    }

    fn capacity(&self) -> Result<NodeCapacity> {
        self.verb("capacity", |state| Ok(state.capacity.clone()))
    }

    fn report(&self) -> Result<NodeReport> {
        self.verb("report", |state| Ok(state.report()))
    }

    fn domain(&self, id: Id) -> Result<Option<Domain>> {
        self.verb("domain", |state| {
            state.look(id);
            Ok(state.describe(id))
        })
    }

    fn volume(&self, id: Id) -> Result<Option<Volume>> {
        self.verb("volume", |state| Ok(state.describe_volume(id)))
    }

    fn create_volume(&self, id: Id, size_mib: u64) -> Result<Volume> {
        self.verb("create_volume", |state| state.create_volume(id, size_mib))
    }

    fn grow_volume(&self, id: Id, size_mib: u64) -> Result<Volume> {
        self.verb("grow_volume", |state| state.grow_volume(id, size_mib))
    }

    fn delete_volume(&self, id: Id) -> Result<()> {
        self.verb("delete_volume", |state| state.delete_volume(id))
    }

    fn define(&self, spec: &DomainSpec) -> Result<()> {
        self.verb("define", |state| state.define(spec))
    }

    fn undefine(&self, id: Id) -> Result<()> {
        self.verb("undefine", |state| state.undefine(id))
    }

    fn start(&self, id: Id) -> Result<()> {
        self.verb("start", |state| state.start(id))
    }

    fn shutdown(&self, id: Id) -> Result<()> {
        self.verb("shutdown", |state| state.shutdown(id))
    }

    fn destroy(&self, id: Id) -> Result<()> {
        self.verb("destroy", |state| {
            state.destroy(id);
            Ok(())
        })
    }

    fn suspend(&self, id: Id) -> Result<()> {
        self.verb("suspend", |state| state.hold(id, DomainState::Paused))
    }

    fn resume(&self, id: Id) -> Result<()> {
        self.verb("resume", |state| state.hold(id, DomainState::Running))
    }

    fn reboot(&self, id: Id) -> Result<()> {
        self.verb("reboot", |state| state.reboot(id))
    }

    fn attach(&self, id: Id, attachment: &Attachment) -> Result<()> {
        self.verb("attach", |state| state.attach(id, attachment))
    }

    fn detach(&self, id: Id, volume: Id) -> Result<()> {
        self.verb("detach", |state| state.detach(id, volume))
    }

    fn set_vcpus(&self, id: Id, vcpus: u32) -> Result<()> {
        self.verb("set_vcpus", |state| state.set_vcpus(id, vcpus))
    }

    fn set_memory(&self, id: Id, memory_mib: u64) -> Result<()> {
        self.verb("set_memory", |state| state.set_memory(id, memory_mib))
    }

    fn set_io_limits(&self, id: Id, volume: Id, limits: IoLimits) -> Result<()> {
        self.verb("set_io_limits", |state| state.set_io_limits(id, volume, limits))
    }

    fn service_address(&self, id: Id) -> Result<SocketAddr> {
        self.verb("service_address", |state| match state.domains.get(&id) {
            None => Err(Error::new(ErrorKind::NotFound, format!("no domain {id}"))),
            Some(domain) if domain.live.is_none() => {
                Err(Error::new(ErrorKind::WrongState, format!("domain {id} does not execute")))
            }
            Some(_) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 8443))),
        })
    }
}
