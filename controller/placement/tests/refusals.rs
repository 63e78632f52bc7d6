//! What a refusal says, and that the change it names does help.
#![allow(clippy::unwrap_used)]

mod support;

use support::{GIB, Grid, Random, demand};
use uvm_placement::{Change, Demand, Group, Level, License, NodeState, Numa, Refusal, Rule, place};

#[test]
fn an_empty_grid_says_so() {
    let refusal = Grid::new().refusal(&demand(1, 1));
    assert_eq!(refusal.to_string(), "the grid has no nodes");
    assert_eq!((refusal.nearest, refusal.least_change), (None, vec![]));
}

#[test]
fn the_largest_amount_that_fits() {
    let mut grid = Grid::new();
    grid.add("small", &[(8, 16), (8, 16)]);
    let large = grid.add("large", &[(16, 48), (16, 32)]);
    let refusal = grid.refusal(&demand(8, 64));
    assert_eq!(refusal.nearest, Some(large));
    // On both NUMA nodes it fits whole: that costs less than a quarter of the memory.
    assert_eq!(refusal.least_change, [Change::NumaNodes { from: 1, to: 2 }]);
    assert_eq!(
        refusal.to_string(),
        "none of 2 nodes fits: 1 fell at memory, 1 at numa; it would fit on large with 2 NUMA nodes instead of 1"
    );
    grid.change(large, |spec| spec.numa.truncate(1));
    let refusal = grid.refusal(&demand(8, 64));
    assert_eq!(refusal.least_change, [Change::Memory { from: 64 * GIB, to: 48 * GIB }]);
    assert_eq!(
        refusal.to_string(),
        "none of 2 nodes fits: 2 fell at memory; it would fit on large with at most 48 GiB of memory instead \
         of 64 GiB"
    );
    let refusal = grid.refusal(&demand(20, 20));
    assert_eq!(refusal.least_change, [Change::Vcpus { from: 20, to: 16 }]);
    let refusal = grid.refusal(&demand(20, 50));
    let both = [Change::Vcpus { from: 20, to: 16 }, Change::Memory { from: 50 * GIB, to: 48 * GIB }];
    assert_eq!(refusal.least_change, both);
    let refusal = grid.refusal(&Demand { storage_mib: 1500 * GIB, ..demand(1, 1) });
    assert_eq!(refusal.least_change, [Change::Storage { from: 1500 * GIB, to: 1024 * GIB }]);
}

#[test]
fn what_an_operator_can_do() {
    let mut grid = Grid::new();
    let node = grid.add("n7", &[(8, 32)]);
    let gone = grid.add("n8", &[(8, 32)]);
    grid.snapshot.set_state(gone, NodeState::Unreachable).unwrap();
    let refusal = grid.refusal(&demand(9, 1));
    assert_eq!(
        refusal.to_string(),
        "none of 2 nodes fits: 1 fell at node-state, 1 at vcpus; it would fit on n7 with at most 8 vCPUs instead of 9"
    );
    grid.snapshot.set_state(node, NodeState::Cordoned).unwrap();
    let refusal = grid.refusal(&demand(1, 1));
    assert_eq!((refusal.nearest, refusal.least_change.as_slice()), (Some(node), &[Change::Uncordon][..]));
    assert_eq!(
        refusal.to_string(),
        "none of 2 nodes fits: 2 fell at node-state; it would fit on n7 with the node uncordoned"
    );
    grid.snapshot.remove_node(node).unwrap();
    let refusal = grid.refusal(&demand(1, 1));
    assert_eq!(refusal.least_change, [Change::BringBack]);
    assert!(refusal.to_string().starts_with("the one node does not fit: 1 fell at node-state;"), "{refusal}");
}

#[test]
fn what_the_demand_can_do_without() {
    let mut grid = Grid::new();
    let node = grid.add("n", &[(8, 32)]);
    let (ssd, xen, arm64) = (grid.word("ssd"), grid.word("xen"), grid.word("arm64"));
    let suite = grid.word("suite");
    let (ours, theirs) = (grid.word("ours"), grid.word("theirs"));
    let cases = [
        (Demand { labels: vec![ssd], ..demand(1, 1) }, Change::WithoutLabel("ssd".into())),
        (Demand { hypervisors: vec![xen], ..demand(1, 1) }, Change::AllowHypervisor("qemu".into())),
        (Demand { architecture: Some(arm64), ..demand(1, 1) }, Change::AnotherArchitecture("amd64".into())),
        (Demand { license: Some(suite), ..demand(1, 1) }, Change::WithoutLicense("suite".into())),
        (Demand { exclude: vec![node], ..demand(1, 1) }, Change::AnotherNode),
    ];
    for (asked, change) in cases {
        assert_eq!(grid.refusal(&asked).least_change, [change]);
    }
    let rule = Rule::AntiAffinity(Level::Node);
    let group = grid.group("db", rule);
    let asked = Demand { group, tenant: Some(theirs), ..demand(1, 1) };
    grid.put(&asked);
    let refusal = grid.refusal(&asked);
    assert_eq!(refusal.least_change, [Change::WithoutRule { group: "db".into(), rule }]);
    assert_eq!(
        refusal.to_string(),
        "the one node does not fit: 1 fell at anti-affinity; it would fit on n with no anti-affinity in group db"
    );
    let refusal = grid.refusal(&Demand { exclusive: true, tenant: Some(ours), ..demand(1, 1) });
    assert_eq!(refusal.least_change, [Change::NotExclusive]);
    // Nobody is told to move another tenant out of the way.
    grid.change(node, |spec| spec.dedicated_to = Some(theirs));
    let refusal = grid.refusal(&Demand { tenant: Some(ours), ..demand(1, 1) });
    assert_eq!(refusal.least_change, []);
    assert_eq!(
        refusal.to_string(),
        "the one node does not fit: 1 fell at tenant-isolation; no change of the demand would help"
    );
}

/// Makes the changes, on the demand or on the grid.
fn apply(grid: &mut Grid, demand: &mut Demand, refusal: &Refusal) {
    let node = refusal.nearest.unwrap();
    for change in &refusal.least_change {
        match change {
            Change::Uncordon | Change::BringBack => grid.snapshot.set_state(node, NodeState::Ready).unwrap(),
            Change::AnotherNode => {
                demand.node = None;
                demand.exclude.clear();
            }
            Change::AllowHypervisor(kind) => demand.hypervisors.push(grid.word(kind)),
            Change::AnotherArchitecture(name) => demand.architecture = Some(grid.word(name)),
            Change::WithoutLabel(label) => {
                let label = grid.word(label);
                demand.labels.retain(|of| *of != label);
            }
            Change::NotExclusive => demand.exclusive = false,
            Change::WithoutLicense(_) => demand.license = None,
            Change::WithoutRule { .. } => demand.group = None,
            Change::NumaNodes { to, .. } => demand.numa_nodes = *to,
            Change::Vcpus { to, .. } => demand.vcpus = *to,
            Change::Memory { to, .. } => demand.memory_mib = *to,
            Change::Storage { to, .. } => demand.storage_mib = *to,
        }
    }
}

#[test]
fn the_change_helps_always_and_a_little_less_never() {
    let (mut helped, mut least) = (0, 0);
    for seed in 1..=400 {
        let mut random = Random(seed * 0x2545_f491);
        let mut grid = Grid::new();
        let labels = ["ssd", "hall", "gpu"].map(|label| grid.word(label));
        let tenants = ["a", "b"].map(|tenant| grid.word(tenant));
        let (xen, suite) = (grid.word("xen"), grid.word("suite"));
        let groups = ["g", "h"].map(|group| grid.word(group));
        for at in 0..2 + random.below(5) {
            let numa: Vec<_> =
                (0..1 + random.below(3)).map(|_| (random.of(&[2, 4, 8]), random.of(&[4, 8, 16]))).collect();
            let rack = random.of(&["r1", "r2"]);
            let node = grid.add_in(&format!("n{at}"), rack, &numa);
            let (kind, count) = (random.of(&[xen, grid.qemu]), random.below(2) as u32);
            let has = labels.into_iter().filter(|_| random.percent(50)).collect();
            let state =
                random.of(&[NodeState::Ready, NodeState::Ready, NodeState::Cordoned, NodeState::Unreachable]);
            grid.change(node, |spec| {
                spec.hypervisor = kind;
                spec.labels = has;
                spec.state = state;
                spec.licenses = vec![License { name: suite, count, cost: 1 }];
            });
        }
        for _ in 0..30 {
            let rules = [
                Rule::Affinity(Level::Node),
                Rule::AntiAffinity(Level::FaultDomain),
                Rule::Partition(1),
                Rule::Partition(2),
            ];
            let group = Group { name: random.of(&groups), rule: random.of(&rules) };
            let mut asked = Demand {
                numa_nodes: random.of(&[1, 1, 2, 3]),
                storage_mib: random.of(&[1, 200, 2000]) * GIB,
                tenant: Some(random.of(&tenants)),
                exclusive: random.percent(10),
                group: if random.percent(50) { Some(group) } else { None },
                labels: labels.into_iter().filter(|_| random.percent(20)).collect(),
                hypervisors: if random.percent(30) { vec![xen] } else { vec![] },
                license: if random.percent(20) { Some(suite) } else { None },
                ..demand(random.of(&[1, 2, 5, 9]), random.of(&[1, 3, 9, 20]))
            };
            match place(&grid.snapshot, &asked) {
                Ok(placement) => {
                    grid.snapshot.reserve(&asked, &placement).unwrap();
                }
                Err(refusal) if refusal.least_change.is_empty() => {}
                Err(refusal) => {
                    let mut changed = Grid { snapshot: grid.snapshot.clone(), ..grid };
                    least += usize::from(more_of_it_fits(&grid, &asked, &refusal));
                    apply(&mut changed, &mut asked, &refusal);
                    changed.place(&Demand { node: refusal.nearest, ..asked });
                    helped += 1;
                }
            }
        }
    }
    assert!(helped > 2_000, "{helped}");
    assert_eq!(least, 0, "a smaller reduction would have done");
}

/// Whether one unit more than the refusal allows would fit too, for reductions alone.
fn more_of_it_fits(grid: &Grid, asked: &Demand, refusal: &Refusal) -> bool {
    let more = match refusal.least_change.as_slice() {
        [Change::Vcpus { to, .. }] => Demand { vcpus: to + 1, ..asked.clone() },
        [Change::Memory { to, .. }] => Demand { memory_mib: to + 1, ..asked.clone() },
        [Change::Storage { to, .. }] => Demand { storage_mib: to + 1, ..asked.clone() },
        _ => return false,
    };
    place(&grid.snapshot, &more).is_ok()
}

#[test]
fn a_large_node_of_many_numa_nodes_is_searched_whole() {
    let mut grid = Grid::new();
    let node = grid.add("wide", &[(4, 4); 8]);
    grid.change(node, |spec| spec.numa[5] = Numa { vcpus: 7, memory_mib: 7 * GIB });
    let refusal = grid.refusal(&demand(8, 8));
    assert_eq!(refusal.least_change, [Change::NumaNodes { from: 1, to: 2 }]);
    let refusal = grid.refusal(&demand(8, 2));
    assert_eq!(
        refusal.least_change,
        [Change::NumaNodes { from: 1, to: 2 }],
        "an eighth less would cost more"
    );
    let refusal = grid.refusal(&demand(40, 2));
    assert_eq!(refusal.nearest_name, "wide");
}
