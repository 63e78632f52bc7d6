//! The file system itself, written.

use std::error::Error as StdError;

use uuid::Uuid;
use uvm_disk::ext4::{Ext4Builder, Ext4Options, Inodes, Journal, Variant};
use uvm_disk::fat::{FatBuilder, FatOptions};
use uvm_disk::{Device, swap};

use super::arguments::{ExtArguments, FatArguments, Kind, SwapArguments};
use crate::adapter::builder::Volume;
use crate::adapter::fill::{Source, fill};
use crate::command::size::shown;
use crate::image::Archive;
use crate::job::derive;

type Made = Result<String, Box<dyn StdError + Send + Sync>>;

/// Makes it on all of the device; what was made, for people.
pub(super) fn make(kind: &Kind, device: &Device, clock: u64, archives: Vec<Archive>) -> Made {
    match kind {
        Kind::Ext4(arguments) => ext(arguments, device, clock, archives),
        Kind::Fat(arguments) => fat(arguments, device, clock, archives),
        Kind::Swap(arguments) => swap_area(arguments, device),
    }
}

fn ext(arguments: &ExtArguments, device: &Device, clock: u64, archives: Vec<Archive>) -> Made {
    let uuid = arguments.uuid.unwrap_or_else(Uuid::new_v4);
    let hash_seed = derive(&uuid.to_string(), "hash-seed");
    let options = Ext4Options {
        block_size: arguments.block_size.unwrap_or(4096),
        label: arguments.label.clone(),
        inodes: Inodes::Ratio(arguments.inode_ratio),
        reserved_percent: arguments.reserved_percent,
        journal: if arguments.no_journal { Journal::None } else { Journal::Automatic },
        ..Ext4Options::new(Variant::Ext4, *uuid.as_bytes(), *hash_seed.as_bytes(), clock)
    };
    let filled = filled(Ext4Builder::new(Device::clone(device), options)?.into(), clock, archives)?;
    Ok(format!("ext4 {uuid}, {}{filled}", shown(device.geometry().size)))
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

fn fat(arguments: &FatArguments, device: &Device, clock: u64, archives: Vec<Archive>) -> Made {
    let volume_id = arguments.uuid.unwrap_or_else(rand::random);
    let options = FatOptions {
        label: arguments.label.clone(),
        volume_id,
        fat_type: arguments.fat_type,
        cluster_size: arguments.cluster_size,
        timestamp: clock,
        ..FatOptions::default()
    };
    let filled = filled(FatBuilder::new(Device::clone(device), options)?.into(), clock, archives)?;
    let (high, low) = (volume_id >> 16, volume_id & 0xffff);
    Ok(format!("vfat {high:04X}-{low:04X}, {}{filled}", shown(device.geometry().size)))
}

fn swap_area(arguments: &SwapArguments, device: &Device) -> Made {
    let uuid = arguments.uuid.unwrap_or_else(Uuid::new_v4);
    swap::write_swap_header(&**device, uuid, &arguments.label, arguments.page_size)?;
    Ok(format!("swap {uuid}, {}", shown(device.geometry().size)))
}
