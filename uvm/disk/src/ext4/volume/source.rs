//! Reading the blocks of a file system as its journal will leave them.

use std::collections::BTreeMap;

use crate::{BlockDevice, Error, Result, field};

/// Where the journal has the latest contents of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Logged {
    /// Block on the device.
    pub(super) place: u64,
    /// Its first four bytes were a journal's magic number and are zero in the journal.
    pub(super) escaped: bool,
}

/// A device in blocks, with what is in its journal in front.
pub(super) struct Source<'d> {
    pub(super) device: &'d dyn BlockDevice,
    pub(super) block_size: u32,
    pub(super) logged: BTreeMap<u64, Logged>,
}

impl Source<'_> {
    fn offset(&self, block: u64) -> Result<u64> {
        block
            .checked_mul(u64::from(self.block_size))
            .ok_or_else(|| Error::new(crate::ErrorKind::Corrupt, format!("{block} is no block")))
    }

    /// `count` blocks from `block` on, as they are on the device.
    pub(super) fn raw(&self, block: u64, count: u64, context: &str) -> Result<Vec<u8>> {
        field::read(self.device, self.offset(block)?, (count * u64::from(self.block_size)) as usize, context)
    }

    /// `count` blocks from `block` on. Callers bound `count`.
    pub(super) fn read(&self, block: u64, count: u64, context: &str) -> Result<Vec<u8>> {
        let mut bytes = self.raw(block, count, context)?;
        if self.logged.is_empty() {
            return Ok(bytes);
        }
        for (number, logged) in self.logged.range(block..block.saturating_add(count)) {
            let at = (number - block) as usize * self.block_size as usize;
            let part = &mut bytes[at..at + self.block_size as usize];
            part.copy_from_slice(&self.logged_block(*logged)?);
        }
        Ok(bytes)
    }

    /// A block as the journal has it.
    pub(super) fn logged_block(&self, logged: Logged) -> Result<Vec<u8>> {
        let mut bytes = self.raw(logged.place, 1, "reading a block of the ext journal")?;
        if logged.escaped {
            field::put(&mut bytes, 0, &super::journal::MAGIC.to_be_bytes());
        }
        Ok(bytes)
    }
}
