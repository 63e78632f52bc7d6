//! Geometry: which block belongs to what, computed, never stored per block.
//!
//! A flex group packs the bitmaps and inode tables of its 16 block groups behind the superblock and
//! descriptor copies of its first group, and spills into the next group where they do not fit.

use std::ops::Range;

use crate::{Error, ErrorKind, Result};

pub(super) const INODE_SIZE: u32 = 256;
pub(super) const FLEX_GROUPS: u32 = 16;
pub(super) const DESCRIPTOR_SIZE: u64 = 64;
/// The first inode that is not reserved; lost+found has it.
pub(super) const FIRST_INODE: u32 = 11;
/// mke2fs leaves out a last group with fewer blocks of its own than this.
const LAST_GROUP_MINIMUM: u64 = 50;
const MAXIMUM_SIZE: u64 = 16 << 40;

/// Sizes and counts of one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    pub(super) descriptor_blocks: u64,
    pub(super) inode_table_blocks: u64,
}

/// Where one flex group has its metadata, and what is left of it for data.
#[derive(Debug)]
pub(super) struct Flex {
    pub(super) groups: Range<u32>,
    pub(super) block_bitmaps: u64,
    pub(super) inode_bitmaps: u64,
    pub(super) inode_tables: Vec<u64>,
    /// Ascending, neither overlapping nor empty.
    pub(super) free: Vec<Range<u64>>,
}

impl Layout {
    /// The layout mke2fs would choose for `size` bytes.
    pub(super) fn new(size: u64, block_size: u32, inode_ratio: u32) -> Result<Self> {
        if ![1024, 2048, 4096].contains(&block_size) {
            let context = format!("ext4 block size {block_size} is none of 1024, 2048 and 4096");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        if !(1024..=1 << 26).contains(&inode_ratio) {
            let context = format!("ext4 inode ratio {inode_ratio} is not between 1024 and 67108864 bytes");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        if size > MAXIMUM_SIZE {
            let context = format!("ext4 is limited to 16 TiB here, the device has {size} bytes");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let mut blocks = size / u64::from(block_size);
        loop {
            let layout = Self::of_blocks(blocks, block_size, inode_ratio)?;
            let last = layout.groups - 1;
            let rest = (blocks - layout.first_data_block) % layout.blocks_per_group;
            let minimum = 2 + layout.inode_table_blocks + layout.backup_blocks(last) + LAST_GROUP_MINIMUM;
            if rest == 0 || rest >= minimum {
                return Ok(layout);
            }
            if last == 0 {
                return Err(too_small(blocks, block_size));
            }
            blocks -= rest;
        }
    }

    fn of_blocks(blocks: u64, block_size: u32, inode_ratio: u32) -> Result<Self> {
        let bytes_per_block = u64::from(block_size);
        let first_data_block = u64::from(block_size == 1024);
        let blocks_per_group = 8 * bytes_per_block;
        let usable = blocks.checked_sub(first_data_block).filter(|usable| *usable > 0);
        let groups = usable.ok_or_else(|| too_small(blocks, block_size))?.div_ceil(blocks_per_group);
        // A table fills whole blocks and its bitmap whole bytes; the reserved inodes are all in group 0.
        let unit = u64::from((block_size / INODE_SIZE).max(8));
        let most = (8 * bytes_per_block).min(u64::from(u32::MAX) / groups / unit * unit);
        let wanted = blocks.saturating_mul(bytes_per_block) / u64::from(inode_ratio);
        let inodes_per_group = wanted.div_ceil(groups).next_multiple_of(unit).clamp(16, most);
        Ok(Self {
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            groups: u32::try_from(groups).map_err(|_| too_small(blocks, block_size))?,
            inodes_per_group: inodes_per_group as u32,
            descriptor_blocks: (groups * DESCRIPTOR_SIZE).div_ceil(bytes_per_block),
            inode_table_blocks: inodes_per_group * u64::from(INODE_SIZE) / bytes_per_block,
        })
    }

    /// All inodes, reserved ones included.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes_per_group * self.groups
    }

    /// Byte offset of a block.
    pub(super) fn offset(&self, block: u64) -> u64 {
        block * u64::from(self.block_size)
    }

    /// The blocks of a group.
    pub(super) fn group(&self, group: u32) -> Range<u64> {
        let start = self.first_data_block + u64::from(group) * self.blocks_per_group;
        start..(start + self.blocks_per_group).min(self.blocks)
    }

    /// Blocks of the superblock and descriptor copies at the start of a group: none in most.
    pub(super) fn backup_blocks(&self, group: u32) -> u64 {
        if has_superblock(group) { 1 + self.descriptor_blocks } else { 0 }
    }

    /// Number of flex groups.
    pub(super) fn flexes(&self) -> u32 {
        self.groups.div_ceil(FLEX_GROUPS)
    }

    /// Places the metadata of one flex group.
    pub(super) fn flex(&self, flex: u32) -> Result<Flex> {
        let first = flex * FLEX_GROUPS;
        let groups = first..(first + FLEX_GROUPS).min(self.groups);
        let count = u64::from(groups.end - groups.start);
        let mut free: Vec<Range<u64>> = Vec::with_capacity(4);
        for group in groups.clone() {
            let blocks = self.group(group);
            let start = blocks.start + self.backup_blocks(group);
            match free.last_mut() {
                Some(run) if run.end == start => run.end = blocks.end,
                _ if start < blocks.end => free.push(start..blocks.end),
                _ => {}
            }
        }
        let mut take = |length: u64| -> Result<u64> {
            let run = free.iter_mut().find(|run| run.end - run.start >= length);
            let run = run.ok_or_else(|| too_small(self.blocks, self.block_size))?;
            run.start += length;
            Ok(run.start - length)
        };
        let block_bitmaps = take(count)?;
        let inode_bitmaps = take(count)?;
        let inode_tables = groups.clone().map(|_| take(self.inode_table_blocks)).collect::<Result<_>>()?;
        free.retain(|run| !run.is_empty());
        Ok(Flex { groups, block_bitmaps, inode_bitmaps, inode_tables, free })
    }

    /// Blocks of mke2fs's journal for this size; `None` where there is no room for one.
    pub(super) fn journal_blocks(&self) -> Option<u64> {
        Some(match self.blocks {
            0..2048 => return None,
            2048..32_768 => 1024,
            32_768..262_144 => 4096,
            262_144..524_288 => 8192,
            524_288..4_194_304 => 16_384,
            4_194_304..8_388_608 => 32_768,
            8_388_608..16_777_216 => 65_536,
            16_777_216..33_554_432 => 131_072,
            _ => 262_144,
        })
    }
}

/// `sparse_super`: groups 0, 1 and the powers of 3, 5 and 7.
pub(super) fn has_superblock(group: u32) -> bool {
    let power_of = |base: u32| {
        let mut power = u64::from(base);
        while power < u64::from(group) {
            power *= u64::from(base);
        }
        power == u64::from(group)
    };
    group <= 1 || power_of(3) || power_of(5) || power_of(7)
}

fn too_small(blocks: u64, block_size: u32) -> Error {
    let context =
        format!("an ext4 file system with its metadata does not fit {blocks} blocks of {block_size}");
    Error::new(ErrorKind::NoSpace, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_structures_share_a_block() {
        let gib = 1u64 << 30;
        for (size, block_size, ratio) in [
            (8 << 20, 4096, 16_384),
            (8 << 20, 1024, 16_384),
            (300 << 20, 2048, 4096),
            (130 * gib / 64, 4096, 1024),
            (40 * gib, 4096, 16_384),
            (40 * gib + 77_777_777, 1024, 1024),
            (16 << 40, 4096, 1024),
        ] {
            let layout = Layout::new(size, block_size, ratio).expect("a layout");
            for flex in (0..layout.flexes()).filter(|f| *f < 40 || f % 97 == 0) {
                let placed = layout.flex(flex).expect("a place for all metadata");
                let count = u64::from(placed.groups.end - placed.groups.start);
                let mut all: Vec<Range<u64>> = placed.free.clone();
                all.push(placed.block_bitmaps..placed.block_bitmaps + count);
                all.push(placed.inode_bitmaps..placed.inode_bitmaps + count);
                all.extend(placed.inode_tables.iter().map(|t| *t..t + layout.inode_table_blocks));
                for group in placed.groups.clone() {
                    let start = layout.group(group).start;
                    all.push(start..start + layout.backup_blocks(group));
                }
                all.retain(|range| !range.is_empty());
                all.sort_by_key(|range| range.start);
                assert!(
                    all.windows(2).all(|pair| pair[0].end == pair[1].start),
                    "{size} flex {flex}: {all:?}"
                );
                assert_eq!(all[0].start, layout.group(placed.groups.start).start);
                assert_eq!(all[all.len() - 1].end, layout.group(placed.groups.end - 1).end);
            }
        }
    }

    #[test]
    fn backups_are_where_sparse_super_has_them() {
        let groups: Vec<u32> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 1, 4096, 40_960] {
            assert_eq!(Layout::new(size, 4096, 16_384).expect_err("too small").kind(), ErrorKind::NoSpace);
        }
        assert_eq!(Layout::new(8 << 20, 512, 16_384).expect_err("block size").kind(), ErrorKind::Invalid);
        assert_eq!(Layout::new(8 << 20, 4096, 0).expect_err("ratio").kind(), ErrorKind::Invalid);
        assert_eq!(Layout::new(17 << 40, 4096, 16_384).expect_err("size").kind(), ErrorKind::Unsupported);
    }
}
