//! A disk of the kernel, or a plain file that stands for one, opened so that nobody else writes it.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, FallocateFlags, FlockOperation};
use rustix::io::Errno;
use rustix::ioctl::{Getter, NoArg, Setter, ioctl, opcode};

use crate::{Error, ErrorKind, Result, sysfs};

// linux/fs.h, group 0x12.
const BLKRRPART: rustix::ioctl::Opcode = opcode::none(0x12, 95);
const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
const BLKZEROOUT: rustix::ioctl::Opcode = opcode::none(0x12, 127);

/// Zeroes are written in pieces of this many bytes where nothing faster works.
const ZERO_BUFFER_LEN: usize = 1 << 20;
/// A write of at least this many bytes is one of a stream, not read again soon.
const STREAM_LEN: usize = 1 << 20;
/// This far behind a stream its bytes are on the device by now.
const STREAM_BEHIND: u64 = 64 << 20;
/// One offloaded request covers no more than this, so that none blocks for minutes.
const OFFLOAD_LEN: u64 = 1 << 30;
/// A signal may interrupt a call; a storm of them is an error, not a hang.
const EINTR_MAX: u32 = 1000;

/// How to open a [`KernelBlock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Shared with whoever else has it open.
    ReadOnly,
    /// Read, while nobody writes: fails with [`ErrorKind::Busy`] where it is mounted, held, or locked by a writer.
    ReadOnlyHeld,
    /// Exclusive: fails with [`ErrorKind::Busy`] where it is mounted, held or locked.
    ReadWrite,
}

/// An open block device or regular file.
#[derive(Debug)]
pub struct KernelBlock {
    file: File,
    path: PathBuf,
    size: u64,
    logical_block_size: u32,
    physical_block_size: u32,
    device: Option<Identity>,
}

/// What tells this disk from the next one that gets its device number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    sysfs: PathBuf,
    diskseq: Option<String>,
}

impl Identity {
    fn of(rdev: u64) -> Self {
        let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let diskseq = Self::read_diskseq(&sysfs);
        Self { sysfs, diskseq }
    }

    /// The kernel numbers every disk it ever saw; a partition's number is its disk's.
    fn read_diskseq(sysfs: &Path) -> Option<String> {
        let real = std::fs::canonicalize(sysfs).ok()?;
        sysfs::text(&real.join("diskseq")).or_else(|| sysfs::text(&real.parent()?.join("diskseq")))
    }

    fn is_present(&self) -> bool {
        self.sysfs.exists() && Self::read_diskseq(&self.sysfs) == self.diskseq
    }
}

impl KernelBlock {
    /// Opens `path`, following links. A file counts in blocks of 512 bytes until told otherwise.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self> {
        let failed = |e: io::Error| failed_to_open(path, e);
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            let reason = "neither a block device nor a regular file";
            return Err(Error::new(ErrorKind::Invalid, format!("opening {}", path.display()), reason));
        }
        let write = mode == OpenMode::ReadWrite;
        // O_EXCL without O_CREAT on a block device: EBUSY where it is mounted or held.
        let held = mode != OpenMode::ReadOnly;
        let flags = if held && kind.is_block_device() { libc::O_EXCL } else { 0 };
        let file =
            OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.file_type() != kind {
            let reason = "changed while it was being opened";
            return Err(Error::new(ErrorKind::Invalid, format!("opening {}", path.display()), reason));
        }
        let path = path.to_owned();
        if kind.is_block_device() {
            let block = Self::of_device(file, path, metadata.rdev())?;
            // The kernel lets one be opened for writing all the same, and refuses every write.
            if write && block.is_read_only() {
                let error = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the device is read-only");
                return Err(failed_to_open(&block.path, error));
            }
            Ok(block)
        } else {
            if held {
                let lock = if write {
                    FlockOperation::NonBlockingLockExclusive
                } else {
                    FlockOperation::NonBlockingLockShared
                };
                rustix::fs::flock(&file, lock)
                    .map_err(|e| Error::io(format!("locking {}", path.display()), e))?;
            }
            let size = metadata.len();
            Ok(Self { file, path, size, logical_block_size: 512, physical_block_size: 512, device: None })
        }
    }

    fn of_device(file: File, path: PathBuf, rdev: u64) -> Result<Self> {
        let failed = |e: Errno| Error::io(format!("asking the size of {}", path.display()), e);
        let size = device_size(&file).map_err(failed)?;
        let logical_block_size = rustix::fs::ioctl_blksszget(&file).map_err(failed)?;
        let physical_block_size =
            rustix::fs::ioctl_blkpbszget(&file).map_err(failed)?.max(logical_block_size);
        let device = Some(Identity::of(rdev));
        Ok(Self { file, path, size, logical_block_size, physical_block_size, device })
    }

    /// The same file, counted in blocks of `bytes`. A device's block size is not ours to choose.
    pub fn with_logical_block_size(mut self, bytes: u32) -> Result<Self> {
        if self.device.is_some() || !bytes.is_power_of_two() || !(512..=65536).contains(&bytes) {
            let context = format!("setting the block size of {} to {bytes}", self.path.display());
            let reason = "only a file has one to choose, a power of two from 512 to 65536";
            return Err(Error::new(ErrorKind::Invalid, context, reason));
        }
        self.logical_block_size = bytes;
        self.physical_block_size = bytes;
        Ok(self)
    }

    /// The open device or file itself.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in whole logical blocks: what is left of a file beyond them has no address. Fixed at opening.
    pub fn size(&self) -> u64 {
        self.size - self.size % u64::from(self.logical_block_size)
    }

    /// Bytes of the disk before a partition; 0 for everything else.
    pub fn partition_start(&self) -> u64 {
        let start = self.device.as_ref().and_then(|device| sysfs::text(&device.sysfs.join("start")));
        // sysfs counts in sectors of 512 bytes whatever the block size.
        start.and_then(|sectors| sectors.parse::<u64>().ok()?.checked_mul(512)).unwrap_or(0)
    }

    /// Bytes of one LBA.
    pub fn logical_block_size(&self) -> u32 {
        self.logical_block_size
    }

    /// Bytes the device writes without reading first; never less than the logical block size.
    pub fn physical_block_size(&self) -> u32 {
        self.physical_block_size
    }

    /// Whether this is a device and not a file.
    pub fn is_block_device(&self) -> bool {
        self.device.is_some()
    }

    /// Whether the kernel refuses writes to the device, whoever asks. A file is as its permissions are.
    pub fn is_read_only(&self) -> bool {
        let ro = self.device.as_ref().and_then(|device| sysfs::text(&device.sysfs.join("ro")));
        ro.is_some_and(|ro| ro != "0")
    }

    /// Whether the disk was detached. Ask after any failed call, whatever its error: a disk on its way
    /// out shrinks to nothing first, so that a write may report a full device and a read its end.
    pub fn is_gone(&self) -> bool {
        match &self.device {
            None => false,
            Some(identity) => !matches!(device_size(&self.file), Ok(1..)) || !identity.is_present(),
        }
    }

    /// Fills `buf` from byte `offset`, or fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let n = retry(|| self.file.read_at(&mut buf[done..], offset + done as u64))?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the device ended early"));
            }
            done += n;
        }
        Ok(())
    }

    /// Writes all of `buf` at byte `offset`, or fails. Durable after [`Self::flush`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let n = retry(|| self.file.write_at(&buf[done..], offset + done as u64))?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::WriteZero, "the device takes no more bytes"));
            }
            done += n;
        }
        if buf.len() >= STREAM_LEN {
            self.write_behind(offset, buf.len() as u64);
        }
        Ok(())
    }

    /// Sets the kernel writing what a stream has just written, and drops what is on the device already.
    /// Without it the device idles until the flush, and a small machine's memory fills up with what
    /// nobody reads again.
    fn write_behind(&self, offset: u64, len: u64) {
        let from = offset.saturating_sub(STREAM_BEHIND);
        // Advice: where it is not taken, the flush does all of it.
        let _ = rustix::fs::fadvise(&self.file, from, NonZeroU64::new(offset + len - from), Advice::DontNeed);
    }

    /// Makes `len` bytes at `offset` read as zero by the fastest means there is. Never an overwrite in
    /// the sense of sanitization.
    pub fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        let Some((start, end)) = self.whole_blocks(offset, len) else {
            return self.write_zero_bytes(offset, len);
        };
        // The device zeroes whole blocks only; the ragged ends are ours.
        self.write_zero_bytes(offset, start - offset)?;
        self.write_zero_bytes(end, offset + len - end)?;
        let mut at = start;
        while at < end {
            let len = OFFLOAD_LEN.min(end - at);
            match self.offload_zeroes(at, len) {
                Ok(()) => at += len,
                Err(e) if is_unsupported(e) => return self.write_zero_bytes(at, end - at),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn offload_zeroes(&self, offset: u64, len: u64) -> rustix::io::Result<()> {
        if self.device.is_some() {
            // SAFETY: BLKZEROOUT reads a `uint64_t[2]` of start and length from its argument, writes
            // nothing back, and fails on ranges outside the device.
            return retry_errno(|| unsafe {
                ioctl(&self.file, Setter::<BLKZEROOUT, [u64; 2]>::new([offset, len]))
            });
        }
        // A hole first: a sparse file stays sparse. Zeroed blocks where holes cannot be punched.
        match self.punch_hole(offset, len) {
            Err(e) if is_unsupported(e) => {
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                retry_errno(|| rustix::fs::fallocate(&self.file, flags, offset, len))
            }
            done => done,
        }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> rustix::io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retry_errno(|| rustix::fs::fallocate(&self.file, flags, offset, len))
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let zeroes = vec![0; len.min(ZERO_BUFFER_LEN as u64) as usize];
        while len > 0 {
            let n = len.min(zeroes.len() as u64);
            self.write_at(offset, &zeroes[..n as usize])?;
            offset += n;
            len -= n;
        }
        Ok(())
    }

    /// Says that `len` bytes at `offset` are not needed; what they read as afterwards is undefined. A
    /// device that does not know how is not an error.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_range(offset, len)?;
        let Some((start, end)) = self.whole_blocks(offset, len) else { return Ok(()) };
        let mut at = start;
        while at < end {
            let len = OFFLOAD_LEN.min(end - at);
            let done = if self.device.is_some() {
                // SAFETY: BLKDISCARD reads a `uint64_t[2]` of start and length from its argument, writes
                // nothing back, and fails on ranges outside the device.
                retry_errno(|| unsafe { ioctl(&self.file, Setter::<BLKDISCARD, [u64; 2]>::new([at, len])) })
            } else {
                self.punch_hole(at, len)
            };
            match done {
                Ok(()) => at += len,
                Err(e) if is_unsupported(e) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Makes everything written durable, then drops the cache, so that later reads come from the device.
    pub fn flush(&self) -> io::Result<()> {
        retry_errno(|| rustix::fs::fdatasync(&self.file))?;
        // Advice: where it is not taken, reads are merely served from memory.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
        Ok(())
    }

    /// Lets the kernel look at the partition table again. [`ErrorKind::Busy`] while a partition is in use.
    pub fn reread_partition_table(&self) -> Result<()> {
        let context = || format!("rereading the partition table of {}", self.path.display());
        if self.device.is_none() {
            return Err(Error::new(ErrorKind::Unsupported, context(), "not a block device"));
        }
        // SAFETY: BLKRRPART takes no argument.
        unsafe { ioctl(&self.file, NoArg::<BLKRRPART>::new()) }.map_err(|e| Error::io(context(), e))
    }

    fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} are beyond the end at {}", self.size()),
            )),
        }
    }

    /// The whole logical blocks within a range that [`Self::check_range`] accepted.
    fn whole_blocks(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let block = u64::from(self.logical_block_size);
        let start = offset.checked_next_multiple_of(block)?;
        let end = (offset + len) / block * block;
        (start < end).then_some((start, end))
    }
}

fn failed_to_open(path: &Path, error: io::Error) -> Error {
    Error::io(format!("opening {}", path.display()), error)
}

fn device_size(file: &File) -> rustix::io::Result<u64> {
    // SAFETY: BLKGETSIZE64 writes one u64 and reads nothing; on a file that is not a block device it
    // fails with ENOTTY and writes nothing.
    unsafe { ioctl(file, Getter::<BLKGETSIZE64, u64>::new()) }
}

fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS)
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..EINTR_MAX {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
    Err(io::Error::from(io::ErrorKind::Interrupted))
}

fn retry_errno<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    for _ in 0..EINTR_MAX {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::INTR)
}

#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
