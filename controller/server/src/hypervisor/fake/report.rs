//! What the fake node tells of itself.

use super::state::{FakeDomain, MIB, State};
use crate::hypervisor::{
    Attachment, BlockStatistics, Domain, DomainState, DomainStatistics, NetworkStatistics, NodeReport, Volume,
};
use crate::model::Id;

/// Cores of the host that are told of at most.
const MAX_CORES: u64 = 64;

impl State {
    pub(super) fn describe(&self, id: Id) -> Option<Domain> {
        self.domains.get(&id).map(|domain| domain.describe(id))
    }

    pub(super) fn describe_volume(&self, id: Id) -> Option<Volume> {
        self.volumes.get(&id).map(|volume| volume.describe(id))
    }

    pub(super) fn report(&mut self) -> NodeReport {
        let stopping: Vec<Id> =
            self.domains.iter().filter(|(_, domain)| domain.stopping.is_some()).map(|(id, _)| *id).collect();
        stopping.into_iter().for_each(|id| self.look(id));
        self.reports += 1;
        let cores: u64 = self.capacity.numa.iter().map(|numa| u64::from(numa.vcpus)).sum();
        let memory: u64 = self.capacity.numa.iter().map(|numa| numa.memory_mib * MIB).sum();
        let second = 1_000_000_000 * self.reports;
        let running = self.domains.iter().filter(|(_, domain)| domain.state == DomainState::Running);
        NodeReport {
            domains: self.domains.iter().map(|(id, domain)| domain.describe(*id)).collect(),
            volumes: self.volumes.iter().map(|(id, volume)| volume.describe(*id)).collect(),
            pool_free_bytes: self.capacity.storage_mib.saturating_sub(self.pool_used_mib) * MIB,
            host_cpu_ns: (0..cores.min(MAX_CORES)).map(|_| (second / 4, second)).collect(),
            host_memory_bytes: (memory / 2, memory),
            statistics: running.map(|(id, domain)| (*id, domain.statistics(self.reports))).collect(),
            events: self.events.drain(..).collect(),
        }
    }
}

impl FakeDomain {
    fn describe(&self, id: Id) -> Domain {
        let (vcpus, memory_mib, disks) = match &self.live {
            Some(live) => (live.vcpus, live.memory_mib, &live.disks),
            None => (self.spec.vcpus, self.spec.memory_mib, &self.spec.disks),
        };
        let disks = disks.iter().map(|disk| (disk.volume, disk.read_only)).collect();
        let (role, state, starts) = (self.spec.role, self.state, self.starts);
        Domain { id, role, state, vcpus, memory_mib, disks, starts }
    }

    /// Counters that grow with every report.
    fn statistics(&self, reports: u64) -> DomainStatistics {
        let Some(live) = &self.live else { return DomainStatistics::default() };
        let block = |disk: &Attachment| BlockStatistics {
            volume: disk.volume,
            read_bytes: reports * MIB,
            written_bytes: if disk.read_only { 0 } else { reports * MIB },
            reads: reports,
            writes: if disk.read_only { 0 } else { reports },
        };
        DomainStatistics {
            cpu_ns: vec![reports * 100_000_000; live.vcpus as usize],
            memory_bytes: live.memory_mib * MIB,
            block: live.disks.iter().map(block).collect(),
            network: Some(NetworkStatistics {
                received_bytes: reports * 1000,
                sent_bytes: reports * 1000,
                received_packets: reports,
                sent_packets: reports,
            }),
        }
    }
}
