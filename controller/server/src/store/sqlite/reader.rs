//! The readers' side: a few connections of their own, that see what was committed and hold nobody up.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use serde::de::DeserializeOwned;

use super::schema::Location;
use super::{id, optional_id, unsigned};
use crate::core::JobRecord;
use crate::model::{Accepted, Event, Id, SanitizationRecord};
use crate::store::{Answer, EventFilter, InstanceConfig, Reader, StoreError};

/// Connections open at most.
const CONNECTIONS_MAX: usize = 4;
/// How long a reader waits for one of them.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The connections.
#[derive(Debug)]
pub(super) struct Pool {
    location: Location,
    connections: Mutex<Connections>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct Connections {
    idle: Vec<Connection>,
    open: usize,
}

impl Pool {
    pub(super) fn new(location: Location) -> Self {
        Self { location, connections: Mutex::default(), returned: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that nobody uses: an idle one, a new one, or one that is waited for.
    fn take(&self) -> Result<Connection, StoreError> {
        let used_up = |connections: &mut Connections| {
            connections.idle.is_empty() && connections.open >= CONNECTIONS_MAX
        };
        let waited = self.returned.wait_timeout_while(self.lock(), WAIT_MAX, used_up);
        let (mut connections, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Err(StoreError {
                context: "reading the store".to_owned(),
                out_of_space: false,
                cause: format!("all {CONNECTIONS_MAX} connections have been busy for {WAIT_MAX:?}"),
            });
        }
        if let Some(connection) = connections.idle.pop() {
            return Ok(connection);
        }
        connections.open += 1;
        drop(connections);
        self.location.reader().inspect_err(|_| self.give_back(None))
    }

    fn give_back(&self, connection: Option<Connection>) {
        let mut connections = self.lock();
        match connection {
            Some(connection) => connections.idle.push(connection),
            None => connections.open -= 1,
        }
        drop(connections);
        self.returned.notify_one();
    }

    /// Reads with a connection; one with which reading failed is closed.
    fn read<T>(
        &self,
        what: &str,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let connection = self.take()?;
        let result = read(&connection);
        self.give_back(result.is_ok().then_some(connection));
        result.map_err(|cause| self.location.error(format!("reading {what}"), &cause))
    }

    /// One document by its id.
    fn document<T: DeserializeOwned>(&self, table: &str, id: Id) -> Result<Option<T>, StoreError> {
        let query = format!("SELECT document FROM {table} WHERE id = ?");
        self.read(table, |connection| {
            let mut statement = connection.prepare_cached(&query)?;
            statement.query_row([id.0.as_bytes()], |row| parse(row, 0)).optional()
        })
    }

    /// Documents newest first that fulfil all conditions.
    fn newest<T: DeserializeOwned>(
        &self,
        table: &str,
        conditions: [(&str, Option<&str>); 2],
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<T>, StoreError> {
        let mut clauses = Clauses::default();
        for (column, value) in conditions {
            clauses.add(column, "=", value.map(|value| Value::Text(value.to_owned())));
        }
        clauses.add("id", "<", before.map(blob));
        let query = format!("SELECT document FROM {table} {} ORDER BY id DESC LIMIT ?", clauses.text());
        clauses.values.push(count(limit));
        self.read(table, |connection| {
            let mut statement = connection.prepare_cached(&query)?;
            statement.query_map(params_from_iter(&clauses.values), |row| parse(row, 0))?.collect()
        })
    }
}

/// The conditions of a query.
#[derive(Default)]
struct Clauses {
    conditions: Vec<String>,
    values: Vec<Value>,
}

impl Clauses {
    fn add(&mut self, column: &str, relation: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.conditions.push(format!("{column} {relation} ?"));
            self.values.push(value);
        }
    }

    fn text(&self) -> String {
        if self.conditions.is_empty() {
            String::new()
        } else {
            format!("WHERE {}", self.conditions.join(" AND "))
        }
    }
}

fn blob(id: Id) -> Value {
    Value::Blob(id.0.as_bytes().to_vec())
}

fn count(limit: usize) -> Value {
    Value::Integer(i64::try_from(limit).unwrap_or(i64::MAX))
}

/// A document; one that cannot be understood is told with the place where it stands.
pub(super) fn parse<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let failed = |cause: serde_json::Error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(cause))
    };
    serde_json::from_str(row.get_ref(column)?.as_str()?).map_err(failed)
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        sequence: unsigned(row.get(0)?),
        time: unsigned(row.get(1)?),
        kind: row.get(2)?,
        project: row.get(3)?,
        subject: row.get(4)?,
        job: optional_id(row, 5)?,
        message: row.get(6)?,
    })
}

fn answer(row: &Row<'_>) -> rusqlite::Result<Answer> {
    Ok(Answer {
        key: row.get(0)?,
        request_hash: row.get(1)?,
        accepted: Accepted { subject: row.get(2)?, id: id(row, 3)?, job: optional_id(row, 4)? },
        created_at: unsigned(row.get(5)?),
    })
}

impl Reader for Pool {
    fn job(&self, id: Id) -> Result<Option<JobRecord>, StoreError> {
        self.document("jobs", id)
    }

    fn jobs(
        &self,
        project: Option<&str>,
        subject: Option<&str>,
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<JobRecord>, StoreError> {
        self.newest("jobs", [("project", project), ("subject", subject)], before, limit)
    }

    fn events(&self, after: u64, filter: &EventFilter, limit: usize) -> Result<Vec<Event>, StoreError> {
        let after = i64::try_from(after).unwrap_or(i64::MAX);
        let mut clauses = Clauses::default();
        clauses.add("job", "=", filter.job.map(blob));
        clauses.add("subject", "=", filter.subject.clone().map(Value::Text));
        clauses.add("project", "=", filter.project.clone().map(Value::Text));
        clauses.add("sequence", ">", Some(Value::Integer(after)));
        let query = format!(
            "SELECT sequence, time, kind, project, subject, job, message FROM events {} ORDER BY sequence LIMIT ?",
            clauses.text()
        );
        clauses.values.push(count(limit));
        self.read("events", |connection| {
            let mut statement = connection.prepare_cached(&query)?;
            statement.query_map(params_from_iter(&clauses.values), event)?.collect()
        })
    }

    fn config(&self, instance: Id) -> Result<Option<InstanceConfig>, StoreError> {
        self.document("configs", instance)
    }

    fn answer(&self, key: &str) -> Result<Option<Answer>, StoreError> {
        const QUERY: &str =
            "SELECT key, request_hash, subject, id, job, created_at FROM answers WHERE key = ?";
        self.read("answers", |connection| {
            connection.prepare_cached(QUERY)?.query_row([key], answer).optional()
        })
    }

    fn sanitizations(
        &self,
        project: Option<&str>,
        before: Option<Id>,
        limit: usize,
    ) -> Result<Vec<SanitizationRecord>, StoreError> {
        self.newest("sanitizations", [("project", project), ("project", None)], before, limit)
    }

    fn sanitization(&self, id: Id) -> Result<Option<SanitizationRecord>, StoreError> {
        self.document("sanitizations", id)
    }
}
