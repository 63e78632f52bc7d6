//! Control messages.

use super::draft::{Draft, Steps, deadline};
use super::{Drafted, Planner, instances, refuse};
use crate::core::Now;
use crate::core::work::{Action, JobRecord};
use crate::model::{ErrorCode, Id, Instance, JobKind, PowerState, PowerVerb};

impl PowerVerb {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Shutdown => "shutdown",
            Self::Destroy => "destroy",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Reboot => "reboot",
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Shutdown => "Ask to power off",
            Self::Destroy => "Power off",
            Self::Suspend => "Suspend",
            Self::Resume => "Resume",
            Self::Reboot => "Reset",
        }
    }

    fn kind(self) -> JobKind {
        match self {
            Self::Start => JobKind::Start,
            Self::Shutdown => JobKind::Shutdown,
            Self::Destroy => JobKind::Destroy,
            Self::Suspend => JobKind::Suspend,
            Self::Resume => JobKind::Resume,
            Self::Reboot => JobKind::Reboot,
        }
    }

    /// What an instance does after it.
    pub(crate) fn leads_to(self) -> PowerState {
        match self {
            Self::Start | Self::Resume | Self::Reboot => PowerState::Running,
            Self::Shutdown | Self::Destroy => PowerState::Stopped,
            Self::Suspend => PowerState::Paused,
        }
    }
}

impl Planner<'_> {
    /// A control message to an instance.
    pub(super) fn power(&mut self, id: Id, verb: PowerVerb) -> Drafted {
        let instance = self.free_instance(id)?;
        let node = self.reachable(instance.node)?;
        let can = self.capabilities(node)?;
        use PowerState::{Absent, Crashed, Paused, Running, Stopped};
        let fits = match verb {
            PowerVerb::Start => matches!(instance.observed_state, Stopped | Crashed | Absent | Running),
            PowerVerb::Shutdown | PowerVerb::Reboot => instance.observed_state == Running,
            PowerVerb::Destroy => true,
            PowerVerb::Suspend => matches!(instance.observed_state, Running | Paused),
            PowerVerb::Resume => matches!(instance.observed_state, Running | Paused),
        };
        if !fits {
            let detail = format!(
                "instance {:?} is {:?}: {} makes no sense",
                instance.name,
                instance.observed_state,
                verb.name()
            );
            return refuse(ErrorCode::WrongState, detail.to_lowercase());
        }
        let able = match verb {
            PowerVerb::Suspend | PowerVerb::Resume => can.suspend,
            PowerVerb::Shutdown => can.shutdown,
            _ => true,
        };
        if !able {
            let detail = format!(
                "the hypervisor of node {:?} ({}) has no {}",
                node.name,
                node.hypervisor,
                verb.name()
            );
            return refuse(ErrorCode::Unsupported, detail);
        }
        let job = self.ids.id(self.now);
        let record = power_job(instance, verb, job, self.now);
        let words = format!("instance {}: {}", instance.name, verb.name());
        let mut draft = Draft::at_once("instances", id, ("instance.power", words));
        draft.interrupts = !matches!(verb, PowerVerb::Start | PowerVerb::Resume);
        draft.restart = verb == PowerVerb::Reboot;
        draft.project = Some(instance.project.clone());
        draft.accepted.job = Some(job);
        draft.job = Some(record);
        Ok(draft.put(Instance {
            active_job: Some(job),
            desired_state: verb.leads_to(),
            generation: instance.generation + 1,
            restarts: 0,
            ..instance.clone()
        }))
    }
}

fn power_job(instance: &Instance, verb: PowerVerb, job: Id, now: Now) -> JobRecord {
    let mut steps = Steps::default();
    steps.call(instance.id, &instance.name);
    if verb == PowerVerb::Start {
        // The domain may have gone with its host's disk: what the record says is defined again.
        steps.add(Action::Define { instance: instance.id }, &[], deadline::HYPERVISOR);
    }
    let seconds = if verb == PowerVerb::Shutdown { deadline::SHUTDOWN } else { deadline::HYPERVISOR };
    // What was not heard to be done may be done all the same.
    let back = match (verb, instance.observed_state) {
        (PowerVerb::Start, PowerState::Stopped | PowerState::Crashed | PowerState::Absent) => {
            Some(PowerVerb::Destroy)
        }
        (PowerVerb::Suspend, PowerState::Running) => Some(PowerVerb::Resume),
        _ => None,
    };
    let undo: Vec<Action> =
        back.into_iter().map(|verb| Action::Power { instance: instance.id, verb }).collect();
    steps.add(Action::Power { instance: instance.id, verb }, &undo, seconds);
    let mut record = steps.job(job, verb.kind(), now, instances(instance.id), instance.node);
    record.job.project = Some(instance.project.clone());
    record.holds = vec![instances(instance.id)];
    record.desired_before = Some(instance.desired_state);
    record
}

/// The start of an instance that ended without having been asked to.
pub(in crate::core) fn crash_restart(instance: &Instance, job: Id, now: Now) -> Draft {
    let words = format!("instance {} ended unasked and is started again", instance.name);
    let mut draft = Draft::at_once("instances", instance.id, ("instance.restarting", words));
    draft.project = Some(instance.project.clone());
    draft.job = Some(power_job(instance, PowerVerb::Start, job, now));
    draft.put(Instance {
        active_job: Some(job),
        restarts: instance.restarts + 1,
        // What was held in memory is gone.
        desired_state: PowerState::Running,
        ..instance.clone()
    })
}
