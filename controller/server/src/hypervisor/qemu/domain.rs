//! What a domain is doing, found out from its process, and what follows from it.
//!
//! ```text
//!            start                     guest powers off, destroy
//!  Off ─────────────▶ Started, process ─────────────────────────▶ Off
//!   ▲                   ▲    │ process ends by itself, guest panics
//!   │ destroy           │    ▼
//!   └──────────────── Crashed
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::QemuManager;
use super::qmp::{Qmp, QmpError, QmpResult};
use super::record::{Life, Record, Slot};
use super::{disks, process};
use crate::hypervisor::{
    BlockStatistics, Domain, DomainEvent, DomainState, DomainStatistics, Error, ErrorKind, Result,
};
use crate::model::Id;

/// How long QEMU may take to end in order before it is killed.
const QUIT: Duration = Duration::from_secs(5);
/// Events kept for the next report at most; what comes beyond is lost.
const MAX_EVENTS: usize = 4096;

/// A poisoned lock guards nothing that a panic could have left half done: what counts is in files and in QEMU.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a look at the process shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Observed {
    /// Not there yet.
    Starting,
    /// Not there.
    Gone,
    Running,
    Paused,
    /// There, with a guest that has powered itself off.
    PoweredOff,
    /// There, with a guest that cannot go on.
    Panicked,
}

impl Observed {
    pub(super) fn executes(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// By QEMU's run states.
    fn from_status(status: &str) -> Self {
        match status {
            "running" => Self::Running,
            "shutdown" => Self::PoweredOff,
            "guest-panicked" | "internal-error" => Self::Panicked,
            // Paused, held by an I/O error until there is room again, suspended, and what else holds a machine.
            _ => Self::Paused,
        }
    }
}

impl QemuManager {
    /// Runs commands on a domain's monitor.
    pub(super) fn with<T>(
        &self,
        id: Id,
        slot: &Slot,
        commands: impl FnOnce(&mut Qmp) -> QmpResult<T>,
    ) -> Result<T> {
        let mut monitor = lock(&slot.monitor);
        if monitor.is_none() {
            *monitor = Some(Qmp::connect(&self.folder.socket(id))?);
        }
        let qmp = monitor.as_mut().expect("it was made where it was missing");
        let answer = commands(qmp);
        for event in qmp.take_events() {
            let what = match event["event"].as_str() {
                Some("RESET") => "reboot",
                Some("BLOCK_IO_ERROR") => "io-error",
                _ => continue,
            };
            self.tell(id, what);
        }
        if matches!(answer, Err(QmpError::Lost(_))) {
            *monitor = None;
        }
        Ok(answer?)
    }

    /// Keeps an event for the next report.
    pub(super) fn tell(&self, domain: Id, what: &str) {
        let mut events = lock(&self.events);
        // A disk that fails does so many times.
        let again = events.last().is_some_and(|last| last.domain == domain && last.what == what);
        if events.len() < MAX_EVENTS && !(again && what == "io-error") {
            events.push(DomainEvent { domain, what: what.to_owned() });
        }
    }

    fn is_alive(&self, id: Id, slot: &Slot) -> Result<Option<bool>> {
        let starting = lock(&slot.starting);
        if *starting {
            return Ok(None);
        }
        process::is_alive(&self.folder.pid(id)).map(Some)
    }

    pub(super) fn observe(&self, id: Id, slot: &Slot) -> Result<Observed> {
        match self.is_alive(id, slot)? {
            None => return Ok(Observed::Starting),
            Some(false) => return Ok(Observed::Gone),
            Some(true) => {}
        }
        let status = self.with(id, slot, |qmp| qmp.execute("query-status", json!({})));
        match status {
            Ok(status) => Ok(Observed::from_status(status["status"].as_str().unwrap_or_default())),
            // It may have ended while it was asked.
            Err(_) if self.is_alive(id, slot)? == Some(false) => Ok(Observed::Gone),
            Err(error) => Err(error),
        }
    }

    /// Takes note of a guest that ended by itself; the caller holds the verb.
    pub(super) fn settle(&self, id: Id, slot: &Slot) -> Result<Observed> {
        let observed = self.observe(id, slot)?;
        let (life, what) = match observed {
            Observed::PoweredOff => (Life::Off, "shutdown"),
            Observed::Panicked => (Life::Crashed, "crashed"),
            Observed::Gone => {
                let (record, _) = lock(&self.table).get(id)?;
                match (record.life, &record.live) {
                    (Life::Started, _) => (Life::Crashed, "crashed"),
                    // Its end was asked for by one who could not write down that it came.
                    (life @ (Life::Off | Life::Crashed), Some(_)) => (life, ""),
                    (Life::Off | Life::Crashed, None) => return Ok(observed),
                }
            }
            Observed::Starting | Observed::Running | Observed::Paused => return Ok(observed),
        };
        if observed != Observed::Gone {
            self.end_process(id, slot)?;
        }
        *lock(&slot.monitor) = None;
        lock(&self.table).change(&self.folder, id, |record| {
            record.life = life;
            record.live = None;
        })?;
        if !what.is_empty() {
            self.tell(id, what);
        }
        Ok(Observed::Gone)
    }

    /// Ends QEMU, in order or otherwise, and waits until it has.
    pub(super) fn end_process(&self, id: Id, slot: &Slot) -> Result<()> {
        let pidfile = self.folder.pid(id);
        // One that does not answer is killed; one that is ending may close the connection before its answer.
        let asked = self.with(id, slot, |qmp| qmp.execute("quit", json!({})));
        *lock(&slot.monitor) = None;
        if asked.is_ok_and(|_| true) && process::wait_gone(&pidfile, QUIT)? {
            return Ok(());
        }
        process::kill(&pidfile)
    }

    /// A domain as found, with what is seen of it written down where no verb is at work on it.
    pub(super) fn look(&self, id: Id) -> Result<Option<Domain>> {
        let Some((record, slot)) = lock(&self.table).find(id) else { return Ok(None) };
        let observed = self.observe(id, &slot)?;
        if observed.executes() {
            return self.describe_running(id, &record, &slot, observed).map(Some);
        }
        if let Ok(_verb) = slot.verb.try_lock() {
            let settled = match self.settle(id, &slot) {
                // Somebody has undefined it since.
                Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
                settled => settled?,
            };
            let Some((record, _)) = lock(&self.table).find(id) else { return Ok(None) };
            if settled.executes() {
                return self.describe_running(id, &record, &slot, settled).map(Some);
            }
            return Ok(Some(describe_off(id, &record)));
        }
        Ok(Some(describe_off(id, &record)))
    }

    fn describe_running(&self, id: Id, record: &Record, slot: &Slot, observed: Observed) -> Result<Domain> {
        let disks = match self.with(id, slot, disks::plugged) {
            Ok(disks) => disks,
            // It ended while it was asked: the next look tells how.
            Err(_) if self.is_alive(id, slot)? == Some(false) => return Ok(describe_off(id, record)),
            Err(error) => return Err(error),
        };
        let state = if observed == Observed::Paused { DomainState::Paused } else { DomainState::Running };
        let live = record.live.as_ref();
        // In the order in which they were attached.
        let place = |volume: &Id| live?.disks.iter().position(|disk| disk.attachment.volume == *volume);
        let mut disks = disks;
        disks.sort_by_key(|(volume, _)| place(volume));
        Ok(Domain {
            id,
            role: record.spec.role,
            state,
            vcpus: live.map_or(record.spec.vcpus, |live| live.vcpus),
            memory_mib: live.map_or(record.spec.memory_mib, |live| live.memory_mib),
            disks,
            starts: record.starts,
        })
    }

    /// Counters of a domain that runs.
    pub(super) fn statistics(&self, id: Id) -> Result<DomainStatistics> {
        let (_, slot) = lock(&self.table).get(id)?;
        let (cpus, blocks) = self
            .with(id, &slot, |qmp| Ok((qmp.execute("query-cpus-fast", json!({}))?, disks::counters(qmp)?)))?;
        let pid = process::pid(&self.folder.pid(id))
            .ok_or_else(|| Error::new(ErrorKind::WrongState, format!("domain {id} does not run")))?;
        let threads = cpus.as_array().into_iter().flatten();
        let cpu_ns =
            threads.filter_map(|cpu: &Value| process::thread_cpu_ns(pid, cpu["thread-id"].as_u64()?));
        let block = blocks.into_iter().map(|(volume, [read_bytes, written_bytes, reads, writes])| {
            BlockStatistics { volume, read_bytes, written_bytes, reads, writes }
        });
        Ok(DomainStatistics {
            cpu_ns: cpu_ns.collect(),
            memory_bytes: process::resident_bytes(pid).unwrap_or_default(),
            block: block.collect(),
            // User networking has no counters.
            network: None,
        })
    }

    /// A domain for a verb that changes it: nobody else does meanwhile, and what happened by itself is settled.
    pub(super) fn for_verb<T>(
        &self,
        id: Id,
        verb: impl FnOnce(&Arc<Slot>, Observed) -> Result<T>,
    ) -> Result<T> {
        let (_, slot) = lock(&self.table).get(id)?;
        let _verb = lock(&slot.verb);
        // It may have been undefined while the verb before was at work.
        lock(&self.table).get(id)?;
        let observed = self.settle(id, &slot)?;
        verb(&slot, observed)
    }
}

fn describe_off(id: Id, record: &Record) -> Domain {
    Domain {
        id,
        role: record.spec.role,
        state: if record.life == Life::Crashed { DomainState::Crashed } else { DomainState::ShutOff },
        vcpus: record.spec.vcpus,
        memory_mib: record.spec.memory_mib,
        disks: record.spec.disks.iter().map(|disk| (disk.volume, disk.read_only)).collect(),
        starts: record.starts,
    }
}
