//! What a resize would do, and doing it.

use super::descriptor::Field;
use super::features::{BIT64, RESIZE_INODE};
use super::superblock::Geometry;
use super::volume::Volume;
use crate::ext4::bytes::crc;
use crate::{BlockDevice, Error, ErrorKind, Result};

/// A last group smaller than this beside its own metadata is left out, as mke2fs does.
const LAST_GROUP_MINIMUM: u64 = 50;
/// Blocks that 32 bits number: 16 TiB in blocks of 4 KiB. Only with the feature 64bit the superblock can count all.
const MAX_BLOCKS: u64 = 1 << 32;

/// What a resize does. Pure reading made it; it fits the file system it was made of, as that was then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizePlan {
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes the file system spans now.
    pub old_size: u64,
    /// Bytes it spans afterwards: what was asked for, less what is no whole block or too little for a group.
    pub new_size: u64,
    /// The fewest bytes it can be shrunk to, with a margin for maps that become longer.
    pub minimum_size: u64,
    /// Blocks to move out of what is cut off.
    pub blocks_to_move: u64,
    /// Inodes that get another number.
    pub inodes_to_move: u64,
    /// About how many bytes are written, journal and copies included.
    pub bytes_to_write: u64,
    /// The journal is replayed first.
    pub recovers: bool,
    pub(super) blocks: u64,
    /// Of the superblock the plan was made of.
    pub(super) fingerprint: u32,
}

/// Plans a resize to `new_size` bytes, reading only.
///
/// [`ErrorKind::NotFound`] where there is no file system, [`ErrorKind::Unsupported`] with a feature or a state that a
/// resize would damage, [`ErrorKind::NoSpace`] where it does not fit, with the numbers.
pub fn plan_resize(device: &dyn BlockDevice, new_size: u64) -> Result<ResizePlan> {
    let volume = Volume::open(device)?;
    check(&volume)?;
    let geometry = volume.geometry;
    let blocks = usable_blocks(&geometry, new_size / u64::from(geometry.block_size))?;
    let growth = blocks.saturating_sub(geometry.blocks);
    let mut plan = ResizePlan {
        block_size: geometry.block_size,
        old_size: geometry.offset(geometry.blocks),
        new_size: geometry.offset(blocks),
        minimum_size: geometry.offset(geometry.blocks),
        blocks_to_move: 0,
        inodes_to_move: 0,
        bytes_to_write: 0,
        recovers: volume.superblock.needs_recovery(),
        blocks,
        fingerprint: fingerprint(&volume),
    };
    if growth > 0 {
        check_growth(&volume, blocks)?;
        plan.bytes_to_write = growth_bytes(&volume, blocks)?;
    } else if blocks < geometry.blocks {
        plan_shrink(&volume, blocks, &mut plan)?;
    }
    Ok(plan)
}

/// What is to be moved, and whether it fits.
fn plan_shrink(volume: &Volume<'_>, blocks: u64, plan: &mut ResizePlan) -> Result<()> {
    let geometry = &volume.geometry;
    if volume.journal.is_none() {
        let context = "an ext file system without a journal is not shrunk (tune2fs -j gives it one)";
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let minimum = volume.minimum_blocks()?;
    plan.minimum_size = geometry.offset(minimum);
    if blocks < minimum {
        let context = format!(
            "the ext file system needs {} bytes; {} were to be its size",
            plan.minimum_size, plan.new_size
        );
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    let new = volume.shrunk(blocks)?;
    check_cut(volume, &new)?;
    let survey = volume.survey(&new)?;
    plan.blocks_to_move = survey.blocks + survey.metadata + survey.journal;
    plan.inodes_to_move = survey.inodes;
    let overhead = u64::from(new.descriptor_blocks()) * (new.superblock_groups().count() as u64 + 2) + 16;
    plan.bytes_to_write =
        geometry.offset(plan.blocks_to_move + 4 * (survey.files + survey.inodes) + overhead);
    Ok(())
}

/// Refuses where the last transaction, which cannot be divided, is more than the journal takes.
fn check_cut(volume: &Volume<'_>, new: &Geometry) -> Result<()> {
    let old = &volume.geometry;
    let bitmaps = (0..new.groups).filter(|g| new.base_metadata(*g).end < old.base_metadata(*g).end).count();
    let descriptors = (bitmaps as u64).min(u64::from(new.descriptor_blocks()));
    // And superblock, end of the last group, resize inode with its list, and what is left of flex groups.
    let needed = bitmaps as u64 + descriptors + new.reserved_descriptors + 16;
    if needed > volume.capacity() {
        let context = format!(
            "cutting the ext file system off changes {needed} blocks at once; its journal takes {}",
            volume.capacity()
        );
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(())
}

/// Carries out a plan; `progress` is told bytes done and to do, about.
///
/// Interrupted anywhere, planning and resizing once more finishes it.
pub fn resize(device: &dyn BlockDevice, plan: &ResizePlan, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    let mut volume = Volume::open(device)?;
    check(&volume)?;
    if fingerprint(&volume) != plan.fingerprint {
        let context = "the ext file system is not the one the plan was made for, or has changed since";
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    if plan.new_size > device.geometry().size {
        let context = format!("{} bytes are more than the device has", plan.new_size);
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    if plan.recovers {
        volume.recover()?;
    }
    let whole = plan.blocks.abs_diff(volume.geometry.blocks).max(1);
    if volume.geometry.blocks != plan.blocks {
        volume.begin()?;
    }
    if volume.geometry.blocks < plan.blocks {
        volume.trim_reserve(plan.blocks)?;
    }
    // Each step adds a group, moves the end or changes to meta block groups.
    while volume.geometry.blocks < plan.blocks {
        volume.grow_step(plan.blocks)?;
        let done = whole - plan.blocks.abs_diff(volume.geometry.blocks);
        progress(plan.bytes_to_write / whole.max(1) * done, plan.bytes_to_write);
    }
    if volume.geometry.blocks > plan.blocks {
        let size = u64::from(volume.geometry.block_size);
        let most = plan.bytes_to_write;
        volume.shrink(plan.blocks, &mut |moved| progress((moved * size).min(most), most))?;
    }
    volume.refresh_copies()?;
    volume.end()?;
    progress(plan.bytes_to_write, plan.bytes_to_write);
    Ok(())
}

/// Refuses what is not in order before anything is written.
fn check(volume: &Volume<'_>) -> Result<()> {
    let superblock = &volume.superblock;
    superblock.features().check_resizable()?;
    if superblock.u32(0x4C) == 0 {
        return Err(refused("an ext file system of revision 0"));
    }
    if !volume.changed_descriptors.is_empty() {
        return Err(refused("an ext file system with broken group descriptors (e2fsck mends them)"));
    }
    // Without a journal, it may be what an interrupted growth left; with one, the log would have had it.
    if volume.is_copy && volume.journal.is_some() {
        return Err(refused("an ext file system with a broken superblock (e2fsck mends it)"));
    }
    let state = superblock.u16(0x3A);
    if state & 0x2 != 0 || volume.journal.as_ref().is_some_and(super::journal::Journal::has_error) {
        return Err(refused("an ext file system with errors (e2fsck mends them)"));
    }
    if state & 0x1 == 0 {
        return Err(refused("an ext file system that was not unmounted (e2fsck mends it)"));
    }
    if let Some(journal) = &volume.journal {
        if journal.start() != 0 && !superblock.needs_recovery() {
            return Err(refused("an ext file system whose journal holds what its superblock denies"));
        }
    } else if superblock.features().compat & super::features::HAS_JOURNAL != 0 {
        return Err(refused("an ext file system whose journal is on another device"));
    } else if superblock.needs_recovery() {
        return Err(refused("an ext file system to be recovered without a journal"));
    }
    Ok(())
}

fn check_growth(volume: &Volume<'_>, blocks: u64) -> Result<()> {
    let geometry = &volume.geometry;
    let wide = volume.superblock.features().incompat & BIT64 != 0;
    let most = MAX_BLOCKS - u64::from(!wide);
    if blocks > most {
        let context = format!("{blocks} blocks are more than the {most} this ext file system grows to here");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let groups = geometry.with_blocks(blocks)?.groups;
    let inodes = u64::from(groups) * u64::from(geometry.inodes_per_group);
    if inodes >= MAX_BLOCKS {
        let context = format!("{groups} groups of {} inodes are more than 2^32", geometry.inodes_per_group);
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(())
}

/// The fewest blocks a last group has.
pub(super) fn least_last_group(geometry: &Geometry) -> u64 {
    let base = geometry.base_metadata(geometry.groups - 1);
    2 + geometry.inode_table_blocks() + (base.end - base.start) + LAST_GROUP_MINIMUM
}

/// The most blocks up to `blocks` whose last group has room for its metadata and some data.
pub(super) fn usable_blocks(geometry: &Geometry, blocks: u64) -> Result<u64> {
    if blocks == geometry.blocks {
        return Ok(blocks);
    }
    let too_small = || Error::new(ErrorKind::NoSpace, format!("{blocks} blocks are no ext file system"));
    let wanted = geometry.with_blocks(blocks.max(geometry.first_data_block + 1))?;
    let last = wanted.group(wanted.groups - 1);
    let same_group = wanted.groups == geometry.groups && blocks > geometry.blocks;
    if last.end - last.start >= least_last_group(&wanted) || same_group {
        return Ok(blocks);
    }
    if wanted.groups == 1 {
        return Err(too_small());
    }
    // Never less than there is because of what is left over.
    Ok(if blocks > geometry.blocks { last.start.max(geometry.blocks) } else { last.start })
}

fn growth_bytes(volume: &Volume<'_>, blocks: u64) -> Result<u64> {
    let (old, new) = (&volume.geometry, volume.geometry.with_blocks(blocks)?);
    let groups = u64::from(new.groups - old.groups);
    let copies = new.superblock_groups().count() as u64;
    let descriptors = u64::from(new.descriptor_blocks()) * (copies + 2);
    let features = volume.superblock.features();
    let lazy = super::superblock::has_descriptor_checksums(features);
    let tables =
        if lazy { groups / u64::from(new.flex) + 1 } else { groups * (2 + new.inode_table_blocks()) };
    let kept = if features.compat & RESIZE_INODE != 0 { 2 * old.reserved_descriptors } else { 0 };
    Ok(new.offset(descriptors + tables + kept + copies + 8))
}

/// A checksum over what a plan depends on.
fn fingerprint(volume: &Volume<'_>) -> u32 {
    let geometry = &volume.geometry;
    (0..geometry.groups).fold(crc(!0, &volume.superblock.0), |seed, group| {
        let descriptor = volume.descriptor(group);
        let free = descriptor.get(Field::FreeBlocks) << 32 | descriptor.get(Field::FreeInodes);
        crc(seed, &free.to_le_bytes())
    })
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} is not resized"))
}
