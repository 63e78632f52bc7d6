//! A decision becomes a partition, with the identities that it keeps or gets.

use std::collections::BTreeSet;

use uuid::Uuid;
use uvm_api::{DiskSpec, FileSystemFormat, PartitionSpec, TableKind};
use uvm_disk::gpt::{Guid, attribute};
use uvm_disk::layout::{Action, Decided};
use uvm_disk::probe::{PartitionKind, ProbedPartition};

use super::{FileSystemOptions, Placed, Purpose, Table, derive, format_name, invalid, spec};
use crate::job::JobError;

/// What makes a partition of a decision.
pub(super) struct Maker<'m> {
    pub(super) spec: &'m DiskSpec,
    pub(super) specs: &'m [PartitionSpec],
    pub(super) found: &'m [ProbedPartition],
    pub(super) job_id: &'m str,
    pub(super) before: Option<&'m Table>,
}

impl Maker<'_> {
    pub(super) fn identities_that_stay(&self, decided: &[Decided]) -> BTreeSet<Guid> {
        let stays = decided.iter().filter(|decided| decided.entry_stays);
        stays.filter_map(|decided| self.found.get(decided.found?)?.unique_guid).collect()
    }

    pub(super) fn place(&self, decided: &Decided, used: &mut BTreeSet<Guid>) -> Result<Placed, JobError> {
        let spec = &self.specs[decided.wanted];
        let old = decided.found.and_then(|at| self.found.get(at));
        let keeps_entry = decided.entry_stays || decided.action == Action::Delete;
        let old_entry = old.filter(|_| keeps_entry);
        let made = matches!(decided.action, Action::Create | Action::Wipe);
        let filesystem = &spec.filesystem;
        let mut reason = decided.reason.clone();
        let attributes = self.attributes(spec, decided, old_entry.is_some(), &mut reason)?;
        let default_kind = spec::default_kind(spec, self.spec.table);
        let said_kind = || -> Result<PartitionKind, JobError> {
            let wanted = spec::wanted(std::slice::from_ref(spec), self.spec.table, Purpose::Partitions)?;
            Ok(wanted.into_iter().next().and_then(|wanted| wanted.kind).unwrap_or(default_kind))
        };
        Ok(Placed {
            action: decided.action,
            reason,
            number: decided.number,
            name: match old_entry {
                Some(old) => self.old_name(old.number),
                None => spec.label.clone(),
            },
            kind: old_entry.map_or_else(said_kind, |old| Ok(old.kind))?,
            unique_guid: match old_entry {
                Some(old) => old.unique_guid,
                None => self.unique_guid(spec, decided, used)?,
            },
            attributes,
            offset: decided.offset,
            size: decided.size,
            format: filesystem.format,
            label: if made { spec::file_system_label(spec)? } else { String::new() },
            uuid: self.uuid(spec, decided)?,
            kept: old.filter(|_| !made).and_then(|old| {
                let found = old.file_system.as_ref()?;
                Some((found.kind.to_owned(), found.uuid.clone()))
            }),
            path: filesystem.path.clone(),
            options: FileSystemOptions {
                block_size: filesystem.block_size_bytes,
                bytes_per_inode: filesystem.bytes_per_inode,
                reserved_percent: filesystem.reserved_percent,
            },
        })
    }

    /// As it is in the table, where the probe has made it fit to print.
    fn old_name(&self, number: u32) -> String {
        let Some(Table::Gpt(table)) = self.before else { return String::new() };
        table.partition(number).map(|partition| partition.name.clone()).unwrap_or_default()
    }

    fn old_attributes(&self, number: u32) -> u64 {
        match self.before {
            Some(Table::Gpt(table)) => table.partition(number).map_or(0, |partition| partition.attributes),
            Some(Table::Mbr(mbr)) => match mbr.partition(number) {
                Ok(partition) if partition.bootable => attribute::LEGACY_BIOS_BOOTABLE,
                _ => 0,
            },
            None => 0,
        }
    }

    fn attributes(
        &self,
        spec: &PartitionSpec,
        decided: &Decided,
        keeps_entry: bool,
        reason: &mut String,
    ) -> Result<u64, JobError> {
        let mut bits = 0;
        for name in &spec.attributes {
            let bit = attribute::by_name(name)
                .filter(|bit| self.spec.table == TableKind::Gpt || *bit == attribute::LEGACY_BIOS_BOOTABLE);
            let name_of = spec::named(spec, decided.wanted);
            bits |= bit
                .ok_or_else(|| invalid(format!("{name_of}: there is no attribute {name:?} in this table")))?;
        }
        if !keeps_entry {
            return Ok(bits);
        }
        let old = self.old_attributes(decided.number);
        // What has no name stays: boot loaders count their tries there.
        let new = if spec.attributes.is_empty() { old } else { bits | (old & !attribute::NAMED) };
        if new != old {
            let names = |bits| match attribute::names_of(bits).join(", ") {
                none if none.is_empty() => "none".to_owned(),
                names => names,
            };
            reason.push_str(&format!("; its attributes become {} instead of {}", names(new), names(old)));
        }
        Ok(new)
    }

    fn unique_guid(
        &self,
        spec: &PartitionSpec,
        decided: &Decided,
        used: &mut BTreeSet<Guid>,
    ) -> Result<Option<Guid>, JobError> {
        if self.spec.table == TableKind::Mbr {
            return Ok(None);
        }
        let name = spec::named(spec, decided.wanted);
        if let Some(text) = &spec.guid {
            let guid = Uuid::parse_str(text).map(Guid::from_uuid);
            let guid = guid.map_err(|_| invalid(format!("{name}: guid {text:?} is not a GUID")))?;
            if !used.insert(guid) {
                return Err(invalid(format!("{name}: another partition has the guid {text:?}")));
            }
            return Ok(Some(guid));
        }
        // The same job may have made a partition that stays, with the number that this one gets.
        let mut purpose = format!("partition/{}", decided.number);
        loop {
            let guid = Guid::from_uuid(derive(self.job_id, &purpose));
            if used.insert(guid) {
                return Ok(Some(guid));
            }
            purpose.push_str("/again");
        }
    }

    fn uuid(&self, spec: &PartitionSpec, decided: &Decided) -> Result<Uuid, JobError> {
        let name = spec::named(spec, decided.wanted);
        match (&spec.filesystem.uuid, spec.filesystem.format) {
            (None, _) => Ok(derive(self.job_id, &format!("filesystem/{}", decided.number))),
            (Some(_), format @ (FileSystemFormat::Vfat | FileSystemFormat::Ntfs)) => Err(invalid(format!(
                "{name}: a {} has no UUID; leave `uuid` out, its volume id derives from the job's id",
                format_name(format)
            ))),
            (Some(text), _) => {
                Uuid::parse_str(text).map_err(|_| invalid(format!("{name}: {text:?} is not a UUID")))
            }
        }
    }
}
