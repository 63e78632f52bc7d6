//! Requests of a real cloud, in order, with all rules kept.
//!
//! "Dataset for Topology-Aware VM Placement", from Huawei Cloud production, CC0.

use std::collections::HashMap;
use std::path::Path;

use uvm_placement::{Demand, Group, Level, NodeId, NodeSpec, Numa, Rule, Snapshot, Symbol, Weights, place};

use super::Row;
use super::checker::check;
use super::first_fit::first_fit;
use super::trace::{self, Amount, Decision, Host, Request, Strategy};

const MIB_PER_GIB: u64 = 1024;

/// A sequence of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sequence {
    /// The first.
    C1,
    /// The second.
    C2,
}

impl Sequence {
    fn name(self) -> &'static str {
        match self {
            Self::C1 => "c1",
            Self::C2 => "c2",
        }
    }
}

/// Hosts used, beside first-fit that ignores the rules.
pub(crate) fn topology(data: &Path, sequence: Sequence) -> Row {
    let hosts = trace::hosts(data);
    let requests = trace::requests(data, sequence.name());
    let ours = check(&hosts, &requests, &decide(&hosts, &requests, Weights::default()));
    let free = check(&hosts, &requests, &first_fit(&hosts, &requests, false));
    let kept = check(&hosts, &requests, &first_fit(&hosts, &requests, true));
    let note = format!(
        "{} requests on {} hosts: {} rejected, {} violations, {} racks with two of a group kept apart; the \
         default weights were selected on c1 and c2. \
         First-fit, rules ignored (the peer): {} rejected, {} violations. First-fit, rules kept: {} hosts, {} \
         rejected, {} violations",
        requests.len(),
        hosts.len(),
        ours.rejected,
        ours.violations,
        ours.shared_racks,
        free.rejected,
        free.violations,
        kept.hosts_used,
        kept.rejected,
        kept.violations,
    );
    Row {
        name: format!("topology {}", sequence.name()),
        ours: ours.hosts_used as f64,
        peer: Some(free.hosts_used as f64),
        unit: "hosts",
        note,
    }
}

/// Places the requests one by one, as they come.
pub(crate) fn decide(hosts: &[Host], requests: &[Request], weights: Weights) -> Vec<Option<Decision>> {
    let mut snapshot = Snapshot::with_weights(weights);
    let (kind, architecture) = (word(&mut snapshot, "qemu"), word(&mut snapshot, "amd64"));
    let mut numbers: HashMap<NodeId, usize> = HashMap::new();
    for (at, host) in hosts.iter().enumerate() {
        let numa = host.numa.map(|numa| Numa {
            vcpus: u32::try_from(numa.vcpus).expect("vCPUs of a host"),
            memory_mib: numa.gib * MIB_PER_GIB,
        });
        let rack = word(&mut snapshot, &format!("rack-{}", host.rack));
        let spec = NodeSpec::new(format!("host-{at}"), numa.to_vec(), kind, architecture);
        let id =
            snapshot.add_node(NodeSpec { fault_domain: Some(rack), ..spec }).expect("a host of the trace");
        numbers.insert(id, at);
    }
    let mut decide = |request: &Request| {
        let demand = demand(&mut snapshot, request);
        let placement = place(&snapshot, &demand).ok()?;
        let allocation = snapshot.reserve(&demand, &placement).expect("what was just placed");
        let share = |share: &uvm_placement::Share| {
            let amount = Amount { vcpus: u64::from(share.vcpus), gib: share.memory_mib / MIB_PER_GIB };
            (usize::from(share.numa), amount)
        };
        Some(Decision {
            host: numbers[&allocation.node],
            shares: allocation.shares.iter().map(share).collect(),
        })
    };
    requests.iter().map(&mut decide).collect()
}

fn word(snapshot: &mut Snapshot, word: &str) -> Symbol {
    snapshot.intern(word).expect("few words")
}

fn demand(snapshot: &mut Snapshot, request: &Request) -> Demand {
    let group = request.group.map(|(strategy, number)| Group {
        name: word(snapshot, &format!("{strategy:?}-{number}")),
        rule: match strategy {
            Strategy::Affinity => Rule::Affinity(Level::FaultDomain),
            Strategy::AntiAffinity => Rule::AntiAffinity(Level::Node),
            Strategy::FaultDomain => {
                Rule::Partition(request.domain.and_then(|part| part.try_into().ok()).expect("a part"))
            }
        },
    });
    Demand {
        vcpus: u32::try_from(request.amount.vcpus).expect("vCPUs of a request"),
        memory_mib: request.amount.gib * MIB_PER_GIB,
        numa_nodes: u8::try_from(request.numa).expect("one or two NUMA nodes"),
        group,
        ..Demand::default()
    }
}
