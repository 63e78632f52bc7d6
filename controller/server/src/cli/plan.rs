//! `plan`: what would happen. Nothing is changed.

use super::failure::{Failure, REFUSED, Result, why};
use super::instance_request::{ChangeArguments, CopyArguments, CreateArguments};
use super::session::{Flags, Scope, Session, print, print_json};
use super::table::{Details, Table};
use super::units::{mib, stretch, word, yes_or_no};
use crate::config::FileFlag;
use crate::model::{Plan, PlanRequest, PowerVerb};

/// `plan …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

/// Which instance.
#[derive(Debug, clap::Args)]
struct One {
    /// Name or id.
    instance: String,
}

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "The exit status is 0 if it would be accepted, 1 if it would be refused.")]
enum Verb {
    /// What making an instance would do, with the flags of `instance create`.
    #[command(
        after_help = "Example:\n  uvm-controller plan create web --image debian --vcpus 2 --memory 4GiB --disk 20GiB"
    )]
    Create(Box<CreateArguments>),
    /// What changing an instance would do, with the flags of `instance change`.
    #[command(after_help = "Example:\n  uvm-controller plan change web --memory 8GiB")]
    Change(ChangeArguments),
    /// What copying an instance would do.
    Copy(CopyArguments),
    /// What deleting an instance would do.
    Delete(One),
    /// What switching an instance on would do.
    Start(One),
    /// What asking the guest to power off would do.
    Shutdown(One),
    /// What powering off at once would do.
    Destroy(One),
    /// What holding an instance would do.
    Suspend(One),
    /// What going on would do.
    Resume(One),
    /// What resetting an instance would do.
    Reboot(One),
    /// What taking a snapshot would do.
    Snapshot(One),
    /// What giving an instance the contents of a snapshot would do.
    Restore {
        /// Name or id.
        instance: String,
        /// Name or id of the snapshot.
        snapshot: String,
    },
    /// What capturing an image would do.
    SaveImage(One),
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        let request = self.verb.request(&session)?;
        let document = session.client.ask("/v1/plans", &request)?;
        let plan: Plan = super::client::record(document.clone())?;
        match session.json {
            true => print_json(&document)?,
            false => print(&shown(&plan))?,
        }
        match plan.feasible {
            true => Ok(()),
            // What is to be said stands in the plan.
            false => Err(Failure { status: REFUSED, text: String::new(), problem: None }),
        }
    }
}

impl Verb {
    fn request(self, session: &Session) -> Result<PlanRequest> {
        let id = |one: &One| session.id("instances", &one.instance);
        let power = |one: One, verb| Ok(PlanRequest::Power { instance: id(&one)?, verb });
        match self {
            Self::Create(create) => {
                let request = Box::new(create.request(session.project.as_deref())?);
                Ok(PlanRequest::CreateInstance { request })
            }
            Self::Change(change) => {
                let instance = session.id("instances", &change.instance)?;
                Ok(PlanRequest::ChangeInstance { instance, request: change.request(session, instance)? })
            }
            Self::Copy(copy) => {
                let instance = session.id("instances", &copy.instance)?;
                Ok(PlanRequest::CopyInstance { instance, request: copy.request() })
            }
            Self::Delete(one) => Ok(PlanRequest::DeleteInstance { instance: id(&one)? }),
            Self::Start(one) => power(one, PowerVerb::Start),
            Self::Shutdown(one) => power(one, PowerVerb::Shutdown),
            Self::Destroy(one) => power(one, PowerVerb::Destroy),
            Self::Suspend(one) => power(one, PowerVerb::Suspend),
            Self::Resume(one) => power(one, PowerVerb::Resume),
            Self::Reboot(one) => power(one, PowerVerb::Reboot),
            Self::Snapshot(one) => Ok(PlanRequest::CreateSnapshot { instance: id(&one)? }),
            Self::Restore { instance, snapshot } => Ok(PlanRequest::RestoreSnapshot {
                instance: session.id("instances", &instance)?,
                snapshot: session.id("snapshots", &snapshot)?,
            }),
            Self::SaveImage(one) => Ok(PlanRequest::SaveImage { instance: id(&one)? }),
        }
    }
}

fn shown(plan: &Plan) -> String {
    let numa: Vec<String> = plan
        .numa
        .iter()
        .map(|share| format!("{}={}:{}", share.numa, share.vcpus, mib(share.memory_mib)))
        .collect();
    let mut details = Details::default();
    details
        .add("plan", word(&plan.kind))
        .add("would be", if plan.feasible { "accepted" } else { "refused" })
        .add("reason", plan.reason.clone().unwrap_or_default());
    let reason = plan.reason.as_deref().unwrap_or_default();
    for (name, value) in plan.refusal.iter().flat_map(|refusal| why(refusal, reason)) {
        details.add(name, value);
    }
    if plan.feasible {
        details
            .add("node", plan.node.clone().unwrap_or_default())
            .add("numa", numa.join(" "))
            .add("restart", yes_or_no(plan.restart))
            .add("interrupts", yes_or_no(plan.interrupts));
    }
    for note in &plan.notes {
        details.add("note", note);
    }
    if plan.steps.is_empty() {
        return details.to_string();
    }
    let mut steps = Table::new(&[">STEP", "NAME", ">DEADLINE", "UNDONE BY", "WHAT"]);
    for (index, step) in plan.steps.iter().enumerate() {
        steps.row([
            (index + 1).to_string(),
            step.name.clone(),
            stretch(u64::from(step.deadline_seconds) * 1_000),
            step.undo.clone(),
            step.description.clone(),
        ]);
    }
    format!("{details}\n\n{steps}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Fell, JobKind, PlannedStep, Refusal};

    fn plan() -> Plan {
        Plan {
            kind: JobKind::ChangeInstance,
            feasible: true,
            node: Some("n1".to_owned()),
            numa: Vec::new(),
            steps: vec![PlannedStep {
                name: "set-memory".to_owned(),
                description: "give it 8 GiB".to_owned(),
                deadline_seconds: 60,
                undo: String::new(),
            }],
            restart: true,
            interrupts: true,
            notes: vec!["the guest is shut down first".to_owned()],
            reason: None,
            refusal: None,
        }
    }

    #[test]
    fn a_plan_says_what_would_happen() {
        let text = shown(&plan());
        for line in [
            "would be:    accepted",
            "node:        n1",
            "restart:     yes",
            "note:        the guest is shut down first",
            "   1  set-memory     1m00s  -          give it 8 GiB",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_would_fit() {
        let refusal = Refusal {
            considered: 2,
            fell: vec![Fell { filter: "memory".to_owned(), nodes: 2 }],
            least_change: Some("1024 MiB less memory".to_owned()),
        };
        let text = shown(&Plan {
            feasible: false,
            steps: Vec::new(),
            reason: Some("no node fits".to_owned()),
            refusal: Some(Box::new(refusal)),
            ..plan()
        });
        for part in ["refused", "no node fits", "2 considered: 2 at memory fell", "1024 MiB less memory"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("restart"), "{text}");
    }
}
