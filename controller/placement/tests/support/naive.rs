//! Placement once more, written from its description: nothing is kept between questions, everything is
//! added up from the nodes and the allocations each time, and every node and every choice of NUMA nodes is
//! tried. Slow, and meant to be obviously right.

use std::collections::BTreeMap;

use uvm_placement::{
    Allocation, Demand, Filter, Level, NodeId, NodeSpec, NodeState, Numa, Rule, Score, Share, Symbol,
    Weights, Workload,
};

/// Nodes and what is on them. Nodes are in the order of their ids, which is that of their slots.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) nodes: BTreeMap<NodeId, NodeSpec>,
    pub(crate) allocations: Vec<Allocation>,
}

/// What the scale of a grid is: MiB per vCPU, per MiB of storage (12 bits after the point), of the mean
/// node and of the mean fault domain.
struct Scale {
    per_vcpu: i64,
    per_storage: i64,
    node: i64,
    domain: i64,
}

/// The four highest binary digits.
fn round(number: i64) -> i64 {
    let mut unit = 1;
    while number / unit >= 16 {
        unit *= 2;
    }
    number / unit * unit
}

fn scaled(amount: i64, weight: i64, per: i64) -> i64 {
    (amount * ((weight << 20) / per.max(1))) >> 20
}

/// A domain is a name, or a node without one.
type Domain = Result<Symbol, NodeId>;

impl Model {
    fn on(&self, node: NodeId) -> impl Iterator<Item = &Allocation> {
        self.allocations.iter().filter(move |of| of.node == node)
    }

    pub(crate) fn used(&self, node: NodeId, numa: usize) -> Numa {
        let shares = self.on(node).flat_map(|of| &of.shares).filter(|share| usize::from(share.numa) == numa);
        shares.fold(Numa::default(), |sum, share| Numa {
            vcpus: sum.vcpus + share.vcpus,
            memory_mib: sum.memory_mib + share.memory_mib,
        })
    }

    fn free(&self, node: NodeId) -> Vec<Numa> {
        let left = |(numa, has): (usize, &Numa)| {
            let used = self.used(node, numa);
            Numa {
                vcpus: has.vcpus.saturating_sub(used.vcpus),
                memory_mib: has.memory_mib.saturating_sub(used.memory_mib),
            }
        };
        self.nodes[&node].numa.iter().enumerate().map(left).collect()
    }

    fn free_storage(&self, node: NodeId) -> u64 {
        let used: u64 = self.on(node).map(|of| of.storage_mib).sum();
        self.nodes[&node].storage_mib.saturating_sub(used)
    }

    fn domain(&self, node: NodeId) -> Domain {
        self.nodes[&node].fault_domain.ok_or(node)
    }

    fn scale(&self) -> Scale {
        let numa = || self.nodes.values().flat_map(|spec| &spec.numa);
        let vcpus: i64 = numa().map(|numa| i64::from(numa.vcpus)).sum();
        let memory: i64 = numa().map(|numa| numa.memory_mib as i64).sum();
        let storage: i64 = self.nodes.values().map(|spec| spec.storage_mib as i64).sum();
        let mut domains: Vec<Domain> = self.nodes.keys().map(|node| self.domain(*node)).collect();
        domains.sort();
        domains.dedup();
        let per = |number: i64, parts: i64| round((number / parts.max(1)).max(1));
        Scale {
            per_vcpu: per(memory, vcpus),
            per_storage: round((memory << 12) / storage.max(1)),
            node: per(memory, self.nodes.len() as i64),
            domain: per(memory, domains.len() as i64),
        }
    }

    fn members(&self, demand: &Demand) -> Vec<&Allocation> {
        let is_member = |of: &&Allocation| {
            of.group.is_some_and(|group| demand.group.is_some_and(|own| own.name == group.name))
        };
        self.allocations.iter().filter(is_member).collect()
    }

    /// The first filter the node falls at.
    pub(crate) fn falls_at(&self, node: NodeId, demand: &Demand) -> Option<Filter> {
        let spec = &self.nodes[&node];
        let members = self.members(demand);
        let rule = demand.group.map(|group| group.rule);
        let tenants = || self.on(node).filter(|of| of.tenant != demand.tenant);
        let free = self.free(node);
        let pool: u32 = spec
            .licenses
            .iter()
            .filter(|pool| Some(pool.name) == demand.license)
            .map(|pool| pool.count)
            .sum();
        let taken = self.on(node).filter(|of| of.license == demand.license).count() as u32;
        let same_domain = |of: &&&Allocation| self.domain(of.node) == self.domain(node);
        let falls = |filter| match filter {
            Filter::NodeState => spec.state != NodeState::Ready,
            Filter::RequestedNode => {
                demand.node.is_some_and(|wanted| wanted != node) || demand.exclude.contains(&node)
            }
            Filter::Hypervisor => {
                !demand.hypervisors.is_empty() && !demand.hypervisors.contains(&spec.hypervisor)
            }
            Filter::Architecture => demand.architecture.is_some_and(|wanted| wanted != spec.architecture),
            Filter::Labels => !demand.labels.iter().all(|label| spec.labels.contains(label)),
            Filter::TenantIsolation => {
                spec.dedicated_to.is_some_and(|only| Some(only) != demand.tenant)
                    || tenants().any(|of| of.exclusive)
                    || (demand.exclusive && tenants().next().is_some())
            }
            Filter::License => demand.license.is_some() && pool <= taken,
            Filter::Affinity => match rule {
                Some(Rule::Affinity(Level::Node)) => {
                    !members.is_empty() && !members.iter().any(|of| of.node == node)
                }
                Some(Rule::Affinity(Level::FaultDomain)) => {
                    !members.is_empty() && members.iter().filter(same_domain).count() == 0
                }
                _ => false,
            },
            Filter::AntiAffinity => {
                rule == Some(Rule::AntiAffinity(Level::Node)) && members.iter().any(|of| of.node == node)
            }
            Filter::FaultDomain => match rule {
                Some(Rule::AntiAffinity(Level::FaultDomain)) => members.iter().any(|of| same_domain(&of)),
                Some(own @ Rule::Partition(_)) => members.iter().any(|of| {
                    let rule = of.group.map(|group| group.rule);
                    same_domain(&of) && rule != Some(own) && matches!(rule, Some(Rule::Partition(_)))
                }),
                _ => false,
            },
            Filter::Vcpus => free.iter().map(|numa| numa.vcpus).sum::<u32>() < demand.vcpus,
            Filter::Memory => free.iter().map(|numa| numa.memory_mib).sum::<u64>() < demand.memory_mib,
            Filter::Storage => self.free_storage(node) < demand.storage_mib,
            Filter::Numa => choose(&free, demand, 1).is_none(),
        };
        Filter::ALL.into_iter().find(|filter| falls(*filter))
    }

    /// The best node, its shares, and why.
    pub(crate) fn place(&self, demand: &Demand, weights: &Weights) -> Option<(NodeId, Vec<Share>, Score)> {
        let scale = self.scale();
        let mut best: Option<(i64, NodeId, Vec<Share>, Score)> = None;
        for node in self.nodes.keys().filter(|node| self.falls_at(**node, demand).is_none()) {
            let (shares, score) = self.score(*node, demand, weights, &scale);
            // Nodes are compared by what they have free before, not after.
            let before = -scaled(self.left(*node, &scale, (0, 0, 0)), weights.fit, scale.node);
            let total = score.total() - score.fit + before;
            if best.as_ref().is_none_or(|(most, ..)| total > *most) {
                best = Some((total, *node, shares, score));
            }
        }
        best.map(|(_, node, shares, score)| (node, shares, score))
    }

    fn left(&self, node: NodeId, scale: &Scale, taken: (u32, u64, u64)) -> i64 {
        let free = self.free(node);
        let vcpus = free.iter().map(|numa| i64::from(numa.vcpus)).sum::<i64>() - i64::from(taken.0);
        let memory = free.iter().map(|numa| numa.memory_mib as i64).sum::<i64>() - taken.1 as i64;
        let storage = self.free_storage(node) as i64 - taken.2 as i64;
        vcpus * scale.per_vcpu + memory + ((storage * scale.per_storage) >> 12)
    }

    fn score(&self, node: NodeId, demand: &Demand, weights: &Weights, scale: &Scale) -> (Vec<Share>, Score) {
        let spec = &self.nodes[&node];
        let free = self.free(node);
        let (chosen, stranded) = choose(&free, demand, scale.per_vcpu).expect("the node fits");
        let vcpus: i64 = spec.numa.iter().map(|numa| i64::from(numa.vcpus)).sum();
        let memory: i64 = spec.numa.iter().map(|numa| numa.memory_mib as i64).sum();
        let occupancy = if self.on(node).next().is_some() {
            weights.occupied
        } else {
            scaled((vcpus * scale.per_vcpu).min(memory).min(2 * scale.node), weights.size, scale.node)
        };
        let demanded = (i64::from(demand.vcpus) * scale.per_vcpu).max(demand.memory_mib as i64);
        let taken = (demand.vcpus, demand.memory_mib, demand.storage_mib);
        let suited = match demand.workload {
            Workload::General => 0,
            Workload::IoHeavy => i64::from(spec.suitability.io),
            Workload::NetworkHeavy => i64::from(spec.suitability.network),
        };
        let preferred = demand.guest_os.is_some_and(|guest| spec.preferred_guests.contains(&guest));
        let cost =
            spec.licenses.iter().find(|pool| Some(pool.name) == demand.license).map_or(0, |pool| pool.cost);
        let score = Score {
            occupancy,
            balance: -scaled(stranded, weights.balance, demanded),
            fit: -scaled(self.left(node, scale, taken), weights.fit, scale.node),
            domain: self.domain_points(node, demand, &chosen, weights, scale),
            group: self.group_points(node, demand, weights),
            suitability: weights.workload * suited / 100 + if preferred { weights.guest } else { 0 },
            license: -(weights.license * i64::from(cost.min(100))),
        };
        (shares(demand, &chosen), score)
    }

    fn ready_in(&self, domain: Domain) -> impl Iterator<Item = NodeId> {
        let ready = move |node: &&NodeId| {
            self.nodes[*node].state == NodeState::Ready && self.domain(**node) == domain
        };
        self.nodes.keys().filter(ready).copied()
    }

    /// Room that groups in the domain still want: how many machines, and of what size.
    fn wanted(&self, domain: Domain, weights: &Weights) -> (u64, Demand) {
        let mut groups: BTreeMap<Symbol, u64> = BTreeMap::new();
        let mut shape = Demand { numa_nodes: 0, ..Demand::default() };
        for of in self.allocations.iter().filter(|of| self.domain(of.node) == domain) {
            let Some(group) = of.group.filter(|of| of.rule == Rule::Affinity(Level::FaultDomain)) else {
                continue;
            };
            *groups.entry(group.name).or_default() += 1;
            shape.numa_nodes = shape.numa_nodes.max(of.shares.len() as u8);
            // Per part, for now.
            shape.vcpus = of.shares.iter().map(|share| share.vcpus).max().unwrap().max(shape.vcpus);
            shape.memory_mib =
                of.shares.iter().map(|share| share.memory_mib).max().unwrap().max(shape.memory_mib);
        }
        let room = weights.group_room as u64;
        shape.vcpus *= u32::from(shape.numa_nodes);
        shape.memory_mib *= u64::from(shape.numa_nodes);
        (groups.values().map(|members| room.saturating_sub(*members).max(members / 4)).sum(), shape)
    }

    fn domain_points(
        &self,
        node: NodeId,
        demand: &Demand,
        chosen: &[usize],
        weights: &Weights,
        scale: &Scale,
    ) -> i64 {
        if matches!(demand.group.map(|group| group.rule), Some(Rule::Affinity(_))) {
            return 0;
        }
        let domain = self.domain(node);
        let mut points = 0;
        if domain.is_ok() {
            let free: Vec<Numa> = self.ready_in(domain).flat_map(|node| self.free(node)).collect();
            let vcpus = free.iter().map(|numa| i64::from(numa.vcpus)).sum::<i64>() * scale.per_vcpu;
            let memory = free.iter().map(|numa| numa.memory_mib as i64).sum::<i64>();
            points -= scaled(vcpus.min(memory).min(2 * scale.domain), weights.room, scale.domain);
        }
        let (wanted, shape) = self.wanted(domain, weights);
        let fit: u64 = self.ready_in(domain).map(|node| copies(&self.free(node), &shape)).sum();
        if wanted > 0 && fit <= wanted {
            let before = self.free(node);
            let mut after = before.clone();
            let (vcpus, memory_mib) = part(demand);
            for numa in chosen {
                after[*numa].vcpus -= vcpus;
                after[*numa].memory_mib -= memory_mib;
            }
            if copies(&after, &shape) < copies(&before, &shape) {
                let short = (wanted - fit).min(64) as i64;
                points -= weights.claim + weights.claim * short / wanted.min(64) as i64;
            }
        }
        points
    }

    fn group_points(&self, node: NodeId, demand: &Demand, weights: &Weights) -> i64 {
        let Some(group) = demand.group else { return 0 };
        let members = self.members(demand);
        let domain = self.domain(node);
        let here = members.iter().filter(|of| self.domain(of.node) == domain);
        match group.rule {
            Rule::Affinity(_) if !members.is_empty() => 0,
            Rule::Affinity(Level::Node) => {
                -(4u64.saturating_sub(copies(&self.free(node), demand)) as i64 * weights.group_short)
            }
            Rule::Affinity(Level::FaultDomain) => {
                // Room counts on nodes that the demand's own filters leave.
                let kind = Demand {
                    architecture: demand.architecture,
                    hypervisors: demand.hypervisors.clone(),
                    labels: demand.labels.clone(),
                    tenant: demand.tenant,
                    ..Demand::default()
                };
                let may = |node: &NodeId| match self.falls_at(*node, &kind) {
                    None => true,
                    // Somebody else's machine is no matter of the node's kind; a dedication is.
                    Some(Filter::TenantIsolation) => {
                        self.nodes[node].dedicated_to.is_none_or(|only| Some(only) == demand.tenant)
                    }
                    Some(_) => false,
                };
                let fit: u64 =
                    self.ready_in(domain).filter(may).map(|node| copies(&self.free(node), demand)).sum();
                let room = weights.group_room as u64;
                let short = room.saturating_sub(fit);
                let crowded = (room + self.wanted(domain, weights).0).saturating_sub(fit) - short;
                -(short.min(64) as i64 * weights.group_short) - crowded.min(64) as i64 * weights.group_crowd
            }
            Rule::AntiAffinity(Level::Node) => -(here.count().min(5) as i64 * weights.spread),
            Rule::AntiAffinity(Level::FaultDomain) => 0,
            own @ Rule::Partition(_) => {
                let same = here.filter(|of| of.group.map(|group| group.rule) == Some(own)).count();
                if same > 0 { weights.partition } else { 0 }
            }
        }
    }
}

/// What each NUMA node must have.
fn part(demand: &Demand) -> (u32, u64) {
    let parts = demand.numa_nodes.max(1);
    (demand.vcpus.div_ceil(u32::from(parts)), demand.memory_mib.div_ceil(u64::from(parts)))
}

/// The NUMA nodes that strand least, of all choices.
fn choose(free: &[Numa], demand: &Demand, per_vcpu: i64) -> Option<(Vec<usize>, i64)> {
    let (vcpus, memory_mib) = part(demand);
    let skew = |vcpus: u32, memory_mib: u64| (i64::from(vcpus) * per_vcpu - memory_mib as i64).abs();
    let mut best: Option<(i64, Vec<usize>)> = None;
    for mask in 1u32..1 << free.len() {
        let chosen: Vec<usize> = (0..free.len()).filter(|numa| mask & (1 << numa) != 0).collect();
        let fits = chosen.iter().all(|at| free[*at].vcpus >= vcpus && free[*at].memory_mib >= memory_mib);
        if chosen.len() != usize::from(demand.numa_nodes.max(1)) || !fits {
            continue;
        }
        let stranded = |numa: &Numa| {
            skew(numa.vcpus - vcpus, numa.memory_mib - memory_mib) - skew(numa.vcpus, numa.memory_mib)
        };
        let sum = chosen.iter().map(|at| stranded(&free[*at])).sum();
        if best.as_ref().is_none_or(|best| (sum, &chosen) < (best.0, &best.1)) {
            best = Some((sum, chosen));
        }
    }
    best.map(|(stranded, chosen)| (chosen, stranded))
}

fn shares(demand: &Demand, chosen: &[usize]) -> Vec<Share> {
    let mut shares: Vec<Share> =
        chosen.iter().map(|numa| Share { numa: *numa as u8, vcpus: 0, memory_mib: 0 }).collect();
    let parts = shares.len();
    // Dealt out one by one, as cards are.
    for one in 0..demand.vcpus as usize {
        shares[one % parts].vcpus += 1;
    }
    for one in 0..demand.memory_mib as usize {
        shares[one % parts].memory_mib += 1;
    }
    shares
}

/// How many such machines fit beside each other: the NUMA nodes with most room left are used up first.
fn copies(free: &[Numa], demand: &Demand) -> u64 {
    let (vcpus, memory_mib) = part(demand);
    let each = |numa: &Numa| u64::from(numa.vcpus / vcpus.max(1)).min(numa.memory_mib / memory_mib.max(1));
    let mut places: Vec<u64> = free.iter().map(each).collect();
    let parts = usize::from(demand.numa_nodes);
    if parts == 0 || parts > places.len() {
        return 0;
    }
    let mut machines = 0;
    loop {
        places.sort_unstable_by(|a, b| b.cmp(a));
        if places[parts - 1] == 0 {
            return machines;
        }
        places.iter_mut().take(parts).for_each(|places| *places -= 1);
        machines += 1;
    }
}
