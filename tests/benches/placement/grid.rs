//! A made-up grid with all kinds of constraints, and how many placements a second it answers.

use std::time::Instant;

use uvm_placement::{
    Allocation, Demand, Group, Level, License, NodeSpec, NodeState, Numa, Rule, Snapshot, Suitability,
    Symbol, Workload, place,
};

use super::Row;

/// Runs, of which the median counts.
const RUNS: usize = 5;
/// Machines per node that are placed in one run.
const PLACED_PER_NODE: usize = 10;
/// Machines per node that run at most; from there on, each new one takes the place of an old one.
const RUNNING_PER_NODE: usize = 6;
/// Nodes of a rack, which is a fault domain.
const NODES_PER_RACK: usize = 20;
/// Fewest placements of one run.
const LEAST_PLACED: usize = 20_000;
/// Published by HashiCorp for Nomad: 2,000,000 containers on 5,000 hosts at 3,750 per second.
const NOMAD: f64 = 3_750.0;

/// xorshift64: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
}

struct Words {
    hypervisors: Vec<Symbol>,
    architectures: Vec<Symbol>,
    labels: Vec<Symbol>,
    tenants: Vec<Symbol>,
    guests: Vec<Symbol>,
    license: Symbol,
}

/// Placements per second at so many nodes.
pub(crate) fn rate(nodes: usize) -> Row {
    let mut rates = [(); RUNS].map(|()| run(nodes));
    rates.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let (rate, refused) = rates[RUNS / 2];
    Row {
        name: format!("placements, {nodes} nodes"),
        ours: rate,
        peer: Some(NOMAD),
        unit: "per second",
        note: format!(
            "one core, place and reserve and release, groups, labels, licenses, tenants, NUMA; median of \
             {RUNS} runs, {refused} refused in it; the peer is what Nomad publishes for 5,000 hosts, not a run here"
        ),
    }
}

fn run(nodes: usize) -> (f64, usize) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut snapshot = Snapshot::new();
    let words = words(&mut snapshot);
    let mut alike = node(&mut snapshot, &words, &mut random, 0);
    for at in 0..nodes {
        if at % NODES_PER_RACK == 0 {
            // A rack is bought at once: its nodes are alike.
            alike = node(&mut snapshot, &words, &mut random, at / NODES_PER_RACK);
        }
        let mut spec = alike.clone();
        spec.name = format!("node-{at}");
        if random.percent(2) {
            spec.state = NodeState::Cordoned;
        }
        snapshot.add_node(spec).expect("a node within the limits");
    }
    let total = (nodes * PLACED_PER_NODE).max(LEAST_PLACED);
    let demands: Vec<Demand> = (0..total).map(|at| demand(&mut snapshot, &words, &mut random, at)).collect();
    let mut running: Vec<Allocation> = Vec::with_capacity(nodes * RUNNING_PER_NODE);
    let mut refused = 0;
    let begun = Instant::now();
    for demand in &demands {
        match place(&snapshot, demand) {
            Ok(placement) => {
                running.push(snapshot.reserve(demand, &placement).expect("what was just placed"));
            }
            Err(_) => refused += 1,
        }
        if running.len() >= nodes * RUNNING_PER_NODE {
            let old = running.swap_remove(random.below(running.len()));
            snapshot.release(&old).expect("what was reserved");
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    ((total - refused) as f64 / seconds, refused)
}

fn words(snapshot: &mut Snapshot) -> Words {
    let mut all = |prefix: &str, count: usize| -> Vec<Symbol> {
        (0..count).map(|at| snapshot.intern(&format!("{prefix}-{at}")).expect("few words")).collect()
    };
    Words {
        hypervisors: all("hypervisor", 3),
        architectures: all("architecture", 2),
        labels: all("label", 4),
        tenants: all("tenant", 20),
        guests: all("guest", 3),
        license: all("license", 1)[0],
    }
}

fn node(snapshot: &mut Snapshot, words: &Words, random: &mut Random, rack: usize) -> NodeSpec {
    let kinds = [(32, 128), (48, 192), (64, 192), (32, 64)];
    let (vcpus, gib) = kinds[random.below(kinds.len())];
    let numa = Numa { vcpus, memory_mib: gib * 1024 };
    let hypervisor = words.hypervisors[random.below(3)];
    let architecture = words.architectures[usize::from(random.percent(10))];
    let rack = snapshot.intern(&format!("rack-{rack}")).expect("few words");
    let mut spec = NodeSpec::new(String::new(), vec![numa; 2], hypervisor, architecture);
    spec.storage_mib = 8 << 20;
    spec.fault_domain = Some(rack);
    spec.labels = words.labels.iter().copied().filter(|_| random.percent(50)).collect();
    spec.dedicated_to = random.percent(5).then(|| words.tenants[random.below(2)]);
    if random.percent(20) {
        spec.licenses = vec![License { name: words.license, count: 16, cost: 1 + random.below(3) as u32 }];
    }
    spec.suitability =
        [Suitability { io: 80, network: 20 }, Suitability { io: 20, network: 90 }][random.below(2)];
    spec.preferred_guests = vec![words.guests[random.below(3)]];
    spec
}

fn demand(snapshot: &mut Snapshot, words: &Words, random: &mut Random, at: usize) -> Demand {
    let vcpus = [2, 4, 8, 16][random.below(4)];
    let ratio = [2, 4][random.below(2)];
    let mut demand = Demand {
        vcpus,
        memory_mib: u64::from(vcpus) * ratio * 1024,
        storage_mib: 20 << 10,
        numa_nodes: if vcpus == 16 { 2 } else { 1 },
        architecture: Some(words.architectures[usize::from(random.percent(5))]),
        tenant: Some(words.tenants[random.below(words.tenants.len())]),
        guest_os: Some(words.guests[random.below(3)]),
        ..Demand::default()
    };
    demand.workload = [Workload::General, Workload::IoHeavy, Workload::NetworkHeavy][random.below(3)];
    if random.percent(30) {
        demand.hypervisors = words.hypervisors[..2].to_vec();
    }
    if random.percent(30) {
        demand.labels = vec![words.labels[random.below(words.labels.len())]];
    }
    if random.percent(5) {
        demand.license = Some(words.license);
    }
    if random.percent(40) {
        // Groups of ten to twenty members, of which several grow at one time.
        let rules = [
            ("apart", Rule::AntiAffinity(Level::Node)),
            ("apart", Rule::AntiAffinity(Level::Node)),
            ("apart", Rule::AntiAffinity(Level::FaultDomain)),
            ("together", Rule::Affinity(Level::FaultDomain)),
            ("parts", Rule::Partition(random.below(3) as u16)),
        ];
        let (kind, rule) = rules[random.below(rules.len())];
        let word = format!("{kind}-{}-{}", at / 100, random.below(3));
        let name = snapshot.intern(&word).expect("few words");
        demand.group = Some(Group { name, rule });
    }
    demand
}
