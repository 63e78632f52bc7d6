//! `provision`: from an empty allocation to a bootable machine, the partition table last.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;
use uvm_api::{ErrorCode, FileSystemFormat, JobResult};
use uvm_disk::ext4::{Ext4Builder, Ext4Options, Inodes, Variant};
use uvm_disk::fat::{FatBuilder, FatOptions, FatType};
use uvm_disk::{Device, Recorder, Slice, gpt, swap};
use uvm_guest::boot::{self, BootFiles, Source};
use uvm_guest::customize::{Customization, Identity, customize};
use uvm_guest::{Attributes, GuestPath, GuestTree, Timestamp, create_dir_all, layer};

use super::JobError;
use super::context::Context;
use super::layout::{Placed, derive};
use super::plan::{IMAGE, Provision, hex};
use super::progress::{CLEAR, COMMIT};
use crate::adapter::builder::{BuilderTree, Mounted, Volume};
use crate::image::{Client, Image};

/// Page size of the machines we make; a swap area is counted in it.
const PAGE_SIZE: u32 = 4096;
const EXT4_BLOCK: u32 = 4096;
/// One inode for this many bytes, as mke2fs does.
const INODE_RATIO: u32 = 16384;
const RESERVED_PERCENT: u8 = 5;

/// Carries it out.
pub(super) fn execute(context: &Context<'_>, work: &Provision) -> Result<JobResult, JobError> {
    let clock = now()?;
    let (client, image) = context.step(IMAGE, || fetch_image(context, work))?;
    let target = context.open_target()?;
    context.step(CLEAR, || Ok(gpt::wipe_tables(&*target)?))?;
    let recorder = Arc::new(Recorder::new(Arc::clone(&target)));
    let disk: Device = Arc::clone(&recorder) as Device;

    let (mut tree, entries) = context.step("layers", || {
        let mut tree = format_trees(work, &disk, clock)?;
        let entries = apply_layers(context, work, &client, &image, &mut tree)?;
        Ok((tree, entries))
    })?;
    let (report, files, kernels) = context.step("customize", || {
        let report = customize(&mut tree, &customization(work, clock))?;
        boot::configure_kernel_install(&mut tree, &work.guest.boot, timestamp(clock))?;
        let kernels = boot::find_kernels(&tree)?.into_iter().map(|kernel| kernel.version).collect();
        Ok((report, boot::plan_boot(&tree, &work.guest.boot)?, kernels))
    })?;
    for note in &report.notes {
        context.progress.note(note.clone());
    }
    context.step("boot", || write_boot_files(work, &mut tree, &files, clock))?;
    context.step("metadata", || {
        for volume in tree.into_volumes() {
            volume.finish()?;
        }
        write_swap(work, &disk)
    })?;
    let verified_bytes = context.step("verify", || Ok(recorder.verify(&mut |_| Ok(()))?))?;
    context.step(COMMIT, || {
        gpt::write(&*target, &work.table).map_err(|error| {
            let mut error = JobError::from_source(&error);
            // Half a table may be enough for a firmware: take it away again.
            if let Err(also) = gpt::wipe_tables(&*target) {
                error.causes.push(format!("and the table could not be removed again: {also}"));
            }
            error
        })
    })?;
    context.progress.set_complete();
    Ok(JobResult::Provision {
        manifest_digest: image.manifest_digest.to_string(),
        root_uuid: work.guest.boot.root_uuid.clone(),
        machine_id: hex(&work.guest.machine_id),
        ssh_host_key: report.ssh_host_key,
        kernels,
        entries,
        verified_bytes,
    })
}

pub(super) fn now() -> Result<u64, JobError> {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|since| since.as_secs())
        .map_err(|_| JobError::new(ErrorCode::Internal, "the clock of this node is before 1970; set it"))
}

pub(super) fn timestamp(clock: u64) -> Timestamp {
    Timestamp { seconds: i64::try_from(clock).unwrap_or(i64::MAX), nanoseconds: 0 }
}

fn fetch_image(context: &Context<'_>, work: &Provision) -> Result<(Client, Image), JobError> {
    let mut options = context.options.image.clone();
    options.cancel = context.progress.cancel_flag();
    let client = Client::new(options)?;
    let image = client.resolve(&work.image)?;
    context.progress.note(format!(
        "manifest {}: {} layers, {} bytes compressed",
        image.manifest_digest,
        image.layers.len(),
        image.total_size
    ));
    let room: u64 = placed(work, FileSystemFormat::Ext4).map(|placed| placed.size).sum();
    if image.total_size > room {
        return Err(JobError::new(
            ErrorCode::NoSpace,
            format!(
                "the image has {} bytes compressed, its file systems have {room} in all",
                image.total_size
            ),
        ));
    }
    Ok((client, image))
}

fn placed(work: &Provision, format: FileSystemFormat) -> impl Iterator<Item = &Placed> {
    work.placed.iter().filter(move |placed| placed.format == format)
}

fn slice(disk: &Device, placed: &Placed) -> Result<Device, JobError> {
    Slice::new(Arc::clone(disk), placed.offset, placed.size)
        .map(|slice| Arc::new(slice) as Device)
        .ok_or_else(|| JobError::new(ErrorCode::DeviceChanged, "a partition is beyond the end of the device"))
}

/// Every file system with a mount point becomes a part of the tree; one without is formatted empty at once.
fn format_trees(work: &Provision, disk: &Device, clock: u64) -> Result<BuilderTree, JobError> {
    let mut mounted = Vec::new();
    for placed in &work.placed {
        let volume: Volume = match placed.format {
            FileSystemFormat::Ext4 => format_ext4(placed, disk, clock)?.into(),
            FileSystemFormat::Vfat => format_fat(placed, disk, clock)?.into(),
            FileSystemFormat::Swap => continue,
        };
        match &placed.path {
            Some(path) => mounted.push(Mounted { at: GuestPath::absolute(path)?, volume }),
            None => volume.finish()?,
        }
    }
    Ok(BuilderTree::new(mounted, Attributes::root(0o755, timestamp(clock)))?)
}

fn format_ext4(placed: &Placed, disk: &Device, clock: u64) -> Result<Ext4Builder, JobError> {
    let hash_seed = derive(&placed.uuid.to_string(), "hash-seed");
    let options = Ext4Options {
        block_size: EXT4_BLOCK,
        label: placed.label.clone(),
        inodes: Inodes::Ratio(INODE_RATIO),
        reserved_percent: RESERVED_PERCENT,
        ..Ext4Options::new(Variant::Ext4, *placed.uuid.as_bytes(), *hash_seed.as_bytes(), clock)
    };
    Ok(Ext4Builder::new(slice(disk, placed)?, options)?)
}

/// FAT32 wherever the size allows it: what UEFI wants of the system partition of a fixed disk.
fn format_fat(placed: &Placed, disk: &Device, clock: u64) -> Result<FatBuilder, JobError> {
    let block = u64::from(disk.geometry().logical_block_size);
    let options = |fat_type| FatOptions {
        label: placed.label.clone(),
        volume_id: placed.volume_id(),
        hidden_sectors: u32::try_from(placed.offset / block).unwrap_or(0),
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

fn apply_layers(
    context: &Context<'_>,
    work: &Provision,
    client: &Client,
    image: &Image,
    tree: &mut BuilderTree,
) -> Result<u64, JobError> {
    let room: u64 = placed(work, FileSystemFormat::Ext4).map(|placed| placed.size).sum();
    // The file system says when it is full; holes take no room in it.
    let limits = layer::Limits::default();
    let mut entries = 0;
    for (index, described) in image.layers.iter().enumerate() {
        // Contents, and for every 512 bytes of them at most as much again of headers.
        let mut reader = client.open_layer(&work.image, described, room.saturating_mul(2))?;
        let applied = layer::apply(&mut reader as &mut dyn Read, tree, &limits, &mut |_| {
            if context.progress.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let summary = match applied {
            Ok(summary) => summary,
            Err(error) => return Err(JobError::from_source(&error)),
        };
        reader.finish()?;
        entries += summary.entries;
        context.progress.note(format!(
            "layer {} of {}: {} entries, {} bytes",
            index + 1,
            image.layers.len(),
            summary.entries,
            summary.bytes
        ));
    }
    Ok(entries)
}

fn customization(work: &Provision, clock: u64) -> Customization {
    Customization {
        timestamp: timestamp(clock),
        identity: Some(Identity { machine_id: work.guest.machine_id, ssh_host_key_seed: rand::random() }),
        ..work.guest.customization.clone()
    }
}

/// What boots the guest, onto the EFI system partition.
fn write_boot_files(
    work: &Provision,
    tree: &mut BuilderTree,
    files: &BootFiles,
    clock: u64,
) -> Result<(), JobError> {
    let esp = placed(work, FileSystemFormat::Vfat).find_map(|placed| placed.path.as_deref());
    let esp = GuestPath::absolute(esp.ok_or_else(|| {
        JobError::new(ErrorCode::Internal, "the plan has no EFI system partition with a path")
    })?)?;
    let attributes = Attributes::root(0o755, timestamp(clock));
    for file in &files.files {
        let path = GuestPath::absolute(format!("{esp}/{}", file.esp_path))?;
        if let Some(parent) = path.parent() {
            create_dir_all(tree, &parent, attributes)?;
        }
        match &file.source {
            Source::Bytes(bytes) => tree.write(&path, attributes, file.size, &mut bytes.as_slice())?,
            Source::Guest(from) => tree.copy(from, &path, attributes)?,
        }
    }
    Ok(())
}

fn write_swap(work: &Provision, disk: &Device) -> Result<(), JobError> {
    for placed in placed(work, FileSystemFormat::Swap) {
        let uuid: Uuid = placed.uuid;
        swap::write_swap_header(&*slice(disk, placed)?, uuid, &placed.label, PAGE_SIZE)?;
    }
    Ok(())
}
