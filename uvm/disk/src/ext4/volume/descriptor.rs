//! Group descriptors: where a group's bitmaps and inodes are, and what is free in it.

use super::features::{GDT_CSUM, METADATA_CSUM};
use super::superblock::{Geometry, Superblock};
use crate::ext4::bytes::{crc, high16, high32, low16, low32};
use crate::field::{le16, le32, put};

/// `bg_flags`.
pub(super) const INODE_UNINIT: u16 = 1;
pub(super) const BLOCK_UNINIT: u16 = 2;

/// The checksum's own place.
const CHECKSUM: usize = 0x1E;

/// One descriptor, of 32 bytes or more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor(pub(super) Vec<u8>);

/// A number in two parts, the second of which only long descriptors have.
#[derive(Clone, Copy)]
pub(super) enum Field {
    BlockBitmap,
    InodeBitmap,
    InodeTable,
    FreeBlocks,
    FreeInodes,
    UsedDirectories,
    UnusedInodes,
    BlockBitmapChecksum,
    InodeBitmapChecksum,
}

impl Field {
    /// Offset of the low part, of the high part, and whether each has 32 bits.
    fn place(self) -> (usize, usize, bool) {
        match self {
            Self::BlockBitmap => (0x00, 0x20, true),
            Self::InodeBitmap => (0x04, 0x24, true),
            Self::InodeTable => (0x08, 0x28, true),
            Self::FreeBlocks => (0x0C, 0x2C, false),
            Self::FreeInodes => (0x0E, 0x2E, false),
            Self::UsedDirectories => (0x10, 0x30, false),
            Self::UnusedInodes => (0x1C, 0x32, false),
            Self::BlockBitmapChecksum => (0x18, 0x38, false),
            Self::InodeBitmapChecksum => (0x1A, 0x3A, false),
        }
    }
}

impl Descriptor {
    pub(super) fn get(&self, field: Field) -> u64 {
        let (low, high, wide) = field.place();
        let long = self.0.len() >= 64;
        if wide {
            let high = if long { le32(&self.0, high) } else { 0 };
            u64::from(high) << 32 | u64::from(le32(&self.0, low))
        } else {
            let high = if long { le16(&self.0, high) } else { 0 };
            u64::from(high) << 16 | u64::from(le16(&self.0, low))
        }
    }

    pub(super) fn set(&mut self, field: Field, value: u64) {
        let (low, high, wide) = field.place();
        let long = self.0.len() >= 64;
        if wide {
            put(&mut self.0, low, &low32(value).to_le_bytes());
            if long {
                put(&mut self.0, high, &high32(value).to_le_bytes());
            }
        } else {
            let value = low32(value);
            put(&mut self.0, low, &low16(value).to_le_bytes());
            if long {
                put(&mut self.0, high, &high16(value).to_le_bytes());
            }
        }
    }

    pub(super) fn flags(&self) -> u16 {
        le16(&self.0, 0x12)
    }

    pub(super) fn set_flags(&mut self, flags: u16) {
        put(&mut self.0, 0x12, &flags.to_le_bytes());
    }

    /// Whether the stored checksum of a bitmap fits; always where none is kept.
    pub(super) fn bitmap_fits(&self, field: Field, superblock: &Superblock, bitmap: &[u8]) -> bool {
        if superblock.features().ro_compat & METADATA_CSUM == 0 {
            return true;
        }
        let found = crc(superblock.seed(), bitmap);
        let mask = if self.0.len() >= 64 { u32::MAX } else { 0xFFFF };
        self.get(field) == u64::from(found & mask)
    }

    /// Stores the checksum of a bitmap, where one is kept.
    pub(super) fn seal_bitmap(&mut self, field: Field, superblock: &Superblock, bitmap: &[u8]) {
        if superblock.features().ro_compat & METADATA_CSUM != 0 {
            self.set(field, u64::from(crc(superblock.seed(), bitmap)));
        }
    }

    /// The checksum the descriptor of `group` should have; `None` where none is kept.
    fn checksum(&self, superblock: &Superblock, group: u32) -> Option<u16> {
        let ro_compat = superblock.features().ro_compat;
        let (before, behind) = (&self.0[..CHECKSUM], &self.0[CHECKSUM + 2..]);
        if ro_compat & METADATA_CSUM != 0 {
            let start = crc(crc(superblock.seed(), &group.to_le_bytes()), before);
            Some(low16(crc(crc(start, &[0, 0]), behind)))
        } else if ro_compat & GDT_CSUM != 0 {
            let start = crc16(crc16(!0, &superblock.uuid()), &group.to_le_bytes());
            Some(crc16(crc16(start, before), behind))
        } else {
            None
        }
    }

    pub(super) fn fits(&self, superblock: &Superblock, group: u32) -> bool {
        self.checksum(superblock, group).is_none_or(|checksum| le16(&self.0, CHECKSUM) == checksum)
    }

    pub(super) fn seal(&mut self, superblock: &Superblock, group: u32) {
        if let Some(checksum) = self.checksum(superblock, group) {
            put(&mut self.0, CHECKSUM, &checksum.to_le_bytes());
        }
    }

    /// Whether all that it points to is within the file system.
    pub(super) fn is_possible(&self, geometry: &Geometry) -> bool {
        let within = |field, length: u64| {
            let start = self.get(field);
            start >= geometry.first_data_block
                && start.checked_add(length).is_some_and(|end| end <= geometry.blocks)
        };
        within(Field::BlockBitmap, 1)
            && within(Field::InodeBitmap, 1)
            && within(Field::InodeTable, geometry.inode_table_blocks())
    }
}

/// CRC-16 as uninit_bg has it: the reflected polynomial 0x8005, no final inversion.
fn crc16(seed: u16, bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u16;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 != 0 { value >> 1 ^ 0xA001 } else { value >> 1 };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    bytes.iter().fold(seed, |crc, byte| crc >> 8 ^ TABLE[usize::from((crc ^ u16::from(*byte)) as u8)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_the_known_one() {
        // CRC-16/MODBUS has the same parameters; this is its published check value.
        assert_eq!(crc16(!0, b"123456789"), 0x4B37);
    }
}
