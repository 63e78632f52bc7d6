//! From what hypervisors count to what is measured: counters become rates.

use std::collections::HashMap;

use super::metric::{Metric, Sample};
use crate::hypervisor::{DomainState, DomainStatistics, NodeReport, Role};
use crate::model::{Id, Millis};

/// Two readings closer together than this say nothing about a rate.
const INTERVAL_MIN: Millis = 500;
/// Two readings further apart than this are not connected: who knows what went on in between.
const INTERVAL_MAX: Millis = 10 * 60 * 1_000;
/// Subjects whose counters are remembered at most.
const SUBJECTS_MAX: usize = 500_000;

/// What only ever counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counter {
    CpuNanoseconds,
    ReceivedBytes,
    SentBytes,
    ReceivedPackets,
    SentPackets,
    ReadBytes,
    WrittenBytes,
    Reads,
    Writes,
    HostBusyNanoseconds,
    HostTotalNanoseconds,
}

/// Remembers the last reading of every counter, and makes rates of what comes next. A counter that begins anew (it
/// went down, its domain was started again, it was not read for long) yields nothing once: never a negative rate,
/// never a spike.
#[derive(Debug, Default)]
pub struct Rates {
    subjects: HashMap<Subject, Counters>,
    pruned_at: Millis,
}

/// Whose counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    /// A node's host. The id of a node also stands for its utility VM's domain.
    Host(Id),
    Domain(Id),
    Disk(Id),
}

/// The counters of a subject. There are a hundred thousand of these, with some hundred thousand readings: both are
/// as small as they can be. Of a time, the low half is enough for a difference of minutes.
#[derive(Debug, Default)]
struct Counters {
    /// What the counters belong to; with another they begin anew.
    epoch: u32,
    read_at: u32,
    readings: Box<[Reading]>,
}

#[derive(Debug)]
struct Reading {
    value: u64,
    time: u32,
    index: u16,
    counter: Counter,
}

impl Rates {
    /// Without a past.
    pub fn new() -> Self {
        Self::default()
    }

    /// The report of a node as measurements. `monotonic` are milliseconds of any origin that no change of the wall
    /// clock touches.
    pub fn samples(&mut self, node: Id, monotonic: Millis, report: &NodeReport) -> Vec<Sample> {
        self.prune(monotonic);
        let mut samples = Vec::new();
        self.host(node, monotonic, report, &mut samples);
        let domains: HashMap<Id, (Role, u64)> =
            report.domains.iter().map(|domain| (domain.id, (domain.role, domain.starts))).collect();
        for (id, statistics) in &report.statistics {
            let (role, starts) = domains.get(id).copied().unwrap_or((Role::Guest, 0));
            self.domain(*id, starts, monotonic, statistics, &mut samples);
            // What the utility VM does with a customer's disk is not what the customer does with it.
            if role == Role::Guest {
                self.disks(*id, starts, monotonic, statistics, &mut samples);
            }
        }
        for volume in &report.volumes {
            let value = volume.allocated_bytes as f64;
            samples.push(Sample { subject: volume.id, metric: Metric::DiskAllocatedBytes, index: 0, value });
        }
        samples
    }

    fn host(&mut self, node: Id, time: Millis, report: &NodeReport, samples: &mut Vec<Sample>) {
        let mut add = |metric, index, value| samples.push(Sample { subject: node, metric, index, value });
        for (index, (busy, total)) in (0..).zip(&report.host_cpu_ns) {
            let host = Subject::Host(node);
            let busy = self.rate(host, 0, (Counter::HostBusyNanoseconds, index), time, *busy);
            let total = self.rate(host, 0, (Counter::HostTotalNanoseconds, index), time, *total);
            if let (Some(busy), Some(total)) = (busy, total.filter(|total| *total > 0.0)) {
                add(Metric::HostCpuUsedRatio, index, (busy / total).min(1.0));
            }
        }
        let (available, total) = report.host_memory_bytes;
        add(Metric::HostMemoryAvailableBytes, 0, available as f64);
        add(Metric::HostMemoryTotalBytes, 0, total as f64);
        add(Metric::PoolFreeBytes, 0, report.pool_free_bytes as f64);
        let running = report.domains.iter().filter(|domain| domain.state == DomainState::Running).count();
        add(Metric::DomainsRunning, 0, running as f64);
    }

    fn domain(
        &mut self,
        domain: Id,
        starts: u64,
        time: Millis,
        statistics: &DomainStatistics,
        samples: &mut Vec<Sample>,
    ) {
        let mut add = |metric, index, value| samples.push(Sample { subject: domain, metric, index, value });
        for (index, cpu_ns) in (0..).zip(&statistics.cpu_ns) {
            if let Some(rate) = self.rate(
                Subject::Domain(domain),
                low(starts),
                (Counter::CpuNanoseconds, index),
                time,
                *cpu_ns,
            ) {
                add(Metric::CpuUsedRatio, index, rate / 1e9);
            }
        }
        add(Metric::MemoryUsedBytes, 0, statistics.memory_bytes as f64);
        let Some(network) = &statistics.network else { return };
        let counters = [
            (Counter::ReceivedBytes, network.received_bytes, Metric::NetworkReceivedBytesPerSecond),
            (Counter::SentBytes, network.sent_bytes, Metric::NetworkSentBytesPerSecond),
            (Counter::ReceivedPackets, network.received_packets, Metric::NetworkReceivedPacketsPerSecond),
            (Counter::SentPackets, network.sent_packets, Metric::NetworkSentPacketsPerSecond),
        ];
        for (counter, value, metric) in counters {
            if let Some(rate) = self.rate(Subject::Domain(domain), low(starts), (counter, 0), time, value) {
                add(metric, 0, rate);
            }
        }
    }

    fn disks(
        &mut self,
        domain: Id,
        starts: u64,
        time: Millis,
        statistics: &DomainStatistics,
        samples: &mut Vec<Sample>,
    ) {
        // A disk's counters are those of its domain's device: they begin anew in another domain, too.
        let epoch = low(domain.0.as_u64_pair().1.wrapping_add(starts));
        for block in &statistics.block {
            let counters = [
                (Counter::ReadBytes, block.read_bytes, Metric::DiskReadBytesPerSecond),
                (Counter::WrittenBytes, block.written_bytes, Metric::DiskWrittenBytesPerSecond),
                (Counter::Reads, block.reads, Metric::DiskReadsPerSecond),
                (Counter::Writes, block.writes, Metric::DiskWritesPerSecond),
            ];
            for (counter, value, metric) in counters {
                if let Some(value) = self.rate(Subject::Disk(block.volume), epoch, (counter, 0), time, value)
                {
                    samples.push(Sample { subject: block.volume, metric, index: 0, value });
                }
            }
        }
    }

    /// The rate per second since the last reading of that counter.
    fn rate(
        &mut self,
        subject: Subject,
        epoch: u32,
        (counter, index): (Counter, u16),
        time: Millis,
        value: u64,
    ) -> Option<f64> {
        if self.subjects.len() >= SUBJECTS_MAX && !self.subjects.contains_key(&subject) {
            return None;
        }
        let now = low(time);
        let counters = self.subjects.entry(subject).or_default();
        if counters.epoch != epoch {
            *counters = Counters { epoch, ..Counters::default() };
        }
        counters.read_at = now;
        let known =
            counters.readings.iter_mut().find(|known| known.counter == counter && known.index == index);
        let Some(known) = known else {
            let mut readings = std::mem::take(&mut counters.readings).into_vec();
            readings.reserve_exact(1);
            readings.push(Reading { value, time: now, index, counter });
            counters.readings = readings.into_boxed_slice();
            return None;
        };
        let interval = u64::from(now.wrapping_sub(known.time));
        if interval < INTERVAL_MIN && value >= known.value {
            return None;
        }
        let before = std::mem::replace(&mut known.value, value);
        known.time = now;
        let connected = (INTERVAL_MIN..=INTERVAL_MAX).contains(&interval);
        let counted = value.checked_sub(before).filter(|_| connected)?;
        Some(counted as f64 * 1_000.0 / interval as f64)
    }

    /// Forgets what was not read for so long that it is of no use any more.
    fn prune(&mut self, time: Millis) {
        if time.abs_diff(self.pruned_at) >= INTERVAL_MAX {
            self.pruned_at = time;
            let now = low(time);
            self.subjects.retain(|_, counters| u64::from(now.wrapping_sub(counters.read_at)) <= INTERVAL_MAX);
        }
    }
}

/// The low half of a number.
fn low(number: u64) -> u32 {
    (number & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::hypervisor::{BlockStatistics, Domain, NetworkStatistics, Volume};

    fn id(number: u128) -> Id {
        Id(uuid::Uuid::from_u128(number))
    }

    const NODE: u128 = 1;
    const GUEST: u128 = 2;
    const DISK: u128 = 3;

    /// A guest with one disk whose every counter stands at `count`, on a node whose core was busy half of the time.
    fn report(starts: u64, count: u64) -> NodeReport {
        let domain = |number, role| Domain {
            id: id(number),
            role,
            state: DomainState::Running,
            vcpus: 2,
            memory_mib: 512,
            disks: vec![(id(DISK), false)],
            starts,
        };
        let volume = id(DISK);
        let block =
            BlockStatistics { volume, read_bytes: count, written_bytes: count, reads: count, writes: count };
        let network = NetworkStatistics {
            received_bytes: count,
            sent_bytes: count,
            received_packets: count,
            sent_packets: count,
        };
        let statistics = DomainStatistics {
            cpu_ns: vec![count * 1_000_000, 0],
            memory_bytes: 4_096,
            block: vec![block],
            network: Some(network),
        };
        let utility = DomainStatistics {
            block: vec![BlockStatistics { read_bytes: 1 << 40, ..block }],
            ..statistics.clone()
        };
        NodeReport {
            domains: vec![domain(GUEST, Role::Guest), domain(NODE, Role::Utility)],
            volumes: vec![Volume { id: id(DISK), size_mib: 10, allocated_bytes: 99 }],
            pool_free_bytes: 1,
            host_cpu_ns: vec![(count, count * 2)],
            host_memory_bytes: (5, 6),
            statistics: vec![(id(NODE), utility), (id(GUEST), statistics)],
            events: Vec::new(),
        }
    }

    fn value(samples: &[Sample], subject: u128, metric: Metric, index: u16) -> Option<f64> {
        let mut found =
            samples.iter().filter(|s| s.subject == id(subject) && s.metric == metric && s.index == index);
        let value = found.next().map(|sample| sample.value);
        assert!(found.next().is_none(), "{metric:?} twice");
        value
    }

    #[test]
    fn counters_become_rates_in_base_units() {
        let mut rates = Rates::new();
        let first = rates.samples(id(NODE), 1_000, &report(1, 500));
        assert_eq!(value(&first, GUEST, Metric::CpuUsedRatio, 0), None);
        assert_eq!(value(&first, DISK, Metric::DiskReadBytesPerSecond, 0), None);
        assert_eq!(value(&first, DISK, Metric::DiskAllocatedBytes, 0), Some(99.0));
        let samples = rates.samples(id(NODE), 3_000, &report(1, 1_500));
        let expected = [
            (GUEST, Metric::CpuUsedRatio, 0, 0.5),
            (GUEST, Metric::CpuUsedRatio, 1, 0.0),
            (GUEST, Metric::MemoryUsedBytes, 0, 4_096.0),
            (GUEST, Metric::NetworkReceivedBytesPerSecond, 0, 500.0),
            (GUEST, Metric::NetworkSentBytesPerSecond, 0, 500.0),
            (GUEST, Metric::NetworkReceivedPacketsPerSecond, 0, 500.0),
            (GUEST, Metric::NetworkSentPacketsPerSecond, 0, 500.0),
            (DISK, Metric::DiskReadBytesPerSecond, 0, 500.0),
            (DISK, Metric::DiskWrittenBytesPerSecond, 0, 500.0),
            (DISK, Metric::DiskReadsPerSecond, 0, 500.0),
            (DISK, Metric::DiskWritesPerSecond, 0, 500.0),
            (DISK, Metric::DiskAllocatedBytes, 0, 99.0),
            (NODE, Metric::HostCpuUsedRatio, 0, 0.5),
            (NODE, Metric::HostMemoryAvailableBytes, 0, 5.0),
            (NODE, Metric::HostMemoryTotalBytes, 0, 6.0),
            (NODE, Metric::PoolFreeBytes, 0, 1.0),
            (NODE, Metric::DomainsRunning, 0, 2.0),
            // Of its utility VM.
            (NODE, Metric::CpuUsedRatio, 0, 0.5),
        ];
        for (subject, metric, index, expected) in expected {
            assert_eq!(value(&samples, subject, metric, index), Some(expected), "{metric:?}");
        }
    }

    #[test]
    fn a_counter_that_begins_anew_yields_nothing_once() {
        let mut rates = Rates::new();
        let mut read = |time, starts, count| {
            let samples = rates.samples(id(NODE), time, &report(starts, count));
            let read = value(&samples, DISK, Metric::DiskReadBytesPerSecond, 0);
            assert_eq!(value(&samples, GUEST, Metric::NetworkSentBytesPerSecond, 0), read);
            read
        };
        assert_eq!(read(0, 1, 1_000), None);
        assert_eq!(read(1_000, 1, 2_000), Some(1_000.0));
        // It went down.
        assert_eq!(read(2_000, 1, 10), None);
        assert_eq!(read(3_000, 1, 20), Some(10.0));
        // The domain was started again, and has counted beyond what was read last.
        assert_eq!(read(4_000, 2, 90_000), None);
        assert_eq!(read(5_000, 2, 90_100), Some(100.0));
        // Read twice at once: nothing, and the next rate is right.
        assert_eq!(read(5_001, 2, 90_500), None);
        assert_eq!(read(6_000, 2, 91_100), Some(1_000.0));
        // Not read for long.
        assert_eq!(read(6_000 + INTERVAL_MAX + 1, 2, 92_000), None);
        assert_eq!(read(7_001 + INTERVAL_MAX, 2, 93_000), Some(1_000.0));
        // The clock went back.
        assert_eq!(read(2_000, 2, 94_000), None);
        assert_eq!(read(3_000, 2, 95_000), Some(1_000.0));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut rates = Rates::new();
        rates.samples(id(NODE), INTERVAL_MAX, &report(1, 5));
        assert!(rates.subjects.contains_key(&Subject::Disk(id(DISK))));
        rates.samples(id(NODE), INTERVAL_MAX * 2 + 1, &NodeReport::default());
        assert!(rates.subjects.is_empty());
    }
}
