//! Snapshots and captured images: copies of disks that stand still.

use super::draft::{Draft, Steps, deadline};
use super::{Drafted, Planner, disks, instances, refuse, valid_name};
use crate::core::state::name;
use crate::core::work::{Action, Place};
use crate::model::{
    Disk, DiskRole, DiskState, ErrorCode, Id, Image, ImageContents, Instance, JobKind, PowerState, PowerVerb,
    Problem, Snapshot, SnapshotDisk,
};

/// How an instance is kept from writing while its disks are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// It is held already, or there is no domain.
    AsItIs,
    /// It was suspended for it.
    Suspended(Id),
    /// It was off, and is undefined for the while, so that its disks are nobody's.
    Undefined(Id),
}

impl Held {
    pub(super) fn suspended(self) -> bool {
        matches!(self, Self::Suspended(_))
    }

    /// Goes on as before.
    pub(super) fn let_go(self, steps: &mut Steps) {
        match self {
            Self::AsItIs => {}
            Self::Suspended(instance) => {
                let verb = PowerVerb::Resume;
                steps.add(Action::Power { instance, verb }, &[], deadline::HYPERVISOR);
            }
            Self::Undefined(instance) => {
                steps.add(Action::Define { instance }, &[], deadline::HYPERVISOR);
            }
        }
    }
}

impl Planner<'_> {
    /// The first step of whatever reads an instance's disks.
    pub(super) fn hold_still(&self, steps: &mut Steps, instance: &Instance) -> Result<Held, Problem> {
        let node = self.reachable(instance.node)?;
        let can = self.capabilities(node)?;
        let id = instance.id;
        match instance.observed_state {
            PowerState::Running if can.suspend && can.shared_read => {
                let undo = [Action::Power { instance: id, verb: PowerVerb::Resume }];
                let hold = Action::Power { instance: id, verb: PowerVerb::Suspend };
                steps.add(hold, &undo, deadline::HYPERVISOR);
                Ok(Held::Suspended(id))
            }
            PowerState::Paused if can.shared_read => Ok(Held::AsItIs),
            PowerState::Running | PowerState::Paused => refuse(
                ErrorCode::WrongState,
                format!(
                    "the hypervisor of node {:?} ({}) cannot show the disk of a running machine to its utility VM; \
                     shut instance {:?} down first",
                    node.name, node.hypervisor, instance.name
                ),
            ),
            PowerState::Stopped | PowerState::Crashed => {
                let undo = [Action::Define { instance: id }];
                steps.add(Action::Undefine { instance: id }, &undo, deadline::HYPERVISOR);
                Ok(Held::Undefined(id))
            }
            PowerState::Absent => Ok(Held::AsItIs),
            PowerState::Unknown => refuse(
                ErrorCode::NodeUnreachable,
                format!("what instance {:?} is doing is not known; try again", instance.name),
            ),
        }
    }

    /// The contents of all disks at one moment.
    pub(super) fn create_snapshot(&mut self, id: Id, wanted: &str) -> Drafted {
        let instance = self.free_instance(id)?;
        valid_name("name", wanted)?;
        if self.state.snapshots.values().any(|found| found.instance == id && found.name == wanted) {
            return refuse(ErrorCode::NameTaken, format!("there is a snapshot {wanted:?} of it already"));
        }
        let originals: Vec<&Disk> =
            instance.disks.iter().map(|id| self.disk_record(*id)).collect::<Result<_, _>>()?;
        self.storage_for(instance.node, originals.iter().map(|disk| disk.size_mib).sum())?;
        let (snapshot_id, job) = (self.ids.id(self.now), self.ids.id(self.now));
        let made: Vec<Disk> = originals
            .iter()
            .map(|disk| self.replica(disk, format!("{wanted}-{}", disk.name), DiskRole::Snapshot, job))
            .collect();
        let snapshot = Snapshot {
            id: snapshot_id,
            project: instance.project.clone(),
            name: wanted.to_owned(),
            instance: id,
            node: instance.node,
            disks: originals
                .iter()
                .zip(&made)
                .map(|(of, disk)| SnapshotDisk { of: of.id, disk: disk.id, digest: None })
                .collect(),
            ready: false,
            active_job: Some(job),
            generation: 1,
            created_at: self.now,
        };
        let mut steps = self.named(instance, &made);
        steps.utility_vm(instance.node);
        for disk in &made {
            steps.create_volume(disk.id).attach(disk.id, Place::Utility);
        }
        let held = self.hold_still(&mut steps, instance)?;
        for (original, copy) in originals.iter().zip(&made) {
            let action = Action::Clone { source: original.id, target: copy.id };
            steps.attach(original.id, Place::UtilityReadOnly);
            steps.fill(action, instance.node, deadline::WHOLE_DISK);
            steps.detach(original.id, Place::UtilityReadOnly);
        }
        held.let_go(&mut steps);
        for disk in &made {
            steps.detach(disk.id, Place::Utility);
        }
        let subject = name("snapshots", snapshot_id);
        let mut record = steps.job(job, JobKind::CreateSnapshot, self.now, subject.clone(), instance.node);
        record.job.project = Some(instance.project.clone());
        record.holds = vec![subject, instances(id)];
        record.holds.extend(originals.iter().copied().chain(&made).map(|disk| disks(disk.id)));
        let words = format!("snapshot {wanted} of {} is being taken", instance.name);
        let mut draft = Draft::at_once("snapshots", snapshot_id, ("snapshot.creating", words));
        draft.interrupts = held.suspended();
        if held.suspended() {
            draft.notes.push("the machine is held while its disks are read; its memory is not in the snapshot, the file systems are as after a power cut".to_owned());
        }
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        draft = draft.put(snapshot).put(Instance { active_job: Some(job), ..instance.clone() });
        let held_disks = originals.iter().map(|disk| Disk { active_job: Some(job), ..(*disk).clone() });
        Ok(held_disks.chain(made.iter().cloned()).fold(draft, Draft::put))
    }

    /// A new disk of the same size on the same node.
    fn replica(&mut self, of: &Disk, name: String, role: DiskRole, job: Id) -> Disk {
        let id = self.ids.id(self.now);
        Disk {
            id,
            name,
            role,
            serial: id.serial(),
            state: DiskState::Creating,
            reserved_mib: of.size_mib,
            active_job: Some(job),
            generation: 1,
            created_at: self.now,
            ..of.clone()
        }
    }

    /// New disks with the snapshot's contents take the place of the instance's, which are sanitized afterwards: until
    /// the new ones are whole, nothing is lost.
    pub(super) fn restore_snapshot(&mut self, id: Id, snapshot: Id) -> Drafted {
        let instance = self.free_instance(id)?;
        let snapshot = self.snapshot(snapshot)?;
        self.free("snapshot", &snapshot.name, snapshot.active_job)?;
        if snapshot.instance != id || !snapshot.ready {
            let detail =
                format!("snapshot {:?} is not a whole one of instance {:?}", snapshot.name, instance.name);
            return refuse(ErrorCode::WrongState, detail);
        }
        if !matches!(instance.observed_state, PowerState::Stopped | PowerState::Crashed | PowerState::Absent)
        {
            let detail = format!("instance {:?} is not off; shut it down or destroy it first", instance.name);
            return refuse(ErrorCode::WrongState, detail);
        }
        self.reachable(instance.node)?;
        let job = self.ids.id(self.now);
        let mut parts = Vec::new();
        for part in &snapshot.disks {
            let kept = self.disk_record(part.disk)?;
            self.free("disk", &kept.name, kept.active_job)?;
            let old = instance.disks.iter().find(|disk| **disk == part.of);
            let old = old.map(|disk| self.disk_record(*disk)).transpose()?;
            let role = old.map_or(DiskRole::Data, |disk| disk.role);
            let called = old.map_or_else(|| kept.name.clone(), |disk| disk.name.clone());
            let new = self.replica(kept, called, role, job);
            parts.push((kept, new));
        }
        self.storage_for(instance.node, parts.iter().map(|(_, new)| new.size_mib).sum())?;
        let news: Vec<Disk> = parts.iter().map(|(_, new)| new.clone()).collect();
        let mut steps = self.named(instance, &news);
        steps.utility_vm(instance.node);
        let undefined = Action::Undefine { instance: id };
        steps.add(undefined, &[Action::Define { instance: id }], deadline::HYPERVISOR);
        for (kept, new) in &parts {
            steps.call(kept.id, &kept.name);
            let action = Action::Clone { source: kept.id, target: new.id };
            steps
                .create_volume(new.id)
                .attach(new.id, Place::Utility)
                .attach(kept.id, Place::UtilityReadOnly);
            steps.fill(action, instance.node, deadline::WHOLE_DISK);
            steps.detach(kept.id, Place::UtilityReadOnly).detach(new.id, Place::Utility);
        }
        steps.add(
            Action::Define { instance: id },
            &[Action::Undefine { instance: id }],
            deadline::HYPERVISOR,
        );
        let mut record = steps.job(job, JobKind::RestoreSnapshot, self.now, instances(id), instance.node);
        record.job.project = Some(instance.project.clone());
        record.records = news.iter().map(|disk| disk.id).collect();
        record.holds = vec![instances(id), name("snapshots", snapshot.id)];
        let mut held: Vec<Disk> =
            instance.disks.iter().filter_map(|id| self.state.disks.get(id)).cloned().collect();
        held.extend(parts.iter().map(|(kept, _)| (*kept).clone()));
        held.iter_mut().for_each(|disk| disk.active_job = Some(job));
        held.extend(news);
        record.holds.extend(held.iter().map(|disk| disks(disk.id)));
        let words = format!("instance {} gets the contents of snapshot {}", instance.name, snapshot.name);
        let mut draft = Draft::at_once("instances", id, ("instance.restoring", words));
        draft
            .notes
            .push("what the disks hold now is sanitized once the restored ones are in place".to_owned());
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        draft = draft
            .put(Instance { active_job: Some(job), ..instance.clone() })
            .put(Snapshot { active_job: Some(job), ..snapshot.clone() });
        Ok(held.into_iter().fold(draft, Draft::put))
    }

    /// Its disks sanitized and deleted.
    pub(super) fn delete_snapshot(&mut self, id: Id) -> Drafted {
        let snapshot = self.snapshot(id)?;
        self.matches(snapshot.generation)?;
        self.free("snapshot", &snapshot.name, snapshot.active_job)?;
        let job = self.ids.id(self.now);
        let mut steps = self.on_node(snapshot.node);
        let mut gone = Vec::new();
        for part in &snapshot.disks {
            let disk = self.disk_record(part.disk)?;
            self.free("disk", &disk.name, disk.active_job)?;
            steps.call(disk.id, &disk.name);
            steps.erase(disk.id, disk.node);
            gone.push(Disk { state: DiskState::Deleting, active_job: Some(job), ..disk.clone() });
        }
        let subject = name("snapshots", id);
        let mut record = steps.job(job, JobKind::DeleteSnapshot, self.now, subject.clone(), snapshot.node);
        record.firm_from = Some(0);
        record.job.project = Some(snapshot.project.clone());
        record.holds = vec![subject];
        record.holds.extend(gone.iter().map(|disk| disks(disk.id)));
        let words = format!("snapshot {} is being deleted", snapshot.name);
        let mut draft = Draft::at_once("snapshots", id, ("snapshot.deleting", words));
        draft.project = Some(snapshot.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        let marked = Snapshot {
            active_job: Some(job),
            ready: false,
            generation: snapshot.generation + 1,
            ..snapshot.clone()
        };
        Ok(gone.into_iter().fold(draft.put(marked), Draft::put))
    }

    /// The boot disk as an image in the controller's store.
    pub(super) fn save_image(&mut self, id: Id, wanted: &str) -> Drafted {
        let instance = self.free_instance(id)?;
        valid_name("name", wanted)?;
        let project = Some(&instance.project);
        if self.state.images.values().any(|image| image.project.as_ref() == project && image.name == wanted) {
            return refuse(ErrorCode::NameTaken, format!("there is an image {wanted:?} already"));
        }
        let Some(boot) = instance.disks.first() else {
            return refuse(ErrorCode::WrongState, format!("instance {:?} has no disk", instance.name));
        };
        let boot = self.disk_record(*boot)?;
        let job = self.ids.id(self.now);
        let image = self.new_capture(wanted, boot, &instance.project, job);
        let mut steps = self.named(instance, &[]);
        steps.call(image.id, wanted);
        steps.utility_vm(instance.node);
        let held = self.hold_still(&mut steps, instance)?;
        self.capture_step(&mut steps, boot, image.id, instance.node);
        held.let_go(&mut steps);
        let subject = name("images", image.id);
        let mut record = steps.job(job, JobKind::SaveImage, self.now, subject.clone(), instance.node);
        record.job.project = Some(instance.project.clone());
        record.records = vec![image.id];
        record.holds = vec![subject, instances(id), disks(boot.id)];
        let words = format!("image {wanted} is being captured from {}", instance.name);
        let mut draft = Draft::at_once("images", image.id, ("image.capturing", words));
        draft.interrupts = held.suspended();
        if instance.disks.len() > 1 {
            draft.notes.push("the image holds the boot disk; other disks are not in it".to_owned());
        }
        draft.notes.push(
            "the image has the machine's identity and keys as they are; machines made of it share them"
                .to_owned(),
        );
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        Ok(draft
            .put(image)
            .put(Instance { active_job: Some(job), ..instance.clone() })
            .put(Disk { active_job: Some(job), ..boot.clone() }))
    }

    /// The record of an image to be captured.
    pub(super) fn new_capture(&mut self, wanted: &str, of: &Disk, project: &str, job: Id) -> Image {
        let known = of.instance.and_then(|id| self.state.instances.get(&id)).and_then(|found| found.image);
        let known = known.and_then(|id| self.state.images.get(&id));
        Image {
            id: self.ids.id(self.now),
            project: Some(project.to_owned()),
            name: wanted.to_owned(),
            contents: ImageContents::Disk { digest: String::new(), size_bytes: 0, device_bytes: 0 },
            architecture: known.map_or_else(|| "amd64".to_owned(), |image| image.architecture.clone()),
            os: known.map_or_else(|| "linux".to_owned(), |image| image.os.clone()),
            min_disk_mib: of.size_mib,
            min_memory_mib: known.map_or(0, |image| image.min_memory_mib),
            hypervisors: known.map(|image| image.hypervisors.clone()).unwrap_or_default(),
            ready: false,
            active_job: Some(job),
            generation: 1,
            created_at: self.now,
        }
    }

    pub(super) fn capture_step(&self, steps: &mut Steps, disk: &Disk, image: Id, node: Id) {
        steps.attach(disk.id, Place::UtilityReadOnly);
        steps.fill(Action::Capture { disk: disk.id, image }, node, deadline::WHOLE_DISK);
        steps.detach(disk.id, Place::UtilityReadOnly);
    }
}
