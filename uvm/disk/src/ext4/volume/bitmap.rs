//! Block bitmaps: bits, and what a group that was never written to has in its bitmap.

use std::ops::Range;

use super::descriptor::{Descriptor, Field};
use super::superblock::Geometry;

pub(super) fn is_set(bitmap: &[u8], bit: u64) -> bool {
    bitmap.get((bit / 8) as usize).is_some_and(|byte| byte & 1 << (bit % 8) != 0)
}

pub(super) fn set(bitmap: &mut [u8], bits: Range<u64>) {
    change(bitmap, bits, true);
}

pub(super) fn clear(bitmap: &mut [u8], bits: Range<u64>) {
    change(bitmap, bits, false);
}

fn change(bitmap: &mut [u8], bits: Range<u64>, value: bool) {
    let mut bit = bits.start;
    while bit < bits.end.min(bitmap.len() as u64 * 8) {
        let byte = &mut bitmap[(bit / 8) as usize];
        if bit.is_multiple_of(8) && bits.end - bit >= 8 {
            *byte = if value { 0xFF } else { 0 };
            bit += 8;
        } else {
            let mask = 1 << (bit % 8);
            *byte = if value { *byte | mask } else { *byte & !mask };
            bit += 1;
        }
    }
}

/// Clear bits below `bits`.
pub(super) fn count_clear(bitmap: &[u8], bits: u64) -> u64 {
    let whole = (bits / 8) as usize;
    let ones: u64 = bitmap[..whole].iter().map(|byte| u64::from(byte.count_ones())).sum();
    let rest = (whole as u64 * 8..bits).filter(|bit| is_set(bitmap, *bit)).count() as u64;
    bits - ones - rest
}

/// The runs of set bits below `bits`, ascending.
pub(super) fn for_each_set(bitmap: &[u8], bits: u64, mut visit: impl FnMut(Range<u64>)) {
    let mut bit = 0;
    while bit < bits {
        let start = next(bitmap, bit, bits, true);
        if start == bits {
            return;
        }
        bit = next(bitmap, start, bits, false);
        visit(start..bit);
    }
}

/// The next bit from `bit` on that is as wanted, or `bits`.
pub(super) fn next(bitmap: &[u8], mut bit: u64, bits: u64, wanted: bool) -> u64 {
    let dull = if wanted { 0 } else { u64::MAX };
    while bit < bits {
        if bit.is_multiple_of(64) && bit + 64 <= bits {
            let at = (bit / 8) as usize;
            let word = crate::field::le64(bitmap, at);
            if word == dull {
                bit += 64;
                continue;
            }
            let found = if wanted { word } else { !word };
            return bit + u64::from(found.trailing_zeros());
        }
        if is_set(bitmap, bit) == wanted {
            return bit;
        }
        bit += 1;
    }
    bits
}

/// The bitmap of a group whose own is not initialized: only its metadata is in use, and what is not there at all.
pub(super) fn uninitialized(geometry: &Geometry, descriptor: &Descriptor, group: u32) -> Vec<u8> {
    let mut bitmap = vec![0; geometry.block_size as usize];
    let blocks = geometry.group(group);
    mark(&mut bitmap, geometry, &blocks, geometry.base_metadata(group));
    let table = descriptor.get(Field::InodeTable);
    for (start, length) in [
        (descriptor.get(Field::BlockBitmap), 1),
        (descriptor.get(Field::InodeBitmap), 1),
        (table, geometry.inode_table_blocks()),
    ] {
        mark(&mut bitmap, geometry, &blocks, start..start.saturating_add(length));
    }
    let bits = (blocks.end - blocks.start).div_ceil(geometry.cluster);
    set(&mut bitmap, bits..u64::from(geometry.block_size) * 8);
    bitmap
}

/// Sets the bits of what of `range` lies in the group of `blocks`.
pub(super) fn mark(bitmap: &mut [u8], geometry: &Geometry, blocks: &Range<u64>, range: Range<u64>) {
    let (start, end) = (range.start.max(blocks.start), range.end.min(blocks.end));
    if start < end {
        let first = (start - blocks.start) / geometry.cluster;
        set(bitmap, first..(end - blocks.start).div_ceil(geometry.cluster));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_out_as_they_went_in() {
        let mut bitmap = vec![0; 64];
        let runs = [0..3, 7..9, 60..200, 511..512];
        for run in runs.clone() {
            set(&mut bitmap, run);
        }
        clear(&mut bitmap, 100..101);
        set(&mut bitmap, 100..101);
        let mut found = Vec::new();
        for_each_set(&bitmap, 512, |run| found.push(run));
        assert_eq!(found, runs);
        assert_eq!(count_clear(&bitmap, 512), 512 - 3 - 2 - 140 - 1);
        assert_eq!(count_clear(&bitmap, 61), 61 - 3 - 2 - 1);
        assert_eq!(next(&bitmap, 9, 512, true), 60);
        assert_eq!(next(&bitmap, 201, 300, true), 300);
    }
}
