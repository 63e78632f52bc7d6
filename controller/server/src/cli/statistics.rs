//! Statistics of instances and nodes: for each series the newest value, and the bounds of the stretch.

use std::time::Duration;

use serde::Deserialize;

use super::client::Query;
use super::failure::Result;
use super::session::Session;
use super::table::Table;
use super::units::{measured, now, parse_duration};
use crate::store::Point;

/// Which statistics.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Stretch {
    /// How far back, as 5m, 12h, 7d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    since: Duration,
    /// This metric alone, as cpu_used_ratio.
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
}

/// What the API answers. A metric's name is any: a newer controller may measure more.
#[derive(Debug, Deserialize)]
struct Statistics {
    series: Vec<Series>,
}

#[derive(Debug, Deserialize)]
struct Series {
    subject: String,
    metric: String,
    index: u16,
    points: Vec<Point>,
}

impl Stretch {
    pub(super) fn show(&self, session: &Session, path: &str) -> Result<()> {
        let since = self.since.as_millis().try_into().unwrap_or(u64::MAX);
        let mut query: Query = vec![("from", now().saturating_sub(since).to_string())];
        query.extend(self.metric.iter().map(|metric| ("metric", metric.clone())));
        let document = session.client.get(&format!("{path}/statistics"), &query)?;
        session.show(document, |found: &Statistics| Ok(table(&found.series).to_string()))
    }
}

fn table(series: &[Series]) -> Table {
    let mut table = Table::new(&["SUBJECT", "METRIC", ">INDEX", ">NEWEST", ">MIN", ">MEAN", ">MAX"]);
    for series in series {
        let Some(newest) = series.points.last() else { continue };
        let min = series.points.iter().map(|point| point.min).fold(f64::INFINITY, f64::min);
        let max = series.points.iter().map(|point| point.max).fold(f64::NEG_INFINITY, f64::max);
        let mean = series.points.iter().map(|point| point.avg).sum::<f64>() / series.points.len() as f64;
        let shown = |value| measured(&series.metric, value);
        table.row([
            series.subject.clone(),
            series.metric.clone(),
            series.index.to_string(),
            shown(newest.avg),
            shown(min),
            shown(mean),
            shown(max),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_a_row_with_its_bounds() {
        let point = |min, avg, max| Point { time: 0, min, avg, max };
        let series = Series {
            subject: "instances/1".to_owned(),
            metric: "cpu_used_ratio".to_owned(),
            index: 0,
            points: vec![point(0.1, 0.2, 0.5), point(0.2, 0.4, 0.4)],
        };
        let empty = Series { points: Vec::new(), subject: String::new(), metric: String::new(), index: 0 };
        let text = table(&[series, empty]).to_string();
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["instances/1", "cpu_used_ratio", "0", "40.0%", "10.0%", "30.0%", "50.0%"]);
        assert_eq!(text.lines().count(), 2);
    }
}
