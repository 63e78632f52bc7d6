//! Controller, nodes and network in virtual time: customers come and go, everything that can fail does, and after every
//! event the rules hold.
#![allow(clippy::unwrap_used)]

mod world;

use uvm_controller::core::{Caller, Command};
use uvm_controller::hypervisor::fake::FakeCapabilities;
use uvm_controller::model::{
    CopyRequest, ErrorCode, GroupRequest, GroupRule, Id, InstanceChange, IoLimits, NewDisk, PowerVerb,
    RestoreRequest, SaveImageRequest, SnapshotRequest,
};
use world::{Weather, World, machine};

/// Events of one run where nothing else is said.
const EVENTS: u64 = 150_000;

struct Simulation {
    world: World,
    names: u64,
    refused: u64,
    accepted: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        for index in 0..6 {
            let like =
                [FakeCapabilities::Qemu, FakeCapabilities::Libvirt, FakeCapabilities::Libxl][index % 3];
            world.add_node_like(&format!("n{index}"), 16, 16_384, 98_304, like);
        }
        world.add_image("debian");
        world.run(30_000);
        for node in world.nodes.values() {
            // Jobs of the utility VM take a while, so that things can happen to them.
            node.hypervisor.set(|settings| settings.job_polls = 3);
        }
        world.weather = Weather { lost_call: 10, lost_answer: 10, latency: 200 };
        Self { world, names: 0, refused: 0, accepted: 0 }
    }

    fn any(&mut self, ids: Vec<Id>) -> Option<Id> {
        let at = self.world.rng.below(ids.len() as u64);
        ids.get(usize::try_from(at).unwrap()).copied()
    }

    fn instance(&mut self) -> Option<Id> {
        self.any(self.world.state().instances.keys().copied().collect())
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("m{}", self.names)
    }

    /// A customer, or an operator, asks for something.
    fn somebody_asks(&mut self) -> Option<Command> {
        let crowd = self.world.state().instances.len() as u64;
        Some(match self.world.rng.below(20) {
            0..=4 if self.world.rng.below(60) > crowd => {
                let mut request =
                    machine(&self.name(), if self.world.rng.chance(900) { Some("debian") } else { None });
                request.vcpus = 1 + u32::try_from(self.world.rng.below(4)).unwrap();
                request.memory_mib = 512 << self.world.rng.below(4);
                request.start = self.world.rng.chance(800);
                if self.world.rng.chance(300) {
                    request.disks.push(request.disks[0].clone());
                }
                if self.world.rng.chance(300) {
                    let rule = [GroupRule::Affinity, GroupRule::AntiAffinity, GroupRule::FaultDomain]
                        [usize::try_from(self.world.rng.below(3)).unwrap()];
                    request.placement.group = Some(GroupRequest { name: format!("{rule:?}"), rule });
                }
                Command::CreateInstance(Box::new(request))
            }
            0..=7 => Command::DeleteInstance(self.instance()?),
            8..=11 => {
                let verbs = [
                    PowerVerb::Start,
                    PowerVerb::Start,
                    PowerVerb::Shutdown,
                    PowerVerb::Destroy,
                    PowerVerb::Suspend,
                    PowerVerb::Resume,
                    PowerVerb::Reboot,
                ];
                let verb = verbs[usize::try_from(self.world.rng.below(7)).unwrap()];
                Command::Power(self.instance()?, verb)
            }
            12 | 13 => {
                let instance = self.instance()?;
                let disk = self.world.state().instances[&instance].disks.first().copied();
                let size_mib =
                    disk.and_then(|id| self.world.state().disks.get(&id)).map(|disk| disk.size_mib + 256);
                let disks = disk
                    .into_iter()
                    .filter(|_| self.world.rng.chance(400))
                    .map(|id| uvm_controller::model::DiskChange { id, size_mib, io_limits: None });
                let disks = disks.collect();
                let change = InstanceChange {
                    vcpus: Some(1 + u32::try_from(self.world.rng.below(6)).unwrap()),
                    memory_mib: Some(512 << self.world.rng.below(4)),
                    hostname: self.world.rng.chance(300).then(|| "renamed.example".to_owned()),
                    disks,
                    allow_restart: true,
                };
                Command::ChangeInstance(instance, change)
            }
            14 => Command::CreateSnapshot(self.instance()?, SnapshotRequest { name: self.name() }),
            15 => {
                let snapshot = self.any(self.world.state().snapshots.keys().copied().collect())?;
                if self.world.rng.chance(500) {
                    return Some(Command::DeleteSnapshot(snapshot));
                }
                let instance = self.world.state().snapshots[&snapshot].instance;
                Command::RestoreSnapshot(instance, RestoreRequest { snapshot })
            }
            16 => {
                let request = CopyRequest { name: self.name(), placement: None, start: true };
                Command::CopyInstance(self.instance()?, request)
            }
            17 => {
                let images = self.world.state().images.len() as u64;
                if images > 1 && self.world.rng.below(8) < images {
                    let own = self.world.state().images.values().filter(|image| image.project.is_some());
                    let own = own.map(|image| image.id).collect();
                    return Some(Command::DeleteImage(self.any(own)?));
                }
                Command::SaveImage(self.instance()?, SaveImageRequest { name: self.name() })
            }
            18 => {
                let instance = self.instance()?;
                let (name, io_limits) = (self.name(), IoLimits::default());
                Command::CreateDisk(NewDisk { name, project: None, size_mib: 256, instance, io_limits })
            }
            _ if self.world.rng.chance(500) => {
                Command::DeleteDisk(self.any(self.world.state().disks.keys().copied().collect())?)
            }
            _ => Command::CancelJob(self.any(self.world.state().jobs.keys().copied().collect())?),
        })
    }

    /// Something breaks.
    fn something_happens(&mut self) {
        let at = self.world.rng.below(self.world.nodes.len() as u64);
        let for_long = self.world.rng.below(300_000);
        let now = self.world.now;
        let which = self.world.rng.below(10);
        let node = self.world.nodes.values_mut().nth(usize::try_from(at).unwrap()).unwrap();
        match which {
            0 | 1 => node.hypervisor.reboot_utility_vm(),
            2 => node.hypervisor.crash_all(),
            3 | 4 => node.cut_off_until = now + for_long,
            5 => {
                let domains = node.hypervisor.domains();
                if let Some(domain) = domains.get(usize::try_from(for_long).unwrap() % domains.len().max(1)) {
                    let _ = node.hypervisor.crash(*domain);
                }
            }
            6 => {
                // Guests that do not listen to the power button for a while.
                let deaf = for_long.is_multiple_of(2);
                node.hypervisor.set(|settings| settings.shutdown_looks = if deaf { None } else { Some(2) });
            }
            _ => self.world.restart(),
        }
    }

    fn run(&mut self, events: u64) {
        let mut checked = 0;
        while self.world.events < events {
            if self.world.rng.chance(20)
                && let Some(command) = self.somebody_asks()
            {
                let reply = self.world.ask(caller(&command), command);
                match self.world.replies.remove(&reply) {
                    Some(Ok(_)) => self.accepted += 1,
                    Some(Err(problem)) => {
                        assert_ne!(problem.code, ErrorCode::Internal, "{problem:?}");
                        self.refused += 1;
                    }
                    None => {}
                }
            }
            if self.world.rng.chance(1) {
                self.something_happens();
            }
            self.world.step(u64::MAX);
            // One node at a time: each event is at one.
            let nodes = self.world.nodes.len() as u64;
            let node = *self.world.nodes.keys().nth(usize::try_from(checked % nodes).unwrap()).unwrap();
            self.world.check(node);
            checked += 1;
            if checked % 64 == 0 {
                self.world.check_domains();
            }
        }
    }

    /// The weather clears up; what was begun comes to its end.
    fn calm(&mut self) {
        self.world.weather = Weather::default();
        for node in self.world.nodes.values_mut() {
            node.cut_off_until = 0;
            node.hypervisor.set(|settings| settings.shutdown_looks = Some(0));
        }
        self.world.run(20 * 60_000);
        self.world.settle(48 * 3_600_000);
        self.world.run(60_000);
        self.world.check_rest();
    }
}

fn caller(command: &Command) -> Caller {
    match command {
        // The image of everybody is the operator's; a project's own things are its tenant's.
        Command::CreateNode(_) | Command::CreateImage(_) => Caller::Operator,
        _ => Caller::Tenant { project: "acme".to_owned() },
    }
}

#[test]
fn whatever_happens_the_rules_hold() {
    let events = std::env::var("UVM_SIMULATION_EVENTS").ok().map_or(EVENTS, |text| text.parse().unwrap());
    let seeds =
        std::env::var("UVM_SIMULATION_SEED").ok().map_or(vec![1, 2], |text| vec![text.parse().unwrap()]);
    for seed in seeds {
        let mut simulation = Simulation::new(seed);
        simulation.run(events);
        let days = simulation.world.now as f64 / 86_400_000.0;
        println!(
            "seed {seed}: {} events, {days:.1} days, {} requests accepted, {} refused, {} controller restarts",
            simulation.world.events, simulation.accepted, simulation.refused, simulation.world.crashes
        );
        simulation.calm();
        assert!(
            simulation.accepted > events / 500 && simulation.world.crashes > 10,
            "the world was too quiet"
        );
    }
}
