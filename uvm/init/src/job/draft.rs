//! A device that is written in memory: what an edit would do, before it is done.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use uvm_disk::{BlockDevice, Device, Geometry};

/// What a draft remembers; the largest partition tables, several times.
const MAX_WRITTEN: usize = 64 << 20;

/// What is on a device, and over it what was written since, block by block. The device itself is not written.
pub(super) struct Draft {
    device: Device,
    written: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Draft {
    pub(super) fn new(device: Device) -> Self {
        Self { device, written: Mutex::default() }
    }

    fn block(&self) -> u64 {
        u64::from(self.device.geometry().logical_block_size.max(1))
    }
}

impl BlockDevice for Draft {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buf)?;
        let block = self.block();
        let end = offset.saturating_add(buf.len() as u64);
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (lba, bytes) in written.range(offset / block..end.div_ceil(block)) {
            let start = lba * block;
            let (from, to) = (start.max(offset), (start + block).min(end));
            // Both lie within the buffer and the block.
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let block = self.block();
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.geometry().size);
        if end.is_none() || !offset.is_multiple_of(block) || !(buf.len() as u64).is_multiple_of(block) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (lba, bytes) in (offset / block..).zip(buf.chunks(block as usize)) {
            written.insert(lba, bytes.to_vec());
        }
        if written.len() * block as usize > MAX_WRITTEN {
            Err(io::ErrorKind::OutOfMemory.into())
        } else {
            Ok(())
        }
    }
    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A device that can be neither read nor written: all that is decided before is decided.
pub(super) struct Unreachable(pub(super) Geometry);

impl BlockDevice for Unreachable {
    fn geometry(&self) -> Geometry {
        self.0
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn flush(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
