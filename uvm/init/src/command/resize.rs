//! `uvm resize`: an ext2, ext3 or ext4 becomes larger or smaller.

use std::path::{Path, PathBuf};

use serde::Serialize;
use uvm_disk::ext4::{ResizePlan, plan_resize, resize};
use uvm_disk::probe::{TableKind, probe};
use uvm_disk::{Device, ErrorKind};

use super::DONE;
use super::failure::Failure;
use super::size::{self, shown};
use crate::adapter::host::{Mounted, Target, open_to_read};

/// Logical blocks of a plain file: an ext file system does not ask.
const BLOCK: u32 = 512;

/// `uvm resize` and what follows.
#[derive(clap::Args)]
pub(super) struct ResizeArguments {
    /// Device or file with the file system.
    path: PathBuf,
    /// Bytes, or with K, M, G, T; all of the device where it is missing. A file is made larger, and never cut.
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// Tell what would be done, and write nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON, in bytes.
    #[arg(long)]
    json: bool,
}

/// The document of `--json`.
#[derive(Serialize)]
struct Document<'p> {
    format: &'p str,
    old_size: u64,
    new_size: u64,
    minimum_size: u64,
    blocks_to_move: u64,
    inodes_to_move: u64,
    bytes_to_write: u64,
    /// What a journal holds is carried out first.
    recovers: bool,
    done: bool,
}

/// Resizes; the exit status.
pub(super) fn run(arguments: &ResizeArguments) -> u8 {
    let path = arguments.path.as_path();
    let ended = match Mounted::find(path) {
        Err(error) => Err(Failure::refused(path, error)),
        Ok(Some(mounted)) => grow_mounted(arguments, &mounted),
        Ok(None) if arguments.dry_run => tell(arguments),
        Ok(None) => carry_out(arguments),
    };
    match ended {
        Ok(line) => {
            say!("{line}");
            DONE
        }
        Err(failure) => failure.say(),
    }
}

/// What would be done.
fn tell(arguments: &ResizeArguments) -> Result<String, Failure> {
    let path = arguments.path.as_path();
    let device = open_to_read(path, BLOCK).map_err(|error| Failure::refused(path, error))?;
    check_device(path, device.geometry().size, arguments.size)?;
    let (format, plan) = planned(path, &device, arguments.size)?;
    Ok(shown_plan(arguments, format, &plan, false))
}

fn carry_out(arguments: &ResizeArguments) -> Result<String, Failure> {
    let path = arguments.path.as_path();
    // A file that is to become larger; a smaller file system stays in the file it is in.
    let now = open_to_read(path, BLOCK).map_err(|error| Failure::refused(path, error))?.geometry().size;
    check_device(path, now, arguments.size)?;
    let target = Target::open(path, arguments.size.filter(|size| *size > now), BLOCK)
        .map_err(|error| Failure::refused(path, error))?;
    let (format, plan) = planned(path, &target.device, arguments.size)?;
    let resized = resize(&*target.device, &plan, &mut |_, _| ());
    let resized = resized.and_then(|()| {
        let flushed = target.device.flush();
        flushed.map_err(|error| uvm_disk::Error::io("flushing after the resize", 0, error))
    });
    resized.map_err(|error| {
        let failure = Failure::ended(path, target.is_written(), &error);
        // What was not in order, or found no room, is so the next time too.
        failure.when_written(match error.kind() {
            ErrorKind::Io => "the same command again finishes it",
            ErrorKind::NoSpace => "what was moved so far is whole",
            _ => "e2fsck tells what is wrong",
        })
    })?;
    // Where nothing had to be written, the file keeps its new size all the same.
    target.keep();
    Ok(shown_plan(arguments, format, &plan, true))
}

/// Refuses more than a device has; a file is made larger.
fn check_device(path: &Path, has: u64, wanted: Option<u64>) -> Result<(), Failure> {
    match wanted {
        Some(size) if size > has && !path.is_file() => {
            Err(Failure::refused(path, format!("the device has {has} bytes, {size} do not fit")))
        }
        _ => Ok(()),
    }
}

/// The plan, and what kind of file system it is for.
fn planned(path: &Path, device: &Device, size: Option<u64>) -> Result<(&'static str, ResizePlan), Failure> {
    let found = probe(&**device).map_err(|error| Failure::ended(path, false, &error))?;
    let refused = |reason: &str| Err(Failure::refused(path, reason));
    let format = match (found.file_system.map(|found| found.kind), found.table) {
        (Some(format @ ("ext2" | "ext3" | "ext4")), _) => format,
        (Some("swap"), _) => return refused("a swap area is made anew instead: uvm mkfs swap"),
        (Some(other), _) => return refused(&format!("it holds {other}; ext2, ext3 and ext4 are resized")),
        (None, TableKind::None) => return refused("it holds no file system"),
        (None, _) => return refused("it holds a partition table; a partition's own device is resized"),
    };
    let size = size.unwrap_or(device.geometry().size);
    let plan = plan_resize(&**device, size).map_err(|error| Failure::ended(path, false, &error))?;
    Ok((format, plan))
}

fn grow_mounted(arguments: &ResizeArguments, mounted: &Mounted) -> Result<String, Failure> {
    let path = arguments.path.as_path();
    let device_size = mounted.device.geometry().size;
    let (format, old) = spanned(path, &mounted.device)?;
    let new = match arguments.size {
        Some(size) if size > device_size => {
            let reason = format!("the device has {device_size} bytes, {size} do not fit");
            return Err(Failure::refused(path, reason));
        }
        Some(size) if size < old => {
            let reason = format!("mounted with {old} bytes; it is made smaller where it is not mounted");
            return Err(Failure::refused(path, reason));
        }
        Some(size) => size,
        None => device_size,
    };
    if !arguments.dry_run {
        mounted.grow(new).map_err(|error| Failure::refused(path, error))?;
    }
    let new = if arguments.dry_run { new } else { spanned(path, &mounted.device)?.1 };
    if arguments.json {
        let done = !arguments.dry_run;
        let document = serde_json::json!({"format": format, "old_size": old, "new_size": new, "mounted": true, "done": done});
        return Ok(document.to_string());
    }
    let verb = if arguments.dry_run { "would be grown" } else { "grown" };
    Ok(format!(
        "{format} mounted at {}: {verb} by the kernel from {} to {}",
        mounted.mount_point().display(),
        shown(old),
        shown(new)
    ))
}

/// What a mounted file system is, and the bytes it spans, by its superblock.
fn spanned(path: &Path, device: &Device) -> Result<(&'static str, u64), Failure> {
    let found = probe(&**device).map_err(|error| Failure::ended(path, false, &error))?;
    let spanned = found.file_system.and_then(|found| Some((found.kind, found.size?)));
    spanned.ok_or_else(|| Failure::refused(path, "it is mounted, and its superblock is not to be found"))
}

fn shown_plan(arguments: &ResizeArguments, format: &str, plan: &ResizePlan, done: bool) -> String {
    if arguments.json {
        let document = Document {
            format,
            old_size: plan.old_size,
            new_size: plan.new_size,
            minimum_size: plan.minimum_size,
            blocks_to_move: plan.blocks_to_move,
            inodes_to_move: plan.inodes_to_move,
            bytes_to_write: plan.bytes_to_write,
            recovers: plan.recovers,
            done,
        };
        return serde_json::to_string(&document).expect("numbers and text become JSON");
    }
    let sizes = format!("{format}: from {} to {}", shown(plan.old_size), shown(plan.new_size));
    let recovers = if plan.recovers { ", after what its journal holds" } else { "" };
    let moved = format!("{} blocks and {} inodes moved", plan.blocks_to_move, plan.inodes_to_move);
    if done {
        format!("{sizes}{recovers}, {moved}")
    } else {
        let written = shown(plan.bytes_to_write);
        format!("{sizes}{recovers}, {moved}, about {written} written; at least {}", shown(plan.minimum_size))
    }
}
