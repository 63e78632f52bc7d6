//! What an action means now: the call that brings it about, and the look that tells whether it is so.

use super::work::{Action, JobRecord, Place};
use super::{Batch, Call, CallAnswer, Core, UvmWork};
use crate::hypervisor::{Attachment, Boot, Domain, DomainSpec, DomainState, Role};
use crate::model::{
    Disk, DiskState, ErrorCode, Id, Image, Instance, IoLimits, JobKind, JobState, PowerState, PowerVerb,
    Problem,
};

/// How an action is begun.
pub(super) enum Prepared {
    /// By a call to a node.
    Call(Id, Call),
    /// There is nothing to do.
    Skip,
    /// It cannot be.
    Fail(Problem),
}

/// Whether an action has come about.
pub(super) enum Verdict {
    Yes,
    /// It may yet.
    NotYet(String),
    /// It has not, and will not by waiting.
    No(String),
}

impl Action {
    /// Whether a job of a utility VM does it.
    pub(super) fn is_uvm_job(&self) -> bool {
        matches!(
            self,
            Self::Provision { .. }
                | Self::Clone { .. }
                | Self::Capture { .. }
                | Self::Restore { .. }
                | Self::Sanitize { .. }
                | Self::SetHostname { .. }
        )
    }
}

fn missing<T>(what: &str, id: Id) -> Result<T, Problem> {
    Err(Problem::new(ErrorCode::Internal, format!("the record of {what} {id} is gone")))
}

impl Core {
    fn disk(&self, id: Id) -> Result<&Disk, Problem> {
        self.state.disks.get(&id).map_or_else(|| missing("disk", id), Ok)
    }

    fn instance(&self, id: Id) -> Result<&Instance, Problem> {
        self.state.instances.get(&id).map_or_else(|| missing("instance", id), Ok)
    }

    fn image(&self, id: Id) -> Result<&Image, Problem> {
        self.state.images.get(&id).map_or_else(|| missing("image", id), Ok)
    }

    /// How the action is begun.
    pub(super) fn prepare(&self, record: &JobRecord, action: &Action) -> Prepared {
        match self.call(record, action) {
            Ok(Some((node, call))) => Prepared::Call(node, call),
            Ok(None) => Prepared::Skip,
            Err(problem) => Prepared::Fail(problem),
        }
    }

    fn call(&self, record: &JobRecord, action: &Action) -> Result<Option<(Id, Call)>, Problem> {
        if action.is_uvm_job() {
            return self.uvm_call(record, action);
        }
        Ok(Some(match action {
            Action::Nothing => return Ok(None),
            Action::EnsureUtilityVm { node } => (*node, Call::EnsureUtilityVm),
            Action::RestartUtilityVm { node } => (*node, Call::RestartUtilityVm),
            Action::CreateVolume { disk } => {
                let disk = self.disk(*disk)?;
                (disk.node, Call::CreateVolume { volume: disk.id, size_mib: disk.size_mib })
            }
            Action::DeleteVolume { disk } => {
                let disk = self.disk(*disk)?;
                if disk.state == DiskState::Quarantined {
                    return Ok(None);
                }
                (disk.node, Call::DeleteVolume(disk.id))
            }
            Action::GrowVolume { disk, size_mib } => {
                let disk = self.disk(*disk)?;
                (disk.node, Call::GrowVolume { volume: disk.id, size_mib: *size_mib })
            }
            Action::MeasureVolume { disk } => (self.disk(*disk)?.node, Call::InspectVolume(*disk)),
            Action::Attach { disk, to } => {
                let disk = self.disk(*disk)?;
                let undoing = record.job.state == JobState::Undoing;
                if undoing && matches!(disk.state, DiskState::Creating | DiskState::Quarantined) {
                    // Attached to be sanitized, which it need not or cannot be.
                    return Ok(None);
                }
                let attachment = Attachment {
                    volume: disk.id,
                    serial: disk.serial.clone(),
                    read_only: *to == Place::UtilityReadOnly,
                    io_limits: if *to == Place::Instance { disk.io_limits } else { IoLimits::default() },
                };
                (disk.node, Call::Attach { domain: place(disk, *to)?, attachment })
            }
            Action::Detach { disk, from } => {
                let disk = self.disk(*disk)?;
                (disk.node, Call::Detach { domain: place(disk, *from)?, volume: disk.id })
            }
            Action::CancelUvmJob { node } => (*node, Call::CancelUvmJob(uvm_job(record, false))),
            Action::Define { instance } => {
                let instance = self.instance(*instance)?;
                (instance.node, Call::Define(Box::new(self.domain_spec(instance, record)?)))
            }
            Action::Undefine { instance } => (self.instance(*instance)?.node, Call::Undefine(*instance)),
            Action::Power { instance, verb } => {
                let call = match verb {
                    PowerVerb::Start => Call::Start(*instance),
                    PowerVerb::Shutdown => Call::Shutdown(*instance),
                    PowerVerb::Destroy => Call::Destroy(*instance),
                    PowerVerb::Suspend => Call::Suspend(*instance),
                    PowerVerb::Resume => Call::Resume(*instance),
                    PowerVerb::Reboot => Call::Reboot(*instance),
                };
                (self.instance(*instance)?.node, call)
            }
            Action::SetVcpus { instance, vcpus } => {
                (self.instance(*instance)?.node, Call::SetVcpus { domain: *instance, vcpus: *vcpus })
            }
            Action::SetMemory { instance, memory_mib } => (
                self.instance(*instance)?.node,
                Call::SetMemory { domain: *instance, memory_mib: *memory_mib },
            ),
            Action::SetIoLimits { instance, disk, limits } => {
                let call = Call::SetIoLimits { domain: *instance, volume: *disk, limits: *limits };
                (self.instance(*instance)?.node, call)
            }
            Action::MeasureDomain { instance } => {
                (self.instance(*instance)?.node, Call::InspectDomain(*instance))
            }
            Action::RemoveDomain { node, domain } => (*node, Call::Destroy(*domain)),
            _ => return Ok(None),
        }))
    }

    fn uvm_call(&self, record: &JobRecord, action: &Action) -> Result<Option<(Id, Call)>, Problem> {
        let undoing = record.job.state == JobState::Undoing;
        let (node, work) = match action {
            Action::Provision { disk, image } => {
                let (disk, image) = (self.disk(*disk)?, self.image(*image)?);
                let config = record.config.clone().ok_or_else(|| {
                    Problem::new(ErrorCode::Internal, "the job does not know what the machine is made with")
                })?;
                let contents = image.contents.clone();
                let (serial, size_mib) = (disk.serial.clone(), disk.size_mib);
                (disk.node, UvmWork::Provision { serial, size_mib, contents, config })
            }
            Action::Clone { source, target } => {
                let (source, target) = (self.disk(*source)?, self.disk(*target)?);
                let work = UvmWork::Clone { source: source.serial.clone(), target: target.serial.clone() };
                (target.node, work)
            }
            Action::Capture { disk, image } => {
                let disk = self.disk(*disk)?;
                (disk.node, UvmWork::Capture { serial: disk.serial.clone(), image: *image })
            }
            Action::Restore { image, disk } => {
                let (disk, image) = (self.disk(*disk)?, self.image(*image)?);
                let (serial, contents) = (disk.serial.clone(), image.contents.clone());
                (disk.node, UvmWork::Restore { serial, image: image.id, contents })
            }
            Action::Sanitize { disk } => {
                let disk = self.disk(*disk)?;
                // Nothing was ever written to it, or it was tried and did not succeed.
                if matches!(disk.state, DiskState::Creating | DiskState::Quarantined) {
                    return Ok(None);
                }
                let (serial, size_mib) = (disk.serial.clone(), disk.size_mib);
                (disk.node, UvmWork::Sanitize { serial, size_mib })
            }
            Action::SetHostname { disk, hostname } => {
                let disk = self.disk(*disk)?;
                let hostname = hostname.clone();
                (disk.node, UvmWork::SetHostname { serial: disk.serial.clone(), hostname })
            }
            _ => return Ok(None),
        };
        Ok(Some((node, Call::UvmJob { id: uvm_job(record, undoing), work: Box::new(work) })))
    }

    /// The domain as the record says; as it will say, where a job is about to change it.
    fn domain_spec(&self, instance: &Instance, record: &JobRecord) -> Result<DomainSpec, Problem> {
        let forward = record.job.state == JobState::Running;
        let change = record.change.as_ref().filter(|_| forward && record.job.kind == JobKind::ChangeInstance);
        let disks = match record.job.kind {
            JobKind::RestoreSnapshot if forward => &record.records,
            _ => &instance.disks,
        };
        let mut attachments = Vec::new();
        for id in disks {
            let disk = self.disk(*id)?;
            let changed = change.and_then(|change| change.disks.iter().find(|wanted| wanted.id == *id));
            attachments.push(Attachment {
                volume: *id,
                serial: disk.serial.clone(),
                read_only: false,
                io_limits: changed.and_then(|wanted| wanted.io_limits).unwrap_or(disk.io_limits),
            });
        }
        Ok(DomainSpec {
            id: instance.id,
            name: format!("{}-{}", instance.project, instance.name),
            role: Role::Guest,
            vcpus: change.and_then(|change| change.vcpus).unwrap_or(instance.vcpus),
            memory_mib: change.and_then(|change| change.memory_mib).unwrap_or(instance.memory_mib),
            numa: instance.numa.iter().map(|share| share.numa).collect(),
            disks: attachments,
            mac: instance.mac.clone(),
            boot: Boot::Disk,
        })
    }

    /// From here on a disk may hold what a customer does not want to be read: written down before the first write.
    pub(super) fn mark_written(&mut self, action: &Action, batch: &mut Batch) {
        let filled: Vec<Id> = match action {
            Action::Provision { disk, .. }
            | Action::Restore { disk, .. }
            | Action::Clone { target: disk, .. } => {
                vec![*disk]
            }
            Action::Attach { disk, to: Place::Instance } => vec![*disk],
            Action::Power { instance, verb: PowerVerb::Start } => {
                self.state.instances.get(instance).map(|instance| instance.disks.clone()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        for id in filled {
            if let Some(disk) = self.state.disks.get(&id)
                && disk.state == DiskState::Creating
            {
                let disk = Disk { state: DiskState::Ready, ..disk.clone() };
                self.state.put(disk, batch);
            }
        }
    }

    /// The look that tells whether the action has come about; none where the call's own answer says so.
    pub(super) fn verify_call(&self, record: &JobRecord, action: &Action) -> Option<(Id, Call)> {
        let of_instance = |id: &Id| {
            let instance = self.state.instances.get(id)?;
            Some((instance.node, Call::InspectDomain(*id)))
        };
        let of_disk = |id: &Id| {
            let disk = self.state.disks.get(id)?;
            Some((disk.node, Call::InspectVolume(*id)))
        };
        match action {
            Action::CreateVolume { disk }
            | Action::DeleteVolume { disk }
            | Action::GrowVolume { disk, .. } => of_disk(disk),
            Action::Attach { disk, to: Place::Utility | Place::UtilityReadOnly } => {
                let disk = self.state.disks.get(disk)?;
                // Where everything is being taken back, the utility VM may be away.
                let forward = record.job.state == JobState::Running;
                let call = match forward {
                    true => Call::UvmDevices(vec![disk.serial.clone()]),
                    false => Call::InspectDomain(disk.node),
                };
                Some((disk.node, call))
            }
            Action::Detach { disk, from: Place::Utility | Place::UtilityReadOnly } => {
                let disk = self.state.disks.get(disk)?;
                Some((disk.node, Call::InspectDomain(disk.node)))
            }
            Action::Attach { disk, to: Place::Instance } | Action::Detach { disk, from: Place::Instance } => {
                of_instance(&self.state.disks.get(disk)?.instance?)
            }
            Action::Define { instance }
            | Action::Undefine { instance }
            | Action::Power { instance, .. }
            | Action::SetVcpus { instance, .. }
            | Action::SetMemory { instance, .. } => of_instance(instance),
            // The second half of the removal: when it is done, it is so.
            Action::RemoveDomain { node, domain } => Some((*node, Call::Undefine(*domain))),
            _ => None,
        }
    }

    /// Whether the action has come about.
    pub(super) fn verdict(&self, record: &JobRecord, action: &Action, answer: &CallAnswer) -> Verdict {
        match (action, answer) {
            (Action::CreateVolume { disk }, CallAnswer::Volume(found)) => {
                let wanted = self.state.disks.get(disk).map(|disk| disk.size_mib);
                yes(found.map(|volume| volume.size_mib) == wanted, "the volume is not there as it should be")
            }
            (Action::DeleteVolume { .. }, CallAnswer::Volume(found)) => {
                yes(found.is_none(), "the volume is still there")
            }
            (Action::GrowVolume { size_mib, .. }, CallAnswer::Volume(found)) => {
                yes(found.is_some_and(|volume| volume.size_mib >= *size_mib), "the volume did not grow")
            }
            (Action::Attach { disk, .. }, CallAnswer::Devices(found)) => {
                let serial = self.state.disks.get(disk).map(|disk| &disk.serial);
                match serial.is_some_and(|serial| found.contains(serial)) {
                    true => Verdict::Yes,
                    false => Verdict::NotYet("the utility VM does not see the disk".to_owned()),
                }
            }
            (Action::Attach { disk, .. }, CallAnswer::Domain(found)) => {
                let has = found.as_ref().is_some_and(|domain| domain.disks.iter().any(|(id, _)| id == disk));
                yes(has, "the disk is not attached")
            }
            (Action::Detach { disk, .. }, CallAnswer::Domain(found)) => {
                let has = found.as_ref().is_some_and(|domain| domain.disks.iter().any(|(id, _)| id == disk));
                match has {
                    false => Verdict::Yes,
                    true => Verdict::NotYet("the disk is still attached".to_owned()),
                }
            }
            (Action::Define { .. }, CallAnswer::Domain(found)) => {
                yes(found.is_some(), "the domain is not defined")
            }
            (Action::Undefine { .. }, CallAnswer::Domain(found)) => {
                yes(found.is_none(), "the domain is still defined")
            }
            (Action::Power { verb, .. }, CallAnswer::Domain(found)) => {
                power_verdict(*verb, found.as_deref(), record.job.state == JobState::Undoing)
            }
            (Action::SetVcpus { vcpus, .. }, CallAnswer::Domain(found)) => {
                yes(found.as_ref().is_some_and(|domain| domain.vcpus == *vcpus), "the domain has other CPUs")
            }
            (Action::SetMemory { memory_mib, .. }, CallAnswer::Domain(found)) => {
                let has = found.as_ref().is_some_and(|domain| domain.memory_mib == *memory_mib);
                yes(has, "the domain has another amount of memory")
            }
            (_, CallAnswer::Done) => Verdict::Yes,
            _ => Verdict::No("the node's answer is to another question".to_owned()),
        }
    }
}

fn yes(so: bool, otherwise: &str) -> Verdict {
    if so { Verdict::Yes } else { Verdict::No(otherwise.to_owned()) }
}

fn power_verdict(verb: PowerVerb, found: Option<&Domain>, undoing: bool) -> Verdict {
    let state = found.map(|domain| domain.state);
    let off = matches!(state, None | Some(DomainState::ShutOff | DomainState::Crashed));
    match verb {
        PowerVerb::Destroy => yes(off, "the domain still runs"),
        PowerVerb::Shutdown if off => Verdict::Yes,
        PowerVerb::Shutdown => Verdict::NotYet(
            "the guest did not power off; it may not listen to the power button: destroy powers off at once"
                .to_owned(),
        ),
        PowerVerb::Suspend => yes(state == Some(DomainState::Paused), "the domain is not suspended"),
        // What ended meanwhile does not go on; the next look at the node tells.
        PowerVerb::Resume if undoing && off => Verdict::Yes,
        PowerVerb::Start | PowerVerb::Resume | PowerVerb::Reboot => {
            yes(state == Some(DomainState::Running), "the domain does not run")
        }
    }
}

fn place(disk: &Disk, place: Place) -> Result<Id, Problem> {
    match place {
        // The utility VM's domain has the node's id.
        Place::Utility | Place::UtilityReadOnly => Ok(disk.node),
        Place::Instance => disk.instance.map_or_else(|| missing("the instance of disk", disk.id), Ok),
    }
}

/// The id of the utility VM's job for the step at work: the same whenever the step is begun again.
fn uvm_job(record: &JobRecord, undo: bool) -> String {
    format!("{}-{}{}", record.job.id, record.at, if undo { "-undo" } else { "" })
}

/// What a domain's state is to an instance.
pub(super) fn observed(found: Option<&Domain>) -> PowerState {
    match found.map(|domain| domain.state) {
        None => PowerState::Absent,
        Some(DomainState::Running) => PowerState::Running,
        Some(DomainState::Paused) => PowerState::Paused,
        Some(DomainState::ShutOff) => PowerState::Stopped,
        Some(DomainState::Crashed) => PowerState::Crashed,
    }
}
