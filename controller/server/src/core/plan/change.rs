//! Scaling and host names.

use super::create::check_change;
use super::draft::{Draft, Steps, deadline};
use super::{Drafted, Planner, disks, instances, refuse};
use crate::core::work::{Action, Place};
use crate::hypervisor::{Capabilities, Change};
use crate::model::{
    Disk, ErrorCode, Id, Instance, InstanceChange, JobKind, Node, PowerState, PowerVerb, Problem,
};

/// What a change needs of a running machine.
#[derive(Debug, Default)]
struct Needs {
    /// Reasons for which it has to be off meanwhile.
    restart: Vec<String>,
    vcpus_live: bool,
    memory_live: bool,
    /// Whether a running machine can be given back what it had.
    vcpus_back: bool,
    memory_back: bool,
}

impl Planner<'_> {
    /// Other amounts of CPU, memory, disk and I/O; another host name.
    pub(super) fn change_instance(&mut self, id: Id, change: &InstanceChange) -> Drafted {
        let instance = self.free_instance(id)?;
        let node = self.reachable(instance.node)?;
        let vcpus = change.vcpus.unwrap_or(instance.vcpus);
        let memory_mib = change.memory_mib.unwrap_or(instance.memory_mib);
        let sizes: Vec<u64> = change.disks.iter().filter_map(|disk| disk.size_mib).chain([1]).collect();
        check_change(vcpus, memory_mib, &sizes)?;
        let changed = self.changed_disks(instance, change)?;
        let nothing = vcpus == instance.vcpus
            && memory_mib == instance.memory_mib
            && change.hostname.is_none()
            && changed.is_empty();
        if nothing {
            let draft = Draft::at_once("instances", id, ("instance.unchanged", String::new()));
            return Ok(draft);
        }
        let runs = matches!(instance.observed_state, PowerState::Running | PowerState::Paused);
        let needs = self.needs(instance, node, change, runs)?;
        if runs && !needs.restart.is_empty() {
            if !change.allow_restart {
                let detail =
                    format!("instance {:?} has to be restarted: {}", instance.name, needs.restart.join("; "));
                return refuse(ErrorCode::RestartNeeded, detail);
            }
            if instance.observed_state == PowerState::Paused {
                return refuse(
                    ErrorCode::WrongState,
                    format!("instance {:?} is held; resume it first", instance.name),
                );
            }
        }
        let growth = changed.iter().map(|(old, new)| new.size_mib - old.size_mib).sum();
        let numa = self.resize(instance, vcpus, memory_mib, growth)?;
        let job = self.ids.id(self.now);
        let mut steps = self.named(instance, &[]);
        let restart = runs && !needs.restart.is_empty();
        self.change_steps(&mut steps, instance, change, &changed, &needs, restart);
        let mut record = steps.job(job, JobKind::ChangeInstance, self.now, instances(id), instance.node);
        record.job.project = Some(instance.project.clone());
        record.change = Some(change.clone());
        record.holds = vec![instances(id)];
        record.holds.extend(instance.disks.iter().map(|disk| disks(*disk)));
        let mut draft = Draft::at_once(
            "instances",
            id,
            ("instance.changing", format!("instance {} is being changed", instance.name)),
        );
        draft.restart = restart;
        draft.interrupts = restart;
        draft.notes = needs.restart;
        if growth > 0 {
            draft.notes.push("partitions and file systems in the guest keep their sizes".to_owned());
        }
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        draft = draft.put(Instance {
            active_job: Some(job),
            numa,
            generation: instance.generation + 1,
            ..instance.clone()
        });
        for disk in &instance.disks {
            let disk = self.disk_record(*disk)?;
            let grown = changed.iter().find(|(old, _)| old.id == disk.id).map(|(_, new)| new.size_mib);
            let reserved_mib = grown.unwrap_or(disk.reserved_mib);
            draft = draft.put(Disk { active_job: Some(job), reserved_mib, ..disk.clone() });
        }
        Ok(draft)
    }

    /// Disks that would be different, old and new.
    fn changed_disks(
        &self,
        instance: &Instance,
        change: &InstanceChange,
    ) -> Result<Vec<(Disk, Disk)>, Problem> {
        let mut changed: Vec<(Disk, Disk)> = Vec::new();
        for wanted in &change.disks {
            if !instance.disks.contains(&wanted.id) {
                let detail = format!("instance {:?} has no disk {}", instance.name, wanted.id);
                return refuse(ErrorCode::NotFound, detail);
            }
            if changed.iter().any(|(old, _)| old.id == wanted.id) {
                return refuse(ErrorCode::InvalidRequest, format!("disk {} is named twice", wanted.id));
            }
            let old = self.disk_record(wanted.id)?;
            let new = Disk {
                size_mib: wanted.size_mib.unwrap_or(old.size_mib),
                io_limits: wanted.io_limits.unwrap_or(old.io_limits),
                ..old.clone()
            };
            if new.size_mib < old.size_mib {
                let detail = format!(
                    "disk {:?} has {} MiB: making a disk smaller needs its file systems shrunk first, which this \
                     version does not do; make a smaller disk and copy",
                    old.name, old.size_mib
                );
                return refuse(ErrorCode::Unsupported, detail);
            }
            if new != *old {
                changed.push((old.clone(), new));
            }
        }
        Ok(changed)
    }

    fn needs(
        &self,
        instance: &Instance,
        node: &Node,
        change: &InstanceChange,
        runs: bool,
    ) -> Result<Needs, Problem> {
        let can: &Capabilities = self.capabilities(node)?;
        let mut needs = Needs::default();
        let direction = |old: u64, new: u64, up: Change, down: Change| match new.cmp(&old) {
            std::cmp::Ordering::Greater => Some(up),
            std::cmp::Ordering::Less => Some(down),
            std::cmp::Ordering::Equal => None,
        };
        let vcpus = change.vcpus.and_then(|new| {
            direction(u64::from(instance.vcpus), u64::from(new), can.vcpus_up, can.vcpus_down)
        });
        let memory = change
            .memory_mib
            .and_then(|new| direction(instance.memory_mib, new, can.memory_up, can.memory_down));
        let grows = change.disks.iter().any(|disk| {
            let old = self.state.disks.get(&disk.id);
            disk.size_mib.zip(old).is_some_and(|(new, old)| new > old.size_mib)
        });
        let limits = change.disks.iter().any(|disk| disk.io_limits.is_some());
        let all = [
            ("the number of CPUs", vcpus),
            ("the amount of memory", memory),
            ("the size of a disk", grows.then_some(can.volume_grow)),
            ("I/O limits", limits.then_some(can.io_limits)),
        ];
        for (what, how) in all {
            match how {
                None | Some(Change::Live) => {}
                Some(Change::Restart) => {
                    needs
                        .restart
                        .push(format!("{} changes {what} of a machine that is off", node.hypervisor));
                }
                Some(Change::Unsupported) => {
                    let detail = format!("the hypervisor of node {:?} cannot change {what}", node.name);
                    return refuse(ErrorCode::Unsupported, detail);
                }
            }
        }
        if change.hostname.is_some() {
            needs.restart.push("the utility VM changes the files of a machine that is off".to_owned());
        }
        needs.vcpus_live = runs && needs.restart.is_empty() && vcpus == Some(Change::Live);
        needs.memory_live = runs && needs.restart.is_empty() && memory == Some(Change::Live);
        needs.vcpus_back = can.vcpus_up == Change::Live && can.vcpus_down == Change::Live;
        needs.memory_back = can.memory_up == Change::Live && can.memory_down == Change::Live;
        Ok(needs)
    }

    fn change_steps(
        &self,
        steps: &mut Steps,
        instance: &Instance,
        change: &InstanceChange,
        changed: &[(Disk, Disk)],
        needs: &Needs,
        restart: bool,
    ) {
        let id = instance.id;
        let power = |verb| Action::Power { instance: id, verb };
        if restart {
            steps.add(power(PowerVerb::Shutdown), &[power(PowerVerb::Start)], deadline::SHUTDOWN);
        }
        if let (Some(hostname), Some(boot)) = (&change.hostname, instance.disks.first()) {
            let (disk, hostname) = (*boot, hostname.clone());
            let node = instance.node;
            steps.add(
                Action::Undefine { instance: id },
                &[Action::Define { instance: id }],
                deadline::HYPERVISOR,
            );
            steps.utility_vm(node).attach(disk, Place::Utility);
            steps.fill(Action::SetHostname { disk, hostname }, node, deadline::PROVISION);
            steps.detach(disk, Place::Utility);
        }
        for (old, new) in changed {
            if new.size_mib != old.size_mib {
                let action = Action::GrowVolume { disk: old.id, size_mib: new.size_mib };
                let undo = [Action::MeasureVolume { disk: old.id }];
                steps.add(action, &undo, deadline::HYPERVISOR);
            }
            if new.io_limits != old.io_limits {
                let limits = |limits| Action::SetIoLimits { instance: id, disk: old.id, limits };
                if !restart && instance.observed_state != PowerState::Absent && change.hostname.is_none() {
                    steps.add(limits(new.io_limits), &[limits(old.io_limits)], deadline::HYPERVISOR);
                }
            }
        }
        // Last taken back, so that what is defined is again what the record says.
        steps.add(Action::Define { instance: id }, &[Action::Define { instance: id }], deadline::HYPERVISOR);
        if let Some(vcpus) = change.vcpus.filter(|_| needs.vcpus_live) {
            let back = Action::SetVcpus { instance: id, vcpus: instance.vcpus };
            let undo = [if needs.vcpus_back { back } else { Action::MeasureDomain { instance: id } }];
            steps.add(Action::SetVcpus { instance: id, vcpus }, &undo, deadline::HYPERVISOR);
        }
        if let Some(memory_mib) = change.memory_mib.filter(|_| needs.memory_live) {
            let back = Action::SetMemory { instance: id, memory_mib: instance.memory_mib };
            let undo = [if needs.memory_back { back } else { Action::MeasureDomain { instance: id } }];
            steps.add(Action::SetMemory { instance: id, memory_mib }, &undo, deadline::HYPERVISOR);
        }
        if restart {
            steps.add(power(PowerVerb::Start), &[power(PowerVerb::Destroy)], deadline::HYPERVISOR);
        }
    }
}
