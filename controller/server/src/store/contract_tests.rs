//! What every store does, told once and asked of both.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use uvm_api::{BootSpec, CustomizeSpec};

use super::{Answer, Change, EventFilter, FORGET_MAX, InstanceConfig, Lock, Record, Store, Table};
use crate::core::JobRecord;
use crate::model::{Accepted, Disk, Event, Id, Image, Instance, Node, SanitizationRecord, Snapshot, Token};

pub(super) fn id(number: u64) -> Id {
    Id::new(1_700_000_000_000 + number, [7; 10])
}

fn made<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(super) fn instance(number: u64, project: &str, name: &str) -> Instance {
    made(json!({
        "id": id(number), "project": project, "name": name, "generation": 1, "node": id(1), "vcpus": 2,
        "memory_mib": 2048, "disks": [id(number + 500_000)], "image": id(2), "mac": "52:54:00:12:34:56",
        "desired_state": "running", "observed_state": "absent", "observed_at": 0, "provisioned": false,
        "numa": [{"numa": 0, "vcpus": 2, "memory_mib": 2048}], "created_at": 1_700_000_000_000u64
    }))
}

pub(super) fn disk(number: u64) -> Disk {
    made(json!({
        "id": id(number), "project": "acme", "name": "web-1-0", "node": id(1), "size_mib": 20480, "reserved_mib": 20480,
        "serial": id(number).serial(), "role": "boot", "state": "ready", "instance": id(3), "generation": 1,
        "created_at": 1
    }))
}

pub(super) fn node(number: u64, name: &str) -> Node {
    made(json!({
        "id": id(number), "name": name, "hypervisor": "fake", "address": "", "architecture": "amd64",
        "capacity": {"numa": [{"vcpus": 64, "memory_mib": 262_144}], "storage_mib": 4_000_000},
        "cordoned": false, "state": "ready", "seen_at": 5, "utility_vm": {"in_service": true},
        "generation": 3, "created_at": 4
    }))
}

fn image(number: u64, project: Option<&str>, name: &str) -> Image {
    let source = json!({"oci-layout": {"url": "https://images.example"}});
    let contents = json!({"kind": "oci", "source": source, "digest": "sha256:00"});
    made(json!({
        "id": id(number), "project": project, "name": name, "contents": contents, "architecture": "amd64",
        "os": "linux", "min_disk_mib": 1, "min_memory_mib": 1, "ready": true, "generation": 1, "created_at": 9
    }))
}

fn snapshot(number: u64) -> Snapshot {
    made(json!({
        "id": id(number), "project": "acme", "name": "before", "instance": id(3), "node": id(1),
        "disks": [{"of": id(4), "disk": id(5)}], "ready": true, "generation": 1, "created_at": 2
    }))
}

fn token(number: u64) -> Token {
    made(json!({
        "id": id(number), "name": "portal", "role": "tenant", "project": "acme", "secret_hash": "ab",
        "created_at": 2
    }))
}

pub(super) fn job(
    number: u64,
    project: Option<&str>,
    subject: &str,
    state: &str,
    ended: Option<u64>,
) -> JobRecord {
    let step = json!({
        "name": "create-volume", "description": "", "state": "running", "attempts": 1, "deadline_seconds": 60
    });
    let planned = json!({
        "action": {"action": "create-volume", "disk": id(4)}, "deadline_ms": 60_000,
        "undo": [{"action": "delete-volume", "disk": id(4)}]
    });
    made(json!({
        "job": {
            "id": id(number), "kind": "create-instance", "project": project, "subject": subject, "state": state,
            "steps": [step], "created_at": 3, "ended_at": ended
        },
        "plan": [planned], "at": 0, "forward_only": false, "deadline": 60_003, "holds": [subject]
    }))
}

fn sanitization(number: u64, project: &str) -> SanitizationRecord {
    made(json!({
        "id": id(number), "disk": id(4), "project": project, "node": id(1), "node_name": "n1", "serial": "d1",
        "size_bytes": 1, "method": "clear", "technique": "overwrite", "pattern": "random",
        "overwritten_bytes": 1, "verified_bytes": 1, "complete": true, "job": id(6), "started_at": 1,
        "ended_at": 2, "version": "0.1.0"
    }))
}

pub(super) fn event(sequence: u64, project: Option<&str>, subject: &str, job: Option<Id>) -> Change {
    let (kind, message) = ("job.step-done".to_owned(), "done: \"quoted\" \u{1f4be}".to_owned());
    let (project, subject) = (project.map(str::to_owned), subject.to_owned());
    Change::Event(Event { sequence, time: sequence * 10, kind, project, subject, job, message })
}

pub(super) fn lock(resource: &str, job: u64, lease_until: u64) -> Change {
    Change::Lock(Lock { resource: resource.to_owned(), job: id(job), lease_until })
}

fn answer(key: &str, created_at: u64) -> Answer {
    let accepted = Accepted { subject: "instances/1".to_owned(), id: id(3), job: Some(id(6)) };
    Answer { key: key.to_owned(), request_hash: "ff".to_owned(), accepted, created_at }
}

pub(super) fn put(record: Instance) -> Change {
    Change::Put(Record::Instance(record))
}

fn put_job(record: JobRecord) -> Change {
    Change::Put(Record::Job(Box::new(record)))
}

fn forget(answers_before: u64, events_before: u64, jobs_before: u64) -> Change {
    Change::Forget { answers_before, events_before, jobs_before }
}

fn sequences(store: &dyn Store, after: u64, filter: &EventFilter, limit: usize) -> Vec<u64> {
    let events = store.reader().events(after, filter, limit).unwrap();
    events.iter().map(|event| event.sequence).collect()
}

/// Every kind of record comes back as it went in, is replaced, and goes.
pub(super) fn records_come_back(store: &mut dyn Store) {
    let config = InstanceConfig {
        id: id(3),
        partitions: Vec::new(),
        customize: CustomizeSpec { hostname: Some("web-1".to_owned()), ..CustomizeSpec::default() },
        boot: BootSpec::default(),
    };
    let running = job(6, Some("acme"), "instances/1", "running", None);
    let records = [
        Record::Instance(instance(3, "acme", "web-1")),
        Record::Config(config.clone()),
        Record::Disk(disk(4)),
        Record::Snapshot(snapshot(7)),
        Record::Image(image(2, None, "debian")),
        Record::Node(node(1, "n1")),
        Record::Job(Box::new(running.clone())),
        Record::Token(token(8)),
        Record::Sanitization(sanitization(9, "acme")),
    ];
    let changes: Vec<Change> = records.into_iter().map(Change::Put).collect();
    store.commit(&changes).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.instances, [instance(3, "acme", "web-1")]);
    assert_eq!(loaded.disks, [disk(4)]);
    assert_eq!(loaded.snapshots, [snapshot(7)]);
    assert_eq!(loaded.images, [image(2, None, "debian")]);
    assert_eq!(loaded.nodes, [node(1, "n1")]);
    assert_eq!(loaded.jobs, [running]);
    assert_eq!(loaded.tokens, [token(8)]);
    let reader = store.reader();
    assert_eq!(reader.config(id(3)).unwrap(), Some(config));
    assert_eq!(reader.sanitization(id(9)).unwrap(), Some(sanitization(9, "acme")));

    let mut larger = disk(4);
    larger.size_mib *= 2;
    store.commit(&[Change::Put(Record::Disk(larger.clone()))]).unwrap();
    assert_eq!(store.load().unwrap().disks, [larger]);

    use Table::{Configs, Disks, Images, Instances, Jobs, Nodes, Sanitizations, Snapshots, Tokens};
    let tables = [Instances, Configs, Disks, Snapshots, Images, Nodes, Jobs, Tokens, Sanitizations];
    let ids = [3, 3, 4, 7, 2, 1, 6, 8, 9];
    let changes: Vec<Change> =
        tables.iter().zip(ids).map(|(table, number)| Change::Delete(*table, id(number))).collect();
    store.commit(&changes).unwrap();
    let gone = store.load().unwrap();
    assert!(gone.instances.is_empty() && gone.disks.is_empty() && gone.snapshots.is_empty());
    assert!(
        gone.images.is_empty() && gone.nodes.is_empty() && gone.jobs.is_empty() && gone.tokens.is_empty()
    );
    assert_eq!(reader.config(id(3)).unwrap(), None);
    assert_eq!(reader.job(id(6)).unwrap(), None);
    assert_eq!(reader.sanitization(id(9)).unwrap(), None);
    store.commit(&changes).unwrap();
}

/// A thing has one holder, and a commit that would give it a second one leaves nothing at all.
pub(super) fn locks_have_one_holder(store: &mut dyn Store) {
    store.commit(&[lock("instances/1", 1, 100)]).unwrap();
    store.commit(&[lock("instances/1", 1, 200)]).unwrap();
    let unwanted =
        [put(instance(30, "acme", "stray")), event(1, None, "nodes/1", None), lock("instances/1", 2, 300)];
    let error = store.commit(&unwanted).unwrap_err();
    assert!(error.to_string().contains("instances/1") && !error.out_of_space, "{error}");
    let loaded = store.load().unwrap();
    assert_eq!(loaded.locks, [Lock { resource: "instances/1".to_owned(), job: id(1), lease_until: 200 }]);
    assert!(loaded.instances.is_empty());
    assert_eq!(loaded.last_event, 0);

    // One batch hands it over.
    store.commit(&[Change::Unlock("instances/1".to_owned()), lock("instances/1", 2, 300)]).unwrap();
    assert_eq!(store.load().unwrap().locks[0].job, id(2));
    store.commit(&[Change::Unlock("instances/1".to_owned()), Change::Unlock("none".to_owned())]).unwrap();
    assert!(store.load().unwrap().locks.is_empty());
}

/// A name has one owner among those who see it; an instance being deleted has given its name up.
pub(super) fn names_have_one_owner(store: &mut dyn Store) {
    let first = instance(3, "acme", "web-1");
    store.commit(&[put(first.clone())]).unwrap();
    store.commit(&[put(instance(10, "other", "web-1")), put(instance(11, "acme", "web-2"))]).unwrap();
    store.commit(&[put(instance(12, "acme", "web-1"))]).unwrap_err();
    store.commit(&[put(instance(11, "acme", "web-1"))]).unwrap_err();
    assert_eq!(store.load().unwrap().instances.len(), 3);

    let mut deleting = first;
    deleting.deleting = true;
    store.commit(&[put(deleting.clone()), put(instance(12, "acme", "web-1"))]).unwrap();
    deleting.deleting = false;
    store.commit(&[put(deleting)]).unwrap_err();
    store.commit(&[Change::Delete(Table::Instances, id(12)), put(instance(13, "acme", "web-1"))]).unwrap();

    store.commit(&[Change::Put(Record::Node(node(1, "n1")))]).unwrap();
    store.commit(&[Change::Put(Record::Node(node(2, "n1")))]).unwrap_err();
    store
        .commit(&[Change::Put(Record::Node(node(1, "n2"))), Change::Put(Record::Node(node(2, "n1")))])
        .unwrap();
    let images = [image(1, None, "debian"), image(2, Some("acme"), "debian")];
    store.commit(&images.map(|image| Change::Put(Record::Image(image)))).unwrap();
    store.commit(&[Change::Put(Record::Image(image(3, None, "debian")))]).unwrap_err();
}

/// Jobs are listed newest first, page by page; one that ended is read and not loaded.
pub(super) fn jobs_are_listed(store: &mut dyn Store) {
    let owner = |number: u64| if number.is_multiple_of(2) { Some("acme") } else { None };
    let all: Vec<JobRecord> = (1..=9)
        .map(|number| {
            let (state, ended) = if number < 5 { ("succeeded", Some(number)) } else { ("running", None) };
            job(number, owner(number), &format!("instances/{}", number % 3), state, ended)
        })
        .collect();
    store.commit(&all.iter().cloned().map(put_job).collect::<Vec<_>>()).unwrap();
    assert_eq!(store.load().unwrap().jobs, all[4..]);
    let reader = store.reader();
    let listed = |project, subject, before: Option<u64>, limit| -> Vec<JobRecord> {
        reader.jobs(project, subject, before.map(id), limit).unwrap()
    };
    let expected = |numbers: &[usize]| -> Vec<JobRecord> {
        numbers.iter().map(|number| all[number - 1].clone()).collect()
    };
    assert_eq!(listed(None, None, None, 3), expected(&[9, 8, 7]));
    assert_eq!(listed(None, None, Some(7), 3), expected(&[6, 5, 4]));
    assert_eq!(listed(Some("acme"), None, None, 10), expected(&[8, 6, 4, 2]));
    assert_eq!(listed(None, Some("instances/0"), Some(9), 10), expected(&[6, 3]));
    assert_eq!(listed(Some("acme"), Some("instances/0"), None, 10), expected(&[6]));
    assert_eq!(listed(Some("nobody"), None, None, 10), []);

    let mut ended = all[8].clone();
    ended.job.state = crate::model::JobState::Failed;
    ended.job.ended_at = Some(77);
    store.commit(&[put_job(ended.clone())]).unwrap();
    assert_eq!(store.load().unwrap().jobs, all[4..8]);
    assert_eq!(reader.job(id(9)).unwrap(), Some(ended));
}

/// Events come in order, to those who asked for them; a sequence number is given once.
pub(super) fn events_are_filtered(store: &mut dyn Store) {
    let events = [
        event(1, Some("acme"), "instances/1", Some(id(6))),
        event(2, None, "nodes/1", None),
        event(3, Some("acme"), "instances/2", Some(id(6))),
        event(5, Some("other"), "instances/1", Some(id(7))),
    ];
    store.commit(&events).unwrap();
    assert_eq!(store.load().unwrap().last_event, 5);
    let all = EventFilter::default();
    assert_eq!(sequences(store, 0, &all, 10), [1, 2, 3, 5]);
    assert_eq!(sequences(store, 2, &all, 1), [3]);
    assert_eq!(sequences(store, 5, &all, 10), [0; 0]);
    assert_eq!(sequences(store, u64::MAX, &all, 10), [0; 0]);
    let of_job = EventFilter { job: Some(id(6)), ..EventFilter::default() };
    assert_eq!(sequences(store, 0, &of_job, 10), [1, 3]);
    assert_eq!(sequences(store, 1, &of_job, 10), [3]);
    let of_subject = EventFilter { subject: Some("instances/1".to_owned()), ..EventFilter::default() };
    assert_eq!(sequences(store, 0, &of_subject, 10), [1, 5]);
    let narrow = EventFilter { project: Some("acme".to_owned()), ..of_subject };
    assert_eq!(sequences(store, 0, &narrow, 10), [1]);
    let read = store.reader().events(0, &all, 1).unwrap().remove(0);
    assert_eq!(Change::Event(read), events[0]);
    store.commit(&[event(6, None, "nodes/1", None), event(5, None, "nodes/1", None)]).unwrap_err();
    assert_eq!(store.load().unwrap().last_event, 5);
}

/// Sanitizations are listed as jobs are.
pub(super) fn sanitizations_are_listed(store: &mut dyn Store) {
    let all: Vec<_> =
        (1..=4).map(|number| sanitization(number, ["acme", "other"][number as usize % 2])).collect();
    let changes: Vec<_> =
        all.iter().cloned().map(|record| Change::Put(Record::Sanitization(record))).collect();
    store.commit(&changes).unwrap();
    let reader = store.reader();
    let numbers = |project, before: Option<u64>, limit| -> Vec<Id> {
        let listed = reader.sanitizations(project, before.map(id), limit).unwrap();
        listed.iter().map(|record| record.id).collect()
    };
    assert_eq!(numbers(None, None, 2), [id(4), id(3)]);
    assert_eq!(numbers(None, Some(3), 2), [id(2), id(1)]);
    assert_eq!(numbers(Some("acme"), None, 9), [id(4), id(2)]);
    assert_eq!(numbers(Some("acme"), Some(4), 9), [id(2)]);
}

/// What is old is forgotten, a bounded part at a time; what goes on is not, and neither is the last event.
pub(super) fn the_old_is_forgotten(store: &mut dyn Store) {
    let more = FORGET_MAX as u64 + 3;
    let mut changes: Vec<Change> =
        (1..=more).map(|sequence| event(sequence, None, "nodes/1", None)).collect();
    changes.extend([Change::Answer(answer("old", 10)), Change::Answer(answer("young", 20))]);
    changes.extend([
        put_job(job(1, None, "nodes/1", "failed", Some(10))),
        put_job(job(2, None, "nodes/1", "succeeded", Some(20))),
        put_job(job(3, None, "nodes/1", "running", None)),
    ]);
    store.commit(&changes).unwrap();
    let reader = store.reader();
    assert_eq!(reader.answer("old").unwrap(), Some(answer("old", 10)));

    // Everything is forgotten in a commit that fails: nothing is.
    let failing = [
        forget(u64::MAX, u64::MAX, u64::MAX),
        event(more, None, "nodes/1", None),
        event(more, None, "", None),
    ];
    store.commit(&failing).unwrap_err();
    assert_eq!(sequences(store, 0, &EventFilter::default(), 1), [1]);
    assert_eq!(reader.answer("old").unwrap(), Some(answer("old", 10)));
    assert_eq!(reader.jobs(None, None, None, 9).unwrap().len(), 3);

    store.commit(&[forget(20, 30, 20)]).unwrap();
    assert_eq!(reader.answer("old").unwrap(), None);
    assert_eq!(reader.answer("young").unwrap(), Some(answer("young", 20)));
    assert_eq!(sequences(store, 0, &EventFilter::default(), 2), [3, 4]);
    let left: Vec<Id> =
        reader.jobs(None, None, None, 9).unwrap().iter().map(|record| record.job.id).collect();
    assert_eq!(left, [id(3), id(2)]);

    store.commit(&[forget(0, u64::MAX, 0)]).unwrap();
    assert_eq!(sequences(store, 0, &EventFilter::default(), 9), [more]);
    store.commit(&[forget(u64::MAX, u64::MAX, u64::MAX)]).unwrap();
    assert_eq!(store.load().unwrap().last_event, more);
    assert_eq!(reader.answer("young").unwrap(), None);
    assert_eq!(reader.jobs(None, None, None, 9).unwrap().len(), 1);
    store.commit(&[Change::Answer(answer("key", 1))]).unwrap();
    store.commit(&[Change::Answer(answer("key", 2))]).unwrap();
    assert_eq!(reader.answer("key").unwrap(), Some(answer("key", 2)));
}

/// Asks all of it of stores that are made empty.
macro_rules! contract {
    ($make:expr) => {
        $crate::store::contract_tests::contract!(
            $make,
            records_come_back,
            locks_have_one_holder,
            names_have_one_owner,
            jobs_are_listed,
            events_are_filtered,
            sanitizations_are_listed,
            the_old_is_forgotten
        );
    };
    ($make:expr, $($test:ident),+) => {
        $(
            #[test]
            fn $test() {
                let (mut store, _kept) = $make;
                $crate::store::contract_tests::$test(&mut store);
            }
        )+
    };
}
pub(super) use contract;
