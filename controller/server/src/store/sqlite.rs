//! The store in one SQLite file: a write-ahead log, synced with every commit.
//!
//! Records are kept as JSON documents, one table for each kind, beside the columns that queries and uniqueness need;
//! events, locks and answers have columns of their own. The store is the second pair of eyes: a lock that another
//! job holds and a name that is taken fail the commit, and a commit that fails leaves nothing.
//!
//! There is no check of the whole file at the start: SQLite recovers from a kill by itself, [`Store::load`] reads
//! every record that is held in memory, and a check would take the longer the more history there is. The file may
//! be copied together with its log while no controller runs, and by [`SqliteStore::backup`] at any time.

mod reader;
mod schema;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, Row, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use reader::{Pool, parse};
use schema::Location;

use super::{Change, FORGET_MAX, Loaded, Lock, Reader, Record, Store, StoreError, Table};
use crate::core::JobRecord;
use crate::model::{Event, Id};

/// The store in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    location: Location,
    /// Absent after a failure from which it could not be opened again yet.
    connection: Option<Connection>,
    readers: Arc<Pool>,
    /// Held as long as this controller has the state folder.
    _lock: File,
}

/// Why a change was not made.
enum Failure {
    /// The store failed.
    Store(rusqlite::Error),
    /// The change is against the rules.
    Refused(String),
    /// The changes were good, but it is not known whether they will be there after a crash.
    Commit(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Store(cause)
    }
}

impl SqliteStore {
    /// Opens the file, makes it where it is missing, and brings one of an older version to this version. The folder
    /// it is in must be there. Refused where another controller has it open, and where a newer version made it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let location = Location::new(path);
        let lock = location.lock()?;
        let connection = location.writer()?;
        let readers = Arc::new(Pool::new(location.clone()));
        Ok(Self { location, connection: Some(connection), readers, _lock: lock })
    }

    /// Writes a whole and compact copy of the store to a file that is not there yet, while the store goes on.
    pub fn backup(&self, path: &Path) -> Result<(), StoreError> {
        let failed = |cause: &rusqlite::Error| {
            self.location.error(format!("writing a backup to {}", path.display()), cause)
        };
        let connection = self.location.reader()?;
        connection.execute("VACUUM INTO ?", [path.to_string_lossy()]).map_err(|cause| failed(&cause))?;
        let sync = File::open(path).and_then(|file| file.sync_all());
        sync.map_err(|cause| failed(&rusqlite::Error::ToSqlConversionFailure(Box::new(cause))))
    }

    /// The connection; opened again where a failure took it away.
    ///
    /// A commit that failed while it was written may lie in the log in one piece: harmless as long as this process
    /// lives, but found by the next one after a crash. So the first thing written afterwards is a commit of no
    /// meaning in its place, before anything else is answered.
    fn connection(&mut self) -> Result<&mut Connection, StoreError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.location.writer()?;
                let sealed = connection.execute("UPDATE seal SET count = count + 1", []);
                sealed.map_err(|cause| self.location.error("opening the store again".to_owned(), &cause))?;
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    /// All changes in one transaction. What goes wrong before the commit is rolled back when the transaction is
    /// dropped.
    fn transact(connection: &mut Connection, changes: &[Change]) -> Result<(), Failure> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        changes.iter().try_for_each(|change| apply(&transaction, change))?;
        transaction.commit().map_err(Failure::Commit)
    }

    /// Every document of a table.
    fn documents<T: DeserializeOwned>(&self, table: &str, condition: &str) -> Result<Vec<T>, StoreError> {
        let read = |connection: &Connection| {
            let number = format!("SELECT count(*) FROM {table} {condition}");
            let number: i64 = connection.query_row(&number, [], |row| row.get(0))?;
            let mut documents = Vec::with_capacity(usize::try_from(number).unwrap_or_default());
            let query = format!("SELECT document FROM {table} {condition}");
            let mut statement = connection.prepare(&query)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                documents.push(parse(row, 0)?);
            }
            Ok(documents)
        };
        self.read(table, read)
    }

    fn read<T>(
        &self,
        what: &str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let connection = self.location.reader()?;
        read(&connection).map_err(|cause| self.location.error(format!("loading {what}"), &cause))
    }
}

impl Store for SqliteStore {
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let connection = self.connection()?;
        let outcome = Self::transact(connection, changes);
        let rolled_back = connection.is_autocommit();
        let context = || format!("committing {} changes", changes.len());
        let (error, known) = match outcome {
            Ok(()) => return Ok(()),
            Err(Failure::Refused(cause)) => {
                (StoreError { context: context(), out_of_space: false, cause }, true)
            }
            Err(Failure::Store(cause)) => (self.location.error(context(), &cause), true),
            Err(Failure::Commit(cause)) => (self.location.error(context(), &cause), false),
        };
        if !known || !rolled_back {
            self.connection = None;
            // Where this fails too, the next commit tries again first.
            let _ = self.connection();
        }
        Err(error)
    }

    fn load(&mut self) -> Result<Loaded, StoreError> {
        let locks = |connection: &Connection| {
            let mut statement = connection.prepare("SELECT resource, job, lease_until FROM locks")?;
            let lock = |row: &Row<'_>| {
                Ok(Lock { resource: row.get(0)?, job: id(row, 1)?, lease_until: unsigned(row.get(2)?) })
            };
            statement.query_map([], lock)?.collect()
        };
        let last_event = |connection: &Connection| {
            connection.query_row("SELECT max(sequence) FROM events", [], |row| row.get::<_, Option<i64>>(0))
        };
        Ok(Loaded {
            nodes: self.documents("nodes", "")?,
            instances: self.documents("instances", "")?,
            disks: self.documents("disks", "")?,
            snapshots: self.documents("snapshots", "")?,
            images: self.documents("images", "")?,
            tokens: self.documents("tokens", "")?,
            jobs: self.documents("jobs", "WHERE ended IS NULL")?,
            locks: self.read("locks", locks)?,
            last_event: self.read("events", last_event)?.map(unsigned).unwrap_or_default(),
        })
    }

    fn reader(&self) -> Arc<dyn Reader> {
        Arc::clone(&self.readers) as Arc<dyn Reader>
    }
}

/// SQLite's integers have a sign; times and sequence numbers never come near the limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<Id> {
    row.get(column).map(|bytes| Id(Uuid::from_bytes(bytes)))
}

fn optional_id(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Id>> {
    row.get::<_, Option<[u8; 16]>>(column).map(|bytes| bytes.map(|bytes| Id(Uuid::from_bytes(bytes))))
}

fn document(record: &impl Serialize) -> Result<String, Failure> {
    let refused = |cause: serde_json::Error| Failure::Refused(format!("a record cannot be written: {cause}"));
    serde_json::to_string(record).map_err(refused)
}

fn apply(connection: &Connection, change: &Change) -> Result<(), Failure> {
    match change {
        Change::Put(record) => put(connection, record),
        Change::Delete(table, id) => {
            let statement = format!("DELETE FROM {} WHERE id = ?", name(*table));
            connection.prepare_cached(&statement)?.execute([id.0.as_bytes()])?;
            Ok(())
        }
        Change::Lock(lock) => take_lock(connection, lock),
        Change::Unlock(resource) => {
            connection.prepare_cached("DELETE FROM locks WHERE resource = ?")?.execute([resource])?;
            Ok(())
        }
        Change::Event(event) => add_event(connection, event),
        Change::Answer(answer) => {
            const STATEMENT: &str = "INSERT OR REPLACE INTO answers
                (key, request_hash, subject, id, job, created_at) VALUES (?, ?, ?, ?, ?, ?)";
            connection.prepare_cached(STATEMENT)?.execute(params![
                answer.key,
                answer.request_hash,
                answer.accepted.subject,
                answer.accepted.id.0.as_bytes(),
                answer.accepted.job.as_ref().map(|job| job.0.as_bytes()),
                signed(answer.created_at),
            ])?;
            Ok(())
        }
        Change::Forget { answers_before, events_before, jobs_before } => {
            forget(connection, signed(*answers_before), signed(*events_before), signed(*jobs_before))
        }
    }
}

fn name(table: Table) -> &'static str {
    match table {
        Table::Instances => "instances",
        Table::Configs => "configs",
        Table::Disks => "disks",
        Table::Snapshots => "snapshots",
        Table::Images => "images",
        Table::Nodes => "nodes",
        Table::Jobs => "jobs",
        Table::Tokens => "tokens",
        Table::Sanitizations => "sanitizations",
    }
}

fn put(connection: &Connection, record: &Record) -> Result<(), Failure> {
    match record {
        Record::Instance(instance) => {
            let values = (&instance.project, &instance.name, instance.deleting, document(instance)?);
            put_instance(connection, instance.id, &values)
        }
        Record::Job(job) => put_job(connection, job),
        Record::Image(image) => {
            const STATEMENT: &str = "INSERT INTO images (id, project, name, document) VALUES (?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET project = excluded.project, name = excluded.name,
                document = excluded.document";
            let project = image.project.as_deref().unwrap_or_default();
            let values = params![image.id.0.as_bytes(), project, image.name, document(image)?];
            connection.prepare_cached(STATEMENT)?.execute(values)?;
            Ok(())
        }
        Record::Node(node) => {
            const STATEMENT: &str = "INSERT INTO nodes (id, name, document) VALUES (?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET name = excluded.name, document = excluded.document";
            let values = params![node.id.0.as_bytes(), node.name, document(node)?];
            connection.prepare_cached(STATEMENT)?.execute(values)?;
            Ok(())
        }
        Record::Sanitization(record) => {
            const STATEMENT: &str = "INSERT INTO sanitizations (id, project, document) VALUES (?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET project = excluded.project, document = excluded.document";
            let values = params![record.id.0.as_bytes(), record.project, document(record)?];
            connection.prepare_cached(STATEMENT)?.execute(values)?;
            Ok(())
        }
        Record::Config(config) => put_plain(connection, "configs", config.id, config),
        Record::Disk(disk) => put_plain(connection, "disks", disk.id, disk),
        Record::Snapshot(snapshot) => put_plain(connection, "snapshots", snapshot.id, snapshot),
        Record::Token(token) => put_plain(connection, "tokens", token.id, token),
    }
}

/// A record of which nothing but the document is asked for.
fn put_plain(connection: &Connection, table: &str, id: Id, record: &impl Serialize) -> Result<(), Failure> {
    let statement = format!(
        "INSERT INTO {table} (id, document) VALUES (?, ?)
         ON CONFLICT (id) DO UPDATE SET document = excluded.document"
    );
    connection.prepare_cached(&statement)?.execute(params![id.0.as_bytes(), document(record)?])?;
    Ok(())
}

/// Most changes leave the name as it is: then the index of names, whose pages lie anywhere, is not touched.
fn put_instance(
    connection: &Connection,
    id: Id,
    (project, name, deleting, document): &(&String, &String, bool, String),
) -> Result<(), Failure> {
    const UPDATE: &str = "UPDATE instances SET document = ?5
        WHERE id = ?1 AND project = ?2 AND name = ?3 AND deleting = ?4";
    const INSERT: &str =
        "INSERT INTO instances (id, project, name, deleting, document) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (id) DO UPDATE SET project = excluded.project, name = excluded.name,
        deleting = excluded.deleting, document = excluded.document";
    let values = params![id.0.as_bytes(), project, name, deleting, document];
    if connection.prepare_cached(UPDATE)?.execute(values)? == 0 {
        connection.prepare_cached(INSERT)?.execute(values)?;
    }
    Ok(())
}

/// A job's owner and subject never change, and it ends once: a step goes into the document alone.
fn put_job(connection: &Connection, record: &JobRecord) -> Result<(), Failure> {
    const UPDATE: &str = "UPDATE jobs SET document = ?5
        WHERE id = ?1 AND project IS ?2 AND subject = ?3 AND ended IS ?4";
    const INSERT: &str =
        "INSERT INTO jobs (id, project, subject, ended, document) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (id) DO UPDATE SET project = excluded.project, subject = excluded.subject,
        ended = excluded.ended, document = excluded.document";
    let job = &record.job;
    let ended = super::ended_at(job).map(signed);
    let values = params![job.id.0.as_bytes(), job.project, job.subject, ended, document(record)?];
    if connection.prepare_cached(UPDATE)?.execute(values)? == 0 {
        connection.prepare_cached(INSERT)?.execute(values)?;
    }
    Ok(())
}

fn take_lock(connection: &Connection, lock: &Lock) -> Result<(), Failure> {
    const STATEMENT: &str = "INSERT INTO locks (resource, job, lease_until) VALUES (?, ?, ?)
        ON CONFLICT (resource) DO UPDATE SET lease_until = excluded.lease_until WHERE job = excluded.job";
    let values = params![lock.resource, lock.job.0.as_bytes(), signed(lock.lease_until)];
    match connection.prepare_cached(STATEMENT)?.execute(values)? {
        1 => Ok(()),
        _ => Err(Failure::Refused(super::held(lock))),
    }
}

fn add_event(connection: &Connection, event: &Event) -> Result<(), Failure> {
    const STATEMENT: &str = "INSERT INTO events (sequence, time, kind, project, subject, job, message)
        VALUES (?, ?, ?, ?, ?, ?, ?)";
    connection.prepare_cached(STATEMENT)?.execute(params![
        signed(event.sequence),
        signed(event.time),
        event.kind,
        event.project,
        event.subject,
        event.job.as_ref().map(|job| job.0.as_bytes()),
        event.message,
    ])?;
    Ok(())
}

/// Forgets what is oldest, a little at a time so that nobody waits long. The last event stays: from it the sequence
/// goes on.
fn forget(connection: &Connection, answers: i64, events: i64, jobs: i64) -> Result<(), Failure> {
    let limit = signed(FORGET_MAX as u64);
    for (statement, before) in [(FORGET_ANSWERS, answers), (FORGET_EVENTS, events), (FORGET_JOBS, jobs)] {
        connection.prepare_cached(statement)?.execute([before, limit])?;
    }
    Ok(())
}

const FORGET_ANSWERS: &str = "DELETE FROM answers WHERE key IN
    (SELECT key FROM answers WHERE created_at < ?1 ORDER BY created_at, key LIMIT ?2)";
const FORGET_EVENTS: &str = "DELETE FROM events WHERE sequence IN
    (SELECT sequence FROM (SELECT sequence, time FROM events ORDER BY sequence LIMIT ?2)
     WHERE time < ?1 AND sequence < (SELECT max(sequence) FROM events))";
const FORGET_JOBS: &str = "DELETE FROM jobs WHERE id IN
    (SELECT id FROM jobs WHERE ended < ?1 ORDER BY ended LIMIT ?2)";

#[cfg(test)]
mod tests;
