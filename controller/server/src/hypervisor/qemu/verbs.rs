//! The verbs that take more than a command.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::disks::{self, PORTS};
use super::domain::{Observed, lock};
use super::record::{Life, Live, Plugged, Record, Slot, Table};
use super::{QemuManager, machine, pool, process};
use crate::hypervisor::{
    Attachment, Domain, DomainSpec, DomainState, Error, ErrorKind, MAX_SERIAL, Result, Role,
};
use crate::model::{Id, IoLimits};

/// Disks of a utility VM at most; guests have as many as PCIe ports.
const MAX_UTILITY_DISKS: usize = 200;
/// How long a guest may take to let go of a disk.
const UNPLUG: Duration = Duration::from_secs(30);
/// A guest that was not listening is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);
/// How often QEMU is asked to close a volume: it frees a device a moment after it is gone.
const MAX_CLOSES: usize = 200;

fn refuse<T>(kind: ErrorKind, message: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, message))
}

impl QemuManager {
    // --- definitions

    /// Whether the domain may have the disk beside the other users of its volume.
    fn check_attachment(&self, table: &Table, domain: Id, attachment: &Attachment) -> Result<()> {
        let (volume, serial) = (attachment.volume, &attachment.serial);
        if serial.is_empty() || serial.len() > MAX_SERIAL {
            return refuse(ErrorKind::WrongState, format!("volume {volume} with serial number {serial:?}"));
        }
        pool::get(&self.folder, volume)?;
        let mut writers = table.users(volume).filter(|(user, reads)| *user != domain && !reads);
        match writers.next() {
            Some((user, _)) if !attachment.read_only => refuse(
                ErrorKind::WrongState,
                format!("volume {volume} is attached to domain {user} for writing"),
            ),
            _ => Ok(()),
        }
    }

    pub(super) fn check_spec(&self, table: &Table, spec: &DomainSpec) -> Result<()> {
        let most = most_disks(spec.role);
        if spec.vcpus == 0 || spec.memory_mib == 0 || spec.disks.len() > most {
            return refuse(ErrorKind::WrongState, format!("domain {} cannot be like that", spec.id));
        }
        for (index, attachment) in spec.disks.iter().enumerate() {
            self.check_attachment(table, spec.id, attachment)?;
            if spec.disks[..index].iter().any(|other| other.conflicts_with(attachment)) {
                let message = format!("two disks with serial number {:?}", attachment.serial);
                return refuse(ErrorKind::WrongState, message);
            }
        }
        Ok(())
    }

    // --- power

    /// Starts QEMU. That it is wanted is written down first: one that is found dead then has crashed.
    pub(super) fn start_process(&self, id: Id, slot: &Slot) -> Result<()> {
        let (spec, live) = {
            let mut table = lock(&self.table);
            let (record, _) = table.get(id)?;
            self.check_spec(&table, &record.spec)?;
            let live = live_of(&record)?;
            table.change(&self.folder, id, |record| {
                record.life = Life::Started;
                record.starts = record.starts.saturating_add(1).max(now_ms());
                record.live = Some(live.clone());
            })?;
            (record.spec, live)
        };
        let command = machine::describe(&self.folder, &self.options, self.accelerator, &spec, &live);
        let started = command.and_then(|command| {
            *lock(&slot.starting) = true;
            let started = process::start(command, &self.folder.log(id));
            *lock(&slot.starting) = false;
            started
        });
        *lock(&slot.monitor) = None;
        if let Err(error) = started {
            lock(&self.table).change(&self.folder, id, |record| {
                record.life = Life::Off;
                record.live = None;
            })?;
            return Err(error);
        }
        self.tell(id, "started");
        Ok(())
    }

    /// Powers off. That it is wanted is written down first: its end is then no crash, whoever sees it.
    pub(super) fn end(&self, id: Id) -> Result<()> {
        let Some((_, slot)) = lock(&self.table).find(id) else { return Ok(()) };
        let _verb = lock(&slot.verb);
        // A QEMU that does not answer is what this verb is for: it is not asked how it is.
        let alive = process::is_alive(&self.folder.pid(id))?;
        let mut table = lock(&self.table);
        let Some((record, _)) = table.find(id) else { return Ok(()) };
        let died = !alive && record.life == Life::Started;
        table.change(&self.folder, id, |record| record.life = Life::Off)?;
        drop(table);
        if alive {
            self.end_process(id, &slot)?;
        }
        *lock(&slot.monitor) = None;
        lock(&self.table).change(&self.folder, id, |record| record.live = None)?;
        if alive || died {
            self.tell(id, if died { "crashed" } else { "stopped" });
        }
        Ok(())
    }

    pub(super) fn hold(&self, id: Id, wanted: DomainState) -> Result<()> {
        let (command, what, is) = match wanted {
            DomainState::Paused => ("stop", "suspended", Observed::Paused),
            _ => ("cont", "resumed", Observed::Running),
        };
        self.for_verb(id, |slot, observed| {
            if !observed.executes() {
                return refuse(ErrorKind::WrongState, format!("domain {id} does not run"));
            }
            if observed == is {
                return Ok(());
            }
            self.with(id, slot, |qmp| qmp.execute(command, json!({})))?;
            self.tell(id, what);
            Ok(())
        })
    }

    /// A domain as found; one whose QEMU does not answer is taken for running, since it does execute.
    pub(super) fn look_or_assume(&self, id: Id) -> Result<Option<Domain>> {
        match self.look(id) {
            Err(error) if matches!(error.kind, ErrorKind::Unreachable | ErrorKind::TimedOut) => {
                let Some((record, _)) = lock(&self.table).find(id) else { return Ok(None) };
                let disks = record.live.iter().flat_map(|live| &live.disks).map(|disk| &disk.attachment);
                Ok(Some(Domain {
                    id,
                    role: record.spec.role,
                    state: DomainState::Running,
                    vcpus: record.spec.vcpus,
                    memory_mib: record.spec.memory_mib,
                    disks: disks.map(|disk| (disk.volume, disk.read_only)).collect(),
                    starts: record.starts,
                }))
            }
            looked => looked,
        }
    }

    /// The port of 127.0.0.1 that leads to the domain's service. QEMU's table of connections has a line
    /// `TCP[HOST_FORWARD]  FD  SOURCE-ADDRESS PORT  DESTINATION-ADDRESS PORT  RECVQ SENDQ` for it.
    pub(super) fn service_port(&self, id: Id) -> Result<u16> {
        let (record, slot) = lock(&self.table).get(id)?;
        let Some(wanted) = machine::forwarded(&record.spec, &self.options).first() else {
            return refuse(ErrorKind::Unsupported, format!("no port of domain {id} is forwarded"));
        };
        if !self.observe(id, &slot)?.executes() {
            return refuse(ErrorKind::WrongState, format!("domain {id} does not run"));
        }
        let ask = json!({ "command-line": "info usernet" });
        let answer = self.with(id, &slot, |qmp| qmp.execute("human-monitor-command", ask))?;
        let text = answer.as_str().unwrap_or_default();
        let wanted = wanted.to_string();
        let mut forwards = text.lines().filter(|line| line.contains("TCP[HOST_FORWARD]"));
        let port = forwards.find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.get(5) == Some(&wanted.as_str())).then(|| words[3].parse().ok()).flatten()
        });
        port.ok_or_else(|| Error::new(ErrorKind::Failed, format!("QEMU forwards no port {wanted}: {text}")))
    }

    // --- disks

    pub(super) fn attach_disk(&self, id: Id, attachment: &Attachment) -> Result<()> {
        self.for_verb(id, |slot, observed| {
            let volume = attachment.volume;
            let (known, plugged) = self.enter_disk(id, attachment, observed.executes())?;
            if let Some(plugged) = plugged {
                let parts = disks::nodes(attachment, &self.folder.volume(volume))?;
                if let Err(error) = self.with(id, slot, |qmp| disks::plug(qmp, &plugged, parts)) {
                    // A connection that was lost says nothing of what came of it: then the disk stays entered.
                    if !known && !matches!(error.kind, ErrorKind::Unreachable | ErrorKind::TimedOut) {
                        lock(&self.table).change(&self.folder, id, |record| leave(record, volume))?;
                    }
                    return Err(error);
                }
            }
            self.limit_disk(id, slot, observed, volume, attachment.io_limits)
        })
    }

    /// Enters a disk into the definition, and into what the process has where there is one; whether it was there
    /// already, and what is to be plugged.
    fn enter_disk(&self, id: Id, attachment: &Attachment, executes: bool) -> Result<(bool, Option<Plugged>)> {
        let volume = attachment.volume;
        let mut table = lock(&self.table);
        self.check_attachment(&table, id, attachment)?;
        let (mut record, _) = table.get(id)?;
        for found in record.all_disks() {
            let other_way = found.serial != attachment.serial || found.read_only != attachment.read_only;
            if found.volume == volume && other_way {
                let message = format!("volume {volume} is attached to it in another way");
                return refuse(ErrorKind::WrongState, message);
            }
            if found.volume != volume && found.serial == attachment.serial {
                let message = format!("two disks with serial number {:?}", found.serial);
                return refuse(ErrorKind::WrongState, message);
            }
        }
        let known = record.all_disks().any(|disk| disk.volume == volume);
        if !record.spec.disks.iter().any(|disk| disk.volume == volume) {
            record.spec.disks.push(attachment.clone());
        }
        let plugged = match (executes, record.live_disk(volume)) {
            (false, _) => None,
            (true, Some(plugged)) => Some(plugged.clone()),
            (true, None) => {
                let disks = record.live.iter().flat_map(|live| live.disks.clone()).collect::<Vec<_>>();
                let port = record.free_port(&disks, PORTS)?;
                let plugged = Plugged { attachment: attachment.clone(), port };
                if let Some(live) = &mut record.live {
                    live.disks.push(plugged.clone());
                }
                Some(plugged)
            }
        };
        if record.spec.disks.len() > most_disks(record.spec.role) {
            return refuse(ErrorKind::NoResources, format!("domain {id} has no room for another disk"));
        }
        table.put(&self.folder, record)?;
        Ok((known, plugged))
    }

    pub(super) fn detach_disk(&self, id: Id, volume: Id) -> Result<()> {
        self.for_verb(id, |slot, observed| {
            let (record, _) = lock(&self.table).get(id)?;
            if observed.executes() && record.live_disk(volume).is_some() {
                self.unplug(
                    id,
                    slot,
                    volume,
                    record.spec.role == Role::Guest && observed == Observed::Paused,
                )?;
            }
            lock(&self.table).change(&self.folder, id, |record| leave(record, volume))
        })
    }

    /// Unplugs a disk, and returns when the domain has let go of it.
    fn unplug(&self, id: Id, slot: &Arc<Slot>, volume: Id, cannot_listen: bool) -> Result<()> {
        let deadline = Instant::now() + UNPLUG;
        let mut ask_at = Instant::now();
        while !self.with(id, slot, |qmp| disks::is_gone(qmp, volume))? {
            if cannot_listen {
                return refuse(ErrorKind::WrongState, format!("domain {id} is held and cannot let go"));
            }
            if Instant::now() >= deadline {
                let message = format!("the guest did not let go of volume {volume} within {UNPLUG:?}");
                return refuse(ErrorKind::TimedOut, message);
            }
            if Instant::now() >= ask_at {
                ask_at += ASK_AGAIN;
                self.with(id, slot, |qmp| disks::ask_to_go(qmp, volume))?;
            }
            sleep(PAUSE);
        }
        for _ in 0..MAX_CLOSES {
            if self.with(id, slot, |qmp| disks::close(qmp, volume))? {
                return Ok(());
            }
            sleep(PAUSE);
        }
        refuse(ErrorKind::TimedOut, format!("QEMU did not close volume {volume}"))
    }

    pub(super) fn limit_disk(
        &self,
        id: Id,
        slot: &Arc<Slot>,
        observed: Observed,
        volume: Id,
        limits: IoLimits,
    ) -> Result<()> {
        let (record, _) = lock(&self.table).get(id)?;
        if !record.all_disks().any(|disk| disk.volume == volume) {
            return refuse(ErrorKind::NotFound, format!("volume {volume} is not attached to domain {id}"));
        }
        lock(&self.table).change(&self.folder, id, |record| {
            let live = record.live.iter_mut().flat_map(|live| &mut live.disks);
            let disks = record.spec.disks.iter_mut().chain(live.map(|disk| &mut disk.attachment));
            disks.filter(|disk| disk.volume == volume).for_each(|disk| disk.io_limits = limits);
        })?;
        if observed.executes() && record.live_disk(volume).is_some() {
            self.with(id, slot, |qmp| disks::set_limits(qmp, volume, limits))?;
        }
        Ok(())
    }

    /// Tells a running domain that writes to a volume of its new size.
    pub(super) fn tell_size(&self, id: Id, volume: Id, size_mib: u64) -> Result<()> {
        let told = self.for_verb(id, |slot, observed| {
            let (record, _) = lock(&self.table).get(id)?;
            if !observed.executes() || record.live_disk(volume).is_none() {
                return Ok(());
            }
            self.with(id, slot, |qmp| disks::resize(qmp, volume, size_mib * pool::MIB))
        });
        match told {
            // Undefined meanwhile.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            told => told,
        }
    }

    // --- scaling

    /// Neither CPUs nor memory change while a domain runs.
    pub(super) fn scale(&self, id: Id, what: &str, wanted: u64, now: impl Fn(&Live) -> u64) -> Result<()> {
        self.for_verb(id, |_, observed| {
            let (record, _) = lock(&self.table).get(id)?;
            match record.live.filter(|_| observed.executes()) {
                None => refuse(ErrorKind::WrongState, format!("domain {id} does not run")),
                Some(live) if now(&live) == wanted => Ok(()),
                Some(live) => {
                    let message = format!("from {} to {wanted} {what} while it runs", now(&live));
                    refuse(ErrorKind::Unsupported, message)
                }
            }
        })
    }
}

fn most_disks(role: Role) -> usize {
    match role {
        Role::Guest => usize::from(PORTS),
        Role::Utility => MAX_UTILITY_DISKS,
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a domain is started with.
fn live_of(record: &Record) -> Result<Live> {
    let mut disks: Vec<Plugged> = Vec::new();
    for attachment in &record.spec.disks {
        let port = record.free_port(&disks, PORTS)?;
        disks.push(Plugged { attachment: attachment.clone(), port });
    }
    Ok(Live { vcpus: record.spec.vcpus, memory_mib: record.spec.memory_mib, disks })
}

/// Takes a disk out.
fn leave(record: &mut Record, volume: Id) {
    record.spec.disks.retain(|disk| disk.volume != volume);
    if let Some(live) = &mut record.live {
        live.disks.retain(|disk| disk.attachment.volume != volume);
    }
}
