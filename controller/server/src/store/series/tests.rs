#![allow(clippy::unwrap_used)]

use tempfile::TempDir;

use super::*;

fn fresh() -> (Series, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let series = Series::open(&folder.path().join("statistics.db")).unwrap();
    (series, folder)
}

fn id(number: u128) -> Id {
    Id(uuid::Uuid::from_u128(number))
}

fn cpu(subject: u128, index: u16, value: f64) -> Sample {
    Sample { subject: id(subject), metric: Metric::CpuUsedRatio, index, value }
}

fn queried(
    series: &Series,
    subject: u128,
    from: Millis,
    to: Millis,
    step: Millis,
) -> Vec<(Millis, f64, f64, f64)> {
    let points = series.query(id(subject), (Metric::CpuUsedRatio, 0), from, to, step).unwrap();
    points.iter().map(|point| (point.time, point.min, point.avg, point.max)).collect()
}

fn rows(series: &Series, table: &str) -> i64 {
    let query = format!("SELECT count(*) FROM {table}");
    series.lock().connection.query_row(&query, [], |row| row.get(0)).unwrap()
}

const NODE: u128 = 1;
/// Some midnight.
const START: Millis = 20_000 * DAY;
const POLL: Millis = 15 * SECOND;

/// Adds one value every 15 seconds.
fn feed(series: &Series, polls: std::ops::Range<u64>, value: impl Fn(u64) -> f64) {
    for poll in polls {
        series.append(id(NODE), START + poll * POLL, &[cpu(2, 0, value(poll)), cpu(NODE, 0, 1.0)]).unwrap();
    }
}

#[test]
fn every_poll_comes_back_at_once_and_after_opening_again() {
    let (series, folder) = fresh();
    feed(&series, 0..10, |poll| (1 << poll) as f64);
    let expected: Vec<_> = (0..10)
        .map(|poll| (START + poll * POLL, f64::from(1 << poll), f64::from(1 << poll), f64::from(1 << poll)))
        .collect();
    assert_eq!(queried(&series, 2, START, START + HOUR, 0), expected);
    assert_eq!(queried(&series, 2, START + 20 * SECOND, START + 50 * SECOND, 0), expected[2..4]);
    assert_eq!(queried(&series, 3, START, START + HOUR, 0), []);
    drop(series);
    let series = Series::open(&folder.path().join("statistics.db")).unwrap();
    assert_eq!(queried(&series, 2, START, START + HOUR, 0), expected);
}

#[test]
fn minutes_and_quarters_have_minimum_mean_and_maximum() {
    let (series, _folder) = fresh();
    // 16 minutes and a half: in every minute 0, 1, 2, 3 and in the half one 0, 1.
    feed(&series, 0..66, |poll| (poll % 4) as f64);
    let minutes = queried(&series, 2, START, START + DAY, MINUTE);
    assert_eq!(minutes.len(), 17);
    assert!(
        minutes[..16].iter().all(|(_, min, avg, max)| (*min, *avg, *max) == (0.0, 1.5, 3.0)),
        "{minutes:?}"
    );
    assert_eq!(minutes[16], (START + 16 * MINUTE, 0.0, 0.5, 1.0));
    assert_eq!(rows(&series, "minutes"), 16);
    // The closed quarter from its row, the open one from its minute and its polls.
    let quarters = queried(&series, 2, START, START + DAY, 15 * MINUTE);
    assert_eq!(quarters[0], (START, 0.0, 1.5, 3.0));
    assert_eq!((quarters.len(), quarters[1].0, quarters[1].3), (2, START + 15 * MINUTE, 3.0));
    assert_eq!(rows(&series, "quarters"), 1);
    // Any other step is rounded up to whole rows of a level.
    let five = queried(&series, 2, START, START + DAY, 5 * MINUTE - 1);
    assert_eq!(
        five.iter().map(|point| point.0 - START).collect::<Vec<_>>(),
        [0, 5, 10, 15].map(|m| m * MINUTE)
    );
}

#[test]
fn each_level_is_kept_for_its_time_and_trimmed() {
    let (series, _folder) = fresh();
    // Every 10 minutes for 70 days.
    let step = 10 * MINUTE;
    let last = START + 70 * DAY;
    for time in (START..=last).step_by(10 * 60 * 1_000) {
        series.append(id(NODE), time, &[cpu(2, 0, ((time / step) % 7) as f64)]).unwrap();
    }
    let counts = LEVELS.map(|level| rows(&series, level.table));
    assert!((12..=13).contains(&counts[0]), "{counts:?}");
    assert!((287..=288).contains(&counts[1]), "{counts:?}");
    assert!((5_759..=5_760).contains(&counts[2]), "{counts:?}");
    let all = queried(&series, 2, 0, u64::MAX, 0);
    assert!((5_759..=5_762).contains(&all.len()), "{}", all.len());
    assert_eq!(all[0].0, START + 10 * DAY);
    assert_eq!(queried(&series, 2, last - DAY, last, 0).len(), 145);
    assert_eq!(queried(&series, 2, last - HOUR, last, 0).len(), 7);
}

#[test]
fn what_was_not_rolled_up_before_a_stop_is_rolled_up_after_it() {
    let (series, folder) = fresh();
    feed(&series, 0..6, |_| 4.0);
    drop(series);
    let series = Series::open(&folder.path().join("statistics.db")).unwrap();
    assert_eq!((rows(&series, "minutes"), rows(&series, "quarters")), (1, 0));
    feed(&series, 4_000..4_001, |_| 8.0);
    assert_eq!((rows(&series, "minutes"), rows(&series, "quarters")), (2, 1));
    let points = queried(&series, 2, START, START + DAY, 15 * MINUTE);
    assert_eq!(points, [(START, 4.0, 4.0, 4.0), (START + 990 * MINUTE, 8.0, 8.0, 8.0)]);
}

#[test]
fn polls_in_one_step_are_merged_and_a_clock_that_goes_back_loses_nothing() {
    let (series, _folder) = fresh();
    for (time, value) in [(0, 1.0), (1, 3.0), (600, 7.0), (2, 2.0)] {
        series.append(id(NODE), START + time * SECOND, &[cpu(2, 0, value)]).unwrap();
    }
    series.append(id(NODE), START + 700 * SECOND, &[cpu(2, 0, 7.0)]).unwrap();
    let points = queried(&series, 2, START, START + DAY, 0);
    assert_eq!(points.len(), 3);
    assert_eq!((points[0].1, points[0].3), (1.0, 3.0));
    assert_eq!(points[1], (START + 600 * SECOND, 7.0, 7.0, 7.0));
}

#[test]
fn a_subject_that_moved_has_one_series() {
    let (series, _folder) = fresh();
    series.append(id(1), START, &[cpu(2, 0, 1.0)]).unwrap();
    series.append(id(9), START + MINUTE, &[cpu(2, 0, 2.0), cpu(2, 3, 5.0)]).unwrap();
    assert_eq!(
        queried(&series, 2, START, START + DAY, 0).iter().map(|point| point.2).collect::<Vec<_>>(),
        [1.0, 2.0]
    );
    let core = series.query(id(2), (Metric::CpuUsedRatio, 3), START, START + DAY, 0).unwrap();
    assert_eq!(core.len(), 1);
}

#[test]
fn the_latest_of_a_node_is_told_and_what_is_no_value_is_left_out() {
    let (series, _folder) = fresh();
    assert!(series.latest(id(NODE)).unwrap().is_none());
    let good = [
        Sample { subject: id(NODE), metric: Metric::HostMemoryTotalBytes, index: 0, value: 1_073_741_824.0 },
        cpu(2, 0, 0.5),
        cpu(2, INDEX_MAX, 0.25),
    ];
    let bad = [cpu(2, 1, -1.0), cpu(2, 2, f64::NAN), cpu(2, INDEX_MAX + 1, 1.0), cpu(3, 0, f64::INFINITY)];
    series.append(id(NODE), START, &[cpu(2, 0, 9.0)]).unwrap();
    series.append(id(NODE), START + POLL, &[&bad[..], &good[..]].concat()).unwrap();
    let (time, mut samples) = series.latest(id(NODE)).unwrap().unwrap();
    samples.sort_by_key(|sample| (sample.subject, sample.index));
    assert_eq!(time, START + POLL);
    assert_eq!(samples, good);
}

#[test]
fn subjects_and_nodes_not_heard_of_for_long_are_forgotten() {
    let (series, _folder) = fresh();
    let gone: Vec<_> = (100..200).map(|number| cpu(number, 0, 1.0)).collect();
    series.append(id(NODE), START, &gone).unwrap();
    series.append(id(7), START, &[cpu(8, 0, 1.0)]).unwrap();
    for day in 1..=70 {
        series.append(id(NODE), START + day * DAY, &[cpu(2, 0, 1.0)]).unwrap();
    }
    assert_eq!((rows(&series, "subjects"), rows(&series, "nodes")), (1, 1));
    assert_eq!(queried(&series, 100, 0, u64::MAX, 0), []);
    series.append(id(7), START + 71 * DAY, &[cpu(8, 0, 2.0)]).unwrap();
    assert_eq!(queried(&series, 8, 0, u64::MAX, 0).len(), 1);
}

#[test]
fn a_damaged_file_and_one_of_another_version_are_set_aside() {
    let (series, folder) = fresh();
    let path = folder.path().join("statistics.db");
    feed(&series, 0..10, |_| 1.0);
    series.flush().unwrap();
    series.lock().connection.pragma_update(None, "user_version", 99).unwrap();
    drop(series);
    let series = Series::open(&path).unwrap();
    assert_eq!(queried(&series, 2, START, START + HOUR, 0), []);
    feed(&series, 0..10, |_| 1.0);
    drop(series);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..100].fill(0xa5);
    std::fs::write(&path, &bytes).unwrap();
    let series = Series::open(&path).unwrap();
    assert_eq!(queried(&series, 2, START, START + HOUR, 0), []);
    feed(&series, 0..10, |_| 1.0);
    assert_eq!(queried(&series, 2, START, START + HOUR, 0).len(), 10);
    assert!(folder.path().join("statistics.db.old").exists());
}

#[test]
fn a_failure_leaves_nothing_of_what_was_not_written_and_the_next_append_succeeds() {
    let (series, _folder) = fresh();
    feed(&series, 0..1, |_| 1.0);
    series.flush().unwrap();
    series.lock().connection.pragma_update(None, "max_page_count", 1).unwrap();
    let many: Vec<_> = (100..30_000).map(|number| cpu(number, 0, 1.0)).collect();
    let error = series.append(id(NODE), START + POLL, &many).unwrap_err();
    assert!(error.out_of_space, "{error}");
    series.lock().connection.pragma_update(None, "max_page_count", 1 << 30).unwrap();
    assert_eq!(queried(&series, 2, START, START + HOUR, 0).len(), 1);
    feed(&series, 1..2, |_| 1.0);
    assert_eq!(queried(&series, 2, START, START + HOUR, 0).len(), 2);
    assert_eq!(queried(&series, 100, START, START + HOUR, 0), []);
}

#[test]
fn names_are_unique_and_in_base_units() {
    for metric in Metric::ALL {
        assert_eq!(Metric::of_name(metric.name()), Some(metric));
        assert_eq!(Metric::of_number(metric.number()), Some(metric));
        assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        // Six bits of a row's byte.
        assert!((1..64).contains(&metric.number()));
    }
    assert_eq!(Metric::of_name("cpu"), None);
}

#[test]
fn the_last_of_the_disk_is_left_to_the_grid() {
    let (series, _folder) = fresh();
    feed(&series, 0..400, |_| 1.0);
    series.flush().unwrap();
    series.lock().reserve_bytes = u64::MAX;
    let kept = rows(&series, "raw");
    let later = START + 30 * DAY;
    let error = series.append(id(NODE), later, &[cpu(2, 0, 1.0)]).unwrap_err();
    assert!(error.out_of_space && error.to_string().contains("grid"), "{error}");
    assert_eq!(rows(&series, "raw"), kept - TRIM_MAX);
    series.lock().reserve_bytes = 0;
    series.append(id(NODE), later, &[cpu(2, 0, 1.0)]).unwrap();
    assert_eq!(queried(&series, 2, later, later, 0).len(), 1);
}
