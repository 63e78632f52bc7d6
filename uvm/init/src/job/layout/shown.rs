//! A layout as a client sees it.

use std::collections::BTreeSet;

use uvm_api::{Extent, FileSystemFormat, PartitionAction, PlannedPartition};
use uvm_disk::Geometry;
use uvm_disk::layout::Action;
use uvm_disk::probe::PartitionKind;

use super::{Existing, Layout, Placed, format_name};

/// The partitions as a client sees them, by number; those that go come last.
pub(crate) fn planned(layout: &Layout, geometry: &Geometry) -> Vec<PlannedPartition> {
    let block = u64::from(geometry.logical_block_size);
    let mut placed: Vec<&Placed> = layout.placed.iter().collect();
    placed.sort_by_key(|placed| (placed.offset, placed.number));
    let one = |placed: &Placed| PlannedPartition {
        number: placed.number,
        label: placed.name.clone(),
        type_guid: match placed.kind {
            PartitionKind::Gpt(guid) => guid.to_string(),
            PartitionKind::Mbr(kind) => format!("0x{kind:02x}"),
        },
        unique_guid: placed.unique_guid.map(|guid| guid.to_string()).unwrap_or_default(),
        starting_lba: placed.offset / block,
        ending_lba: (placed.offset.saturating_add(placed.size) / block).saturating_sub(1),
        size_bytes: placed.size,
        action: match placed.action {
            Action::Create => PartitionAction::Create,
            Action::Keep => PartitionAction::Keep,
            Action::Wipe => PartitionAction::Wipe,
            Action::Resize => PartitionAction::Resize,
            Action::Delete => PartitionAction::Delete,
        },
        reason: placed.reason.clone(),
        format: match (&placed.kept, placed.format) {
            (Some((kind, _)), _) => Some(kind.clone()),
            (None, FileSystemFormat::None) => None,
            (None, format) => placed.is_made().then(|| format_name(format).to_owned()),
        },
        filesystem_uuid: (placed.kept.is_some()
            || (placed.is_made() && placed.format != FileSystemFormat::None))
            .then(|| placed.uuid_text())
            .filter(|uuid| !uuid.is_empty()),
        path: placed.path.clone(),
    };
    placed.into_iter().chain(&layout.deleted).map(one).collect()
}

/// What an edit in place takes away or writes over.
pub(crate) fn destroyed(layout: &Layout, existing: &Existing, geometry: &Geometry) -> Vec<Extent> {
    let block = u64::from(geometry.logical_block_size);
    let extent = |offset: u64, size: u64, contents: String| Extent {
        starting_lba: offset / block,
        ending_lba: (offset.saturating_add(size) / block).saturating_sub(1),
        contents,
    };
    let rewritten: BTreeSet<u32> = layout
        .made()
        .filter(|placed| placed.action == Action::Wipe)
        .chain(&layout.deleted)
        .map(|placed| placed.number)
        .collect();
    let gone = existing.probe.partitions.iter().filter(|old| rewritten.contains(&old.number)).map(|old| {
        let contents = old.file_system.as_ref().map_or("unknown contents".to_owned(), |found| {
            found.label.as_ref().map_or(found.kind.to_owned(), |label| format!("{} {label:?}", found.kind))
        });
        extent(old.offset, old.size, format!("partition {}: {contents}", old.number))
    });
    // One that is made anew may get another place.
    let stood = |placed: &Placed| {
        let mut partitions = existing.probe.partitions.iter();
        partitions
            .any(|old| (old.number, old.offset, old.size) == (placed.number, placed.offset, placed.size))
    };
    let new = layout.made().filter(|placed| placed.action == Action::Create || !stood(placed));
    gone.chain(new.map(|new| extent(new.offset, new.size, "unpartitioned".to_owned()))).collect()
}
