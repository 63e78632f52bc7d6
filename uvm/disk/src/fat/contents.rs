//! Contents on their way to the device, gathered to large writes.

use crate::field::write;
use crate::{Device, Error, Result};

const BUFFER_LEN: usize = 1 << 20;

/// A buffer in front of the device.
pub(super) struct Contents {
    pub(super) device: Device,
    buffer: Vec<u8>,
    /// Where the buffer belongs.
    position: u64,
    /// A write failed: what was in the buffer is lost.
    pub(super) failed: bool,
}

impl Contents {
    pub(super) fn new(device: Device) -> Self {
        Self { device, buffer: Vec::with_capacity(BUFFER_LEN), position: 0, failed: false }
    }

    /// Room for at most `len` bytes at `offset`, zeroed; to be filled by the caller.
    pub(super) fn room(&mut self, offset: u64, len: usize) -> Result<&mut [u8]> {
        let filled = self.buffer.len();
        if self.position + filled as u64 != offset || filled == BUFFER_LEN {
            self.flush()?;
            self.position = offset;
        }
        let filled = self.buffer.len();
        let len = len.min(BUFFER_LEN - filled);
        self.buffer.resize(filled + len, 0);
        Ok(&mut self.buffer[filled..])
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn put(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.room(offset, bytes.len())?;
            let (now, later) = bytes.split_at(room.len());
            room.copy_from_slice(now);
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Writes `len` zero bytes at `offset`.
    pub(super) fn zero(&mut self, mut offset: u64, mut len: usize) -> Result<()> {
        while len > 0 {
            let room = self.room(offset, len)?.len();
            offset += room as u64;
            len -= room;
        }
        Ok(())
    }

    /// Hands the buffer to the device.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let written = write(&*self.device, self.position, &self.buffer, "writing FAT clusters");
        self.failed |= written.is_err();
        self.buffer.clear();
        written
    }

    /// Reads what was written, whether it is on the device yet or not.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (start, end) = (offset, offset + buf.len() as u64);
        let ours = self.position..self.position + self.buffer.len() as u64;
        if start < ours.start || end > ours.end {
            self.device
                .read_at(offset, buf)
                .map_err(|e| Error::io("reading FAT clusters back", offset, e))?;
        }
        let (from, to) = (start.max(ours.start), end.min(ours.end));
        if from < to {
            let source = (from - ours.start) as usize..(to - ours.start) as usize;
            buf[(from - start) as usize..(to - start) as usize].copy_from_slice(&self.buffer[source]);
        }
        Ok(())
    }
}
