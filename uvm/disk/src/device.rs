//! What a disk is to this crate: [`BlockDevice`], and the layers that stack on one.

use std::io;
use std::sync::Arc;

use crate::Error;

/// Size and block sizes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes; a multiple of `logical_block_size`.
    pub size: u64,
    /// The unit of an LBA: 512 or 4096.
    pub logical_block_size: u32,
    /// The unit the device can write without reading first.
    pub physical_block_size: u32,
}

impl Geometry {
    /// Number of logical blocks.
    pub fn blocks(&self) -> u64 {
        self.size / u64::from(self.logical_block_size)
    }
}

/// Something that reads and writes blocks. All offsets are bytes from its start.
///
/// Reads and writes are whole or an error: no short counts. Callers may pass any alignment; an
/// implementation over a device that demands aligned access does the alignment.
pub trait BlockDevice: Send + Sync {
    /// Size and block sizes; constant as long as the device is open.
    fn geometry(&self) -> Geometry;
    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `buf` at `offset`.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Makes `len` bytes read back as zero, by the fastest means the device has.
    /// This may be offloaded: it is never an overwrite in the sense of sanitization.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Tells the device that `len` bytes are not needed. What they read as afterwards is undefined.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes everything written durable, and drops caches, so that later reads come from the device.
    fn flush(&self) -> io::Result<()>;
}

/// A device shared by the layers above it.
pub type Device = Arc<dyn BlockDevice>;

/// A range of a device as a device of its own: a partition.
pub struct Slice {
    device: Device,
    offset: u64,
    size: u64,
}

impl Slice {
    /// The `size` bytes of `device` from `offset`; `None` where they are not all on the device.
    pub fn new(device: Device, offset: u64, size: u64) -> Option<Self> {
        (offset.checked_add(size)? <= device.geometry().size).then_some(Self { device, offset, size })
    }

    fn translate(&self, offset: u64, len: u64) -> io::Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(self.offset + offset),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{len} bytes at {offset} are beyond the {} bytes of the partition", self.size),
            )),
        }
    }
}

impl Slice {
    /// An error of the device below says where on the device it was.
    fn located<T>(&self, offset: u64, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let context = format!("partition at byte {}", self.offset);
            io::Error::new(error.kind(), Error::io(context, self.offset.saturating_add(offset), error))
        })
    }
}

impl BlockDevice for Slice {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, ..self.device.geometry() }
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = self.translate(offset, buf.len() as u64)?;
        self.located(offset, self.device.read_at(at, buf))
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let at = self.translate(offset, buf.len() as u64)?;
        self.located(offset, self.device.write_at(at, buf))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = self.translate(offset, len)?;
        self.located(offset, self.device.write_zeroes(at, len))
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let at = self.translate(offset, len)?;
        self.located(offset, self.device.discard(at, len))
    }
    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
}

/// A device in memory.
pub struct Memory {
    bytes: std::sync::RwLock<Vec<u8>>,
    logical_block_size: u32,
}

impl Memory {
    /// A device of `size` zero bytes.
    pub fn new(size: usize, logical_block_size: u32) -> Self {
        Self { bytes: std::sync::RwLock::new(vec![0; size]), logical_block_size }
    }

    /// A copy of what is on it.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

fn beyond_end() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "access beyond the end of the device")
}

fn range(offset: u64, len: u64, size: usize) -> io::Result<std::ops::Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| beyond_end())?;
    let len = usize::try_from(len).map_err(|_| beyond_end())?;
    let end = start.checked_add(len).filter(|end| *end <= size).ok_or_else(beyond_end)?;
    Ok(start..end)
}

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        let size = self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner).len() as u64;
        Geometry {
            size,
            logical_block_size: self.logical_block_size,
            physical_block_size: self.logical_block_size,
        }
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        buf.copy_from_slice(&bytes[range(offset, buf.len() as u64, bytes.len())?]);
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let range = range(offset, buf.len() as u64, bytes.len())?;
        bytes[range].copy_from_slice(buf);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.bytes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let range = range(offset, len, bytes.len())?;
        bytes[range].fill(0);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
