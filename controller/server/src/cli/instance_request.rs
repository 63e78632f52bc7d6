//! What is asked for of an instance, as flags say it: `instance` sends it, `plan` asks about it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use uvm_api::UserSpec;

use super::client::record;
use super::failure::{Failure, Result};
use super::session::{Session, read_document, read_file};
use super::units::{DiskWords, parse_disk_change, parse_mib, parse_new_disk, parse_pair, parse_word};
use crate::model::{
    CopyRequest, Disk, DiskChange, GroupRequest, GroupRule, Id, InstanceChange, InstanceRequest,
    PlacementRequest, Workload,
};

/// Disks of one instance that are looked at.
const MAX_DISKS: usize = 1_000;
/// What a user that may do everything has in sudoers.
const SUDO: &str = "ALL=(ALL) NOPASSWD:ALL";
const PLACEMENT: &str = "Placement";

/// Flags that describe a new instance.
#[derive(Debug, clap::Args)]
pub(super) struct CreateArguments {
    /// Name, unique in the project; also the host name where --hostname says nothing else.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Name or id of the image; empty disks where it is missing.
    #[arg(long)]
    image: Option<String>,
    /// Virtual CPUs.
    #[arg(long, value_name = "NUMBER", required_unless_present = "file")]
    vcpus: Option<u32>,
    /// Memory, as 512MiB or 4GiB; a number is MiB.
    #[arg(long, value_name = "SIZE", required_unless_present = "file", value_parser = parse_mib)]
    memory: Option<u64>,
    /// A disk, the boot disk first: SIZE, and limits perhaps, as 20GiB,500iops,100MiB/s.
    #[arg(long = "disk", value_name = "DISK", required_unless_present = "file", value_parser = parse_new_disk)]
    disks: Vec<DiskWords>,
    /// Host name inside the guest.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A user to make, or to give keys.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A file with public keys that let --user in over SSH; may be given several times.
    #[arg(long = "ssh-key", value_name = "FILE", requires = "user")]
    ssh_keys: Vec<PathBuf>,
    /// Let --user do everything by sudo, without a password.
    #[arg(long, requires = "user")]
    sudo: bool,
    #[command(flatten)]
    placement: Placement,
    /// Make it, but do not start it.
    #[arg(long)]
    no_start: bool,
    /// The request as JSON; flags beside it win. `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Flags that say where an instance may run.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Placement {
    /// The one node it may be on, by name.
    #[arg(help_heading = PLACEMENT, long)]
    node: Option<String>,
    /// A label its node must have; may be given several times.
    #[arg(help_heading = PLACEMENT, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<String>,
    /// A group and the rule among its members: affinity, anti-affinity, fault-domain.
    #[arg(help_heading = PLACEMENT, long, value_name = "NAME:RULE", value_parser = group)]
    group: Option<GroupRequest>,
    /// A kind of hypervisor it may run under; may be given several times.
    #[arg(help_heading = PLACEMENT, long = "hypervisor", value_name = "KIND")]
    hypervisors: Vec<String>,
    /// What it mostly does: general, io-heavy, network-heavy.
    #[arg(help_heading = PLACEMENT, long, value_name = "KIND", value_parser = parse_word::<Workload>)]
    workload: Option<Workload>,
    /// License it uses up, by the name of the pool.
    #[arg(help_heading = PLACEMENT, long, value_name = "NAME")]
    license: Option<String>,
    /// NUMA nodes it is spread over evenly.
    #[arg(help_heading = PLACEMENT, long, value_name = "NUMBER")]
    numa_nodes: Option<u8>,
    /// No other project's machines on its node.
    #[arg(help_heading = PLACEMENT, long)]
    exclusive: bool,
}

fn label(text: &str) -> std::result::Result<String, String> {
    parse_pair(text).map(|_| text.to_owned())
}

fn group(text: &str) -> std::result::Result<GroupRequest, String> {
    let Some((name, rule)) = text.rsplit_once(':').filter(|(name, _)| !name.is_empty()) else {
        return Err("NAME:RULE is expected, as web:anti-affinity".to_owned());
    };
    Ok(GroupRequest { name: name.to_owned(), rule: parse_word::<GroupRule>(rule)? })
}

impl Placement {
    /// What was said, over what a file says.
    fn over(self, mut placement: PlacementRequest) -> PlacementRequest {
        placement.node = self.node.or(placement.node);
        placement.group = self.group.or(placement.group);
        placement.license = self.license.or(placement.license);
        placement.workload = self.workload.unwrap_or(placement.workload);
        placement.numa_nodes = self.numa_nodes.unwrap_or(placement.numa_nodes);
        placement.exclusive |= self.exclusive;
        placement.labels.extend(self.labels);
        placement.hypervisors.extend(self.hypervisors);
        placement
    }
}

impl CreateArguments {
    pub(super) fn request(self, project: Option<&str>) -> Result<InstanceRequest> {
        let shown = self.file.clone();
        let mut document: Map<String, Value> =
            shown.as_deref().map(read_document).transpose()?.unwrap_or_default();
        let mut say = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                document.insert(key.to_owned(), value);
            }
        };
        // What the request must have is said before it is read as one.
        say("name", self.name.map(Value::from));
        say("project", project.map(Value::from));
        say("vcpus", self.vcpus.map(Value::from));
        say("memory_mib", self.memory.map(Value::from));
        let disks: Vec<Value> = self.disks.iter().map(|disk| serde_json::json!(disk.request())).collect();
        say("disks", (!disks.is_empty()).then_some(Value::from(disks)));
        let mut request: InstanceRequest =
            serde_json::from_value(Value::Object(document)).map_err(|error| {
                let file = shown.as_deref().unwrap_or(Path::new("")).display();
                Failure::usage(format!("{file}: {error}"))
            })?;
        request.image = self.image.or(request.image);
        request.customize.hostname = self.hostname.or(request.customize.hostname);
        if let Some(name) = self.user {
            let mut user =
                UserSpec { name, ssh_authorized_keys: keys(&self.ssh_keys)?, ..UserSpec::default() };
            user.sudo = self.sudo.then(|| SUDO.to_owned());
            request.customize.users.retain(|known| known.name != user.name);
            request.customize.users.push(user);
        }
        request.placement = self.placement.over(request.placement);
        request.start &= !self.no_start;
        Ok(request)
    }
}

/// The lines of files of public keys.
fn keys(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for file in files {
        let text = read_file(file)?;
        if text.contains("PRIVATE KEY") {
            return Err(Failure::usage(format!(
                "{} is a private key; give the .pub beside it",
                file.display()
            )));
        }
        let before = found.len();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        found.extend(lines.map(str::to_owned));
        if found.len() == before {
            return Err(Failure::usage(format!("{} has no key in it", file.display())));
        }
    }
    Ok(found)
}

/// Flags that change an instance.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").args(["vcpus", "memory", "hostname", "disks"]).required(true).multiple(true))]
pub(super) struct ChangeArguments {
    /// Name or id.
    pub(super) instance: String,
    /// Virtual CPUs.
    #[arg(long, value_name = "NUMBER")]
    vcpus: Option<u32>,
    /// Memory, as 512MiB or 4GiB; a number is MiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    memory: Option<u64>,
    /// Host name inside the guest; the machine is stopped while it is changed.
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// A disk by name or id, and its new size or limits, as data:40GiB or data:500iops,100MiB/s; 0 is no limit.
    #[arg(long = "disk", value_name = "DISK:CHANGE", value_parser = parse_disk_change)]
    disks: Vec<(String, DiskWords)>,
    /// Refuse the change where it needs a restart.
    #[arg(long)]
    no_restart: bool,
}

impl ChangeArguments {
    pub(super) fn request(self, session: &Session, instance: Id) -> Result<InstanceChange> {
        let Self { vcpus, memory, hostname, disks, no_restart, .. } = self;
        let disks = match disks.is_empty() {
            true => Vec::new(),
            false => disk_changes(&disks_of(session, instance)?, &disks)?,
        };
        Ok(InstanceChange { vcpus, memory_mib: memory, hostname, disks, allow_restart: !no_restart })
    }
}

fn disks_of(session: &Session, instance: Id) -> Result<Vec<Disk>> {
    let query = vec![("instance", instance.to_string())];
    let (found, _) = session.client.list("/v1/disks", &query, MAX_DISKS)?;
    found.into_iter().map(record).collect()
}

/// A limit that is not mentioned stays.
fn disk_changes(known: &[Disk], changes: &[(String, DiskWords)]) -> Result<Vec<DiskChange>> {
    let find = |name: &String| {
        let id = name.parse().ok();
        let found = known.iter().find(|disk| Some(disk.id) == id || disk.name == *name);
        found.ok_or_else(|| {
            let names: Vec<&str> = known.iter().map(|disk| disk.name.as_str()).collect();
            Failure::no(format!("the instance has no disk {name:?}; it has {}", names.join(", ")))
        })
    };
    let change = |(name, words): &(String, DiskWords)| {
        let disk = find(name)?;
        let io_limits = words.limited().then(|| words.limits(disk.io_limits));
        Ok(DiskChange { id: disk.id, size_mib: words.size_mib, io_limits })
    };
    changes.iter().map(change).collect()
}

/// Flags that describe a copy.
#[derive(Debug, clap::Args)]
pub(super) struct CopyArguments {
    /// Name or id.
    pub(super) instance: String,
    /// Name of the new instance.
    name: String,
    /// Start it. Both machines then have one identity.
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    placement: Placement,
}

impl CopyArguments {
    pub(super) fn request(self) -> CopyRequest {
        let placement = self.placement.over(PlacementRequest::default());
        let placement = (!placement.is_default()).then_some(placement);
        CopyRequest { name: self.name, placement, start: self.start }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::model::{DiskRole, DiskState, IoLimits};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: CreateArguments,
    }

    fn create(line: &[&str]) -> Result<InstanceRequest> {
        let words = ["c"].iter().chain(line);
        Line::try_parse_from(words).unwrap().create.request(Some("shop"))
    }

    const LEAST: [&str; 7] = ["web", "--vcpus", "2", "--memory", "4GiB", "--disk", "20GiB,500iops"];

    #[test]
    fn flags_make_a_request() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key.pub");
        std::fs::write(&key, "# mine\nssh-ed25519 AAAA ann\n\n").unwrap();
        let more = [
            "--disk",
            "1TiB",
            "--user",
            "ann",
            "--sudo",
            "--ssh-key",
            key.to_str().unwrap(),
            "--node",
            "n1",
            "--label",
            "rack=a",
            "--group",
            "db:anti-affinity",
            "--workload",
            "io-heavy",
            "--image",
            "debian",
            "--no-start",
        ];
        let request = create(&[&LEAST[..], &more].concat()).unwrap();
        assert_eq!((request.name.as_str(), request.project.as_deref()), ("web", Some("shop")));
        assert_eq!((request.vcpus, request.memory_mib, request.start), (2, 4_096, false));
        let sizes: Vec<u64> = request.disks.iter().map(|disk| disk.size_mib).collect();
        assert_eq!(sizes, [20_480, 1 << 20]);
        assert_eq!(request.disks[0].io_limits.operations_per_second, 500);
        assert_eq!(request.customize.users[0].ssh_authorized_keys, ["ssh-ed25519 AAAA ann"]);
        assert_eq!(request.customize.users[0].sudo.as_deref(), Some(SUDO));
        assert_eq!(request.placement.node.as_deref(), Some("n1"));
        assert_eq!(request.placement.group.unwrap().rule, GroupRule::AntiAffinity);
        assert_eq!(request.placement.workload, Workload::IoHeavy);
        assert!(create(&LEAST).unwrap().start);
    }

    #[test]
    fn a_file_says_everything_and_flags_win() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("request.json");
        let text = r#"{"name": "a", "vcpus": 1, "memory_mib": 512, "disks": [{"size_mib": 64}], "start": false,
            "placement": {"node": "n1", "labels": ["rack=a"]}}"#;
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let request = create(&["--file", path, "--vcpus", "4", "--label", "disk=ssd"]).unwrap();
        assert_eq!(
            (request.name.as_str(), request.vcpus, request.memory_mib, request.start),
            ("a", 4, 512, false)
        );
        assert_eq!(request.placement.labels, ["rack=a", "disk=ssd"]);
        assert_eq!(create(&["b", "--file", path]).unwrap().name, "b");
        for wrong in [r#"{"name": "a", "colour": 1}"#, r#"{"name": "a"}"#, "[]", "{"] {
            std::fs::write(&file, wrong).unwrap();
            let failure = create(&["--file", path]).unwrap_err();
            assert_eq!(failure.status, 2);
            assert!(failure.text.contains("request.json"), "{}", failure.text);
        }
        assert_eq!(create(&["--file", "/nowhere"]).unwrap_err().status, 2);
    }

    #[test]
    fn a_private_key_is_not_sent() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        let line = [&LEAST[..], &["--user", "ann", "--ssh-key", key.to_str().unwrap()]].concat();
        for wrong in ["-----BEGIN OPENSSH PRIVATE KEY-----\n", "# nothing\n"] {
            std::fs::write(&key, wrong).unwrap();
            assert_eq!(create(&line).unwrap_err().status, 2, "{wrong}");
        }
    }

    #[test]
    fn a_limit_that_is_not_mentioned_stays() {
        let id = Id::new(1, [1; 10]);
        let disk = Disk {
            id,
            project: "shop".to_owned(),
            name: "data".to_owned(),
            node: id,
            size_mib: 64,
            reserved_mib: 64,
            serial: String::new(),
            role: DiskRole::Data,
            state: DiskState::Ready,
            instance: None,
            io_limits: IoLimits { bytes_per_second: 7, operations_per_second: 9 },
            active_job: None,
            generation: 1,
            created_at: 0,
        };
        let changes =
            [parse_disk_change("data:128,0iops").unwrap(), parse_disk_change(&format!("{id}:2GiB")).unwrap()];
        let found = disk_changes(std::slice::from_ref(&disk), &changes).unwrap();
        assert_eq!(found[0].size_mib, Some(128));
        assert_eq!(found[0].io_limits, Some(IoLimits { bytes_per_second: 7, operations_per_second: 0 }));
        assert_eq!((found[1].id, found[1].io_limits), (id, None));
        let missing = disk_changes(&[disk], &[parse_disk_change("log:1").unwrap()]).unwrap_err();
        assert!(missing.text.contains("it has data"), "{}", missing.text);
    }
}
