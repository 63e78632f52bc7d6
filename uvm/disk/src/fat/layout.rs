//! Where the parts of a new volume lie.

use std::ops::Range;

use super::directory::ENTRY_LEN;
use super::{FatOptions, FatType};
use crate::{Error, ErrorKind, Geometry, Result};

const FATS: u8 = 2;
/// Entries of the fixed root directory of FAT12 and FAT16.
const ROOT_ENTRIES: u16 = 512;
pub(super) const BACKUP_BOOT_SECTOR: u32 = 6;
const MAX_CLUSTERS: u32 = 0x0fff_fff5;
const MAX_CLUSTER_SIZE: u32 = 64 << 10;
/// From here on mkfs.fat makes FAT32.
const FAT32_FROM: u64 = 512 << 20;

/// Sizes are in sectors unless named otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) fat_type: FatType,
    pub(super) sector_size: u32,
    pub(super) sectors_per_cluster: u32,
    pub(super) total_sectors: u32,
    pub(super) reserved: u32,
    pub(super) fats: u32,
    pub(super) fat_sectors: u32,
    /// Of the fixed root directory; 0 on FAT32.
    pub(super) root_entries: u32,
    pub(super) root_sectors: u32,
    pub(super) clusters: u32,
}

/// What is the same whatever the type and the size of clusters.
struct Frame {
    size: u64,
    sector_size: u32,
    total_sectors: u32,
    fats: u32,
    root_entries: u32,
}

impl Layout {
    pub(super) fn cluster_size(&self) -> u32 {
        self.sector_size * self.sectors_per_cluster
    }

    pub(super) fn fat_offset(&self, copy: u32) -> u64 {
        u64::from(self.reserved + copy * self.fat_sectors) * u64::from(self.sector_size)
    }

    pub(super) fn fat_len(&self) -> u64 {
        u64::from(self.fat_sectors) * u64::from(self.sector_size)
    }

    /// Byte offset of the fixed root directory.
    pub(super) fn fixed_root_offset(&self) -> u64 {
        self.fat_offset(self.fats)
    }

    /// Where consecutive clusters lie.
    pub(super) fn bytes_of(&self, first: u32, count: u32) -> Range<u64> {
        let data = self.fixed_root_offset() + u64::from(self.root_sectors) * u64::from(self.sector_size);
        let at = |cluster: u32| data + u64::from(cluster - 2) * u64::from(self.cluster_size());
        at(first)..at(first + count)
    }

    /// Lays a volume over a whole device.
    pub(super) fn new(geometry: &Geometry, options: &FatOptions) -> Result<Self> {
        let frame = Frame::new(geometry, options)?;
        let wanted: &[FatType] = match options.fat_type {
            Some(FatType::Fat12) => &[FatType::Fat12],
            Some(FatType::Fat16) => &[FatType::Fat16],
            Some(FatType::Fat32) => &[FatType::Fat32],
            None if geometry.size >= FAT32_FROM => &[FatType::Fat32, FatType::Fat16, FatType::Fat12],
            None => &[FatType::Fat16, FatType::Fat12, FatType::Fat32],
        };
        for fat_type in wanted {
            for cluster_size in frame.cluster_sizes(*fat_type, options)? {
                if let Some(layout) = frame.lay_out(*fat_type, cluster_size / frame.sector_size) {
                    return Ok(layout);
                }
            }
        }
        let context = format!(
            "{} bytes in sectors of {}{} make no FAT volume of type {wanted:?}: FAT12 has 1 to 4084 clusters, FAT16 4085 \
             to 65524, FAT32 65525 to {MAX_CLUSTERS}, each of at most 64 KiB",
            frame.size,
            frame.sector_size,
            options.cluster_size.map_or(String::new(), |size| format!(" and clusters of {size}")),
        );
        Err(Error::new(ErrorKind::NoSpace, context))
    }
}

impl Frame {
    fn new(geometry: &Geometry, options: &FatOptions) -> Result<Self> {
        let refused = |context: String| Err(Error::new(ErrorKind::Invalid, context));
        let block = geometry.logical_block_size;
        let sector_size = options.sector_size.unwrap_or(block);
        if !matches!(sector_size, 512 | 1024 | 2048 | 4096) || sector_size < block {
            return refused(format!("FAT with sectors of {sector_size} bytes on blocks of {block}"));
        }
        let fats = options.fats.unwrap_or(FATS);
        if !(1..=2).contains(&fats) {
            return refused(format!("{fats} copies of the FAT: there are 1 or 2"));
        }
        let entries = u32::from(options.root_entries.unwrap_or(ROOT_ENTRIES));
        let root_entries = entries.next_multiple_of(sector_size / ENTRY_LEN as u32);
        if entries < 16 || root_entries > u32::from(u16::MAX) {
            return refused(format!("{entries} entries in the root directory of a FAT volume"));
        }
        // The last sector of 2 TiB cannot be counted, and is left out.
        let sectors = geometry.size / u64::from(sector_size);
        let counted = sectors - u64::from(sectors == 1 << 32);
        let Ok(total_sectors) = u32::try_from(counted) else {
            return refused(format!("FAT on {sectors} sectors of {sector_size} bytes: the limit is 2^32"));
        };
        Ok(Self { size: geometry.size, sector_size, total_sectors, fats: fats.into(), root_entries })
    }

    /// `None` where the number of clusters is not one of that type.
    fn lay_out(&self, fat_type: FatType, sectors_per_cluster: u32) -> Option<Layout> {
        let is_32 = fat_type == FatType::Fat32;
        let root_entries = if is_32 { 0 } else { self.root_entries };
        let root_sectors = root_entries * ENTRY_LEN as u32 / self.sector_size;
        let mut reserved = if is_32 { 32 } else { 1 };
        // The table for all sectors without the tables: a little more than needed, never less.
        let most_clusters = self.total_sectors.checked_sub(reserved + root_sectors)? / sectors_per_cluster;
        let fat_len = fat_type.table_len(u64::from(most_clusters) + 2);
        let fat_sectors = u32::try_from(fat_len.div_ceil(u64::from(self.sector_size))).ok()?;
        let metadata = fat_sectors.checked_mul(self.fats)?.checked_add(root_sectors)?;
        // Clusters lie on multiples of their own size, so that writes of whole clusters are aligned.
        let misaligned = reserved.checked_add(metadata)? % sectors_per_cluster;
        reserved += (sectors_per_cluster - misaligned) % sectors_per_cluster;
        let clusters = self.total_sectors.checked_sub(reserved.checked_add(metadata)?)? / sectors_per_cluster;
        let fits = clusters > 0 && clusters <= MAX_CLUSTERS && FatType::of(clusters) == fat_type;
        (fits && (is_32 || fat_sectors <= u32::from(u16::MAX))).then_some(Layout {
            fat_type,
            sector_size: self.sector_size,
            sectors_per_cluster,
            total_sectors: self.total_sectors,
            reserved,
            fats: self.fats,
            fat_sectors,
            root_entries,
            root_sectors,
            clusters,
        })
    }

    /// Cluster sizes to try, best first.
    fn cluster_sizes(&self, fat_type: FatType, options: &FatOptions) -> Result<Vec<u32>> {
        let largest = self.sector_size.saturating_mul(128).min(MAX_CLUSTER_SIZE);
        if let Some(wanted) = options.cluster_size {
            if !wanted.is_power_of_two() || !(self.sector_size..=largest).contains(&wanted) {
                let range = format!("powers of two from {} to {largest} are possible", self.sector_size);
                let context = format!("FAT clusters of {wanted} bytes: {range}");
                return Err(Error::new(ErrorKind::Invalid, context));
            }
            return Ok(vec![wanted]);
        }
        let default: u32 = match (fat_type, self.size.saturating_sub(1) >> 30) {
            (FatType::Fat32, 0..8) => 4 << 10,
            (FatType::Fat32, 8..16) => 8 << 10,
            (FatType::Fat32, 16..32) => 16 << 10,
            (FatType::Fat32, _) => 32 << 10,
            // As mkfs.fat counts, in sectors.
            (FatType::Fat12 | FatType::Fat16, _) => self.sector_size * 4,
        };
        let default = default.max(self.sector_size);
        let larger = (1..8).map(|i| default << i).take_while(|size| *size <= largest);
        let smaller = (1..8).map(|i| default >> i).take_while(|size| *size >= self.sector_size);
        let first = std::iter::once(default);
        Ok(match fat_type {
            FatType::Fat32 => first.chain(smaller).chain(larger).collect(),
            // What has too few clusters for FAT16 becomes FAT12, not FAT16 with smaller ones.
            FatType::Fat16 if options.fat_type.is_none() => first.chain(larger).collect(),
            FatType::Fat12 | FatType::Fat16 => first.chain(larger).chain(smaller).collect(),
        })
    }
}
