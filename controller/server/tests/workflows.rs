//! Every workflow, and every workflow interrupted before and after each of its durable writes.
#![allow(clippy::unwrap_used)]

mod world;

use uvm_controller::core::Command;
use uvm_controller::model::{
    CopyRequest, DiskChange, Id, InstanceChange, IoLimits, JobState, NewDisk, PlacementRequest, PowerState,
    PowerVerb, RestoreRequest, SaveImageRequest, SnapshotRequest,
};
use uvm_controller::store::Fault;
use world::{Blow, World, machine};

const MINUTE: u64 = 60_000;

/// A grid of two nodes with an image; everything in service.
fn grid(seed: u64) -> World {
    let mut world = World::new(seed);
    world.add_node("n1", 8, 8192, 65_536);
    world.add_node("n2", 8, 8192, 65_536);
    world.add_image("debian");
    world.run(30_000);
    let ready = world.state().nodes.values().all(|node| node.utility_vm.in_service);
    assert!(ready, "{:#?}", world.state().nodes);
    world
}

/// The grid with a machine that runs, one that is off, and a snapshot of the first.
fn inhabited(seed: u64) -> (World, Id, Id, Id) {
    let mut world = grid(seed);
    let web = world.must(Command::CreateInstance(Box::new(machine("web", Some("debian"))))).id;
    world.settle(MINUTE);
    let mut request = machine("db", Some("debian"));
    request.start = false;
    request.disks.push(request.disks[0].clone());
    let db = world.must(Command::CreateInstance(Box::new(request))).id;
    world.settle(MINUTE);
    let snapshot = world.must(Command::CreateSnapshot(web, SnapshotRequest { name: "first".to_owned() })).id;
    world.settle(MINUTE);
    world.check_rest();
    assert_eq!(world.state().instances[&web].observed_state, PowerState::Running);
    assert_eq!(world.state().instances[&db].observed_state, PowerState::Stopped);
    assert!(world.state().snapshots[&snapshot].disks[0].digest.is_some());
    (world, web, db, snapshot)
}

type Scenario = (&'static str, fn(&World, Id, Id, Id) -> Command);

/// One of each kind of workflow.
fn scenarios() -> Vec<Scenario> {
    vec![
        ("create", |_, _, _, _| Command::CreateInstance(Box::new(machine("new", Some("debian"))))),
        ("create-empty", |_, _, _, _| Command::CreateInstance(Box::new(machine("new", None)))),
        ("delete", |_, _, db, _| Command::DeleteInstance(db)),
        ("start", |_, _, db, _| Command::Power(db, PowerVerb::Start)),
        ("shutdown", |_, web, _, _| Command::Power(web, PowerVerb::Shutdown)),
        ("destroy", |_, web, _, _| Command::Power(web, PowerVerb::Destroy)),
        ("suspend", |_, web, _, _| Command::Power(web, PowerVerb::Suspend)),
        ("reboot", |_, web, _, _| Command::Power(web, PowerVerb::Reboot)),
        ("snapshot", |_, web, _, _| {
            Command::CreateSnapshot(web, SnapshotRequest { name: "second".to_owned() })
        }),
        ("snapshot-of-stopped", |_, _, db, _| {
            Command::CreateSnapshot(db, SnapshotRequest { name: "second".to_owned() })
        }),
        ("delete-snapshot", |_, _, _, snapshot| Command::DeleteSnapshot(snapshot)),
        ("save-image", |_, web, _, _| Command::SaveImage(web, SaveImageRequest { name: "mine".to_owned() })),
        ("copy", |_, web, _, _| {
            Command::CopyInstance(web, CopyRequest { name: "twin".to_owned(), placement: None, start: true })
        }),
        ("copy-to-other-node", |world, web, _, _| {
            let here = world.state().instances[&web].node;
            let other = world.state().nodes.values().find(|node| node.id != here).unwrap().name.clone();
            let placement = Some(PlacementRequest { node: Some(other), ..Default::default() });
            Command::CopyInstance(web, CopyRequest { name: "twin".to_owned(), placement, start: true })
        }),
        ("scale", |world, web, _, _| {
            let disk = world.state().instances[&web].disks[0];
            let limits = IoLimits { bytes_per_second: 1 << 20, operations_per_second: 100 };
            Command::ChangeInstance(
                web,
                InstanceChange {
                    vcpus: Some(2),
                    memory_mib: Some(1024),
                    hostname: None,
                    disks: vec![DiskChange { id: disk, size_mib: Some(2048), io_limits: Some(limits) }],
                    allow_restart: true,
                },
            )
        }),
        ("hostname-and-less-memory", |_, web, _, _| {
            Command::ChangeInstance(
                web,
                InstanceChange {
                    memory_mib: Some(256),
                    hostname: Some("other.example".to_owned()),
                    allow_restart: true,
                    ..Default::default()
                },
            )
        }),
        ("create-disk", |_, web, _, _| {
            Command::CreateDisk(NewDisk {
                name: "more".to_owned(),
                project: None,
                size_mib: 512,
                instance: web,
                io_limits: IoLimits::default(),
            })
        }),
        ("delete-disk", |world, _, db, _| Command::DeleteDisk(world.state().instances[&db].disks[1])),
    ]
}

#[test]
fn every_workflow_does_what_it_says() {
    for (name, command) in scenarios() {
        let (mut world, web, db, snapshot) = inhabited(1);
        let asked = command(&world, web, db, snapshot);
        let accepted = world.must(asked);
        world.settle(10 * MINUTE);
        let job = accepted.job.unwrap();
        let record = world.store_job(job);
        assert_eq!(world.job(job), JobState::Succeeded, "{name}: {:#?}", record.job);
        world.run(MINUTE);
        world.check_rest();
    }
}

#[test]
fn a_snapshot_brings_back_what_was() {
    let (mut world, web, _, snapshot) = inhabited(2);
    let before = world.state().instances[&web].clone();
    let node = std::sync::Arc::clone(&world.nodes[&before.node].hypervisor);
    let kept = world.state().snapshots[&snapshot].disks[0].disk;
    node.guest_writes(before.disks[0]).unwrap();
    assert_ne!(node.contents(before.disks[0]), node.contents(kept));
    let refused = world.request(Command::RestoreSnapshot(web, RestoreRequest { snapshot })).unwrap();
    assert!(refused.unwrap_err().detail.contains("not off"));
    world.must(Command::Power(web, PowerVerb::Destroy));
    world.settle(MINUTE);
    let job = world.must(Command::RestoreSnapshot(web, RestoreRequest { snapshot })).job.unwrap();
    world.settle(MINUTE);
    assert_eq!(world.job(job), JobState::Succeeded);
    world.run(MINUTE);
    let after = &world.state().instances[&web];
    assert_ne!(after.disks, before.disks);
    assert_eq!(node.contents(after.disks[0]), node.contents(kept));
    assert!(!world.state().disks.contains_key(&before.disks[0]), "the old disk is gone");
    world.check_rest();
}

/// The controller is killed before, and after, the n-th durable write of a workflow, for every n there is.
#[test]
fn a_controller_killed_at_any_write_goes_on() {
    let mut killed = 0;
    for (name, command) in scenarios() {
        let (mut world, web, db, snapshot) = inhabited(3);
        let before = world.store.commits();
        let asked = command(&world, web, db, snapshot);
        world.must(asked);
        world.settle(10 * MINUTE);
        let writes = world.store.commits() - before;
        assert!(writes >= 2, "{name}: {writes} writes");
        for nth in 1..=writes {
            for fault in [Fault::Before, Fault::After] {
                killed_at(name, command, nth, fault);
                killed += 1;
            }
        }
    }
    println!("killed {killed} times");
}

fn killed_at(name: &str, command: fn(&World, Id, Id, Id) -> Command, nth: u64, fault: Fault) {
    let (mut world, web, db, snapshot) = inhabited(3);
    let asked = command(&world, web, db, snapshot);
    world.store.fail_commit(world.store.commits() + nth, fault);
    let reply = world.request(asked);
    world.settle(10 * MINUTE);
    world.run(MINUTE);
    world.settle(10 * MINUTE);
    assert_eq!((world.crashes, world.store.fired()), (1, 1), "{name} {fault:?} {nth}: the fault fired");
    world.check_rest();
    // What was answered is so; what was not is done whole or not begun.
    let promised = reply.is_some_and(|answer| answer.is_ok());
    let state = world.state();
    let so = match name {
        "create" | "create-empty" => state.instance_named("acme", "new").is_some(),
        "copy" | "copy-to-other-node" => state.instance_named("acme", "twin").is_some(),
        "delete" => !state.instances.contains_key(&db),
        "start" => state.instances[&db].observed_state == PowerState::Running,
        "shutdown" | "destroy" => state.instances[&web].observed_state == PowerState::Stopped,
        "suspend" => state.instances[&web].observed_state == PowerState::Paused,
        "snapshot" | "snapshot-of-stopped" => state.snapshots.len() == 2,
        "delete-snapshot" => state.snapshots.is_empty(),
        "save-image" => state.images.len() == 2,
        "scale" => state.instances[&web].memory_mib == 1024 && state.instances[&web].vcpus == 2,
        "hostname-and-less-memory" => state.instances[&web].memory_mib == 256,
        "create-disk" => state.instances[&web].disks.len() == 2,
        "delete-disk" => state.instances[&db].disks.len() == 1,
        "reboot" => state.instances[&web].observed_state == PowerState::Running,
        other => panic!("nothing is known of {other}"),
    };
    assert!(so || !promised, "{name} {fault:?} {nth}: promised and not so");
    let whole = state.instances.len() + state.snapshots.len() + state.images.len();
    assert!(whole >= 3, "{name} {fault:?} {nth}: something is gone");
}

/// Each call of each workflow is befallen by each blow there is.
#[test]
fn whatever_befalls_a_call_the_end_is_a_good_one() {
    let mut blows = 0;
    for (name, command) in scenarios() {
        let (mut world, web, db, snapshot) = inhabited(4);
        let before = world.calls;
        let asked = command(&world, web, db, snapshot);
        world.must(asked);
        world.settle(10 * MINUTE);
        let calls = world.calls - before;
        assert!(calls >= 2, "{name}: {calls} calls");
        for nth in 1..=calls {
            for blow in Blow::ALL {
                struck_at(name, command, nth, blow);
                blows += 1;
            }
        }
    }
    println!("{blows} blows");
}

fn struck_at(name: &str, command: fn(&World, Id, Id, Id) -> Command, nth: u64, blow: Blow) {
    let (mut world, web, db, snapshot) = inhabited(4);
    let asked = command(&world, web, db, snapshot);
    world.blow = Some((world.calls + nth, blow));
    let accepted = world.must(asked);
    world.settle(30 * MINUTE);
    world.run(5 * MINUTE);
    world.settle(30 * MINUTE);
    assert_eq!(world.struck, 1, "{name} {nth} {blow:?}: it struck");
    let job = world.store_job(accepted.job.unwrap()).job;
    assert!(job.state.ended(), "{name} {nth} {blow:?}: {job:#?}");
    // What is only delayed comes about; what is refused is taken back whole.
    let hard = [Blow::HypervisorKilled, Blow::Refused, Blow::NodeCutOff].contains(&blow);
    if !hard {
        assert_eq!(job.state, JobState::Succeeded, "{name} {nth} {blow:?}: {job:#?}");
    }
    world.check_rest();
    let violations: Vec<_> = world.nodes.values().flat_map(|node| node.hypervisor.violations()).collect();
    assert!(violations.is_empty(), "{violations:?}");
}
