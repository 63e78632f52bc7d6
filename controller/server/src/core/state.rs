//! The picture of the grid in memory: every record that decisions need, what is reserved, who holds what.
//!
//! It changes in one way: [`State::put`] and [`State::remove`], which say what to make durable.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::grid::Grid;
use super::work::JobRecord;
use super::{Batch, Now};
use crate::hypervisor::Capabilities;
use crate::model::{
    Amounts, Capacity, Disk, DiskState, Event, Id, Image, Instance, Node, NodeAmounts, NodeState, Snapshot,
    Token,
};
use crate::store::{Change, Loaded, Lock, Record, Table};

/// How long a lock is promised for; renewed while its job is alive.
pub(crate) const LEASE_MS: u64 = 3_600_000;

/// See the module.
#[derive(Debug, Default)]
pub struct State {
    /// Nodes.
    pub nodes: BTreeMap<Id, Node>,
    /// Instances.
    pub instances: BTreeMap<Id, Instance>,
    /// Disks.
    pub disks: BTreeMap<Id, Disk>,
    /// Snapshots.
    pub snapshots: BTreeMap<Id, Snapshot>,
    /// Images.
    pub images: BTreeMap<Id, Image>,
    /// Tokens.
    pub tokens: BTreeMap<Id, Token>,
    /// Jobs that have not ended.
    pub jobs: BTreeMap<Id, JobRecord>,
    /// Sequence number of the last event.
    pub last_event: u64,
    /// What the nodes' hypervisors can do, as they said last.
    pub capabilities: BTreeMap<Id, Capabilities>,
    pub(super) locks: BTreeMap<String, Lock>,
    pub(super) grid: Grid,
    names: HashMap<(String, String), Id>,
    serials: HashMap<String, Id>,
    on_node: HashMap<Id, BTreeSet<Id>>,
    disks_on_node: HashMap<Id, BTreeSet<Id>>,
}

impl State {
    /// The picture as the store has it.
    pub(super) fn new(loaded: Loaded) -> Self {
        let mut state = Self { last_event: loaded.last_event, ..Self::default() };
        for node in loaded.nodes {
            state.insert(Record::Node(node));
        }
        for instance in loaded.instances {
            state.insert(Record::Instance(instance));
        }
        for disk in loaded.disks {
            state.insert(Record::Disk(disk));
        }
        state.snapshots = loaded.snapshots.into_iter().map(|record| (record.id, record)).collect();
        state.images = loaded.images.into_iter().map(|record| (record.id, record)).collect();
        state.tokens = loaded.tokens.into_iter().map(|record| (record.id, record)).collect();
        state.jobs = loaded.jobs.into_iter().map(|record| (record.job.id, record)).collect();
        state.locks = loaded.locks.into_iter().map(|lock| (lock.resource.clone(), lock)).collect();
        state
    }

    /// A record is new or different: in memory now, durable with the batch.
    pub(super) fn put(&mut self, record: impl Into<Record>, batch: &mut Batch) {
        let record = record.into();
        batch.changes.push(Change::Put(record.clone()));
        self.insert(record);
    }

    fn insert(&mut self, record: Record) {
        match record {
            Record::Node(node) => {
                self.grid.put_node(&node);
                self.nodes.insert(node.id, node);
            }
            Record::Instance(instance) => {
                if let Some(old) = self.instances.get(&instance.id) {
                    if old.node != instance.node
                        && let Some(found) = self.on_node.get_mut(&old.node)
                    {
                        found.remove(&instance.id);
                    }
                } else {
                    self.names.insert((instance.project.clone(), instance.name.clone()), instance.id);
                }
                self.on_node.entry(instance.node).or_default().insert(instance.id);
                self.grid.put_instance(&instance);
                self.instances.insert(instance.id, instance);
            }
            Record::Disk(disk) => {
                if !self.disks.contains_key(&disk.id) {
                    self.serials.insert(disk.serial.clone(), disk.id);
                    self.disks_on_node.entry(disk.node).or_default().insert(disk.id);
                }
                self.grid.put_disk(&disk);
                self.disks.insert(disk.id, disk);
            }
            Record::Snapshot(snapshot) => drop(self.snapshots.insert(snapshot.id, snapshot)),
            Record::Image(image) => drop(self.images.insert(image.id, image)),
            Record::Token(token) => drop(self.tokens.insert(token.id, token)),
            Record::Job(job) if job.job.state.ended() => drop(self.jobs.remove(&job.job.id)),
            Record::Job(job) => drop(self.jobs.insert(job.job.id, *job)),
            Record::Config(_) | Record::Sanitization(_) => {}
        }
    }

    /// A record is gone.
    pub(super) fn remove(&mut self, table: Table, id: Id, batch: &mut Batch) {
        batch.changes.push(Change::Delete(table, id));
        match table {
            Table::Nodes => {
                self.grid.remove_node(id);
                self.nodes.remove(&id);
                self.capabilities.remove(&id);
            }
            Table::Instances => {
                if let Some(instance) = self.instances.remove(&id) {
                    self.names.remove(&(instance.project, instance.name));
                    if let Some(found) = self.on_node.get_mut(&instance.node) {
                        found.remove(&id);
                    }
                }
                self.grid.release(id);
            }
            Table::Disks => {
                if let Some(disk) = self.disks.remove(&id) {
                    self.serials.remove(&disk.serial);
                    if let Some(found) = self.disks_on_node.get_mut(&disk.node) {
                        found.remove(&id);
                    }
                }
                self.grid.release(id);
            }
            Table::Snapshots => drop(self.snapshots.remove(&id)),
            Table::Images => drop(self.images.remove(&id)),
            Table::Tokens => drop(self.tokens.remove(&id)),
            Table::Jobs => drop(self.jobs.remove(&id)),
            Table::Configs | Table::Sanitizations => {}
        }
    }

    /// Something happened.
    pub(super) fn event(
        &mut self,
        now: Now,
        kind: &str,
        subject: impl Into<String>,
        (project, job): (Option<String>, Option<Id>),
        message: impl Into<String>,
        batch: &mut Batch,
    ) {
        self.last_event += 1;
        batch.changes.push(Change::Event(Event {
            sequence: self.last_event,
            time: now,
            kind: kind.to_owned(),
            project,
            subject: subject.into(),
            job,
            message: message.into(),
        }));
    }

    /// A job holds a thing from now on; the planning has made sure that nobody else does.
    pub(super) fn lock(&mut self, resource: &str, job: Id, now: Now, batch: &mut Batch) {
        let lock = Lock { resource: resource.to_owned(), job, lease_until: now + LEASE_MS };
        batch.changes.push(Change::Lock(lock.clone()));
        self.locks.insert(resource.to_owned(), lock);
    }

    /// Nobody holds it any more.
    pub(super) fn unlock(&mut self, resource: &str, batch: &mut Batch) {
        if self.locks.remove(resource).is_some() {
            batch.changes.push(Change::Unlock(resource.to_owned()));
        }
    }

    /// Who holds a thing.
    pub fn holder(&self, resource: &str) -> Option<Id> {
        self.locks.get(resource).map(|lock| lock.job)
    }

    /// The instance of that name.
    pub fn instance_named(&self, project: &str, name: &str) -> Option<&Instance> {
        self.names.get(&(project.to_owned(), name.to_owned())).and_then(|id| self.instances.get(id))
    }

    /// The node of that name.
    pub fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes.values().find(|node| node.name == name)
    }

    /// The disk of that serial number.
    pub fn disk_by_serial(&self, serial: &str) -> Option<&Disk> {
        self.serials.get(serial).and_then(|id| self.disks.get(id))
    }

    /// Instances on a node.
    pub fn instances_on(&self, node: Id) -> impl Iterator<Item = &Instance> {
        self.on_node.get(&node).into_iter().flatten().filter_map(|id| self.instances.get(id))
    }

    /// Disks in a node's pool.
    pub fn disks_on(&self, node: Id) -> impl Iterator<Item = &Disk> {
        self.disks_on_node.get(&node).into_iter().flatten().filter_map(|id| self.disks.get(id))
    }

    /// What the grid has, uses and has left.
    pub fn capacity(&self) -> Capacity {
        let mut capacity = Capacity::default();
        for node in self.nodes.values() {
            let (has, used) = self.grid.amounts(node);
            let quarantined = self
                .disks_on(node.id)
                .filter(|disk| disk.state == DiskState::Quarantined)
                .map(|d| d.reserved_mib);
            let found = NodeAmounts {
                id: node.id,
                name: node.name.clone(),
                state: node.state,
                cordoned: node.cordoned,
                instances: self.on_node.get(&node.id).map_or(0, |found| found.len() as u64),
                capacity: has,
                used,
                quarantined_mib: quarantined.sum(),
            };
            add(&mut capacity.total, &found.capacity);
            add(&mut capacity.used, &found.used);
            if found.state == NodeState::Ready && !found.cordoned {
                add(
                    &mut capacity.available,
                    &Amounts {
                        vcpus: has.vcpus.saturating_sub(used.vcpus),
                        memory_mib: has.memory_mib.saturating_sub(used.memory_mib),
                        storage_mib: has.storage_mib.saturating_sub(used.storage_mib),
                    },
                );
            }
            capacity.nodes.push(found);
        }
        capacity
    }
}

fn add(sum: &mut Amounts, more: &Amounts) {
    sum.vcpus += more.vcpus;
    sum.memory_mib += more.memory_mib;
    sum.storage_mib += more.storage_mib;
}

macro_rules! record_from {
    ($($type:ident),*) => {$(
        impl From<$type> for Record {
            fn from(record: $type) -> Self {
                Self::$type(record)
            }
        }
    )*};
}

record_from!(Instance, Disk, Snapshot, Image, Node, Token);

impl From<JobRecord> for Record {
    fn from(record: JobRecord) -> Self {
        Self::Job(Box::new(record))
    }
}

impl From<crate::store::InstanceConfig> for Record {
    fn from(record: crate::store::InstanceConfig) -> Self {
        Self::Config(record)
    }
}

impl From<crate::model::SanitizationRecord> for Record {
    fn from(record: crate::model::SanitizationRecord) -> Self {
        Self::Sanitization(record)
    }
}

/// How a thing is named in locks, events and jobs.
pub(super) fn name(table: &str, id: Id) -> String {
    format!("{table}/{id}")
}
