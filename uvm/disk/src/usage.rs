//! Which bytes of a device hold something: what copying, capturing and migration need not pass over.

use std::ops::Range;

use crate::Result;

/// Takes one extent of used bytes after the other: ascending, neither empty, overlapping nor adjacent, all on the
/// device. Its error ends the scan.
pub type Visit<'v> = dyn FnMut(Range<u64>) -> Result<()> + 'v;

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// As blkid names it: `ext2`, `ext3`, `ext4`, `vfat`, `ntfs`.
    pub format: &'static str,
    /// The unit of allocation, bytes.
    pub block_size: u32,
    /// Bytes the file system spans, from the start of the device.
    pub size: u64,
    /// Bytes in use, metadata included: the sum of the extents.
    pub used: u64,
}
