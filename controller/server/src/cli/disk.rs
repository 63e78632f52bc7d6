//! `disk` and `snapshot`.

use super::client::{Method, Query};
use super::failure::Result;
use super::session::{Flags, Follow, Limit, Scope, Session, name_of};
use super::table::{Details, Table};
use super::units::{DiskWords, age, bytes, mib, now, parse_new_disk, parse_word, time, word, yes_or_no};
use crate::config::FileFlag;
use crate::model::{Disk, DiskState, Id, IoLimits, NewDisk, Snapshot};

/// `disk …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

/// A disk, and whether its job is waited for.
#[derive(Debug, clap::Args)]
struct One {
    /// Name or id.
    disk: String,
    #[command(flatten)]
    follow: Follow,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List disks.
    List {
        /// Those on this node, by name or id.
        #[arg(long)]
        node: Option<String>,
        /// Those of this instance, by name or id.
        #[arg(long)]
        instance: Option<String>,
        /// Those in this state: creating, ready, deleting, quarantined.
        #[arg(long = "in", value_name = "STATE", value_parser = parse_word::<DiskState>)]
        in_state: Option<DiskState>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show a disk.
    Show {
        /// Name or id.
        disk: String,
    },
    /// Make a disk and attach it to its instance.
    #[command(
        after_help = "Example:\n  uvm-controller disk create data --instance web --size 100GiB,500iops --watch"
    )]
    Create {
        /// Name.
        name: String,
        /// The instance it is for, by name or id.
        #[arg(long)]
        instance: String,
        /// Its size, and limits perhaps, as 20GiB,500iops,100MiB/s.
        #[arg(long, value_name = "DISK", value_parser = parse_new_disk)]
        size: DiskWords,
        #[command(flatten)]
        follow: Follow,
    },
    /// Detach, sanitize and delete a disk. There is no way back.
    Delete(One),
    /// Try again to sanitize and delete a quarantined disk.
    Sanitize(One),
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        let path = |disk: &str| session.id("disks", disk).map(|id| format!("/v1/disks/{id}"));
        match self.verb {
            Verb::List { node, instance, in_state, limit } => {
                let mut query = on(&session, node, instance)?;
                query.extend(in_state.map(|state| ("state", word(&state))));
                session.list("/v1/disks", &query, limit.limit, |disks| table(&session, disks))
            }
            Verb::Show { disk } => show(&session, &path(&disk)?),
            Verb::Create { name, instance, size, follow } => {
                let instance = session.id("instances", &instance)?;
                let disk = size.request();
                let project = session.project.clone();
                let new =
                    NewDisk { name, project, size_mib: disk.size_mib, instance, io_limits: disk.io_limits };
                session.change(Method::Post, "/v1/disks", &new, None, follow)
            }
            Verb::Delete(one) => session.ask(Method::Delete, &path(&one.disk)?, one.follow),
            Verb::Sanitize(one) => {
                session.ask(Method::Post, &format!("{}/sanitize", path(&one.disk)?), one.follow)
            }
        }
    }
}

/// Filters by node and by instance.
fn on(session: &Session, node: Option<String>, instance: Option<String>) -> Result<Query> {
    let mut query = session.scoped();
    query.extend(node.map(|node| ("node", node)));
    if let Some(instance) = instance {
        query.push(("instance", session.id("instances", &instance)?.to_string()));
    }
    Ok(query)
}

fn limits(limits: IoLimits) -> String {
    let mut words = Vec::new();
    if limits.operations_per_second > 0 {
        words.push(format!("{}iops", limits.operations_per_second));
    }
    if limits.bytes_per_second > 0 {
        words.push(format!("{}/s", bytes(limits.bytes_per_second)));
    }
    words.join(",")
}

fn table(session: &Session, disks: &[Disk]) -> Result<Table> {
    let (nodes, instances) = (session.names("nodes")?, session.names("instances")?);
    let mut table = Table::new(&[
        "NAME", "PROJECT", "NODE", "ROLE", "STATE", ">SIZE", "LIMITS", "INSTANCE", ">AGE", "ID",
    ]);
    let now = now();
    for disk in disks {
        table.row([
            disk.name.clone(),
            disk.project.clone(),
            name_of(&nodes, disk.node),
            word(&disk.role),
            word(&disk.state),
            mib(disk.size_mib),
            limits(disk.io_limits),
            disk.instance.map(|id| name_of(&instances, id)).unwrap_or_default(),
            age(now, disk.created_at),
            disk.id.to_string(),
        ]);
    }
    Ok(table)
}

fn show(session: &Session, path: &str) -> Result<()> {
    session.show(session.client.get(path, &Vec::new())?, |disk: &Disk| {
        let (nodes, instances) = (session.names("nodes")?, session.names("instances")?);
        let mut details = Details::default();
        details
            .add("id", disk.id.to_string())
            .add("name", &disk.name)
            .add("project", &disk.project)
            .add("node", name_of(&nodes, disk.node))
            .add("serial", &disk.serial)
            .add("role", word(&disk.role))
            .add("state", word(&disk.state))
            .add("size", mib(disk.size_mib))
            .add("reserved", mib(disk.reserved_mib))
            .add("limits", limits(disk.io_limits))
            .add("instance", disk.instance.map(|id| name_of(&instances, id)).unwrap_or_default())
            .add("job", disk.active_job.map(|job| job.to_string()).unwrap_or_default())
            .add("generation", disk.generation.to_string())
            .add("created", time(disk.created_at));
        Ok(details.to_string())
    })
}

/// `snapshot …`.
#[derive(Debug, clap::Args)]
pub struct SnapshotArguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: SnapshotVerb,
}

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Snapshots are taken by `instance snapshot` and given back by `instance restore`.")]
enum SnapshotVerb {
    /// List snapshots.
    List {
        /// Those on this node, by name or id.
        #[arg(long)]
        node: Option<String>,
        /// Those of this instance, by name or id.
        #[arg(long)]
        instance: Option<String>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show a snapshot.
    Show {
        /// Name or id.
        snapshot: String,
    },
    /// Sanitize and delete a snapshot. There is no way back.
    Delete {
        /// Name or id.
        snapshot: String,
        #[command(flatten)]
        follow: Follow,
    },
}

impl SnapshotArguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        let path = |snapshot: &str| session.id("snapshots", snapshot).map(|id| format!("/v1/snapshots/{id}"));
        match self.verb {
            SnapshotVerb::List { node, instance, limit } => {
                let query = on(&session, node, instance)?;
                session.list("/v1/snapshots", &query, limit.limit, |found| snapshots(&session, found))
            }
            SnapshotVerb::Show { snapshot } => show_snapshot(&session, &path(&snapshot)?),
            SnapshotVerb::Delete { snapshot, follow } => {
                session.ask(Method::Delete, &path(&snapshot)?, follow)
            }
        }
    }
}

fn snapshots(session: &Session, found: &[Snapshot]) -> Result<Table> {
    let (nodes, instances) = (session.names("nodes")?, session.names("instances")?);
    let mut table = Table::new(&["NAME", "PROJECT", "INSTANCE", "NODE", ">DISKS", "READY", ">AGE", "ID"]);
    let now = now();
    for snapshot in found {
        table.row([
            snapshot.name.clone(),
            snapshot.project.clone(),
            name_of(&instances, snapshot.instance),
            name_of(&nodes, snapshot.node),
            snapshot.disks.len().to_string(),
            yes_or_no(snapshot.ready).to_owned(),
            age(now, snapshot.created_at),
            snapshot.id.to_string(),
        ]);
    }
    Ok(table)
}

fn show_snapshot(session: &Session, path: &str) -> Result<()> {
    session.show(session.client.get(path, &Vec::new())?, |snapshot: &Snapshot| {
        let (nodes, instances) = (session.names("nodes")?, session.names("instances")?);
        let job = |id: Id| id.to_string();
        let mut details = Details::default();
        details
            .add("id", snapshot.id.to_string())
            .add("name", &snapshot.name)
            .add("project", &snapshot.project)
            .add("instance", name_of(&instances, snapshot.instance))
            .add("node", name_of(&nodes, snapshot.node))
            .add("ready", yes_or_no(snapshot.ready))
            .add("job", snapshot.active_job.map(job).unwrap_or_default())
            .add("generation", snapshot.generation.to_string())
            .add("created", time(snapshot.created_at));
        for disk in &snapshot.disks {
            let digest = disk.digest.clone().unwrap_or_default();
            details.add("disk", format!("{} holds {} {digest}", disk.disk, disk.of).trim_end());
        }
        Ok(details.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_where_there_are_any() {
        assert_eq!(limits(IoLimits::default()), "");
        let both = IoLimits { bytes_per_second: 100 << 20, operations_per_second: 500 };
        assert_eq!(limits(both), "500iops,100.0MiB/s");
    }
}
