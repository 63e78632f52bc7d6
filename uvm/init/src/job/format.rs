//! File systems on the partitions of a layout.

use std::sync::Arc;

use uvm_api::{ErrorCode, FileSystemFormat};
use uvm_disk::ext4::{Ext4Builder, Ext4Options, Inodes, Variant};
use uvm_disk::fat::{FatBuilder, FatOptions, FatType};
use uvm_disk::ntfs::{self, NtfsOptions};
use uvm_disk::{Device, Geometry, Slice, swap};

use super::JobError;
use super::draft::Unreachable;
use super::layout::{Placed, derive};

/// Page size of the machines we make; a swap area is counted in it.
const PAGE_SIZE: u32 = 4096;
const EXT4_BLOCK: u32 = 4096;
/// One inode for this many bytes, as mke2fs does.
const INODE_RATIO: u32 = 16384;
const RESERVED_PERCENT: u8 = 5;
/// What every file system and volume manager keeps its first marks in, at both ends.
const MARKS: u64 = 1 << 20;

/// The partition as a device.
pub(super) fn slice(disk: &Device, placed: &Placed) -> Result<Device, JobError> {
    Slice::new(Arc::clone(disk), placed.offset, placed.size)
        .map(|slice| Arc::new(slice) as Device)
        .ok_or_else(|| JobError::new(ErrorCode::DeviceChanged, "a partition is beyond the end of the device"))
}

/// Makes zero where something else could be recognized that was there before.
pub(super) fn clear_marks(disk: &Device, placed: &Placed) -> Result<(), JobError> {
    let device = slice(disk, placed)?;
    let len = MARKS.min(placed.size);
    for offset in [0, placed.size - len] {
        device.write_zeroes(offset, len).map_err(|error| {
            uvm_disk::Error::io("clearing the ends of a partition", placed.offset + offset, error)
        })?;
    }
    Ok(())
}

/// An ext2, ext3 or ext4 under construction.
pub(super) fn ext_builder(
    variant: Variant,
    disk: &Device,
    placed: &Placed,
    clock: u64,
) -> Result<Ext4Builder, JobError> {
    let hash_seed = derive(&placed.uuid.to_string(), "hash-seed");
    let options = Ext4Options {
        block_size: placed.options.block_size.unwrap_or(EXT4_BLOCK),
        label: placed.label.clone(),
        inodes: Inodes::Ratio(placed.options.bytes_per_inode.unwrap_or(INODE_RATIO)),
        reserved_percent: placed.options.reserved_percent.unwrap_or(RESERVED_PERCENT),
        ..Ext4Options::new(variant, *placed.uuid.as_bytes(), *hash_seed.as_bytes(), clock)
    };
    Ok(Ext4Builder::new(slice(disk, placed)?, options)?)
}

/// Which of the three a format is.
pub(super) fn ext_variant(format: FileSystemFormat) -> Option<Variant> {
    match format {
        FileSystemFormat::Ext2 => Some(Variant::Ext2),
        FileSystemFormat::Ext3 => Some(Variant::Ext3),
        FileSystemFormat::Ext4 => Some(Variant::Ext4),
        FileSystemFormat::None | FileSystemFormat::Vfat | FileSystemFormat::Ntfs | FileSystemFormat::Swap => {
            None
        }
    }
}

/// FAT32 wherever the size allows it: what UEFI wants of the system partition of a fixed disk.
pub(super) fn fat_builder(disk: &Device, placed: &Placed, clock: u64) -> Result<FatBuilder, JobError> {
    let block = u64::from(disk.geometry().logical_block_size);
    let options = |fat_type| FatOptions {
        label: placed.label.clone(),
        volume_id: placed.volume_id(),
        hidden_sectors: u32::try_from(placed.offset / block).unwrap_or(0),
        cluster_size: placed.options.block_size,
        timestamp: clock,
        fat_type,
        ..FatOptions::default()
    };
    match FatBuilder::new(slice(disk, placed)?, options(Some(FatType::Fat32))) {
        Err(error) if error.kind() == uvm_disk::ErrorKind::NoSpace => {
            Ok(FatBuilder::new(slice(disk, placed)?, options(None))?)
        }
        made => Ok(made?),
    }
}

/// Refuses what [`make_empty`] or a builder would before it writes anything.
pub(super) fn check(placed: &Placed, geometry: &Geometry) -> Result<(), JobError> {
    let disk: Device = Arc::new(Unreachable(*geometry));
    match make_empty(&disk, placed, 0) {
        Err(error) if error.code != ErrorCode::Io => Err(error),
        _ => Ok(()),
    }
}

/// Makes the file system, with nothing in it.
pub(super) fn make_empty(disk: &Device, placed: &Placed, clock: u64) -> Result<(), JobError> {
    if let Some(variant) = ext_variant(placed.format) {
        ext_builder(variant, disk, placed, clock)?.finish()?;
        return Ok(());
    }
    match placed.format {
        FileSystemFormat::Vfat => {
            fat_builder(disk, placed, clock)?.finish()?;
        }
        FileSystemFormat::Ntfs => {
            let device = slice(disk, placed)?;
            let block = u64::from(disk.geometry().logical_block_size);
            let options = NtfsOptions {
                cluster_size: placed.options.block_size,
                label: placed.label.clone(),
                serial: placed.ntfs_serial(),
                timestamp: clock,
                hidden_sectors: u32::try_from(placed.offset / block).unwrap_or(0),
            };
            ntfs::format(&*device, &options)?;
        }
        FileSystemFormat::Swap => {
            swap::write_swap_header(&*slice(disk, placed)?, placed.uuid, &placed.label, PAGE_SIZE)?;
        }
        // What is left is no file system.
        _ => {}
    }
    Ok(())
}
