//! `node`: where machines run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::client::{Method, Query, record};
use super::failure::{Failure, Result};
use super::session::{Flags, Follow, Limit, Scope, Session, print, read_document, read_file};
use super::statistics;
use super::table::{Details, Table};
use super::units::{
    age, bytes, mib, now, parse_duration, parse_mib, parse_pair, parse_word, time, word, yes_or_no,
};
use crate::config::FileFlag;
use crate::model::{
    IssuedToken, LicensePool, NewNode, NewToken, Node, NodeCapacity, NodeChange, NodeState, NumaCapacity,
    Role, Suitability,
};

/// `node …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List nodes: state, capacity, utility VM.
    List {
        /// Those in this state: joining, ready, degraded, unreachable.
        #[arg(long = "in", value_name = "STATE", value_parser = parse_word::<NodeState>)]
        in_state: Option<NodeState>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Show a node.
    Show {
        /// Name or id.
        node: String,
    },
    /// Register a node and boot its utility VM.
    Add(Box<Add>),
    /// Place no new instance on a node. What runs there goes on.
    Cordon {
        /// Name or id.
        node: String,
    },
    /// Place new instances on a node again.
    Uncordon {
        /// Name or id.
        node: String,
    },
    /// Change a node's labels: KEY=VALUE sets one, KEY- takes one away.
    #[command(after_help = "Example:\n  uvm-controller node label n1 rack=r2 old-")]
    Label {
        /// Name or id.
        node: String,
        /// KEY=VALUE or KEY-.
        #[arg(required = true, value_name = "LABEL", allow_hyphen_values = false)]
        labels: Vec<String>,
    },
    /// Forget a node that has nothing on it.
    Remove {
        /// Name or id.
        node: String,
        #[command(flatten)]
        follow: Follow,
    },
    /// Show a node's statistics: CPU, memory, pool.
    Statistics {
        /// Name or id.
        node: String,
        #[command(flatten)]
        stretch: statistics::Stretch,
    },
    /// Issue a token that registers one node, once.
    EnrolToken {
        /// What it is for, in words.
        #[arg(long, default_value = "node enrolment")]
        name: String,
        /// Time until it is worth nothing, as 90s, 30m, 12h, 7d [default: 1h].
        #[arg(long, value_name = "TIME", value_parser = parse_duration)]
        ttl: Option<Duration>,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  uvm-controller node add n1 --address /srv/uvm/n1 --watch\n  \
    uvm-controller node add n2 --address /srv/uvm/n2 --numa 8:16GiB --storage 200GiB --label rack=r1\n\n\
    Without --numa and --storage the capacity is what the hypervisor finds.")]
struct Add {
    /// Name, unique.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Kind of hypervisor.
    #[arg(long, value_name = "KIND", default_value = "qemu")]
    hypervisor: String,
    /// Where the hypervisor is reached; for qemu the folder of the node's pool and domains, made where it is missing.
    #[arg(long, value_name = "ADDRESS", default_value = "", hide_default_value = true)]
    address: String,
    /// Architecture, as in OCI.
    #[arg(long, default_value = "amd64")]
    architecture: String,
    /// Virtual CPUs and memory of a NUMA node that instances may use, as 8:16GiB; once for each.
    #[arg(long, value_name = "VCPUS:MEMORY", value_parser = parse_numa, requires = "storage")]
    numa: Vec<NumaCapacity>,
    /// Pool for disks, as 200GiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib, requires = "numa")]
    storage: Option<u64>,
    /// A word for placement; may be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
    labels: Vec<(String, String)>,
    /// Fault domain (rack).
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    fault_domain: String,
    /// Licenses it brings: how many, and what one costs; may be given several times.
    #[arg(long = "license", value_name = "NAME=COUNT[:COST]", value_parser = parse_license)]
    licenses: Vec<(String, LicensePool)>,
    /// The one project whose instances may run here.
    #[arg(long, value_name = "PROJECT")]
    dedicated_to: Option<String>,
    /// How well it does disks, 0 to 100.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    io: u8,
    /// How well it does networks, 0 to 100.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    network: u8,
    /// A PKCS #10 certificate request (PEM) for the node's utility VM; the certificate is printed.
    #[arg(long, value_name = "FILE")]
    certificate_request: Option<PathBuf>,
    /// The whole request as JSON, instead of the other flags; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    file: Option<PathBuf>,
    #[command(flatten)]
    follow: Follow,
}

fn parse_numa(text: &str) -> std::result::Result<NumaCapacity, String> {
    let parsed = text.split_once(':').and_then(|(vcpus, memory)| {
        Some(NumaCapacity { vcpus: vcpus.parse().ok()?, memory_mib: parse_mib(memory).ok()? })
    });
    parsed.ok_or_else(|| "VCPUS:MEMORY is expected, as 8:16GiB".to_owned())
}

fn parse_license(text: &str) -> std::result::Result<(String, LicensePool), String> {
    let parsed = text.split_once('=').and_then(|(name, pool)| {
        let (count, cost) = pool.split_once(':').unwrap_or((pool, "0"));
        Some((name.to_owned(), LicensePool { count: count.parse().ok()?, cost: cost.parse().ok()? }))
    });
    parsed.ok_or_else(|| "NAME=COUNT or NAME=COUNT:COST is expected".to_owned())
}

impl Add {
    fn request(self) -> Result<NewNode> {
        if let Some(file) = &self.file {
            return read_document(file);
        }
        let capacity = self.storage.map(|storage_mib| NodeCapacity { numa: self.numa, storage_mib });
        Ok(NewNode {
            name: self.name.unwrap_or_default(),
            hypervisor: self.hypervisor,
            address: self.address,
            architecture: self.architecture,
            capacity,
            labels: self.labels.into_iter().collect(),
            fault_domain: self.fault_domain,
            licenses: self.licenses.into_iter().collect(),
            dedicated_to: self.dedicated_to,
            suitability: Suitability { io: self.io, network: self.network },
            certificate_request: self.certificate_request.as_deref().map(read_file).transpose()?,
        })
    }
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &Scope::default())?;
        let at_once = Follow { watch: false };
        let path = |node: &str| session.id("nodes", node).map(|id| format!("/v1/nodes/{id}"));
        match self.verb {
            Verb::List { in_state, limit } => {
                let query: Query = in_state.iter().map(|state| ("state", word(state))).collect();
                session.list("/v1/nodes", &query, limit.limit, |nodes| Ok(table(nodes)))
            }
            Verb::Show { node } => {
                session.show(session.client.get(&path(&node)?, &Vec::new())?, |node: &Node| Ok(details(node)))
            }
            Verb::Add(add) => {
                let follow = add.follow;
                add_node(&session, &add.request()?, follow)
            }
            Verb::Cordon { node } => session.ask(Method::Post, &format!("{}/cordon", path(&node)?), at_once),
            Verb::Uncordon { node } => {
                session.ask(Method::Post, &format!("{}/uncordon", path(&node)?), at_once)
            }
            Verb::Label { node, labels } => label(&session, &path(&node)?, &labels),
            Verb::Remove { node, follow } => session.ask(Method::Delete, &path(&node)?, follow),
            Verb::Statistics { node, stretch } => stretch.show(&session, &path(&node)?),
            Verb::EnrolToken { name, ttl } => enrol_token(&session, name, ttl),
        }
    }
}

fn add_node(session: &Session, request: &NewNode, follow: Follow) -> Result<()> {
    let document = session.client.change(Method::Post, "/v1/nodes", request, None)?;
    let certificate = document["certificate"].as_str().map(str::to_owned);
    let authority = document["authority"].as_str().unwrap_or_default().to_owned();
    // A certificate that was asked for is told even where the job then fails.
    if let Some(certificate) = certificate.filter(|_| !session.json) {
        print(&format!("{}\n{}", certificate.trim_end(), authority.trim_end()))?;
    }
    session.accepted(document, follow)
}

fn label(session: &Session, path: &str, changes: &[String]) -> Result<()> {
    let node: Node = record(session.client.get(path, &Vec::new())?)?;
    let labels = relabelled(node.labels, changes)?;
    let change = NodeChange { labels: Some(labels), ..NodeChange::default() };
    session.change(Method::Patch, path, &change, Some(node.generation), Follow { watch: false })
}

fn relabelled(mut labels: BTreeMap<String, String>, changes: &[String]) -> Result<BTreeMap<String, String>> {
    for change in changes {
        if let Ok((key, value)) = parse_pair(change) {
            labels.insert(key, value);
        } else if let Some(key) = change.strip_suffix('-').filter(|key| !key.is_empty()) {
            labels.remove(key);
        } else {
            return Err(Failure::usage(format!("{change:?}: KEY=VALUE or KEY- is expected")));
        }
    }
    Ok(labels)
}

fn enrol_token(session: &Session, name: String, ttl: Option<Duration>) -> Result<()> {
    let ttl_seconds = ttl.map(|ttl| ttl.as_secs());
    let request = NewToken { name, role: Role::Enrolment, project: None, ttl_seconds };
    let document: Value = session.client.change(Method::Post, "/v1/tokens", &request, None)?;
    session.show(document, |issued: &IssuedToken| Ok(super::token::issued(issued)))
}

fn table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "HYPERVISOR",
        "STATE",
        "CORDONED",
        "UTILITY VM",
        ">VCPUS",
        ">MEMORY",
        ">STORAGE",
        ">SEEN",
        "ID",
    ]);
    let now = now();
    for node in nodes {
        let (vcpus, memory) = capacity(&node.capacity);
        table.row([
            node.name.clone(),
            node.hypervisor.clone(),
            word(&node.state),
            yes_or_no(node.cordoned).to_owned(),
            utility_vm(node),
            vcpus.to_string(),
            mib(memory),
            mib(node.capacity.storage_mib),
            age(now, node.seen_at),
            node.id.to_string(),
        ]);
    }
    table
}

fn capacity(capacity: &NodeCapacity) -> (u64, u64) {
    let vcpus = capacity.numa.iter().map(|numa| u64::from(numa.vcpus)).sum();
    let memory = capacity.numa.iter().fold(0_u64, |sum, numa| sum.saturating_add(numa.memory_mib));
    (vcpus, memory)
}

fn utility_vm(node: &Node) -> String {
    match node.utility_vm.in_service {
        true => format!("in service {}", node.utility_vm.version).trim_end().to_owned(),
        false => "out of service".to_owned(),
    }
}

fn details(node: &Node) -> String {
    let pairs = |labels: &BTreeMap<String, String>| {
        labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    };
    let numa: Vec<String> =
        node.capacity.numa.iter().map(|numa| format!("{}:{}", numa.vcpus, mib(numa.memory_mib))).collect();
    let licenses: Vec<String> =
        node.licenses.iter().map(|(name, pool)| format!("{name}={}:{}", pool.count, pool.cost)).collect();
    let peak = match node.utility_vm.peak_rss_bytes {
        0 => String::new(),
        peak => bytes(peak),
    };
    Details::default()
        .add("id", node.id.to_string())
        .add("name", &node.name)
        .add("hypervisor", &node.hypervisor)
        .add("address", &node.address)
        .add("architecture", &node.architecture)
        .add("state", word(&node.state))
        .add("cordoned", yes_or_no(node.cordoned))
        .add("seen", time(node.seen_at))
        .add("numa", numa.join(" "))
        .add("storage", mib(node.capacity.storage_mib))
        .add("capacity", if node.capacity_found { "as the hypervisor found" } else { "as an operator said" })
        .add("labels", pairs(&node.labels))
        .add("fault domain", &node.fault_domain)
        .add("licenses", licenses.join(" "))
        .add("dedicated to", node.dedicated_to.clone().unwrap_or_default())
        .add("suitability", format!("io {}, network {}", node.suitability.io, node.suitability.network))
        .add("utility VM", utility_vm(node))
        .add("booted", &node.utility_vm.booted_at)
        .add("starts", node.utility_vm.starts.to_string())
        .add("peak memory", peak)
        .add("job", node.active_job.map(|job| job.to_string()).unwrap_or_default())
        .add("generation", node.generation.to_string())
        .add("registered", time(node.created_at))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_taken_away() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let after = relabelled(labels.clone(), &words(&["a-", "b=3", "c=x=y-"])).unwrap();
        let expected =
            BTreeMap::from([("b".to_owned(), "3".to_owned()), ("c".to_owned(), "x=y-".to_owned())]);
        assert_eq!(after, expected);
        for wrong in ["a", "-", "=1", ""] {
            assert_eq!(relabelled(labels.clone(), &words(&[wrong])).unwrap_err().status, 2, "{wrong}");
        }
    }

    #[test]
    fn capacity_and_licenses_are_read() {
        assert_eq!(parse_numa("8:16GiB"), Ok(NumaCapacity { vcpus: 8, memory_mib: 16_384 }));
        assert!(parse_numa("8").is_err() && parse_numa("x:1").is_err() && parse_numa("1:x").is_err());
        assert_eq!(parse_license("win=4"), Ok(("win".to_owned(), LicensePool { count: 4, cost: 0 })));
        assert_eq!(parse_license("win=4:9").map(|(_, pool)| pool.cost), Ok(9));
        assert!(parse_license("win").is_err() && parse_license("win=x").is_err());
    }
}
