//! What the node has, as the kernel tells it.

use std::fs;

use crate::hypervisor::{Error, ErrorKind, Result};
use crate::model::NumaCapacity;

/// NUMA nodes of a host at most.
const MAX_NUMA: u8 = u8::MAX;
/// The kernel counts CPU time in hundredths of a second.
const TICK_NS: u64 = 10_000_000;

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path)
        .map_err(|error| Error::new(ErrorKind::Failed, format!("reading {path}: {error}")))
}

/// CPUs in a list like `0-3,8`.
fn count_cpus(list: &str) -> u32 {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    ranges.fold(0, u32::saturating_add)
}

/// KiB behind `name` in a file like /proc/meminfo.
pub(super) fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(name))?;
    line.rsplit(':').next()?.split_whitespace().next()?.parse().ok()
}

/// The NUMA nodes; a kernel that knows of none has one.
pub(super) fn numa() -> Result<Vec<NumaCapacity>> {
    let mut nodes = Vec::new();
    for number in 0..=MAX_NUMA {
        let folder = format!("/sys/devices/system/node/node{number}");
        let (Ok(cpus), Ok(memory)) = (read(&format!("{folder}/cpulist")), read(&format!("{folder}/meminfo")))
        else {
            continue;
        };
        let memory_mib = kib(&memory, "MemTotal:").unwrap_or_default() / 1024;
        nodes.push(NumaCapacity { vcpus: count_cpus(&cpus), memory_mib });
    }
    if nodes.is_empty() {
        let vcpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get());
        let (_, total) = memory_bytes()?;
        nodes.push(NumaCapacity {
            vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
            memory_mib: total / super::pool::MIB,
        });
    }
    Ok(nodes)
}

/// Memory in bytes: available, total.
pub(super) fn memory_bytes() -> Result<(u64, u64)> {
    let text = read("/proc/meminfo")?;
    let bytes = |name| kib(&text, name).map(|kib| kib.saturating_mul(1024));
    match (bytes("MemAvailable:"), bytes("MemTotal:")) {
        (Some(available), Some(total)) => Ok((available, total)),
        _ => Err(Error::new(ErrorKind::Failed, "/proc/meminfo does not say how much memory there is")),
    }
}

/// CPU time in nanoseconds by core: busy, total.
pub(super) fn cpu_ns() -> Result<Vec<(u64, u64)>> {
    let text = read("/proc/stat")?;
    let cores = text.lines().filter_map(|line| {
        let core = line.strip_prefix("cpu").filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))?;
        // user nice system idle iowait irq softirq steal; guests' time is in user's.
        let times: Vec<u64> = core.split_whitespace().skip(1).take(8).map_while(|t| t.parse().ok()).collect();
        let total: u64 = times.iter().sum();
        let idle = times.get(3)?.saturating_add(times.get(4).copied().unwrap_or_default());
        Some((total.saturating_sub(idle).saturating_mul(TICK_NS), total.saturating_mul(TICK_NS)))
    });
    Ok(cores.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood() {
        assert_eq!((count_cpus("0-3,8\n"), count_cpus(""), count_cpus("5")), (5, 0, 1));
        assert_eq!(kib("Node 0 MemTotal:       24105 kB\n", "MemTotal:"), Some(24_105));
        assert_eq!(kib("MemFree: 1 kB\n", "MemTotal:"), None);
        let (available, total) = memory_bytes().unwrap();
        assert!(0 < available && available <= total);
        let cores = cpu_ns().unwrap();
        assert!(!cores.is_empty() && cores.iter().all(|(busy, total)| busy <= total && *total > 0));
        let nodes = numa().unwrap();
        assert!(nodes.iter().any(|node| node.vcpus > 0 && node.memory_mib > 0), "{nodes:?}");
    }
}
