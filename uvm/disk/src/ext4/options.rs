//! What a new file system is to be, and which wishes cannot go together.

use crate::{Error, ErrorKind, Result};

/// One of the three file systems; all are written by the same builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Block maps, no journal.
    Ext2,
    /// Block maps and a journal.
    Ext3,
    /// Extents, a journal, checksums.
    Ext4,
}

/// How many inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inodes {
    /// As many as mke2fs gives a file system of this size: one for each 4 KiB below 512 MiB, for each 16 KiB below
    /// 4 TiB, for each 32 KiB below 16 TiB, for each 64 KiB there.
    Automatic,
    /// One for each so many bytes, 1024 to 67108864.
    Ratio(u32),
    /// At least so many; all groups have equally many.
    Count(u32),
}

/// Whether there is a journal, and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// A cut of the power damages the file system.
    None,
    /// As large as mke2fs makes it for a file system of this size.
    Automatic,
    /// So many bytes: at least 1024 blocks, at most 10240000 and half of the file system.
    Bytes(u64),
}

/// What is protected by checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Nothing. Every bitmap and inode table has to be initialized at once.
    None,
    /// The group descriptors: `uninit_bg`, which is `gdt_csum`.
    Descriptors,
    /// All metadata: `metadata_csum`.
    Metadata,
}

/// Where superblock and group descriptors are kept again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backups {
    /// `SparseSuper` while a copy of the descriptors is at most 1 MiB (2 TiB with 64bit and blocks of 4 KiB), then
    /// `MetaGroups`.
    Automatic,
    /// `sparse_super`: all of both in groups 0, 1 and the powers of 3, 5 and 7.
    SparseSuper,
    /// `sparse_super2`: all of both in group 1 and the last. The kernel does not grow such a file system while it is
    /// mounted.
    SparseSuper2,
    /// `meta_bg`: each block of descriptors in three of the groups it describes; superblocks as `SparseSuper`.
    MetaGroups,
}

/// Features that are there or not. Those without a switch are always there: filetype, ext_attr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Extents instead of block maps.
    pub extents: bool,
    /// `64bit`: group descriptors of 64 bytes instead of 32.
    pub sixty_four_bit: bool,
    /// Checksums of metadata.
    pub checksums: Checksums,
    /// Room behind the group descriptors for a file system 1024 times as large.
    pub resize_inode: bool,
    /// Large directories are hash trees.
    pub dir_index: bool,
    /// Files of 2 GiB and more.
    pub large_file: bool,
    /// Files of 2 TiB and more.
    pub huge_file: bool,
    /// More than 65000 subdirectories.
    pub dir_nlink: bool,
    /// Nanoseconds and later times are promised to have room in every inode.
    pub extra_isize: bool,
}

/// What a new file system is to be.
#[derive(Debug, Clone)]
pub struct Ext4Options {
    /// 1024, 2048 or 4096 bytes.
    pub block_size: u32,
    /// At most 16 bytes.
    pub label: String,
    /// The file system's identity.
    pub uuid: [u8; 16],
    /// Seed of the hash of names, in UUID form.
    pub hash_seed: [u8; 16],
    /// Time of creation, seconds since 1970.
    pub timestamp: u64,
    /// 128, 256, 512 or 1024 bytes.
    pub inode_size: u16,
    /// Number of inodes.
    pub inodes: Inodes,
    /// Percent of the blocks only root may take: 5 with mke2fs, at most 50.
    pub reserved_percent: u8,
    /// The journal.
    pub journal: Journal,
    /// Groups that keep their bitmaps and inode tables together, a power of two up to 4096. 1 is without `flex_bg`:
    /// each group keeps its own. `None` is 16 as with mke2fs, and with `meta_bg` those that share a block of
    /// descriptors: what is written then lies together, and there is a quarter of it.
    pub flex_groups: Option<u32>,
    /// Copies of superblock and descriptors.
    pub backups: Backups,
    /// Features.
    pub features: Features,
    /// User and group of the root directory.
    pub root_owner: (u32, u32),
}

impl Ext4Options {
    /// What `mkfs.ext2`, `mkfs.ext3` or `mkfs.ext4` gives who asks for nothing, with blocks of 4 KiB at every size.
    ///
    /// ext4 is without resize_inode: the kernel and resize2fs grow a file system without by meta_bg, while the
    /// inode would make up nine tenths of what formatting 64 GiB writes. ext2 and ext3 have it, as old kernels
    /// grow them no other way.
    pub fn new(variant: Variant, uuid: [u8; 16], hash_seed: [u8; 16], timestamp: u64) -> Self {
        let ext4 = variant == Variant::Ext4;
        Self {
            block_size: 4096,
            label: String::new(),
            uuid,
            hash_seed,
            timestamp,
            inode_size: 256,
            inodes: Inodes::Automatic,
            reserved_percent: 5,
            journal: if variant == Variant::Ext2 { Journal::None } else { Journal::Automatic },
            flex_groups: if ext4 { None } else { Some(1) },
            backups: if ext4 { Backups::Automatic } else { Backups::SparseSuper },
            features: Features {
                extents: ext4,
                sixty_four_bit: ext4,
                checksums: if ext4 { Checksums::Metadata } else { Checksums::None },
                resize_inode: !ext4,
                dir_index: true,
                large_file: true,
                huge_file: ext4,
                dir_nlink: ext4,
                extra_isize: ext4,
            },
            root_owner: (0, 0),
        }
    }

    /// Refuses what cannot be on any device with logical blocks of this size.
    pub(super) fn check(&self, logical_block_size: u32) -> Result<()> {
        match self.value_refused(logical_block_size).or_else(|| self.combination_refused()) {
            Some(context) => Err(Error::new(ErrorKind::Invalid, context)),
            None => Ok(()),
        }
    }

    fn value_refused(&self, logical_block_size: u32) -> Option<String> {
        let Self { block_size, inode_size, flex_groups, .. } = *self;
        Some(if self.label.len() > 16 {
            format!("the ext4 label {:?} is longer than 16 bytes", self.label)
        } else if self.label.contains('\0') {
            "an ext4 label cannot contain NUL".to_string()
        } else if self.reserved_percent > 50 {
            format!("{} percent of the blocks reserved are more than 50", self.reserved_percent)
        } else if ![1024, 2048, 4096].contains(&block_size) {
            format!("ext4 block size {block_size} is none of 1024, 2048 and 4096")
        } else if block_size < logical_block_size {
            format!("ext4 blocks of {block_size} are smaller than the device's {logical_block_size}")
        } else if ![128, 256, 512, 1024].contains(&inode_size) {
            format!("ext4 inode size {inode_size} is none of 128, 256, 512 and 1024")
        } else if let Some(groups) = flex_groups
            && (!groups.is_power_of_two() || groups > MOST_FLEX_GROUPS)
        {
            format!("{groups} groups in a flex group are not a power of two up to {MOST_FLEX_GROUPS}")
        } else if let Inodes::Ratio(ratio) = self.inodes
            && !(1024..=1 << 26).contains(&ratio)
        {
            format!("ext4 inode ratio {ratio} is not between 1024 and 67108864 bytes")
        } else if self.inodes == Inodes::Count(0) {
            "a file system without inodes".to_string()
        } else {
            return None;
        })
    }

    /// Mostly what mke2fs or the kernel refuse.
    fn combination_refused(&self) -> Option<String> {
        let features = self.features;
        let reason = if features.sixty_four_bit && !features.extents {
            "64bit needs extents: a block map has 32-bit block numbers"
        } else if features.extra_isize && self.inode_size == 128 {
            "extra_isize needs inodes larger than 128 bytes"
        } else if features.huge_file && !features.large_file {
            "huge_file needs large_file"
        } else if features.resize_inode && !features.large_file {
            "resize_inode needs large_file: the inode's own size passes 2 GiB"
        } else if features.resize_inode && self.backups == Backups::MetaGroups {
            "resize_inode and meta_bg exclude each other: two ways to grow"
        } else if features.resize_inode && self.backups == Backups::SparseSuper2 {
            "resize_inode needs the backups of sparse_super, not of sparse_super2"
        } else {
            return None;
        };
        Some(reason.to_string())
    }
}

/// More would not be found together in one group of 1 KiB blocks.
const MOST_FLEX_GROUPS: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl Fn(&mut Ext4Options)) -> bool {
        let mut options = Ext4Options::new(Variant::Ext4, [1; 16], [2; 16], 0);
        assert!(options.check(4096).is_ok());
        change(&mut options);
        match options.check(512) {
            Ok(()) => false,
            Err(error) => error.kind() == ErrorKind::Invalid,
        }
    }

    #[test]
    fn what_cannot_go_together_is_refused() {
        assert!(refused(|o| o.label = "seventeen letters".into()));
        assert!(refused(|o| o.label = "a\0b".into()));
        assert!(refused(|o| o.block_size = 512));
        assert!(refused(|o| o.inode_size = 2048));
        assert!(refused(|o| o.flex_groups = Some(24)));
        assert!(refused(|o| o.flex_groups = Some(8192)));
        assert!(refused(|o| o.inodes = Inodes::Ratio(1023)));
        assert!(refused(|o| o.inodes = Inodes::Count(0)));
        assert!(refused(|o| o.features.extents = false));
        assert!(refused(|o| o.inode_size = 128));
        assert!(refused(|o| o.features.large_file = false));
        assert!(refused(|o| (o.features.resize_inode, o.backups) = (true, Backups::MetaGroups)));
        assert!(refused(|o| (o.features.resize_inode, o.backups) = (true, Backups::SparseSuper2)));
        assert!(!refused(|o| o.features.resize_inode = true));
        assert!(!refused(|o| (o.features.extents, o.features.sixty_four_bit) = (false, false)));
    }
}
