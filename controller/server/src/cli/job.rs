//! `job`: what the controller is doing, and did.

use super::client::{Method, Query, nothing};
use super::failure::{Failure, Result};
use super::session::{Flags, Follow, Recent, Scope, Session, name_of};
use super::table::{Details, Table};
use super::units::{age, now, parse_word, stretch, time, word};
use crate::config::FileFlag;
use crate::model::{Id, Job, JobKind, JobState, Step, StepState};

/// `job …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List jobs, the newest first.
    List {
        /// Those in this state: running, undoing, succeeded, failed, cancelled.
        #[arg(long = "in", value_name = "STATE", value_parser = parse_word::<JobState>)]
        in_state: Option<JobState>,
        /// Those that do this, as create-instance.
        #[arg(long, value_name = "KIND", value_parser = parse_word::<JobKind>)]
        kind: Option<JobKind>,
        /// Those on this node, by name or id.
        #[arg(long)]
        node: Option<String>,
        /// Those about this thing, as instances/0192….
        #[arg(long)]
        subject: Option<String>,
        #[command(flatten)]
        recent: Recent,
    },
    /// Show a job and its steps.
    Show {
        /// Id.
        job: Id,
    },
    /// Ask a job to take back what it did and end. One that cannot goes on to its end. With --watch the exit status
    /// is 0 only if it was taken back.
    Cancel {
        /// Id.
        job: Id,
        #[command(flatten)]
        follow: Follow,
    },
    /// Follow a job to its end; the exit status is 0 only if it succeeded.
    Watch {
        /// Id.
        job: Id,
    },
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        match self.verb {
            Verb::List { in_state, kind, node, subject, recent } => {
                let mut query: Query = session.scoped();
                query.extend(in_state.map(|state| ("state", word(&state))));
                query.extend(kind.map(|kind| ("kind", word(&kind))));
                query.extend(node.map(|node| ("node", node)));
                query.extend(subject.map(|subject| ("subject", subject)));
                session.list("/v1/jobs", &query, recent.limit, |jobs| table(&session, jobs))
            }
            Verb::Show { job } => {
                let document = session.client.get(&format!("/v1/jobs/{job}"), &Vec::new())?;
                session.show(document, |job: &Job| Ok(details(job)))
            }
            Verb::Cancel { job, follow } => cancel(&session, job, follow),
            Verb::Watch { job } => session.follow(job),
        }
    }
}

/// Here the good end is that the job is taken back.
fn cancel(session: &Session, id: Id, follow: Follow) -> Result<()> {
    let path = format!("/v1/jobs/{id}/cancel");
    if !follow.watch {
        return session.ask(Method::Post, &path, follow);
    }
    session.client.change(Method::Post, &path, &nothing(), None)?;
    let job = session.watch(id)?;
    match job.state {
        JobState::Cancelled => Ok(()),
        state => Err(Failure::no(format!("job {id} was not taken back: {}", word(&state)))),
    }
}

fn took(from: Option<u64>, to: Option<u64>) -> String {
    from.zip(to).map(|(from, to)| stretch(to.saturating_sub(from))).unwrap_or_default()
}

/// The step a job is at, by its number and name.
fn at(job: &Job) -> String {
    let live = |step: &Step| matches!(step.state, StepState::Running | StepState::Undoing);
    let failed = |step: &Step| step.state == StepState::Failed;
    let found = job.steps.iter().position(live).or_else(|| job.steps.iter().position(failed));
    found.map(|at| format!("{}/{} {}", at + 1, job.steps.len(), job.steps[at].name)).unwrap_or_default()
}

fn table(session: &Session, jobs: &[Job]) -> Result<Table> {
    let nodes = session.names("nodes")?;
    let mut table =
        Table::new(&["ID", "KIND", "STATE", "STEP", "SUBJECT", "PROJECT", "NODE", ">TOOK", ">AGE"]);
    let now = now();
    for job in jobs {
        table.row([
            job.id.to_string(),
            word(&job.kind),
            word(&job.state),
            at(job),
            job.subject.clone(),
            job.project.clone().unwrap_or_default(),
            job.node.map(|node| name_of(&nodes, node)).unwrap_or_default(),
            took(Some(job.created_at), job.ended_at),
            age(now, job.created_at),
        ]);
    }
    Ok(table)
}

fn details(job: &Job) -> String {
    let mut details = Details::default();
    details
        .add("id", job.id.to_string())
        .add("kind", word(&job.kind))
        .add("subject", &job.subject)
        .add("project", job.project.clone().unwrap_or_default())
        .add("node", job.node.map(|node| node.to_string()).unwrap_or_default())
        .add("state", word(&job.state))
        .add("cancel", if job.cancel_requested { "asked for" } else { "" })
        .add("accepted", time(job.created_at))
        .add("ended", job.ended_at.map(time).unwrap_or_default())
        .add("took", took(Some(job.created_at), job.ended_at));
    let mut steps = Table::new(&[">STEP", "NAME", "STATE", ">TRIES", ">TOOK", "WHAT"]);
    for (index, step) in job.steps.iter().enumerate() {
        let words = if step.message.is_empty() { &step.description } else { &step.message };
        steps.row([
            (index + 1).to_string(),
            step.name.clone(),
            word(&step.state),
            step.attempts.to_string(),
            took(step.started_at, step.ended_at),
            words.clone(),
        ]);
    }
    let problem = job.problem.is_some().then(|| format!("\n\n{}", Failure::job(job).text));
    format!("{details}\n\n{steps}{}", problem.unwrap_or_default())
}
