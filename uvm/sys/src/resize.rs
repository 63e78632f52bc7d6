//! Growing a mounted ext2, ext3 or ext4 (`EXT4_IOC_RESIZE_FS`): the kernel does it, while files are in use.

use std::fs::{File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};

use crate::{Error, ErrorKind, Result};

// fs/ext4/ext4.h.
const EXT4_IOC_RESIZE_FS: rustix::ioctl::Opcode = opcode::write::<u64>(b'f', 16);
/// A table of mounts longer than this is not read to its end.
const MAX_MOUNTINFO: usize = 16 << 20;
/// `f_type` of all three.
const EXT4_SUPER_MAGIC: u64 = 0xEF53;

/// A mounted ext2, ext3 or ext4. While this is open, it stays mounted.
#[derive(Debug)]
pub struct MountedExt {
    directory: File,
    mount_point: PathBuf,
}

impl MountedExt {
    /// Finds where the block device at `device` is mounted in this process's view; `None` where it is nowhere.
    /// [`ErrorKind::Unsupported`] where it is, but as another file system.
    pub fn find(device: &Path) -> Result<Option<Self>> {
        let context = || format!("finding where {} is mounted", device.display());
        let metadata = std::fs::metadata(device).map_err(|e| Error::io(context(), e))?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let number = metadata.rdev();
        for mount_point in mount_points(number)? {
            let flags = libc::O_DIRECTORY | libc::O_NONBLOCK;
            let Ok(directory) = OpenOptions::new().read(true).custom_flags(flags).open(&mount_point) else {
                continue;
            };
            // Another mount may lie above it.
            if !directory.metadata().is_ok_and(|found| found.dev() == number) {
                continue;
            }
            let statfs = rustix::fs::fstatfs(&directory).map_err(|e| Error::io(context(), e))?;
            if statfs.f_type as u64 != EXT4_SUPER_MAGIC {
                let reason = "mounted, but neither ext2, ext3 nor ext4";
                return Err(Error::new(ErrorKind::Unsupported, context(), reason));
            }
            return Ok(Some(Self { directory, mount_point }));
        }
        Ok(None)
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> Result<u64> {
        let statfs = rustix::fs::fstatfs(&self.directory);
        let statfs =
            statfs.map_err(|e| Error::io(format!("looking at {}", self.mount_point.display()), e))?;
        Ok(statfs.f_bsize as u64)
    }

    /// Grows it to `blocks` blocks. To its own size is no error; to less is [`ErrorKind::Unsupported`], for no
    /// kernel shrinks.
    pub fn grow(&self, blocks: u64) -> Result<()> {
        let context =
            || format!("growing the file system at {} to {blocks} blocks", self.mount_point.display());
        // SAFETY: EXT4_IOC_RESIZE_FS reads one u64 from its argument and writes nothing back; on anything but
        // ext4 it fails with ENOTTY.
        let done = unsafe { ioctl(&self.directory, Setter::<EXT4_IOC_RESIZE_FS, u64>::new(blocks)) };
        match done {
            Ok(()) => Ok(()),
            Err(Errno::INVAL) => {
                let reason = "the kernel refuses this size: no file system shrinks while it is mounted";
                Err(Error::new(ErrorKind::Unsupported, context(), reason))
            }
            Err(error) => Err(Error::io(context(), error)),
        }
    }
}

/// Where a device number is mounted.
fn mount_points(number: u64) -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let table = std::fs::read(path).map_err(|e| Error::io(format!("reading {path}"), e))?;
    let wanted = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let lines = table[..table.len().min(MAX_MOUNTINFO)].split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(2);
            (fields.next()? == wanted.as_bytes()).then_some(())?;
            Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?))))
        })
        .collect())
}

/// The kernel writes blanks and backslashes as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] if *first == b'\\' => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = behind;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
