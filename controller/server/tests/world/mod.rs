//! A whole grid in one thread: the core, its store, nodes with fake hypervisors and utility VMs, and the network
//! between them, in virtual time. Everything that happens follows from a seed.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses a part of it")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;

use uvm_controller::core::{
    Batch, CallAnswer, CallError, CallErrorKind, Caller, Command, Core, Effect, EffectToken, Input, Options,
    Request, State,
};
use uvm_controller::hypervisor::fake::{FakeCapabilities, FakeHypervisor, FakeUtilityVm};
use uvm_controller::hypervisor::{DomainState, HypervisorManager};
use uvm_controller::model::{
    Accepted, DiskRequest, DiskState, Id, InstanceRequest, IoLimits, JobState, NewImage, NewNode,
    NodeCapacity, NumaCapacity, PlacementRequest, PowerState, Problem,
};
use uvm_controller::runtime::nodes::{LocalSite, NodeAddress, perform};
use uvm_controller::store::{MemoryStore, Store};

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// Whether something happens that happens so many times of a thousand.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

pub struct SimNode {
    pub address: NodeAddress,
    pub hypervisor: Arc<FakeHypervisor>,
    /// Nothing reaches it until then.
    pub cut_off_until: u64,
}

/// What is to happen.
#[derive(Debug)]
enum Happening {
    /// A call arrives at its node.
    Arrives { effect: Effect, incarnation: u64 },
    /// An answer arrives at the controller.
    Answered { token: EffectToken, result: Result<CallAnswer, CallError>, incarnation: u64 },
    /// Time goes by for the controller.
    Tick,
}

struct Scheduled {
    at: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// How rough the world is, in times of a thousand.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// A call does not arrive.
    pub lost_call: u64,
    /// An answer does not arrive.
    pub lost_answer: u64,
    /// Longest way of a message in milliseconds.
    pub latency: u64,
}

/// What befalls the n-th call of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// It does not arrive.
    LostCall,
    /// It takes effect, and nobody hears of it.
    LostAnswer,
    /// The utility VM is reset right before it: its jobs are forgotten.
    UtilityVmReset,
    /// All domains end right before it.
    HypervisorKilled,
    /// The node is not reachable for two minutes.
    NodeCutOff,
    /// The hypervisor or the utility VM refuses for good.
    Refused,
    /// The controller ends right after it, before it has heard the answer.
    ControllerKilled,
}

impl Blow {
    pub const ALL: [Self; 7] = [
        Self::LostCall,
        Self::LostAnswer,
        Self::UtilityVmReset,
        Self::HypervisorKilled,
        Self::NodeCutOff,
        Self::Refused,
        Self::ControllerKilled,
    ];
}

pub struct World {
    pub now: u64,
    pub rng: Rng,
    pub core: Core,
    pub store: MemoryStore,
    pub nodes: BTreeMap<Id, SimNode>,
    pub weather: Weather,
    pub events: u64,
    pub crashes: u64,
    /// Calls of steps that arrived so far.
    pub calls: u64,
    pub blow: Option<(u64, Blow)>,
    pub struck: u64,
    pub replies: HashMap<u64, Result<Accepted, Problem>>,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    incarnation: u64,
    asked: u64,
    next_tick: u64,
    keys: u64,
}

fn options(seed: u64) -> Options {
    Options { poll_interval_ms: 5_000, seed, sign: Box::new(|record| format!("signed {}", record.id)) }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut store = MemoryStore::new();
        let mut batch = Batch::default();
        let now = 1_000_000;
        let core = Core::new(store.load().unwrap(), options(seed), now, &mut batch);
        assert!(batch.effects.is_empty());
        Self {
            now,
            rng: Rng(seed),
            core,
            store,
            nodes: BTreeMap::new(),
            weather: Weather::default(),
            events: 0,
            crashes: 0,
            calls: 0,
            blow: None,
            struck: 0,
            replies: HashMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            incarnation: 0,
            asked: 0,
            next_tick: now,
            keys: 0,
        }
    }

    pub fn state(&self) -> &State {
        self.core.state()
    }

    /// A node with one NUMA node, registered through the API, and looked at until its utility VM is in service.
    pub fn add_node(&mut self, name: &str, vcpus: u32, memory_mib: u64, storage_mib: u64) -> Id {
        self.add_node_like(name, vcpus, memory_mib, storage_mib, FakeCapabilities::Qemu)
    }

    pub fn add_node_like(
        &mut self,
        name: &str,
        vcpus: u32,
        memory_mib: u64,
        storage_mib: u64,
        like: FakeCapabilities,
    ) -> Id {
        let capacity = NodeCapacity { numa: vec![NumaCapacity { vcpus, memory_mib }], storage_mib };
        let hypervisor = Arc::new(FakeHypervisor::new(capacity.clone(), like.capabilities()));
        let request = NewNode {
            name: name.to_owned(),
            hypervisor: "fake".to_owned(),
            address: name.to_owned(),
            architecture: "amd64".to_owned(),
            capacity: Some(capacity),
            labels: BTreeMap::new(),
            fault_domain: String::new(),
            licenses: BTreeMap::new(),
            dedicated_to: None,
            suitability: Default::default(),
            certificate_request: None,
        };
        let id = self.must(Command::CreateNode(Box::new(request))).id;
        let address = NodeAddress {
            id,
            name: name.to_owned(),
            hypervisor: "fake".to_owned(),
            address: name.to_owned(),
        };
        self.nodes.insert(id, SimNode { address, hypervisor, cut_off_until: 0 });
        id
    }

    pub fn add_image(&mut self, name: &str) -> Id {
        let request = NewImage {
            name: name.to_owned(),
            project: None,
            source: uvm_api::ImageSource::OciLayout { url: "https://images.example/debian".to_owned() },
            reference: None,
            digest: format!("sha256:{}", "0".repeat(64)),
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            min_disk_mib: 64,
            min_memory_mib: 64,
            hypervisors: Vec::new(),
        };
        self.must(Command::CreateImage(request)).id
    }

    fn schedule(&mut self, after: u64, what: Happening) {
        self.order += 1;
        self.queue.push(Reverse(Scheduled { at: self.now + after, order: self.order, what }));
    }

    fn way(&mut self) -> u64 {
        let latency = self.weather.latency;
        if latency == 0 { 0 } else { 1 + self.rng.below(latency) }
    }

    /// An input for the core; what comes of it is committed, then sent. A commit that fails is a controller that ends
    /// and starts again.
    pub fn input(&mut self, input: Input) {
        let mut batch = Batch::default();
        self.core.apply(self.now, input, &mut batch);
        self.commit(batch);
    }

    fn commit(&mut self, batch: Batch) {
        if !batch.changes.is_empty() && self.store.commit(&batch.changes).is_err() {
            return self.restart();
        }
        self.send(batch);
    }

    fn send(&mut self, batch: Batch) {
        self.replies.extend(batch.replies);
        let incarnation = self.incarnation;
        for effect in batch.effects {
            let way = self.way();
            self.schedule(way, Happening::Arrives { effect, incarnation });
        }
    }

    /// The controller ends, without having known that it would, and starts again over what is durable.
    pub fn restart(&mut self) {
        for _ in 0..100 {
            self.crashes += 1;
            self.incarnation += 1;
            let mut batch = Batch::default();
            let seed = self.rng.next();
            let loaded = self.store.load().unwrap();
            self.core = Core::new(loaded, options(seed), self.now, &mut batch);
            if batch.changes.is_empty() || self.store.commit(&batch.changes).is_ok() {
                return self.send(batch);
            }
            self.now += 500;
        }
        panic!("the store fails for ever");
    }

    /// Asks for something, with a key of its own; the answer is in `replies`.
    pub fn ask(&mut self, caller: Caller, command: Command) -> u64 {
        self.asked += 1;
        self.keys += 1;
        let key = (format!("key-{}", self.keys), format!("hash-{}", self.keys));
        let request = Request { caller, command, idempotency: Some(key), if_match: None };
        let reply = self.asked;
        self.input(Input::Request { reply, request: Box::new(request) });
        reply
    }

    /// Asks as an operator and gets the answer.
    pub fn request(&mut self, command: Command) -> Option<Result<Accepted, Problem>> {
        let reply = self.ask(Caller::Operator, command);
        self.replies.remove(&reply)
    }

    pub fn must(&mut self, command: Command) -> Accepted {
        let shown = format!("{command:?}");
        match self.request(command) {
            Some(Ok(accepted)) => accepted,
            other => panic!("{shown}: {other:?}"),
        }
    }

    /// The next thing happens. False where nothing is to come before `until`.
    pub fn step(&mut self, until: u64) -> bool {
        let wakeup = self.core.next_wakeup().unwrap_or(u64::MAX).min(self.next_tick);
        let next = self.queue.peek().map_or(u64::MAX, |Reverse(next)| next.at);
        if wakeup.min(next) > until {
            self.now = until;
            return false;
        }
        self.events += 1;
        if wakeup < next {
            self.now = self.now.max(wakeup);
            self.next_tick = self.now + 1000;
            self.happen(Happening::Tick);
            return true;
        }
        let Some(Reverse(scheduled)) = self.queue.pop() else { return false };
        self.now = self.now.max(scheduled.at);
        self.happen(scheduled.what);
        true
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Tick => self.input(Input::Tick),
            Happening::Answered { token, result, incarnation } => {
                // Whoever asked may have ended meanwhile.
                if incarnation == self.incarnation {
                    self.input(Input::Outcome { token, result });
                }
            }
            Happening::Arrives { effect, incarnation } => {
                let blow = self.blow_to(&effect);
                let result = match blow {
                    Some(Blow::LostCall) => Err(CallError::new(CallErrorKind::Unreachable, "lost")),
                    Some(Blow::Refused) => Err(CallError::new(CallErrorKind::Permanent, "refused for good")),
                    Some(Blow::LostAnswer) => {
                        let _ = self.perform(&effect);
                        Err(CallError::new(CallErrorKind::Unreachable, "lost"))
                    }
                    _ => self.perform(&effect),
                };
                if blow == Some(Blow::ControllerKilled) {
                    return self.restart();
                }
                let way = self.way();
                self.schedule(way, Happening::Answered { token: effect.token, result, incarnation });
            }
        }
    }

    fn blow_to(&mut self, effect: &Effect) -> Option<Blow> {
        if matches!(effect.token, EffectToken::Poll { .. }) {
            return None;
        }
        self.calls += 1;
        let (_, blow) = self.blow.filter(|(nth, _)| *nth == self.calls)?;
        self.struck += 1;
        let node = self.nodes.get_mut(&effect.node)?;
        match blow {
            Blow::UtilityVmReset => node.hypervisor.reboot_utility_vm(),
            Blow::HypervisorKilled => node.hypervisor.crash_all(),
            Blow::NodeCutOff => node.cut_off_until = self.now + 120_000,
            _ => {}
        }
        Some(blow)
    }

    fn perform(&mut self, effect: &Effect) -> Result<CallAnswer, CallError> {
        let unreachable = || CallError::new(CallErrorKind::Unreachable, "no answer");
        let lost = self.rng.chance(self.weather.lost_call);
        let lost_answer = self.rng.chance(self.weather.lost_answer);
        let Some(node) = self.nodes.get(&effect.node) else {
            return Err(CallError::new(CallErrorKind::NotFound, "no such node"));
        };
        if lost || node.cut_off_until > self.now {
            return Err(unreachable());
        }
        let utility = Arc::new(FakeUtilityVm::new(Arc::clone(&node.hypervisor)));
        let site = LocalSite::new(&node.address, &*node.hypervisor, utility);
        let result = perform(&site, &effect.call, &mut |_| {}, &|| false);
        if lost_answer { Err(unreachable()) } else { result }
    }

    /// Until so much time has gone by.
    pub fn run(&mut self, millis: u64) {
        let until = self.now + millis;
        while self.step(until) {}
    }

    /// Until no job runs, or the time is up.
    pub fn settle(&mut self, millis: u64) {
        let until = self.now + millis;
        while !self.state().jobs.is_empty() || self.busy() {
            if !self.step(until) {
                break;
            }
        }
    }

    fn busy(&self) -> bool {
        self.queue.iter().any(|Reverse(scheduled)| {
            matches!(&scheduled.what,
                Happening::Arrives { effect, .. } if matches!(effect.token, EffectToken::Step { .. }))
        })
    }

    /// A job, ended or not.
    pub fn store_job(&self, id: Id) -> uvm_controller::core::JobRecord {
        self.store.reader().job(id).unwrap().expect("jobs are remembered")
    }

    /// How a job ended.
    pub fn job(&self, id: Id) -> JobState {
        self.store.reader().job(id).unwrap().map(|record| record.job.state).expect("jobs are remembered")
    }

    /// Rules that hold at every moment.
    pub fn check(&self, node: Id) {
        let Some(found) = self.state().nodes.get(&node) else { return };
        let mut numa: Vec<(u64, u64)> = vec![(0, 0); found.capacity.numa.len()];
        for instance in self.state().instances_on(node) {
            for share in &instance.numa {
                let sum = &mut numa[usize::from(share.numa)];
                sum.0 += u64::from(share.vcpus);
                sum.1 += share.memory_mib;
            }
        }
        for (used, has) in numa.iter().zip(&found.capacity.numa) {
            assert!(
                used.0 <= u64::from(has.vcpus) && used.1 <= has.memory_mib,
                "over-allocated: {used:?} of {has:?}"
            );
        }
        let storage: u64 = self.state().disks_on(node).map(|disk| disk.reserved_mib).sum();
        assert!(storage <= found.capacity.storage_mib, "the pool is over-allocated: {storage}");
        let violations = self.nodes[&node].hypervisor.violations();
        assert!(violations.is_empty(), "{violations:?}");
    }

    /// No domain is on two nodes, and each is where its record says.
    pub fn check_domains(&self) {
        let mut found: HashMap<Id, Id> = HashMap::new();
        for (node, sim) in &self.nodes {
            for domain in sim.hypervisor.domains() {
                if let Some(other) = found.insert(domain, *node) {
                    panic!("domain {domain} is on {other} and {node}");
                }
            }
        }
        for instance in self.state().instances.values() {
            if let Some(node) = found.get(&instance.id) {
                assert_eq!(*node, instance.node, "{}", instance.name);
            }
        }
    }

    /// What must be so once nothing goes on any more: what the API promised, and nothing left over.
    pub fn check_rest(&self) {
        let state = self.state();
        assert!(state.jobs.is_empty(), "{:#?}", state.jobs);
        let locks = self.store.clone().load().unwrap().locks;
        assert!(locks.is_empty(), "locks are left: {locks:?}");
        for (id, node) in &self.nodes {
            self.check(*id);
            let volumes = node.hypervisor.volumes();
            for volume in &volumes {
                assert!(state.disks.contains_key(volume), "volume {volume} is leaked");
            }
            for domain in node.hypervisor.domains() {
                assert!(
                    domain == *id || state.instances.contains_key(&domain),
                    "domain {domain} is an orphan"
                );
            }
            let utility = node.hypervisor.domain(*id).unwrap().expect("the utility VM is defined");
            assert!(utility.disks.is_empty(), "the utility VM still has {:?}", utility.disks);
        }
        self.check_domains();
        for instance in state.instances.values() {
            assert!(
                instance.active_job.is_none() && instance.provisioned && !instance.deleting,
                "{instance:?}"
            );
            let node = &self.nodes[&instance.node].hypervisor;
            let domain =
                node.domain(instance.id).unwrap().unwrap_or_else(|| panic!("no domain for {instance:?}"));
            let really = match domain.state {
                DomainState::Running => PowerState::Running,
                DomainState::Paused => PowerState::Paused,
                DomainState::ShutOff => PowerState::Stopped,
                DomainState::Crashed if instance.desired_state == PowerState::Stopped => PowerState::Stopped,
                DomainState::Crashed => PowerState::Crashed,
            };
            assert_eq!(really, instance.desired_state, "{instance:?}");
            assert_eq!(really, instance.observed_state, "{instance:?}");
            let attached: Vec<Id> = domain.disks.iter().map(|(id, _)| *id).collect();
            assert_eq!(attached, instance.disks, "{}", instance.name);
            assert_eq!(u64::from(domain.vcpus), u64::from(instance.vcpus));
            assert_eq!(domain.memory_mib, instance.memory_mib);
            let held: u64 = instance.numa.iter().map(|share| u64::from(share.vcpus)).sum();
            assert_eq!(held, u64::from(instance.vcpus), "what it holds is what it has");
        }
        for disk in state.disks.values() {
            assert!(disk.active_job.is_none(), "{disk:?}");
            assert!(matches!(disk.state, DiskState::Ready | DiskState::Quarantined), "{disk:?}");
            let there = self.nodes[&disk.node].hypervisor.volume(disk.id).unwrap();
            let there = there.unwrap_or_else(|| panic!("no volume for {disk:?}"));
            assert_eq!((there.size_mib, disk.reserved_mib), (disk.size_mib, disk.size_mib), "{disk:?}");
            let owned = disk.instance.is_some_and(|id| {
                state.instances.get(&id).is_some_and(|instance| instance.disks.contains(&disk.id))
            });
            let kept = state
                .snapshots
                .values()
                .any(|snapshot| snapshot.disks.iter().any(|part| part.disk == disk.id));
            assert!(owned || kept || disk.state == DiskState::Quarantined, "nobody's: {disk:?}");
        }
        for snapshot in state.snapshots.values() {
            assert!(snapshot.ready && snapshot.active_job.is_none(), "{snapshot:?}");
        }
        for image in state.images.values() {
            assert!(image.ready && image.active_job.is_none(), "{image:?}");
        }
        for (instance, disk) in
            state.instances.values().flat_map(|i| i.disks.iter().map(move |disk| (i, disk)))
        {
            assert!(state.disks.contains_key(disk), "{} lacks disk {disk}", instance.name);
        }
        let capacity = state.capacity();
        let reserved: u64 = state.disks.values().map(|disk| disk.reserved_mib).sum();
        assert_eq!(capacity.used.storage_mib, reserved);
    }
}

/// A machine of one disk.
pub fn machine(name: &str, image: Option<&str>) -> InstanceRequest {
    InstanceRequest {
        name: name.to_owned(),
        project: Some("acme".to_owned()),
        vcpus: 1,
        memory_mib: 512,
        disks: vec![DiskRequest { size_mib: 1024, name: None, io_limits: IoLimits::default() }],
        image: image.map(str::to_owned),
        partitions: Vec::new(),
        customize: Default::default(),
        boot: Default::default(),
        placement: PlacementRequest::default(),
        start: true,
    }
}
