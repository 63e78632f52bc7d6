//! Placement asked; nodes, images and tokens.

use super::create::Wanted;
use super::draft::Draft;
use super::{Drafted, Planner, refuse, valid_name};
use crate::core::command::Caller;
use crate::core::grid::Ask;
use crate::model::{
    ErrorCode, Id, Image, ImageContents, Instance, NewImage, NewNode, Node, NodeCapacity, NodeChange,
    NodeState, NumaShare, Problem, Role, Token, UtilityVmStatus,
};
use crate::store::Table;

const MAX_LABELS: usize = 64;
const MAX_TEXT: usize = 255;

impl Planner<'_> {
    /// The node of a new machine.
    pub(super) fn place(&self, wanted: &Wanted<'_>) -> Result<(Id, Vec<NumaShare>), Problem> {
        let placement = wanted.placement;
        if let Some(group) = &placement.group {
            valid_name("group", &group.name)?;
        }
        let of_image = wanted.image.map(|image| image.hypervisors.as_slice()).unwrap_or_default();
        let asked = placement.hypervisors.as_slice();
        let allowed: Vec<&str> = match (asked.is_empty(), of_image.is_empty()) {
            (false, false) => {
                asked.iter().filter(|kind| of_image.contains(kind)).map(String::as_str).collect()
            }
            (false, true) => asked.iter().map(String::as_str).collect(),
            (true, _) => of_image.iter().map(String::as_str).collect(),
        };
        if allowed.is_empty() && !(asked.is_empty() && of_image.is_empty()) {
            let detail = format!("the image runs under {of_image:?}, the request allows {asked:?}");
            return refuse(ErrorCode::InvalidRequest, detail);
        }
        let ask = Ask {
            project: wanted.project,
            vcpus: wanted.vcpus,
            memory_mib: wanted.memory_mib,
            storage_mib: wanted.storage_mib,
            placement,
            architecture: wanted.image.map_or("amd64", |image| image.architecture.as_str()),
            guest_os: wanted.image.map(|image| image.os.as_str()),
            hypervisors: allowed,
        };
        self.state.grid.place(&ask).map_err(|refusal| {
            let fell: Vec<String> =
                refusal.fell.iter().map(|fell| format!("{} at {}", fell.nodes, fell.filter)).collect();
            let mut detail = format!("of {} nodes none fits", refusal.considered);
            if !fell.is_empty() {
                detail = format!("{detail}: {}", fell.join(", "));
            }
            if let Some(change) = &refusal.least_change {
                detail = format!("{detail}; what would fit: {change}");
            }
            Problem { refusal: Some(Box::new(refusal)), ..Problem::new(ErrorCode::NoCapacity, detail) }
        })
    }

    /// Room for more of a node's pool.
    pub(super) fn storage_for(&self, node: Id, more_mib: u64) -> Result<(), Problem> {
        let free = self.state.grid.free_storage(node);
        if more_mib <= free {
            return Ok(());
        }
        let name = self.state.nodes.get(&node).map(|node| node.name.as_str()).unwrap_or_default();
        let detail = format!(
            "the pool of node {name:?} has {free} MiB left, {more_mib} MiB are needed; delete snapshots or disks there"
        );
        refuse(ErrorCode::NoCapacity, detail)
    }

    /// What an instance holds while it is changed: of each amount the larger one.
    pub(super) fn resize(
        &self,
        instance: &Instance,
        vcpus: u32,
        memory_mib: u64,
        more_storage_mib: u64,
    ) -> Result<Vec<NumaShare>, Problem> {
        self.storage_for(instance.node, more_storage_mib)?;
        let (vcpus, memory_mib) = (vcpus.max(instance.vcpus), memory_mib.max(instance.memory_mib));
        self.state.grid.resized(instance, vcpus, memory_mib).map_err(|missing| {
            let name = self.state.nodes.get(&instance.node).map(|node| node.name.as_str()).unwrap_or_default();
            let detail = format!(
                "node {name:?} is full: {missing}. This version does not move machines to another node; free something \
                 there, ask for less, or copy the machine, which is placed anew"
            );
            Problem::new(ErrorCode::NoCapacity, detail)
        })
    }

    /// An OCI image anybody may be made of.
    pub(super) fn create_image(&mut self, request: &NewImage) -> Drafted {
        valid_name("name", &request.name)?;
        let project = match (self.caller, &request.project) {
            (Caller::Operator, None) => None,
            (_, wanted) => Some(self.project(wanted.as_ref())?),
        };
        if self.state.images.values().any(|image| image.project == project && image.name == request.name) {
            return refuse(ErrorCode::NameTaken, format!("there is an image {:?} already", request.name));
        }
        let digest = request.digest.strip_prefix("sha256:").unwrap_or_default();
        if digest.len() != 64 || !digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            let detail =
                format!("digest: {:?} is not sha256: and 64 lower case hexadecimal digits", request.digest);
            return refuse(ErrorCode::InvalidRequest, detail);
        }
        for word in request.hypervisors.iter().chain([&request.architecture, &request.os]) {
            valid_name("word", word)?;
        }
        let id = self.ids.id(self.now);
        let image = Image {
            id,
            project: project.clone(),
            name: request.name.clone(),
            contents: ImageContents::Oci {
                source: request.source.clone(),
                reference: request.reference.clone(),
                digest: request.digest.clone(),
            },
            architecture: request.architecture.clone(),
            os: request.os.clone(),
            min_disk_mib: request.min_disk_mib,
            min_memory_mib: request.min_memory_mib,
            hypervisors: request.hypervisors.clone(),
            ready: true,
            active_job: None,
            generation: 1,
            created_at: self.now,
        };
        let words = format!("image {} is registered", image.name);
        let mut draft = Draft::at_once("images", id, ("image.created", words));
        draft.project = project;
        Ok(draft.put(image))
    }

    /// Forgotten; machines made of it stay as they are.
    pub(super) fn delete_image(&mut self, id: Id) -> Drafted {
        let image = self.state.images.get(&id).filter(|image| match &image.project {
            Some(project) => self.sees(project),
            None => matches!(self.caller, Caller::Operator),
        });
        let Some(image) = image else {
            return refuse(ErrorCode::NotFound, format!("there is no image {id} that may be deleted"));
        };
        self.matches(image.generation)?;
        self.free("image", &image.name, image.active_job)?;
        let uses = |job: &&crate::core::JobRecord| {
            job.plan.iter().any(|step| match &step.action {
                crate::core::Action::Provision { image, .. } | crate::core::Action::Restore { image, .. } => {
                    *image == id
                }
                _ => false,
            })
        };
        if let Some(job) = self.state.jobs.values().find(uses) {
            return self.free("image", &image.name, Some(job.job.id)).and(refuse(ErrorCode::Busy, "in use"));
        }
        let words = format!("image {} is forgotten", image.name);
        let mut draft = Draft::at_once("images", id, ("image.deleted", words));
        draft.project.clone_from(&image.project);
        draft.removes.push((Table::Images, id));
        draft.forget_blob = matches!(image.contents, ImageContents::Disk { .. }).then_some(id);
        Ok(draft)
    }

    /// A node from now on; it is looked at at once, and its utility VM started.
    pub(super) fn create_node(&mut self, request: &NewNode) -> Drafted {
        if matches!(self.caller, Caller::Tenant { .. }) {
            self.operator_only()?;
        }
        valid_name("name", &request.name)?;
        valid_name("hypervisor", &request.hypervisor)?;
        valid_name("architecture", &request.architecture)?;
        if self.state.node_named(&request.name).is_some() {
            return refuse(ErrorCode::NameTaken, format!("there is a node {:?} already", request.name));
        }
        let same = |node: &&Node| node.hypervisor == request.hypervisor && node.address == request.address;
        if let Some(other) = self.state.nodes.values().find(same).filter(|_| !request.address.is_empty()) {
            let detail = format!("{:?} is the address of node {:?} already", request.address, other.name);
            return refuse(ErrorCode::NameTaken, detail);
        }
        let id = self.ids.id(self.now);
        let node = Node {
            id,
            name: request.name.clone(),
            hypervisor: request.hypervisor.clone(),
            address: request.address.clone(),
            architecture: request.architecture.clone(),
            // Until it is known: nothing fits.
            capacity: request.capacity.clone().unwrap_or_else(|| NodeCapacity {
                numa: vec![crate::model::NumaCapacity::default()],
                storage_mib: 0,
            }),
            capacity_found: request.capacity.is_none(),
            labels: request.labels.clone(),
            fault_domain: request.fault_domain.clone(),
            licenses: request.licenses.clone(),
            dedicated_to: request.dedicated_to.clone(),
            suitability: request.suitability,
            cordoned: false,
            state: NodeState::Joining,
            seen_at: 0,
            utility_vm: UtilityVmStatus::default(),
            active_job: None,
            generation: 1,
            created_at: self.now,
        };
        self.check_node(&node)?;
        let words = format!("node {} is registered", node.name);
        let mut draft = Draft::at_once("nodes", id, ("node.created", words)).put(node);
        if let Caller::Enrolment { token } = self.caller {
            draft.removes.push((Table::Tokens, *token));
        }
        Ok(draft)
    }

    fn check_node(&self, node: &Node) -> Result<(), Problem> {
        let invalid = |detail: String| refuse(ErrorCode::InvalidRequest, detail);
        if node.labels.len() > MAX_LABELS || node.licenses.len() > MAX_LABELS {
            return invalid(format!("more than {MAX_LABELS} labels or licenses"));
        }
        let words = node.labels.iter().flat_map(|(key, value)| [key, value]);
        for word in words.chain(node.licenses.keys()).chain([&node.fault_domain]).chain(&node.dedicated_to) {
            if word.len() > MAX_TEXT || word.contains(['=', ',']) {
                return invalid(format!(
                    "{word:?}: labels and names have up to {MAX_TEXT} bytes, no '=' and no ','"
                ));
            }
        }
        self.state.grid.check_node(node).map_err(|detail| Problem::new(ErrorCode::InvalidRequest, detail))
    }

    /// Cordoned, uncordoned, other labels, other capacity.
    pub(super) fn change_node(&mut self, id: Id, change: &NodeChange) -> Drafted {
        self.operator_only()?;
        let node = self.node(id)?;
        self.matches(node.generation)?;
        let mut new = Node { generation: node.generation + 1, ..node.clone() };
        let mut words = Vec::new();
        if let Some(cordoned) = change.cordoned {
            new.cordoned = cordoned;
            words.push(if cordoned { "cordoned" } else { "uncordoned" });
        }
        if let Some(labels) = &change.labels {
            new.labels.clone_from(labels);
            words.push("labelled");
        }
        if let Some(capacity) = &change.capacity {
            new.capacity.clone_from(capacity);
            new.capacity_found = false;
            words.push("given another capacity");
        }
        self.check_node(&new)?;
        let words = format!("node {} is {}", node.name, words.join(", "));
        Ok(Draft::at_once("nodes", id, ("node.changed", words)).put(new))
    }

    /// Forgotten, where nothing is on it.
    pub(super) fn delete_node(&mut self, id: Id) -> Drafted {
        self.operator_only()?;
        let node = self.node(id)?;
        self.matches(node.generation)?;
        self.free("node", &node.name, node.active_job)?;
        let (instances, disks) = (self.state.instances_on(id).count(), self.state.disks_on(id).count());
        if instances + disks > 0 {
            let detail = format!(
                "node {:?} has {instances} instances and {disks} disks; delete them first (quarantined disks too)",
                node.name
            );
            return refuse(ErrorCode::WrongState, detail);
        }
        let words = format!("node {} is forgotten", node.name);
        let mut draft = Draft::at_once("nodes", id, ("node.deleted", words));
        draft.removes.push((Table::Nodes, id));
        Ok(draft)
    }

    /// A token whose secret only the caller knows.
    pub(super) fn create_token(&mut self, token: &Token) -> Drafted {
        self.operator_only()?;
        if token.name.is_empty() || token.name.len() > MAX_TEXT {
            return refuse(ErrorCode::InvalidRequest, format!("name: 1 to {MAX_TEXT} bytes"));
        }
        match (token.role, &token.project) {
            (Role::Tenant, Some(project)) => valid_name("project", project)?,
            (Role::Tenant, None) => {
                return refuse(ErrorCode::InvalidRequest, "a tenant's token needs a project");
            }
            (_, Some(_)) => return refuse(ErrorCode::InvalidRequest, "only a tenant's token has a project"),
            _ => {}
        }
        let words = format!("token {:?} is issued", token.name);
        Ok(Draft::at_once("tokens", token.id, ("token.created", words)).put(token.clone()))
    }

    /// Worth nothing from now on.
    pub(super) fn delete_token(&mut self, id: Id) -> Drafted {
        self.operator_only()?;
        let Some(token) = self.state.tokens.get(&id) else {
            return refuse(ErrorCode::NotFound, format!("there is no token {id}"));
        };
        let last = self.state.tokens.values().filter(|token| token.role == Role::Operator).count() == 1;
        if token.role == Role::Operator && last {
            return refuse(
                ErrorCode::WrongState,
                "this is the last operator's token; issue another one first",
            );
        }
        let words = format!("token {:?} is revoked", token.name);
        let mut draft = Draft::at_once("tokens", id, ("token.deleted", words));
        draft.removes.push((Table::Tokens, id));
        Ok(draft)
    }
}
