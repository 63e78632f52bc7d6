//! The store in memory, for simulations: what SQLite would take and refuse is taken and refused here in the same
//! way, at the cost of a copy, and commits fail where a test wants them to.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{
    Answer, Change, EventFilter, FORGET_MAX, InstanceConfig, Loaded, Lock, Reader, Record, Store, StoreError,
    Table, ended_at, held,
};
use crate::core::JobRecord;
use crate::model::{Event, Id, Millis, SanitizationRecord};

/// How a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It has no effect.
    Before,
    /// It took effect, and nobody is told: as if the controller had been killed right after it.
    After,
    /// There is no space for it, nor for any other until [`MemoryStore::heal`].
    OutOfSpace,
}

/// The store in memory. A clone is another handle of the same durable state: what a controller that was killed
/// left, the next one finds.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    durable: Durable,
    commits: u64,
    fired: u64,
    fault: Option<(u64, Fault)>,
}

/// What is durable.
#[derive(Debug, Default)]
struct Durable {
    records: BTreeMap<(Table, Id), Record>,
    /// Names that are taken: in which table, in which project.
    names: HashMap<(Table, String, String), Id>,
    locks: BTreeMap<String, Lock>,
    events: BTreeMap<u64, Event>,
    answers: BTreeMap<String, Answer>,
}

/// What takes a part of a commit back.
// Most are records, and live as long as the commit.
#[allow(clippy::large_enum_variant)]
enum Undo {
    Record(Table, Id, Option<Record>),
    Lock(String, Option<Lock>),
    NoEvent(u64),
    Event(Event),
    Answer(String, Option<Answer>),
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the n-th commit fail, counted from the store's first, which is 1. Replaces what was set before.
    pub fn fail_commit(&self, nth: u64, fault: Fault) {
        self.lock().fault = Some((nth, fault));
    }

    /// No more faults.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// Commits tried so far, those that failed too.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// Faults that struck so far.
    pub fn fired(&self) -> u64 {
        self.lock().fired
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The fault that strikes this commit.
    fn strikes(&mut self) -> Option<Fault> {
        let (nth, fault) = self.fault?;
        let strikes = if fault == Fault::OutOfSpace { self.commits >= nth } else { self.commits == nth };
        strikes.then(|| {
            self.fired += 1;
            fault
        })
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let failed = |out_of_space, cause: String| {
            Err(StoreError { context: format!("committing {} changes", changes.len()), out_of_space, cause })
        };
        let mut shared = self.lock();
        shared.commits += 1;
        let fault = shared.strikes();
        match fault {
            Some(Fault::Before) => return failed(false, "a fault was injected before it".to_owned()),
            Some(Fault::OutOfSpace) => return failed(true, "database or disk is full".to_owned()),
            Some(Fault::After) | None => {}
        }
        match shared.durable.commit(changes) {
            Ok(()) if fault.is_some() => failed(false, "a fault was injected after it".to_owned()),
            Ok(()) => Ok(()),
            Err(cause) => failed(false, cause),
        }
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        Ok(self.lock().durable.load())
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::new(self.clone())
    }
}

/// Table and id of a record.
fn key(record: &Record) -> (Table, Id) {
    match record {
        Record::Instance(record) => (Table::Instances, record.id),
        Record::Config(record) => (Table::Configs, record.id),
        Record::Disk(record) => (Table::Disks, record.id),
        Record::Snapshot(record) => (Table::Snapshots, record.id),
        Record::Image(record) => (Table::Images, record.id),
        Record::Node(record) => (Table::Nodes, record.id),
        Record::Job(record) => (Table::Jobs, record.job.id),
        Record::Token(record) => (Table::Tokens, record.id),
        Record::Sanitization(record) => (Table::Sanitizations, record.id),
    }
}

/// The name a record keeps from others.
fn name(record: &Record) -> Option<(Table, String, String)> {
    match record {
        Record::Instance(instance) if !instance.deleting => {
            Some((Table::Instances, instance.project.clone(), instance.name.clone()))
        }
        Record::Node(node) => Some((Table::Nodes, String::new(), node.name.clone())),
        Record::Image(image) => {
            Some((Table::Images, image.project.clone().unwrap_or_default(), image.name.clone()))
        }
        _ => None,
    }
}

impl Durable {
    /// All changes, one after the other, or none.
    fn commit(&mut self, changes: &[Change]) -> Result<(), String> {
        let mut undo = Vec::with_capacity(changes.len());
        let outcome = changes.iter().try_for_each(|change| self.apply(change, &mut undo));
        if outcome.is_err() {
            undo.into_iter().rev().for_each(|undo| self.undo(undo));
        }
        outcome
    }

    fn apply(&mut self, change: &Change, undo: &mut Vec<Undo>) -> Result<(), String> {
        match change {
            Change::Put(record) => {
                let (table, id) = key(record);
                let taken =
                    name(record).filter(|name| self.names.get(name).is_some_and(|owner| *owner != id));
                if let Some((table, _, name)) = taken {
                    return Err(format!("the name {name} is taken in {table:?}"));
                }
                let old = self.set(table, id, Some(record.clone()));
                undo.push(Undo::Record(table, id, old));
            }
            Change::Delete(table, id) => {
                let old = self.set(*table, *id, None);
                undo.push(Undo::Record(*table, *id, old));
            }
            Change::Lock(lock) => {
                if self.locks.get(&lock.resource).is_some_and(|held| held.job != lock.job) {
                    return Err(held(lock));
                }
                let old = self.locks.insert(lock.resource.clone(), lock.clone());
                undo.push(Undo::Lock(lock.resource.clone(), old));
            }
            Change::Unlock(resource) => {
                let old = self.locks.remove(resource);
                undo.push(Undo::Lock(resource.clone(), old));
            }
            Change::Event(event) => {
                if self.events.contains_key(&event.sequence) {
                    return Err(format!("there is an event {} already", event.sequence));
                }
                self.events.insert(event.sequence, event.clone());
                undo.push(Undo::NoEvent(event.sequence));
            }
            Change::Answer(answer) => {
                let old = self.answers.insert(answer.key.clone(), answer.clone());
                undo.push(Undo::Answer(answer.key.clone(), old));
            }
            Change::Forget { answers_before, events_before, jobs_before } => {
                self.forget_answers(*answers_before, undo);
                self.forget_events(*events_before, undo);
                self.forget_jobs(*jobs_before, undo);
            }
        }
        Ok(())
    }

    /// Puts a record in the place of another and keeps the names; the one that was there.
    fn set(&mut self, table: Table, id: Id, record: Option<Record>) -> Option<Record> {
        let new_name = record.as_ref().and_then(name);
        let old = match record {
            Some(record) => self.records.insert((table, id), record),
            None => self.records.remove(&(table, id)),
        };
        let old_name = old.as_ref().and_then(name);
        if old_name != new_name {
            old_name.and_then(|name| self.names.remove(&name));
            new_name.and_then(|name| self.names.insert(name, id));
        }
        old
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Record(table, id, old) => drop(self.set(table, id, old)),
            Undo::Lock(resource, Some(lock)) => drop(self.locks.insert(resource, lock)),
            Undo::Lock(resource, None) => drop(self.locks.remove(&resource)),
            Undo::NoEvent(sequence) => drop(self.events.remove(&sequence)),
            Undo::Event(event) => drop(self.events.insert(event.sequence, event)),
            Undo::Answer(key, Some(answer)) => drop(self.answers.insert(key, answer)),
            Undo::Answer(key, None) => drop(self.answers.remove(&key)),
        }
    }

    fn forget_answers(&mut self, before: Millis, undo: &mut Vec<Undo>) {
        let old = self.answers.values().filter(|answer| answer.created_at < before);
        let mut old: Vec<_> = old.map(|answer| (answer.created_at, answer.key.clone())).collect();
        old.sort_unstable();
        for (_, key) in old.into_iter().take(FORGET_MAX) {
            let answer = self.answers.remove(&key);
            undo.push(Undo::Answer(key, answer));
        }
    }

    fn forget_events(&mut self, before: Millis, undo: &mut Vec<Undo>) {
        let oldest = self.events.values().take(self.events.len().saturating_sub(1).min(FORGET_MAX));
        let old: Vec<u64> = oldest.filter(|event| event.time < before).map(|event| event.sequence).collect();
        undo.extend(old.iter().filter_map(|sequence| self.events.remove(sequence)).map(Undo::Event));
    }

    fn forget_jobs(&mut self, before: Millis, undo: &mut Vec<Undo>) {
        let ended =
            self.jobs().filter_map(|record| ended_at(&record.job).map(|ended| (ended, record.job.id)));
        let mut old: Vec<_> = ended.filter(|(ended, _)| *ended < before).collect();
        old.sort_unstable();
        for (_, id) in old.into_iter().take(FORGET_MAX) {
            let job = self.set(Table::Jobs, id, None);
            undo.push(Undo::Record(Table::Jobs, id, job));
        }
    }

    /// Records of a kind, oldest first.
    fn all(&self, table: Table, before: Option<Id>) -> impl DoubleEndedIterator<Item = &Record> {
        let end = before.map_or(Included((table, Id(uuid::Uuid::max()))), |before| Excluded((table, before)));
        self.records.range((Included((table, Id(uuid::Uuid::nil()))), end)).map(|(_, record)| record)
    }

    fn jobs(&self) -> impl DoubleEndedIterator<Item = &JobRecord> {
        self.jobs_before(None)
    }

    fn jobs_before(&self, before: Option<Id>) -> impl DoubleEndedIterator<Item = &JobRecord> {
        self.all(Table::Jobs, before).filter_map(|record| match record {
            Record::Job(job) => Some(&**job),
            _ => None,
        })
    }

    fn load(&self) -> Loaded {
        let mut loaded = Loaded {
            locks: self.locks.values().cloned().collect(),
            last_event: self.events.last_key_value().map_or(0, |(sequence, _)| *sequence),
            ..Loaded::default()
        };
        for record in self.records.values() {
            match record {
                Record::Instance(record) => loaded.instances.push(record.clone()),
                Record::Disk(record) => loaded.disks.push(record.clone()),
                Record::Snapshot(record) => loaded.snapshots.push(record.clone()),
                Record::Image(record) => loaded.images.push(record.clone()),
                Record::Node(record) => loaded.nodes.push(record.clone()),
                Record::Job(record) if !record.job.state.ended() => loaded.jobs.push((**record).clone()),
                Record::Token(record) => loaded.tokens.push(record.clone()),
                Record::Job(_) | Record::Config(_) | Record::Sanitization(_) => {}
            }
        }
        loaded
    }
}

impl Reader for MemoryStore {
    fn job(&self, id: Id) -> Result<Option<JobRecord>, StoreError> {
        Ok(match self.lock().durable.records.get(&(Table::Jobs, id)) {
            Some(Record::Job(job)) => Some((**job).clone()),
            _ => None,
        })
    }

    fn jobs(
        &self,
        project: Option<&str>,
        subject: Option<&str>,
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<JobRecord>, StoreError> {
        let shared = self.lock();
        let wanted = |record: &&JobRecord| {
            project.is_none_or(|project| record.job.project.as_deref() == Some(project))
                && subject.is_none_or(|subject| record.job.subject == subject)
        };
        Ok(shared.durable.jobs_before(before).rev().filter(wanted).take(limit).cloned().collect())
    }

    fn events(&self, after: u64, filter: &EventFilter, limit: usize) -> Result<Vec<Event>, StoreError> {
        let shared = self.lock();
        let wanted = |event: &&Event| {
            (filter.project.is_none() || event.project == filter.project)
                && (filter.job.is_none() || event.job == filter.job)
                && filter.subject.as_ref().is_none_or(|subject| event.subject == *subject)
        };
        let events = shared.durable.events.range((Excluded(after), Unbounded)).map(|(_, event)| event);
        Ok(events.filter(wanted).take(limit).cloned().collect())
    }

    fn config(&self, instance: Id) -> Result<Option<InstanceConfig>, StoreError> {
        Ok(match self.lock().durable.records.get(&(Table::Configs, instance)) {
            Some(Record::Config(config)) => Some(config.clone()),
            _ => None,
        })
    }

    fn answer(&self, key: &str) -> Result<Option<Answer>, StoreError> {
        Ok(self.lock().durable.answers.get(key).cloned())
    }

    fn sanitizations(
        &self,
        project: Option<&str>,
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<SanitizationRecord>, StoreError> {
        let shared = self.lock();
        let records =
            shared.durable.all(Table::Sanitizations, before).rev().filter_map(|record| match record {
                Record::Sanitization(record) => Some(record),
                _ => None,
            });
        let wanted = |record: &&SanitizationRecord| project.is_none_or(|project| record.project == project);
        Ok(records.filter(wanted).take(limit).cloned().collect())
    }

    fn sanitization(&self, id: Id) -> Result<Option<SanitizationRecord>, StoreError> {
        Ok(match self.lock().durable.records.get(&(Table::Sanitizations, id)) {
            Some(Record::Sanitization(record)) => Some(record.clone()),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
