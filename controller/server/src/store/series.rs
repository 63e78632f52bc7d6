//! Statistics as time series, in a SQLite file of their own: a power cut may cost the last seconds, a damaged file
//! costs the history, and neither touches the grid's state.
//!
//! One row holds what was measured of everything on one node at one time; its key is time and node, so that rows are
//! appended in the order in which they come, and one is found by its key. When a minute of a node is over, its rows
//! become one row of minimum, mean and maximum; when a quarter of an hour is over, the minutes do. Nothing is held in
//! memory but the numbers under which subjects stand in the rows.
//!
//! | level | step | kept |
//! |---|---|---|
//! | raw | every poll, at most one in 5 s | 2 hours |
//! | minutes | 1 minute | 2 days |
//! | quarters | 15 minutes | 60 days |

mod metric;
mod packed;
mod rates;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use packed::{Cell, INDEX_MAX, Key};

pub use metric::{Metric, Point, Sample};
pub use rates::Rates;

use super::StoreError;
use crate::model::{Id, Millis};

const SECOND: Millis = 1_000;
const MINUTE: Millis = 60 * SECOND;
const HOUR: Millis = 60 * MINUTE;
const DAY: Millis = 24 * HOUR;

/// A resolution.
struct Level {
    table: &'static str,
    step: Millis,
    kept: Millis,
}

/// The levels, finest first. Each step is a multiple of the one before.
const LEVELS: [Level; 3] = [
    Level { table: "raw", step: 5 * SECOND, kept: 2 * HOUR },
    Level { table: "minutes", step: MINUTE, kept: 2 * DAY },
    Level { table: "quarters", step: 15 * MINUTE, kept: 60 * DAY },
];

/// Bits of a row's key that number the node; the rest is the time in steps.
const NODE_BITS: u32 = 20;
/// Appends that share a transaction at most.
const APPENDS_MAX: usize = 64;
/// How long a transaction waits for more.
const OPEN_MAX: Millis = 5 * SECOND;
/// Rows beyond their time that an append takes away at each level: more than it adds.
const TRIM_MAX: i64 = 4;
/// Subjects and nodes not heard of for longer than anything is kept that a commit forgets.
const FORGET_MAX: i64 = 64;
/// Numbers of subjects that are remembered at most.
const KNOWN_MAX: usize = 250_000;
/// Nodes of one subject that a query looks at, the latest first.
const NODES_OF_SUBJECT_MAX: i64 = 8;
/// What statistics leave free in their file system: the grid's state is beside them, and must never lack space.
const RESERVE_BYTES: u64 = 256 << 20;
/// Pages that are free in the file itself from which on it can be added to all the same.
const FREE_PAGES: i64 = 64;
/// Page cache in KiB.
const CACHE_KIB: i64 = 4_096;
/// Size of a page in bytes: a row has some thousand.
const PAGE_BYTES: i64 = 16_384;
/// The log is written back whenever it has so many pages (4 MiB).
const CHECKPOINT_PAGES: i64 = 256;
/// The version of what follows. Statistics of another version are set aside.
const VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE raw (id INTEGER PRIMARY KEY, cells BLOB NOT NULL) STRICT;
CREATE TABLE minutes (id INTEGER PRIMARY KEY, cells BLOB NOT NULL) STRICT;
CREATE TABLE quarters (id INTEGER PRIMARY KEY, cells BLOB NOT NULL) STRICT;
CREATE TABLE nodes (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, seen INTEGER NOT NULL) STRICT;
CREATE TABLE subjects (number INTEGER PRIMARY KEY, node INTEGER NOT NULL, id BLOB NOT NULL, day INTEGER NOT NULL,
    UNIQUE (node, id)) STRICT;
CREATE INDEX subjects_id ON subjects (id);
CREATE INDEX subjects_day ON subjects (day);
";

/// Time series of statistics. Calls may come from several threads; they take turns.
#[derive(Debug)]
pub struct Series {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    folder: PathBuf,
    reserve_bytes: u64,
    nodes: HashMap<Id, Node>,
    /// Numbers of subjects by node, and the day on which that was written down last.
    known: HashMap<(u32, Id), (u32, u32)>,
    /// Appends in the open transaction.
    appended: usize,
    /// When the first of them was.
    opened: Millis,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    number: u32,
    /// Time of its last row.
    seen: Millis,
}

/// Cells that become one.
#[derive(Default)]
struct Merged(BTreeMap<Key, Sum>);

struct Sum {
    min: u16,
    max: u16,
    sum: f64,
    count: u32,
}

impl Merged {
    fn add(&mut self, key: Key, cell: Cell) {
        let sum = self.0.entry(key).or_insert(Sum { min: cell.min, max: cell.max, sum: 0.0, count: 0 });
        sum.min = sum.min.min(cell.min);
        sum.max = sum.max.max(cell.max);
        sum.sum += packed::value(cell.avg);
        sum.count += 1;
    }

    fn pack(&self) -> Vec<u8> {
        packed::pack(self.0.iter().map(|(key, sum)| {
            let mean = packed::code(sum.sum / f64::from(sum.count)).unwrap_or(sum.min);
            (*key, Cell { min: sum.min, avg: mean.clamp(sum.min, sum.max), max: sum.max })
        }))
    }
}

impl Series {
    /// Opens the file, and makes it where it is missing. A file that is damaged or of another version is set aside
    /// under the name with `.old` behind it, and a new one is begun.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |cause: &dyn std::fmt::Display, out_of_space| StoreError {
            context: format!("opening the statistics {}", path.display()),
            out_of_space,
            cause: cause.to_string(),
        };
        let connection = match open(path) {
            Ok(Some(connection)) => connection,
            Err(cause) if !is_damaged(&cause) => return Err(failed(&cause, is_full(&cause))),
            Ok(None) | Err(_) => {
                let beside = |end: &str| {
                    let mut name = path.to_owned().into_os_string();
                    name.push(end);
                    name
                };
                std::fs::rename(path, beside(".old")).map_err(|cause| failed(&cause, false))?;
                let log = std::fs::remove_file(beside("-wal"));
                log.or_else(|cause| match cause.kind() {
                    std::io::ErrorKind::NotFound => Ok(()),
                    _ => Err(failed(&cause, false)),
                })?;
                let again = open(path).map_err(|cause| failed(&cause, is_full(&cause)))?;
                again.ok_or_else(|| failed(&"a new file is of another version", false))?
            }
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inner = Inner {
            connection,
            folder: folder.to_owned(),
            reserve_bytes: RESERVE_BYTES,
            nodes: HashMap::new(),
            known: HashMap::new(),
            appended: 0,
            opened: 0,
        };
        Ok(Self { inner: Mutex::new(inner) })
    }

    /// Adds what was measured at a time on a node and on everything that is there. Values that are negative or no
    /// numbers, and cores beyond the 1,024th, are left out. Durable some seconds later.
    pub fn append(&self, node: Id, time: Millis, samples: &[Sample]) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let outcome = inner.append(node, time, samples);
        inner.settle(outcome, || format!("adding statistics of node {node}"))
    }

    /// Makes everything that was added durable against the end of this process.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let outcome = inner.commit();
        inner.settle(outcome, || "writing statistics".to_owned())
    }

    /// One of a subject's series from one time to another, in steps of at least so many milliseconds, as fine as is
    /// still kept of that time: on one node never more than 5,760 points. A point's time is a multiple of the step;
    /// stretches in which nothing was measured are left out.
    pub fn query(
        &self,
        subject: Id,
        (metric, index): (Metric, u16),
        from: Millis,
        to: Millis,
        step: Millis,
    ) -> Result<Vec<Point>, StoreError> {
        let mut inner = self.lock();
        let outcome = inner.query(subject, (metric, index), (from, to), step);
        inner.settle(outcome, || format!("reading statistics of {subject}"))
    }

    /// What was measured last on a node and on everything that is there, and when.
    pub fn latest(&self, node: Id) -> Result<Option<(Millis, Vec<Sample>)>, StoreError> {
        let mut inner = self.lock();
        let outcome = inner.latest(node);
        inner.settle(outcome, || format!("reading statistics of node {node}"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        // Nobody is left to tell; what is lost is some seconds of statistics.
        let _ = self.flush();
    }
}

/// The file's connection; `None` where the file is of another version.
fn open(path: &Path) -> rusqlite::Result<Option<Connection>> {
    let connection = Connection::open(path)?;
    // One connection is all there is: with the lock held there is no shared memory, and nobody else comes in.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", CHECKPOINT_PAGES * PAGE_BYTES * 2)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if version == 0 && tables == 0 {
        connection.execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT"))?;
        return Ok(Some(connection));
    }
    Ok((version == VERSION).then_some(connection))
}

fn is_damaged(cause: &rusqlite::Error) -> bool {
    matches!(cause.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn is_full(cause: &rusqlite::Error) -> bool {
    cause.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Key of a row.
fn row_id(slot: u64, node: u32) -> i64 {
    // Of times in the far future only the last one is left.
    signed(slot.min(u64::MAX >> (NODE_BITS + 1)) << NODE_BITS) | i64::from(node)
}

fn signed(time: Millis) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

fn day(time: Millis) -> u32 {
    u32::try_from(time / DAY).unwrap_or(u32::MAX)
}

impl Inner {
    /// After a failure nothing is left of the open transaction, nor of what is known from it.
    fn settle<T>(
        &mut self,
        outcome: rusqlite::Result<T>,
        context: impl FnOnce() -> String,
    ) -> Result<T, StoreError> {
        outcome.map_err(|cause| {
            if !self.connection.is_autocommit() {
                // Where it fails there is no transaction any more.
                let _ = self.connection.execute_batch("ROLLBACK");
            }
            self.nodes.clear();
            self.known.clear();
            self.appended = 0;
            let cause_in_words = if is_damaged(&cause) {
                format!("{cause}: delete the file; the history of statistics is all that is lost")
            } else {
                cause.to_string()
            };
            StoreError { context: context(), out_of_space: is_full(&cause), cause: cause_in_words }
        })
    }

    fn append(&mut self, node: Id, time: Millis, samples: &[Sample]) -> rusqlite::Result<()> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            self.opened = time;
            self.leave_room(time)?;
        }
        let node_id = node;
        let node = self.node(node_id)?;
        if node.seen != 0 {
            for pair in LEVELS.windows(2) {
                let (fine, coarse) = (&pair[0], &pair[1]);
                if node.seen / coarse.step != time / coarse.step {
                    self.roll_up(fine, coarse, node)?;
                }
            }
        }
        let mut merged = Merged::default();
        self.read(&LEVELS[0], time / LEVELS[0].step, node.number, None, &mut |key, cell| {
            merged.add(key, cell)
        })?;
        self.add(node.number, time, samples, &mut merged)?;
        self.write(&LEVELS[0], time / LEVELS[0].step, node.number, &merged)?;
        let seen = "UPDATE nodes SET seen = ? WHERE number = ?";
        self.connection.prepare_cached(seen)?.execute(params![signed(time), node.number])?;
        self.nodes.insert(node_id, Node { seen: time, ..node });
        self.trim(time)?;
        self.appended += 1;
        if self.appended >= APPENDS_MAX || time.abs_diff(self.opened) >= OPEN_MAX {
            self.forget(time)?;
            self.commit()?;
        }
        Ok(())
    }

    /// Refuses to grow into what is left of the disk; what is old goes nevertheless, and makes room in the file.
    fn leave_room(&mut self, now: Millis) -> rusqlite::Result<()> {
        let room =
            rustix::fs::statvfs(&self.folder).map(|system| system.f_bavail.saturating_mul(system.f_frsize));
        if room.is_ok_and(|room| room >= self.reserve_bytes) {
            return Ok(());
        }
        let free: i64 = self.connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
        if free >= FREE_PAGES {
            return Ok(());
        }
        self.trim(now)?;
        self.commit()?;
        Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL),
            Some("what is left of the disk is for the grid's state".to_owned()),
        ))
    }

    fn commit(&mut self) -> rusqlite::Result<()> {
        self.appended = 0;
        if self.connection.is_autocommit() { Ok(()) } else { self.connection.execute_batch("COMMIT") }
    }

    /// The samples as cells, under the numbers of their subjects.
    fn add(
        &mut self,
        node: u32,
        time: Millis,
        samples: &[Sample],
        merged: &mut Merged,
    ) -> rusqlite::Result<()> {
        let mut last: Option<(Id, u32)> = None;
        for sample in samples {
            let Some(code) = packed::code(sample.value).filter(|_| sample.index <= INDEX_MAX) else {
                continue;
            };
            let subject = match last {
                Some((id, number)) if id == sample.subject => number,
                _ => self.subject(node, sample.subject, day(time))?,
            };
            last = Some((sample.subject, subject));
            let key = Key { subject, metric: sample.metric.number(), index: sample.index };
            merged.add(key, Cell::one(code));
        }
        Ok(())
    }

    /// A node's number and the time of its last row.
    fn node(&mut self, id: Id) -> rusqlite::Result<Node> {
        if let Some(node) = self.nodes.get(&id) {
            return Ok(*node);
        }
        let insert = "INSERT INTO nodes (id, seen) VALUES (?, 0) ON CONFLICT (id) DO UPDATE SET seen = seen
            RETURNING number, seen";
        let node = self.connection.prepare_cached(insert)?.query_row([id.0.as_bytes()], |row| {
            Ok(Node { number: row.get(0)?, seen: row.get::<_, i64>(1)?.cast_unsigned() })
        })?;
        if node.number >= 1 << NODE_BITS {
            return Err(rusqlite::Error::IntegralValueOutOfRange(0, node.number.into()));
        }
        if self.nodes.len() >= KNOWN_MAX {
            self.nodes.clear();
        }
        self.nodes.insert(id, node);
        Ok(node)
    }

    /// A subject's number on a node. That it was heard of is written down once a day.
    fn subject(&mut self, node: u32, id: Id, day: u32) -> rusqlite::Result<u32> {
        if let Some((number, written)) = self.known.get(&(node, id))
            && *written == day
        {
            return Ok(*number);
        }
        let insert = "INSERT INTO subjects (node, id, day) VALUES (?, ?, ?)
            ON CONFLICT (node, id) DO UPDATE SET day = excluded.day RETURNING number";
        let mut statement = self.connection.prepare_cached(insert)?;
        let number = statement.query_row(params![node, id.0.as_bytes(), day], |row| row.get(0))?;
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert((node, id), (number, day));
        Ok(number)
    }

    /// Makes the coarse row of the stretch in which the node's last row is.
    fn roll_up(&self, fine: &Level, coarse: &Level, node: Node) -> rusqlite::Result<()> {
        let slot = node.seen / coarse.step;
        let parts = coarse.step / fine.step;
        let mut merged = Merged::default();
        for part in slot * parts..(slot + 1) * parts {
            self.read(fine, part, node.number, None, &mut |key, cell| merged.add(key, cell))?;
        }
        self.write(coarse, slot, node.number, &merged)
    }

    /// Shows the cells of a row, where there is one. A row that makes no sense ends early.
    fn read(
        &self,
        level: &Level,
        slot: u64,
        node: u32,
        subject: Option<u32>,
        each: &mut dyn FnMut(Key, Cell),
    ) -> rusqlite::Result<()> {
        let query = format!("SELECT cells FROM {} WHERE id = ?", level.table);
        let mut statement = self.connection.prepare_cached(&query)?;
        let mut rows = statement.query([row_id(slot, node)])?;
        if let Some(row) = rows.next()? {
            let _ = packed::unpack(row.get_ref(0)?.as_blob()?, subject, each);
        }
        Ok(())
    }

    fn write(&self, level: &Level, slot: u64, node: u32, merged: &Merged) -> rusqlite::Result<()> {
        let statement = format!("INSERT OR REPLACE INTO {} (id, cells) VALUES (?, ?)", level.table);
        self.connection.prepare_cached(&statement)?.execute(params![row_id(slot, node), merged.pack()])?;
        Ok(())
    }

    /// Takes away some of the rows whose time is over.
    fn trim(&self, now: Millis) -> rusqlite::Result<()> {
        for level in &LEVELS {
            let first_kept = row_id(now.saturating_sub(level.kept) / level.step, 0);
            let statement = format!(
                "DELETE FROM {0} WHERE id IN (SELECT id FROM {0} WHERE id < ? ORDER BY id LIMIT {TRIM_MAX})",
                level.table
            );
            self.connection.prepare_cached(&statement)?.execute([first_kept])?;
        }
        Ok(())
    }

    /// Forgets some of the subjects and nodes of which no row is left.
    fn forget(&mut self, now: Millis) -> rusqlite::Result<()> {
        let kept = LEVELS[LEVELS.len() - 1].kept + DAY;
        let oldest = now.saturating_sub(kept);
        let subjects = format!(
            "DELETE FROM subjects WHERE number IN (SELECT number FROM subjects WHERE day < ? LIMIT {FORGET_MAX})"
        );
        self.connection.prepare_cached(&subjects)?.execute([day(oldest)])?;
        let nodes = format!(
            "DELETE FROM nodes WHERE number IN (SELECT number FROM nodes WHERE seen < ? LIMIT {FORGET_MAX})"
        );
        if self.connection.prepare_cached(&nodes)?.execute([signed(oldest)])? > 0 {
            self.nodes.clear();
        }
        Ok(())
    }

    fn query(
        &self,
        subject: Id,
        (metric, index): (Metric, u16),
        (from, to): (Millis, Millis),
        step: Millis,
    ) -> rusqlite::Result<Vec<Point>> {
        let mut points: BTreeMap<Millis, (Point, u32)> = BTreeMap::new();
        let places = self.places(subject)?;
        let Some(seen) = places.iter().map(|(_, node)| node.seen).max() else { return Ok(Vec::new()) };
        let as_coarse = LEVELS.iter().rposition(|level| level.step <= step).unwrap_or(0);
        let as_old = LEVELS.iter().position(|level| from >= seen.saturating_sub(level.kept));
        let coarsest = as_coarse.max(as_old.unwrap_or(LEVELS.len() - 1));
        let base = LEVELS[coarsest].step;
        let step = step.max(1).div_ceil(base).saturating_mul(base);
        for (number, node) in places {
            let mut add = |time: Millis, cell: Cell| {
                let start = time / step * step;
                let (min, avg, max) =
                    (packed::value(cell.min), packed::value(cell.avg), packed::value(cell.max));
                let (point, count) =
                    points.entry(start).or_insert((Point { time: start, min, avg: 0.0, max }, 0));
                point.min = point.min.min(min);
                point.max = point.max.max(max);
                point.avg += avg;
                *count += 1;
            };
            self.walk(coarsest, node, (from, to), &mut |level, slot| {
                self.read(level, slot, node.number, Some(number), &mut |key, cell| {
                    if key.metric == metric.number() && key.index == index {
                        add(slot * level.step, cell);
                    }
                })
            })?;
        }
        let mean = |(point, count): (Point, u32)| Point { avg: point.avg / f64::from(count), ..point };
        Ok(points.into_values().map(mean).collect())
    }

    /// Goes through the rows of a node in a stretch of time: those of the level, and where it has none yet, at the
    /// end, those of the finer ones.
    fn walk(
        &self,
        coarsest: usize,
        node: Node,
        (from, to): (Millis, Millis),
        each: &mut dyn FnMut(&Level, u64) -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        let end = to.min(node.seen).saturating_add(1);
        let mut start = from.max(node.seen.saturating_sub(LEVELS[coarsest].kept));
        for (number, level) in LEVELS[..=coarsest].iter().enumerate().rev() {
            let level_end = if number == 0 { end } else { end.min(node.seen / level.step * level.step) };
            if start < level_end {
                for slot in start / level.step..level_end.div_ceil(level.step) {
                    each(level, slot)?;
                }
                start = level_end;
            }
        }
        Ok(())
    }

    /// Where a subject was: its number there, and the node.
    fn places(&self, subject: Id) -> rusqlite::Result<Vec<(u32, Node)>> {
        const QUERY: &str = "SELECT subjects.number, nodes.number, nodes.seen FROM subjects
            JOIN nodes ON nodes.number = subjects.node WHERE subjects.id = ? ORDER BY subjects.day DESC LIMIT ?";
        let mut statement = self.connection.prepare_cached(QUERY)?;
        let places = statement.query_map(params![subject.0.as_bytes(), NODES_OF_SUBJECT_MAX], |row| {
            Ok((row.get(0)?, Node { number: row.get(1)?, seen: row.get::<_, i64>(2)?.cast_unsigned() }))
        })?;
        places.collect()
    }

    fn latest(&mut self, node: Id) -> rusqlite::Result<Option<(Millis, Vec<Sample>)>> {
        const NODE: &str = "SELECT number, seen FROM nodes WHERE id = ?";
        const SUBJECT: &str = "SELECT id FROM subjects WHERE number = ?";
        let found = self.connection.prepare_cached(NODE)?.query_row([node.0.as_bytes()], |row| {
            Ok(Node { number: row.get(0)?, seen: row.get::<_, i64>(1)?.cast_unsigned() })
        });
        let Some(node) = found.optional()? else { return Ok(None) };
        let mut cells = Vec::new();
        let slot = node.seen / LEVELS[0].step;
        self.read(&LEVELS[0], slot, node.number, None, &mut |key, cell| cells.push((key, cell)))?;
        let mut samples = Vec::with_capacity(cells.len());
        let mut statement = self.connection.prepare_cached(SUBJECT)?;
        let mut last: Option<(u32, Option<Id>)> = None;
        for (key, cell) in cells {
            let subject = match last {
                Some((number, subject)) if number == key.subject => subject,
                _ => statement
                    .query_row([key.subject], |row| Ok(Id(uuid::Uuid::from_bytes(row.get(0)?))))
                    .optional()?,
            };
            last = Some((key.subject, subject));
            if let (Some(subject), Some(metric)) = (subject, Metric::of_number(key.metric)) {
                samples.push(Sample { subject, metric, index: key.index, value: packed::value(cell.avg) });
            }
        }
        Ok(Some((node.seen, samples)))
    }
}

#[cfg(test)]
mod tests;
