//! The layout of a job: what becomes of each partition of its disk, and the tables that lead there. The arithmetic and
//! the rules are `uvm_disk::layout`'s; here the words of the wire become its words, and its answers become tables.

mod maker;
mod shown;
mod spec;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use uuid::Uuid;
use uvm_api::{DiskSpec, ErrorCode, FileSystemFormat, FileSystemSpec, PartitionSpec, TableKind};
use uvm_disk::gpt::{self, Guid, PartitionTable, attribute};
use uvm_disk::layout::{Action, Decided, Space, decide};
use uvm_disk::mbr::{Mbr, MbrPartition};
use uvm_disk::probe::{PartitionKind, Probe, ProbedPartition};
use uvm_disk::{ErrorKind, Geometry};

use super::{JobError, format};
use maker::Maker;
pub(crate) use shown::{destroyed, planned};
pub(crate) use spec::format_name;

const MIB: u64 = 1 << 20;
/// An MBR counts blocks with 32 bits.
const MBR_BLOCKS: u64 = 1 << 32;
const MAX_ALIGNMENT_MIB: u64 = 1024;

/// What the partitions are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A machine: it has a root and an EFI system partition.
    Machine,
    /// Whatever the job says.
    Partitions,
}

/// A table of either kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Table {
    Gpt(PartitionTable),
    Mbr(Mbr),
}

/// What a disk holds that is not to be replaced as a whole.
pub(crate) struct Existing {
    pub(crate) probe: Probe,
    /// The table as it is, where there is one.
    pub(crate) table: Option<Table>,
    /// The first and the last MiB are zero.
    pub(crate) blank_edges: bool,
}

/// The layout of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// What the disk will have.
    pub(crate) table: Table,
    /// How it gets there, where a table is edited; the disk is replaced as a whole where none is.
    pub(crate) edit: Option<Edit>,
    /// The partitions it will have.
    pub(crate) placed: Vec<Placed>,
    /// Those that go.
    pub(crate) deleted: Vec<Placed>,
}

/// The tables of an edit in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    /// What the disk has now.
    pub(crate) before: Table,
    /// Without the partitions that are made anew or go: what the disk has while they are written.
    pub(crate) between: Table,
}

impl Layout {
    /// The partitions that are written.
    pub(crate) fn made(&self) -> impl Iterator<Item = &Placed> {
        self.placed.iter().filter(|placed| placed.is_made())
    }

    /// Whether nothing that was there goes away on the way.
    pub(crate) fn is_gentle(&self) -> bool {
        self.edit.as_ref().is_some_and(|edit| edit.before == edit.between)
    }
}

/// A partition and what will be on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) action: Action,
    pub(crate) reason: String,
    pub(crate) number: u32,
    /// Name in a GPT.
    pub(crate) name: String,
    pub(crate) kind: PartitionKind,
    pub(crate) unique_guid: Option<Guid>,
    pub(crate) attributes: u64,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) format: FileSystemFormat,
    pub(crate) label: String,
    pub(crate) uuid: Uuid,
    /// UUID and format of what is there and stays.
    pub(crate) kept: Option<(String, Option<String>)>,
    /// Absolute, without a slash at the end; `/` for the root.
    pub(crate) path: Option<String>,
    pub(crate) options: FileSystemOptions,
}

/// What is chosen of a file system; its own default where it is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileSystemOptions {
    pub(crate) block_size: Option<u32>,
    pub(crate) bytes_per_inode: Option<u32>,
    pub(crate) reserved_percent: Option<u8>,
}

impl Placed {
    /// The UUID as blkid prints it: a FAT volume has only 32 bits.
    pub(crate) fn uuid_text(&self) -> String {
        match (&self.kept, self.format) {
            (Some((_, uuid)), _) => uuid.clone().unwrap_or_default(),
            (None, FileSystemFormat::Vfat) => {
                let id = self.volume_id();
                format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
            }
            (None, FileSystemFormat::Ntfs) => format!("{:016X}", self.ntfs_serial()),
            (None, _) => self.uuid.to_string(),
        }
    }

    /// NTFS's serial number.
    pub(crate) fn ntfs_serial(&self) -> u64 {
        self.uuid.as_u64_pair().0
    }

    /// FAT's volume id.
    pub(crate) fn volume_id(&self) -> u32 {
        self.uuid.as_fields().0
    }

    /// Whether its contents are written.
    pub(crate) fn is_made(&self) -> bool {
        matches!(self.action, Action::Create | Action::Wipe)
    }

    /// Whether it is the EFI system partition of the machine.
    pub(crate) fn is_esp(&self) -> bool {
        self.format == FileSystemFormat::Vfat
            && matches!(self.path.as_deref(), Some("/boot/efi" | "/efi" | "/boot"))
    }
}

fn invalid(detail: String) -> JobError {
    JobError::new(ErrorCode::InvalidRequest, detail)
}

fn conflict(detail: impl Into<String>) -> JobError {
    JobError::new(ErrorCode::DeviceChanged, detail)
}

/// An identity that is the same each time the same job is planned.
pub(crate) fn derive(job_id: &str, purpose: &str) -> Uuid {
    uvm_disk::identity::derive(job_id, purpose)
}

fn default_partitions() -> Vec<PartitionSpec> {
    let partition = |label: &str, size_mib, format, path: Option<&str>| PartitionSpec {
        label: label.to_owned(),
        size_mib,
        filesystem: FileSystemSpec { format, path: path.map(str::to_owned), ..FileSystemSpec::default() },
        ..PartitionSpec::default()
    };
    vec![
        partition("esp", Some(512), FileSystemFormat::Vfat, Some("/boot/efi")),
        partition("swap", Some(512), FileSystemFormat::Swap, None),
        partition("root", None, FileSystemFormat::Ext4, Some("/")),
    ]
}

/// Whether the job edits what the disk has, so that [`lay_out`] needs to know what that is.
pub(crate) fn edits_in_place(spec: &DiskSpec, purpose: Purpose) -> bool {
    !spec.wipe_table.unwrap_or(purpose == Purpose::Machine)
}

/// Decides where everything lies on a device of `geometry`. `existing` is what stands there, where the job edits it.
pub(crate) fn lay_out(
    spec: &DiskSpec,
    purpose: Purpose,
    existing: Option<&Existing>,
    geometry: &Geometry,
    job_id: &str,
) -> Result<Layout, JobError> {
    let defaults;
    let specs = if spec.partitions.is_empty() && purpose == Purpose::Machine {
        defaults = default_partitions();
        &defaults
    } else {
        &spec.partitions
    };
    check_consent(spec, purpose)?;
    spec::check_paths(specs, purpose)?;
    spec::check_block_sizes(specs, geometry.logical_block_size)?;
    let wanted = spec::wanted(specs, spec.table, purpose)?;
    let before = existing.map(|existing| editable(existing, spec.table, geometry)).transpose()?.flatten();
    let found = match (&before, existing) {
        (Some(_), Some(existing)) => existing.probe.partitions.as_slice(),
        _ => &[],
    };
    let fresh = new_table(spec, geometry, job_id)?;
    let blank = before.clone().unwrap_or_else(|| fresh.clone());
    let (space, most) = space(&blank, spec, geometry)?;
    let decided = decide(&space, most, &wanted, found).map_err(refused)?;
    check_logical(&decided, found)?;
    let maker = Maker { spec, specs, found, job_id, before: before.as_ref() };
    let mut used: BTreeSet<Guid> = maker.identities_that_stay(&decided);
    let (mut placed, mut deleted) = (Vec::new(), Vec::new());
    for decided in decided {
        let one = maker.place(&decided, &mut used)?;
        check_format(&one, spec::named(&specs[decided.wanted], decided.wanted), geometry)?;
        if one.action == Action::Delete { deleted.push(one) } else { placed.push(one) }
    }
    let between = without_rewritten(&blank, &placed, &deleted);
    let table = with_placed(&between, &placed, geometry)?;
    validate(&table, geometry)?;
    Ok(Layout { table, edit: before.map(|before| Edit { before, between }), placed, deleted })
}

/// A job that speaks of partitions that are there has to say that there are any.
fn check_consent(spec: &DiskSpec, purpose: Purpose) -> Result<(), JobError> {
    let says = |partition: &PartitionSpec| {
        let PartitionSpec { should_exist, wipe_partition_entry, resize, filesystem, .. } = partition;
        !*should_exist || *wipe_partition_entry || *resize || filesystem.wipe_filesystem
    };
    if purpose == Purpose::Machine
        && spec.wipe_table.is_none()
        && let Some(index) = spec.partitions.iter().position(says)
    {
        return Err(invalid(format!(
            "{} says what happens to one that is there, and wipe_table is missing: say false to keep what the layout \
             does not change, true to replace the whole disk",
            spec::named(&spec.partitions[index], index)
        )));
    }
    Ok(())
}

/// The table that is edited; `None` on a blank disk.
fn editable(existing: &Existing, wanted: TableKind, geometry: &Geometry) -> Result<Option<Table>, JobError> {
    let replace = "say wipe_table: true to replace the whole disk";
    if let (None, Some(file_system)) = (&existing.table, &existing.probe.file_system) {
        let kind = file_system.kind;
        return Err(conflict(format!("the disk holds a {kind} and no partition table; {replace}")));
    }
    let Some(table) = &existing.table else {
        if !existing.probe.problems.is_empty() {
            let problems = existing.probe.problems.join("; ");
            return Err(conflict(format!(
                "the disk's partition table cannot be used: {problems}; {replace}"
            )));
        }
        if !existing.blank_edges {
            let what = "the disk has no partition table, and its first or last MiB holds something unknown";
            return Err(conflict(format!("{what}; {replace}")));
        }
        return Ok(None);
    };
    match (table, wanted) {
        (Table::Gpt(table), TableKind::Gpt) => {
            let mut table = table.clone();
            // A disk that became larger is used whole.
            table.fit(geometry).map_err(refused)?;
            Ok(Some(Table::Gpt(table)))
        }
        (Table::Mbr(_), TableKind::Mbr) => Ok(Some(table.clone())),
        (Table::Gpt(_), TableKind::Mbr) => {
            Err(conflict(format!("the disk has a GPT, the layout wants an MBR; {replace}")))
        }
        (Table::Mbr(_), TableKind::Gpt) => {
            Err(conflict(format!("the disk has an MBR, the layout wants a GPT; {replace}")))
        }
    }
}

fn new_table(spec: &DiskSpec, geometry: &Geometry, job_id: &str) -> Result<Table, JobError> {
    let guid = match &spec.guid {
        None => derive(job_id, "disk"),
        Some(text) => Uuid::parse_str(text)
            .ok()
            .filter(|uuid| !uuid.is_nil())
            .ok_or_else(|| invalid(format!("the disk's guid {text:?} is not a GUID")))?,
    };
    Ok(match spec.table {
        TableKind::Gpt => Table::Gpt(PartitionTable::new(geometry, Guid::from_uuid(guid)).map_err(refused)?),
        TableKind::Mbr => Table::Mbr(Mbr::new(uvm_disk::identity::derive_signature(job_id, "disk"))),
    })
}

/// Where partitions may lie, and the largest number of one.
fn space(table: &Table, spec: &DiskSpec, geometry: &Geometry) -> Result<(Space, u32), JobError> {
    let alignment = spec.alignment_mib.unwrap_or(1);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT_MIB {
        let rule = format!("a power of two from 1 to {MAX_ALIGNMENT_MIB}");
        return Err(invalid(format!("alignment_mib is {alignment}, not {rule}")));
    }
    let block = u64::from(geometry.logical_block_size);
    let (first, end, most) = match table {
        Table::Gpt(table) => {
            (table.first_usable_lba, table.last_usable_lba.saturating_add(1), table.entry_count)
        }
        Table::Mbr(_) => (1, geometry.blocks().min(MBR_BLOCKS), 4),
    };
    let bytes = |blocks: u64| blocks.saturating_mul(block);
    Ok((Space { start: bytes(first), end: bytes(end), alignment: alignment * MIB }, most))
}

/// Logical partitions and the one around them are other records: they stay, or the whole table goes.
fn check_logical(decided: &[Decided], found: &[ProbedPartition]) -> Result<(), JobError> {
    for decided in decided {
        let Some(old) = decided.found.and_then(|at| found.get(at)) else { continue };
        let PartitionKind::Mbr(kind) = old.kind else { continue };
        if (old.number > 4 || matches!(kind, 0x05 | 0x0f | 0x85)) && decided.action != Action::Keep {
            return Err(conflict(format!(
                "partition {} is an extended or a logical one: it can only be kept; say wipe_table: true to replace \
                 the whole disk",
                old.number
            )));
        }
    }
    Ok(())
}

/// A file system that cannot be made on its partition is refused before anything is cleared.
fn check_format(placed: &Placed, name: String, geometry: &Geometry) -> Result<(), JobError> {
    if !placed.is_made() {
        return Ok(());
    }
    format::check(placed, geometry).map_err(|error| {
        let code = match error.code {
            ErrorCode::NoSpace => ErrorCode::DeviceTooSmall,
            code => code,
        };
        JobError { code, detail: format!("{name}: {}", error.detail), ..error }
    })
}

/// What the layers below refuse is refused by the plan.
fn refused(error: uvm_disk::Error) -> JobError {
    let code = match error.kind() {
        ErrorKind::NoSpace => ErrorCode::DeviceTooSmall,
        ErrorKind::Exists => ErrorCode::DeviceChanged,
        _ => ErrorCode::InvalidRequest,
    };
    JobError { code, ..JobError::from_source(&error) }
}

/// The table without what is made anew or goes.
fn without_rewritten(table: &Table, placed: &[Placed], deleted: &[Placed]) -> Table {
    let gone: BTreeSet<u32> =
        placed.iter().filter(|placed| placed.is_made()).chain(deleted).map(|placed| placed.number).collect();
    let mut table = table.clone();
    match &mut table {
        Table::Gpt(table) => table.partitions.retain(|partition| !gone.contains(&partition.number)),
        Table::Mbr(mbr) => mbr.partitions.retain(|partition| !gone.contains(&partition.number)),
    }
    table
}

/// The table with everything that is placed.
fn with_placed(between: &Table, placed: &[Placed], geometry: &Geometry) -> Result<Table, JobError> {
    let block = u64::from(geometry.logical_block_size);
    let mut table = between.clone();
    for placed in placed {
        let (starting_lba, blocks) = (placed.offset / block, placed.size / block);
        match &mut table {
            Table::Gpt(table) => {
                table.partitions.retain(|partition| partition.number != placed.number);
                let PartitionKind::Gpt(type_guid) = placed.kind else { continue };
                table.partitions.push(gpt::Partition {
                    number: placed.number,
                    type_guid,
                    unique_guid: placed.unique_guid.unwrap_or(Guid::UNUSED),
                    starting_lba,
                    ending_lba: starting_lba.saturating_add(blocks).saturating_sub(1),
                    attributes: placed.attributes,
                    name: placed.name.clone(),
                });
            }
            Table::Mbr(mbr) => {
                mbr.partitions.retain(|partition| partition.number != placed.number);
                let PartitionKind::Mbr(kind) = placed.kind else { continue };
                let bootable = placed.attributes & attribute::LEGACY_BIOS_BOOTABLE != 0;
                let record_lba = match between {
                    Table::Mbr(old) => old.partition(placed.number).map_or(0, |old| old.record_lba),
                    Table::Gpt(_) => 0,
                };
                mbr.partitions.push(MbrPartition {
                    number: placed.number,
                    kind,
                    bootable,
                    starting_lba,
                    blocks,
                    record_lba,
                });
            }
        }
    }
    match &mut table {
        Table::Gpt(table) => table.partitions.sort_by_key(|partition| partition.number),
        Table::Mbr(mbr) => mbr.partitions.sort_by_key(|partition| partition.number),
    }
    Ok(table)
}

fn validate(table: &Table, geometry: &Geometry) -> Result<(), JobError> {
    let checked = match table {
        Table::Gpt(table) => table.validate(geometry),
        Table::Mbr(mbr) => mbr.validate(geometry),
    };
    checked.map_err(|error| JobError { code: ErrorCode::InvalidRequest, ..JobError::from_source(&error) })
}
