//! Which clusters of a volume are in use.

use std::ops::Range;

use super::FatReader;
use crate::usage::{Merge, Usage, Visit};
use crate::{BlockDevice, Result};

/// Table entries looked at together; even, so that each step begins at a whole byte of FAT12 too.
const STEP: u32 = 1 << 17;

/// Visits what a FAT volume uses: everything in front of the clusters (reserved sectors, tables, the fixed root
/// directory) and each cluster whose table entry is not zero, bad ones too. Half a MiB of memory, whatever the size.
///
/// # Errors
/// `NotFound` where the boot sector is not one of FAT, `Corrupt` where it claims more than there is; both come
/// before the first visit.
pub fn used_extents(device: &dyn BlockDevice, visit: &mut Visit<'_>) -> Result<Usage> {
    let volume = FatReader::open(device)?;
    let mut merge = Merge::new(visit);
    merge.add(0..volume.data_offset)?;
    let end = volume.clusters + 2;
    let mut first = 2;
    while first < end {
        let next = end.min(first.saturating_add(STEP));
        let table = volume.table(first, next - 1)?;
        let mut run: Range<u32> = first..first;
        for cluster in first..next {
            if volume.entry(&table, first, cluster) != 0 {
                if run.end != cluster {
                    merge.add(volume.bytes_of(&run))?;
                    run.start = cluster;
                }
                run.end = cluster + 1;
            }
        }
        merge.add(volume.bytes_of(&run))?;
        first = next;
    }
    Ok(Usage { format: "vfat", block_size: volume.cluster_size, size: volume.size, used: merge.finish()? })
}

impl FatReader<'_> {
    /// Where a run of clusters lies.
    fn bytes_of(&self, run: &Range<u32>) -> Range<u64> {
        let at = |cluster: u32| self.data_offset + u64::from(cluster - 2) * u64::from(self.cluster_size);
        at(run.start)..at(run.end)
    }
}
