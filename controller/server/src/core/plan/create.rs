//! Making, copying and deleting instances.

use super::draft::{Draft, Steps, deadline};
use super::{Drafted, Planner, disks, holds_data, instances, refuse, valid_name};
use crate::core::ids::mac;
use crate::core::work::{Action, JobRecord, Place};
use crate::model::{
    CopyRequest, Disk, DiskRequest, DiskRole, DiskState, ErrorCode, Id, Image, ImageContents, Instance,
    InstanceRequest, IoLimits, JobKind, PlacementRequest, PowerState, PowerVerb, Problem,
};
use crate::store::InstanceConfig;

const MAX_DISKS: usize = 16;
const MAX_DISK_MIB: u64 = 64 << 20;
const MAX_VCPUS: u32 = 1024;
const MAX_MEMORY_MIB: u64 = 64 << 20;
const MIN_MEMORY_MIB: u64 = 32;

/// Where a new instance goes.
pub(super) struct Wanted<'w> {
    pub(super) project: &'w str,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) storage_mib: u64,
    pub(super) placement: &'w PlacementRequest,
    pub(super) image: Option<&'w Image>,
}

impl Planner<'_> {
    /// A whole new machine.
    pub(super) fn create_instance(&mut self, request: &InstanceRequest) -> Drafted {
        let project = self.project(request.project.as_ref())?;
        self.check_new_name(&project, &request.name)?;
        check_size(request.vcpus, request.memory_mib, &request.disks)?;
        let image = request.image.as_deref().map(|wanted| self.image(wanted, &project)).transpose()?;
        check_image(request, image)?;
        let wanted = Wanted {
            project: &project,
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            storage_mib: request.disks.iter().map(|disk| disk.size_mib).sum(),
            placement: &request.placement,
            image,
        };
        let (node, numa) = self.place(&wanted)?;
        let id = self.ids.id(self.now);
        let job = self.ids.id(self.now);
        let made: Vec<Disk> = request
            .disks
            .iter()
            .enumerate()
            .map(|(index, disk)| self.new_disk(&project, &request.name, index, disk, node, id, job))
            .collect();
        let instance = Instance {
            id,
            project: project.clone(),
            name: request.name.clone(),
            generation: 1,
            node,
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            disks: made.iter().map(|disk| disk.id).collect(),
            image: image.map(|image| image.id),
            mac: mac(id),
            placement: request.placement.clone(),
            desired_state: if request.start { PowerState::Running } else { PowerState::Stopped },
            observed_state: PowerState::Absent,
            observed_at: self.now,
            active_job: Some(job),
            numa,
            ssh_host_key: None,
            provisioned: false,
            deleting: false,
            restarts: 0,
            last_problem: None,
            created_at: self.now,
        };
        let mut config = InstanceConfig {
            id,
            partitions: request.partitions.clone(),
            customize: request.customize.clone(),
            boot: request.boot.clone(),
        };
        if config.customize.hostname.is_none() {
            config.customize.hostname = Some(request.name.clone());
        }
        let mut steps = self.named(&instance, &made);
        for disk in &made {
            steps.create_volume(disk.id);
        }
        if let Some(image) = image {
            steps.call(image.id, &image.name);
            let boot = made[0].id;
            let (action, seconds) = match &image.contents {
                ImageContents::Oci { .. } => {
                    (Action::Provision { disk: boot, image: image.id }, deadline::PROVISION)
                }
                ImageContents::Disk { .. } => {
                    (Action::Restore { image: image.id, disk: boot }, deadline::WHOLE_DISK)
                }
            };
            steps.utility_vm(node).attach(boot, Place::Utility).fill(action, node, seconds);
            steps.detach(boot, Place::Utility);
        }
        self.define_and_start(&mut steps, id, request.start);
        let mut record = steps.job(job, JobKind::CreateInstance, self.now, instances(id), node);
        record.config = Some(Box::new(config.clone()));
        Ok(self.new_machine(record, instance, made).put(config))
    }

    fn define_and_start(&self, steps: &mut Steps, instance: Id, start: bool) {
        steps.add(Action::Define { instance }, &[Action::Undefine { instance }], deadline::HYPERVISOR);
        if start {
            let undo = [Action::Power { instance, verb: PowerVerb::Destroy }];
            steps.add(Action::Power { instance, verb: PowerVerb::Start }, &undo, deadline::HYPERVISOR);
        }
    }

    fn new_machine(&self, mut record: JobRecord, instance: Instance, made: Vec<Disk>) -> Draft {
        record.job.project = Some(instance.project.clone());
        record.holds.push(instances(instance.id));
        record.holds.extend(made.iter().map(|disk| disks(disk.id)));
        let words = format!("instance {} is being made", instance.name);
        let mut draft = Draft::at_once("instances", instance.id, ("instance.creating", words));
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(record.job.id);
        draft.job = Some(record);
        made.into_iter().fold(draft.put(instance), Draft::put)
    }

    /// Steps that know the name of a node.
    pub(super) fn on_node(&self, node: Id) -> Steps {
        let mut steps = Steps::default();
        if let Some(node) = self.state.nodes.get(&node) {
            steps.call(node.id, &node.name);
        }
        steps
    }

    /// Steps that know the names of an instance, its node and its disks.
    pub(super) fn named(&self, instance: &Instance, made: &[Disk]) -> Steps {
        let mut steps = self.on_node(instance.node);
        steps.call(instance.id, &instance.name);
        let known = instance.disks.iter().filter_map(|id| self.state.disks.get(id));
        for disk in made.iter().chain(known) {
            steps.call(disk.id, &disk.name);
        }
        steps
    }

    #[expect(clippy::too_many_arguments, reason = "a disk has that many origins")]
    pub(super) fn new_disk(
        &mut self,
        project: &str,
        machine: &str,
        index: usize,
        request: &DiskRequest,
        node: Id,
        instance: Id,
        job: Id,
    ) -> Disk {
        let id = self.ids.id(self.now);
        let made = || if index == 0 { format!("{machine}-boot") } else { format!("{machine}-data{index}") };
        Disk {
            id,
            project: project.to_owned(),
            name: request.name.clone().unwrap_or_else(made),
            node,
            size_mib: request.size_mib,
            reserved_mib: request.size_mib,
            serial: id.serial(),
            role: if index == 0 { DiskRole::Boot } else { DiskRole::Data },
            state: DiskState::Creating,
            instance: Some(instance),
            io_limits: request.io_limits,
            active_job: Some(job),
            generation: 1,
            created_at: self.now,
        }
    }

    fn check_new_name(&self, project: &str, name: &str) -> Result<(), Problem> {
        valid_name("name", name)?;
        match self.state.instance_named(project, name) {
            Some(_) => {
                refuse(ErrorCode::NameTaken, format!("project {project:?} has an instance {name:?} already"))
            }
            None => Ok(()),
        }
    }

    /// Another machine with the same contents.
    pub(super) fn copy_instance(&mut self, id: Id, request: &CopyRequest) -> Drafted {
        let source = self.free_instance(id)?;
        let project = source.project.clone();
        self.check_new_name(&project, &request.name)?;
        let placement = request.placement.clone().unwrap_or_else(|| source.placement.clone());
        let originals: Vec<&Disk> =
            source.disks.iter().map(|id| self.disk_record(*id)).collect::<Result<_, _>>()?;
        let image = source.image.and_then(|id| self.state.images.get(&id));
        let wanted = Wanted {
            project: &project,
            vcpus: source.vcpus,
            memory_mib: source.memory_mib,
            storage_mib: originals.iter().map(|disk| disk.size_mib).sum(),
            placement: &placement,
            image,
        };
        let (node, numa) = self.place(&wanted)?;
        let (new, job) = (self.ids.id(self.now), self.ids.id(self.now));
        let made: Vec<Disk> = originals
            .iter()
            .enumerate()
            .map(|(index, disk)| {
                let wanted = DiskRequest { size_mib: disk.size_mib, name: None, io_limits: disk.io_limits };
                self.new_disk(&project, &request.name, index, &wanted, node, new, job)
            })
            .collect();
        let instance = Instance {
            id: new,
            name: request.name.clone(),
            generation: 1,
            node,
            numa,
            disks: made.iter().map(|disk| disk.id).collect(),
            mac: mac(new),
            placement,
            desired_state: if request.start { PowerState::Running } else { PowerState::Stopped },
            observed_state: PowerState::Absent,
            observed_at: self.now,
            active_job: Some(job),
            provisioned: false,
            restarts: 0,
            last_problem: None,
            created_at: self.now,
            ..source.clone()
        };
        let mut steps = self.named(&instance, &made);
        steps.call(source.id, &source.name);
        originals.iter().for_each(|disk| steps.call(disk.id, &disk.name));
        for disk in &made {
            steps.create_volume(disk.id);
        }
        let held = self.hold_still(&mut steps, source)?;
        let images = if node == source.node {
            self.copy_on_node(&mut steps, &originals, &made, node);
            Vec::new()
        } else {
            self.copy_between_nodes(&mut steps, &originals, &made, (source, node, job))
        };
        held.let_go(&mut steps);
        self.define_and_start(&mut steps, new, request.start);
        let mut record = steps.job(job, JobKind::CopyInstance, self.now, instances(new), node);
        record.holds.push(instances(source.id));
        record.holds.extend(originals.iter().map(|disk| disks(disk.id)));
        record.records = images.iter().map(|image| image.id).collect();
        let mut draft = self.new_machine(record, instance, made);
        draft.interrupts = held.suspended();
        draft.notes.push(
            "the copy has the original's machine id, SSH host keys and addresses until it is given its own"
                .to_owned(),
        );
        let marked = originals.iter().map(|disk| Disk { active_job: Some(job), ..(*disk).clone() });
        draft = marked.fold(draft.put(Instance { active_job: Some(job), ..source.clone() }), Draft::put);
        Ok(images.into_iter().fold(draft, Draft::put))
    }

    fn copy_on_node(&self, steps: &mut Steps, originals: &[&Disk], made: &[Disk], node: Id) {
        steps.utility_vm(node);
        for (original, copy) in originals.iter().zip(made) {
            let action = Action::Clone { source: original.id, target: copy.id };
            steps.attach(copy.id, Place::Utility).attach(original.id, Place::UtilityReadOnly);
            steps.fill(action, node, deadline::WHOLE_DISK);
            steps.detach(original.id, Place::UtilityReadOnly).detach(copy.id, Place::Utility);
        }
    }

    /// Through the controller's image store: captured on one node, written on the other.
    fn copy_between_nodes(
        &mut self,
        steps: &mut Steps,
        originals: &[&Disk],
        made: &[Disk],
        (source, node, job): (&Instance, Id, Id),
    ) -> Vec<Image> {
        let mut images = Vec::new();
        if let Some(from) = self.state.nodes.get(&source.node) {
            steps.call(from.id, &from.name);
        }
        steps.utility_vm(source.node).utility_vm(node);
        for (original, copy) in originals.iter().zip(made) {
            let image = self.new_capture(&format!("copy-{}", copy.id), original, &source.project, job);
            steps.call(image.id, &image.name);
            self.capture_step(steps, original, image.id, source.node);
            steps.attach(copy.id, Place::Utility);
            let action = Action::Restore { image: image.id, disk: copy.id };
            steps.fill(action, node, deadline::WHOLE_DISK).detach(copy.id, Place::Utility);
            images.push(image);
        }
        images
    }

    /// Gone, and nothing of it left to read.
    pub(super) fn delete_instance(&mut self, id: Id) -> Drafted {
        let instance = self.instance(id)?;
        self.matches(instance.generation)?;
        self.free("instance", &instance.name, instance.active_job)?;
        if let Some(snapshot) = self.state.snapshots.values().find(|snapshot| snapshot.instance == id) {
            let detail = format!(
                "instance {:?} has snapshot {:?} ({}); delete its snapshots first",
                instance.name, snapshot.name, snapshot.id
            );
            return refuse(ErrorCode::WrongState, detail);
        }
        let job = self.ids.id(self.now);
        let mut steps = self.named(instance, &[]);
        let verb = PowerVerb::Destroy;
        steps.add(Action::Power { instance: id, verb }, &[], deadline::HYPERVISOR);
        steps.add(Action::Undefine { instance: id }, &[], deadline::HYPERVISOR);
        let mut gone = Vec::new();
        for disk in &instance.disks {
            let disk = self.disk_record(*disk)?;
            self.free("disk", &disk.name, disk.active_job)?;
            if holds_data(disk) {
                steps.erase(disk.id, disk.node);
            } else {
                steps.add(Action::DeleteVolume { disk: disk.id }, &[], deadline::HYPERVISOR);
            }
            gone.push(Disk { state: DiskState::Deleting, active_job: Some(job), ..disk.clone() });
        }
        let mut record = steps.job(job, JobKind::DeleteInstance, self.now, instances(id), instance.node);
        record.firm_from = Some(0);
        record.job.project = Some(instance.project.clone());
        record.holds.push(instances(id));
        record.holds.extend(gone.iter().map(|disk| disks(disk.id)));
        let words = format!("instance {} is being deleted", instance.name);
        let mut draft = Draft::at_once("instances", id, ("instance.deleting", words));
        draft.interrupts = true;
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        let marked = Instance {
            active_job: Some(job),
            deleting: true,
            desired_state: PowerState::Absent,
            generation: instance.generation + 1,
            ..instance.clone()
        };
        Ok(gone.into_iter().fold(draft.put(marked), Draft::put))
    }
}

fn check_size(vcpus: u32, memory_mib: u64, disks: &[DiskRequest]) -> Result<(), Problem> {
    let invalid = |detail: String| refuse(ErrorCode::InvalidRequest, detail);
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return invalid(format!("vcpus: {vcpus} is not between 1 and {MAX_VCPUS}"));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
        return invalid(format!(
            "memory_mib: {memory_mib} is not between {MIN_MEMORY_MIB} and {MAX_MEMORY_MIB}"
        ));
    }
    if disks.is_empty() || disks.len() > MAX_DISKS {
        return invalid(format!("disks: {} given, 1 to {MAX_DISKS} are possible", disks.len()));
    }
    for disk in disks {
        if !(1..=MAX_DISK_MIB).contains(&disk.size_mib) {
            return invalid(format!("size_mib: {} is not between 1 and {MAX_DISK_MIB}", disk.size_mib));
        }
        if let Some(name) = &disk.name {
            valid_name("disk", name)?;
        }
    }
    Ok(())
}

/// Sizes within limits, for those that change an instance.
pub(super) fn check_change(vcpus: u32, memory_mib: u64, disk_mib: &[u64]) -> Result<(), Problem> {
    let disks: Vec<DiskRequest> = disk_mib
        .iter()
        .map(|size| DiskRequest { size_mib: *size, name: None, io_limits: IoLimits::default() })
        .collect();
    check_size(vcpus, memory_mib, &disks)
}

fn check_image(request: &InstanceRequest, image: Option<&Image>) -> Result<(), Problem> {
    let Some(image) = image else {
        let made = request.customize != Default::default() || !request.partitions.is_empty();
        return match made {
            true => refuse(ErrorCode::InvalidRequest, "customize and partitions need an image"),
            false => Ok(()),
        };
    };
    let boot = request.disks[0].size_mib;
    let mut least = image.min_disk_mib;
    if let ImageContents::Disk { device_bytes, .. } = &image.contents {
        least = least.max(device_bytes.div_ceil(1 << 20));
        if request.customize != Default::default() || !request.partitions.is_empty() {
            let detail = format!(
                "image {:?} is a captured disk: it is written as it is; leave customize and partitions out",
                image.name
            );
            return refuse(ErrorCode::Unsupported, detail);
        }
    }
    if boot < least {
        let detail =
            format!("image {:?} needs a boot disk of {least} MiB, the request has {boot}", image.name);
        return refuse(ErrorCode::InvalidRequest, detail);
    }
    if request.memory_mib < image.min_memory_mib {
        let detail = format!(
            "image {:?} needs {} MiB of memory, the request has {}",
            image.name, image.min_memory_mib, request.memory_mib
        );
        return refuse(ErrorCode::InvalidRequest, detail);
    }
    Ok(())
}
