//! Which bytes the copies of a table take.

use std::ops::Range;

use super::header::Header;
use crate::field::read as read_bytes;
use crate::{BlockDevice, Result};

/// The protective MBR, and headers and entries of each copy whose header is sound, wherever they lie on the device.
pub(crate) fn areas(device: &dyn BlockDevice) -> Result<Vec<Range<u64>>> {
    let geometry = device.geometry();
    let block = u64::from(geometry.logical_block_size);
    let last_lba = geometry.blocks().saturating_sub(1);
    let mut areas = Vec::new();
    areas.push(0..block.min(geometry.size));
    let mut lbas = vec![1, last_lba];
    let mut seen = 0;
    while let Some(lba) = lbas.get(seen).copied() {
        seen += 1;
        if lba == 0 || lba > last_lba {
            continue;
        }
        let bytes = read_bytes(device, lba * block, block as usize, "reading a GPT header")?;
        areas.push(lba * block..(lba + 1) * block);
        let Ok(header) = Header::decode(&bytes, lba) else { continue };
        // Only the two ends of the device lead further: a disk that grew has its backup in the middle.
        if seen <= 2 && !lbas.contains(&header.alternate_lba) {
            lbas.push(header.alternate_lba);
        }
        let len = header.entries_len() as u64;
        let start = header.entries_lba.checked_mul(block).unwrap_or(geometry.size).min(geometry.size);
        areas.push(start..start.saturating_add(len.next_multiple_of(block)).min(geometry.size));
    }
    Ok(areas)
}
