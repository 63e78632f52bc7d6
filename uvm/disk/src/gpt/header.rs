//! The bytes of a GPT header and of its entries (UEFI 2.10, 5.3.2 and 5.3.3).

use super::{Guid, MAX_NAME_UNITS, MAX_PARTITIONS, Partition, PartitionTable};
use crate::field::{bytes_at, le16, le32, le64, put};

pub(super) const SIGNATURE: &[u8; 8] = b"EFI PART";
pub(super) const ENTRY_SIZE: u32 = 128;
const HEADER_SIZE: u32 = 92;
const REVISION: u32 = 0x0001_0000;
/// No tool makes larger arrays; more would only be memory for a hostile disk.
const MAX_ENTRIES_READ: u32 = 1024;
const MAX_ENTRY_SIZE_READ: u32 = 4096;

/// A header whose own CRC is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) alternate_lba: u64,
    pub(super) first_usable_lba: u64,
    pub(super) last_usable_lba: u64,
    pub(super) disk_guid: Guid,
    pub(super) entries_lba: u64,
    pub(super) entry_count: u32,
    pub(super) entry_size: u32,
    pub(super) entries_crc: u32,
}

impl Header {
    /// Decodes the block at `my_lba`; the error says what is wrong.
    pub(super) fn decode(block: &[u8], my_lba: u64) -> Result<Self, String> {
        if !block.starts_with(SIGNATURE) {
            return Err("no signature".into());
        }
        let size = le32(block, 12) as usize;
        if size < HEADER_SIZE as usize || size > block.len() {
            return Err(format!("header size {size}"));
        }
        let mut copy = block[..size].to_vec();
        put(&mut copy, 16, &[0; 4]);
        if crc32fast::hash(&copy) != le32(block, 16) {
            return Err("wrong header CRC".into());
        }
        if le64(block, 24) != my_lba {
            return Err(format!("header says it is at LBA {}", le64(block, 24)));
        }
        let (entry_count, entry_size) = (le32(block, 80), le32(block, 84));
        if entry_count == 0 || entry_count > MAX_ENTRIES_READ {
            return Err(format!("{entry_count} entries"));
        }
        if !(ENTRY_SIZE..=MAX_ENTRY_SIZE_READ).contains(&entry_size) || !entry_size.is_power_of_two() {
            return Err(format!("entries of {entry_size} bytes"));
        }
        Ok(Self {
            alternate_lba: le64(block, 32),
            first_usable_lba: le64(block, 40),
            last_usable_lba: le64(block, 48),
            disk_guid: Guid(bytes_at(block, 56)),
            entries_lba: le64(block, 72),
            entry_count,
            entry_size,
            entries_crc: le32(block, 88),
        })
    }

    /// Bytes of the entry array, without padding.
    pub(super) fn entries_len(&self) -> usize {
        (self.entry_count * self.entry_size) as usize
    }
}

/// A whole block with the header that lies at `my_lba`.
pub(super) fn encode(
    table: &PartitionTable,
    my_lba: u64,
    alternate_lba: u64,
    entries_lba: u64,
    entries_crc: u32,
    block_size: usize,
) -> Vec<u8> {
    let mut block = vec![0; block_size];
    put(&mut block, 0, SIGNATURE);
    put(&mut block, 8, &REVISION.to_le_bytes());
    put(&mut block, 12, &HEADER_SIZE.to_le_bytes());
    put(&mut block, 24, &my_lba.to_le_bytes());
    put(&mut block, 32, &alternate_lba.to_le_bytes());
    put(&mut block, 40, &table.first_usable_lba.to_le_bytes());
    put(&mut block, 48, &table.last_usable_lba.to_le_bytes());
    put(&mut block, 56, &table.disk_guid.0);
    put(&mut block, 72, &entries_lba.to_le_bytes());
    put(&mut block, 80, &MAX_PARTITIONS.to_le_bytes());
    put(&mut block, 84, &ENTRY_SIZE.to_le_bytes());
    put(&mut block, 88, &entries_crc.to_le_bytes());
    let crc = crc32fast::hash(&block[..HEADER_SIZE as usize]);
    put(&mut block, 16, &crc.to_le_bytes());
    block
}

/// The entry array, [`MAX_PARTITIONS`] entries. The table was validated.
pub(super) fn encode_entries(table: &PartitionTable) -> Vec<u8> {
    let mut bytes = vec![0; (MAX_PARTITIONS * ENTRY_SIZE) as usize];
    for p in &table.partitions {
        let at = ((p.number - 1) * ENTRY_SIZE) as usize;
        let entry = &mut bytes[at..at + ENTRY_SIZE as usize];
        put(entry, 0, &p.type_guid.0);
        put(entry, 16, &p.unique_guid.0);
        put(entry, 32, &p.starting_lba.to_le_bytes());
        put(entry, 40, &p.ending_lba.to_le_bytes());
        put(entry, 48, &p.attributes.to_le_bytes());
        for (i, unit) in p.name.encode_utf16().enumerate() {
            put(entry, 56 + 2 * i, &unit.to_le_bytes());
        }
    }
    bytes
}

/// The used entries of an array.
pub(super) fn decode_entries(bytes: &[u8], entry_size: u32) -> Vec<Partition> {
    let used = |(_, e): &(u32, &[u8])| e[..16] != Guid::UNUSED.0;
    (1..)
        .zip(bytes.chunks_exact(entry_size as usize))
        .filter(used)
        .map(|(number, e)| {
            let units = (0..MAX_NAME_UNITS).map(|i| le16(e, 56 + 2 * i)).take_while(|unit| *unit != 0);
            Partition {
                number,
                type_guid: Guid(bytes_at(e, 0)),
                unique_guid: Guid(bytes_at(e, 16)),
                starting_lba: le64(e, 32),
                ending_lba: le64(e, 40),
                attributes: le64(e, 48),
                name: String::from_utf16_lossy(&units.collect::<Vec<_>>()),
            }
        })
        .collect()
}
