//! Inodes of an existing file system, as the bytes of their slot.

use super::features::METADATA_CSUM;
use super::superblock::Superblock;
use crate::ext4::bytes::{crc, high16, high32, low16, low32};
use crate::field::{le16, le32, put};

pub(super) const RESIZE: u32 = 7;
pub(super) const JOURNAL: u32 = 8;

pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;
const INDEX_FLAG: u32 = 0x1000;
const HUGE_FILE_FLAG: u32 = 0x4_0000;
const INLINE_DATA_FLAG: u32 = 0x1000_0000;
/// Targets of symbolic links shorter than this are in the inode.
const FAST_SYMLINK: u64 = 60;
const TYPE: u16 = 0o170_000;
const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;

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

    pub(super) fn set_generation(&mut self, generation: u32) {
        put(&mut self.bytes, 0x64, &generation.to_le_bytes());
    }

    /// Whether a directory has an index of its names.
    pub(super) fn is_indexed(&self) -> bool {
        self.flags() & INDEX_FLAG != 0
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

    fn mode(&self) -> u16 {
        le16(&self.bytes, 0)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.mode() & TYPE == DIRECTORY
    }

    pub(super) fn size(&self) -> u64 {
        u64::from(le32(&self.bytes, 0x6C)) << 32 | u64::from(le32(&self.bytes, 0x04))
    }

    /// Whether `i_block` says where blocks are. Reserved inodes have a map even without a type.
    pub(super) fn has_map(&self) -> bool {
        if self.flags() & INLINE_DATA_FLAG != 0 {
            return false;
        }
        match self.mode() & TYPE {
            DIRECTORY | REGULAR => true,
            SYMLINK => self.has_extents() || self.size() >= FAST_SYMLINK,
            _ => self.mode() == 0 && self.number < 11,
        }
    }

    /// The block with the attributes that have no room in the inode.
    pub(super) fn attributes(&self) -> Option<u64> {
        let block = u64::from(le16(&self.bytes, 0x76)) << 32 | u64::from(le32(&self.bytes, 0x68));
        (block != 0).then_some(block)
    }

    pub(super) fn set_attributes(&mut self, block: u64) {
        put(&mut self.bytes, 0x68, &low32(block).to_le_bytes());
        put(&mut self.bytes, 0x76, &low16(high32(block)).to_le_bytes());
    }

    /// Counts blocks more, or fewer, than the inode held.
    pub(super) fn add_blocks(&mut self, more: i64, block_size: u32) {
        let huge = self.flags() & HUGE_FILE_FLAG != 0;
        let unit = if huge { 1 } else { i64::from(block_size / 512) };
        let held = u64::from(le16(&self.bytes, 0x74)) << 32 | u64::from(le32(&self.bytes, 0x1C));
        let held = held.saturating_add_signed(more * unit);
        put(&mut self.bytes, 0x1C, &low32(held).to_le_bytes());
        put(&mut self.bytes, 0x74, &low16(high32(held)).to_le_bytes());
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
        // A reserved inode that was never used is all zeroes.
        if superblock.features().ro_compat & METADATA_CSUM == 0 || self.bytes.iter().all(|byte| *byte == 0) {
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
