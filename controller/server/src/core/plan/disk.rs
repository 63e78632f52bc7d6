//! Disks of their own: made for an instance, deleted, sanitized again.

use super::draft::{Draft, Steps, deadline};
use super::{Drafted, Planner, disks, holds_data, instances, refuse, valid_name};
use crate::core::work::{Action, Place};
use crate::model::{
    Disk, DiskRequest, DiskRole, DiskState, ErrorCode, Id, Instance, JobKind, NewDisk, PowerState,
};

impl Planner<'_> {
    /// One more disk for an instance.
    pub(super) fn create_disk(&mut self, request: &NewDisk) -> Drafted {
        let instance = self.free_instance(request.instance)?;
        if request.project.as_ref().is_some_and(|project| *project != instance.project) {
            return refuse(ErrorCode::InvalidRequest, "a disk belongs to its instance's project");
        }
        valid_name("name", &request.name)?;
        super::create::check_change(1, 1024, &[request.size_mib])?;
        if instance.disks.len() >= 16 {
            return refuse(ErrorCode::InvalidRequest, format!("instance {:?} has 16 disks", instance.name));
        }
        self.can_plug(instance)?;
        self.storage_for(instance.node, request.size_mib)?;
        let job = self.ids.id(self.now);
        let wanted = DiskRequest {
            size_mib: request.size_mib,
            name: Some(request.name.clone()),
            io_limits: request.io_limits,
        };
        let (project, id) = (instance.project.clone(), instance.id);
        let disk = self.new_disk(&project, &instance.name, 1, &wanted, instance.node, id, job);
        let mut steps = self.named(instance, std::slice::from_ref(&disk));
        steps.create_volume(disk.id).attach(disk.id, Place::Instance);
        let mut record = steps.job(job, JobKind::CreateDisk, self.now, disks(disk.id), instance.node);
        record.job.project = Some(project.clone());
        record.records = vec![disk.id];
        record.holds = vec![disks(disk.id), instances(id)];
        let words = format!("disk {} is being made for {}", disk.name, instance.name);
        let mut draft = Draft::at_once("disks", disk.id, ("disk.creating", words));
        draft.project = Some(project);
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        Ok(draft.put(disk).put(Instance { active_job: Some(job), ..instance.clone() }))
    }

    /// Whether disks of the instance may come and go as it is now.
    fn can_plug(&self, instance: &Instance) -> Result<(), crate::model::Problem> {
        let node = self.reachable(instance.node)?;
        let runs = matches!(instance.observed_state, PowerState::Running | PowerState::Paused);
        if instance.observed_state == PowerState::Paused {
            let detail =
                format!("instance {:?} is held and cannot let go of a disk; resume it first", instance.name);
            return refuse(ErrorCode::WrongState, detail);
        }
        if runs && !self.capabilities(node)?.hot_plug {
            let detail = format!(
                "the hypervisor of node {:?} ({}) attaches and detaches no disks while a machine runs; shut instance \
                 {:?} down first",
                node.name, node.hypervisor, instance.name
            );
            return refuse(ErrorCode::Unsupported, detail);
        }
        Ok(())
    }

    /// Detached, sanitized, gone.
    pub(super) fn delete_disk(&mut self, id: Id) -> Drafted {
        let disk = self.disk(id)?;
        self.matches(disk.generation)?;
        self.free("disk", &disk.name, disk.active_job)?;
        match disk.role {
            DiskRole::Boot if disk.instance.is_some() => {
                return refuse(ErrorCode::WrongState, "a boot disk goes with its instance; delete that");
            }
            DiskRole::Snapshot if disk.state != DiskState::Quarantined => {
                return refuse(ErrorCode::WrongState, "this disk belongs to a snapshot; delete that");
            }
            _ => {}
        }
        let holder = disk.instance.map(|id| self.free_instance(id)).transpose()?;
        if let Some(instance) = holder {
            self.can_plug(instance)?;
        }
        let mut steps = self.on_node(disk.node);
        steps.call(id, &disk.name);
        if holder.is_some() {
            // A guest may not let go of it; until it has, the disk is what it was.
            let undo = [Action::Attach { disk: id, to: Place::Instance }];
            steps.add(Action::Detach { disk: id, from: Place::Instance }, &undo, deadline::ATTACH);
        }
        self.erase_disk(steps, disk, holder)
    }

    /// Tried again: the storage of a quarantined disk comes back once it is sanitized.
    pub(super) fn sanitize_disk(&mut self, id: Id) -> Drafted {
        self.operator_only()?;
        let disk = self.disk(id)?;
        self.free("disk", &disk.name, disk.active_job)?;
        if disk.state != DiskState::Quarantined {
            let detail = format!("disk {:?} is not quarantined; delete it, and it is sanitized", disk.name);
            return refuse(ErrorCode::WrongState, detail);
        }
        let mut steps = self.on_node(disk.node);
        steps.call(id, &disk.name);
        self.erase_disk(steps, disk, None)
    }

    fn erase_disk(&mut self, mut steps: Steps, disk: &Disk, holder: Option<&Instance>) -> Drafted {
        let job = self.ids.id(self.now);
        if holds_data(disk) {
            steps.erase(disk.id, disk.node);
        } else {
            steps.add(Action::DeleteVolume { disk: disk.id }, &[], deadline::HYPERVISOR);
        }
        let mut record = steps.job(job, JobKind::DeleteDisk, self.now, disks(disk.id), disk.node);
        record.firm_from = Some(usize::from(holder.is_some()));
        record.job.project = Some(disk.project.clone());
        record.holds = vec![disks(disk.id)];
        record.holds.extend(holder.map(|instance| instances(instance.id)));
        let words = format!("disk {} is being deleted", disk.name);
        let mut draft = Draft::at_once("disks", disk.id, ("disk.deleting", words));
        draft.project = Some(disk.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        if let Some(instance) = holder {
            draft = draft.put(Instance { active_job: Some(job), ..instance.clone() });
        }
        Ok(draft.put(Disk {
            state: DiskState::Deleting,
            active_job: Some(job),
            generation: disk.generation + 1,
            ..disk.clone()
        }))
    }
}
