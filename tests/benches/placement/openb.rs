//! Tasks of another real cluster, with their creation and deletion: Alibaba's "openb" trace, Apache-2.0.
//! A host's CPUs and memory are taken as one NUMA node; GPUs are left out.

use std::collections::BTreeMap;
use std::path::Path;

use uvm_placement::{Allocation, Demand, NodeSpec, Numa, Snapshot, place};

use super::Row;
use super::trace::{self, Cpus, Task};

/// One way to place tasks.
trait Grid {
    type Held;
    fn create(&mut self, task: &Task) -> Option<Self::Held>;
    fn delete(&mut self, held: Self::Held);
    fn hosts_in_use(&self) -> usize;
}

/// What one way came to.
#[derive(Default)]
struct Outcome {
    rejected: usize,
    /// Most hosts that had a task at one time.
    most_hosts: usize,
}

/// Most hosts in use at one time, beside first-fit.
pub(crate) fn openb(data: &Path) -> Row {
    let (hosts, tasks) = (trace::openb_hosts(data), trace::openb_tasks(data));
    let ours = walk(Ours::new(&hosts), &tasks);
    let peer = walk(FirstFit::new(&hosts), &tasks);
    Row {
        name: "openb".to_owned(),
        ours: ours.most_hosts as f64,
        peer: Some(peer.most_hosts as f64),
        unit: "hosts at one time",
        note: format!(
            "{} tasks on {} hosts: {} rejected. First-fit (the peer): {} rejected",
            tasks.len(),
            hosts.len(),
            ours.rejected,
            peer.rejected
        ),
    }
}

/// Creations and deletions in the order of time.
fn walk<G: Grid>(mut grid: G, tasks: &[Task]) -> Outcome {
    let mut running: BTreeMap<(u64, usize), G::Held> = BTreeMap::new();
    let mut outcome = Outcome::default();
    for (at, task) in tasks.iter().enumerate() {
        while running.first_key_value().is_some_and(|((deleted, _), _)| *deleted <= task.created) {
            let (_, held) = running.pop_first().expect("it was just looked at");
            grid.delete(held);
        }
        match grid.create(task) {
            Some(held) => {
                running.insert((task.deleted, at), held);
            }
            None => outcome.rejected += 1,
        }
        outcome.most_hosts = outcome.most_hosts.max(grid.hosts_in_use());
    }
    outcome
}

struct Ours {
    snapshot: Snapshot,
}

impl Ours {
    fn new(hosts: &[Cpus]) -> Self {
        let mut snapshot = Snapshot::new();
        let kind = snapshot.intern("qemu").expect("few words");
        for (at, host) in hosts.iter().enumerate() {
            let numa = vec![Numa { vcpus: host.cpus, memory_mib: host.memory_mib }];
            let spec = NodeSpec::new(format!("host-{at}"), numa, kind, kind);
            snapshot.add_node(spec).expect("a host of the trace");
        }
        Self { snapshot }
    }
}

impl Grid for Ours {
    type Held = Allocation;

    fn create(&mut self, task: &Task) -> Option<Allocation> {
        let (vcpus, memory_mib) = (task.amount.cpus, task.amount.memory_mib);
        let demand = Demand { vcpus, memory_mib, ..Demand::default() };
        let placement = place(&self.snapshot, &demand).ok()?;
        Some(self.snapshot.reserve(&demand, &placement).expect("what was just placed"))
    }

    fn delete(&mut self, held: Allocation) {
        self.snapshot.release(&held).expect("what was reserved");
    }

    fn hosts_in_use(&self) -> usize {
        self.snapshot.nodes().filter(|node| node.instances > 0).count()
    }
}

struct FirstFit {
    free: Vec<Cpus>,
    tasks: Vec<usize>,
}

impl FirstFit {
    fn new(hosts: &[Cpus]) -> Self {
        Self { free: hosts.to_vec(), tasks: vec![0; hosts.len()] }
    }
}

impl Grid for FirstFit {
    type Held = (usize, Cpus);

    fn create(&mut self, task: &Task) -> Option<(usize, Cpus)> {
        let amount = task.amount;
        let fits = |free: &Cpus| free.cpus >= amount.cpus && free.memory_mib >= amount.memory_mib;
        let at = self.free.iter().position(fits)?;
        self.free[at].cpus -= amount.cpus;
        self.free[at].memory_mib -= amount.memory_mib;
        self.tasks[at] += 1;
        Some((at, amount))
    }

    fn delete(&mut self, (at, amount): (usize, Cpus)) {
        self.free[at].cpus += amount.cpus;
        self.free[at].memory_mib += amount.memory_mib;
        self.tasks[at] -= 1;
    }

    fn hosts_in_use(&self) -> usize {
        self.tasks.iter().filter(|tasks| **tasks > 0).count()
    }
}
