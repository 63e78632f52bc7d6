//! The fast way and the obvious way give the same answers, on small grids that change all the time.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use support::Random;
use support::naive::Model;
use uvm_placement::{
    Allocation, Amounts, Demand, Filter, Group, Level, License, NodeId, NodeSpec, NodeState, Numa, Rule,
    Snapshot, Suitability, Symbol, Weights, Workload, place,
};

const GRIDS: u64 = 60;
const STEPS: usize = 250;

struct Words {
    hypervisors: Vec<Symbol>,
    architectures: Vec<Symbol>,
    /// More than have a bit of their own.
    labels: Vec<Symbol>,
    tenants: Vec<Symbol>,
    racks: Vec<Symbol>,
    groups: Vec<Symbol>,
    license: Symbol,
}

fn words(snapshot: &mut Snapshot) -> Words {
    let mut all = |prefix: &str, count: usize| -> Vec<Symbol> {
        (0..count).map(|at| snapshot.intern(&format!("{prefix}-{at}")).unwrap()).collect()
    };
    Words {
        hypervisors: all("hypervisor", 2),
        architectures: all("architecture", 2),
        labels: all("label", 80),
        tenants: all("tenant", 3),
        racks: all("rack", 3),
        groups: all("group", 6),
        license: all("license", 1)[0],
    }
}

fn spec(random: &mut Random, words: &Words, name: String) -> NodeSpec {
    let numa = (0..random.of(&[1, 2, 2, 4]))
        .map(|_| Numa { vcpus: random.of(&[4, 8, 16]), memory_mib: random.of(&[16, 32, 64]) })
        .collect();
    let hypervisor = words.hypervisors[usize::from(random.percent(20))];
    let architecture = words.architectures[usize::from(random.percent(10))];
    let mut spec = NodeSpec::new(name, numa, hypervisor, architecture);
    spec.storage_mib = random.of(&[40, 80, 200]);
    spec.fault_domain = if random.percent(80) { Some(random.of(&words.racks)) } else { None };
    // All common labels of the first ones, and of the rare ones a few.
    spec.labels = words.labels.iter().copied().filter(|_| random.percent(50)).collect();
    spec.state = random.of(&[NodeState::Ready, NodeState::Ready, NodeState::Ready, NodeState::Cordoned]);
    spec.dedicated_to = if random.percent(10) { Some(random.of(&words.tenants)) } else { None };
    if random.percent(50) {
        let cost = random.below(150) as u32;
        spec.licenses = vec![License { name: words.license, count: 2, cost }];
    }
    spec.suitability = Suitability { io: random.below(101) as u8, network: random.below(101) as u8 };
    spec.preferred_guests = vec![random.of(&words.labels)];
    spec
}

fn demand(random: &mut Random, words: &Words, nodes: &[NodeId]) -> Demand {
    let mut demand = Demand {
        vcpus: random.of(&[1, 1, 2, 3, 4, 8, 12]),
        memory_mib: random.of(&[1, 4, 7, 16, 30]),
        storage_mib: random.of(&[0, 1, 10]),
        numa_nodes: random.of(&[1, 1, 1, 2, 3]),
        tenant: if random.percent(70) { Some(random.of(&words.tenants)) } else { None },
        exclusive: random.percent(10),
        workload: random.of(&[Workload::General, Workload::IoHeavy, Workload::NetworkHeavy]),
        guest_os: Some(random.of(&words.labels)),
        ..Demand::default()
    };
    if random.percent(30) {
        demand.architecture = Some(words.architectures[0]);
    }
    if random.percent(20) {
        demand.hypervisors = vec![words.hypervisors[0]];
    }
    if random.percent(30) {
        demand.labels = vec![random.of(&words.labels)];
    }
    if random.percent(20) {
        demand.license = Some(words.license);
    }
    if random.percent(10) {
        demand.exclude = vec![random.of(nodes)];
    }
    if random.percent(5) {
        demand.node = Some(random.of(nodes));
    }
    if random.percent(60) {
        let rules = [
            Rule::Affinity(Level::Node),
            Rule::Affinity(Level::FaultDomain),
            Rule::Affinity(Level::FaultDomain),
            Rule::AntiAffinity(Level::Node),
            Rule::AntiAffinity(Level::FaultDomain),
            Rule::Partition(random.below(2) as u16),
        ];
        demand.group = Some(Group { name: random.of(&words.groups), rule: random.of(&rules) });
    }
    demand
}

fn change_grid(random: &mut Random, words: &Words, snapshot: &mut Snapshot, model: &mut Model) {
    let nodes: Vec<NodeId> = model.nodes.keys().copied().collect();
    let node = random.of(&nodes);
    match random.below(4) {
        0 => {
            let state = random.of(&[NodeState::Ready, NodeState::Cordoned, NodeState::Unreachable]);
            snapshot.set_state(node, state).unwrap();
            model.nodes.get_mut(&node).unwrap().state = state;
        }
        1 => {
            let spec = spec(random, words, "changed".to_owned());
            snapshot.update_node(node, spec.clone()).unwrap();
            model.nodes.insert(node, spec);
        }
        2 if nodes.len() > 3 => {
            let is_empty = !model.allocations.iter().any(|of| of.node == node);
            assert_eq!(snapshot.remove_node(node).is_ok(), is_empty);
            if is_empty {
                model.nodes.remove(&node);
            }
        }
        _ if nodes.len() < 14 => {
            let spec = spec(random, words, "late".to_owned());
            model.nodes.insert(snapshot.add_node(spec.clone()).unwrap(), spec);
        }
        _ => {}
    }
}

fn compare(snapshot: &Snapshot, model: &Model, demand: &Demand, weights: &Weights) -> bool {
    let expected = model.place(demand, weights);
    match place(snapshot, demand) {
        Ok(placement) => {
            let found = (placement.node, placement.shares, placement.score);
            assert_eq!(Some(found), expected, "{demand:?}");
            true
        }
        Err(refusal) => {
            assert_eq!(expected, None, "{demand:?}: {refusal}");
            let fell: Vec<Filter> =
                model.nodes.keys().filter_map(|node| model.falls_at(*node, demand)).collect();
            assert_eq!(refusal.considered, model.nodes.len());
            for filter in Filter::ALL {
                let count = fell.iter().filter(|at| **at == filter).count();
                assert_eq!(support::fell(&refusal, filter), count, "{filter}: {demand:?}");
            }
            false
        }
    }
}

/// A grid put together again from what was stored answers as the one that has grown.
fn restart(grown: &Snapshot, model: &Model, weights: &Weights, random: &mut Random, old: &Words) {
    let mut snapshot = Snapshot::with_weights(*weights);
    // The same words in the same order are the same symbols.
    let words = words(&mut snapshot);
    assert_eq!(words.labels, old.labels);
    let mut anew = Model::default();
    let mut ids = BTreeMap::new();
    for (id, spec) in &model.nodes {
        let now = snapshot.add_node(spec.clone()).unwrap();
        anew.nodes.insert(now, spec.clone());
        ids.insert(*id, now);
    }
    for of in &model.allocations {
        let of = Allocation { node: ids[&of.node], ..of.clone() };
        snapshot.restore(&of).unwrap();
        anew.allocations.push(of);
    }
    assert_eq!(snapshot.totals(), grown.totals());
    let nodes: Vec<NodeId> = anew.nodes.keys().copied().collect();
    for _ in 0..20 {
        let demand = demand(random, &words, &nodes);
        compare(&snapshot, &anew, &demand, weights);
    }
}

/// Returns how many demands were placed and how many refused.
fn run(seed: u64, weights: Weights) -> (usize, usize) {
    let mut random = Random(seed);
    let mut snapshot = Snapshot::with_weights(weights);
    let words = words(&mut snapshot);
    let mut model = Model::default();
    for at in 0..3 + random.below(8) {
        let spec = spec(&mut random, &words, format!("node-{at}"));
        model.nodes.insert(snapshot.add_node(spec.clone()).unwrap(), spec);
    }
    let (mut placed, mut refused) = (0, 0);
    for _ in 0..STEPS {
        let nodes: Vec<NodeId> = model.nodes.keys().copied().collect();
        let demand = demand(&mut random, &words, &nodes);
        if compare(&snapshot, &model, &demand, &weights) {
            placed += 1;
            let placement = place(&snapshot, &demand).unwrap();
            model.allocations.push(snapshot.reserve(&demand, &placement).unwrap());
        } else {
            refused += 1;
        }
        if random.percent(40) && !model.allocations.is_empty() {
            let gone = model.allocations.swap_remove(random.below(model.allocations.len()));
            snapshot.release(&gone).unwrap();
        }
        if random.percent(10) && !model.allocations.is_empty() {
            let at = random.below(model.allocations.len());
            let to =
                Amounts { vcpus: random.of(&[1, 2, 5]), memory_mib: random.of(&[1, 8, 20]), storage_mib: 3 };
            if let Ok(resized) = snapshot.resize(&model.allocations[at], to) {
                model.allocations[at] = resized;
            }
        }
        if random.percent(15) {
            change_grid(&mut random, &words, &mut snapshot, &mut model);
        }
    }
    restart(&snapshot, &model, &weights, &mut random, &words);
    (placed, refused)
}

#[test]
fn the_fast_way_and_the_obvious_way_agree() {
    let (mut placed, mut refused) = (0, 0);
    for seed in 1..=GRIDS {
        let (of, not) = run(seed * 0x9e37_79b9, Weights::default());
        placed += of;
        refused += not;
    }
    assert!(placed > 5_000, "{placed} placed");
    assert!(refused > 1_000, "{refused} refused");
}

#[test]
fn they_agree_with_other_weights() {
    for seed in 1..=GRIDS / 2 {
        let mut random = Random(seed * 0x1234_5677);
        let mut weight = || random.below(30_000) as i64;
        let weights = Weights {
            occupied: weight(),
            size: weight(),
            balance: weight(),
            fit: weight(),
            room: weight(),
            claim: weight(),
            group_room: weight() % 8,
            group_short: weight(),
            group_crowd: weight(),
            spread: weight(),
            partition: weight(),
            workload: weight(),
            guest: weight(),
            license: weight() % 500,
        };
        run(seed * 0x0dea_dbef, weights);
    }
}
