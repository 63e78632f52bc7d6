//! A request becomes a draft: every record, reservation and step decided, nothing changed yet. What `plans` shows and
//! what a job does are the same draft.

mod change;
mod create;
mod disk;
mod draft;
mod grid;
mod power;
mod snapshot;

pub(super) use draft::{Draft, node_job};
pub(super) use power::crash_restart;

use super::Now;
use super::command::{Caller, Command, Request};
use super::ids::Ids;
use super::state::{State, name};
use crate::hypervisor::Capabilities;
use crate::model::{
    Disk, DiskState, ErrorCode, Id, Image, Instance, Node, NodeState, PlanRequest, Problem, Snapshot,
};

/// What a draft is made from.
pub(super) struct Planner<'a> {
    pub(super) state: &'a State,
    pub(super) now: Now,
    pub(super) ids: &'a mut Ids,
    pub(super) caller: &'a Caller,
    pub(super) if_match: Option<u64>,
}

pub(super) type Drafted = Result<Draft, Problem>;

fn refuse<T>(code: ErrorCode, detail: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::new(code, detail))
}

impl<'a> Planner<'a> {
    /// The draft of a request.
    pub(super) fn draft(&mut self, request: &Request) -> Drafted {
        if matches!(self.caller, Caller::Enrolment { .. })
            && !matches!(request.command, Command::CreateNode(_))
        {
            return refuse(ErrorCode::Forbidden, "an enrolment token registers a node and does nothing else");
        }
        match &request.command {
            Command::CreateInstance(request) => self.create_instance(request),
            Command::ChangeInstance(id, change) => self.change_instance(*id, change),
            Command::DeleteInstance(id) => self.delete_instance(*id),
            Command::Power(id, verb) => self.power(*id, *verb),
            Command::CopyInstance(id, request) => self.copy_instance(*id, request),
            Command::CreateSnapshot(id, request) => self.create_snapshot(*id, &request.name),
            Command::RestoreSnapshot(id, request) => self.restore_snapshot(*id, request.snapshot),
            Command::DeleteSnapshot(id) => self.delete_snapshot(*id),
            Command::SaveImage(id, request) => self.save_image(*id, &request.name),
            Command::CreateDisk(request) => self.create_disk(request),
            Command::DeleteDisk(id) => self.delete_disk(*id),
            Command::SanitizeDisk(id) => self.sanitize_disk(*id),
            Command::CreateImage(request) => self.create_image(request),
            Command::DeleteImage(id) => self.delete_image(*id),
            Command::CreateNode(request) => self.create_node(request),
            Command::ChangeNode(id, change) => self.change_node(*id, change),
            Command::DeleteNode(id) => self.delete_node(*id),
            Command::CreateToken(token) => self.create_token(token),
            Command::DeleteToken(id) => self.delete_token(*id),
            Command::CancelJob(_) => refuse(ErrorCode::Internal, "a cancellation has no draft"),
        }
    }

    /// The draft of what is only asked about.
    pub(super) fn preview(&mut self, request: &PlanRequest) -> Drafted {
        match request {
            PlanRequest::CreateInstance { request } => self.create_instance(request),
            PlanRequest::ChangeInstance { instance, request } => self.change_instance(*instance, request),
            PlanRequest::CopyInstance { instance, request } => self.copy_instance(*instance, request),
            PlanRequest::DeleteInstance { instance } => self.delete_instance(*instance),
            PlanRequest::Power { instance, verb } => self.power(*instance, *verb),
            PlanRequest::CreateSnapshot { instance } => self.create_snapshot(*instance, "preview"),
            PlanRequest::SaveImage { instance } => self.save_image(*instance, "preview"),
            PlanRequest::RestoreSnapshot { instance, snapshot } => {
                self.restore_snapshot(*instance, *snapshot)
            }
        }
    }

    fn operator_only(&self) -> Result<(), Problem> {
        match self.caller {
            Caller::Operator => Ok(()),
            _ => refuse(ErrorCode::Forbidden, "only an operator's token allows this"),
        }
    }

    /// Whether the caller may see what belongs to a project.
    fn sees(&self, project: &str) -> bool {
        match self.caller {
            Caller::Operator => true,
            Caller::Tenant { project: own } => own == project,
            Caller::Enrolment { .. } => false,
        }
    }

    /// The project of something new.
    fn project(&self, wanted: Option<&String>) -> Result<String, Problem> {
        match (self.caller, wanted) {
            (Caller::Tenant { project }, None) => Ok(project.clone()),
            (Caller::Tenant { project }, Some(wanted)) if project == wanted => Ok(project.clone()),
            (Caller::Tenant { project }, Some(_)) => {
                refuse(ErrorCode::Forbidden, format!("the token is of project {project:?}"))
            }
            (_, Some(wanted)) => valid_name("project", wanted).map(|()| wanted.clone()),
            (_, None) => refuse(ErrorCode::InvalidRequest, "an operator has to name the project"),
        }
    }

    fn matches(&self, generation: u64) -> Result<(), Problem> {
        match self.if_match {
            Some(seen) if seen != generation => refuse(
                ErrorCode::PreconditionFailed,
                format!("If-Match names generation {seen}, it is {generation} now; look at it again"),
            ),
            _ => Ok(()),
        }
    }

    fn instance(&self, id: Id) -> Result<&'a Instance, Problem> {
        match self.state.instances.get(&id) {
            Some(instance) if self.sees(&instance.project) => Ok(instance),
            _ => refuse(ErrorCode::NotFound, format!("there is no instance {id}")),
        }
    }

    /// The instance, where it can be worked on: whole, and no job holds it.
    fn free_instance(&self, id: Id) -> Result<&'a Instance, Problem> {
        let instance = self.instance(id)?;
        self.matches(instance.generation)?;
        self.free("instance", &instance.name, instance.active_job)?;
        if instance.deleting || !instance.provisioned {
            return refuse(ErrorCode::WrongState, format!("instance {:?} is not whole", instance.name));
        }
        for id in &instance.disks {
            let disk = self.disk_record(*id)?;
            self.free("disk", &disk.name, disk.active_job)?;
        }
        Ok(instance)
    }

    fn free(&self, what: &str, name: &str, holder: Option<Id>) -> Result<(), Problem> {
        let Some(job) = holder else { return Ok(()) };
        let kind = self.state.jobs.get(&job).map(|record| record.job.kind);
        let detail = match kind {
            Some(kind) => {
                format!("{what} {name:?} is held by job {job} ({}); wait for it or cancel it", kind.name())
            }
            None => format!("{what} {name:?} is held by job {job}; wait for it or cancel it"),
        };
        Err(Problem { job: Some(job), ..Problem::new(ErrorCode::Busy, detail) })
    }

    fn disk(&self, id: Id) -> Result<&'a Disk, Problem> {
        match self.state.disks.get(&id) {
            Some(disk) if self.sees(&disk.project) => Ok(disk),
            _ => refuse(ErrorCode::NotFound, format!("there is no disk {id}")),
        }
    }

    fn disk_record(&self, id: Id) -> Result<&'a Disk, Problem> {
        self.state
            .disks
            .get(&id)
            .ok_or_else(|| Problem::new(ErrorCode::Internal, format!("the record of disk {id} is missing")))
    }

    fn snapshot(&self, id: Id) -> Result<&'a Snapshot, Problem> {
        match self.state.snapshots.get(&id) {
            Some(snapshot) if self.sees(&snapshot.project) => Ok(snapshot),
            _ => refuse(ErrorCode::NotFound, format!("there is no snapshot {id}")),
        }
    }

    fn node(&self, id: Id) -> Result<&'a Node, Problem> {
        match self.state.nodes.get(&id) {
            Some(node) => Ok(node),
            None => refuse(ErrorCode::NotFound, format!("there is no node {id}")),
        }
    }

    /// An image by name or id; a project's own before everybody's.
    fn image(&self, wanted: &str, project: &str) -> Result<&'a Image, Problem> {
        let visible = |image: &&Image| match &image.project {
            Some(owner) => owner == project,
            None => true,
        };
        let found = match wanted.parse::<Id>() {
            Ok(id) => self.state.images.get(&id).filter(visible),
            Err(_) => {
                let named =
                    || self.state.images.values().filter(|image| image.name == wanted).filter(visible);
                named().find(|image| image.project.is_some()).or_else(|| named().next())
            }
        };
        match found {
            Some(image) if image.ready => Ok(image),
            Some(image) => refuse(ErrorCode::WrongState, format!("image {:?} is not there yet", image.name)),
            None => refuse(ErrorCode::NotFound, format!("there is no image {wanted:?}")),
        }
    }

    /// What the node's hypervisor can do. A node that was never seen cannot be planned for.
    fn capabilities(&self, node: &Node) -> Result<&'a Capabilities, Problem> {
        let known = self.state.capabilities.get(&node.id);
        let detail = || format!("node {:?} was not seen yet; try again when it is", node.name);
        known.ok_or_else(|| Problem::new(ErrorCode::NodeUnreachable, detail()))
    }

    /// Work on an instance needs its node.
    fn reachable(&self, node: Id) -> Result<&'a Node, Problem> {
        let node = self.node(node)?;
        if node.state == NodeState::Unreachable {
            let detail =
                format!("node {:?} does not answer; nothing can be changed on it until it does", node.name);
            return refuse(ErrorCode::NodeUnreachable, detail);
        }
        Ok(node)
    }
}

/// Names of things: they become host names, parts of file names and labels.
pub(super) fn valid_name(what: &str, text: &str) -> Result<(), Problem> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && text.as_bytes()[0].is_ascii_alphanumeric();
    match fits {
        true => Ok(()),
        false => refuse(
            ErrorCode::InvalidRequest,
            format!("{what} {text:?}: 1 to 63 letters, digits, '-', '.', '_', the first a letter or digit"),
        ),
    }
}

/// Whether the disk may hold a customer's data.
pub(super) fn holds_data(disk: &Disk) -> bool {
    disk.state != DiskState::Creating
}

fn instances(id: Id) -> String {
    name("instances", id)
}

fn disks(id: Id) -> String {
    name("disks", id)
}
