//! Every filter: what falls at it, what passes, and that the node that passes is the one chosen.
#![allow(clippy::unwrap_used)]

mod support;

use support::{Grid, demand, fell};
use uvm_placement::{
    Demand, Filter, Level, License, NodeId, NodeSpec, NodeState, Rule, Suitability, Weights, Workload,
};

/// Two nodes alike, of which the first, which would win, fell at the filter.
fn only_the_second(grid: &Grid, nodes: [NodeId; 2], asked: &Demand, filter: Filter) {
    assert_eq!(grid.place(asked).node, nodes[1], "{filter}");
    let refusal = grid.refusal(&Demand { node: Some(nodes[0]), ..asked.clone() });
    assert_eq!(fell(&refusal, filter), 1, "{refusal}");
}

fn two() -> (Grid, [NodeId; 2]) {
    let mut grid = Grid::new();
    let nodes = ["first", "second"].map(|name| grid.add(name, &[(16, 64), (16, 64)]));
    assert_eq!(grid.place(&demand(2, 4)).node, nodes[0], "of equal nodes the first");
    (grid, nodes)
}

#[test]
fn names_are_stable_and_in_order() {
    let names: Vec<&str> = Filter::ALL.iter().map(|filter| filter.name()).collect();
    let expected = [
        "node-state",
        "requested-node",
        "hypervisor",
        "architecture",
        "labels",
        "tenant-isolation",
        "license",
        "affinity",
        "anti-affinity",
        "fault-domain",
        "vcpus",
        "memory",
        "storage",
        "numa",
    ];
    assert_eq!(names, expected);
    assert!(Filter::ALL.is_sorted());
}

#[test]
fn node_state() {
    for state in [NodeState::Cordoned, NodeState::Unreachable] {
        let (mut grid, nodes) = two();
        grid.snapshot.set_state(nodes[0], state).unwrap();
        only_the_second(&grid, nodes, &demand(2, 4), Filter::NodeState);
        grid.snapshot.set_state(nodes[0], NodeState::Ready).unwrap();
        assert_eq!(grid.place(&demand(2, 4)).node, nodes[0]);
    }
}

#[test]
fn requested_and_excluded_nodes() {
    let (grid, nodes) = two();
    let asked = Demand { exclude: vec![nodes[0]], ..demand(2, 4) };
    assert_eq!(grid.place(&asked).node, nodes[1]);
    let refusal = grid.refusal(&Demand { node: Some(nodes[0]), ..asked });
    assert_eq!(fell(&refusal, Filter::RequestedNode), 2, "{refusal}");
    let asked = Demand { node: Some(nodes[1]), ..demand(2, 4) };
    assert_eq!(grid.place(&asked).node, nodes[1]);
    let refusal = grid.refusal(&Demand { node: Some(nodes[0]), ..demand(20, 4) });
    assert_eq!((refusal.considered, fell(&refusal, Filter::RequestedNode)), (2, 1), "{refusal}");
}

#[test]
fn hypervisor_and_architecture() {
    let (mut grid, nodes) = two();
    let (xen, arm64) = (grid.word("xen"), grid.word("arm64"));
    grid.change(nodes[1], |spec| spec.hypervisor = xen);
    let asked = Demand { hypervisors: vec![xen], ..demand(2, 4) };
    only_the_second(&grid, nodes, &asked, Filter::Hypervisor);
    let either = Demand { hypervisors: vec![xen, grid.qemu], ..demand(2, 4) };
    assert_eq!(grid.place(&either).node, nodes[0]);
    grid.change(nodes[1], |spec| spec.architecture = arm64);
    let asked = Demand { architecture: Some(arm64), ..demand(2, 4) };
    only_the_second(&grid, nodes, &asked, Filter::Architecture);
}

#[test]
fn labels_all_of_them() {
    let (mut grid, nodes) = two();
    let (ssd, hall) = (grid.word("disk=ssd"), grid.word("hall=2"));
    grid.change(nodes[0], |spec| spec.labels = vec![ssd]);
    grid.change(nodes[1], |spec| spec.labels = vec![hall, ssd]);
    assert_eq!(grid.place(&Demand { labels: vec![ssd], ..demand(2, 4) }).node, nodes[0]);
    let asked = Demand { labels: vec![ssd, hall], ..demand(2, 4) };
    only_the_second(&grid, nodes, &asked, Filter::Labels);
}

#[test]
fn labels_beyond_those_with_a_bit() {
    let (mut grid, nodes) = two();
    let many: Vec<_> = (0..200).map(|at| grid.word(&format!("label-{at}"))).collect();
    grid.change(nodes[1], |spec| spec.labels = many.clone());
    for label in many {
        let asked = Demand { labels: vec![label], ..demand(2, 4) };
        only_the_second(&grid, nodes, &asked, Filter::Labels);
    }
    let unheard = grid.word("unheard-of");
    let refusal = grid.refusal(&Demand { labels: vec![unheard], ..demand(2, 4) });
    assert_eq!(fell(&refusal, Filter::Labels), 2);
}

#[test]
fn a_dedicated_node_is_for_its_tenant() {
    let (mut grid, nodes) = two();
    let (ours, theirs) = (grid.word("ours"), grid.word("theirs"));
    grid.change(nodes[0], |spec| spec.dedicated_to = Some(theirs));
    for tenant in [None, Some(ours)] {
        let asked = Demand { tenant, ..demand(2, 4) };
        only_the_second(&grid, nodes, &asked, Filter::TenantIsolation);
    }
    assert_eq!(grid.place(&Demand { tenant: Some(theirs), ..demand(2, 4) }).node, nodes[0]);
}

#[test]
fn an_exclusive_machine_shares_with_its_tenant_alone() {
    let (mut grid, nodes) = two();
    let (ours, theirs) = (grid.word("ours"), grid.word("theirs"));
    let exclusive = Demand { tenant: Some(theirs), exclusive: true, ..demand(2, 4) };
    let held = grid.put_on(nodes[0], &exclusive);
    let asked = Demand { tenant: Some(ours), ..demand(2, 4) };
    only_the_second(&grid, nodes, &asked, Filter::TenantIsolation);
    assert_eq!(grid.place(&Demand { tenant: Some(theirs), ..demand(2, 4) }).node, nodes[0]);
    // And the other way round: who wants to be alone does not come to others.
    let shared = grid.put_on(nodes[1], &asked);
    let refusal = grid.refusal(&Demand { node: Some(nodes[1]), ..exclusive.clone() });
    assert_eq!(fell(&refusal, Filter::TenantIsolation), 1);
    grid.snapshot.release(&held).unwrap();
    grid.snapshot.release(&shared).unwrap();
    assert_eq!(grid.place(&asked).node, nodes[0]);
    assert_eq!(grid.place(&Demand { node: Some(nodes[1]), ..exclusive }).node, nodes[1]);
}

#[test]
fn licenses_are_counted_and_the_cheap_ones_used_first() {
    let (mut grid, nodes) = two();
    let suite = grid.word("suite");
    grid.change(nodes[0], |spec| spec.licenses = vec![License { name: suite, count: 1, cost: 90 }]);
    grid.change(nodes[1], |spec| spec.licenses = vec![License { name: suite, count: 2, cost: 1 }]);
    let asked = Demand { license: Some(suite), ..demand(1, 1) };
    let held: Vec<_> = (0..3).map(|_| grid.put(&asked)).collect();
    let on: Vec<_> = held.iter().map(|of| of.node).collect();
    assert_eq!(on, [nodes[1], nodes[1], nodes[0]]);
    let refusal = grid.refusal(&asked);
    assert_eq!(fell(&refusal, Filter::License), 2, "{refusal}");
    grid.snapshot.release(&held[0]).unwrap();
    assert_eq!(grid.place(&asked).node, nodes[1]);
    let other = Some(grid.word("other"));
    assert_eq!(fell(&grid.refusal(&Demand { license: other, ..demand(1, 1) }), Filter::License), 2);
}

/// Two racks of two nodes.
fn racks() -> (Grid, [NodeId; 4]) {
    let mut grid = Grid::new();
    let places = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")];
    let nodes = places.map(|(name, rack)| grid.add_in(name, rack, &[(16, 64)]));
    (grid, nodes)
}

#[test]
fn affinity_keeps_a_group_on_one_node() {
    let (mut grid, nodes) = racks();
    let asked = Demand { group: grid.group("web", Rule::Affinity(Level::Node)), ..demand(4, 4) };
    grid.put_on(nodes[2], &asked);
    for _ in 0..3 {
        assert_eq!(grid.put(&asked).node, nodes[2]);
    }
    let refusal = grid.refusal(&asked);
    assert_eq!((fell(&refusal, Filter::Affinity), fell(&refusal, Filter::Vcpus)), (3, 1), "{refusal}");
}

#[test]
fn affinity_by_fault_domain_keeps_a_group_in_one_rack() {
    let (mut grid, nodes) = racks();
    let group = grid.group("web", Rule::Affinity(Level::FaultDomain));
    let asked = Demand { group, ..demand(8, 4) };
    grid.put_on(nodes[2], &asked);
    for _ in 0..3 {
        assert!(nodes[2..].contains(&grid.put(&asked).node));
    }
    let refusal = grid.refusal(&asked);
    assert_eq!((fell(&refusal, Filter::Affinity), fell(&refusal, Filter::Vcpus)), (2, 2), "{refusal}");
}

#[test]
fn anti_affinity_keeps_a_group_apart_and_far_apart_where_it_can() {
    let (mut grid, nodes) = racks();
    let asked = Demand { group: grid.group("db", Rule::AntiAffinity(Level::Node)), ..demand(1, 1) };
    let held: Vec<_> = (0..4).map(|_| grid.put(&asked).node).collect();
    assert_ne!(held[0] < nodes[2], held[1] < nodes[2], "the second is in another rack");
    let mut all = held.clone();
    all.sort();
    assert_eq!(all, nodes);
    assert_eq!(fell(&grid.refusal(&asked), Filter::AntiAffinity), 4);
}

#[test]
fn anti_affinity_by_fault_domain_takes_one_rack_each() {
    let (mut grid, nodes) = racks();
    let lone = grid.add("lone", &[(16, 64)]);
    let group = grid.group("db", Rule::AntiAffinity(Level::FaultDomain));
    let asked = Demand { group, ..demand(1, 1) };
    let held: Vec<_> = (0..3).map(|_| grid.put(&asked).node).collect();
    assert_eq!(held.iter().filter(|node| nodes[..2].contains(node)).count(), 1);
    assert_eq!(held.iter().filter(|node| nodes[2..].contains(node)).count(), 1);
    assert!(held.contains(&lone), "a node without a rack is one by itself");
    assert_eq!(fell(&grid.refusal(&asked), Filter::FaultDomain), 5);
}

#[test]
fn parts_of_a_group_share_no_rack() {
    let (mut grid, nodes) = racks();
    let part =
        |grid: &mut Grid, part| Demand { group: grid.group("db", Rule::Partition(part)), ..demand(4, 4) };
    let (one, other, third) = (part(&mut grid, 1), part(&mut grid, 2), part(&mut grid, 3));
    grid.put_on(nodes[0], &one);
    for _ in 0..3 {
        assert!(nodes[..2].contains(&grid.put(&one).node), "the part stays where it is while there is room");
        assert!(nodes[2..].contains(&grid.put(&other).node));
    }
    assert_eq!(fell(&grid.refusal(&third), Filter::FaultDomain), 4);
}

#[test]
fn vcpus_memory_storage_and_numa() {
    let mut grid = Grid::new();
    grid.add("only", &[(8, 32), (8, 32)]);
    let cases = [
        (demand(17, 1), Filter::Vcpus),
        (demand(1, 65), Filter::Memory),
        (Demand { storage_mib: 1025 * support::GIB, ..demand(1, 1) }, Filter::Storage),
        (demand(9, 1), Filter::Numa),
        (demand(1, 33), Filter::Numa),
        (Demand { numa_nodes: 3, ..demand(3, 3) }, Filter::Numa),
        (Demand { numa_nodes: 9, ..demand(9, 9) }, Filter::Numa),
        (Demand { numa_nodes: 255, ..demand(1, 1) }, Filter::Numa),
    ];
    for (asked, filter) in cases {
        assert_eq!(fell(&grid.refusal(&asked), filter), 1, "{asked:?}");
    }
    for asked in [demand(8, 32), Demand { numa_nodes: 2, ..demand(16, 64) }, Demand::default()] {
        grid.place(&asked);
    }
    let past = Demand { vcpus: u32::MAX, memory_mib: u64::MAX, storage_mib: u64::MAX, ..Demand::default() };
    assert_eq!(fell(&grid.refusal(&past), Filter::Vcpus), 1, "the first filter counts");
}

#[test]
fn numa_nodes_get_even_shares() {
    let mut grid = Grid::new();
    let node = grid.add("wide", &[(4, 8), (16, 64), (1, 1), (16, 64)]);
    let placed = grid.place(&Demand { numa_nodes: 3, vcpus: 8, memory_mib: 13, ..Demand::default() });
    let shares: Vec<_> = placed.shares.iter().map(|of| (of.numa, of.vcpus, of.memory_mib)).collect();
    assert_eq!((placed.node, shares), (node, vec![(0, 3, 5), (1, 3, 4), (3, 2, 4)]));
    // Two CPUs with their memory strand least where they leave an even rest.
    let mut grid = Grid::new();
    grid.add("skewed", &[(16, 32), (4, 32)]);
    assert_eq!(grid.place(&demand(8, 4)).shares[0].numa, 0);
    assert_eq!(grid.place(&demand(1, 16)).shares[0].numa, 1);
}

#[test]
fn machines_go_where_others_are_and_to_what_suits_them() {
    let (mut grid, nodes) = two();
    grid.put_on(nodes[1], &demand(2, 4));
    let placed = grid.place(&demand(2, 4));
    assert_eq!(placed.node, nodes[1]);
    let score = placed.score;
    let sum = score.occupancy + score.balance + score.fit + score.domain + score.group;
    assert_eq!(score.total(), sum + score.suitability + score.license);
    for (workload, node) in [(Workload::IoHeavy, 0), (Workload::NetworkHeavy, 1)] {
        let (mut grid, nodes) = two();
        let guest = grid.word("bsd");
        let suits = |io, network| move |spec: &mut NodeSpec| spec.suitability = Suitability { io, network };
        grid.change(nodes[0], suits(90, 10));
        grid.change(nodes[1], suits(10, 90));
        assert_eq!(grid.place(&Demand { workload, ..demand(2, 4) }).node, nodes[node]);
        grid.change(nodes[1], |spec| spec.preferred_guests = vec![guest]);
        assert_eq!(grid.place(&Demand { guest_os: Some(guest), ..demand(2, 4) }).node, nodes[1]);
    }
}

#[test]
fn a_rack_is_left_to_the_group_that_must_stay_in_it() {
    let mut grid = Grid::weighing(Weights { group_room: 4, ..Weights::default() });
    let tight = grid.add_in("tight", "a", &[(6, 24)]);
    let wide = grid.add_in("wide", "b", &[(8, 32)]);
    let asked = Demand { group: grid.group("web", Rule::Affinity(Level::FaultDomain)), ..demand(2, 8) };
    assert_eq!(grid.put(&asked).node, wide, "where there is room to grow");
    for _ in 0..3 {
        assert_eq!(grid.put(&demand(2, 8)).node, tight, "others go elsewhere");
    }
    assert_eq!(grid.put(&demand(2, 8)).node, wide, "and come where there is no elsewhere");
}
