//! `provision`: from an empty allocation to a bootable machine, the partition table last.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use uvm_api::{ErrorCode, FileSystemFormat, JobResult};
use uvm_disk::{Device, Recorder};
use uvm_guest::boot::{self, BootFiles, Source};
use uvm_guest::customize::{Customization, Identity, customize};
use uvm_guest::{Attributes, GuestPath, GuestTree, Timestamp, create_dir_all, layer};

use super::context::Context;
use super::layout::Placed;
use super::plan::{IMAGE, Provision, hex};
use super::progress::{CLEAR, COMMIT};
use super::{JobError, format, table};
use crate::adapter::builder::{BuilderTree, Mounted, Volume};
use crate::image::{Client, Image};

/// Carries it out.
pub(super) fn execute(context: &Context<'_>, work: &Provision) -> Result<JobResult, JobError> {
    let clock = now()?;
    let (client, image) = context.step(IMAGE, || fetch_image(context, work))?;
    let target = context.open_target()?;
    context.step(CLEAR, || table::clear(&target, &work.layout))?;
    let recorder = Arc::new(Recorder::new(Arc::clone(&target)));
    let disk: Device = Arc::clone(&recorder) as Device;

    let (mut tree, entries) = context.step("layers", || {
        let mut tree = format_trees(work, &disk, clock)?;
        let entries = apply_layers(context, work, &client, &image, &mut tree)?;
        Ok((tree, entries))
    })?;
    let (report, files, kernels) = context.step("customize", || {
        make_mount_points(work, &mut tree, clock)?;
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
        placed(work, FileSystemFormat::Swap).try_for_each(|placed| format::make_empty(&disk, placed, clock))
    })?;
    let verified_bytes = context.step("verify", || Ok(recorder.verify(&mut |_| Ok(()))?))?;
    context.step(COMMIT, || table::commit(&target, &work.layout))?;
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
    let room = room(work);
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

/// Bytes of the file systems that an image's files go to.
fn room(work: &Provision) -> u64 {
    let ext = work.layout.made().filter(|placed| format::ext_variant(placed.format).is_some());
    ext.map(|placed| placed.size).sum()
}

/// The partitions of that format that are written.
fn placed(work: &Provision, format: FileSystemFormat) -> impl Iterator<Item = &Placed> {
    work.layout.made().filter(move |placed| placed.format == format)
}

/// Every file system with a mount point becomes a part of the tree; one without is formatted empty at once.
fn format_trees(work: &Provision, disk: &Device, clock: u64) -> Result<BuilderTree, JobError> {
    for placed in work.layout.made() {
        format::clear_marks(disk, placed)?;
    }
    let mut mounted = Vec::new();
    for placed in work.layout.made() {
        let volume: Volume = match (format::ext_variant(placed.format), placed.format) {
            (Some(variant), _) => format::ext_builder(variant, disk, placed, clock)?.into(),
            (None, FileSystemFormat::Vfat) => format::fat_builder(disk, placed, clock)?.into(),
            (None, FileSystemFormat::Ntfs) => {
                format::make_empty(disk, placed, clock)?;
                continue;
            }
            (None, _) => continue,
        };
        match &placed.path {
            Some(path) => mounted.push(Mounted { at: GuestPath::absolute(path)?, volume }),
            None => volume.finish()?,
        }
    }
    Ok(BuilderTree::new(mounted, Attributes::root(0o755, timestamp(clock)))?)
}

/// The directories that file systems are mounted on which are no part of the tree: those that stay as they are, and NTFS.
fn make_mount_points(work: &Provision, tree: &mut BuilderTree, clock: u64) -> Result<(), JobError> {
    let outside = |placed: &&Placed| !placed.is_made() || placed.format == FileSystemFormat::Ntfs;
    for placed in work.layout.placed.iter().filter(outside) {
        if let Some(path) = &placed.path {
            create_dir_all(tree, &GuestPath::absolute(path)?, Attributes::root(0o755, timestamp(clock)))?;
        }
    }
    Ok(())
}

fn apply_layers(
    context: &Context<'_>,
    work: &Provision,
    client: &Client,
    image: &Image,
    tree: &mut BuilderTree,
) -> Result<u64, JobError> {
    let room = room(work);
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
    let esp = work.layout.made().find(|placed| placed.is_esp()).and_then(|placed| placed.path.as_deref());
    let esp = esp.ok_or_else(|| {
        JobError::new(ErrorCode::Internal, "the plan has no EFI system partition with a path")
    })?;
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
