//! Inodes of an existing file system, as the bytes of their slot.

use super::features::METADATA_CSUM;
use super::superblock::Superblock;
use crate::ext4::bytes::{crc, high16, high32, low16, low32};
use crate::field::{le16, le32, put};

pub(super) const ROOT: u32 = 2;
pub(super) const RESIZE: u32 = 7;
pub(super) const JOURNAL: u32 = 8;
pub(super) const BAD_BLOCKS: u32 = 1;
pub(super) const BOOT_LOADER: u32 = 5;

pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;
const HUGE_FILE_FLAG: u32 = 0x4_0000;
const EA_INODE_FLAG: u32 = 0x20_0000;
const INLINE_DATA_FLAG: u32 = 0x1000_0000;
const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) bytes: Vec<u8>,
}

impl Inode {
    pub(super) fn mode(&self) -> u16 {
        le16(&self.bytes, 0)
    }

    pub(super) fn links(&self) -> u16 {
        le16(&self.bytes, 0x1A)
    }

    pub(super) fn flags(&self) -> u32 {
        le32(&self.bytes, 0x20)
    }

    pub(super) fn generation(&self) -> u32 {
        le32(&self.bytes, 0x64)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.mode() & 0o170_000 == DIRECTORY
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags() & EXTENTS_FLAG != 0
    }

    pub(super) fn is_ea_inode(&self) -> bool {
        self.flags() & EA_INODE_FLAG != 0
    }

    pub(super) fn has_inline_data(&self) -> bool {
        self.flags() & INLINE_DATA_FLAG != 0
    }

    pub(super) fn size(&self) -> u64 {
        u64::from(le32(&self.bytes, 0x6C)) << 32 | u64::from(le32(&self.bytes, 0x04))
    }

    pub(super) fn xattr_block(&self) -> u64 {
        u64::from(le16(&self.bytes, 0x76)) << 32 | u64::from(le32(&self.bytes, 0x68))
    }

    pub(super) fn set_xattr_block(&mut self, block: u64) {
        put(&mut self.bytes, 0x68, &low32(block).to_le_bytes());
        put(&mut self.bytes, 0x76, &low16(high32(block)).to_le_bytes());
    }

    /// The 60 bytes of `i_block`.
    pub(super) fn root(&self) -> &[u8] {
        &self.bytes[0x28..0x28 + 60]
    }

    pub(super) fn set_root(&mut self, root: &[u8]) {
        self.bytes[0x28..0x28 + 60].copy_from_slice(root);
    }

    /// `i_blocks` in 512-byte sectors, or in blocks for the largest files.
    fn sectors(&self) -> u64 {
        u64::from(le16(&self.bytes, 0x74)) << 32 | u64::from(le32(&self.bytes, 0x1C))
    }

    /// Adds to the count of blocks the inode holds.
    pub(super) fn add_blocks(&mut self, blocks: i64, block_size: u32) {
        let unit = if self.flags() & HUGE_FILE_FLAG != 0 { 1 } else { i64::from(block_size / 512) };
        let sectors = self.sectors().wrapping_add_signed(blocks.wrapping_mul(unit));
        put(&mut self.bytes, 0x1C, &low32(sectors).to_le_bytes());
        put(&mut self.bytes, 0x74, &low16(high32(sectors)).to_le_bytes());
    }

    /// Whether it has a map of blocks: not a device, a short symbolic link or contents in the inode itself.
    pub(super) fn has_map(&self, block_size: u32) -> bool {
        let kind = self.mode() & 0o170_000;
        if self.has_inline_data() {
            return false;
        }
        match kind {
            REGULAR | DIRECTORY => true,
            SYMLINK => {
                // A short target is in place of the map; then the only block can be that of the attributes.
                let own = if self.xattr_block() != 0 { u64::from(block_size / 512) } else { 0 };
                self.has_extents() || self.sectors() > own
            }
            // Reserved inodes have no type; the loader of e2fsprogs and the kernel treat theirs as files.
            0 => self.number < 11,
            _ => false,
        }
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
