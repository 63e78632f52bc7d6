//! Edits of a table as a value. Each is whole or an error that leaves the table as it was; no edit moves a partition to
//! another slot, and none touches a partition it was not asked for.

use std::ops::RangeInclusive;

use super::{Guid, MAX_NAME_UNITS, Partition, PartitionTable};
use crate::place::{self, Alignment, Place};
use crate::{Error, ErrorKind, Geometry, Result};

/// A partition to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPartition {
    /// Its slot; the first that is free where none is given.
    pub number: Option<u32>,
    /// Where it begins.
    pub place: Place,
    /// Its size; the whole free extent where none is given.
    pub blocks: Option<u64>,
    /// What it is for: see [`super::partition_type`].
    pub type_guid: Guid,
    /// Its identity.
    pub unique_guid: Guid,
    /// Attribute bits: see [`super::attribute`].
    pub attributes: u64,
    /// Its name.
    pub name: String,
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::Invalid, context)
}

impl PartitionTable {
    /// The partition in that slot.
    pub fn partition(&self, number: u32) -> Result<&Partition> {
        let found = self.partitions.iter().find(|p| p.number == number);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no partition {number}")))
    }

    fn partition_mut(&mut self, number: u32) -> Result<&mut Partition> {
        let found = self.partitions.iter_mut().find(|p| p.number == number);
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no partition {number}")))
    }

    /// The usable blocks that no partition has, ascending.
    pub fn gaps(&self) -> Vec<RangeInclusive<u64>> {
        let taken = self.partitions.iter().map(|p| (p.starting_lba, p.ending_lba));
        place::gaps(self.first_usable_lba..=self.last_usable_lba, taken)
    }

    /// Adds a partition and says its number.
    pub fn add(&mut self, new: NewPartition, alignment: Alignment) -> Result<u32> {
        let used = |number: u32| self.partitions.iter().any(|p| p.number == number);
        let number = match new.number {
            Some(number) if used(number) => {
                return Err(Error::new(ErrorKind::Exists, format!("there is a partition {number} already")));
            }
            Some(number) => number,
            None => (1..=self.entry_count).find(|number| !used(*number)).ok_or_else(|| {
                let context = format!("all {} slots of the table are in use", self.entry_count);
                Error::new(ErrorKind::NoSpace, context)
            })?,
        };
        if let (Place::At(start), Some(blocks)) = (new.place, new.blocks) {
            self.refuse_overlap(number, start, blocks)?;
        }
        let extent = place::choose(&self.gaps(), new.place, new.blocks, alignment)?;
        let partition = Partition {
            number,
            type_guid: new.type_guid,
            unique_guid: new.unique_guid,
            starting_lba: *extent.start(),
            ending_lba: *extent.end(),
            attributes: new.attributes,
            name: new.name,
        };
        let at = self.partitions.partition_point(|p| p.number < number);
        self.edit(|table| {
            table.partitions.insert(at, partition);
            Ok(number)
        })
    }

    /// Takes a partition out; its slot stays free.
    pub fn delete(&mut self, number: u32) -> Result<Partition> {
        let found = self.partitions.iter().position(|p| p.number == number);
        let at = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no partition {number}")))?;
        Ok(self.partitions.remove(at))
    }

    /// How many blocks a partition can have without moving.
    pub fn room(&self, number: u32) -> Result<u64> {
        let start = self.partition(number)?.starting_lba;
        let others = self.partitions.iter().filter(|p| p.number != number);
        let gaps = place::gaps(
            self.first_usable_lba..=self.last_usable_lba,
            others.map(|p| (p.starting_lba, p.ending_lba)),
        );
        let gap = gaps.iter().find(|gap| gap.contains(&start));
        Ok(gap.map_or(0, |gap| (gap.end() - start).saturating_add(1)))
    }

    /// Grows or shrinks a partition; its first block stays.
    pub fn resize(&mut self, number: u32, blocks: u64) -> Result<()> {
        let start = self.partition(number)?.starting_lba;
        if blocks == 0 {
            return Err(invalid(format!("partition {number} of 0 blocks")));
        }
        let room = self.room(number)?;
        if blocks > room {
            self.refuse_overlap(number, start, blocks)?;
            let context = format!("partition {number} cannot have {blocks} blocks: there is room for {room}");
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        self.partition_mut(number)?.ending_lba = start + (blocks - 1);
        Ok(())
    }

    /// Names a partition.
    pub fn set_name(&mut self, number: u32, name: &str) -> Result<()> {
        let units = name.encode_utf16().count();
        if units > MAX_NAME_UNITS || name.contains('\0') {
            return Err(invalid(format!(
                "the name {name:?} of partition {number} has {units} UTF-16 units or holds a NUL: at most \
                 {MAX_NAME_UNITS} are possible"
            )));
        }
        self.partition_mut(number)?.name = name.to_owned();
        Ok(())
    }

    /// Says what a partition is for.
    pub fn set_type(&mut self, number: u32, type_guid: Guid) -> Result<()> {
        if type_guid == Guid::UNUSED {
            return Err(invalid(format!("the type of partition {number} cannot be zero")));
        }
        self.partition_mut(number)?.type_guid = type_guid;
        Ok(())
    }

    /// Sets the bits of `set` and clears those of `clear`; all others stay.
    pub fn set_attributes(&mut self, number: u32, set: u64, clear: u64) -> Result<()> {
        let partition = self.partition_mut(number)?;
        partition.attributes = partition.attributes & !clear | set;
        Ok(())
    }

    /// Makes all of a device usable that became larger, or leaves usable what there will be of it. What does not fit
    /// is refused with the numbers.
    pub fn fit(&mut self, geometry: &Geometry) -> Result<()> {
        let (_, last) = self.widest(geometry)?;
        if let Some(p) = self.partitions.iter().find(|p| p.ending_lba > last) {
            let context = format!(
                "partition {} ({}..={}) does not fit a device of {} blocks: the last usable one is {last}",
                p.number,
                p.starting_lba,
                p.ending_lba,
                geometry.blocks()
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        if last < self.first_usable_lba {
            let context = format!(
                "a device of {} blocks has none from LBA {}",
                geometry.blocks(),
                self.first_usable_lba
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        self.last_usable_lba = last;
        Ok(())
    }

    /// An edit that leaves no trace where it makes the table wrong.
    fn edit<T>(&mut self, change: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let known = self.problems();
        let mut edited = self.clone();
        let value = change(&mut edited)?;
        // Problems that another tool left are not this edit's.
        if let Some(problem) = edited.problems().into_iter().find(|problem| !known.contains(problem)) {
            return Err(invalid(problem));
        }
        *self = edited;
        Ok(value)
    }

    /// Says in numbers what is in the way of `blocks` blocks from `start`.
    fn refuse_overlap(&self, number: u32, start: u64, blocks: u64) -> Result<()> {
        let end = start.saturating_add(blocks.saturating_sub(1));
        let others = self.partitions.iter().filter(|p| p.number != number);
        let mut across = others.filter(|p| p.starting_lba <= end && p.ending_lba >= start);
        let context = if let Some(p) = across.next() {
            format!(
                "partition {number} of {blocks} blocks at LBA {start} ({start}..={end}) overlaps partition {} ({}..={})",
                p.number, p.starting_lba, p.ending_lba
            )
        } else if start < self.first_usable_lba || end > self.last_usable_lba {
            format!(
                "partition {number} of {blocks} blocks at LBA {start} ({start}..={end}) is outside the usable blocks \
                 {}..={}",
                self.first_usable_lba, self.last_usable_lba
            )
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::NoSpace, context))
    }
}
