//! Edits of an MBR as a value. Each is whole or an error that leaves the table as it was.

use std::ops::RangeInclusive;

use super::entry::is_extended;
use super::system_id::PROTECTIVE;
use super::{Mbr, MbrPartition};
use crate::place::{self, Alignment, Place};
use crate::{Error, ErrorKind, Geometry, Result};

/// Where the entry of a new partition goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The first free one of LBA 0.
    Primary,
    /// This one of LBA 0, 1 to 4.
    Number(u32),
    /// The end of the chain of logical partitions.
    Logical,
}

/// A partition to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewMbrPartition {
    /// Where its entry goes.
    pub slot: Slot,
    /// Where it begins.
    pub place: Place,
    /// Its size; the whole free extent where none is given.
    pub blocks: Option<u64>,
    /// What it is for: see [`super::system_id`].
    pub kind: u8,
    /// The active flag.
    pub bootable: bool,
}

/// Logical partitions in a table that we write: libfdisk reads 60 partitions.
const MAX_LOGICAL_WRITTEN: usize = 56;

fn refuse<T>(kind: ErrorKind, context: String) -> Result<T> {
    Err(Error::new(kind, context))
}

impl Mbr {
    /// An empty table.
    pub fn new(disk_signature: u32) -> Self {
        Self { disk_signature, partitions: Vec::new() }
    }

    /// The partition of that number.
    pub fn partition(&self, number: u32) -> Result<&MbrPartition> {
        let found = self.partitions.iter().find(|p| p.number == number);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no partition {number}")))
    }

    /// The extended partition.
    pub fn extended(&self) -> Option<&MbrPartition> {
        self.partitions.iter().find(|p| p.is_extended())
    }

    /// The logical partitions, in the order of their chain.
    pub fn logical(&self) -> impl Iterator<Item = &MbrPartition> {
        self.partitions.iter().filter(|p| p.is_logical())
    }

    /// The blocks that no primary partition has.
    pub fn gaps(&self, geometry: &Geometry) -> Vec<RangeInclusive<u64>> {
        let last = geometry.blocks().saturating_sub(1).min(u64::from(u32::MAX));
        let primary = self.partitions.iter().filter(|p| !p.is_logical());
        place::gaps(1..=last, primary.map(|p| (p.starting_lba, p.ending_lba())))
    }

    /// The blocks of the extended partition that neither a logical partition has nor a record.
    pub fn logical_gaps(&self) -> Result<Vec<RangeInclusive<u64>>> {
        let Some(extended) = self.extended() else {
            return refuse(ErrorKind::NotFound, "there is no extended partition".into());
        };
        Ok(place::gaps(extended.starting_lba..=extended.ending_lba(), self.taken_in(extended, None)))
    }

    /// Blocks in use within the extended partition, but for those of the logical partition `without`.
    fn taken_in(&self, extended: &MbrPartition, without: Option<u32>) -> impl Iterator<Item = (u64, u64)> {
        let first_record = (extended.starting_lba, extended.starting_lba);
        let records = self.logical().map(|p| (p.record_lba, p.record_lba));
        let others = self.logical().filter(move |p| Some(p.number) != without);
        records.chain(others.map(|p| (p.starting_lba, p.ending_lba()))).chain([first_record])
    }

    /// Adds a partition and says its number.
    pub fn add(&mut self, new: NewMbrPartition, geometry: &Geometry, alignment: Alignment) -> Result<u32> {
        if matches!(new.kind, 0 | PROTECTIVE) {
            return refuse(ErrorKind::Invalid, format!("system id {:#04x} for a new partition", new.kind));
        }
        let partition = match new.slot {
            Slot::Logical => self.new_logical(new, alignment)?,
            Slot::Primary | Slot::Number(_) => self.new_primary(new, geometry, alignment)?,
        };
        let number = partition.number;
        let mut edited = self.clone();
        let at = edited.partitions.partition_point(|p| p.number < number);
        edited.partitions.insert(at, partition);
        edited.validate(geometry)?;
        *self = edited;
        Ok(number)
    }

    fn new_primary(
        &self,
        new: NewMbrPartition,
        geometry: &Geometry,
        alignment: Alignment,
    ) -> Result<MbrPartition> {
        let used = |number: u32| self.partitions.iter().any(|p| p.number == number);
        let number = match new.slot {
            Slot::Number(number) if !(1..=4).contains(&number) => {
                return refuse(ErrorKind::Invalid, format!("slot {number} for a primary partition: 1 to 4"));
            }
            Slot::Number(number) if used(number) => {
                return refuse(ErrorKind::Exists, format!("there is a partition {number} already"));
            }
            Slot::Number(number) => number,
            _ => match (1..=4).find(|number| !used(*number)) {
                Some(number) => number,
                None => return refuse(ErrorKind::NoSpace, "all 4 slots of the MBR are in use".into()),
            },
        };
        if let (Place::At(start), Some(blocks)) = (new.place, new.blocks) {
            self.refuse_overlap(number, start, blocks)?;
        }
        let extent = place::choose(&self.gaps(geometry), new.place, new.blocks, alignment)?;
        Ok(MbrPartition {
            number,
            kind: new.kind,
            bootable: new.bootable,
            starting_lba: *extent.start(),
            blocks: extent.end() - extent.start() + 1,
            record_lba: 0,
        })
    }

    /// A logical partition, and its record before it: at the extended partition's start for the first one, else as far
    /// before the partition as the alignment, or as near as its predecessor leaves room.
    fn new_logical(&self, new: NewMbrPartition, alignment: Alignment) -> Result<MbrPartition> {
        let Some(extended) = self.extended() else {
            return refuse(ErrorKind::NotFound, "a logical partition without an extended one".into());
        };
        let count = self.logical().count();
        if count >= MAX_LOGICAL_WRITTEN {
            return refuse(
                ErrorKind::NoSpace,
                format!("all {MAX_LOGICAL_WRITTEN} logical partitions are in use"),
            );
        }
        if is_extended(new.kind) {
            return refuse(ErrorKind::Invalid, "an extended partition within an extended one".into());
        }
        if let (Place::At(start), Some(blocks)) = (new.place, new.blocks) {
            self.refuse_overlap(5 + count as u32, start, blocks)?;
        }
        let gaps = self.logical_gaps()?;
        // The first block of a gap may be needed for the record, unless that is at the extended partition's start.
        let first = count == 0;
        let room: Vec<_> = gaps
            .iter()
            .filter_map(|gap| {
                let start = if first { *gap.start() } else { gap.start() + 1 };
                (start <= *gap.end()).then_some(start..=*gap.end())
            })
            .collect();
        let extent = place::choose(&room, new.place, new.blocks, alignment)?;
        let start = *extent.start();
        let record_lba = if first {
            extended.starting_lba
        } else {
            let gap = gaps.iter().find(|gap| gap.contains(&start)).map_or(start, |gap| *gap.start());
            gap.max(start.saturating_sub(alignment.blocks()))
        };
        Ok(MbrPartition {
            number: 5 + count as u32,
            kind: new.kind,
            bootable: new.bootable,
            starting_lba: start,
            blocks: extent.end() - start + 1,
            record_lba,
        })
    }

    /// Takes a partition out. With the extended one go all logical ones; those behind a logical one get the number
    /// before theirs. Returns what was taken out.
    pub fn delete(&mut self, number: u32) -> Result<Vec<MbrPartition>> {
        let gone = self.partition(number)?.clone();
        let all_logical = gone.is_extended();
        let leaves = |p: &MbrPartition| p.number == number || (all_logical && p.is_logical());
        let (out, mut kept): (Vec<_>, Vec<_>) = self.partitions.drain(..).partition(leaves);
        if gone.is_logical() {
            for p in kept.iter_mut().filter(|p| p.number > number) {
                p.number -= 1;
            }
            // The chain begins at the extended partition's start: the next one moves into that record.
            let start = kept.iter().find(|p| p.is_extended()).map(|p| p.starting_lba);
            if let Some(next) = kept.iter_mut().find(|p| p.number == 5)
                && Some(gone.record_lba) == start
            {
                next.record_lba = gone.record_lba;
            }
        }
        self.partitions = kept;
        Ok(out)
    }

    /// How many blocks a partition can have without moving.
    pub fn room(&self, number: u32, geometry: &Geometry) -> Result<u64> {
        let p = self.partition(number)?;
        let gaps = if p.is_logical() {
            let Some(extended) = self.extended() else { return Ok(0) };
            let within = extended.starting_lba..=extended.ending_lba();
            place::gaps(within, self.taken_in(extended, Some(number)))
        } else {
            let mut others = self.clone();
            others.partitions.retain(|other| other.number != number);
            others.gaps(geometry)
        };
        let gap = gaps.iter().find(|gap| gap.contains(&p.starting_lba));
        Ok(gap.map_or(0, |gap| gap.end() - p.starting_lba + 1))
    }

    /// Grows or shrinks a partition; its first block stays.
    pub fn resize(&mut self, number: u32, blocks: u64, geometry: &Geometry) -> Result<()> {
        let start = self.partition(number)?.starting_lba;
        let room = self.room(number, geometry)?;
        if blocks > room {
            self.refuse_overlap(number, start, blocks)?;
            let context = format!("partition {number} cannot have {blocks} blocks: there is room for {room}");
            return refuse(ErrorKind::NoSpace, context);
        }
        let mut edited = self.clone();
        if let Some(p) = edited.partitions.iter_mut().find(|p| p.number == number) {
            p.blocks = blocks;
        }
        edited.validate(geometry)?;
        *self = edited;
        Ok(())
    }

    /// Says what a partition is for.
    pub fn set_kind(&mut self, number: u32, kind: u8) -> Result<()> {
        let p = self.partition(number)?;
        if matches!(kind, 0 | PROTECTIVE) || is_extended(kind) != p.is_extended() {
            let context = format!("partition {number} of system id {:#04x} cannot get {kind:#04x}", p.kind);
            return refuse(ErrorKind::Invalid, context);
        }
        self.partitions.iter_mut().filter(|p| p.number == number).for_each(|p| p.kind = kind);
        Ok(())
    }

    /// Makes one primary partition the active one, or none.
    pub fn set_active(&mut self, number: Option<u32>) -> Result<()> {
        if let Some(number) = number
            && self.partition(number)?.is_logical()
        {
            return refuse(ErrorKind::Invalid, format!("partition {number} is logical: it cannot be active"));
        }
        for p in self.partitions.iter_mut().filter(|p| !p.is_logical()) {
            p.bootable = Some(p.number) == number;
        }
        Ok(())
    }

    /// Says in numbers what is in the way of `blocks` blocks from `start`.
    fn refuse_overlap(&self, number: u32, start: u64, blocks: u64) -> Result<()> {
        let end = start.saturating_add(blocks.saturating_sub(1));
        let logical = number > 4;
        let others = self.partitions.iter().filter(|p| p.number != number && p.is_logical() == logical);
        let mut across = others.filter(|p| p.starting_lba <= end && p.ending_lba() >= start);
        let Some(p) = across.next() else { return Ok(()) };
        let context = format!(
            "partition {number} of {blocks} blocks at LBA {start} ({start}..={end}) overlaps partition {} ({}..={})",
            p.number,
            p.starting_lba,
            p.ending_lba()
        );
        refuse(ErrorKind::NoSpace, context)
    }
}
