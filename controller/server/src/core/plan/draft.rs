//! The draft: what a request would change, and the job that does it.

use crate::core::Now;
use crate::core::state::State;
use crate::core::work::{Action, JobRecord, Place, Planned};
use crate::model::{Accepted, Id, Job, JobKind, JobState, Plan, PlannedStep, Step, StepState};
use crate::store::{Record, Table};

/// How long one attempt of a step may take, in seconds.
pub(crate) mod deadline {
    pub(crate) const HYPERVISOR: u64 = 60;
    pub(crate) const ATTACH: u64 = 120;
    pub(crate) const UTILITY_VM: u64 = 180;
    pub(crate) const SHUTDOWN: u64 = 90;
    pub(crate) const PROVISION: u64 = 3_600;
    pub(crate) const WHOLE_DISK: u64 = 86_400;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) accepted: Accepted,
    pub(crate) puts: Vec<Record>,
    pub(crate) removes: Vec<(Table, Id)>,
    pub(crate) job: Option<JobRecord>,
    pub(crate) restart: bool,
    pub(crate) interrupts: bool,
    pub(crate) notes: Vec<String>,
    /// Kind and words of the event.
    pub(crate) event: (&'static str, String),
    pub(crate) project: Option<String>,
    /// Captured contents nobody needs any more.
    pub(crate) forget_blob: Option<Id>,
}

impl Draft {
    /// A change that is done at once.
    pub(super) fn at_once(table: &str, id: Id, event: (&'static str, String)) -> Self {
        Self {
            accepted: Accepted { subject: crate::core::state::name(table, id), id, job: None },
            puts: Vec::new(),
            removes: Vec::new(),
            job: None,
            restart: false,
            interrupts: false,
            notes: Vec::new(),
            event,
            project: None,
            forget_blob: None,
        }
    }

    pub(super) fn put(mut self, record: impl Into<Record>) -> Self {
        self.puts.push(record.into());
        self
    }

    /// What `plans` shows.
    pub(crate) fn show(&self, state: &State) -> Option<Plan> {
        let record = self.job.as_ref()?;
        let made = self.puts.iter().find_map(|record| match record {
            Record::Instance(instance) if instance.id == self.accepted.id => Some(instance),
            _ => None,
        });
        let node = made.map(|instance| instance.node).or(record.job.node);
        let steps = record.plan.iter().zip(&record.job.steps).map(|(planned, step)| PlannedStep {
            name: step.name.clone(),
            description: step.description.clone(),
            deadline_seconds: step.deadline_seconds,
            undo: planned.undo.iter().map(Action::name).collect::<Vec<_>>().join(", "),
        });
        Some(Plan {
            kind: record.job.kind,
            feasible: true,
            node: node.and_then(|id| state.nodes.get(&id)).map(|node| node.name.clone()),
            numa: made.map(|instance| instance.numa.clone()).unwrap_or_default(),
            steps: steps.collect(),
            restart: self.restart,
            interrupts: self.interrupts,
            notes: self.notes.clone(),
            reason: None,
            refusal: None,
        })
    }
}

/// The steps of a job in the making.
#[derive(Debug, Default)]
pub(super) struct Steps {
    plan: Vec<Planned>,
    shown: Vec<Step>,
    names: Vec<(Id, String)>,
}

impl Steps {
    /// What a thing is called in descriptions.
    pub(super) fn call(&mut self, id: Id, name: &str) {
        self.names.push((id, name.to_owned()));
    }

    pub(super) fn add(&mut self, action: Action, undo: &[Action], seconds: u64) -> &mut Self {
        let shown = Step {
            name: action.name().to_owned(),
            description: action.describe(&|id| {
                let found = self.names.iter().find(|(known, _)| *known == id);
                found.map_or_else(|| id.to_string(), |(_, name)| name.clone())
            }),
            state: StepState::Pending,
            attempts: 0,
            deadline_seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
            started_at: None,
            ended_at: None,
            message: String::new(),
        };
        self.plan.push(Planned { action, undo: undo.to_vec(), deadline_ms: seconds * 1000 });
        self.shown.push(shown);
        self
    }

    /// The utility VM in service.
    pub(super) fn utility_vm(&mut self, node: Id) -> &mut Self {
        self.add(Action::EnsureUtilityVm { node }, &[], deadline::UTILITY_VM)
    }

    /// A volume; deleted again where a later step fails, and before that sanitized where it may have been written to.
    pub(super) fn create_volume(&mut self, disk: Id) -> &mut Self {
        let to = Place::Utility;
        let undo = [
            Action::Attach { disk, to },
            Action::Sanitize { disk },
            Action::Detach { disk, from: to },
            Action::DeleteVolume { disk },
        ];
        self.add(Action::CreateVolume { disk }, &undo, deadline::HYPERVISOR)
    }

    pub(super) fn attach(&mut self, disk: Id, to: Place) -> &mut Self {
        self.add(Action::Attach { disk, to }, &[Action::Detach { disk, from: to }], deadline::ATTACH)
    }

    pub(super) fn detach(&mut self, disk: Id, from: Place) -> &mut Self {
        self.add(Action::Detach { disk, from }, &[], deadline::ATTACH)
    }

    /// A job of the utility VM that writes customers' data.
    pub(super) fn fill(&mut self, action: Action, node: Id, seconds: u64) -> &mut Self {
        self.add(action, &[Action::CancelUvmJob { node }], seconds)
    }

    /// Sanitized, and its volume deleted. Only in jobs that go on to their end.
    pub(super) fn erase(&mut self, disk: Id, node: Id) -> &mut Self {
        let to = Place::Utility;
        self.add(Action::EnsureUtilityVm { node }, &[], deadline::UTILITY_VM);
        self.add(Action::Attach { disk, to }, &[], deadline::ATTACH);
        self.add(Action::Sanitize { disk }, &[], deadline::WHOLE_DISK);
        self.add(Action::Detach { disk, from: to }, &[], deadline::ATTACH);
        self.add(Action::DeleteVolume { disk }, &[], deadline::HYPERVISOR)
    }

    /// The job.
    pub(super) fn job(self, id: Id, kind: JobKind, now: Now, subject: String, node: Id) -> JobRecord {
        let deadline = now + self.plan.first().map_or(0, |step| step.deadline_ms);
        JobRecord {
            job: Job {
                id,
                kind,
                project: None,
                subject,
                node: Some(node),
                state: JobState::Running,
                cancel_requested: false,
                steps: self.shown,
                progress: None,
                problem: None,
                created_at: now,
                ended_at: None,
            },
            plan: self.plan,
            at: 0,
            undo_at: 0,
            firm_from: None,
            deadline,
            holds: Vec::new(),
            config: None,
            change: None,
            desired_before: None,
            records: Vec::new(),
        }
    }
}

/// A job of one step on a node itself, that takes nothing back.
pub(in crate::core) fn node_job(
    state: &State,
    (now, job): (Now, Id),
    node: Id,
    action: Action,
    kind: JobKind,
) -> Draft {
    let mut steps = Steps::default();
    let subject = crate::core::state::name("nodes", node);
    let mut draft = Draft::at_once("nodes", node, ("node.job", String::new()));
    if let Some(found) = state.nodes.get(&node) {
        steps.call(node, &found.name);
        draft.event.1 = format!("node {}: {}", found.name, action.name());
        draft = draft.put(crate::model::Node { active_job: Some(job), ..found.clone() });
    }
    steps.add(action, &[], deadline::UTILITY_VM);
    let mut record = steps.job(job, kind, now, subject.clone(), node);
    record.holds = vec![subject];
    draft.accepted.job = Some(job);
    draft.job = Some(record);
    draft
}

impl Action {
    /// The step's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::EnsureUtilityVm { .. } => "utility-vm",
            Self::RestartUtilityVm { .. } => "restart-utility-vm",
            Self::CreateVolume { .. } => "create-volume",
            Self::DeleteVolume { .. } => "delete-volume",
            Self::GrowVolume { .. } => "grow-volume",
            Self::MeasureVolume { .. } => "measure-volume",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Provision { .. } => "provision",
            Self::Clone { .. } => "clone",
            Self::Capture { .. } => "capture",
            Self::Restore { .. } => "restore",
            Self::CancelUvmJob { .. } => "cancel-uvm-job",
            Self::Sanitize { .. } => "sanitize",
            Self::SetHostname { .. } => "set-hostname",
            Self::Define { .. } => "define",
            Self::Undefine { .. } => "undefine",
            Self::Power { verb, .. } => verb.name(),
            Self::SetVcpus { .. } => "set-vcpus",
            Self::SetMemory { .. } => "set-memory",
            Self::SetIoLimits { .. } => "set-io-limits",
            Self::MeasureDomain { .. } => "measure-domain",
            Self::RemoveDomain { .. } => "remove-domain",
        }
    }

    /// In words; `name` tells what a thing is called.
    fn describe(&self, name: &dyn Fn(Id) -> String) -> String {
        let place = |place: &Place| match place {
            Place::Utility => "the utility VM",
            Place::UtilityReadOnly => "the utility VM, read-only",
            Place::Instance => "its instance",
        };
        match self {
            Self::Nothing => "Nothing".to_owned(),
            Self::EnsureUtilityVm { node } => format!("The utility VM of {} is in service", name(*node)),
            Self::RestartUtilityVm { node } => format!("Start the utility VM of {} anew", name(*node)),
            Self::CreateVolume { disk } => format!("Create the volume of disk {}", name(*disk)),
            Self::DeleteVolume { disk } => format!("Delete the volume of disk {}", name(*disk)),
            Self::GrowVolume { disk, size_mib } => {
                format!("Grow the volume of disk {} to {size_mib} MiB", name(*disk))
            }
            Self::MeasureVolume { disk } => format!("See what size the volume of disk {} has", name(*disk)),
            Self::Attach { disk, to } => format!("Attach disk {} to {}", name(*disk), place(to)),
            Self::Detach { disk, from } => format!("Detach disk {} from {}", name(*disk), place(from)),
            Self::Provision { disk, image } => {
                format!("Make disk {} a machine of image {}", name(*disk), name(*image))
            }
            Self::Clone { source, target } => format!("Copy disk {} onto {}", name(*source), name(*target)),
            Self::Capture { disk, image } => {
                format!("Capture disk {} as image {}", name(*disk), name(*image))
            }
            Self::Restore { image, disk } => format!("Write image {} to disk {}", name(*image), name(*disk)),
            Self::CancelUvmJob { .. } => "End the utility VM's job".to_owned(),
            Self::Sanitize { disk } => format!("Overwrite disk {} at random and read it back", name(*disk)),
            Self::SetHostname { hostname, .. } => format!("Set the host name to {hostname}"),
            Self::Define { instance } => format!("Define the domain of {}", name(*instance)),
            Self::Undefine { instance } => format!("Undefine the domain of {}", name(*instance)),
            Self::Power { instance, verb } => format!("{} {}", verb.describe(), name(*instance)),
            Self::SetVcpus { vcpus, .. } => format!("Set the running domain's CPUs to {vcpus}"),
            Self::SetMemory { memory_mib, .. } => {
                format!("Set the running domain's memory to {memory_mib} MiB")
            }
            Self::SetIoLimits { disk, .. } => format!("Set the I/O limits of disk {}", name(*disk)),
            Self::MeasureDomain { instance } => format!("See what the domain of {} has", name(*instance)),
            Self::RemoveDomain { domain, .. } => format!("Remove the left-over domain {domain}"),
        }
    }
}
