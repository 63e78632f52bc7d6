//! The device of the tests that count memory: it takes none.
#![allow(unreachable_pub)]

use std::io;

use uvm_disk::{BlockDevice, Geometry};

/// A device of blocks of 512 bytes that keeps nothing.
pub struct Nothing {
    pub size: u64,
}

impl BlockDevice for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, logical_block_size: 512, physical_block_size: 512 }
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
