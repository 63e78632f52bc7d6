//! What is durable of a domain, and the table of all domains.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind as IoErrorKind;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::files::{Folder, failed, remove, sync_folder, write_private};
use super::qmp::Qmp;
use crate::hypervisor::{Attachment, Boot, DomainSpec, Error, ErrorKind, Result, Role};
use crate::model::Id;

/// Bytes of a definition at most.
const MAX_DEFINITION: u64 = 1 << 20;

/// What is durable of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The definition; the utility VM's configuration is in a file of its own.
    pub(super) spec: DomainSpec,
    pub(super) life: Life,
    /// Tells starts apart, also those of a domain that was undefined in between: the time, or one more than before.
    pub(super) starts: u64,
    /// What its process was started with and got since. A disk is entered before it is plugged and taken out after
    /// it was unplugged: no volume is in use that is not here.
    pub(super) live: Option<Live>,
}

/// What was asked for last: a process that is not there means another thing with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Life {
    /// To be off.
    Off,
    /// To run.
    Started,
    /// To run, and it was noticed that it does not.
    Crashed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Live {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) disks: Vec<Plugged>,
}

/// A disk in a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plugged {
    pub(super) attachment: Attachment,
    /// Number of the PCIe port; none for disks of the SCSI controller.
    pub(super) port: Option<u8>,
}

impl Record {
    /// Disks of the definition, then those of the process.
    pub(super) fn all_disks(&self) -> impl Iterator<Item = &Attachment> {
        let live = self.live.iter().flat_map(|live| live.disks.iter().map(|disk| &disk.attachment));
        self.spec.disks.iter().chain(live)
    }

    pub(super) fn live_disk(&self, volume: Id) -> Option<&Plugged> {
        let mut disks = self.live.iter().flat_map(|live| &live.disks);
        disks.find(|disk| disk.attachment.volume == volume)
    }

    /// A PCIe port without a disk; utility VMs need none.
    pub(super) fn free_port(&self, disks: &[Plugged], ports: u8) -> Result<Option<u8>> {
        if self.spec.role == Role::Utility {
            return Ok(None);
        }
        let free = (0..ports).find(|port| !disks.iter().any(|disk| disk.port == Some(*port)));
        match free {
            Some(port) => Ok(Some(port)),
            None => {
                Err(Error::new(ErrorKind::NoResources, format!("domain {} has {ports} disks", self.spec.id)))
            }
        }
    }
}

/// What is not durable of a domain.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Held by a verb that changes the domain.
    pub(super) verb: Mutex<()>,
    /// Whether a process is being started. Held while the process is looked for: the look takes the lock that
    /// tells of the process, and must not take it from one that is starting.
    pub(super) starting: Mutex<bool>,
    pub(super) monitor: Mutex<Option<Qmp>>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    slot: Arc<Slot>,
}

/// All domains. What is in it is what is in the folder.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: BTreeMap<Id, Entry>,
}

impl Table {
    /// Reads all definitions; the folder of a domain that has none was not finished, or is on its way out.
    pub(super) fn load(folder: &Folder) -> Result<Self> {
        let mut table = Self::default();
        let domains = folder.domains();
        for entry in fs::read_dir(&domains).map_err(|error| failed("reading", &domains, &error))? {
            let entry = entry.map_err(|error| failed("reading", &domains, &error))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<Id>().ok()) else {
                continue;
            };
            let path = folder.definition(id);
            match fs::metadata(&path).map(|metadata| metadata.len()) {
                Ok(size) if size <= MAX_DEFINITION => {
                    let text = fs::read(&path).map_err(|error| failed("reading", &path, &error))?;
                    let record = serde_json::from_slice(&text);
                    let record = record.map_err(|error| failed("reading", &path, &error.into()))?;
                    table.entries.insert(id, Entry { record, slot: Arc::default() });
                }
                Ok(_) => return Err(failed("reading", &path, &IoErrorKind::FileTooLarge.into())),
                Err(error) if error.kind() == IoErrorKind::NotFound => {
                    let path = folder.domain(id);
                    fs::remove_dir_all(&path).map_err(|error| failed("removing", &path, &error))?;
                }
                Err(error) => return Err(failed("reading", &path, &error)),
            }
        }
        Ok(table)
    }

    pub(super) fn ids(&self) -> Vec<Id> {
        self.entries.keys().copied().collect()
    }

    pub(super) fn find(&self, id: Id) -> Option<(Record, Arc<Slot>)> {
        self.entries.get(&id).map(|entry| (entry.record.clone(), Arc::clone(&entry.slot)))
    }

    pub(super) fn get(&self, id: Id) -> Result<(Record, Arc<Slot>)> {
        self.find(id).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no domain {id}")))
    }

    /// Writes a domain's record down, then has it in the table.
    pub(super) fn put(&mut self, folder: &Folder, record: Record) -> Result<()> {
        let id = record.spec.id;
        let known = self.entries.get_mut(&id);
        if known.as_ref().is_some_and(|entry| entry.record == record) {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&record).expect("a record has string keys alone");
        write_private(&folder.definition(id), &text)?;
        match known {
            Some(entry) => entry.record = record,
            None => {
                self.entries.insert(id, Entry { record, slot: Arc::default() });
            }
        }
        Ok(())
    }

    /// Changes a record; a domain that is gone has none.
    pub(super) fn change(&mut self, folder: &Folder, id: Id, change: impl FnOnce(&mut Record)) -> Result<()> {
        let (mut record, _) = self.get(id)?;
        change(&mut record);
        self.put(folder, record)
    }

    /// Takes the utility VM's configuration out of a definition and writes it into the file that QEMU reads.
    pub(super) fn keep_config(folder: &Folder, spec: &DomainSpec) -> Result<DomainSpec> {
        let mut spec = spec.clone();
        if let Boot::Kernel { config, .. } = &mut spec.boot {
            write_private(&folder.config(spec.id), config.as_bytes())?;
            config.clear();
        }
        Ok(spec)
    }

    /// Forgets a domain: it is gone once its definition is.
    pub(super) fn forget(&mut self, folder: &Folder, id: Id) -> Result<()> {
        remove(&folder.definition(id))?;
        self.entries.remove(&id);
        let path = folder.domain(id);
        fs::remove_dir_all(&path).map_err(|error| failed("removing", &path, &error))?;
        sync_folder(&folder.domains())
    }

    /// Domains that have the volume, and whether read-only.
    pub(super) fn users(&self, volume: Id) -> impl Iterator<Item = (Id, bool)> {
        self.entries.iter().flat_map(move |(id, entry)| {
            let of_volume = entry.record.all_disks().filter(move |disk| disk.volume == volume);
            of_volume.map(|disk| (*id, disk.read_only))
        })
    }
}
