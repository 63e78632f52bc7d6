//! Where the parts of a new volume lie.

use super::{FatOptions, FatType};
use crate::{Error, ErrorKind, Geometry, Result};

const FATS: u32 = 2;
/// Entries of the fixed root directory of FAT12 and FAT16.
pub(super) const FIXED_ROOT_ENTRIES: u32 = 512;
pub(super) const BACKUP_BOOT_SECTOR: u32 = 6;
const MAX_CLUSTERS: u32 = 0x0fff_fff5;

/// Sizes are in sectors unless named otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) fat_type: FatType,
    pub(super) sector_size: u32,
    pub(super) sectors_per_cluster: u32,
    pub(super) total_sectors: u32,
    pub(super) reserved: u32,
    pub(super) fat_sectors: u32,
    pub(super) root_sectors: u32,
    pub(super) clusters: u32,
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
        self.fat_offset(FATS)
    }

    pub(super) fn cluster_offset(&self, cluster: u32) -> u64 {
        let data = self.fixed_root_offset() + u64::from(self.root_sectors) * u64::from(self.sector_size);
        data + u64::from(cluster - 2) * u64::from(self.cluster_size())
    }

    /// Lays a volume over a whole device.
    pub(super) fn new(geometry: &Geometry, options: &FatOptions) -> Result<Self> {
        let sector_size = geometry.logical_block_size;
        if !matches!(sector_size, 512 | 1024 | 2048 | 4096) {
            return Err(Error::new(ErrorKind::Unsupported, format!("FAT on sectors of {sector_size} bytes")));
        }
        let total_sectors = u32::try_from(geometry.blocks()).map_err(|_| {
            Error::new(ErrorKind::Invalid, format!("FAT on {} sectors: the limit is 2^32", geometry.blocks()))
        })?;
        let wanted = match options.fat_type {
            Some(fat_type) => vec![fat_type],
            None => vec![FatType::Fat32, FatType::Fat16, FatType::Fat12],
        };
        for fat_type in &wanted {
            for cluster_size in cluster_sizes(geometry.size, sector_size, options.cluster_size)? {
                let layout = Self::try_new(*fat_type, sector_size, total_sectors, cluster_size / sector_size);
                if let Some(layout) = layout {
                    return Ok(layout);
                }
            }
        }
        let kind = if options.fat_type == Some(FatType::Fat32) || wanted.len() > 1 {
            ErrorKind::NoSpace
        } else {
            ErrorKind::Invalid
        };
        let context = format!(
            "no layout of {:?} on {} bytes with sectors of {sector_size} bytes has a valid number of clusters \
             (FAT32 needs 65525)",
            wanted, geometry.size
        );
        Err(Error::new(kind, context))
    }

    /// `None` where the number of clusters is not one of that type.
    fn try_new(fat_type: FatType, sector_size: u32, total: u32, sectors_per_cluster: u32) -> Option<Self> {
        let (mut reserved, root_sectors) = match fat_type {
            FatType::Fat32 => (32, 0),
            _ => (1, (FIXED_ROOT_ENTRIES * 32).div_ceil(sector_size)),
        };
        // The table for all sectors without the tables: a little more than needed, never less.
        let most_clusters = total.checked_sub(reserved + root_sectors)? / sectors_per_cluster;
        let fat_len = fat_type.table_len(u64::from(most_clusters) + 2);
        let fat_sectors = u32::try_from(fat_len.div_ceil(u64::from(sector_size))).ok()?;
        let metadata = fat_sectors.checked_mul(FATS)?.checked_add(root_sectors)?;
        // Clusters lie on multiples of their own size, so that writes of whole clusters are aligned.
        let misaligned = reserved.checked_add(metadata)? % sectors_per_cluster;
        reserved += (sectors_per_cluster - misaligned) % sectors_per_cluster;
        let clusters = total.checked_sub(reserved.checked_add(metadata)?)? / sectors_per_cluster;
        let fits = clusters > 0 && clusters <= MAX_CLUSTERS && FatType::of(clusters) == fat_type;
        (fits && (fat_type == FatType::Fat32 || fat_sectors <= u32::from(u16::MAX))).then_some(Self {
            fat_type,
            sector_size,
            sectors_per_cluster,
            total_sectors: total,
            reserved,
            fat_sectors,
            root_sectors,
            clusters,
        })
    }
}

/// Cluster sizes to try, best first.
fn cluster_sizes(size: u64, sector_size: u32, wanted: Option<u32>) -> Result<Vec<u32>> {
    let largest = sector_size.saturating_mul(128).min(64 << 10);
    if let Some(wanted) = wanted {
        if !wanted.is_power_of_two() || !(sector_size..=largest).contains(&wanted) {
            let context = format!("clusters of {wanted} bytes on sectors of {sector_size}");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        return Ok(vec![wanted]);
    }
    let default: u32 = match size >> 30 {
        0..8 => 4 << 10,
        8..16 => 8 << 10,
        16..32 => 16 << 10,
        _ => 32 << 10,
    };
    let default = default.max(sector_size);
    let smaller = (0..8).map(|i| default >> i).take_while(|size| *size >= sector_size);
    // FAT16 needs larger clusters than the default past 256 MiB.
    let larger = (1..5).map(|i| default << i).take_while(|size| *size <= largest);
    Ok(smaller.chain(larger).collect())
}
