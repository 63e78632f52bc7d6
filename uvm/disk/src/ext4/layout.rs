//! Geometry: which block belongs to what, computed, never stored per block.
//!
//! A flex group packs the bitmaps and inode tables of its block groups behind the superblock and descriptor copies
//! of its first group, and spills into the next group where they do not fit. Without flex_bg a flex group is one
//! block group.

use std::ops::Range;

use super::extent::Mapping;
use super::mapping;
use super::options::{Backups, Checksums, Ext4Options, Features, Inodes, Journal};
use crate::{Error, ErrorKind, Result};

/// The first inode that is not reserved; lost+found has it.
pub(super) const FIRST_INODE: u32 = 11;
/// What an inode has at least.
pub(super) const GOOD_OLD_INODE_SIZE: u32 = 128;
/// mke2fs leaves out a last group with fewer blocks of its own than this.
const LAST_GROUP_MINIMUM: u64 = 50;
const MAXIMUM_SIZE: u64 = 16 << 40;
/// Largest copy of the descriptors that `Backups::Automatic` spreads over the groups of sparse_super: 25 copies of
/// the 8 MiB that 16 TiB have would be most of what formatting writes.
const LARGEST_COPY: u64 = 1 << 20;
/// As with mke2fs.
const DEFAULT_FLEX_GROUPS: u32 = 16;
/// mke2fs's limits of a journal.
const JOURNAL_BLOCKS: std::ops::RangeInclusive<u64> = 1024..=10_240_000;

/// Sizes and counts of one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) block_size: u32,
    pub(super) blocks: u64,
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: u32,
    pub(super) inode_table_blocks: u64,
    pub(super) descriptor_size: u32,
    pub(super) descriptor_blocks: u64,
    /// Behind each copy of the descriptors, for those of groups to come: the resize inode's.
    pub(super) reserved_descriptor_blocks: u64,
    pub(super) flex_groups: u32,
    /// Never `Automatic`.
    pub(super) backups: Backups,
    pub(super) features: Features,
    journal: Journal,
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
    /// The layout mke2fs would choose for `size` bytes. The options were checked.
    pub(super) fn new(size: u64, options: &Ext4Options) -> Result<Self> {
        if size > MAXIMUM_SIZE {
            let context = format!("ext4 is limited to 16 TiB here, the device has {size} bytes");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let mut blocks = size / u64::from(options.block_size);
        if !options.features.sixty_four_bit {
            // As mke2fs, which takes the 2^32 blocks of exactly 16 TiB for one too many.
            blocks -= u64::from(blocks == 1 << 32);
            if blocks > u64::from(u32::MAX) {
                let context =
                    format!("{blocks} blocks of {} bytes need the 64bit feature", options.block_size);
                return Err(Error::new(ErrorKind::Invalid, context));
            }
        }
        loop {
            let layout = Self::of_blocks(blocks, size, options)?;
            let last = layout.groups - 1;
            let rest = (blocks - layout.first_data_block) % layout.blocks_per_group;
            let minimum = layout.own_blocks(last) + LAST_GROUP_MINIMUM;
            if rest == 0 || rest >= minimum {
                layout.check_group(0)?;
                return Ok(layout);
            }
            if last == 0 {
                return Err(too_small(blocks, layout.block_size));
            }
            blocks -= rest;
        }
    }

    fn of_blocks(blocks: u64, size: u64, options: &Ext4Options) -> Result<Self> {
        let block_size = options.block_size;
        let bytes_per_block = u64::from(block_size);
        let first_data_block = u64::from(block_size == 1024);
        let blocks_per_group = 8 * bytes_per_block;
        let usable = blocks.checked_sub(first_data_block).filter(|usable| *usable > 0);
        let groups = usable.ok_or_else(|| too_small(blocks, block_size))?.div_ceil(blocks_per_group);
        let inode_size = u32::from(options.inode_size);
        let inodes_per_group = inodes_per_group(blocks, size, groups, options)?;
        let descriptor_size = if options.features.sixty_four_bit { 64 } else { 32 };
        let descriptor_bytes = groups * u64::from(descriptor_size);
        let backups = match options.backups {
            Backups::Automatic if options.features.resize_inode || descriptor_bytes <= LARGEST_COPY => {
                Backups::SparseSuper
            }
            Backups::Automatic => Backups::MetaGroups,
            chosen => chosen,
        };
        let flex_groups = match backups {
            Backups::MetaGroups => block_size / descriptor_size,
            _ => DEFAULT_FLEX_GROUPS,
        };
        let mut layout = Self {
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            groups: u32::try_from(groups).map_err(|_| too_small(blocks, block_size))?,
            inodes_per_group,
            inode_size,
            inode_table_blocks: u64::from(inodes_per_group) * u64::from(inode_size) / bytes_per_block,
            descriptor_size,
            descriptor_blocks: descriptor_bytes.div_ceil(bytes_per_block),
            reserved_descriptor_blocks: 0,
            flex_groups: options.flex_groups.unwrap_or(flex_groups),
            backups,
            features: options.features,
            journal: options.journal,
        };
        if options.features.resize_inode {
            layout.reserved_descriptor_blocks = layout.descriptor_blocks_to_reserve();
        }
        Ok(layout)
    }

    /// As mke2fs: for 1024 times the size, as far as 32 bits and the one double indirect block reach.
    fn descriptor_blocks_to_reserve(&self) -> u64 {
        let most = u64::from(u32::MAX).min(self.blocks * 1024);
        let groups = (most - self.first_data_block).div_ceil(self.blocks_per_group);
        let blocks = groups.div_ceil(u64::from(self.descriptors_per_block()));
        (blocks.saturating_sub(self.descriptor_blocks)).min(u64::from(self.block_size) / 4)
    }

    /// Refuses where a group's own metadata is more than the group.
    fn check_group(&self, group: u32) -> Result<()> {
        let (needed, there) = (self.own_blocks(group), self.blocks_per_group.min(self.blocks));
        if needed <= there {
            return Ok(());
        }
        let context = format!(
            "the {} group descriptors of {} bytes and the metadata of one group take {needed} blocks of {}, a group has {there}: larger blocks, fewer inodes or meta_bg are needed",
            self.groups, self.descriptor_size, self.block_size
        );
        Err(Error::new(ErrorKind::Invalid, context))
    }

    /// Blocks of copies, bitmaps and inode table that belong to one group, wherever they lie.
    fn own_blocks(&self, group: u32) -> u64 {
        2 + self.inode_table_blocks + self.backup_blocks(group)
    }

    /// Blocks no file will ever have, the journal's among them: what `statfs` leaves out.
    pub(super) fn overhead(&self) -> u64 {
        let copies: u64 = if self.backups == Backups::MetaGroups {
            (0..self.groups).map(|group| self.backup_blocks(group)).sum()
        } else {
            self.superblock_groups().into_iter().map(|group| self.backup_blocks(group)).sum()
        };
        let tables = u64::from(self.groups) * (2 + self.inode_table_blocks);
        self.first_data_block + copies + tables + self.journal_blocks().unwrap_or(0)
    }

    /// All inodes, reserved ones included.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes_per_group * self.groups
    }

    /// Whether inodes, directories, extents and bitmaps carry checksums.
    pub(super) fn metadata_csum(&self) -> bool {
        self.features.checksums == Checksums::Metadata
    }

    /// Whether a group may say that its bitmaps and inode table are not initialized.
    pub(super) fn has_uninit(&self) -> bool {
        self.features.checksums != Checksums::None
    }

    /// How files find their blocks.
    pub(super) fn mapping(&self) -> Mapping {
        Mapping {
            block_size: self.block_size as usize,
            extents: self.features.extents,
            checksums: self.metadata_csum(),
        }
    }

    /// Bytes of the largest file.
    pub(super) fn largest_file(&self) -> u64 {
        let maps =
            if self.features.extents { u64::from(u32::MAX) } else { mapping::most_blocks(self.block_size) };
        // An inode counts its sectors, those of its own map too, in 32 bits.
        let nodes = if self.features.extents { 0 } else { mapping::most_nodes(self.block_size) };
        let counted = u64::from(u32::MAX) / u64::from(self.block_size / 512) - nodes;
        let blocks = if self.features.huge_file { maps } else { maps.min(counted) };
        if self.features.large_file { self.offset(blocks) } else { u64::from(u32::MAX >> 1) }
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

    pub(super) fn descriptors_per_block(&self) -> u32 {
        self.block_size / self.descriptor_size
    }

    /// Whether a group begins with a superblock.
    pub(super) fn has_superblock(&self, group: u32) -> bool {
        match self.backups {
            Backups::SparseSuper2 => group <= 1 || group + 1 == self.groups,
            _ => sparse_super(group),
        }
    }

    /// The groups of sparse_super2's copies as the superblock has them: 0 is none.
    pub(super) fn backup_groups(&self) -> [u32; 2] {
        match (self.backups, self.groups) {
            (Backups::SparseSuper2, 2) => [1, 0],
            (Backups::SparseSuper2, 3..) => [1, self.groups - 1],
            _ => [0, 0],
        }
    }

    /// Whether the descriptors of its meta group are in `group`: the first, the second and the last of each.
    fn has_meta_descriptors(&self, group: u32) -> bool {
        let per_block = self.descriptors_per_block();
        matches!(group % per_block, 0 | 1) || group % per_block == per_block - 1
    }

    /// Blocks of the superblock and descriptor copies at the start of a group: none in most.
    pub(super) fn backup_blocks(&self, group: u32) -> u64 {
        let superblock = self.has_superblock(group);
        if self.backups == Backups::MetaGroups {
            u64::from(superblock) + u64::from(self.has_meta_descriptors(group))
        } else if superblock {
            1 + self.descriptor_blocks + self.reserved_descriptor_blocks
        } else {
            0
        }
    }

    /// Where block `index` of the descriptors is, the first place first.
    pub(super) fn descriptor_places(&self, index: u32) -> Vec<u64> {
        if self.backups == Backups::MetaGroups {
            let per_block = self.descriptors_per_block();
            let first = index * per_block;
            let groups = [Some(first), first.checked_add(1), first.checked_add(per_block - 1)];
            let there = groups.into_iter().flatten().filter(|group| *group < self.groups);
            there.map(|group| self.group(group).start + u64::from(self.has_superblock(group))).collect()
        } else {
            self.superblock_groups()
                .into_iter()
                .map(|group| self.group(group).start + 1 + u64::from(index))
                .collect()
        }
    }

    /// Groups with a superblock, ascending: a few dozen at most.
    pub(super) fn superblock_groups(&self) -> Vec<u32> {
        let mut groups = vec![0, 1];
        if self.backups == Backups::SparseSuper2 {
            groups.push(self.groups - 1);
        } else {
            for base in [3u32, 5, 7] {
                let powers = std::iter::successors(Some(base), |power| power.checked_mul(base));
                groups.extend(powers.take_while(|power| *power < self.groups));
            }
        }
        groups.retain(|group| *group < self.groups);
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    /// Number of flex groups.
    pub(super) fn flexes(&self) -> u32 {
        self.groups.div_ceil(self.flex_groups)
    }

    /// Places the metadata of one flex group.
    pub(super) fn flex(&self, flex: u32) -> Result<Flex> {
        let first = flex * self.flex_groups;
        let groups = first..(first + self.flex_groups).min(self.groups);
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

    /// Blocks of a group's own bitmaps and inode table that are in the group itself, as the kernel counts them when it
    /// makes up the bitmap of an uninitialized group.
    pub(super) fn own_inside(&self, flex: &Flex, group: u32) -> u64 {
        let (blocks, index) = (self.group(group), u64::from(group - flex.groups.start));
        let table = flex.inode_tables.get(index as usize).copied().unwrap_or(0);
        let bitmaps = [flex.block_bitmaps + index, flex.inode_bitmaps + index];
        let table = (table + self.inode_table_blocks).min(blocks.end).saturating_sub(table.max(blocks.start));
        bitmaps.iter().filter(|bitmap| blocks.contains(bitmap)).count() as u64 + table
    }

    /// Blocks the journal is to have: 0 without one.
    pub(super) fn journal_blocks(&self) -> Result<u64> {
        let blocks = match self.journal {
            Journal::None => return Ok(0),
            Journal::Automatic => self.usual_journal_blocks(),
            Journal::Bytes(bytes) => bytes / u64::from(self.block_size),
        };
        if blocks == 0 {
            let context = format!(
                "{} blocks of {} bytes are too few for a journal: make it larger, take smaller blocks, or leave the journal out",
                self.blocks, self.block_size
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        if !JOURNAL_BLOCKS.contains(&blocks) || blocks > self.blocks / 2 {
            let context = format!(
                "an ext4 journal of {blocks} blocks of {} bytes: it has 1024 to 10240000 and at most half of the file system's {}",
                self.block_size, self.blocks
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        Ok(blocks)
    }

    /// Blocks of mke2fs's journal for this size; 0 where there is no room for one.
    fn usual_journal_blocks(&self) -> u64 {
        match self.blocks {
            0..2048 => 0,
            2048..32_768 => 1024,
            32_768..262_144 => 4096,
            262_144..524_288 => 8192,
            524_288..4_194_304 => 16_384,
            4_194_304..8_388_608 => 32_768,
            8_388_608..16_777_216 => 65_536,
            16_777_216..33_554_432 => 131_072,
            _ => 262_144,
        }
    }
}

/// As mke2fs: so that the tables fill whole blocks and their bitmaps whole bytes. The reserved inodes are all in
/// group 0.
fn inodes_per_group(blocks: u64, size: u64, groups: u64, options: &Ext4Options) -> Result<u32> {
    let (block_size, bytes) = (u64::from(options.block_size), blocks * u64::from(options.block_size));
    let unit = (block_size / u64::from(options.inode_size)).max(8);
    let most = (8 * block_size).min(u64::from(u32::MAX) / groups / unit * unit);
    let wanted = match options.inodes {
        Inodes::Automatic => bytes / usual_inode_ratio(size),
        Inodes::Ratio(ratio) => bytes / u64::from(ratio),
        Inodes::Count(count) => u64::from(count),
    };
    let each = wanted.div_ceil(groups).next_multiple_of(unit);
    if matches!(options.inodes, Inodes::Count(_)) && each > most {
        let context = format!("{wanted} inodes in {groups} groups are more than {most} in each");
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    Ok(each.clamp(unit.max(16), most) as u32)
}

/// Bytes for each inode that mke2fs.conf has for the usage types `floppy`, `small`, none, `big` and `huge`.
fn usual_inode_ratio(size: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;
    match size {
        _ if size < 3 * MIB => 8192,
        _ if size < 512 * MIB => 4096,
        _ if size < 4 * TIB => 16_384,
        _ if size < 16 * TIB => 32_768,
        _ => 65_536,
    }
}

/// `sparse_super`: groups 0, 1 and the powers of 3, 5 and 7.
pub(super) fn sparse_super(group: u32) -> bool {
    let power_of = |base: u32| {
        let mut power = u64::from(base);
        while power < u64::from(group) {
            power *= u64::from(base);
        }
        power == u64::from(group)
    };
    group <= 1 || [3, 5, 7].into_iter().any(|base| group.is_multiple_of(base) && power_of(base))
}

fn too_small(blocks: u64, block_size: u32) -> Error {
    let context =
        format!("an ext4 file system with its metadata does not fit {blocks} blocks of {block_size}");
    Error::new(ErrorKind::NoSpace, context)
}

#[cfg(test)]
mod tests {
    use super::super::options::Variant;
    use super::*;

    fn layout(size: u64, change: impl Fn(&mut Ext4Options)) -> Result<Layout> {
        let mut options = Ext4Options::new(Variant::Ext4, [0; 16], [0; 16], 0);
        change(&mut options);
        Layout::new(size, &options)
    }

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
            let layout = layout(size, |options| {
                (options.block_size, options.inodes) = (block_size, Inodes::Ratio(ratio));
            });
            let layout = layout.expect("a layout");
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
        let groups: Vec<u32> = (0..130).filter(|group| sparse_super(*group)).collect();
        assert_eq!(groups, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        for backups in [Backups::SparseSuper, Backups::SparseSuper2, Backups::MetaGroups] {
            for gib in [0, 1, 3, 700] {
                let change = |options: &mut Ext4Options| options.backups = backups;
                let layout = layout((gib << 30) + (64 << 20), change).expect("a layout");
                let each = (0..layout.groups).filter(|group| layout.has_superblock(*group));
                assert_eq!(layout.superblock_groups(), each.collect::<Vec<u32>>());
            }
        }
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 1, 4096, 40_960] {
            assert_eq!(layout(size, |_| {}).expect_err("too small").kind(), ErrorKind::NoSpace);
        }
        let refused = |size, change: fn(&mut Ext4Options)| layout(size, change).expect_err("refused").kind();
        assert_eq!(refused(17 << 40, |_| {}), ErrorKind::Unsupported);
        assert_eq!(refused(8 << 20, |options| options.inodes = Inodes::Count(1 << 20)), ErrorKind::Invalid);
        // 1 KiB blocks: a copy of the descriptors is larger than a group.
        let narrow: fn(&mut Ext4Options) = |options| {
            (options.block_size, options.backups) = (1024, Backups::SparseSuper);
        };
        assert!(layout(1 << 39, narrow).is_ok());
        assert_eq!(refused(2 << 40, narrow), ErrorKind::Invalid);
    }
}
