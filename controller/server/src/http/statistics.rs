//! Statistics of instances and nodes, as time series.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{Answer, Refusal};
use super::{Api, blocking};
use crate::model::{Id, Instance, Millis};
use crate::store::{Metric, Point, StoreError};

/// Asked for where nothing is said: the last hour.
const DEFAULT_SPAN: Millis = 3_600_000;
/// Shortest step.
const MIN_STEP: Millis = 5_000;
/// Points of a series where no step is given.
const DEFAULT_POINTS: Millis = 240;
/// Most points of a series.
const MAX_POINTS: Millis = 1_440;
/// Most series of an answer; a machine with more cores shows the first ones.
const MAX_SERIES: usize = 256;

/// Which statistics. Times are milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatisticsParameters {
    /// This metric alone.
    metric: Option<Metric>,
    /// From when; an hour before `to` where it is missing.
    from: Option<u64>,
    /// Until when; now where it is missing.
    to: Option<u64>,
    /// Milliseconds between two points, where it is kept as finely; at most 1440 points.
    step_ms: Option<u64>,
}

/// Statistics of an instance or a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    /// From when.
    pub from: Millis,
    /// Until when.
    pub to: Millis,
    /// Milliseconds between two points.
    pub step_ms: u64,
    /// What was measured; series without any point are left out.
    pub series: Vec<StatisticsSeries>,
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatisticsSeries {
    /// Of what, as `instances/0192…` or `disks/0192…`.
    pub subject: String,
    /// What.
    pub metric: Metric,
    /// Which of several, as the number of the virtual CPU.
    pub index: u16,
    /// Measurements, oldest first.
    pub points: Vec<Point>,
}

/// One series: of what, and what.
pub(crate) type Wanted = (&'static str, Id, Metric, u16);

/// What is measured of an instance and its disks.
pub(crate) fn of_instance(instance: &Instance) -> Vec<Wanted> {
    const WHOLE: [Metric; 5] = [
        Metric::MemoryUsedBytes,
        Metric::NetworkReceivedBytesPerSecond,
        Metric::NetworkSentBytesPerSecond,
        Metric::NetworkReceivedPacketsPerSecond,
        Metric::NetworkSentPacketsPerSecond,
    ];
    const DISK: [Metric; 5] = [
        Metric::DiskReadBytesPerSecond,
        Metric::DiskWrittenBytesPerSecond,
        Metric::DiskReadsPerSecond,
        Metric::DiskWritesPerSecond,
        Metric::DiskAllocatedBytes,
    ];
    let vcpus = u16::try_from(instance.vcpus).unwrap_or(u16::MAX);
    let whole = WHOLE.map(|metric| ("instances", instance.id, metric, 0));
    let disks = instance.disks.iter().flat_map(|disk| DISK.map(|metric| ("disks", *disk, metric, 0)));
    let cpus = (0..vcpus).map(|index| ("instances", instance.id, Metric::CpuUsedRatio, index));
    whole.into_iter().chain(disks).chain(cpus).collect()
}

impl Api {
    /// What is measured of a node: what was measured of it last.
    pub(crate) async fn of_node(&self, id: Id) -> Answer<Vec<Wanted>> {
        let services = Arc::clone(&self.services);
        let latest = blocking(move || services.series.latest(id)).await??;
        let samples = latest.map(|(_, samples)| samples).unwrap_or_default();
        let own = samples.into_iter().filter(|sample| sample.subject == id);
        Ok(own.map(|sample| ("nodes", id, sample.metric, sample.index)).collect())
    }

    pub(crate) async fn statistics(
        &self,
        mut wanted: Vec<Wanted>,
        asked: StatisticsParameters,
    ) -> Answer<Statistics> {
        let (from, to, step_ms) = stretch(asked, self.grid().now())?;
        wanted.retain(|(_, _, metric, _)| asked.metric.is_none_or(|only| only == *metric));
        wanted.truncate(MAX_SERIES);
        let services = Arc::clone(&self.services);
        let series = blocking(move || {
            let read = |(table, id, metric, index): Wanted| {
                let points = services.series.query(id, (metric, index), from, to, step_ms)?;
                Ok(StatisticsSeries { subject: format!("{table}/{id}"), metric, index, points })
            };
            wanted.into_iter().map(read).collect::<Result<Vec<_>, StoreError>>()
        });
        let mut series = series.await??;
        series.retain(|series| !series.points.is_empty());
        Ok(Statistics { from, to, step_ms, series })
    }
}

/// From when, until when, in which steps.
fn stretch(asked: StatisticsParameters, now: Millis) -> Answer<(Millis, Millis, Millis)> {
    let to = asked.to.unwrap_or(now);
    let from = asked.from.unwrap_or_else(|| to.saturating_sub(DEFAULT_SPAN));
    let span = to.checked_sub(from).filter(|span| *span > 0);
    let span = span.ok_or_else(|| Refusal::invalid(format!("from ({from}) is to be before to ({to})")))?;
    let step = asked.step_ms.unwrap_or_else(|| span.div_ceil(DEFAULT_POINTS)).max(MIN_STEP);
    if span.div_ceil(step) > MAX_POINTS {
        let least = span.div_ceil(MAX_POINTS);
        return Err(Refusal::invalid(format!(
            "step_ms is {step}; for that stretch it is to be {least} or more"
        )));
    }
    Ok((from, to, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(from: Option<u64>, to: Option<u64>, step_ms: Option<u64>) -> StatisticsParameters {
        StatisticsParameters { metric: None, from, to, step_ms }
    }

    #[test]
    fn the_last_hour_is_shown_where_nothing_is_said() {
        let now = 10 * DEFAULT_SPAN;
        assert_eq!(stretch(asked(None, None, None), now).unwrap(), (9 * DEFAULT_SPAN, now, 15_000));
        assert_eq!(stretch(asked(None, None, Some(1)), now).unwrap().2, MIN_STEP);
        assert_eq!(stretch(asked(Some(0), None, None), now).unwrap(), (0, now, 150_000));
    }

    #[test]
    fn stretches_that_make_no_sense_or_no_answer_are_refused() {
        let now = 100 * DEFAULT_SPAN;
        for wrong in
            [asked(Some(7), Some(7), None), asked(Some(8), Some(7), None), asked(Some(0), None, Some(5_000))]
        {
            assert_eq!(stretch(wrong, now).unwrap_err().0.status, 400, "{wrong:?}");
        }
        assert_eq!(stretch(asked(Some(0), Some(u64::MAX), None), now).unwrap().2, u64::MAX / 240 + 1);
    }
}
