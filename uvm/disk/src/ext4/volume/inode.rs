//! Inodes of an existing file system, as the bytes of their slot.

use super::features::METADATA_CSUM;
use super::superblock::Superblock;
use crate::ext4::bytes::{crc, high16, high32, low16, low32};
use crate::field::{le16, le32, put};

pub(super) const RESIZE: u32 = 7;

pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) bytes: Vec<u8>,
}

impl Inode {
    pub(super) fn flags(&self) -> u32 {
        le32(&self.bytes, 0x20)
    }

    pub(super) fn generation(&self) -> u32 {
        le32(&self.bytes, 0x64)
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags() & EXTENTS_FLAG != 0
    }

    /// The 60 bytes of `i_block`.
    pub(super) fn root(&self) -> &[u8] {
        &self.bytes[0x28..0x28 + 60]
    }

    pub(super) fn set_root(&mut self, root: &[u8]) {
        self.bytes[0x28..0x28 + 60].copy_from_slice(root);
    }

    /// Sets the count of blocks the inode holds, where it fits 32 bits of sectors.
    pub(super) fn set_blocks(&mut self, blocks: u64, block_size: u32) {
        let sectors = blocks * u64::from(block_size / 512);
        put(&mut self.bytes, 0x1C, &low32(sectors).to_le_bytes());
        put(&mut self.bytes, 0x74, &low16(high32(sectors)).to_le_bytes());
    }

    /// What checksums of the inode's own blocks begin with.
    pub(super) fn seed(&self, superblock: &Superblock) -> u32 {
        crc(crc(superblock.seed(), &self.number.to_le_bytes()), &self.generation().to_le_bytes())
    }

    /// Puts the checksum right, where there is one.
    pub(super) fn seal(&mut self, superblock: &Superblock) {
        if superblock.features().ro_compat & METADATA_CSUM == 0 {
            return;
        }
        let checksum = self.checksum(superblock);
        put(&mut self.bytes, 0x7C, &low16(checksum).to_le_bytes());
        if self.has_high_checksum() {
            put(&mut self.bytes, 0x82, &high16(checksum).to_le_bytes());
        }
    }

    /// Whether the checksum fits; true where none is kept.
    pub(super) fn fits(&self, superblock: &Superblock) -> bool {
        if superblock.features().ro_compat & METADATA_CSUM == 0 {
            return true;
        }
        let checksum = self.checksum(superblock);
        le16(&self.bytes, 0x7C) == low16(checksum)
            && (!self.has_high_checksum() || le16(&self.bytes, 0x82) == high16(checksum))
    }

    fn has_high_checksum(&self) -> bool {
        self.bytes.len() > 128 && le16(&self.bytes, 0x80) >= 4
    }

    fn checksum(&self, superblock: &Superblock) -> u32 {
        let mut blank = self.bytes.clone();
        put(&mut blank, 0x7C, &[0; 2]);
        if self.has_high_checksum() {
            put(&mut blank, 0x82, &[0; 2]);
        }
        crc(self.seed(superblock), &blank)
    }
}
