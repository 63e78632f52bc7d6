//! The file: how it is opened, what it holds, and how one of an older version becomes one of this version.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use crate::store::StoreError;

/// Marks the file as a controller's store (`uvmc`).
const APPLICATION_ID: i64 = 0x7576_6d63;
/// How long a statement waits for another connection's lock; readers and the one writer never need it in WAL mode
/// but for the moment in which the log is begun anew.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The log is written back into the file by the commit with which it has so many pages (4 MiB). A thread beside the
/// writer was tried and won nothing: the disk is what both wait for, and a short log is overwritten in place, which
/// is synced faster than one that grows.
const CHECKPOINT_PAGES: i64 = 1_000;
/// What the log's file may keep of the disk after it was written back.
const LOG_BYTES_KEPT: i64 = 32 << 20;
/// Page cache of the writer in KiB.
const WRITER_CACHE_KIB: i64 = 8_192;
/// Page cache of one reader in KiB.
const READER_CACHE_KIB: i64 = 1_024;
/// Prepared statements kept by a connection.
const STATEMENTS_KEPT: usize = 64;

/// What makes version n + 1 of version n. Only ever appended to.
pub(super) const MIGRATIONS: &[&str] = &[VERSION_1];

/// Records are JSON documents beside the columns that queries and uniqueness need. They have a rowid, because a
/// document is too long to live in the inner pages of a tree.
const VERSION_1: &str = "
CREATE TABLE nodes (id BLOB PRIMARY KEY NOT NULL, name TEXT NOT NULL UNIQUE, document TEXT NOT NULL) STRICT;
CREATE TABLE instances (id BLOB PRIMARY KEY NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL,
    deleting INTEGER NOT NULL, document TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX instances_name ON instances (project, name) WHERE deleting = 0;
CREATE TABLE configs (id BLOB PRIMARY KEY NOT NULL, document TEXT NOT NULL) STRICT;
CREATE TABLE disks (id BLOB PRIMARY KEY NOT NULL, document TEXT NOT NULL) STRICT;
CREATE TABLE snapshots (id BLOB PRIMARY KEY NOT NULL, document TEXT NOT NULL) STRICT;
CREATE TABLE images (id BLOB PRIMARY KEY NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL,
    document TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX images_name ON images (project, name);
CREATE TABLE tokens (id BLOB PRIMARY KEY NOT NULL, document TEXT NOT NULL) STRICT;
CREATE TABLE jobs (id BLOB PRIMARY KEY NOT NULL, project TEXT, subject TEXT NOT NULL, ended INTEGER,
    document TEXT NOT NULL) STRICT;
CREATE INDEX jobs_active ON jobs (id) WHERE ended IS NULL;
CREATE INDEX jobs_ended ON jobs (ended) WHERE ended IS NOT NULL;
CREATE INDEX jobs_project ON jobs (project, id) WHERE project IS NOT NULL;
CREATE INDEX jobs_subject ON jobs (subject, id);
CREATE TABLE sanitizations (id BLOB PRIMARY KEY NOT NULL, project TEXT NOT NULL, document TEXT NOT NULL) STRICT;
CREATE INDEX sanitizations_project ON sanitizations (project, id);
CREATE TABLE locks (resource TEXT PRIMARY KEY NOT NULL, job BLOB NOT NULL, lease_until INTEGER NOT NULL)
    STRICT, WITHOUT ROWID;
CREATE TABLE events (sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, kind TEXT NOT NULL, project TEXT,
    subject TEXT NOT NULL, job BLOB, message TEXT NOT NULL) STRICT;
CREATE INDEX events_job ON events (job) WHERE job IS NOT NULL;
CREATE INDEX events_project ON events (project) WHERE project IS NOT NULL;
CREATE INDEX events_subject ON events (subject);
CREATE TABLE answers (key TEXT PRIMARY KEY NOT NULL, request_hash TEXT NOT NULL, subject TEXT NOT NULL,
    id BLOB NOT NULL, job BLOB, created_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX answers_created ON answers (created_at);
CREATE TABLE seal (one INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT;
INSERT INTO seal VALUES (1, 0);
";

/// Where the store is.
#[derive(Debug, Clone)]
pub(super) struct Location {
    path: PathBuf,
}

impl Location {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder it is in.
    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Takes the lock that only one controller can have, and makes the file, for its owner alone: it holds what
    /// customers put into their machines. The operating system gives the lock back when the process ends.
    pub(super) fn lock(&self) -> Result<File, StoreError> {
        let failed = |path: &Path, cause: std::io::Error| StoreError {
            context: format!("opening {}", path.display()),
            out_of_space: cause.kind() == std::io::ErrorKind::StorageFull,
            cause: cause.to_string(),
        };
        let mut name = self.path.clone().into_os_string();
        name.push(".lock");
        let name = PathBuf::from(name);
        let private = |path: &Path| {
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)
        };
        let lock = private(&name).map_err(|cause| failed(&name, cause))?;
        lock.try_lock().map_err(|cause| match cause {
            std::fs::TryLockError::WouldBlock => StoreError {
                context: format!("opening the state folder {}", self.folder().display()),
                out_of_space: false,
                cause: "another controller is running on it".to_owned(),
            },
            std::fs::TryLockError::Error(cause) => failed(&name, cause),
        })?;
        private(&self.path).map_err(|cause| failed(&self.path, cause))?;
        let folder = File::open(self.folder()).and_then(|folder| folder.sync_all());
        folder.map_err(|cause| failed(self.folder(), cause))?;
        Ok(lock)
    }

    /// The writer's connection, to a file of this version.
    pub(super) fn writer(&self) -> Result<Connection, StoreError> {
        let context = || format!("opening the store {}", self.path.display());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = self.connect(flags, WRITER_CACHE_KIB)?;
        let settings = |connection: &Connection| {
            let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
            connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
            Ok(mode)
        };
        let mode = settings(&connection).map_err(|cause| self.error(context(), &cause))?;
        if mode != "wal" {
            let cause = format!("its file system does not carry a write-ahead log (mode {mode})");
            return Err(StoreError { context: context(), out_of_space: false, cause });
        }
        self.migrate(&mut connection, MIGRATIONS)?;
        Ok(connection)
    }

    /// A reader's connection.
    pub(super) fn reader(&self) -> Result<Connection, StoreError> {
        self.connect(OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX, READER_CACHE_KIB)
    }

    fn connect(&self, flags: OpenFlags, cache_kib: i64) -> Result<Connection, StoreError> {
        let open = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
            connection.pragma_update(None, "foreign_keys", false)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            connection.pragma_update(None, "cache_size", -cache_kib)?;
            Ok(connection)
        };
        open().map_err(|cause| self.error(format!("opening the store {}", self.path.display()), &cause))
    }

    /// Brings the file to this version, all of the way or not at all.
    pub(super) fn migrate(&self, connection: &mut Connection, steps: &[&str]) -> Result<(), StoreError> {
        let context = || format!("opening the store {}", self.path.display());
        let refused = |cause: String| Err(StoreError { context: context(), out_of_space: false, cause });
        let failed = |cause| self.error(context(), &cause);
        let pragma =
            |connection: &Connection, name| connection.pragma_query_value(None, name, |row| row.get(0));
        let version: i64 = pragma(connection, "user_version").map_err(failed)?;
        let application: i64 = pragma(connection, "application_id").map_err(failed)?;
        if application != APPLICATION_ID && (application != 0 || version != 0) {
            return refused("it is a database of another program".to_owned());
        }
        let Some(missing) = usize::try_from(version).ok().and_then(|version| steps.get(version..)) else {
            return refused(format!(
                "it is of version {version}, this controller knows versions up to {}: start the newer \
                 controller, or put back a backup made before it",
                steps.len()
            ));
        };
        if missing.is_empty() {
            return Ok(());
        }
        let apply = |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            missing.iter().try_for_each(|step| transaction.execute_batch(step))?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", steps.len().cast_signed())?;
            transaction.commit()
        };
        apply(connection).map_err(failed)
    }

    /// The store's error in our words.
    pub(super) fn error(&self, context: String, cause: &rusqlite::Error) -> StoreError {
        let code = cause.sqlite_error_code();
        if damaged(cause) {
            let path = self.path.display();
            let cause = format!(
                "{cause}: {path} is damaged; stop the controller, keep {path} and {path}-wal for inspection, and \
                 put a backup in the place of {path} with no {path}-wal beside it"
            );
            return StoreError { context, out_of_space: false, cause };
        }
        let out_of_space = match code {
            Some(ErrorCode::DiskFull) => true,
            // The lack of space shows as an I/O error where it is found late, as in fsync.
            Some(ErrorCode::SystemIoFailure) => {
                rustix::fs::statvfs(self.folder()).is_ok_and(|folder| folder.f_bavail == 0)
            }
            _ => false,
        };
        StoreError { context, out_of_space, cause: cause.to_string() }
    }
}

/// Whether the file is not what was written: pages that make no sense, or documents and columns that make none.
fn damaged(cause: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    let code = cause.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        || matches!(
            cause,
            FromSqlConversionFailure(..)
                | IntegralValueOutOfRange(..)
                | InvalidColumnType(..)
                | Utf8Error(..)
        )
}
