//! What is durable: records, jobs, events, locks, answers given.
//!
//! One writer commits whole batches; whoever reads ended jobs and events does so through a [`Reader`] of its own.
//! Everything that decisions need is loaded into memory at the start; what only people ask for stays in the store.

mod memory;
mod series;
mod sqlite;

pub use memory::{Fault, MemoryStore};
pub use series::{Metric, Point, Rates, Sample, Series};
pub use sqlite::SqliteStore;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uvm_api::{BootSpec, CustomizeSpec, PartitionSpec};

use crate::core::JobRecord;
use crate::model::{
    Accepted, Disk, Event, Id, Image, Instance, Job, Millis, Node, SanitizationRecord, Snapshot, Token,
};

/// [`Change::Forget`] forgets at most so many of each kind at once, the oldest first, so that nobody waits long for
/// it; who has more to forget says it again. Of events, only the oldest so many are looked at.
pub const FORGET_MAX: usize = 200;

/// What an instance was made with and no decision needs: kept out of memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceConfig {
    /// The instance.
    pub id: Id,
    /// Layout of the boot disk.
    pub partitions: Vec<PartitionSpec>,
    /// What makes the machine the customer's.
    pub customize: CustomizeSpec,
    /// How it boots.
    pub boot: BootSpec,
}

/// A record of any kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// An instance.
    Instance(Instance),
    /// What it was made with.
    Config(InstanceConfig),
    /// A disk.
    Disk(Disk),
    /// A snapshot.
    Snapshot(Snapshot),
    /// An image.
    Image(Image),
    /// A node.
    Node(Node),
    /// A job with its inner workings; one that ended stays in the store and leaves the memory.
    Job(Box<JobRecord>),
    /// A token.
    Token(Token),
    /// A record of sanitization.
    Sanitization(SanitizationRecord),
}

/// The kinds of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Instances.
    Instances,
    /// What they were made with.
    Configs,
    /// Disks.
    Disks,
    /// Snapshots.
    Snapshots,
    /// Images.
    Images,
    /// Nodes.
    Nodes,
    /// Jobs.
    Jobs,
    /// Tokens.
    Tokens,
    /// Records of sanitization.
    Sanitizations,
}

/// What is held by a job until the job ends; a thing has at most one lock (the store's primary key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// What, as `instances/0192…`.
    pub resource: String,
    /// The job.
    pub job: Id,
    /// Until when the job's step promises to be heard of.
    pub lease_until: Millis,
}

/// The answer that was given to a request with an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Token and key.
    pub key: String,
    /// SHA-256 over method, path and body.
    pub request_hash: String,
    /// The answer.
    pub accepted: Accepted,
    /// When.
    pub created_at: Millis,
}

/// A durable change.
// Most changes are records: a box for each would cost more than it spares.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A record is new or different.
    Put(Record),
    /// A record is gone.
    Delete(Table, Id),
    /// A job holds something; again with another lease.
    Lock(Lock),
    /// Nobody holds it.
    Unlock(String),
    /// Something happened.
    Event(Event),
    /// A request was answered.
    Answer(Answer),
    /// Forget answers older than this, and events older than that.
    Forget {
        /// Answers.
        answers_before: Millis,
        /// Events.
        events_before: Millis,
        /// Jobs that ended.
        jobs_before: Millis,
    },
}

/// Everything that is held in memory.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Instances.
    pub instances: Vec<Instance>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Images.
    pub images: Vec<Image>,
    /// Tokens.
    pub tokens: Vec<Token>,
    /// Jobs that have not ended.
    pub jobs: Vec<JobRecord>,
    /// Locks.
    pub locks: Vec<Lock>,
    /// Sequence number of the last event.
    pub last_event: u64,
}

/// Why the store failed.
#[derive(Debug)]
pub struct StoreError {
    /// What was being done.
    pub context: String,
    /// Whether space ran out.
    pub out_of_space: bool,
    /// The store's own words.
    pub cause: String,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.context, self.cause)
    }
}

impl std::error::Error for StoreError {}

/// The writer's side. Homes: SQLite, and memory for simulations.
pub trait Store: Send {
    /// All of the changes or none, durable when it returns.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// Everything that is held in memory.
    fn load(&mut self) -> Result<Loaded, StoreError>;

    /// The readers' side.
    fn reader(&self) -> Arc<dyn Reader>;
}

/// Which events are asked for.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Those of one project only.
    pub project: Option<String>,
    /// Those of one job only.
    pub job: Option<Id>,
    /// Those about one thing only.
    pub subject: Option<String>,
}

/// The readers' side; sees what was committed.
pub trait Reader: Send + Sync {
    /// A job, ended or not.
    fn job(&self, id: Id) -> Result<Option<JobRecord>, StoreError>;

    /// Jobs newest first, older than `before`, of one project or all, of one subject or all.
    fn jobs(
        &self,
        project: Option<&str>,
        subject: Option<&str>,
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<JobRecord>, StoreError>;

    /// Events after a sequence number, oldest first.
    fn events(&self, after: u64, filter: &EventFilter, limit: usize) -> Result<Vec<Event>, StoreError>;

    /// What an instance was made with.
    fn config(&self, instance: Id) -> Result<Option<InstanceConfig>, StoreError>;

    /// The answer given to a key.
    fn answer(&self, key: &str) -> Result<Option<Answer>, StoreError>;

    /// Records of sanitization newest first, older than `before`, of one project or all.
    fn sanitizations(
        &self,
        project: Option<&str>,
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<SanitizationRecord>, StoreError>;

    /// One record of sanitization.
    fn sanitization(&self, id: Id) -> Result<Option<SanitizationRecord>, StoreError>;
}

/// When a job ended; `None` where it goes on.
fn ended_at(job: &Job) -> Option<Millis> {
    job.state.ended().then(|| job.ended_at.unwrap_or(job.created_at))
}

/// Why a lock was refused.
fn held(lock: &Lock) -> String {
    format!("{} cannot be locked by job {}: another job holds it", lock.resource, lock.job)
}

#[cfg(test)]
mod contract_tests;
