//! What is measured: one schema and one set of units, whatever the hypervisor says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::Id;

/// What is measured, in base units. The number is the one on the disk: it never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Metric {
    /// Of a domain: CPUs in use, by virtual CPU; index 0 alone and above 1 where the hypervisor tells the sum only.
    CpuUsedRatio = 1,
    /// Of a domain: memory it takes of the host.
    MemoryUsedBytes = 2,
    /// Of a domain.
    NetworkReceivedBytesPerSecond = 3,
    /// Of a domain.
    NetworkSentBytesPerSecond = 4,
    /// Of a domain.
    NetworkReceivedPacketsPerSecond = 5,
    /// Of a domain.
    NetworkSentPacketsPerSecond = 6,
    /// Of a disk.
    DiskReadBytesPerSecond = 7,
    /// Of a disk.
    DiskWrittenBytesPerSecond = 8,
    /// Of a disk.
    DiskReadsPerSecond = 9,
    /// Of a disk.
    DiskWritesPerSecond = 10,
    /// Of a disk: what it takes up in the pool.
    DiskAllocatedBytes = 11,
    /// Of a node: the busy part of each core of the host.
    HostCpuUsedRatio = 12,
    /// Of a node.
    HostMemoryAvailableBytes = 13,
    /// Of a node.
    HostMemoryTotalBytes = 14,
    /// Of a node: what is free in its pool.
    PoolFreeBytes = 15,
    /// Of a node: domains that execute.
    DomainsRunning = 16,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::CpuUsedRatio,
        Self::MemoryUsedBytes,
        Self::NetworkReceivedBytesPerSecond,
        Self::NetworkSentBytesPerSecond,
        Self::NetworkReceivedPacketsPerSecond,
        Self::NetworkSentPacketsPerSecond,
        Self::DiskReadBytesPerSecond,
        Self::DiskWrittenBytesPerSecond,
        Self::DiskReadsPerSecond,
        Self::DiskWritesPerSecond,
        Self::DiskAllocatedBytes,
        Self::HostCpuUsedRatio,
        Self::HostMemoryAvailableBytes,
        Self::HostMemoryTotalBytes,
        Self::PoolFreeBytes,
        Self::DomainsRunning,
    ];

    /// Its name in the API; `uvm_` before it makes it Prometheus' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuUsedRatio => "cpu_used_ratio",
            Self::MemoryUsedBytes => "memory_used_bytes",
            Self::NetworkReceivedBytesPerSecond => "network_received_bytes_per_second",
            Self::NetworkSentBytesPerSecond => "network_sent_bytes_per_second",
            Self::NetworkReceivedPacketsPerSecond => "network_received_packets_per_second",
            Self::NetworkSentPacketsPerSecond => "network_sent_packets_per_second",
            Self::DiskReadBytesPerSecond => "disk_read_bytes_per_second",
            Self::DiskWrittenBytesPerSecond => "disk_written_bytes_per_second",
            Self::DiskReadsPerSecond => "disk_reads_per_second",
            Self::DiskWritesPerSecond => "disk_writes_per_second",
            Self::DiskAllocatedBytes => "disk_allocated_bytes",
            Self::HostCpuUsedRatio => "host_cpu_used_ratio",
            Self::HostMemoryAvailableBytes => "host_memory_available_bytes",
            Self::HostMemoryTotalBytes => "host_memory_total_bytes",
            Self::PoolFreeBytes => "pool_free_bytes",
            Self::DomainsRunning => "domains_running",
        }
    }

    /// The one of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }

    pub(super) fn number(self) -> u8 {
        self as u8
    }

    pub(super) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.number() == number)
    }
}

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The instance, the disk or the node; a node's id also stands for its utility VM's domain.
    pub subject: Id,
    /// What is measured.
    pub metric: Metric,
    /// Which of several, as the number of the core; else 0.
    pub index: u16,
    /// The value.
    pub value: f64,
}

/// Measurements of a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// When the stretch began, in milliseconds since 1970.
    pub time: u64,
    /// The smallest.
    pub min: f64,
    /// The mean.
    pub avg: f64,
    /// The largest.
    pub max: f64,
}
