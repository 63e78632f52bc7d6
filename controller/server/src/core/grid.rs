//! What is reserved where: records become allocations of `uvm-placement`, and its answers become the API's words.
//!
//! Reservations follow from the records alone (an instance holds its NUMA shares, a disk its place in the pool), so
//! that what is durable and what placement believes cannot drift apart.

use std::collections::HashMap;

use uvm_placement::{
    Allocation, Demand, Filter, Group, Level, License, NodeId, NodeSpec, NodeState as PlacementState, Numa,
    Rule, Share, Snapshot, Suitability, Symbol, Workload as PlacementWorkload,
};

use crate::model::{
    Amounts, Disk, Fell, GroupRule, Id, Instance, Node, NodeState, NumaShare, PlacementRequest, Refusal,
    Workload,
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Grid {
    snapshot: Snapshot,
    nodes: HashMap<Id, NodeId>,
    ids: HashMap<NodeId, Id>,
    held: HashMap<Id, Allocation>,
}

/// What a machine asks of placement.
pub(super) struct Ask<'a> {
    pub(super) project: &'a str,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) storage_mib: u64,
    pub(super) placement: &'a PlacementRequest,
    pub(super) architecture: &'a str,
    pub(super) guest_os: Option<&'a str>,
    /// Kinds of hypervisor; any where it is empty.
    pub(super) hypervisors: Vec<&'a str>,
}

/// Longest name of a group.
const MAX_NAME: usize = 63;

fn group_word(project: &str, group: &str) -> String {
    format!("{project}/{group}")
}

impl Grid {
    /// A word that placement is asked about; one too long is one that nothing has.
    fn word(&mut self, word: &str) -> Option<Symbol> {
        self.snapshot.intern(word).ok()
    }

    /// Makes words known, so that questions need not change anything.
    pub(super) fn learn<'w>(&mut self, words: impl IntoIterator<Item = &'w str>) {
        for word in words {
            self.word(word);
        }
    }

    /// As [`Grid::learn`], for what is new with a request: its project and its group. Labels, hypervisors and licenses
    /// are the nodes'; one that no node has said is one that no node has.
    pub(super) fn learn_request(&mut self, project: &str, request: &PlacementRequest) {
        self.learn([project]);
        // A longer name is refused later on, and not worth remembering.
        if let Some(group) = request.group.as_ref().filter(|group| group.name.len() <= MAX_NAME) {
            self.learn([group_word(project, &group.name).as_str()]);
        }
    }

    pub(super) fn put_node(&mut self, node: &Node) {
        let spec = self.spec(node);
        match self.nodes.get(&node.id) {
            Some(known) => {
                let same = self.snapshot.node(*known).is_some_and(|view| *view.spec == spec);
                if !same {
                    self.snapshot
                        .update_node(*known, spec)
                        .expect("a node's record was checked when it came");
                }
            }
            None => {
                let known = self.snapshot.add_node(spec).expect("a node's record was checked when it came");
                self.nodes.insert(node.id, known);
                self.ids.insert(known, node.id);
            }
        }
    }

    /// Whether placement takes a node of that shape.
    pub(super) fn check_node(&self, node: &Node) -> Result<(), String> {
        let mut trial = Self::default();
        let spec = trial.spec(node);
        trial.snapshot.add_node(spec).map(drop).map_err(|error| error.to_string())
    }

    fn spec(&mut self, node: &Node) -> NodeSpec {
        let numa = node.capacity.numa.iter();
        let numa = numa.map(|numa| Numa { vcpus: numa.vcpus, memory_mib: numa.memory_mib }).collect();
        let hypervisor = self.word(&node.hypervisor).expect("a short word");
        let architecture = self.word(&node.architecture).expect("a short word");
        let labels = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
        let licenses: Vec<License> = node
            .licenses
            .iter()
            .filter_map(|(name, pool)| {
                Some(License { name: self.word(name)?, count: pool.count, cost: pool.cost })
            })
            .collect();
        NodeSpec {
            storage_mib: node.capacity.storage_mib,
            fault_domain: Some(node.fault_domain.as_str())
                .filter(|word| !word.is_empty())
                .and_then(|w| self.word(w)),
            labels: labels.iter().filter_map(|label| self.word(label)).collect(),
            state: match node.state {
                NodeState::Ready if node.cordoned => PlacementState::Cordoned,
                NodeState::Ready => PlacementState::Ready,
                NodeState::Joining | NodeState::Degraded | NodeState::Unreachable => {
                    PlacementState::Unreachable
                }
            },
            dedicated_to: node.dedicated_to.as_ref().and_then(|project| self.word(project)),
            licenses,
            suitability: Suitability { io: node.suitability.io, network: node.suitability.network },
            ..NodeSpec::new(node.name.clone(), numa, hypervisor, architecture)
        }
    }

    pub(super) fn remove_node(&mut self, id: Id) {
        if let Some(known) = self.nodes.remove(&id) {
            self.ids.remove(&known);
            self.snapshot.remove_node(known).expect("only nodes with nothing on them are removed");
        }
    }

    pub(super) fn put_instance(&mut self, instance: &Instance) {
        let shares = instance.numa.iter();
        let same = |known: &Allocation| {
            self.nodes.get(&instance.node) == Some(&known.node)
                && known.shares.len() == instance.numa.len()
                && known.shares.iter().zip(&instance.numa).all(|(a, b)| *a == share(b))
        };
        if self.held.get(&instance.id).is_some_and(same) {
            return;
        }
        let shares = shares.map(share).collect();
        let group = instance.placement.group.as_ref().and_then(|group| {
            let name = self.word(&group_word(&instance.project, &group.name))?;
            Some(Group { name, rule: rule(group.rule) })
        });
        let tenant = self.word(&instance.project);
        let license = instance.placement.license.as_ref().and_then(|license| self.word(license));
        let Some(node) = self.nodes.get(&instance.node).copied() else { return };
        let exclusive = instance.placement.exclusive;
        self.hold(
            instance.id,
            Allocation { node, shares, storage_mib: 0, tenant, exclusive, group, license },
        );
    }

    pub(super) fn put_disk(&mut self, disk: &Disk) {
        let Some(node) = self.nodes.get(&disk.node).copied() else { return };
        let known = self.held.get(&disk.id);
        if known.is_some_and(|known| known.node == node && known.storage_mib == disk.reserved_mib) {
            return;
        }
        let tenant = self.word(&disk.project);
        let storage_mib = disk.reserved_mib;
        let (shares, exclusive, group, license) = (Vec::new(), false, None, None);
        self.hold(disk.id, Allocation { node, shares, storage_mib, tenant, exclusive, group, license });
    }

    fn hold(&mut self, id: Id, allocation: Allocation) {
        self.release(id);
        self.snapshot.restore(&allocation).expect("the node of a record is known");
        self.held.insert(id, allocation);
    }

    pub(super) fn release(&mut self, id: Id) {
        if let Some(held) = self.held.remove(&id) {
            self.snapshot.release(&held).expect("what is held was taken before");
        }
    }

    /// What a node has and what is reserved on it.
    pub(super) fn amounts(&self, node: &Node) -> (Amounts, Amounts) {
        let view = self.nodes.get(&node.id).and_then(|known| self.snapshot.node(*known));
        let amounts = |found: uvm_placement::Amounts| Amounts {
            vcpus: found.vcpus,
            memory_mib: found.memory_mib,
            storage_mib: found.storage_mib,
        };
        view.map(|view| (amounts(view.capacity), amounts(view.used))).unwrap_or_default()
    }

    /// Where a machine goes. Its words must have been learnt.
    pub(super) fn place(&self, ask: &Ask<'_>) -> Result<(Id, Vec<NumaShare>), Refusal> {
        let demand = match self.demand(ask) {
            Ok(demand) => demand,
            Err((filter, missing)) => {
                let nodes = self.nodes.len();
                let fell = vec![Fell { filter: filter.name().to_owned(), nodes }];
                return Err(Refusal { considered: nodes, fell, least_change: Some(missing) });
            }
        };
        match uvm_placement::place(&self.snapshot, &demand) {
            Ok(placement) => {
                let id = self.ids.get(&placement.node).copied().expect("placement knows our nodes only");
                let shares = placement.shares.iter();
                let shares = shares.map(|share| NumaShare {
                    numa: share.numa,
                    vcpus: share.vcpus,
                    memory_mib: share.memory_mib,
                });
                Ok((id, shares.collect()))
            }
            Err(refusal) => Err(Refusal {
                considered: refusal.considered,
                fell: refusal
                    .fell
                    .iter()
                    .map(|(filter, nodes)| Fell { filter: filter.name().to_owned(), nodes: *nodes })
                    .collect(),
                least_change: (!refusal.least_change.is_empty()).then(|| {
                    let changes: Vec<String> = refusal.least_change.iter().map(ToString::to_string).collect();
                    format!("on node {}: {}", refusal.nearest_name, changes.join(", and "))
                }),
            }),
        }
    }

    fn demand(&self, ask: &Ask<'_>) -> Result<Demand, (Filter, String)> {
        let placement = ask.placement;
        let node = match &placement.node {
            Some(wanted) => match self.snapshot.nodes().find(|view| view.spec.name == *wanted) {
                Some(view) => Some(view.id),
                None => {
                    let change = format!("name a node there is: there is no {wanted:?}");
                    return Err((Filter::RequestedNode, change));
                }
            },
            None => None,
        };
        let known = |word: &str| self.snapshot.symbol(word);
        let unknown = |words: &[String]| words.iter().find(|word| known(word).is_none()).cloned();
        if let Some(label) = unknown(&placement.labels) {
            return Err((Filter::Labels, format!("without label {label:?}, which no node has")));
        }
        if let Some(license) = placement.license.as_ref().filter(|license| known(license).is_none()) {
            return Err((Filter::License, format!("without license {license:?}, which no node has")));
        }
        if !ask.hypervisors.is_empty() && ask.hypervisors.iter().all(|kind| known(kind).is_none()) {
            let kinds = ask.hypervisors.join(", ");
            return Err((Filter::Hypervisor, format!("another hypervisor: no node has {kinds}")));
        }
        Ok(Demand {
            vcpus: ask.vcpus,
            memory_mib: ask.memory_mib,
            storage_mib: ask.storage_mib,
            numa_nodes: placement.numa_nodes,
            architecture: known(ask.architecture),
            hypervisors: ask.hypervisors.iter().filter_map(|word| known(word)).collect(),
            labels: placement.labels.iter().filter_map(|label| known(label)).collect(),
            tenant: known(ask.project),
            exclusive: placement.exclusive,
            group: placement.group.as_ref().and_then(|group| {
                Some(Group { name: known(&group_word(ask.project, &group.name))?, rule: rule(group.rule) })
            }),
            license: placement.license.as_deref().and_then(known),
            workload: match placement.workload {
                Workload::General => PlacementWorkload::General,
                Workload::IoHeavy => PlacementWorkload::IoHeavy,
                Workload::NetworkHeavy => PlacementWorkload::NetworkHeavy,
            },
            guest_os: ask.guest_os.and_then(known),
            exclude: Vec::new(),
            node,
        })
    }

    /// The shares of a machine that gets other amounts where it is, on the same NUMA nodes; what is missing where it
    /// does not fit.
    pub(super) fn resized(
        &self,
        instance: &Instance,
        vcpus: u32,
        memory_mib: u64,
    ) -> Result<Vec<NumaShare>, String> {
        let view = self.nodes.get(&instance.node).and_then(|known| self.snapshot.node(*known));
        let view = view.ok_or_else(|| "its node is not known".to_owned())?;
        let parts = instance.numa.len().max(1) as u64;
        let mut shares = Vec::new();
        for (index, old) in instance.numa.iter().enumerate() {
            let part = |whole: u64| whole / parts + u64::from((index as u64) < whole % parts);
            let (want_vcpus, want_memory) = (part(u64::from(vcpus)), part(memory_mib));
            let Some(numa) = view.numa.get(usize::from(old.numa)) else {
                return Err(format!("NUMA node {} is gone", old.numa));
            };
            let free = u64::from(numa.capacity.vcpus.saturating_sub(numa.used.vcpus)) + u64::from(old.vcpus);
            if want_vcpus > free.max(u64::from(old.vcpus)) {
                return Err(format!(
                    "NUMA node {} has {free} vCPUs for it, {want_vcpus} are wanted",
                    old.numa
                ));
            }
            let free = numa.capacity.memory_mib.saturating_sub(numa.used.memory_mib) + old.memory_mib;
            if want_memory > free.max(old.memory_mib) {
                return Err(format!(
                    "NUMA node {} has {free} MiB for it, {want_memory} are wanted",
                    old.numa
                ));
            }
            let vcpus = u32::try_from(want_vcpus).unwrap_or(u32::MAX);
            shares.push(NumaShare { numa: old.numa, vcpus, memory_mib: want_memory });
        }
        Ok(shares)
    }

    /// What is left of a node's pool in MiB.
    pub(super) fn free_storage(&self, node: Id) -> u64 {
        let view = self.nodes.get(&node).and_then(|known| self.snapshot.node(*known));
        view.map_or(0, |view| view.free.storage_mib)
    }
}

fn share(of: &NumaShare) -> Share {
    Share { numa: of.numa, vcpus: of.vcpus, memory_mib: of.memory_mib }
}

fn rule(rule: GroupRule) -> Rule {
    match rule {
        GroupRule::Affinity => Rule::Affinity(Level::Node),
        GroupRule::AntiAffinity => Rule::AntiAffinity(Level::Node),
        GroupRule::FaultDomain => Rule::AntiAffinity(Level::FaultDomain),
    }
}
