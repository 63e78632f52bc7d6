//! QEMU processes on the controller's own machine, driven over QMP.
//!
//! Each domain is a daemon of its own: it outlives the controller, and the folder alone tells the next one what
//! there is. Networking is QEMU's user networking: guests reach out, and are reached by forwarded ports of
//! 127.0.0.1.

mod disks;
mod domain;
mod files;
mod host;
mod machine;
mod pool;
mod process;
mod qmp;
mod record;
mod verbs;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Mutex;

use serde_json::json;

use domain::lock;
use files::{Folder, failed};
pub use machine::{Accelerator, QemuOptions};
use record::{Life, Record, Table};

use super::{
    Attachment, Capabilities, Change, Domain, DomainEvent, DomainSpec, DomainState, Error, ErrorKind,
    HypervisorManager, NodeReport, Result, Volume,
};
use crate::model::{Id, IoLimits, NodeCapacity};

/// Bytes of a serial line's log at most, looked at with every report.
const MAX_SERIAL_LOG: u64 = 1 << 20;

/// The manager of one node.
#[derive(Debug)]
pub struct QemuManager {
    folder: Folder,
    options: QemuOptions,
    accelerator: Accelerator,
    table: Mutex<Table>,
    events: Mutex<Vec<DomainEvent>>,
}

impl QemuManager {
    /// Opens a node's folder, made where it is missing, and finds what runs there. One controller at a time.
    pub fn open(folder: &Path, options: QemuOptions) -> Result<Self> {
        let accelerator = options.accelerator.map_or_else(Accelerator::choose, Ok)?;
        let folder = Folder::open(folder)?;
        let table = Mutex::new(Table::load(&folder)?);
        Ok(Self { folder, options, accelerator, table, events: Mutex::default() })
    }

    /// What runs the machines' instructions.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    fn define_new(&self, table: &mut Table, spec: &DomainSpec) -> Result<()> {
        let path = self.folder.domain(spec.id);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|error| failed("making", &path, &error))?;
        files::sync_folder(&self.folder.domains())?;
        let spec = Table::keep_config(&self.folder, spec)?;
        let record = Record { spec, life: Life::Off, starts: 0, live: None };
        table.put(&self.folder, record)
    }
}

impl HypervisorManager for QemuManager {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            suspend: true,
            shutdown: true,
            hot_plug: true,
            shared_read: true,
            vcpus_up: Change::Restart,
            vcpus_down: Change::Restart,
            memory_up: Change::Restart,
            memory_down: Change::Restart,
            volume_grow: Change::Live,
            io_limits: Change::Live,
            numa: false,
            per_cpu_statistics: true,
        }
    }

    fn capacity(&self) -> Result<NodeCapacity> {
        let volumes = pool::list(&self.folder)?;
        let (_, all) = pool::space(&self.folder, &volumes)?;
        Ok(NodeCapacity { numa: host::numa()?, storage_mib: all / pool::MIB })
    }

    fn report(&self) -> Result<NodeReport> {
        let ids = lock(&self.table).ids();
        let (mut domains, mut statistics) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(domain) = self.look_or_assume(id)? else { continue };
            if domain.state == DomainState::Running {
                // One that ends just now is not counted.
                statistics.extend(self.statistics(id).ok().map(|counters| (id, counters)));
            }
            pool::bound_log(&self.folder.serial_log(id), MAX_SERIAL_LOG)?;
            domains.push(domain);
        }
        let volumes = pool::list(&self.folder)?;
        let (pool_free_bytes, _) = pool::space(&self.folder, &volumes)?;
        Ok(NodeReport {
            domains,
            volumes,
            pool_free_bytes,
            host_cpu_ns: host::cpu_ns()?,
            host_memory_bytes: host::memory_bytes()?,
            statistics,
            events: std::mem::take(&mut lock(&self.events)),
        })
    }

    fn domain(&self, id: Id) -> Result<Option<Domain>> {
        self.look(id)
    }

    fn volume(&self, id: Id) -> Result<Option<Volume>> {
        pool::find(&self.folder, id)
    }

    fn create_volume(&self, id: Id, size_mib: u64) -> Result<Volume> {
        // The table's lock is the pool's too: promises are made one after the other.
        let _table = lock(&self.table);
        pool::create(&self.folder, id, size_mib)
    }

    fn grow_volume(&self, id: Id, size_mib: u64) -> Result<Volume> {
        let (volume, writers) = {
            let table = lock(&self.table);
            let volume = pool::grow(&self.folder, id, size_mib)?;
            let writers: Vec<Id> =
                table.users(id).filter(|(_, read_only)| !read_only).map(|(user, _)| user).collect();
            (volume, writers)
        };
        writers.into_iter().try_for_each(|writer| self.tell_size(writer, id, size_mib))?;
        Ok(volume)
    }

    fn delete_volume(&self, id: Id) -> Result<()> {
        let table = lock(&self.table);
        if let Some((user, _)) = table.users(id).next() {
            let message = format!("volume {id} is attached to domain {user}");
            return Err(Error::new(ErrorKind::WrongState, message));
        }
        pool::delete(&self.folder, id)
    }

    fn define(&self, spec: &DomainSpec) -> Result<()> {
        let mut table = lock(&self.table);
        self.check_spec(&table, spec)?;
        match table.find(spec.id) {
            None => self.define_new(&mut table, spec),
            Some((record, _)) if record.spec.role != spec.role => {
                Err(Error::new(ErrorKind::WrongState, format!("domain {} has another role", spec.id)))
            }
            Some((record, _)) => {
                let spec = Table::keep_config(&self.folder, spec)?;
                table.put(&self.folder, Record { spec, ..record })
            }
        }
    }

    fn undefine(&self, id: Id) -> Result<()> {
        if lock(&self.table).find(id).is_none() {
            return Ok(());
        }
        let undefined = self.for_verb(id, |_, observed| {
            if observed.executes() {
                return Err(Error::new(ErrorKind::WrongState, format!("domain {id} runs")));
            }
            lock(&self.table).forget(&self.folder, id)
        });
        match undefined {
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            undefined => undefined,
        }
    }

    fn start(&self, id: Id) -> Result<()> {
        self.for_verb(id, |slot, observed| match observed.executes() {
            true => Ok(()),
            false => self.start_process(id, slot),
        })
    }

    fn shutdown(&self, id: Id) -> Result<()> {
        self.for_verb(id, |slot, observed| match observed {
            domain::Observed::Running => {
                self.with(id, slot, |qmp| qmp.execute("system_powerdown", json!({}))).map(drop)
            }
            domain::Observed::Paused => {
                Err(Error::new(ErrorKind::WrongState, format!("domain {id} is held and cannot listen")))
            }
            _ => Ok(()),
        })
    }

    fn destroy(&self, id: Id) -> Result<()> {
        self.end(id)
    }

    fn suspend(&self, id: Id) -> Result<()> {
        self.hold(id, DomainState::Paused)
    }

    fn resume(&self, id: Id) -> Result<()> {
        self.hold(id, DomainState::Running)
    }

    fn reboot(&self, id: Id) -> Result<()> {
        self.for_verb(id, |slot, observed| match observed {
            domain::Observed::Running => {
                self.with(id, slot, |qmp| qmp.execute("system_reset", json!({}))).map(drop)
            }
            _ => Err(Error::new(ErrorKind::WrongState, format!("domain {id} does not run"))),
        })
    }

    fn attach(&self, id: Id, attachment: &Attachment) -> Result<()> {
        self.attach_disk(id, attachment)
    }

    fn detach(&self, id: Id, volume: Id) -> Result<()> {
        match self.detach_disk(id, volume) {
            // A domain that is not there has nothing attached.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            detached => detached,
        }
    }

    fn set_vcpus(&self, id: Id, vcpus: u32) -> Result<()> {
        self.scale(id, "virtual CPUs", u64::from(vcpus), |live| u64::from(live.vcpus))
    }

    fn set_memory(&self, id: Id, memory_mib: u64) -> Result<()> {
        self.scale(id, "MiB of memory", memory_mib, |live| live.memory_mib)
    }

    fn set_io_limits(&self, id: Id, volume: Id, limits: IoLimits) -> Result<()> {
        self.for_verb(id, |slot, observed| self.limit_disk(id, slot, observed, volume, limits))
    }

    fn service_address(&self, id: Id) -> Result<SocketAddr> {
        let port = self.service_port(id)?;
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }
}
