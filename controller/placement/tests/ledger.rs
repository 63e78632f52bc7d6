//! Taking and giving back: what is free, what is used, and that nothing is given away twice.
#![allow(clippy::unwrap_used)]

mod support;

use support::naive::Model;
use support::{GIB, Grid, Random, demand};
use uvm_placement::{
    Allocation, Amounts, Demand, ErrorKind, Level, NodeSpec, NodeState, Numa, Rule, Share, place,
};

fn amounts(vcpus: u64, gib: u64, storage_gib: u64) -> Amounts {
    Amounts { vcpus, memory_mib: gib * GIB, storage_mib: storage_gib * GIB }
}

#[test]
fn what_is_reserved_is_used_until_it_is_released() {
    let mut grid = Grid::new();
    let node = grid.add("n", &[(8, 32), (8, 32)]);
    let tenant = Some(grid.word("t"));
    let asked = Demand { numa_nodes: 2, storage_mib: 10 * GIB, tenant, ..demand(6, 8) };
    let held = grid.put(&asked);
    assert_eq!(held.amounts(), amounts(6, 8, 10));
    let view = grid.snapshot.node(node).unwrap();
    assert_eq!((view.used, view.free, view.instances), (amounts(6, 8, 10), amounts(10, 56, 1014), 1));
    assert_eq!(view.numa[1].used, Numa { vcpus: 3, memory_mib: 4 * GIB });
    let totals = grid.snapshot.totals();
    assert_eq!((totals.nodes, totals.instances, totals.available), (1, 1, amounts(10, 56, 1014)));
    grid.snapshot.set_state(node, NodeState::Cordoned).unwrap();
    assert_eq!(grid.snapshot.totals().available, Amounts::default());
    grid.snapshot.release(&held).unwrap();
    assert_eq!(grid.snapshot.node(node).unwrap().used, Amounts::default());
    let again = grid.snapshot.release(&held).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Inconsistent, "{again}");
}

#[test]
fn a_placement_of_yesterday_is_not_allocated_twice() {
    let mut grid = Grid::new();
    grid.add("n", &[(8, 32)]);
    let asked = demand(5, 5);
    let (first, second) = (grid.place(&asked), grid.place(&asked));
    assert_eq!(first, second);
    grid.snapshot.reserve(&asked, &first).unwrap();
    let error = grid.snapshot.reserve(&asked, &second).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Full, "node n falls at vcpus"));
    // Two members that must not meet, decided at the same time.
    let group = grid.group("db", Rule::AntiAffinity(Level::Node));
    let asked = Demand { group, ..demand(1, 1) };
    let (first, second) = (grid.place(&asked), grid.place(&asked));
    grid.snapshot.reserve(&asked, &first).unwrap();
    assert_eq!(grid.snapshot.reserve(&asked, &second).unwrap_err().kind(), ErrorKind::Full);
}

#[test]
fn a_placement_is_of_its_demand() {
    let mut grid = Grid::new();
    grid.add("n", &[(8, 32), (8, 32)]);
    let placement = grid.place(&demand(2, 2));
    let other = [demand(1, 2), demand(2, 3), Demand { numa_nodes: 2, ..demand(2, 2) }];
    for other in other {
        assert_eq!(grid.snapshot.reserve(&other, &placement).unwrap_err().kind(), ErrorKind::Invalid);
    }
    let mut elsewhere = placement.clone();
    elsewhere.shares[0].numa = 7;
    let error = grid.snapshot.reserve(&demand(2, 2), &elsewhere).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "a NUMA node that is not there has nothing free");
    elsewhere.shares[0].numa = 8;
    assert_eq!(grid.snapshot.reserve(&demand(2, 2), &elsewhere).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn resizing_in_place_stays_on_its_numa_nodes() {
    let mut grid = Grid::new();
    let node = grid.add("n", &[(8, 32), (8, 32)]);
    let small = grid.put(&Demand { storage_mib: GIB, ..demand(4, 4) });
    let beside = grid.put(&Demand { numa_nodes: 2, ..demand(4, 4) });
    let numa = small.shares[0].numa;
    let grown = grid.snapshot.resize(&small, amounts(6, 30, 2)).unwrap();
    assert_eq!(grown.shares, [Share { numa, vcpus: 6, memory_mib: 30 * GIB }]);
    assert_eq!(grid.snapshot.node(node).unwrap().used, amounts(10, 34, 2));
    let error = grid.snapshot.resized(&grown, amounts(7, 30, 2)).unwrap_err();
    let expected = format!("NUMA node {numa} of n has 0 vCPUs free, 1 more are asked for");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Full, expected));
    let error = grid.snapshot.resize(&grown, amounts(6, 31, 2)).unwrap_err();
    assert!(error.to_string().contains("0 MiB of memory free, 1024 more"), "{error}");
    let error = grid.snapshot.resize(&grown, amounts(6, 30, 2000)).unwrap_err();
    assert!(error.to_string().starts_with("pool of n has "), "{error}");
    assert_eq!(grid.snapshot.node(node).unwrap().used, amounts(10, 34, 2), "nothing changed");
    // One grows into what the other gives up.
    let shrunk = grid.snapshot.resize(&beside, amounts(3, 4, 0)).unwrap();
    assert_eq!(shrunk.shares.iter().map(|share| share.vcpus).collect::<Vec<_>>(), [2, 1]);
    let huge = Amounts { vcpus: u64::MAX, memory_mib: u64::MAX, storage_mib: u64::MAX };
    assert_eq!(grid.snapshot.resize(&grown, huge).unwrap_err().kind(), ErrorKind::Full);
}

#[test]
fn a_shrunken_node_shows_it_and_takes_nothing_more() {
    let mut grid = Grid::new();
    let node = grid.add("n", &[(8, 32), (8, 32)]);
    let tenant = Some(grid.word("t"));
    let asked = Demand { numa_nodes: 2, tenant, ..demand(12, 16) };
    let held = grid.put(&asked);
    grid.change(node, |spec| spec.numa = vec![Numa { vcpus: 4, memory_mib: 32 * GIB }]);
    let view = grid.snapshot.node(node).unwrap();
    assert_eq!((view.capacity.vcpus, view.used.vcpus, view.free.vcpus), (4, 12, 0));
    assert_eq!(view.numa.len(), 2, "the NUMA node that is gone is shown while it is used");
    assert_eq!(grid.snapshot.remove_node(node).unwrap_err().kind(), ErrorKind::Busy);
    grid.refusal(&demand(1, 1));
    // The same after a restart: the allocation is made from its stored fields.
    let mut anew = Grid::new();
    let node = anew.add("n", &[(4, 32)]);
    let tenant = Some(anew.word("t"));
    let stored = Allocation { node, tenant, ..held };
    anew.snapshot.restore(&stored).unwrap();
    let view = anew.snapshot.node(node).unwrap();
    assert_eq!((view.used.vcpus, view.free.vcpus, view.instances), (12, 0, 1));
    anew.refusal(&demand(1, 1));
    anew.snapshot.release(&stored).unwrap();
    assert_eq!(anew.snapshot.node(node).unwrap().used, Amounts::default());
    anew.place(&demand(4, 1));
}

#[test]
fn a_disk_by_itself_holds_storage_and_nothing_else() {
    let mut grid = Grid::new();
    let node = grid.add("n", &[(8, 32)]);
    let (ours, theirs) = (grid.word("ours"), grid.word("theirs"));
    let disk = Allocation {
        node,
        shares: vec![],
        storage_mib: 1000 * GIB,
        tenant: Some(theirs),
        exclusive: false,
        group: None,
        license: None,
    };
    grid.snapshot.restore(&disk).unwrap();
    let view = grid.snapshot.node(node).unwrap();
    assert_eq!((view.used, view.instances), (amounts(0, 0, 1000), 0));
    grid.refusal(&Demand { storage_mib: 25 * GIB, ..demand(1, 1) });
    grid.place(&Demand { exclusive: true, tenant: Some(ours), ..demand(1, 1) });
    assert_eq!(grid.snapshot.remove_node(node).unwrap_err().kind(), ErrorKind::Busy);
    let disk = grid.snapshot.resize(&disk, amounts(0, 0, 1024)).unwrap();
    assert_eq!(grid.snapshot.resize(&disk, amounts(0, 0, 1025)).unwrap_err().kind(), ErrorKind::Full);
    assert_eq!(grid.snapshot.resize(&disk, amounts(1, 0, 1024)).unwrap_err().kind(), ErrorKind::Invalid);
    grid.snapshot.release(&disk).unwrap();
    assert_eq!(grid.snapshot.release(&disk).unwrap_err().kind(), ErrorKind::Inconsistent);
    grid.snapshot.remove_node(node).unwrap();
}

#[test]
fn what_no_allocation_can_be_is_not_restored() {
    let mut grid = Grid::new();
    let node = grid.add("n", &[(8, 32)]);
    let good = grid.put(&demand(1, 1));
    let share = good.shares[0];
    let with = |shares: Vec<Share>| Allocation { shares, ..good.clone() };
    let bad = [
        (Allocation { exclusive: true, ..with(vec![]) }, ErrorKind::Invalid),
        (with(vec![share, share]), ErrorKind::Invalid),
        (with(vec![Share { numa: 8, ..share }]), ErrorKind::Invalid),
        (with(vec![Share { vcpus: u32::MAX, ..share }]), ErrorKind::TooLarge),
        (with(vec![Share { memory_mib: u64::MAX, ..share }]), ErrorKind::TooLarge),
        (Allocation { storage_mib: u64::MAX, ..good.clone() }, ErrorKind::TooLarge),
    ];
    for (bad, kind) in bad {
        assert_eq!(grid.snapshot.restore(&bad).unwrap_err().kind(), kind);
        assert_eq!(grid.snapshot.release(&bad).unwrap_err().kind(), kind);
    }
    assert_eq!(grid.snapshot.node(node).unwrap().instances, 1);
}

#[test]
fn the_id_of_a_removed_node_never_comes_back() {
    let mut grid = Grid::new();
    let old = grid.add("old", &[(8, 32)]);
    let held = grid.put(&demand(1, 1));
    grid.snapshot.release(&held).unwrap();
    grid.snapshot.remove_node(old).unwrap();
    let new = grid.add("new", &[(8, 32)]);
    assert_ne!(old, new);
    assert!(grid.snapshot.node(old).is_none());
    for error in [
        grid.snapshot.restore(&held).unwrap_err(),
        grid.snapshot.release(&held).unwrap_err(),
        grid.snapshot.set_state(old, NodeState::Ready).unwrap_err(),
        grid.snapshot.remove_node(old).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    assert_eq!(grid.place(&demand(1, 1)).node, new);
}

#[test]
fn specifications_past_the_limits_are_refused() {
    let mut grid = Grid::new();
    let good = grid.spec("n", &[(8, 32)]);
    let license = uvm_placement::License { name: grid.qemu, count: 1, cost: 1 };
    let labels = vec![grid.qemu; uvm_placement::MAX_LABELS + 1];
    let bad = [
        NodeSpec { numa: vec![], ..good.clone() },
        NodeSpec { numa: vec![Numa::default(); 9], ..good.clone() },
        NodeSpec { numa: vec![Numa { vcpus: u32::MAX, memory_mib: 1 }], ..good.clone() },
        NodeSpec { numa: vec![Numa { vcpus: 1, memory_mib: u64::MAX }], ..good.clone() },
        NodeSpec { storage_mib: u64::MAX, ..good.clone() },
        NodeSpec { labels, ..good.clone() },
        NodeSpec { licenses: vec![license; 2], ..good.clone() },
        NodeSpec { suitability: uvm_placement::Suitability { io: 101, network: 0 }, ..good.clone() },
    ];
    let node = grid.snapshot.add_node(good).unwrap();
    for spec in bad {
        assert!(grid.snapshot.add_node(spec.clone()).is_err(), "{spec:?}");
        assert!(grid.snapshot.update_node(node, spec).is_err());
    }
    assert_eq!(grid.snapshot.totals().nodes, 1);
    let long = "x".repeat(uvm_placement::MAX_WORD_BYTES + 1);
    assert_eq!(grid.snapshot.intern(&long).unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(grid.snapshot.symbol("qemu"), Some(grid.qemu));
    assert_eq!((grid.snapshot.word(grid.qemu), grid.snapshot.symbol("never")), ("qemu", None));
}

/// Extremes of every number at once: nothing overflows, and the answer is still right.
#[test]
fn the_largest_grid_does_not_overflow() {
    let mut grid = Grid::new();
    let numa = Numa { vcpus: uvm_placement::MAX_VCPUS, memory_mib: uvm_placement::MAX_MEMORY_MIB };
    let largest = NodeSpec {
        numa: vec![numa; 8],
        storage_mib: uvm_placement::MAX_STORAGE_MIB,
        ..grid.spec("largest", &[(1, 1)])
    };
    let smallest = NodeSpec { storage_mib: 0, ..grid.spec("smallest", &[(0, 0)]) };
    for spec in [&smallest, &largest, &smallest] {
        let fault_domain = Some(grid.word("rack"));
        grid.snapshot.add_node(NodeSpec { fault_domain, ..spec.clone() }).unwrap();
    }
    let all = Demand {
        vcpus: 8 * numa.vcpus,
        memory_mib: 8 * numa.memory_mib,
        storage_mib: uvm_placement::MAX_STORAGE_MIB,
        numa_nodes: 8,
        group: grid.group("web", Rule::Affinity(Level::FaultDomain)),
        ..Demand::default()
    };
    let held = grid.put(&all);
    assert_eq!(held.amounts().memory_mib, all.memory_mib);
    grid.refusal(&demand(1, 1));
    grid.snapshot.release(&held).unwrap();
    grid.put(&demand(1, 1));
}

#[test]
fn nothing_is_given_away_twice() {
    let (mut placed, mut refused, mut grown, mut kept) = (0, 0, 0, 0);
    for seed in 1..=20 {
        let mut random = Random(seed * 0x5bd1_e995);
        let mut grid = Grid::new();
        let mut model = Model::default();
        for at in 0..6 {
            let numa = [(random.of(&[4, 8]), random.of(&[8, 16])); 2];
            let id = grid.add(&format!("n{at}"), &numa);
            model.nodes.insert(id, grid.snapshot.node(id).unwrap().spec.clone());
        }
        for _ in 0..400 {
            let asked = Demand {
                numa_nodes: random.of(&[1, 2]),
                storage_mib: random.of(&[1, 90]) * GIB,
                ..demand(random.of(&[1, 2, 3]), random.of(&[1, 2, 5]))
            };
            match place(&grid.snapshot, &asked) {
                Ok(placement) => {
                    model.allocations.push(grid.snapshot.reserve(&asked, &placement).unwrap());
                    placed += 1;
                }
                Err(_) => refused += 1,
            }
            if !model.allocations.is_empty() {
                let at = random.below(model.allocations.len());
                if random.percent(50) {
                    let gone = model.allocations.swap_remove(at);
                    grid.snapshot.release(&gone).unwrap();
                } else {
                    let to = amounts(1 + random.next() % 6, 1 + random.next() % 9, random.next() % 100);
                    match grid.snapshot.resize(&model.allocations[at], to) {
                        Ok(resized) => {
                            assert_eq!(resized.amounts(), to);
                            model.allocations[at] = resized;
                            grown += 1;
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Full);
                            kept += 1;
                        }
                    }
                }
            }
            check(&grid, &model);
        }
    }
    assert!(
        placed > 1_000 && refused > 500 && grown > 500 && kept > 500,
        "{placed} {refused} {grown} {kept}"
    );
}

/// Adds up every node from its allocations.
fn check(grid: &Grid, model: &Model) {
    for (node, spec) in &model.nodes {
        let view = grid.snapshot.node(*node).unwrap();
        let mut storage = 0;
        for of in model.allocations.iter().filter(|of| of.node == *node) {
            storage += of.storage_mib;
        }
        assert_eq!(view.used.storage_mib, storage);
        assert!(storage <= spec.storage_mib);
        for (numa, capacity) in spec.numa.iter().enumerate() {
            let used = model.used(*node, numa);
            assert_eq!(view.numa[numa].used, used);
            assert!(used.vcpus <= capacity.vcpus && used.memory_mib <= capacity.memory_mib);
        }
    }
}
