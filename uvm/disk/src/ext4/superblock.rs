//! The superblock and its copies.

use super::Ext4Options;
use super::bytes::{crc, high32, low32, put_u16, put_u32};
use super::inode::{EXTRA_SIZE, Inode};
use super::layout::{FIRST_INODE, GOOD_OLD_INODE_SIZE, Layout};
use super::options::{Backups, Checksums};

pub(super) const SIZE: usize = 1024;

/// `s_feature_compat`.
const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const RESIZE_INODE: u32 = 0x10;
const DIR_INDEX: u32 = 0x20;
const SPARSE_SUPER2: u32 = 0x200;
/// `s_feature_incompat`.
const FILETYPE: u32 = 0x2;
const META_BG: u32 = 0x10;
const EXTENTS: u32 = 0x40;
const SIXTY_FOUR_BIT: u32 = 0x80;
const FLEX_BG: u32 = 0x200;
/// `s_feature_ro_compat`.
const SPARSE_SUPER: u32 = 0x1;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const GDT_CSUM: u32 = 0x10;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;
const METADATA_CSUM: u32 = 0x400;
/// user_xattr, acl.
const DEFAULT_MOUNT_OPTIONS: u32 = 0xC;
/// Names are hashed as on x86; the kernel follows this flag on every machine.
const SIGNED_HASH: u32 = 0x1;
const HALF_MD4: u8 = 1;

/// The superblock with what only [`super::Ext4Builder::finish`] knows.
pub(super) struct Superblock<'a> {
    pub(super) layout: &'a Layout,
    pub(super) options: &'a Ext4Options,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
    pub(super) journal: Option<&'a Inode>,
}

impl Superblock<'_> {
    /// The copy in `group`.
    pub(super) fn encode(&self, group: u32) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        self.put_counts(&mut bytes);
        self.put_identity(&mut bytes, group);
        self.put_features(&mut bytes);
        if let Some(journal) = self.journal {
            self.put_journal(&mut bytes, journal);
        }
        if self.layout.metadata_csum() {
            let crc32c = 1;
            bytes[0x175] = crc32c;
            let checksum = crc(!0, &bytes[..0x3FC]);
            put_u32(&mut bytes, 0x3FC, checksum);
        }
        bytes
    }

    fn put_counts(&self, bytes: &mut [u8]) {
        let layout = self.layout;
        let reserved = reserved_blocks(layout, self.options);
        let log_block_size = layout.block_size.trailing_zeros() - 10;
        for (at, value) in [
            (0x00, layout.inodes()),
            (0x04, low32(layout.blocks)),
            (0x08, low32(reserved)),
            (0x0C, low32(self.free_blocks)),
            (0x10, self.free_inodes),
            (0x14, layout.first_data_block as u32),
            (0x18, log_block_size),
            (0x1C, log_block_size),
            (0x20, layout.blocks_per_group as u32),
            (0x24, layout.blocks_per_group as u32),
            (0x28, layout.inodes_per_group),
            // The kernel would count it at every mount; it has 32 bits.
            (0x248, u32::try_from(layout.overhead()).unwrap_or(0)),
            (0x150, high32(layout.blocks)),
            (0x154, high32(reserved)),
            (0x158, high32(self.free_blocks)),
        ] {
            put_u32(bytes, at, value);
        }
    }

    fn put_identity(&self, bytes: &mut [u8], group: u32) {
        let options = self.options;
        let time = options.timestamp;
        // Each time has its bits 32 to 39 in a byte of its own.
        for (at, high_at) in [(0x30, 0x274), (0x40, 0x277), (0x108, 0x276)] {
            put_u32(bytes, at, low32(time));
            bytes[high_at] = (high32(time) & 0xFF) as u8;
        }
        let clean = 1;
        let continue_on_errors = 1;
        for (at, value) in [
            (0x36, 0xFFFF),
            (0x38, 0xEF53),
            (0x3A, clean),
            (0x3C, continue_on_errors),
            (0x58, self.layout.inode_size as u16),
            (0x5A, (group & 0xFFFF) as u16),
        ] {
            put_u16(bytes, at, value);
        }
        let dynamic_revision = 1;
        for (at, value) in [
            (0x4C, dynamic_revision),
            (0x54, FIRST_INODE),
            (0x100, DEFAULT_MOUNT_OPTIONS),
            (0x160, SIGNED_HASH),
        ] {
            put_u32(bytes, at, value);
        }
        bytes[0x68..0x78].copy_from_slice(&options.uuid);
        bytes[0x78..0x78 + options.label.len()].copy_from_slice(options.label.as_bytes());
        bytes[0xEC..0xFC].copy_from_slice(&options.hash_seed);
        bytes[0xFC] = HALF_MD4;
    }

    fn put_features(&self, bytes: &mut [u8]) {
        let (layout, features) = (self.layout, self.layout.features);
        let set = |bits: &[(bool, u32)]| bits.iter().filter(|bit| bit.0).fold(0, |all, bit| all | bit.1);
        let compat = EXT_ATTR
            | set(&[
                (self.journal.is_some(), HAS_JOURNAL),
                (features.resize_inode, RESIZE_INODE),
                (features.dir_index, DIR_INDEX),
                (layout.backups == Backups::SparseSuper2, SPARSE_SUPER2),
            ]);
        let incompat = FILETYPE
            | set(&[
                (layout.backups == Backups::MetaGroups, META_BG),
                (features.extents, EXTENTS),
                (features.sixty_four_bit, SIXTY_FOUR_BIT),
                (layout.flex_groups > 1, FLEX_BG),
            ]);
        let ro_compat = SPARSE_SUPER
            | set(&[
                (features.large_file, LARGE_FILE),
                (features.huge_file, HUGE_FILE),
                (features.checksums == Checksums::Descriptors, GDT_CSUM),
                (features.dir_nlink, DIR_NLINK),
                (features.extra_isize, EXTRA_ISIZE),
                (features.checksums == Checksums::Metadata, METADATA_CSUM),
            ]);
        for (at, value) in [(0x5C, compat), (0x60, incompat), (0x64, ro_compat)] {
            put_u32(bytes, at, value);
        }
        put_u16(bytes, 0xCE, layout.reserved_descriptor_blocks as u16);
        let descriptor_size = if features.sixty_four_bit { layout.descriptor_size } else { 0 };
        put_u16(bytes, 0xFE, descriptor_size as u16);
        if layout.inode_size > GOOD_OLD_INODE_SIZE {
            put_u16(bytes, 0x15C, EXTRA_SIZE as u16);
            put_u16(bytes, 0x15E, EXTRA_SIZE as u16);
        }
        bytes[0x174] = layout.flex_groups.trailing_zeros() as u8;
        for (at, group) in [0x24C, 0x250].into_iter().zip(layout.backup_groups()) {
            put_u32(bytes, at, group);
        }
    }

    /// The journal's inode number, and its block map again should the inode be lost.
    fn put_journal(&self, bytes: &mut [u8], journal: &Inode) {
        put_u32(bytes, 0xE0, super::journal::INODE);
        let backup_of_blocks = 1;
        bytes[0xFD] = backup_of_blocks;
        if let Some(map) = journal.map() {
            bytes[0x10C..0x10C + 60].copy_from_slice(&map.root(self.layout.mapping()));
        }
        let size = journal.size(self.layout.block_size);
        put_u32(bytes, 0x148, high32(size));
        put_u32(bytes, 0x14C, low32(size));
    }
}

fn reserved_blocks(layout: &Layout, options: &Ext4Options) -> u64 {
    layout.blocks * u64::from(options.reserved_percent) / 100
}
