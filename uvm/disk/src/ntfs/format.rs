//! Writing a new volume.

use super::files::{self, Files};
use super::layout::{FixedSizes, Layout};
use super::record::Extent;
use super::{security, upcase};
use crate::field::{expect, flush, write};
use crate::{BlockDevice, Error, ErrorKind, Result};

/// UTF-16 units of a label, by `$AttrDef`.
const MAX_LABEL: usize = 128;
/// Cleared at both ends of the device before anything else: no signature of what was there survives.
const CLEARED: u64 = 1 << 20;
/// Bytes of one write.
const CHUNK: usize = 1 << 20;

/// What a new volume is to be.
#[derive(Debug, Clone, Default)]
pub struct NtfsOptions {
    /// Bytes, a power of two from the logical block size to 64 KiB; `None` for 4 KiB, or as many more as the size of
    /// the device demands.
    pub cluster_size: Option<u32>,
    /// At most 128 UTF-16 units; Windows shows and sets up to 32.
    pub label: String,
    /// The serial number, by which the volume is known.
    pub serial: u64,
    /// Seconds since 1970, of all files.
    pub timestamp: u64,
    /// Logical blocks on the disk before the partition, which boot loaders want to know.
    pub hidden_sectors: u32,
}

/// What a new volume became.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NtfsSummary {
    /// Bytes.
    pub cluster_size: u32,
    /// Clusters of the volume.
    pub clusters: u64,
    /// Those in use.
    pub used_clusters: u64,
    /// Bytes of a record of the `$MFT`.
    pub mft_record_size: u32,
    /// Bytes of `$LogFile`.
    pub log_size: u64,
}

/// Makes the device an empty NTFS 3.1 volume, by writing nothing but its metadata. The same device size, options and
/// block size give the same bytes. The boot sector goes in last: before that there is no volume, neither the new one
/// nor what was there.
pub fn format(device: &dyn BlockDevice, options: &NtfsOptions) -> Result<NtfsSummary> {
    let label = options.label.encode_utf16().count();
    if label > MAX_LABEL || options.label.contains('\0') {
        let context =
            format!("NTFS label {:?}: at most {MAX_LABEL} UTF-16 units, none of them 0", options.label);
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    let shared = security::shared();
    let (sds, upcase) = (security::sds(&shared), upcase::bytes());
    let attribute_definitions = files::attribute_definitions();
    let sizes = FixedSizes {
        sds: sds.len() as u64,
        upcase: upcase.len() as u64,
        attribute_definitions: attribute_definitions.len() as u64,
    };
    let geometry = device.geometry();
    let layout = Layout::new(geometry, options, &sizes)?;
    let finished = Files::create(&layout, options, &shared);

    clear(device)?;
    let whole = |extent, bytes: &[u8], context: &str| write_whole(device, &layout, extent, bytes, context);
    whole(layout.sds, &sds, "writing $Secure")?;
    whole(layout.upcase, &upcase, "writing $UpCase")?;
    whole(layout.attribute_definitions, &attribute_definitions, "writing $AttrDef")?;
    whole(layout.root_index, &finished.root_block, "writing the NTFS root directory")?;
    whole(layout.mft_bitmap, &files::mft_bitmap(), "writing the bitmap of the $MFT")?;
    whole(layout.mft, &finished.mft, "writing the $MFT")?;
    let mirrored = &finished.mft[..layout.len(layout.mirror) as usize];
    whole(layout.mirror, mirrored, "writing $MFTMirr")?;
    write_log(device, &layout)?;
    write_bitmap(device, &layout)?;
    flush(device, "flushing the files of the NTFS volume")?;

    let boot = layout.boot.encode();
    let backup = layout.boot.sectors * u64::from(layout.boot.sector_size);
    write(device, backup, &boot, "writing the backup of the NTFS boot sector")?;
    write(device, 0, &boot, "writing the NTFS boot sector")?;
    flush(device, "flushing the NTFS boot sector")?;
    expect(device, backup, &boot, "reading back the backup of the NTFS boot sector")?;
    expect(device, 0, &boot, "reading back the NTFS boot sector")?;
    Ok(NtfsSummary {
        cluster_size: layout.boot.cluster_size,
        clusters: layout.clusters,
        used_clusters: layout.used().iter().map(|extent| extent.clusters).sum(),
        mft_record_size: layout.boot.record_size,
        log_size: layout.len(layout.log),
    })
}

/// From here on there is neither a file system nor a partition table; the rest of `$Boot` is zero for good.
fn clear(device: &dyn BlockDevice) -> Result<()> {
    let size = device.geometry().size;
    let len = CLEARED.min(size);
    for offset in [0, size - len] {
        let cleared = device.write_zeroes(offset, len);
        cleared.map_err(|e| Error::io("clearing what was there before NTFS", offset, e))?;
    }
    flush(device, "flushing the clearing of what was there")
}

/// Writes the contents of an extent, and zeroes to its end: nothing old stays in a cluster that is in use.
fn write_whole(
    device: &dyn BlockDevice,
    layout: &Layout,
    extent: Extent,
    bytes: &[u8],
    context: &str,
) -> Result<()> {
    let mut padded = bytes.to_vec();
    padded.resize(layout.len(extent) as usize, 0);
    write(device, layout.offset(extent), &padded, context)
}

/// A log of nothing but ones is one that was never used.
fn write_log(device: &dyn BlockDevice, layout: &Layout) -> Result<()> {
    let ones = vec![0xff; CHUNK];
    let (start, len) = (layout.offset(layout.log), layout.len(layout.log));
    for offset in (0..len).step_by(CHUNK) {
        let take = (len - offset).min(CHUNK as u64) as usize;
        write(device, start + offset, &ones[..take], "writing $LogFile")?;
    }
    Ok(())
}

/// A bit for each cluster. Those past the end are set, so that nobody takes them.
fn write_bitmap(device: &dyn BlockDevice, layout: &Layout) -> Result<()> {
    let mut used: Vec<(u64, u64)> =
        layout.used().iter().filter_map(|extent| Some((extent.lcn?, extent.clusters))).collect();
    used.push((layout.clusters, layout.bitmap_size * 8 - layout.clusters));
    let (start, len) = (layout.offset(layout.bitmap), layout.len(layout.bitmap));
    for offset in (0..len).step_by(CHUNK) {
        let take = (len - offset).min(CHUNK as u64);
        let bits = offset * 8..(offset + take) * 8;
        let mut bytes = Vec::new();
        for (first, count) in &used {
            let (from, to) = (bits.start.max(*first), bits.end.min(first + count));
            if from < to {
                bytes.resize(take as usize, 0);
                set_bits(&mut bytes, (from - bits.start) as usize..(to - bits.start) as usize);
            }
        }
        let context = "writing $Bitmap";
        if bytes.is_empty() {
            // Most of it on a large volume: a device may have a faster way to zeroes.
            let zeroed = device.write_zeroes(start + offset, take);
            zeroed.map_err(|e| Error::io(context, start + offset, e))?;
        } else {
            write(device, start + offset, &bytes, context)?;
        }
    }
    Ok(())
}

fn set_bits(bytes: &mut [u8], bits: std::ops::Range<usize>) {
    for bit in bits {
        bytes[bit / 8] |= 1 << (bit % 8);
    }
}
