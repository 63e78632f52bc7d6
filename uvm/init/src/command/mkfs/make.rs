//! The file system itself, written.

use std::error::Error as StdError;

use uuid::Uuid;
use uvm_disk::ext4::{Ext4Builder, Ext4Options, Features, Inodes, Journal, Variant};
use uvm_disk::fat::{FatBuilder, FatOptions};
use uvm_disk::{Device, ntfs, swap};

use super::arguments::{ExtArguments, FatArguments, Kind, NtfsArguments, SwapArguments};
use crate::adapter::builder::Volume;
use crate::adapter::fill::{Source, fill};
use crate::adapter::host::Target;
use crate::command::size::shown;
use crate::image::Archive;
use crate::job::derive;

type Made = Result<String, Box<dyn StdError + Send + Sync>>;

/// Makes it on all of the device; what was made, for people.
pub(super) fn make(kind: &Kind, target: &Target, clock: u64, archives: Vec<Archive>) -> Made {
    match kind {
        Kind::Ext4(arguments) => ext(Variant::Ext4, arguments, &target.device, clock, archives),
        Kind::Ext3(arguments) => ext(Variant::Ext3, arguments, &target.device, clock, archives),
        Kind::Ext2(arguments) => ext(Variant::Ext2, arguments, &target.device, clock, archives),
        Kind::Fat(arguments) => fat(arguments, target, clock, archives),
        Kind::Ntfs(arguments) => ntfs_volume(arguments, target, clock),
        Kind::Swap(arguments) => swap_area(arguments, &target.device),
    }
}

fn ext(
    variant: Variant,
    arguments: &ExtArguments,
    device: &Device,
    clock: u64,
    archives: Vec<Archive>,
) -> Made {
    let uuid = arguments.uuid.unwrap_or_else(Uuid::new_v4);
    let hash_seed = derive(&uuid.to_string(), "hash-seed");
    let usual = Ext4Options::new(variant, *uuid.as_bytes(), *hash_seed.as_bytes(), clock);
    let options = Ext4Options {
        block_size: arguments.block_size,
        label: arguments.label.clone(),
        inode_size: arguments.inode_size,
        inodes: match (arguments.inodes, arguments.inode_ratio) {
            (Some(count), _) => Inodes::Count(count),
            (None, Some(ratio)) => Inodes::Ratio(ratio),
            (None, None) => Inodes::Automatic,
        },
        reserved_percent: arguments.reserved_percent,
        journal: if arguments.no_journal { Journal::None } else { usual.journal },
        // There is no room for more in the smallest.
        features: Features {
            extra_isize: usual.features.extra_isize && arguments.inode_size > 128,
            ..usual.features
        },
        ..usual
    };
    let filled = filled(Ext4Builder::new(Device::clone(device), options)?.into(), clock, archives)?;
    let name = match variant {
        Variant::Ext2 => "ext2",
        Variant::Ext3 => "ext3",
        Variant::Ext4 => "ext4",
    };
    Ok(format!("{name} {uuid}, {}{filled}", shown(device.geometry().size)))
}

/// Fills and finishes it; how many entries there were, for people.
fn filled(volume: Volume, clock: u64, mut archives: Vec<Archive>) -> Made {
    let mut sources: Vec<Source<'_>> = archives
        .iter_mut()
        .map(|archive| Source { name: archive.path().display().to_string(), reader: archive })
        .collect();
    let entries = fill(volume, clock, &mut sources)?;
    Ok(if archives.is_empty() { String::new() } else { format!(", {entries} entries") })
}

fn fat(arguments: &FatArguments, target: &Target, clock: u64, archives: Vec<Archive>) -> Made {
    let device = &target.device;
    let volume_id = arguments.uuid.unwrap_or_else(rand::random);
    let options = FatOptions {
        label: arguments.label.clone(),
        volume_id,
        fat_type: arguments.fat_type,
        cluster_size: arguments.cluster_size,
        hidden_sectors: target.hidden_blocks,
        timestamp: clock,
        ..FatOptions::default()
    };
    let filled = filled(FatBuilder::new(Device::clone(device), options)?.into(), clock, archives)?;
    let (high, low) = (volume_id >> 16, volume_id & 0xffff);
    Ok(format!("vfat {high:04X}-{low:04X}, {}{filled}", shown(device.geometry().size)))
}

fn ntfs_volume(arguments: &NtfsArguments, target: &Target, clock: u64) -> Made {
    let serial = arguments.uuid.unwrap_or_else(rand::random);
    let options = ntfs::NtfsOptions {
        cluster_size: arguments.cluster_size,
        label: arguments.label.clone(),
        serial,
        timestamp: clock,
        hidden_sectors: target.hidden_blocks,
    };
    ntfs::format(&*target.device, &options)?;
    Ok(format!("ntfs {serial:016X}, {}", shown(target.device.geometry().size)))
}

fn swap_area(arguments: &SwapArguments, device: &Device) -> Made {
    let uuid = arguments.uuid.unwrap_or_else(Uuid::new_v4);
    swap::write_swap_header(&**device, uuid, &arguments.label, arguments.page_size)?;
    Ok(format!("swap {uuid}, {}", shown(device.geometry().size)))
}
