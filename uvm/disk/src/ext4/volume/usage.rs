//! Which blocks of a file system are in use, from its block bitmaps alone.
//!
//! Where the journal has to be replayed, a block counts as used if it is so before the replay or after it: a copy is
//! whole whether its journal is replayed or not.

use std::ops::Range;

use super::bitmap;
use super::descriptor::{Descriptor, Field};
use super::superblock::corrupt;
use super::volume::{BATCH, Volume};
use crate::usage::{Usage, Visit};
use crate::{BlockDevice, Result};

/// Visits the used extents of the ext2, ext3 or ext4 on a device, and says how much there is.
///
/// [`crate::ErrorKind::NotFound`] where there is none, [`crate::ErrorKind::Unsupported`] where a feature or a journal
/// with fast commits hides what is in use.
pub fn used_extents(device: &dyn BlockDevice, visit: &mut Visit<'_>) -> Result<Usage> {
    let after = Volume::open(device)?;
    let geometry = after.geometry;
    let before = if after.source.logged.is_empty() { None } else { Volume::open_unrecovered(device)? };
    let mut extents = Extents { block_size: u64::from(geometry.block_size), run: 0..0, used: 0, visit };
    // What is before the first group is a boot sector's place.
    extents.add(0..geometry.first_data_block)?;
    let mut bitmaps = Bitmaps::new(&after);
    let mut bitmaps_before = before.as_ref().map(Bitmaps::new);
    for group in 0..geometry.groups {
        let mut bits = bitmaps.of(group)?;
        if let (Some(before), Some(bitmaps)) = (&before, &mut bitmaps_before)
            && group < before.geometry.groups
        {
            let more = bitmaps.of(group)?;
            bits.iter_mut().zip(more).for_each(|(bits, more)| *bits |= more);
        }
        let blocks = geometry.group(group);
        let count = (blocks.end - blocks.start).div_ceil(geometry.cluster);
        let mut result = Ok(());
        bitmap::for_each_set(&bits, count, |run| {
            let start = blocks.start + run.start * geometry.cluster;
            let end = (blocks.start + run.end * geometry.cluster).min(blocks.end);
            if result.is_ok() {
                result = extents.add(start..end);
            }
        });
        result?;
    }
    let used = extents.finish()?;
    Ok(Usage {
        format: after.superblock.features().format(),
        block_size: geometry.block_size,
        size: geometry.offset(geometry.blocks),
        used,
    })
}

/// Joins runs of blocks and visits them as bytes.
struct Extents<'e, 'v> {
    block_size: u64,
    run: Range<u64>,
    used: u64,
    visit: &'e mut Visit<'v>,
}

impl Extents<'_, '_> {
    fn add(&mut self, blocks: Range<u64>) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        if self.run.end == blocks.start && !self.run.is_empty() {
            self.run.end = blocks.end;
            return Ok(());
        }
        self.emit()?;
        self.run = blocks;
        Ok(())
    }

    fn emit(&mut self) -> Result<()> {
        if self.run.is_empty() {
            return Ok(());
        }
        let bytes = self.run.start * self.block_size..self.run.end * self.block_size;
        self.used += bytes.end - bytes.start;
        (self.visit)(bytes)
    }

    fn finish(mut self) -> Result<u64> {
        self.emit()?;
        Ok(self.used)
    }
}

/// The block bitmaps of a volume in the order of the groups; those that lie together are read together.
struct Bitmaps<'v, 'd> {
    volume: &'v Volume<'d>,
    /// The block the batch begins with.
    start: u64,
    batch: Vec<u8>,
}

impl<'v, 'd> Bitmaps<'v, 'd> {
    fn new(volume: &'v Volume<'d>) -> Self {
        Self { volume, start: 0, batch: Vec::new() }
    }

    fn of(&mut self, group: u32) -> Result<Vec<u8>> {
        let volume = self.volume;
        let geometry = &volume.geometry;
        let descriptor = volume.descriptor(group);
        let uninitialized =
            volume.is_block_uninit(&descriptor).then(|| bitmap::uninitialized(geometry, &descriptor, group));
        let stale = volume.is_stale(group);
        if let Some(bits) = &uninitialized
            && !stale
        {
            return Ok(bits.clone());
        }
        let place = descriptor.get(Field::BlockBitmap);
        let size = geometry.block_size as usize;
        let held = (self.batch.len() / size) as u64;
        if place < self.start || place >= self.start + held {
            let count = self.together(group, &descriptor);
            self.batch = volume.source.read(place, count, "reading an ext block bitmap")?;
            self.start = place;
        }
        let at = (place - self.start) as usize * size;
        let mut bits = self.batch[at..at + size].to_vec();
        if let Some(base) = uninitialized {
            // It may have been initialized since: what either says is used.
            bits.iter_mut().zip(base).for_each(|(bits, base)| *bits |= base);
            return Ok(bits);
        }
        let summed = &bits[..(geometry.blocks_per_group / geometry.cluster / 8) as usize];
        if !descriptor.bitmap_fits(Field::BlockBitmapChecksum, &volume.superblock, summed) {
            if stale {
                bits.fill(0xFF);
                return Ok(bits);
            }
            let context = format!("the checksum of the block bitmap of group {group} does not fit");
            return Err(corrupt(context).at(geometry.offset(place)));
        }
        Ok(bits)
    }

    /// How many bitmaps of the groups from `group` on lie one behind the other.
    fn together(&self, group: u32, descriptor: &Descriptor) -> u64 {
        let place = descriptor.get(Field::BlockBitmap);
        (1..BATCH)
            .take_while(|n| {
                let next = u64::from(group) + n;
                next < u64::from(self.volume.geometry.groups)
                    && self.volume.descriptor(next as u32).get(Field::BlockBitmap) == place + n
            })
            .count() as u64
            + 1
    }
}
