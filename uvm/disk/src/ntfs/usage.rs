//! Which clusters of a volume are in use, by its `$Bitmap`.

use std::ops::Range;

use super::boot::BOOT_SIZE;
use super::reader::{Volume, corrupt, unprotect};
use super::{file, kind};
use crate::field::{le16, le32, le64};
use crate::usage::{Merge, Usage, Visit};
use crate::{BlockDevice, Error, ErrorKind, Result};

/// Bytes of the bitmap that are in memory at once.
const CHUNK: u64 = 1 << 20;
/// A flag in `$VOLUME_INFORMATION`: not unmounted, or in need of chkdsk.
const DIRTY: u16 = 1;

/// Visits everything on an NTFS volume that is in use, the backup of the boot sector included.
///
/// # Errors
/// [`ErrorKind::NotFound`] where there is no NTFS. [`ErrorKind::Unsupported`] where the volume was not unmounted: what
/// its log would still change is not in the bitmap. [`ErrorKind::Corrupt`] where it contradicts itself.
pub fn used_extents(device: &dyn BlockDevice, visit: &mut Visit<'_>) -> Result<Usage> {
    let volume = Volume::open(device)?;
    expect_clean(device, &volume)?;
    let boot = volume.boot;
    let cluster_size = u64::from(boot.cluster_size);
    let clusters = boot.clusters();
    let bitmap = volume.data(file::BITMAP)?;
    if bitmap.initialized < clusters.div_ceil(8) {
        return Err(corrupt("the $Bitmap is shorter than the volume"));
    }

    let mut extents = Merge::new(visit);
    // The boot sector lies there whatever the bitmap says.
    extents.add(0..BOOT_SIZE.min(clusters * cluster_size))?;
    let mut buf = Vec::new();
    for start in (0..clusters).step_by((CHUNK * 8) as usize) {
        let bits = (clusters - start).min(CHUNK * 8);
        // Whole words; what follows the last bit does not count.
        let len = bits.div_ceil(8);
        buf.resize(len.next_multiple_of(8) as usize, 0);
        bitmap.read_at(device, &boot, start / 8, &mut buf[..len as usize], "reading the $Bitmap")?;
        set_runs(&buf, bits, &mut |run| {
            extents.add((start + run.start) * cluster_size..(start + run.end) * cluster_size)
        })?;
    }
    // What is left of the last cluster, and the backup of the boot sector after the volume's last one.
    let sectors = boot.sectors * u64::from(boot.sector_size);
    let size = (sectors + u64::from(boot.sector_size)).min(device.geometry().size);
    extents.add(clusters * cluster_size..size)?;
    let used = extents.finish()?;
    Ok(Usage { format: "ntfs", block_size: boot.cluster_size, size, used })
}

/// The runs of bits that are set among the first `bits` of whole words.
fn set_runs(bytes: &[u8], bits: u64, each: &mut dyn FnMut(Range<u64>) -> Result<()>) -> Result<()> {
    let mut open: Option<u64> = None;
    for (index, word) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let base = index as u64 * 64;
        let word = u64::from_le_bytes(*word);
        // The common cases: nothing changes in this word.
        if (word == 0 && open.is_none()) || (word == u64::MAX && open.is_some()) {
            continue;
        }
        let mut at = 0_u32;
        while at < 64 {
            let rest = word >> at;
            match open {
                None => {
                    at += rest.trailing_zeros();
                    if at < 64 {
                        open = Some(base + u64::from(at));
                    }
                }
                Some(start) => {
                    at += rest.trailing_ones();
                    if at < 64 {
                        open = None;
                        if start < bits {
                            each(start..(base + u64::from(at)).min(bits))?;
                        }
                    }
                }
            }
        }
    }
    match open {
        Some(start) if start < bits => each(start..bits),
        _ => Ok(()),
    }
}

fn expect_clean(device: &dyn BlockDevice, volume: &Volume<'_>) -> Result<()> {
    let information = volume.volume_attribute(kind::VOLUME_INFORMATION)?;
    let information =
        information.ok_or_else(|| corrupt("the NTFS volume does not say whether it is clean"))?;
    if le16(&information, 10) & DIRTY != 0 || !log_is_clean(device, volume)? {
        let context = "the NTFS volume was not unmounted, or needs chkdsk: its bitmap cannot be relied on";
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(())
}

/// Whether the log says that nothing of it is to be done: it was never used, nobody has it open, or it was closed by
/// an unmount. Its first two pages are restart pages, of which the newer one counts.
fn log_is_clean(device: &dyn BlockDevice, volume: &Volume<'_>) -> Result<bool> {
    const NEVER_USED: [u8; 4] = [0xff; 4];
    const NO_CLIENT: u16 = 0xffff;
    const CLEAN: u16 = 2;
    let log = volume.data(file::LOG_FILE)?;
    let context = "reading the restart pages of $LogFile";
    let mut page_size = 4096_u64;
    let mut newest: Option<(u64, bool)> = None;
    for index in 0..2 {
        if log.size < (index + 1) * page_size {
            break;
        }
        let mut page = vec![0; page_size as usize];
        log.read_at(device, &volume.boot, index * page_size, &mut page, context)?;
        if index == 0 && page.starts_with(&NEVER_USED) {
            return Ok(true);
        }
        let claimed = u64::from(le32(&page, 16));
        if index == 0 && page.starts_with(b"RSTR") && claimed != page_size {
            // A page size from 512 bytes up to 64 KiB.
            if !claimed.is_power_of_two() || !(512..=64 << 10).contains(&claimed) || log.size < claimed {
                return Ok(false);
            }
            page_size = claimed;
            page = vec![0; page_size as usize];
            log.read_at(device, &volume.boot, 0, &mut page, context)?;
        }
        if !page.starts_with(b"RSTR") || unprotect(&mut page).is_none() {
            continue;
        }
        let area = page.get(usize::from(le16(&page, 24))..).unwrap_or_default();
        let is_clean = area.len() >= 16 && (le16(area, 12) == NO_CLIENT || le16(area, 14) & CLEAN != 0);
        let lsn = le64(area, 0);
        if newest.is_none_or(|(before, _)| lsn >= before) {
            newest = Some((lsn, is_clean));
        }
    }
    Ok(newest.is_some_and(|(_, is_clean)| is_clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits_are_found_across_words_and_cut_at_the_end() {
        let runs = |bytes: &[u8], bits| {
            let mut found = Vec::new();
            set_runs(bytes, bits, &mut |run| {
                found.push((run.start, run.end));
                Ok(())
            })
            .unwrap();
            found
        };
        let mut bytes = [0_u8; 24];
        assert_eq!(runs(&bytes, 192), []);
        bytes[0] = 0b0000_0110;
        bytes[7] = 0x80;
        bytes[8..17].fill(0xff);
        assert_eq!(runs(&bytes, 192), [(1, 3), (63, 136)]);
        assert_eq!(runs(&bytes, 100), [(1, 3), (63, 100)]);
        assert_eq!(runs(&bytes, 63), [(1, 3)]);
        assert_eq!(runs(&[0xff; 24], 192), [(0, 192)]);
    }
}
