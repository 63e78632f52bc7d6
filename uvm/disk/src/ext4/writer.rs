//! The write-behind buffer: adjacent blocks, many small files among them, leave in one write.

use std::ops::Range;

use crate::{Device, Error, Result};

/// Flushed when this much is gathered.
const CAPACITY: usize = 1 << 20;
/// The unit in which contents are read, and the shortest run of zeros that becomes a hole.
pub(super) const WINDOW: usize = 64 << 10;

pub(super) struct WriteBehind {
    device: Device,
    buffer: Vec<u8>,
    /// Byte offset on the device of the first gathered byte.
    start: u64,
    gathered: usize,
}

impl WriteBehind {
    pub(super) fn new(device: Device) -> Self {
        Self { device, buffer: vec![0; CAPACITY + 3 * WINDOW], start: 0, gathered: 0 }
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Room for two windows behind the gathered bytes, for a caller to fill and then [`Self::gather`].
    pub(super) fn window(&mut self) -> Result<Window<'_>> {
        if self.gathered >= CAPACITY {
            self.flush()?;
        }
        Ok(Window { base: self.gathered, bytes: &mut self.buffer[self.gathered..self.gathered + 2 * WINDOW] })
    }

    /// Takes bytes of the window that began at `base` as the contents of the device at `offset`.
    /// Ranges of one window come in ascending order; where nothing was left out, nothing is copied.
    pub(super) fn gather(&mut self, offset: u64, base: usize, range: Range<usize>) -> Result<()> {
        if offset != self.start + self.gathered as u64 {
            self.flush()?;
            self.start = offset;
        }
        let (from, length) = (base + range.start, range.len());
        if from != self.gathered {
            self.buffer.copy_within(from..from + length, self.gathered);
        }
        self.gathered += length;
        Ok(())
    }

    /// Copies `bytes`, at most one window, as the contents of the device at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        for (index, piece) in bytes.chunks(WINDOW).enumerate() {
            let window = self.window()?;
            window.bytes[..piece.len()].copy_from_slice(piece);
            let base = window.base;
            self.gather(offset + (index * WINDOW) as u64, base, 0..piece.len())?;
        }
        Ok(())
    }

    /// Sends what is gathered to the device.
    pub(super) fn flush(&mut self) -> Result<()> {
        let (start, length) = (self.start, std::mem::take(&mut self.gathered));
        self.start += length as u64;
        if length == 0 {
            return Ok(());
        }
        let written = self.device.write_at(start, &self.buffer[..length]);
        written.map_err(|error| {
            Error::io(format!("writing {length} bytes of the ext4 file system"), start, error)
        })
    }

    /// Reads from the device as it will be after the next flush.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let (end, gathered_end) = (offset + into.len() as u64, self.start + self.gathered as u64);
        let overlap = offset.max(self.start)..end.min(gathered_end);
        if overlap != (offset..end) {
            let read = self.device.read_at(offset, into);
            read.map_err(|error| Error::io("reading a file of the new ext4 file system", offset, error))?;
        }
        if overlap.start < overlap.end {
            let from = (overlap.start - self.start) as usize;
            let to = (overlap.start - offset) as usize;
            let length = (overlap.end - overlap.start) as usize;
            into[to..to + length].copy_from_slice(&self.buffer[from..from + length]);
        }
        Ok(())
    }
}

/// Free room in the buffer, and where in the buffer it is.
pub(super) struct Window<'a> {
    pub(super) base: usize,
    pub(super) bytes: &'a mut [u8],
}
