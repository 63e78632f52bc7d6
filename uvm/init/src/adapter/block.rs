//! A kernel device becomes a [`BlockDevice`]: counted, cancellable, and telling when the disk was touched.

use std::io;
use std::sync::Arc;

use uvm_disk::{BlockDevice, Geometry};
use uvm_sys::KernelBlock;

use crate::job::{CancelledMarker, Progress, SourceFault};

/// The device of a running job.
pub(crate) struct JobDevice {
    block: KernelBlock,
    progress: Arc<Progress>,
}

impl JobDevice {
    pub(crate) fn new(block: KernelBlock, progress: Arc<Progress>) -> Self {
        Self { block, progress }
    }

    fn before_write(&self) -> io::Result<()> {
        self.check_cancelled()?;
        self.progress.touch();
        Ok(())
    }

    fn check_cancelled(&self) -> io::Result<()> {
        if self.progress.is_cancelled() { Err(io::Error::other(CancelledMarker)) } else { Ok(()) }
    }
}

impl BlockDevice for JobDevice {
    fn geometry(&self) -> Geometry {
        geometry(&self.block)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_cancelled()?;
        self.block.read_at(offset, buf)?;
        self.progress.add_read(buf.len() as u64);
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.before_write()?;
        self.block.write_at(offset, buf)?;
        self.progress.add_written(buf.len() as u64);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before_write()?;
        self.block.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before_write()?;
        self.block.discard(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        self.block.flush()
    }
}

/// The device that a running job reads: counted, cancellable, and named by its errors.
pub(crate) struct JobSource {
    pub(crate) block: KernelBlock,
    pub(crate) serial: String,
    pub(crate) progress: Arc<Progress>,
}

impl BlockDevice for JobSource {
    fn geometry(&self) -> Geometry {
        geometry(&self.block)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.progress.is_cancelled() {
            return Err(io::Error::other(CancelledMarker));
        }
        self.block.read_at(offset, buf).map_err(|error| {
            io::Error::new(error.kind(), SourceFault { serial: self.serial.clone(), error })
        })?;
        self.progress.add_read(buf.len() as u64);
        Ok(())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(refused())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(refused())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(refused())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A device that is only looked at.
pub(crate) struct ReadOnlyDevice(pub(crate) KernelBlock);

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the device is opened read-only")
}

pub(super) fn geometry(block: &KernelBlock) -> Geometry {
    Geometry {
        size: block.size(),
        logical_block_size: block.logical_block_size(),
        physical_block_size: block.physical_block_size(),
    }
}

impl BlockDevice for ReadOnlyDevice {
    fn geometry(&self) -> Geometry {
        geometry(&self.0)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(refused())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(refused())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(refused())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
