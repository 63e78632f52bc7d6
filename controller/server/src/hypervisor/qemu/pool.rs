//! Volumes: sparse raw files. Space is promised when a volume is made, and taken when it is written to.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind as IoErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::files::{Folder, failed, make_whole, remove};
use crate::hypervisor::{Error, ErrorKind, Result, Volume};
use crate::model::Id;

pub(super) const MIB: u64 = 1 << 20;
/// Unit of `st_blocks`.
const BLOCK: u64 = 512;

fn describe(id: Id, metadata: &fs::Metadata) -> Volume {
    // A size that is no number of MiB is nobody's of ours; it is told rounded down.
    Volume { id, size_mib: metadata.len() / MIB, allocated_bytes: metadata.blocks() * BLOCK }
}

pub(super) fn find(folder: &Folder, id: Id) -> Result<Option<Volume>> {
    let path = folder.volume(id);
    match fs::metadata(&path) {
        Ok(metadata) => Ok(Some(describe(id, &metadata))),
        Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("looking at", &path, &error)),
    }
}

pub(super) fn get(folder: &Folder, id: Id) -> Result<Volume> {
    find(folder, id)?.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no volume {id}")))
}

/// All volumes; other files in the pool are left alone and not told.
pub(super) fn list(folder: &Folder) -> Result<Vec<Volume>> {
    let pool = folder.pool();
    let mut volumes = Vec::new();
    for entry in fs::read_dir(&pool).map_err(|error| failed("reading", &pool, &error))? {
        let entry = entry.map_err(|error| failed("reading", &pool, &error))?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_suffix(".raw")?.parse().ok());
        if let Some(id) = id {
            // One that was deleted since is not there.
            volumes.extend(find(folder, id)?);
        }
    }
    volumes.sort_unstable_by_key(|volume| volume.id);
    Ok(volumes)
}

/// Bytes of the pool's file system that are free, and those of it that volumes may take up together.
pub(super) fn space(folder: &Folder, volumes: &[Volume]) -> Result<(u64, u64)> {
    let pool = folder.pool();
    let found = rustix::fs::statvfs(&pool).map_err(|error| failed("looking at", &pool, &error.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let allocated: u64 = volumes.iter().map(|volume| volume.allocated_bytes).sum();
    Ok((free, free.saturating_add(allocated)))
}

/// Whether the pool can promise so much more.
fn promise(folder: &Folder, size_mib: u64) -> Result<()> {
    let volumes = list(folder)?;
    let (_, all) = space(folder, &volumes)?;
    let promised: u64 = volumes.iter().map(|volume| volume.size_mib).sum();
    if promised.checked_add(size_mib).is_none_or(|promised| promised > all / MIB) {
        let message = format!(
            "{size_mib} MiB more do not fit the pool: {promised} of {} MiB are given away",
            all / MIB
        );
        return Err(Error::new(ErrorKind::NoResources, message));
    }
    Ok(())
}

pub(super) fn create(folder: &Folder, id: Id, size_mib: u64) -> Result<Volume> {
    if let Some(volume) = find(folder, id)? {
        if volume.size_mib == size_mib {
            return Ok(volume);
        }
        let message = format!("volume {id} is there with {} MiB", volume.size_mib);
        return Err(Error::new(ErrorKind::WrongState, message));
    }
    if size_mib == 0 {
        return Err(Error::new(ErrorKind::WrongState, format!("volume {id} of no size")));
    }
    promise(folder, size_mib)?;
    // The promise says that it is no more than there is.
    make_whole(&folder.volume(id), |file| file.set_len(size_mib * MIB))?;
    get(folder, id)
}

/// Makes the file larger; a larger one than wanted is an error.
pub(super) fn grow(folder: &Folder, id: Id, size_mib: u64) -> Result<Volume> {
    let volume = get(folder, id)?;
    if size_mib < volume.size_mib {
        let message = format!("volume {id} has {} MiB and does not shrink", volume.size_mib);
        return Err(Error::new(ErrorKind::WrongState, message));
    }
    if size_mib > volume.size_mib {
        promise(folder, size_mib - volume.size_mib)?;
        let path = folder.volume(id);
        let grown = OpenOptions::new().write(true).open(&path).and_then(|file| {
            file.set_len(size_mib * MIB)?;
            file.sync_all()
        });
        grown.map_err(|error| failed("growing", &path, &error))?;
    }
    get(folder, id)
}

pub(super) fn delete(folder: &Folder, id: Id) -> Result<()> {
    remove(&folder.volume(id))
}

/// Cuts a log that a guest fills without end.
pub(super) fn bound_log(path: &Path, most: u64) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > most => {
            // QEMU appends: what comes next begins the file anew.
            let cut = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
            cut.map_err(|error| failed("cutting", path, &error))
        }
        _ => Ok(()),
    }
}
