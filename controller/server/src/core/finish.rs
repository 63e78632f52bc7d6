//! What becomes of the records: while a job goes on, and when it has ended.

use uvm_api::JobResult;

use super::engine::current;
use super::state::name;
use super::work::{Action, JobRecord, Place};
use super::{Batch, CallAnswer, Core, Now};
use crate::hypervisor::DomainState;
use crate::model::{
    Disk, DiskState, ErrorCode, Id, Image, ImageContents, Instance, JobKind, JobState, Node, Problem,
    SanitizationRecord, Snapshot,
};
use crate::store::{Change, Table};

/// Deleted things remembered, so that what of them turns up late on a node is known for what it is.
const MAX_TOMBSTONES: usize = 65_536;

impl Core {
    /// What a call's answer brought besides its being done.
    pub(super) fn absorb(
        &mut self,
        now: Now,
        record: &mut JobRecord,
        action: &Action,
        answer: &CallAnswer,
        batch: &mut Batch,
    ) -> Result<(), Problem> {
        if let (Action::MeasureVolume { disk }, CallAnswer::Volume(Some(found))) = (action, answer) {
            if let Some(disk) = self.state.disks.get(disk).filter(|disk| disk.size_mib != found.size_mib) {
                let reserved_mib = disk.reserved_mib.max(found.size_mib);
                let disk = Disk { size_mib: found.size_mib, reserved_mib, ..disk.clone() };
                self.state.put(disk, batch);
            }
            return Ok(());
        }
        if let (Action::MeasureDomain { instance }, CallAnswer::Domain(Some(found))) = (action, answer) {
            let runs = matches!(found.state, DomainState::Running | DomainState::Paused);
            if let Some(instance) = self.state.instances.get(instance).filter(|_| runs) {
                let (vcpus, memory_mib) = (found.vcpus, found.memory_mib);
                let instance = Instance { vcpus, memory_mib, ..instance.clone() };
                self.state.put(instance, batch);
            }
            return Ok(());
        }
        let CallAnswer::UvmJob(job) = answer else { return Ok(()) };
        let Some(result) = &job.result else {
            return Err(Problem::new(ErrorCode::UvmJobFailed, "the utility VM's job has no result"));
        };
        match (action, result) {
            (Action::Provision { disk, .. }, JobResult::Provision { ssh_host_key, .. }) => {
                let instance = self.state.disks.get(disk).and_then(|disk| disk.instance);
                if let Some(instance) = instance.and_then(|id| self.state.instances.get(&id)) {
                    let instance = Instance { ssh_host_key: ssh_host_key.clone(), ..instance.clone() };
                    self.state.put(instance, batch);
                }
                Ok(())
            }
            (Action::Clone { target, .. }, JobResult::Clone { digest, .. }) => {
                let of = |snapshot: &&Snapshot| snapshot.disks.iter().any(|part| part.disk == *target);
                if let Some(mut snapshot) = self.state.snapshots.values().find(of).cloned() {
                    for part in snapshot.disks.iter_mut().filter(|part| part.disk == *target) {
                        part.digest = Some(digest.clone());
                    }
                    self.state.put(snapshot, batch);
                }
                Ok(())
            }
            (Action::Capture { image, .. }, JobResult::Capture { digest, size_bytes, device_bytes, .. }) => {
                if let Some(image) = self.state.images.get(image) {
                    let contents = ImageContents::Disk {
                        digest: digest.clone(),
                        size_bytes: *size_bytes,
                        device_bytes: *device_bytes,
                    };
                    self.state.put(Image { contents, ..image.clone() }, batch);
                }
                Ok(())
            }
            (Action::Sanitize { disk }, JobResult::Sanitize { .. }) => {
                self.record_sanitization(now, record, *disk, Ok(result), batch);
                Ok(())
            }
            (Action::Restore { .. }, JobResult::Restore { .. })
            | (Action::SetHostname { .. }, JobResult::Customize { .. }) => Ok(()),
            _ => Err(Problem::new(ErrorCode::UvmJobFailed, "the utility VM's result is of another job")),
        }
    }

    /// Writes down what was done to a disk before its storage is given back, or why that did not come to a good end.
    pub(super) fn record_sanitization(
        &mut self,
        now: Now,
        record: &JobRecord,
        disk: Id,
        result: Result<&JobResult, &str>,
        batch: &mut Batch,
    ) {
        let Some(disk) = self.state.disks.get(&disk) else { return };
        let size_bytes = disk.size_mib << 20;
        let mut sanitization = SanitizationRecord {
            id: self.ids.id(now),
            disk: disk.id,
            project: disk.project.clone(),
            instance: disk.instance,
            node: disk.node,
            node_name: self.state.nodes.get(&disk.node).map(|node| node.name.clone()).unwrap_or_default(),
            serial: disk.serial.clone(),
            size_bytes,
            method: "none".to_owned(),
            technique: "none".to_owned(),
            pattern: String::new(),
            overwritten_bytes: 0,
            verified_bytes: 0,
            complete: false,
            reason: String::new(),
            job: record.job.id,
            started_at: record.job.steps[record.at].started_at.unwrap_or(now),
            ended_at: now,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            signature: String::new(),
        };
        match result {
            Ok(JobResult::Sanitize { method, technique, pattern, overwritten_bytes, verified_bytes }) => {
                sanitization.method.clone_from(method);
                sanitization.technique.clone_from(technique);
                sanitization.pattern = match pattern {
                    uvm_api::OverwritePattern::Random => "random".to_owned(),
                    uvm_api::OverwritePattern::Zero => "zero".to_owned(),
                };
                sanitization.overwritten_bytes = *overwritten_bytes;
                sanitization.verified_bytes = *verified_bytes;
                sanitization.complete = *overwritten_bytes >= size_bytes && *verified_bytes >= size_bytes;
                if !sanitization.complete {
                    sanitization.reason =
                        "not every byte of the volume was overwritten and read back".to_owned();
                }
            }
            Ok(_) => sanitization.reason = "the utility VM's result is of another job".to_owned(),
            Err(why) => sanitization.reason = why.to_owned(),
        }
        sanitization.signature = (self.options.sign)(&sanitization);
        let state = match (sanitization.complete, disk.state) {
            (false, _) => DiskState::Quarantined,
            // As before anything was written to it.
            (true, DiskState::Ready) => DiskState::Creating,
            (true, as_it_is) => as_it_is,
        };
        if state != disk.state {
            let disk = Disk { state, ..disk.clone() };
            self.state.put(disk, batch);
        }
        self.state.put(sanitization, batch);
    }

    /// An action is done: what of the records goes with it.
    pub(super) fn after(&mut self, record: &JobRecord, batch: &mut Batch) {
        match current(record) {
            Some(Action::DeleteVolume { disk }) => {
                let gone =
                    self.state.disks.get(&disk).is_some_and(|disk| disk.state != DiskState::Quarantined);
                if gone {
                    self.forget_disk(disk, batch);
                }
            }
            Some(Action::Detach { disk, from: Place::Utility | Place::UtilityReadOnly }) => {
                let node = self.state.disks.get(&disk).map(|disk| disk.node);
                if let Some(turns) = node.and_then(|node| self.turns.get_mut(&node)) {
                    turns.remove(&record.job.id);
                }
            }
            Some(Action::GrowVolume { disk, size_mib }) => {
                if let Some(disk) = self.state.disks.get(&disk) {
                    let reserved_mib = disk.reserved_mib.max(size_mib);
                    let disk = Disk { size_mib, reserved_mib, ..disk.clone() };
                    self.state.put(disk, batch);
                }
            }
            _ => {}
        }
    }

    fn forget_disk(&mut self, disk: Id, batch: &mut Batch) {
        self.bury(disk);
        self.state.remove(Table::Disks, disk, batch);
    }

    fn bury(&mut self, id: Id) {
        self.tombstones.push_back(id);
        self.buried.insert(id);
        while self.tombstones.len() > MAX_TOMBSTONES {
            if let Some(old) = self.tombstones.pop_front() {
                self.buried.remove(&old);
            }
        }
    }

    /// The job has ended; what it held is free in the same transaction.
    pub(super) fn finish(&mut self, now: Now, mut record: JobRecord, state: JobState, batch: &mut Batch) {
        let job = record.job.id;
        record.job.state = state;
        record.job.ended_at = Some(now);
        record.job.progress = None;
        self.flights.remove(&job);
        self.no_timer(job);
        for turns in self.turns.values_mut() {
            turns.remove(&job);
        }
        let done = state == JobState::Succeeded;
        let mut follow_up = Vec::new();
        match record.job.kind {
            JobKind::CreateInstance | JobKind::CopyInstance => self.end_create(now, &record, done, batch),
            JobKind::DeleteInstance => self.end_delete(&record, batch),
            JobKind::ChangeInstance => self.end_change(now, &record, done, batch),
            JobKind::RestoreSnapshot => follow_up = self.end_restore(&record, done, batch),
            JobKind::CreateSnapshot | JobKind::DeleteSnapshot => self.end_snapshot(&record, done, batch),
            JobKind::SaveImage => self.end_image(&record, done, batch),
            JobKind::CreateDisk | JobKind::DeleteDisk => self.end_disk(&record, done, batch),
            JobKind::Start
            | JobKind::Shutdown
            | JobKind::Destroy
            | JobKind::Suspend
            | JobKind::Resume
            | JobKind::Reboot => self.end_power(now, &record, done, batch),
            JobKind::StartUtilityVm | JobKind::Reclaim => {}
        }
        self.set_free(now, &record, batch);
        let (kind, words) = match (&record.job.problem, done) {
            (_, true) => ("job.succeeded", format!("{} succeeded", record.job.kind.name())),
            (Some(problem), false) => ("job.failed", problem.detail.clone()),
            (None, false) => ("job.failed", String::new()),
        };
        let (subject, whose) = (record.job.subject.clone(), (record.job.project.clone(), Some(job)));
        *self.ended.entry((record.job.kind, state)).or_default() += 1;
        self.state.put(record, batch);
        self.state.event(now, kind, subject, whose, words, batch);
        for disk in follow_up {
            self.erase(now, disk, batch);
        }
    }

    /// Nothing is held by the job any more.
    fn set_free(&mut self, now: Now, record: &JobRecord, batch: &mut Batch) {
        let job = record.job.id;
        for resource in &record.holds {
            self.state.unlock(resource, batch);
            let Some((table, id)) = resource.split_once('/') else { continue };
            let Ok(id) = id.parse::<Id>() else { continue };
            let held = |holder: Option<Id>| holder == Some(job);
            match table {
                "instances" => {
                    if let Some(found) = self.state.instances.get(&id).filter(|found| held(found.active_job))
                    {
                        let last_problem = record.job.problem.clone();
                        // What was seen before this moment is of before.
                        let found =
                            Instance { active_job: None, last_problem, observed_at: now, ..found.clone() };
                        self.state.put(found, batch);
                    }
                }
                "disks" => {
                    if let Some(found) = self.state.disks.get(&id).filter(|found| held(found.active_job)) {
                        let found = Disk { active_job: None, ..found.clone() };
                        self.state.put(found, batch);
                    }
                }
                "snapshots" => {
                    if let Some(found) = self.state.snapshots.get(&id).filter(|found| held(found.active_job))
                    {
                        let found = Snapshot { active_job: None, ..found.clone() };
                        self.state.put(found, batch);
                    }
                }
                "images" => {
                    if let Some(found) = self.state.images.get(&id).filter(|found| held(found.active_job)) {
                        let found = Image { active_job: None, ..found.clone() };
                        self.state.put(found, batch);
                    }
                }
                "nodes" => {
                    if let Some(found) = self.state.nodes.get(&id).filter(|found| held(found.active_job)) {
                        let found = Node { active_job: None, ..found.clone() };
                        self.state.put(found, batch);
                    }
                }
                _ => {}
            }
        }
    }

    fn subject(record: &JobRecord) -> Option<Id> {
        record.job.subject.split_once('/').and_then(|(_, id)| id.parse().ok())
    }

    fn subject_instance(&self, record: &JobRecord) -> Option<Instance> {
        Self::subject(record).and_then(|id| self.state.instances.get(&id)).cloned()
    }

    fn end_create(&mut self, now: Now, record: &JobRecord, done: bool, batch: &mut Batch) {
        for image in &record.records {
            // Only on the way between two nodes.
            self.state.remove(Table::Images, *image, batch);
            batch.forget_blobs.push(*image);
        }
        let Some(mut instance) = self.subject_instance(record) else { return };
        if !done {
            return self.forget_instance(&instance, batch);
        }
        for disk in instance.disks.clone() {
            if let Some(disk) = self.state.disks.get(&disk).filter(|disk| disk.state == DiskState::Creating) {
                let disk = Disk { state: DiskState::Ready, ..disk.clone() };
                self.state.put(disk, batch);
            }
        }
        instance.provisioned = true;
        instance.observed_state = instance.desired_state;
        instance.observed_at = now;
        self.state.put(instance, batch);
    }

    fn end_delete(&mut self, record: &JobRecord, batch: &mut Batch) {
        if let Some(instance) = self.subject_instance(record) {
            self.forget_instance(&instance, batch);
        }
    }

    /// The instance's record goes; of its disks only those in quarantine are left, and belong to nobody's machine.
    fn forget_instance(&mut self, instance: &Instance, batch: &mut Batch) {
        for disk in &instance.disks {
            match self.state.disks.get(disk) {
                Some(found) if found.state == DiskState::Quarantined => {
                    let found = Disk { instance: None, ..found.clone() };
                    self.state.put(found, batch);
                }
                Some(_) => self.forget_disk(*disk, batch),
                None => {}
            }
        }
        self.bury(instance.id);
        self.state.remove(Table::Configs, instance.id, batch);
        self.state.remove(Table::Instances, instance.id, batch);
    }

    fn end_change(&mut self, now: Now, record: &JobRecord, done: bool, batch: &mut Batch) {
        let Some(mut instance) = self.subject_instance(record) else { return };
        let Some(change) = &record.change else { return };
        if done {
            instance.vcpus = change.vcpus.unwrap_or(instance.vcpus);
            instance.memory_mib = change.memory_mib.unwrap_or(instance.memory_mib);
            instance.observed_state = instance.desired_state;
            instance.observed_at = now;
        }
        // Reserved is what it has now, no more what it had or was to have.
        if let Ok(numa) = self.state.grid.resized(&instance, instance.vcpus, instance.memory_mib) {
            instance.numa = numa;
        }
        for disk in instance.disks.clone() {
            let Some(found) = self.state.disks.get(&disk) else { continue };
            let wanted = change.disks.iter().find(|wanted| wanted.id == disk).filter(|_| done);
            let limits = wanted.and_then(|wanted| wanted.io_limits).unwrap_or(found.io_limits);
            let generation = found.generation + u64::from(wanted.is_some());
            let found = Disk { reserved_mib: found.size_mib, io_limits: limits, generation, ..found.clone() };
            self.state.put(found, batch);
        }
        self.state.put(instance, batch);
    }

    /// The new disks are the instance's; what the old ones hold is no longer needed.
    fn end_restore(&mut self, record: &JobRecord, done: bool, batch: &mut Batch) -> Vec<Id> {
        let Some(mut instance) = self.subject_instance(record) else { return Vec::new() };
        let leftover = if done {
            std::mem::replace(&mut instance.disks, record.records.clone())
        } else {
            record.records.clone()
        };
        for disk in &leftover {
            match self.state.disks.get(disk) {
                // Not even begun, when the job failed.
                Some(found) if !done && found.state != DiskState::Quarantined => {
                    self.forget_disk(*disk, batch)
                }
                Some(found) => {
                    let found = Disk { instance: None, ..found.clone() };
                    self.state.put(found, batch);
                }
                None => {}
            }
        }
        instance.generation += 1;
        self.state.put(instance, batch);
        if done { leftover } else { Vec::new() }
    }

    /// A job of its own sanitizes a disk that nothing needs any more.
    fn erase(&mut self, now: Now, disk: Id, batch: &mut Batch) {
        match self.draft_for_operator(now, super::Command::DeleteDisk(disk)) {
            Ok(draft) => self.adopt(now, draft, batch),
            Err(problem) => {
                let words = format!("disk {disk} could not be deleted: {}", problem.detail);
                self.state.event(now, "disk.left", name("disks", disk), (None, None), words, batch);
            }
        }
    }

    fn end_snapshot(&mut self, record: &JobRecord, done: bool, batch: &mut Batch) {
        let Some(snapshot) = Self::subject(record).and_then(|id| self.state.snapshots.get(&id)).cloned()
        else {
            return;
        };
        if done && record.job.kind == JobKind::CreateSnapshot {
            return self.state.put(Snapshot { ready: true, ..snapshot }, batch);
        }
        for part in &snapshot.disks {
            if self.state.disks.get(&part.disk).is_some_and(|disk| disk.state != DiskState::Quarantined) {
                self.forget_disk(part.disk, batch);
            }
        }
        self.state.remove(Table::Snapshots, snapshot.id, batch);
    }

    fn end_image(&mut self, record: &JobRecord, done: bool, batch: &mut Batch) {
        let Some(image) = Self::subject(record).and_then(|id| self.state.images.get(&id)).cloned() else {
            return;
        };
        if done {
            return self.state.put(Image { ready: true, ..image }, batch);
        }
        batch.forget_blobs.push(image.id);
        self.state.remove(Table::Images, image.id, batch);
    }

    fn end_disk(&mut self, record: &JobRecord, done: bool, batch: &mut Batch) {
        let Some(id) = Self::subject(record) else { return };
        let disk = self.state.disks.get(&id).cloned();
        let holder = disk.as_ref().and_then(|disk| disk.instance);
        let holder = holder.or_else(|| {
            // The record of a deleted disk is gone by now.
            let held =
                self.state.instances.values().find(|instance| instance.active_job == Some(record.job.id));
            held.map(|instance| instance.id)
        });
        let created = record.job.kind == JobKind::CreateDisk && done;
        let kept = record.job.kind == JobKind::DeleteDisk && !done;
        if let Some(disk) = disk.as_ref().filter(|_| kept) {
            // Its instance did not let go of it.
            return self.state.put(Disk { state: DiskState::Ready, ..disk.clone() }, batch);
        }
        if let Some(mut instance) = holder.and_then(|id| self.state.instances.get(&id)).cloned() {
            instance.disks.retain(|known| *known != id);
            if created {
                instance.disks.push(id);
            }
            instance.generation += 1;
            self.state.put(instance, batch);
        }
        match disk {
            Some(disk) if disk.state == DiskState::Quarantined => {
                self.state.put(Disk { instance: None, ..disk }, batch);
            }
            Some(_) if !created => self.forget_disk(id, batch),
            _ => {}
        }
    }

    fn end_power(&mut self, now: Now, record: &JobRecord, done: bool, batch: &mut Batch) {
        let Some(mut instance) = self.subject_instance(record) else { return };
        if done {
            instance.observed_state = instance.desired_state;
            instance.observed_at = now;
        } else {
            // What was asked for did not come about; what is so is found out by the next look at the node.
            instance.desired_state = record.desired_before.unwrap_or(instance.desired_state);
        }
        self.state.put(instance, batch);
    }

    /// Leases are renewed while their jobs are alive; answers, events and jobs of long ago are forgotten.
    pub(super) fn housekeeping(&mut self, now: Now, batch: &mut Batch) {
        let lease = super::state::LEASE_MS;
        let due = self.state.locks.values().filter(|lock| lock.lease_until < now + lease / 2);
        let due: Vec<_> = due.map(|lock| (lock.resource.clone(), lock.job)).collect();
        for (resource, job) in due {
            self.state.lock(&resource, job, now, batch);
        }
        const DAY: u64 = 86_400_000;
        batch.changes.push(Change::Forget {
            answers_before: now.saturating_sub(DAY),
            events_before: now.saturating_sub(30 * DAY),
            jobs_before: now.saturating_sub(90 * DAY),
        });
    }
}
