//! `instance`: customers' machines.

use super::client::{Method, Query, record};
use super::failure::Result;
use super::instance_request::{ChangeArguments, CopyArguments, CreateArguments};
use super::session::{Flags, Follow, Limit, Scope, Session, name_of};
use super::statistics;
use super::table::{Details, Table};
use super::units::{age, mib, now, parse_word, time, word, yes_or_no};
use crate::config::FileFlag;
use crate::model::{Id, Instance, PowerState, RestoreRequest, SaveImageRequest, SnapshotRequest};

/// `instance …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

/// An instance, and whether its job is waited for.
#[derive(Debug, clap::Args)]
struct One {
    /// Name or id.
    instance: String,
    #[command(flatten)]
    follow: Follow,
}

/// An instance and a name for what is made of it.
#[derive(Debug, clap::Args)]
struct Named {
    /// Name or id.
    instance: String,
    /// Name of what is made.
    name: String,
    #[command(flatten)]
    follow: Follow,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List instances.
    List {
        /// Those on this node, by name or id.
        #[arg(long)]
        node: Option<String>,
        /// Those observed in this state: running, stopped, paused, crashed, absent, unknown.
        #[arg(long = "in", value_name = "STATE", value_parser = parse_word::<PowerState>)]
        in_state: Option<PowerState>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show an instance.
    Show {
        /// Name or id.
        instance: String,
    },
    /// Make an instance.
    #[command(
        after_help = "Examples:\n  uvm-controller instance create web --image debian --vcpus 2 --memory 4GiB \
        --disk 20GiB \\\n    --user ann --ssh-key ann.pub --sudo --watch\n  \
        uvm-controller instance create db2 --image debian --vcpus 8 --memory 32GiB --disk 20GiB \
        --disk 500GiB,5000iops \\\n    --group db:anti-affinity --workload io-heavy\n  \
        uvm-controller instance create --file request.json --project shop"
    )]
    Create {
        #[command(flatten)]
        create: Box<CreateArguments>,
        #[command(flatten)]
        follow: Follow,
    },
    /// Change an instance: CPUs, memory, disks, limits, host name.
    #[command(after_help = "Examples:\n  uvm-controller instance change web --memory 8GiB --watch\n  \
        uvm-controller instance change db2 --disk db2-1:1TiB --no-restart\n\n\
        The change is made only if nobody else changed the instance since it was read.")]
    Change {
        #[command(flatten)]
        change: ChangeArguments,
        /// The generation the change is meant for [default: the one it has now].
        #[arg(long, value_name = "GENERATION")]
        if_match: Option<u64>,
        #[command(flatten)]
        follow: Follow,
    },
    /// Switch an instance on.
    Start(One),
    /// Ask the guest to power off.
    Shutdown(One),
    /// Power off at once. Nothing is deleted.
    Destroy(One),
    /// Hold an instance; its memory stays.
    Suspend(One),
    /// Go on after suspend.
    Resume(One),
    /// Reset an instance.
    Reboot(One),
    /// Take a snapshot of an instance's disks.
    #[command(after_help = "Example:\n  uvm-controller instance snapshot web before-upgrade --watch")]
    Snapshot(Named),
    /// Give an instance the contents of a snapshot of it. What it has now is lost.
    Restore {
        /// Name or id.
        instance: String,
        /// Name or id of the snapshot.
        snapshot: String,
        #[command(flatten)]
        follow: Follow,
    },
    /// Capture an instance's boot disk as an image.
    SaveImage(Named),
    /// Make an instance with the contents of another.
    Copy {
        #[command(flatten)]
        copy: CopyArguments,
        #[command(flatten)]
        follow: Follow,
    },
    /// Sanitize an instance's disks and delete it. There is no way back.
    Delete(One),
    /// Show an instance's statistics: CPUs, memory, disks, network.
    Statistics {
        /// Name or id.
        instance: String,
        #[command(flatten)]
        stretch: statistics::Stretch,
    },
    /// Show what an instance was made with: layout, users, keys, network, boot. Always JSON.
    Config {
        /// Name or id.
        instance: String,
    },
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        let path = |instance: &str| session.id("instances", instance).map(|id| format!("/v1/instances/{id}"));
        let power = |one: One, verb: &str| {
            session.ask(Method::Post, &format!("{}/{verb}", path(&one.instance)?), one.follow)
        };
        match self.verb {
            Verb::List { node, in_state, limit } => list(&session, node, in_state, limit),
            Verb::Show { instance } => show(&session, &path(&instance)?),
            Verb::Create { create, follow } => {
                let request = create.request(session.project.as_deref())?;
                session.change(Method::Post, "/v1/instances", &request, None, follow)
            }
            Verb::Change { change, if_match, follow } => run_change(&session, change, if_match, follow),
            Verb::Start(one) => power(one, "start"),
            Verb::Shutdown(one) => power(one, "shutdown"),
            Verb::Destroy(one) => power(one, "destroy"),
            Verb::Suspend(one) => power(one, "suspend"),
            Verb::Resume(one) => power(one, "resume"),
            Verb::Reboot(one) => power(one, "reboot"),
            Verb::Snapshot(named) => {
                let path = format!("{}/snapshots", path(&named.instance)?);
                session.change(Method::Post, &path, &SnapshotRequest { name: named.name }, None, named.follow)
            }
            Verb::Restore { instance, snapshot, follow } => {
                let path = format!("{}/restore", path(&instance)?);
                let request = RestoreRequest { snapshot: session.id("snapshots", &snapshot)? };
                session.change(Method::Post, &path, &request, None, follow)
            }
            Verb::SaveImage(named) => {
                let path = format!("{}/save-image", path(&named.instance)?);
                session.change(
                    Method::Post,
                    &path,
                    &SaveImageRequest { name: named.name },
                    None,
                    named.follow,
                )
            }
            Verb::Copy { copy, follow } => {
                let path = format!("{}/copy", path(&copy.instance)?);
                session.change(Method::Post, &path, &copy.request(), None, follow)
            }
            Verb::Delete(one) => session.ask(Method::Delete, &path(&one.instance)?, one.follow),
            Verb::Statistics { instance, stretch } => stretch.show(&session, &path(&instance)?),
            Verb::Config { instance } => {
                let path = format!("{}/config", path(&instance)?);
                super::session::print_json(&session.client.get(&path, &Vec::new())?)
            }
        }
    }
}

fn list(session: &Session, node: Option<String>, in_state: Option<PowerState>, limit: Limit) -> Result<()> {
    let mut query: Query = session.scoped();
    query.extend(node.map(|node| ("node", node)));
    query.extend(in_state.map(|state| ("state", word(&state))));
    session.list("/v1/instances", &query, limit.limit, |instances: &[Instance]| {
        let nodes = session.names("nodes")?;
        let mut table = Table::new(&[
            "NAME", "PROJECT", "NODE", "STATE", "WANTED", ">VCPUS", ">MEMORY", ">DISKS", ">AGE", "JOB", "ID",
        ]);
        let now = now();
        for instance in instances {
            table.row([
                instance.name.clone(),
                instance.project.clone(),
                name_of(&nodes, instance.node),
                word(&instance.observed_state),
                word(&instance.desired_state),
                instance.vcpus.to_string(),
                mib(instance.memory_mib),
                instance.disks.len().to_string(),
                age(now, instance.created_at),
                shown(instance.active_job),
                instance.id.to_string(),
            ]);
        }
        Ok(table)
    })
}

fn shown(id: Option<Id>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

fn show(session: &Session, path: &str) -> Result<()> {
    session.show(session.client.get(path, &Vec::new())?, |instance: &Instance| {
        let (nodes, disks) = (session.names("nodes")?, session.names("disks")?);
        let disk = |id: &Id| match disks.get(id) {
            Some(name) => format!("{name} ({id})"),
            None => id.to_string(),
        };
        let numa: Vec<String> = instance
            .numa
            .iter()
            .map(|share| format!("{}={}:{}", share.numa, share.vcpus, mib(share.memory_mib)))
            .collect();
        let disks: Vec<String> = instance.disks.iter().map(disk).collect();
        let problem =
            instance.last_problem.as_ref().map(|problem| format!("{}: {}", problem.title, problem.detail));
        let mut details = Details::default();
        details
            .add("id", instance.id.to_string())
            .add("name", &instance.name)
            .add("project", &instance.project)
            .add("node", name_of(&nodes, instance.node))
            .add("state", word(&instance.observed_state))
            .add("observed", time(instance.observed_at))
            .add("wanted", word(&instance.desired_state))
            .add("vcpus", instance.vcpus.to_string())
            .add("memory", mib(instance.memory_mib))
            .add("numa", numa.join(" "))
            .add("disks", disks.join(", "))
            .add("image", shown(instance.image))
            .add("mac", &instance.mac)
            .add("ssh host key", instance.ssh_host_key.clone().unwrap_or_default())
            .add("provisioned", yes_or_no(instance.provisioned))
            .add("restarts", instance.restarts.to_string())
            .add("job", shown(instance.active_job))
            .add("last problem", problem.unwrap_or_default())
            .add("generation", instance.generation.to_string())
            .add("created", time(instance.created_at));
        Ok(details.to_string())
    })
}

fn run_change(
    session: &Session,
    change: ChangeArguments,
    if_match: Option<u64>,
    follow: Follow,
) -> Result<()> {
    let id = session.id("instances", &change.instance)?;
    let path = format!("/v1/instances/{id}");
    // Read before anything else: whatever changes from here on makes this change be refused.
    let generation = match if_match {
        Some(generation) => generation,
        None => record::<Instance>(session.client.get(&path, &Vec::new())?)?.generation,
    };
    let request = change.request(session, id)?;
    session.change(Method::Patch, &path, &request, Some(generation), follow)
}
