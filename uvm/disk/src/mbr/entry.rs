//! The sixteen bytes of a partition in an MBR, and the sector around them.

use crate::field::{le16, le32, put};
use crate::{Error, ErrorKind, Result};

use super::MbrPartition;
use super::system_id::PROTECTIVE;

/// Boot code and disk signature end where the entries begin.
pub(super) const ENTRIES: usize = 446;
pub(super) const ENTRY_SIZE: usize = 16;
const SIGNATURE: u16 = 0xaa55;
/// The geometry that everybody writes since LBA counts.
const HEADS: u64 = 255;
const SECTORS: u64 = 63;

/// Whether the sector ends as a boot sector does.
pub(crate) fn is_signed(block: &[u8]) -> bool {
    le16(block, 510) == SIGNATURE
}

pub(crate) fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

/// The four entries, with their numbers.
pub(super) fn entries(block: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    (1..).zip(block.get(ENTRIES..510).unwrap_or_default().chunks_exact(ENTRY_SIZE))
}

pub(super) fn is_used(entry: &[u8]) -> bool {
    entry[4] != 0 && le32(entry, 12) != 0
}

/// Whether an entry of an extended boot record leads to the next one.
pub(super) fn is_link(entry: &[u8]) -> bool {
    is_used(entry) && is_extended(entry[4]) && le32(entry, 8) != 0
}

/// A partition, from an entry that counts from `base` in the sector at `record_lba`.
pub(super) fn decode(number: u32, entry: &[u8], base: u64, record_lba: u64) -> MbrPartition {
    MbrPartition {
        number,
        kind: entry[4],
        bootable: entry[0] == 0x80,
        starting_lba: base + u64::from(le32(entry, 8)),
        blocks: u64::from(le32(entry, 12)),
        record_lba,
    }
}

/// Cylinder, head and sector of an LBA; what has no such address is beyond the last.
fn chs(lba: u64) -> Option<[u8; 3]> {
    let (cylinder, head, sector) = (lba / (HEADS * SECTORS), lba / SECTORS % HEADS, lba % SECTORS + 1);
    let high = u8::try_from(cylinder >> 8).ok().filter(|high| *high < 4)?;
    Some([head as u8, sector as u8 | high << 6, cylinder as u8])
}

fn fields(kind: u8, active: bool, chs: [[u8; 3]; 2], start: u32, blocks: u32) -> [u8; ENTRY_SIZE] {
    let mut entry = [0; ENTRY_SIZE];
    entry[0] = if active { 0x80 } else { 0 };
    put(&mut entry, 1, &chs[0]);
    entry[4] = kind;
    put(&mut entry, 5, &chs[1]);
    put(&mut entry, 8, &start.to_le_bytes());
    put(&mut entry, 12, &blocks.to_le_bytes());
    entry
}

/// An entry that counts from `base`. Refused with the numbers where 32 bits are too few.
pub(crate) fn encode(kind: u8, active: bool, base: u64, lba: u64, blocks: u64) -> Result<[u8; ENTRY_SIZE]> {
    const BEYOND: [u8; 3] = [0xfe, 0xff, 0xff];
    let start = lba.checked_sub(base).and_then(|start| u32::try_from(start).ok());
    let (Some(start), Ok(count), true) = (start, u32::try_from(blocks), blocks != 0) else {
        let context = format!(
            "{blocks} blocks at LBA {lba} in an MBR: 1 to {} blocks are possible, up to LBA {}",
            u32::MAX,
            base.saturating_add(u64::from(u32::MAX))
        );
        return Err(Error::new(ErrorKind::Unsupported, context));
    };
    let at = |lba| chs(lba).unwrap_or(BEYOND);
    Ok(fields(kind, active, [at(lba), at(lba + (blocks - 1))], start, count))
}

/// The entry that protects a GPT from LBA 1 to `last`.
pub(crate) fn protective_entry(last: u64) -> [u8; ENTRY_SIZE] {
    let blocks = u32::try_from(last).unwrap_or(u32::MAX);
    let end = chs(last).unwrap_or([0xff; 3]);
    fields(PROTECTIVE, false, [[0x00, 0x02, 0x00], end], 1, blocks)
}

/// `sector` with exactly these entries; what is before them stays.
pub(crate) fn with_entries(mut sector: Vec<u8>, entries: &[[u8; ENTRY_SIZE]]) -> Vec<u8> {
    put(&mut sector, ENTRIES, &[0; 4 * ENTRY_SIZE]);
    for (index, entry) in entries.iter().take(4).enumerate() {
        put(&mut sector, ENTRIES + index * ENTRY_SIZE, entry);
    }
    put(&mut sector, 510, &SIGNATURE.to_le_bytes());
    sector
}

/// The last block that a protective entry covers; `None` where there is none, or its field is too small to say.
pub(crate) fn protected_until(block: &[u8]) -> Option<u64> {
    let guard = super::parse(block)?.partitions.into_iter().find(|p| p.kind == PROTECTIVE)?;
    (guard.blocks != u64::from(u32::MAX)).then(|| guard.starting_lba + guard.blocks - 1)
}
