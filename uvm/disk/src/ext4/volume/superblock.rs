//! The superblock of an existing file system, and what follows from it: which block belongs to what.

use std::ops::Range;

use super::features::{
    BIGALLOC, BIT64, CSUM_SEED, FLEX_BG, Features, GDT_CSUM, HAS_JOURNAL, META_BG, METADATA_CSUM, RECOVER,
    RESIZE_INODE, SPARSE_SUPER, SPARSE_SUPER2,
};
use crate::ext4::bytes::{crc, high32, low32};
use crate::field::{bytes_at, le16, le32, put};
use crate::{Error, ErrorKind, Result};

pub(super) const SIZE: usize = 1024;
/// Byte offset of the primary superblock.
pub(super) const OFFSET: u64 = 1024;
const MAGIC: u16 = 0xEF53;
const CHECKSUM: usize = 0x3FC;
/// The most groups we read: 16 TiB in blocks of 1 KiB, 128 MiB of descriptors.
const MAX_GROUPS: u64 = 1 << 21;

/// The raw superblock; its fields by offset.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Superblock(pub(super) [u8; SIZE]);

impl Superblock {
    pub(super) fn u16(&self, at: usize) -> u16 {
        le16(&self.0, at)
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        le32(&self.0, at)
    }

    pub(super) fn set_u32(&mut self, at: usize, value: u32) {
        put(&mut self.0, at, &value.to_le_bytes());
    }

    fn split(&self, low: usize, high: usize) -> u64 {
        let high = if self.features().incompat & BIT64 != 0 { self.u32(high) } else { 0 };
        u64::from(high) << 32 | u64::from(self.u32(low))
    }

    fn set_split(&mut self, low: usize, high: usize, value: u64) {
        self.set_u32(low, low32(value));
        if self.features().incompat & BIT64 != 0 {
            self.set_u32(high, high32(value));
        }
    }

    pub(super) fn features(&self) -> Features {
        Features { compat: self.u32(0x5C), incompat: self.u32(0x60), ro_compat: self.u32(0x64) }
    }

    pub(super) fn set_features(&mut self, features: Features) {
        self.set_u32(0x5C, features.compat);
        self.set_u32(0x60, features.incompat);
        self.set_u32(0x64, features.ro_compat);
    }

    pub(super) fn blocks(&self) -> u64 {
        self.split(0x04, 0x150)
    }

    pub(super) fn set_blocks(&mut self, blocks: u64) {
        self.set_split(0x04, 0x150, blocks);
    }

    pub(super) fn reserved_blocks(&self) -> u64 {
        self.split(0x08, 0x154)
    }

    pub(super) fn set_reserved_blocks(&mut self, blocks: u64) {
        self.set_split(0x08, 0x154, blocks);
    }

    pub(super) fn set_free_blocks(&mut self, blocks: u64) {
        self.set_split(0x0C, 0x158, blocks);
    }

    pub(super) fn needs_recovery(&self) -> bool {
        self.features().incompat & RECOVER != 0
    }

    pub(super) fn set_needs_recovery(&mut self, needed: bool) {
        let word = self.u32(0x60);
        self.set_u32(0x60, if needed { word | RECOVER } else { word & !RECOVER });
        self.seal();
    }

    /// The inode of a journal inside the file system.
    pub(super) fn journal_inode(&self) -> Option<u32> {
        let inode = self.u32(0xE0);
        (self.features().compat & HAS_JOURNAL != 0 && inode != 0 && self.u32(0xE4) == 0).then_some(inode)
    }

    /// What all checksums of metadata begin with.
    pub(super) fn seed(&self) -> u32 {
        if self.features().incompat & CSUM_SEED != 0 { self.u32(0x270) } else { crc(!0, &self.0[0x68..0x78]) }
    }

    pub(super) fn uuid(&self) -> [u8; 16] {
        bytes_at(&self.0, 0x68)
    }

    /// Puts the checksum right, where there is one.
    pub(super) fn seal(&mut self) {
        if self.features().ro_compat & METADATA_CSUM != 0 {
            self.set_u32(CHECKSUM, crc(!0, &self.0[..CHECKSUM]));
        }
    }

    fn checksum_fits(&self) -> bool {
        self.features().ro_compat & METADATA_CSUM == 0 || self.u32(CHECKSUM) == crc(!0, &self.0[..CHECKSUM])
    }

    /// Takes the bytes of a superblock, primary or copy, for what they say.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut superblock = Self(bytes_at(bytes, 0));
        if superblock.u16(0x38) != MAGIC {
            return Err(Error::new(ErrorKind::NotFound, "there is no ext superblock"));
        }
        if superblock.checksum_fits() {
            return Ok(superblock);
        }
        // Half of a write that only raised or lowered needs_recovery is there: either half tells the whole.
        let flipped = superblock.u32(0x60) ^ RECOVER;
        superblock.set_u32(0x60, flipped);
        if superblock.checksum_fits() && superblock.features().compat & HAS_JOURNAL != 0 {
            superblock.set_needs_recovery(true);
            return Ok(superblock);
        }
        Err(corrupt("the checksum of the ext superblock does not fit"))
    }
}

/// What the superblock says of sizes and places. All of it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: u32,
    pub(super) descriptor_size: u32,
    /// Blocks of one bit in a block bitmap; 1 without bigalloc.
    pub(super) cluster: u64,
    /// Blocks behind the descriptors that the resize inode keeps for more of them.
    pub(super) reserved_descriptors: u64,
    pub(super) first_meta_bg: Option<u32>,
    /// Groups whose metadata lies together.
    pub(super) flex: u32,
    sparse: Sparse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sparse {
    /// Every group has a copy of the superblock.
    No,
    /// 0, 1 and the powers of 3, 5 and 7.
    Powers,
    /// 0 and these two, where not 0.
    Two([u32; 2]),
}

impl Geometry {
    pub(super) fn of(superblock: &Superblock) -> Result<Self> {
        let features = superblock.features();
        features.check_file_system()?;
        let (log, log_cluster) = (superblock.u32(0x18), superblock.u32(0x1C));
        if log > 6 {
            return Err(corrupt(format!("an ext block size of 2^{} is none", u64::from(log) + 10)));
        }
        let block_size = 1024 << log;
        let bigalloc = features.ro_compat & BIGALLOC != 0;
        let cluster = match bigalloc {
            false => 1,
            true if log_cluster >= log && log_cluster <= 20 => 1 << (log_cluster - log),
            true => return Err(corrupt("the ext cluster size is none")),
        };
        let dynamic = superblock.u32(0x4C) > 0;
        let descriptor_size = match features.incompat & BIT64 != 0 {
            true => u32::from(superblock.u16(0xFE)),
            false => 32,
        };
        let sparse = if features.compat & SPARSE_SUPER2 != 0 {
            Sparse::Two([superblock.u32(0x24C), superblock.u32(0x250)])
        } else if features.ro_compat & SPARSE_SUPER != 0 {
            Sparse::Powers
        } else {
            Sparse::No
        };
        let flex_log = if features.incompat & FLEX_BG != 0 { superblock.0[0x174].min(16) } else { 0 };
        let resize_inode = features.compat & RESIZE_INODE != 0;
        let geometry = Self {
            block_size,
            blocks: superblock.blocks(),
            first_data_block: u64::from(superblock.u32(0x14)),
            blocks_per_group: u64::from(superblock.u32(0x20)),
            groups: 0,
            inodes_per_group: superblock.u32(0x28),
            inode_size: if dynamic { u32::from(superblock.u16(0x58)) } else { 128 },
            descriptor_size,
            cluster,
            reserved_descriptors: if resize_inode { u64::from(superblock.u16(0xCE)) } else { 0 },
            first_meta_bg: (features.incompat & META_BG != 0).then_some(superblock.u32(0x104)),
            flex: 1 << flex_log,
            sparse,
        };
        geometry.checked(superblock.u32(0))
    }

    /// The same with all numbers found to be possible, and the groups counted.
    fn checked(mut self, inodes: u32) -> Result<Self> {
        let bits = u64::from(self.block_size) * 8;
        let per_group = self.blocks_per_group;
        let fits = self.first_data_block <= 1
            && self.first_data_block < self.blocks
            && per_group.is_multiple_of(8 * self.cluster)
            && (1..=bits).contains(&(per_group / self.cluster))
            && self.inodes_per_group.is_multiple_of(8)
            && (1..=bits).contains(&u64::from(self.inodes_per_group))
            && self.inode_size.is_power_of_two()
            && (128..=self.block_size).contains(&self.inode_size)
            && self.descriptor_size.is_power_of_two()
            && (32..=1024).contains(&self.descriptor_size)
            && self.reserved_descriptors <= u64::from(self.block_size) / 4
            && self.blocks < 1 << 48;
        if !fits {
            return Err(corrupt("the sizes in the ext superblock cannot be"));
        }
        self = self.with_blocks(self.blocks)?;
        let table = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        if u64::from(self.groups) * u64::from(self.inodes_per_group) != u64::from(inodes)
            || table.div_ceil(u64::from(self.block_size)) > per_group
            || self.base_metadata(0).end > self.blocks
        {
            return Err(corrupt("the counts in the ext superblock contradict each other"));
        }
        Ok(self)
    }

    /// The same file system with another number of blocks.
    pub(super) fn with_blocks(mut self, blocks: u64) -> Result<Self> {
        let groups = blocks.saturating_sub(self.first_data_block).div_ceil(self.blocks_per_group);
        if groups == 0 || groups > MAX_GROUPS {
            let context = format!("{groups} ext block groups are not between 1 and {MAX_GROUPS}");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        self.blocks = blocks;
        self.groups = groups as u32;
        Ok(self)
    }

    /// The same file system cut off at `blocks`.
    pub(super) fn shrunk(&self, blocks: u64) -> Result<Self> {
        let mut new = self.with_blocks(blocks)?;
        let descriptor_blocks = new.descriptor_blocks();
        match &mut new.first_meta_bg {
            // The kernel demands that it is no more than there are.
            Some(first) => *first = (*first).min(descriptor_blocks),
            None if self.reserved_descriptors > 0 => {
                let reserved = self.joint_span() - u64::from(descriptor_blocks);
                new.reserved_descriptors = reserved.min(u64::from(new.block_size) / 4);
            }
            None => {}
        }
        if let Sparse::Two(copies) = &mut new.sparse {
            for copy in copies.iter_mut().filter(|copy| **copy >= new.groups) {
                *copy = 0;
            }
        }
        Ok(new)
    }

    /// The groups with copies of the superblock, where it names them.
    pub(super) fn named_copies(&self) -> Option<[u32; 2]> {
        match self.sparse {
            Sparse::Two(copies) => Some(copies),
            _ => None,
        }
    }

    /// Byte offset of a block. A number that a hostile journal made up leads beyond the end of every device.
    pub(super) fn offset(&self, block: u64) -> u64 {
        block.saturating_mul(u64::from(self.block_size))
    }

    /// The block with the primary superblock, and where in it.
    pub(super) fn superblock_block(&self) -> (u64, usize) {
        (OFFSET / u64::from(self.block_size), (OFFSET % u64::from(self.block_size)) as usize)
    }

    /// First block of a group.
    pub(super) fn group_start(&self, group: u32) -> u64 {
        self.first_data_block + u64::from(group) * self.blocks_per_group
    }

    /// The blocks of a group.
    pub(super) fn group(&self, group: u32) -> Range<u64> {
        let start = self.group_start(group);
        start..(start + self.blocks_per_group).min(self.blocks)
    }

    /// The group of a block that is not before the first.
    pub(super) fn group_of(&self, block: u64) -> u32 {
        ((block - self.first_data_block) / self.blocks_per_group) as u32
    }

    /// Inodes of the whole file system.
    pub(super) fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    pub(super) fn inode_table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(u64::from(self.block_size))
    }

    pub(super) fn has_superblock(&self, group: u32) -> bool {
        match self.sparse {
            Sparse::No => true,
            Sparse::Powers => crate::ext4::layout::sparse_super(group),
            Sparse::Two(copies) => group == 0 || copies.contains(&group),
        }
    }

    pub(super) fn descriptors_per_block(&self) -> u32 {
        self.block_size / self.descriptor_size
    }

    pub(super) fn descriptor_blocks(&self) -> u32 {
        self.groups.div_ceil(self.descriptors_per_block())
    }

    /// Descriptor blocks that stand together behind each superblock copy.
    pub(super) fn joint_descriptor_blocks(&self) -> u32 {
        self.first_meta_bg.unwrap_or(u32::MAX).min(self.descriptor_blocks())
    }

    /// Blocks kept for descriptors, used or not, behind each superblock copy.
    pub(super) fn joint_span(&self) -> u64 {
        match self.first_meta_bg {
            Some(first) => u64::from(first),
            None => u64::from(self.descriptor_blocks()) + self.reserved_descriptors,
        }
    }

    /// Whether descriptors of this group are in a meta block group.
    fn in_meta_bg(&self, group: u32) -> bool {
        self.first_meta_bg.is_some_and(|first| group / self.descriptors_per_block() >= first)
    }

    /// Superblock and descriptors, or copies of them, at the start of a group.
    pub(super) fn base_metadata(&self, group: u32) -> Range<u64> {
        let start = self.group_start(group);
        let copy = u64::from(self.has_superblock(group));
        let descriptors = if self.in_meta_bg(group) {
            let per_block = self.descriptors_per_block();
            u64::from([0, 1, per_block - 1].contains(&(group % per_block)))
        } else {
            copy * self.joint_span()
        };
        start..start + copy + descriptors
    }

    /// Where descriptor block `index` is, and its copies behind it, group by group.
    pub(super) fn descriptor_places(&self, index: u32) -> Vec<u64> {
        let place = |group: u32, within: u64| {
            self.group_start(group) + u64::from(self.has_superblock(group)) + within
        };
        let per_block = self.descriptors_per_block();
        if index >= self.joint_descriptor_blocks() {
            let first = index * per_block;
            let groups = [first, first + 1, first + per_block - 1];
            let mut places: Vec<u64> =
                groups.iter().filter(|group| **group < self.groups).map(|group| place(*group, 0)).collect();
            places.dedup();
            return places;
        }
        self.superblock_groups()
            .filter(|group| !self.in_meta_bg(*group))
            .map(|group| place(group, u64::from(index)))
            .collect()
    }

    /// Where descriptor block `index` is.
    pub(super) fn descriptor_place(&self, index: u32) -> u64 {
        let group =
            if index >= self.joint_descriptor_blocks() { index * self.descriptors_per_block() } else { 0 };
        let within = if group == 0 && index < self.joint_descriptor_blocks() { u64::from(index) } else { 0 };
        // With bigalloc and blocks of 1 KiB the first group begins before the superblock's block.
        let shift = u64::from(group == 0 && self.block_size == 1024 && self.first_data_block == 0);
        self.group_start(group) + u64::from(self.has_superblock(group)) + within + shift
    }

    /// Groups with a superblock, the first with the primary one.
    pub(super) fn superblock_groups(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.groups).filter(|group| self.has_superblock(*group))
    }
}

/// Whether descriptors have a checksum, and which.
pub(super) fn has_descriptor_checksums(features: Features) -> bool {
    features.ro_compat & (GDT_CSUM | METADATA_CSUM) != 0
}

pub(super) fn corrupt(context: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, context)
}
