//! Which sizes a new volume gets, and where its files lie.

use super::boot::{BOOT_SIZE, Boot};
use super::record::Extent;
use super::{INDEX_BLOCK_SIZE, NtfsOptions, file};
use crate::{Error, ErrorKind, Geometry, Result};

const DEFAULT_CLUSTER_SIZE: u32 = 4096;
const MAX_CLUSTER_SIZE: u32 = 64 << 10;
/// As many as a cluster number of Windows can count.
const MAX_CLUSTERS: u64 = u32::MAX as u64;
/// Windows has no smaller volume.
const MIN_SIZE: u64 = 1 << 20;
/// Less than this makes Windows fail.
const MIN_LOG_SIZE: u64 = 256 << 10;
const MAX_LOG_SIZE: u64 = 64 << 20;

/// Where everything of a new volume lies. Each file is in one piece.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) boot: Boot,
    pub(super) clusters: u64,
    /// `$Boot`, the bitmap of the `$MFT` and the `$MFT`.
    pub(super) boot_file: Extent,
    pub(super) mft_bitmap: Extent,
    pub(super) mft: Extent,
    /// The beginning of the `$MFT` once more, in the middle of the volume, and the log after it.
    pub(super) mirror: Extent,
    pub(super) log: Extent,
    pub(super) sds: Extent,
    pub(super) upcase: Extent,
    pub(super) root_index: Extent,
    pub(super) bitmap: Extent,
    pub(super) attribute_definitions: Extent,
    /// Bytes of `$Bitmap`, a multiple of eight.
    pub(super) bitmap_size: u64,
}

/// Sizes of files whose contents do not depend on the volume.
pub(super) struct FixedSizes {
    pub(super) sds: u64,
    pub(super) upcase: u64,
    pub(super) attribute_definitions: u64,
}

impl Layout {
    pub(super) fn new(geometry: Geometry, options: &NtfsOptions, sizes: &FixedSizes) -> Result<Self> {
        let sector_size = geometry.logical_block_size;
        if !sector_size.is_power_of_two() || !(512..=4096).contains(&sector_size) {
            return Err(invalid(format!("NTFS on sectors of {sector_size} bytes")));
        }
        if geometry.size < MIN_SIZE {
            return Err(no_space(format!("NTFS on {} bytes: at least {MIN_SIZE}", geometry.size)));
        }
        // The last sector is left to the backup of the boot sector.
        let sectors = geometry.blocks() - 1;
        let cluster_size = cluster_size(options.cluster_size, sector_size, sectors)?;
        let clusters = sectors * u64::from(sector_size) / u64::from(cluster_size);
        let record_size = sector_size.max(1024);
        let whole = |bytes: u64| bytes.div_ceil(u64::from(cluster_size));

        let mut space = Space { clusters, used: Vec::new() };
        let boot_file = space.take_at(0, whole(BOOT_SIZE))?;
        let mft_bitmap = space.take_at(boot_file.clusters, 1)?;
        let mft_at = whole(2 * BOOT_SIZE).max(boot_file.clusters + 1);
        let mft = space.take_at(mft_at, whole(u64::from(file::COUNT * record_size)))?;
        let middle = clusters / 2;
        let mirror = space.take_at(middle, whole(4 * u64::from(record_size)))?;
        let log_at = middle + mirror.clusters;
        let log_size = log_size(clusters * u64::from(cluster_size), u64::from(cluster_size), |size| {
            log_at + whole(size) <= clusters
        })?;
        let log = space.take_at(log_at, whole(log_size))?;
        // The eighth after the $MFT is left to its growth.
        let mut take = |bytes| space.take_from(mft_at + mft.clusters + clusters / 8, whole(bytes));
        let bitmap_size = clusters.div_ceil(64) * 8;
        let index_block_size = INDEX_BLOCK_SIZE;
        let layout = Self {
            sds: take(sizes.sds)?,
            upcase: take(sizes.upcase)?,
            root_index: take(u64::from(index_block_size))?,
            bitmap: take(bitmap_size)?,
            attribute_definitions: take(sizes.attribute_definitions)?,
            boot: Boot {
                sector_size,
                cluster_size,
                sectors,
                hidden_sectors: options.hidden_sectors,
                mft_lcn: mft_at,
                mirror_lcn: middle,
                record_size,
                index_block_size,
                serial: options.serial,
            },
            clusters,
            boot_file,
            mft_bitmap,
            mft,
            mirror,
            log,
            bitmap_size,
        };
        Ok(layout)
    }

    /// Bytes of one of its extents.
    pub(super) fn len(&self, extent: Extent) -> u64 {
        extent.clusters * u64::from(self.boot.cluster_size)
    }

    /// Where on the device one of its extents begins.
    pub(super) fn offset(&self, extent: Extent) -> u64 {
        extent.lcn.unwrap_or(0) * u64::from(self.boot.cluster_size)
    }

    /// Everything that is in use.
    pub(super) fn used(&self) -> [Extent; 10] {
        [
            self.boot_file,
            self.mft_bitmap,
            self.mft,
            self.mirror,
            self.log,
            self.sds,
            self.upcase,
            self.root_index,
            self.bitmap,
            self.attribute_definitions,
        ]
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::Invalid, context)
}

fn no_space(context: String) -> Error {
    Error::new(ErrorKind::NoSpace, context)
}

/// What was asked for, where it is possible; else 4 KiB, or more on a volume that needs it.
fn cluster_size(asked: Option<u32>, sector_size: u32, sectors: u64) -> Result<u32> {
    let size = sectors.saturating_mul(u64::from(sector_size));
    let fits = |cluster_size: u32| size / u64::from(cluster_size) <= MAX_CLUSTERS;
    let Some(asked) = asked else {
        let sizes = (0..).map(|power| DEFAULT_CLUSTER_SIZE << power);
        let possible = sizes.take_while(|size| *size <= MAX_CLUSTER_SIZE).find(|size| fits(*size));
        return possible.ok_or_else(|| {
            let most = MAX_CLUSTERS * u64::from(MAX_CLUSTER_SIZE);
            no_space(format!("NTFS on {size} bytes: at most {most}"))
        });
    };
    if !asked.is_power_of_two() || !(sector_size..=MAX_CLUSTER_SIZE).contains(&asked) {
        let range = format!("powers of two from {sector_size} to {MAX_CLUSTER_SIZE} are possible");
        return Err(invalid(format!("NTFS clusters of {asked} bytes: {range}")));
    }
    if !fits(asked) {
        let most = MAX_CLUSTERS * u64::from(asked);
        return Err(no_space(format!("NTFS on {size} bytes with clusters of {asked}: at most {most}")));
    }
    Ok(asked)
}

/// Bytes of the log: the size that mkntfs found Windows to choose, or half of it until it fits.
fn log_size(volume: u64, cluster_size: u64, fits: impl Fn(u64) -> bool) -> Result<u64> {
    const MIB: u64 = 1 << 20;
    let wanted = match volume {
        0..0x20_0000 => 256 << 10,
        0x20_0000..4_000_000 => 512 << 10,
        4_000_000..=0xc80_0000 => 2 * MIB,
        _ => (volume / 200 / cluster_size * cluster_size).min(MAX_LOG_SIZE),
    };
    let halves = std::iter::successors(Some(wanted), |size| Some(size / 2 / cluster_size * cluster_size));
    halves.take_while(|size| *size >= MIN_LOG_SIZE).find(|size| fits(*size)).ok_or_else(|| {
        no_space(format!("an NTFS volume of {volume} bytes has no room for a log of {MIN_LOG_SIZE}"))
    })
}

/// Hands out clusters.
struct Space {
    clusters: u64,
    /// First cluster and number of clusters, by the first.
    used: Vec<(u64, u64)>,
}

impl Space {
    /// These very clusters.
    fn take_at(&mut self, lcn: u64, clusters: u64) -> Result<Extent> {
        match self.free_from(lcn, clusters) {
            Some(found) if found == lcn => {
                self.used.push((lcn, clusters));
                self.used.sort_unstable();
                Ok(Extent { lcn: Some(lcn), clusters })
            }
            _ => Err(no_space(format!("an NTFS volume of {} clusters is too small", self.clusters))),
        }
    }

    /// The first that are free from `lcn`, else from the start.
    fn take_from(&mut self, lcn: u64, clusters: u64) -> Result<Extent> {
        let found = self.free_from(lcn, clusters).or_else(|| self.free_from(0, clusters));
        self.take_at(found.unwrap_or(self.clusters), clusters)
    }

    fn free_from(&self, lcn: u64, clusters: u64) -> Option<u64> {
        let mut lcn = lcn;
        for (first, count) in &self.used {
            if lcn + clusters <= *first {
                break;
            }
            lcn = lcn.max(first + count);
        }
        (lcn + clusters <= self.clusters).then_some(lcn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIB: u64 = 1 << 40;
    const SIZES: FixedSizes = FixedSizes { sds: 262_396, upcase: 131_072, attribute_definitions: 2560 };

    fn layout(size: u64, block: u32, cluster_size: Option<u32>) -> Result<Layout> {
        let geometry = Geometry { size, logical_block_size: block, physical_block_size: block };
        Layout::new(geometry, &NtfsOptions { cluster_size, ..Default::default() }, &SIZES)
    }

    #[test]
    fn files_lie_apart_from_each_other_inside_the_volume() {
        let mut laid_out = 0;
        for block in [512, 4096] {
            for power in u32::trailing_zeros(block)..=16 {
                let sizes = (20..=48).flat_map(|power| [1 << power, (1 << power) * 3 / 2 + 4096]);
                for size in sizes {
                    let layout = match layout(size, block, Some(1 << power)) {
                        Ok(layout) => layout,
                        Err(error) => {
                            let tight = size < 4 << 20 || size >> power > MAX_CLUSTERS;
                            assert!(tight && error.kind() == ErrorKind::NoSpace, "{size} {power}: {error}");
                            continue;
                        }
                    };
                    laid_out += 1;
                    let mut used: Vec<_> =
                        layout.used().iter().map(|e| (e.lcn.unwrap(), e.clusters)).collect();
                    used.sort_unstable();
                    assert!(used.iter().all(|(_, clusters)| *clusters > 0));
                    assert!(used.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{used:?}");
                    let end = used.last().map(|(lcn, clusters)| lcn + clusters).unwrap();
                    assert!(end <= layout.clusters, "{used:?} of {}", layout.clusters);
                    assert!(layout.clusters << power <= size - u64::from(block));
                    assert!((MIN_LOG_SIZE..=MAX_LOG_SIZE).contains(&layout.len(layout.log)));
                    assert!(layout.mirror.clusters <= layout.mft.clusters);
                }
            }
        }
        assert!(laid_out > 400, "{laid_out}");
    }

    #[test]
    fn clusters_grow_with_the_volume_when_nobody_asks() {
        let chosen = |size, block| layout(size, block, None).map(|layout| layout.boot.cluster_size);
        assert_eq!(chosen(MIN_SIZE, 512).unwrap(), 4096);
        assert_eq!(chosen(16 * TIB - 4096, 512).unwrap(), 4096);
        assert_eq!(chosen(16 * TIB + 4096, 512).unwrap(), 8192);
        assert_eq!(chosen(100 * TIB, 4096).unwrap(), 32_768);
        assert_eq!(chosen(256 * TIB - 65_536, 512).unwrap(), 65_536);
        assert_eq!(chosen(256 * TIB + 65_536, 512).unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
