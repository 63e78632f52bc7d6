#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::schema::MIGRATIONS;
use super::*;
use crate::store::EventFilter;
use crate::store::contract_tests::{contract, event, instance, lock, put};

fn fresh() -> (SqliteStore, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("grid.db")).unwrap();
    (store, folder)
}

fn number(connection: &Connection, query: &str) -> i64 {
    connection.query_row(query, [], |row| row.get(0)).unwrap()
}

contract!(fresh());

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let (mut store, folder) = fresh();
    store
        .commit(&[put(instance(3, "acme", "web-1")), lock("instances/1", 1, 9), event(4, None, "x", None)])
        .unwrap();
    drop(store);
    let loaded = SqliteStore::open(&folder.path().join("grid.db")).unwrap().load().unwrap();
    assert_eq!(loaded.instances, [instance(3, "acme", "web-1")]);
    assert_eq!((loaded.locks.len(), loaded.last_event), (1, 4));
}

#[test]
fn the_settings_that_durability_rests_on_are_in_force() {
    let (store, folder) = fresh();
    let connection = store.connection.as_ref().unwrap();
    assert_eq!(number(connection, "PRAGMA synchronous"), 2);
    assert_eq!(
        connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(),
        "wal"
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&folder.path().join("grid.db").metadata().unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let log = std::os::unix::fs::MetadataExt::mode(&folder.path().join("grid.db-wal").metadata().unwrap());
    assert_eq!(log & 0o777, 0o600);
}

#[test]
fn a_second_controller_is_refused_by_the_name_of_the_folder() {
    let (store, folder) = fresh();
    let error = SqliteStore::open(&folder.path().join("grid.db")).unwrap_err().to_string();
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    assert!(error.contains("another controller"), "{error}");
    drop(store);
    SqliteStore::open(&folder.path().join("grid.db")).unwrap();
}

#[test]
fn a_newer_version_is_refused_and_left_as_it_is() {
    let (store, folder) = fresh();
    let path = folder.path().join("grid.db");
    store.connection.as_ref().unwrap().pragma_update(None, "user_version", 99).unwrap();
    drop(store);
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("version 99") && error.contains("newer controller"), "{error}");
    assert_eq!(number(&Connection::open(&path).unwrap(), "PRAGMA user_version"), 99);
}

#[test]
fn another_programs_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.db");
    Connection::open(&path).unwrap().pragma_update(None, "application_id", 7).unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("another program"), "{error}");
}

#[test]
fn an_older_version_is_brought_forward_whole_or_not_at_all() {
    let (mut store, _folder) = fresh();
    store.commit(&[put(instance(3, "acme", "web-1"))]).unwrap();
    let location = store.location.clone();
    let connection = store.connection.as_mut().unwrap();
    let good = "ALTER TABLE disks ADD COLUMN node BLOB";
    let bad = "ALTER TABLE disks ADD COLUMN more BLOB; ALTER TABLE nowhere ADD COLUMN x BLOB";
    let version = |connection: &Connection| number(connection, "PRAGMA user_version");
    let columns =
        |connection: &Connection| number(connection, "SELECT count(*) FROM pragma_table_info('disks')");

    location.migrate(connection, &[MIGRATIONS, &[good, bad]].concat()).unwrap_err();
    assert_eq!((version(connection), columns(connection)), (1, 2));
    location.migrate(connection, &[MIGRATIONS, &[good]].concat()).unwrap();
    assert_eq!((version(connection), columns(connection)), (2, 3));
    location.migrate(connection, &[MIGRATIONS, &[good]].concat()).unwrap();
    assert_eq!(store.load().unwrap().instances.len(), 1);
}

#[test]
fn a_damaged_file_is_refused_in_words_that_help() {
    let (mut store, folder) = fresh();
    let path = folder.path().join("grid.db");
    store.commit(&[put(instance(3, "acme", "web-1"))]).unwrap();
    drop(store);
    let whole = std::fs::read(&path).unwrap();

    let mut header = whole.clone();
    header[..64].fill(0xa5);
    std::fs::write(&path, &header).unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains("backup"), "{error}");

    // A page of records, and not the header.
    let record = whole.windows(7).position(|window| window == b"\"web-1\"").unwrap();
    let mut page = whole.clone();
    page[record / 4096 * 4096..][..4096].fill(0xa5);
    std::fs::write(&path, &page).unwrap();
    let error = SqliteStore::open(&path).unwrap().load().unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains("backup"), "{error}");

    // A document.
    let mut document = whole.clone();
    document[record] = b'!';
    std::fs::write(&path, &document).unwrap();
    let error = SqliteStore::open(&path).unwrap().load().unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains("instances"), "{error}");

    std::fs::write(&path, &whole).unwrap();
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().instances.len(), 1);
}

#[test]
fn space_runs_out_the_commit_leaves_nothing_and_the_next_one_succeeds() {
    let (mut store, _folder) = fresh();
    let limit = |store: &SqliteStore, pages: i64| {
        store.connection.as_ref().unwrap().pragma_update(None, "max_page_count", pages).unwrap();
    };
    let many = |from: u64| -> Vec<Change> {
        (from..from + 2_000).map(|number| put(instance(number, "acme", &format!("web-{number}")))).collect()
    };
    store.commit(&[put(instance(1, "acme", "first"))]).unwrap();
    limit(&store, 1);
    let error = store.commit(&many(10)).unwrap_err();
    assert!(error.out_of_space, "{error}");
    assert_eq!(store.load().unwrap().instances.len(), 1);
    limit(&store, 1 << 30);
    store.commit(&many(10)).unwrap();
    assert_eq!(store.load().unwrap().instances.len(), 2_001);
}

#[test]
fn after_a_commit_of_unknown_end_the_log_is_sealed_before_the_next_one() {
    let (mut store, _folder) = fresh();
    store.commit(&[put(instance(1, "acme", "a"))]).unwrap();
    store.connection = None;
    store.commit(&[put(instance(2, "acme", "b"))]).unwrap();
    assert_eq!(number(store.connection.as_ref().unwrap(), "SELECT count FROM seal"), 1);
    assert_eq!(store.load().unwrap().instances.len(), 2);
}

#[test]
fn a_backup_is_a_store_of_its_own() {
    let (mut store, folder) = fresh();
    store.commit(&[put(instance(1, "acme", "a"))]).unwrap();
    let copy = folder.path().join("copy.db");
    store.backup(&copy).unwrap();
    store.commit(&[put(instance(2, "acme", "b"))]).unwrap();
    store.backup(&copy).unwrap_err();
    let loaded = SqliteStore::open(&copy).unwrap().load().unwrap();
    assert_eq!(loaded.instances, [instance(1, "acme", "a")]);
}

#[test]
fn more_readers_than_connections_get_their_turn_while_the_writer_goes_on() {
    let (mut store, _folder) = fresh();
    store.commit(&[event(1, None, "nodes/1", None)]).unwrap();
    let reader = store.reader();
    let read = |_| {
        let reader = Arc::clone(&reader);
        std::thread::spawn(move || {
            (0..50)
                .map(|_| reader.events(0, &EventFilter::default(), 1_000).unwrap().len())
                .collect::<Vec<_>>()
        })
    };
    let threads: Vec<_> = (0..12).map(read).collect();
    for sequence in 2..=40 {
        store.commit(&[event(sequence, None, "nodes/1", None)]).unwrap();
    }
    for thread in threads {
        let seen = thread.join().unwrap();
        assert!(seen.is_sorted() && seen[0] >= 1 && seen[49] <= 40, "{seen:?}");
    }
    assert_eq!(reader.events(0, &EventFilter::default(), 1_000).unwrap().len(), 40);
}

/// What is read and forgotten is found by an index: the time must not grow with what is not asked for.
#[test]
fn nothing_is_found_by_looking_at_everything() {
    let (store, _folder) = fresh();
    let connection = store.connection.as_ref().unwrap();
    let plan = |query: &str| -> String {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
        let values = rusqlite::params_from_iter(vec![9; statement.parameter_count()]);
        let plan: Vec<String> =
            statement.query_map(values, |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        plan.join("; ")
    };
    let documents = "SELECT document FROM jobs WHERE";
    let messages = "SELECT message FROM events WHERE";
    let (page, order) = ("id < x'ff' ORDER BY id DESC LIMIT 9", "sequence > 5 ORDER BY sequence LIMIT 9");
    let queries = [
        (format!("{documents} ended IS NULL"), "jobs_active"),
        (format!("{documents} project = 'a' AND {page}"), "jobs_project (project=? AND id<?)"),
        (format!("{documents} subject = 'a' AND {page}"), "jobs_subject (subject=? AND id<?)"),
        (format!("{messages} job = x'00' AND {order}"), "events_job (job=? AND rowid>?)"),
        (format!("{messages} subject = 'a' AND {order}"), "events_subject (subject=? AND rowid>?)"),
        (format!("{messages} project = 'a' AND {order}"), "events_project (project=? AND rowid>?)"),
        (FORGET_ANSWERS.to_owned(), "SEARCH answers USING PRIMARY KEY (key=?)"),
        (FORGET_ANSWERS.to_owned(), "answers_created (created_at<?)"),
        (FORGET_EVENTS.to_owned(), "SEARCH events USING INTEGER PRIMARY KEY (rowid=?)"),
        (FORGET_JOBS.to_owned(), "sqlite_autoindex_jobs_1 (id=?)"),
        (FORGET_JOBS.to_owned(), "jobs_ended (ended<?)"),
    ];
    for (query, index) in queries {
        let plan = plan(&query);
        assert!(plan.contains(index), "{query}: {plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{query}: {plan}");
    }
}

/// The variable that tells the process of this test that it is the one to be killed.
const VICTIM: &str = "UVM_STORE_VICTIM";

#[test]
fn what_was_acknowledged_survives_a_kill_and_nothing_else_is_half_there() {
    if let Some(path) = std::env::var_os(VICTIM) {
        let mut store = SqliteStore::open(Path::new(&path)).unwrap();
        for sequence in store.load().unwrap().last_event + 1.. {
            let pair = [
                instance(sequence, "acme", &format!("a-{sequence}")),
                instance(sequence + 500_000, "b", &format!("b-{sequence}")),
            ];
            store.commit(&[&pair.map(put)[..], &[event(sequence, None, "nodes/1", None)]].concat()).unwrap();
            println!("\nacknowledged {sequence}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grid.db");
    let mut acknowledged = 0;
    for round in 1..=5 {
        let name =
            "store::sqlite::tests::what_was_acknowledged_survives_a_kill_and_nothing_else_is_half_there";
        let mut victim = Command::new(std::env::current_exe().unwrap());
        let victim = victim.args([name, "--exact", "--nocapture"]).env(VICTIM, &path).stdout(Stdio::piped());
        let mut victim = victim.spawn().unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        for _ in 0..20 * round {
            let mut numbers = lines.by_ref().map(Result::unwrap);
            let line =
                numbers.find_map(|line| Some(line.strip_prefix("acknowledged ")?.parse::<u64>().unwrap()));
            acknowledged = line.unwrap();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        // What it still said before it died counts too.
        for line in lines.map_while(Result::ok) {
            acknowledged =
                line.strip_prefix("acknowledged ").map_or(acknowledged, |number| number.parse().unwrap());
        }
        let loaded = SqliteStore::open(&path).unwrap().load().unwrap();
        assert!((acknowledged..=acknowledged + 1).contains(&loaded.last_event), "round {round}");
        assert_eq!(loaded.instances.len() as u64, 2 * loaded.last_event);
    }
    assert!(acknowledged >= 300);
}
