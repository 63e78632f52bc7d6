//! Readers of the traces. A line that does not read ends the run: a trace half read measures nothing.

use std::path::Path;

/// What a NUMA node has, or a machine takes of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) vcpus: u64,
    pub(crate) gib: u64,
}

/// A host: two NUMA nodes in a rack.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) numa: [Amount; 2],
    pub(crate) rack: usize,
}

/// What holds among the members of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Strategy {
    Affinity,
    AntiAffinity,
    FaultDomain,
}

/// A machine asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) amount: Amount,
    pub(crate) numa: u64,
    /// Strategy and number. Every strategy numbers its groups from 0.
    pub(crate) group: Option<(Strategy, u64)>,
    /// Part of the group, for [`Strategy::FaultDomain`].
    pub(crate) domain: Option<u64>,
}

/// Where a machine went: host, and what it takes of which NUMA node.
#[derive(Debug, Clone)]
pub(crate) struct Decision {
    pub(crate) host: usize,
    pub(crate) shares: Vec<(usize, Amount)>,
}

fn fields(path: &Path, columns: usize) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines: Vec<Vec<String>> =
        text.lines().skip(1).map(|line| line.trim().split(',').map(str::to_owned).collect()).collect();
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(line.len(), columns, "{} line {}", path.display(), at + 2);
    }
    lines
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|error| panic!("{text:?} is no number: {error}"))
}

/// The hosts, their racks, in order.
pub(crate) fn hosts(data: &Path) -> Vec<Host> {
    let racks = fields(&data.join("topology/racks.csv"), 2);
    let hosts = fields(&data.join("topology/hosts.csv"), 4);
    assert_eq!(hosts.len(), racks.len(), "a rack for each host");
    let of = |(at, (host, rack)): (usize, (&Vec<String>, &Vec<String>))| {
        assert_eq!(rack[0], format!("host-{at}"), "racks are in the order of the hosts");
        let amount = |at: usize| Amount { vcpus: number(&host[at]), gib: number(&host[at + 1]) };
        Host { numa: [amount(0), amount(2)], rack: number(&rack[1]) as usize }
    };
    hosts.iter().zip(&racks).enumerate().map(of).collect()
}

/// The requests of a sequence, in order.
pub(crate) fn requests(data: &Path, name: &str) -> Vec<Request> {
    let of = |line: &Vec<String>| {
        let strategy = match line[3].as_str() {
            "" => None,
            "affinity" => Some(Strategy::Affinity),
            "anti-affinity" => Some(Strategy::AntiAffinity),
            "fault_domain" => Some(Strategy::FaultDomain),
            other => panic!("strategy {other:?}"),
        };
        Request {
            amount: Amount { vcpus: number(&line[0]), gib: number(&line[1]) },
            numa: number(&line[2]),
            group: strategy.map(|strategy| (strategy, number(&line[4]))),
            domain: (!line[5].is_empty()).then(|| number(&line[5])),
        }
    };
    fields(&data.join(format!("topology/requests-{name}.csv")), 6).iter().map(of).collect()
}

/// CPUs of the second trace are in thousandths; so many are the unit here.
const MILLI: u64 = 100;

/// CPUs, in tenths, and memory of the second trace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpus {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
}

/// A task of the second trace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task {
    pub(crate) amount: Cpus,
    pub(crate) created: u64,
    pub(crate) deleted: u64,
}

fn cpus(cpu_milli: &str, memory_mib: &str) -> Cpus {
    let cpus = u32::try_from(number(cpu_milli).div_ceil(MILLI)).expect("CPUs of a host");
    Cpus { cpus, memory_mib: number(memory_mib) }
}

/// Hosts of the second trace.
pub(crate) fn openb_hosts(data: &Path) -> Vec<Cpus> {
    fields(&data.join("openb/nodes.csv"), 5).iter().map(|line| cpus(&line[1], &line[2])).collect()
}

/// Tasks of the second trace, in the order of creation.
pub(crate) fn openb_tasks(data: &Path) -> Vec<Task> {
    let of = |line: &Vec<String>| Task {
        amount: cpus(&line[1], &line[2]),
        created: number(&line[8]),
        deleted: number(&line[9]),
    };
    let mut tasks: Vec<Task> = fields(&data.join("openb/pods.csv"), 11).iter().map(of).collect();
    tasks.sort_by_key(|task| task.created);
    tasks
}
