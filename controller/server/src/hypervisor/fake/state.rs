//! The fake node as a value: domains, volumes, and what may be done with them.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::contents::{Contents, Violation};
use super::utility::Utility;
use crate::hypervisor::{
    Attachment, Capabilities, Change, DomainEvent, DomainSpec, DomainState, Error, ErrorKind, MAX_SERIAL,
    Result, Role,
};
use crate::model::{Id, IoLimits, NodeCapacity};

/// Disks of a domain at most.
pub(super) const MAX_DISKS: usize = 64;
/// Events kept for the next report at most; the oldest are lost first.
const MAX_EVENTS: usize = 1000;
/// Violations kept at most; a run that has so many is broken anyway.
const MAX_VIOLATIONS: usize = 1000;
pub(super) const MIB: u64 = 1 << 20;

/// How the fake behaves; all counts are of calls, since it has no clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FakeSettings {
    /// How often a job has to be asked for until it has ended; 0: it has ended when it was submitted.
    pub job_polls: u32,
    /// How often the utility VM has to be asked after a start until it answers.
    pub boot_polls: u32,
    /// How often a domain has to be looked at after `shutdown` until it is off; `None`: guests do not listen.
    pub shutdown_looks: Option<u32>,
    /// Whether guests defined beyond the capacity are a violation; switched off where the operator overcommits.
    pub check_capacity: bool,
}

impl Default for FakeSettings {
    fn default() -> Self {
        Self { job_polls: 0, boot_polls: 0, shutdown_looks: Some(0), check_capacity: true }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) capacity: NodeCapacity,
    pub(super) capabilities: Capabilities,
    pub(super) settings: FakeSettings,
    /// The hypervisor does not answer.
    pub(super) down: bool,
    /// The utility VM does not answer.
    pub(super) utility_away: bool,
    pub(super) domains: BTreeMap<Id, FakeDomain>,
    pub(super) volumes: BTreeMap<Id, FakeVolume>,
    pub(super) utility: Utility,
    /// The utility VM's domain, where one is defined.
    pub(super) utility_id: Option<Id>,
    pub(super) violations: Vec<Violation>,
    pub(super) events: VecDeque<DomainEvent>,
    /// Sums, so that a create costs the same on a full node as on an empty one.
    pub(super) pool_used_mib: u64,
    guests: (u64, u64),
    pub(super) reports: u64,
    /// Of all domains, so that one that was undefined in between has another one too.
    starts: u64,
    pub(super) marks: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FakeDomain {
    pub(super) spec: DomainSpec,
    pub(super) state: DomainState,
    pub(super) starts: u64,
    /// What it executes with, where it executes.
    pub(super) live: Option<Live>,
    /// Looks left until the guest has powered itself off.
    pub(super) stopping: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Live {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) disks: Vec<Attachment>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FakeVolume {
    pub(super) size_mib: u64,
    pub(super) contents: Contents,
    /// Domains that have it attached, running or not, and whether read-only.
    pub(super) users: Vec<(Id, bool)>,
}

pub(super) fn refuse<T>(kind: ErrorKind, message: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, message))
}

impl State {
    pub(super) fn new(capacity: NodeCapacity, capabilities: Capabilities) -> Self {
        Self {
            capacity,
            capabilities,
            settings: FakeSettings::default(),
            down: false,
            utility_away: false,
            domains: BTreeMap::new(),
            volumes: BTreeMap::new(),
            utility: Utility::default(),
            utility_id: None,
            violations: Vec::new(),
            events: VecDeque::new(),
            pool_used_mib: 0,
            guests: (0, 0),
            reports: 0,
            starts: 0,
            marks: 0,
        }
    }

    pub(super) fn violate(&mut self, violation: Violation) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(violation);
        }
    }

    fn event(&mut self, domain: Id, what: &str) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(DomainEvent { domain, what: what.to_owned() });
    }

    fn get(&self, id: Id) -> Result<&FakeDomain> {
        self.domains.get(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no domain {id}")))
    }

    pub(super) fn get_volume(&self, id: Id) -> Result<&FakeVolume> {
        self.volumes.get(&id).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no volume {id}")))
    }

    /// The domain in a state in which the verb makes sense.
    fn get_active(&self, id: Id, verb: &str, wanted: &[DomainState]) -> Result<DomainState> {
        let state = self.get(id)?.state;
        if wanted.contains(&state) {
            return Ok(state);
        }
        refuse(ErrorKind::WrongState, format!("{verb}: domain {id} is {state:?}"))
    }

    /// Changes a domain and keeps the volumes' lists of users.
    fn change(&mut self, id: Id, change: impl FnOnce(&mut FakeDomain)) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        for attachment in domain.all_disks() {
            if let Some(volume) = self.volumes.get_mut(&attachment.volume) {
                volume.users.retain(|(user, _)| *user != id);
            }
        }
        change(domain);
        for attachment in domain.all_disks() {
            if let Some(volume) = self.volumes.get_mut(&attachment.volume) {
                match volume.users.iter_mut().find(|(user, _)| *user == id) {
                    Some((_, read_only)) => *read_only &= attachment.read_only,
                    None => volume.users.push((id, attachment.read_only)),
                }
            }
        }
    }

    // --- domains

    /// Whether a capability lets something change on a domain that executes or does not.
    pub(super) fn changes(&self, capability: Change, active: bool, what: &str) -> Result<()> {
        match capability {
            Change::Live => Ok(()),
            Change::Restart if !active => Ok(()),
            Change::Restart => {
                refuse(ErrorKind::Unsupported, format!("{what} while no domain executes with them"))
            }
            Change::Unsupported => refuse(ErrorKind::Unsupported, format!("never: {what}")),
        }
    }

    pub(super) fn is_active(&self, id: Id) -> bool {
        self.domains.get(&id).is_some_and(|domain| domain.live.is_some())
    }

    /// Whether a domain that `executes` or does not may have a volume attached beside its other users.
    fn may_share(&self, domain: Id, executes: bool, attachment: &Attachment) -> Result<()> {
        let (id, read_only) = (attachment.volume, attachment.read_only);
        for (user, reads) in &self.get_volume(id)?.users {
            if *user == domain || (read_only && *reads) {
                continue;
            }
            if !read_only && !reads {
                return refuse(
                    ErrorKind::WrongState,
                    format!("volume {id} is attached to domain {user} for writing"),
                );
            }
            if !self.capabilities.shared_read && executes && self.is_active(*user) {
                return refuse(
                    ErrorKind::Unsupported,
                    format!("volume {id} has one user, and that is domain {user}"),
                );
            }
        }
        Ok(())
    }

    fn check_attachment(&self, domain: Id, executes: bool, attachment: &Attachment) -> Result<()> {
        let (volume, serial) = (attachment.volume, &attachment.serial);
        if serial.is_empty() || serial.len() > MAX_SERIAL {
            return refuse(ErrorKind::WrongState, format!("volume {volume} with serial number {serial:?}"));
        }
        if !attachment.io_limits.is_default() && self.capabilities.io_limits == Change::Unsupported {
            return refuse(ErrorKind::Unsupported, "there are no limits of I/O");
        }
        self.may_share(domain, executes, attachment)
    }

    pub(super) fn define(&mut self, spec: &DomainSpec) -> Result<()> {
        if spec.vcpus == 0 || spec.memory_mib == 0 || spec.disks.len() > MAX_DISKS {
            return refuse(ErrorKind::WrongState, format!("domain {} cannot be like that", spec.id));
        }
        for (index, attachment) in spec.disks.iter().enumerate() {
            self.check_attachment(spec.id, false, attachment)?;
            if spec.disks[..index].iter().any(|other| other.conflicts_with(attachment)) {
                return refuse(ErrorKind::WrongState, format!("two disks {:?}", attachment.serial));
            }
        }
        match self.domains.get(&spec.id) {
            Some(domain) if domain.spec == *spec => return Ok(()),
            Some(domain) if domain.spec.role != spec.role => {
                return refuse(ErrorKind::WrongState, format!("domain {} has another role", spec.id));
            }
            Some(_) => {
                self.count(spec.id, false);
                self.change(spec.id, |domain| domain.spec = spec.clone());
            }
            None => {
                let empty = DomainSpec { disks: Vec::new(), ..spec.clone() };
                let state = DomainState::ShutOff;
                let domain = FakeDomain { spec: empty, state, starts: 0, live: None, stopping: None };
                self.domains.insert(spec.id, domain);
                self.change(spec.id, |domain| domain.spec.disks.clone_from(&spec.disks));
            }
        }
        self.count(spec.id, true);
        if spec.role == Role::Utility {
            self.utility_id = Some(spec.id);
        }
        Ok(())
    }

    /// Adds a domain to the sums of what is defined, or takes it away.
    fn count(&mut self, id: Id, add: bool) {
        let Some(domain) = self.domains.get(&id).filter(|domain| domain.spec.role == Role::Guest) else {
            return;
        };
        let (vcpus, memory) = (u64::from(domain.spec.vcpus), domain.spec.memory_mib);
        if !add {
            self.guests = (self.guests.0 - vcpus, self.guests.1 - memory);
            return;
        }
        self.guests = (self.guests.0 + vcpus, self.guests.1 + memory);
        let most: (u64, u64) = self
            .capacity
            .numa
            .iter()
            .fold((0, 0), |sum, numa| (sum.0 + u64::from(numa.vcpus), sum.1 + numa.memory_mib));
        if self.settings.check_capacity && (self.guests.0 > most.0 || self.guests.1 > most.1) {
            let (vcpus, memory_mib) = self.guests;
            self.violate(Violation::OverAllocated { vcpus, memory_mib });
        }
    }

    pub(super) fn undefine(&mut self, id: Id) -> Result<()> {
        let Some(domain) = self.domains.get(&id) else { return Ok(()) };
        if domain.live.is_some() {
            return refuse(ErrorKind::WrongState, format!("domain {id} is {:?}", domain.state));
        }
        self.count(id, false);
        self.change(id, |domain| domain.spec.disks.clear());
        self.domains.remove(&id);
        self.utility_id = self.utility_id.filter(|utility| *utility != id);
        Ok(())
    }

    pub(super) fn start(&mut self, id: Id) -> Result<()> {
        let domain = self.get(id)?;
        if domain.live.is_some() {
            return Ok(());
        }
        for attachment in &domain.spec.disks {
            self.may_share(id, true, attachment)?;
        }
        let spec = &domain.spec;
        let live = Live { vcpus: spec.vcpus, memory_mib: spec.memory_mib, disks: spec.disks.clone() };
        let starts = self.starts + 1;
        let (is_utility, disks) = (spec.role == Role::Utility, spec.disks.clone());
        self.starts = starts;
        self.change(id, |domain| {
            domain.live = Some(live);
            domain.state = DomainState::Running;
            domain.starts = starts;
            domain.stopping = None;
        });
        if is_utility {
            self.utility.boot(self.settings.boot_polls);
        } else {
            disks.iter().for_each(|disk| self.used_by_guest(disk));
        }
        self.event(id, "started");
        Ok(())
    }

    /// A guest has got the disk: what it writes from now on is a customer's.
    fn used_by_guest(&mut self, disk: &Attachment) {
        let Some(volume) = self.volumes.get_mut(&disk.volume).filter(|_| !disk.read_only) else { return };
        if volume.contents.is_clean() {
            self.marks += 1;
            volume.contents = volume.contents.written(self.marks);
        }
    }

    /// A guest writes something that was on no disk before.
    pub(super) fn guest_writes(&mut self, id: Id) -> Result<()> {
        self.get_volume(id)?;
        self.marks += 1;
        let volume = self.volumes.get_mut(&id).expect("it was there");
        volume.contents = volume.contents.written(self.marks);
        Ok(())
    }

    fn stop(&mut self, id: Id, state: DomainState, what: &str) {
        if self.domains.get(&id).is_some_and(|domain| domain.spec.role == Role::Utility) {
            self.utility.forget();
        }
        self.change(id, |domain| {
            domain.live = None;
            domain.state = state;
            domain.stopping = None;
        });
        self.event(id, what);
    }

    pub(super) fn shutdown(&mut self, id: Id) -> Result<()> {
        if !self.capabilities.shutdown {
            return refuse(ErrorKind::Unsupported, "shutdown");
        }
        if self.get(id)?.live.is_none() {
            return Ok(());
        }
        self.get_active(id, "shutdown", &[DomainState::Running])?;
        match self.settings.shutdown_looks {
            None => {}
            Some(0) => self.stop(id, DomainState::ShutOff, "shutdown"),
            Some(looks) => self.change(id, |domain| domain.stopping = domain.stopping.or(Some(looks))),
        }
        Ok(())
    }

    /// Guests that were asked to power off come a look nearer to it.
    pub(super) fn look(&mut self, id: Id) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        let (Some(looks), DomainState::Running) = (domain.stopping, domain.state) else { return };
        match looks.checked_sub(1) {
            Some(left) if left > 0 => domain.stopping = Some(left),
            _ => self.stop(id, DomainState::ShutOff, "shutdown"),
        }
    }

    pub(super) fn destroy(&mut self, id: Id) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        match domain.state {
            DomainState::ShutOff => {}
            DomainState::Crashed => domain.state = DomainState::ShutOff,
            _ => self.stop(id, DomainState::ShutOff, "stopped"),
        }
    }

    pub(super) fn crash(&mut self, id: Id) -> Result<()> {
        if self.get(id)?.live.is_some() {
            self.stop(id, DomainState::Crashed, "crashed");
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, id: Id, wanted: DomainState) -> Result<()> {
        let verb = if wanted == DomainState::Paused { "suspend" } else { "resume" };
        if !self.capabilities.suspend {
            return refuse(ErrorKind::Unsupported, verb);
        }
        let found = self.get_active(id, verb, &[DomainState::Running, DomainState::Paused])?;
        if found != wanted {
            self.change(id, |domain| domain.state = wanted);
            self.event(id, if wanted == DomainState::Paused { "suspended" } else { "resumed" });
        }
        Ok(())
    }

    pub(super) fn reboot(&mut self, id: Id) -> Result<()> {
        self.get_active(id, "reboot", &[DomainState::Running])?;
        if self.get(id)?.spec.role == Role::Utility {
            self.utility.boot(self.settings.boot_polls);
        }
        self.event(id, "reboot");
        Ok(())
    }

    // --- changes of domains

    pub(super) fn attach(&mut self, id: Id, attachment: &Attachment) -> Result<()> {
        let domain = self.get(id)?;
        self.get_volume(attachment.volume)?;
        let executes = domain.live.is_some();
        self.check_attachment(id, executes, attachment)?;
        let (live, defined) = (domain.find_live(attachment.volume), domain.find(attachment.volume));
        for found in [live, defined].into_iter().flatten() {
            if found.serial != attachment.serial || found.read_only != attachment.read_only {
                let message = format!("volume {} is attached to it in another way", attachment.volume);
                return refuse(ErrorKind::WrongState, message);
            }
        }
        if defined.is_some() && (live.is_some() || !executes) {
            return self.set_io_limits(id, attachment.volume, attachment.io_limits);
        }
        if executes && live.is_none() && !self.capabilities.hot_plug {
            return refuse(ErrorKind::Unsupported, "attaching to a domain that executes");
        }
        let domain = self.get(id)?;
        if domain.all_disks().any(|disk| disk.conflicts_with(attachment) && disk.volume != attachment.volume)
        {
            return refuse(ErrorKind::WrongState, format!("two disks {:?}", attachment.serial));
        }
        if domain.all_disks().count() >= 2 * MAX_DISKS || domain.spec.disks.len() >= MAX_DISKS {
            return refuse(ErrorKind::NoResources, format!("domain {id} has {MAX_DISKS} disks"));
        }
        let is_guest = domain.spec.role == Role::Guest;
        self.change(id, |domain| {
            let live = domain.live.as_mut().map(|live| &mut live.disks);
            for disks in [Some(&mut domain.spec.disks), live].into_iter().flatten() {
                if !disks.iter().any(|disk| disk.volume == attachment.volume) {
                    disks.push(attachment.clone());
                }
            }
        });
        if is_guest && executes {
            self.used_by_guest(attachment);
        }
        Ok(())
    }

    pub(super) fn detach(&mut self, id: Id, volume: Id) -> Result<()> {
        let Some(domain) = self.domains.get(&id) else { return Ok(()) };
        if let Some(found) = domain.find_live(volume) {
            if !self.capabilities.hot_plug {
                return refuse(ErrorKind::Unsupported, "detaching from a domain that executes");
            }
            if domain.spec.role == Role::Guest && domain.state == DomainState::Paused {
                return refuse(ErrorKind::WrongState, format!("domain {id} is held and cannot let go"));
            }
            if domain.spec.role == Role::Utility {
                let serial = found.serial.clone();
                if let Some(job) = self.utility.lose_device(&serial) {
                    self.violate(Violation::DetachedUnderJob { volume, job });
                }
            }
        }
        self.change(id, |domain| {
            domain.spec.disks.retain(|disk| disk.volume != volume);
            if let Some(live) = &mut domain.live {
                live.disks.retain(|disk| disk.volume != volume);
            }
        });
        Ok(())
    }

    pub(super) fn set_vcpus(&mut self, id: Id, vcpus: u32) -> Result<()> {
        let (up, down) = (self.capabilities.vcpus_up, self.capabilities.vcpus_down);
        let found = self.get(id)?.live.as_ref().map(|live| u64::from(live.vcpus));
        if self.may_scale(id, found, u64::from(vcpus), up, down)? {
            self.scale(id, |domain, live| (domain.vcpus, live.vcpus) = (vcpus, vcpus));
        }
        Ok(())
    }

    pub(super) fn set_memory(&mut self, id: Id, memory_mib: u64) -> Result<()> {
        let (up, down) = (self.capabilities.memory_up, self.capabilities.memory_down);
        let found = self.get(id)?.live.as_ref().map(|live| live.memory_mib);
        if self.may_scale(id, found, memory_mib, up, down)? {
            self.scale(id, |domain, live| (domain.memory_mib, live.memory_mib) = (memory_mib, memory_mib));
        }
        Ok(())
    }

    /// Whether there is something to change.
    fn may_scale(&self, id: Id, found: Option<u64>, wanted: u64, up: Change, down: Change) -> Result<bool> {
        let Some(found) = found else {
            return refuse(ErrorKind::WrongState, format!("domain {id} does not execute"));
        };
        let capability = if wanted > found { up } else { down };
        if wanted == 0 {
            return refuse(ErrorKind::WrongState, format!("domain {id} with nothing"));
        }
        if wanted != found && capability != Change::Live {
            return refuse(ErrorKind::Unsupported, format!("from {found} to {wanted} while it executes"));
        }
        Ok(wanted != found)
    }

    fn scale(&mut self, id: Id, set: impl FnOnce(&mut DomainSpec, &mut Live)) {
        self.count(id, false);
        self.change(id, |domain| {
            if let Some(live) = &mut domain.live {
                set(&mut domain.spec, live);
            }
        });
        self.count(id, true);
    }

    pub(super) fn set_io_limits(&mut self, id: Id, volume: Id, limits: IoLimits) -> Result<()> {
        let domain = self.get(id)?;
        let found = [domain.find_live(volume), domain.find(volume)];
        let Some(first) = found.into_iter().flatten().next() else {
            return refuse(ErrorKind::NotFound, format!("volume {volume} is not attached to domain {id}"));
        };
        if first.io_limits == limits && found[1].is_none_or(|defined| defined.io_limits == limits) {
            return Ok(());
        }
        self.changes(self.capabilities.io_limits, domain.live.is_some(), "limits change")?;
        self.change(id, |domain| {
            let live = domain.live.as_mut().map(|live| &mut live.disks);
            for disk in [Some(&mut domain.spec.disks), live].into_iter().flatten().flatten() {
                if disk.volume == volume {
                    disk.io_limits = limits;
                }
            }
        });
        Ok(())
    }
}

impl FakeDomain {
    /// Disks of the definition, then those it executes with.
    fn all_disks(&self) -> impl Iterator<Item = &Attachment> {
        self.spec.disks.iter().chain(self.live.iter().flat_map(|live| &live.disks))
    }

    fn find(&self, volume: Id) -> Option<&Attachment> {
        self.spec.disks.iter().find(|disk| disk.volume == volume)
    }

    fn find_live(&self, volume: Id) -> Option<&Attachment> {
        self.live.as_ref().and_then(|live| live.disks.iter().find(|disk| disk.volume == volume))
    }
}
