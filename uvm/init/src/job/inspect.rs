//! `inspect`: what is on a device. Hostile bytes may be there; what cannot be read is a note.

use std::sync::Arc;

use uvm_api::{Device, FileSystem, JobResult, Partition, PartitionTable};
use uvm_disk::probe::{PartitionKind, Probe, ProbedPartition, TableKind, probe, read_os_release};
use uvm_disk::{BlockDevice, Slice, gpt, mbr};
use uvm_sys::OpenMode;

use super::context::Context;
use super::layout::{Existing, Layout, Table};
use super::{JobError, table};
use crate::adapter::block::ReadOnlyDevice;
use crate::inventory::{self, Attached};

/// Carries it out.
pub(super) fn execute(context: &Context<'_>) -> Result<JobResult, JobError> {
    let device = context.step("inspect", || look(&context.check_identity()?))?;
    Ok(JobResult::Inspect { device: Box::new(device) })
}

/// A device without its contents.
pub(crate) fn describe(attached: &Attached) -> Device {
    Device {
        serial: attached.serial.clone(),
        node: attached.node.display().to_string(),
        size_bytes: attached.size_bytes,
        logical_block_size: attached.logical_block_size,
        physical_block_size: attached.physical_block_size,
        read_only: attached.read_only,
        held_by: None,
        table: None,
        filesystem: None,
        os_release: None,
        notes: Vec::new(),
    }
}

/// A device with its contents; what could not be read is in the notes.
pub(crate) fn observe(attached: &Attached) -> Device {
    look(attached).unwrap_or_else(|error| {
        let reason = std::iter::once(error.detail).chain(error.causes).collect::<Vec<_>>().join(": ");
        Device { notes: vec![format!("the contents cannot be read: {reason}")], ..describe(attached) }
    })
}

/// What a job finds that edits a disk in place.
pub(crate) fn existing(attached: &Attached) -> Result<Existing, JobError> {
    let device: uvm_disk::Device = Arc::new(ReadOnlyDevice(inventory::open(attached, OpenMode::ReadOnly)?));
    let mut found = probe(&*device)?;
    let table = match found.table {
        TableKind::None => None,
        TableKind::Gpt => Some(Table::Gpt(gpt::read(&*device)?.table)),
        TableKind::Mbr => mbr::read(&*device)?.map(Table::Mbr),
    };
    let table = match table {
        Some(Table::Mbr(mbr)) if mbr.is_protective() => {
            found.problems.push("the MBR protects a GPT that is not there".to_owned());
            None
        }
        table => table,
    };
    Ok(Existing { probe: found, table, blank_edges: has_blank_edges(attached)? })
}

/// Whether the edits of a layout can be made on the tables that are there.
pub(super) fn rehearse(attached: &Attached, layout: &Layout) -> Result<(), JobError> {
    let device: uvm_disk::Device = Arc::new(ReadOnlyDevice(inventory::open(attached, OpenMode::ReadOnly)?));
    table::rehearse(&device, layout)
}

/// Whether the first and the last MiB are zero: there is more that marks a disk as used than probing knows.
pub(crate) fn has_blank_edges(attached: &Attached) -> Result<bool, JobError> {
    let block = inventory::open(attached, OpenMode::ReadOnly)?;
    let len = gpt::ALIGNMENT.min(block.size());
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    for offset in [0, block.size() - len] {
        let read = block.read_at(offset, &mut bytes);
        read.map_err(|error| uvm_disk::Error::io("looking whether the device is blank", offset, error))?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn look(attached: &Attached) -> Result<Device, JobError> {
    let device: uvm_disk::Device = Arc::new(ReadOnlyDevice(inventory::open(attached, OpenMode::ReadOnly)?));
    let found = probe(&*device)?;
    let os_release = find_os_release(&device, &found);
    let block = u64::from(attached.logical_block_size.max(1));
    let kind = match found.table {
        TableKind::None => None,
        TableKind::Gpt => Some("gpt"),
        TableKind::Mbr => Some("mbr"),
    };
    Ok(Device {
        table: kind.map(|kind| PartitionTable {
            kind: kind.to_owned(),
            disk_guid: found.disk_guid.map(|guid| guid.to_string()),
            partitions: found.partitions.iter().map(|partition| wire_partition(partition, block)).collect(),
        }),
        filesystem: found.file_system.as_ref().map(wire_file_system),
        os_release,
        notes: found.problems,
        ..describe(attached)
    })
}

/// The first file system with an `os-release` names the machine.
fn find_os_release(device: &uvm_disk::Device, found: &Probe) -> Option<String> {
    let is_ext = |kind: &str| kind.starts_with("ext");
    if found.file_system.as_ref().is_some_and(|whole| is_ext(whole.kind)) {
        return read_os_release(Arc::clone(device)).and_then(|release| release.pretty_name);
    }
    found
        .partitions
        .iter()
        .filter(|partition| partition.file_system.as_ref().is_some_and(|found| is_ext(found.kind)))
        .find_map(|partition| {
            let slice = Slice::new(Arc::clone(device), partition.offset, partition.size)?;
            let slice: Arc<dyn BlockDevice> = Arc::new(slice);
            read_os_release(slice)?.pretty_name
        })
}

fn wire_partition(partition: &ProbedPartition, block: u64) -> Partition {
    Partition {
        number: partition.number,
        label: partition.name.clone().filter(|name| !name.is_empty()),
        type_guid: match partition.kind {
            PartitionKind::Gpt(guid) => guid.to_string(),
            PartitionKind::Mbr(kind) => format!("0x{kind:02x}"),
        },
        starting_lba: partition.offset / block,
        ending_lba: (partition.offset.saturating_add(partition.size) / block).saturating_sub(1),
        size_bytes: partition.size,
        filesystem: partition.file_system.as_ref().map(wire_file_system),
    }
}

fn wire_file_system(found: &uvm_disk::probe::FileSystem) -> FileSystem {
    FileSystem {
        format: found.kind.to_string(),
        label: found.label.clone().filter(|label| !label.is_empty()),
        uuid: found.uuid.clone(),
        size_bytes: found.size,
        used_bytes: found.used,
    }
}
