//! The bytes of a GPT header and of its entries (UEFI 2.10, 5.3.2 and 5.3.3).

use super::{ENTRY_SIZE, Guid, MAX_ENTRY_COUNT, MAX_ENTRY_SIZE, MAX_NAME_UNITS, Partition, PartitionTable};
use crate::field::{bytes_at, le16, le32, le64, put};

pub(super) const SIGNATURE: &[u8; 8] = b"EFI PART";
const HEADER_SIZE: u32 = 92;
const REVISION: u32 = 0x0001_0000;

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
        if entry_count == 0 || entry_count > MAX_ENTRY_COUNT {
            return Err(format!("{entry_count} entries"));
        }
        if !(ENTRY_SIZE..=MAX_ENTRY_SIZE).contains(&entry_size) || !entry_size.is_power_of_two() {
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

    /// The table that this header and its entries make.
    pub(super) fn table(&self, entries: &[u8]) -> PartitionTable {
        PartitionTable {
            disk_guid: self.disk_guid,
            first_usable_lba: self.first_usable_lba,
            last_usable_lba: self.last_usable_lba,
            entry_count: self.entry_count,
            entry_size: self.entry_size,
            partitions: decode_entries(&entries[..self.entries_len().min(entries.len())], self.entry_size),
        }
    }
}

/// Where a header lies, and what it points to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) my_lba: u64,
    pub(super) alternate_lba: u64,
    pub(super) entries_lba: u64,
}

/// A whole block with a header. `template` is the block that was there: what the standard reserves stays as it is.
pub(super) fn encode(
    template: Option<&[u8]>,
    table: &PartitionTable,
    position: Position,
    entries: &[u8],
    block_size: usize,
) -> Vec<u8> {
    let mut block = match template {
        Some(template) => template.to_vec(),
        None => {
            let mut block = vec![0; block_size];
            put(&mut block, 0, SIGNATURE);
            put(&mut block, 8, &REVISION.to_le_bytes());
            put(&mut block, 12, &HEADER_SIZE.to_le_bytes());
            block
        }
    };
    let entries_len = (table.entry_count * table.entry_size) as usize;
    put(&mut block, 24, &position.my_lba.to_le_bytes());
    put(&mut block, 32, &position.alternate_lba.to_le_bytes());
    put(&mut block, 40, &table.first_usable_lba.to_le_bytes());
    put(&mut block, 48, &table.last_usable_lba.to_le_bytes());
    put(&mut block, 56, &table.disk_guid.0);
    put(&mut block, 72, &position.entries_lba.to_le_bytes());
    put(&mut block, 80, &table.entry_count.to_le_bytes());
    put(&mut block, 84, &table.entry_size.to_le_bytes());
    put(&mut block, 88, &crc32fast::hash(&entries[..entries_len]).to_le_bytes());
    put(&mut block, 16, &[0; 4]);
    // A template was decoded: its header size is not beyond its block.
    let header_size = le32(&block, 12) as usize;
    let crc = crc32fast::hash(&block[..header_size]);
    put(&mut block, 16, &crc.to_le_bytes());
    block
}

/// The entry array of `table` in whole blocks. Of `current`, the array that is there, every byte stays that the table
/// does not contradict: entries that did not change, and what tools keep behind the fields of the standard. The table
/// was validated.
pub(super) fn encode_entries(table: &PartitionTable, current: Option<&[u8]>, block_size: usize) -> Vec<u8> {
    let size = table.entry_size as usize;
    let len = (table.entry_count as usize * size).next_multiple_of(block_size);
    let mut bytes = current.map_or_else(Vec::new, <[u8]>::to_vec);
    bytes.resize(len, 0);
    for (number, entry) in (1..=table.entry_count).zip(bytes.chunks_exact_mut(size)) {
        match table.partitions.iter().find(|p| p.number == number) {
            Some(p) => encode_entry(p, entry),
            None if entry[..16] != Guid::UNUSED.0 => entry.fill(0),
            None => {}
        }
    }
    bytes
}

fn encode_entry(p: &Partition, entry: &mut [u8]) {
    if entry[16..32] != p.unique_guid.0 {
        // What is behind the fields belonged to another partition.
        entry.fill(0);
    }
    put(entry, 0, &p.type_guid.0);
    put(entry, 16, &p.unique_guid.0);
    put(entry, 32, &p.starting_lba.to_le_bytes());
    put(entry, 40, &p.ending_lba.to_le_bytes());
    put(entry, 48, &p.attributes.to_le_bytes());
    // A name that is no UTF-16, or has more after its end, does not survive decoding.
    if name_of(entry) != p.name {
        let name = &mut entry[56..56 + 2 * MAX_NAME_UNITS];
        name.fill(0);
        for (i, unit) in p.name.encode_utf16().enumerate() {
            put(name, 2 * i, &unit.to_le_bytes());
        }
    }
}

fn name_of(entry: &[u8]) -> String {
    let units = (0..MAX_NAME_UNITS).map(|i| le16(entry, 56 + 2 * i)).take_while(|unit| *unit != 0);
    String::from_utf16_lossy(&units.collect::<Vec<_>>())
}

/// The used entries of an array.
fn decode_entries(bytes: &[u8], entry_size: u32) -> Vec<Partition> {
    let used = |(_, e): &(u32, &[u8])| e[..16] != Guid::UNUSED.0;
    (1..)
        .zip(bytes.chunks_exact(entry_size as usize))
        .filter(used)
        .map(|(number, e)| Partition {
            number,
            type_guid: Guid(bytes_at(e, 0)),
            unique_guid: Guid(bytes_at(e, 16)),
            starting_lba: le64(e, 32),
            ending_lba: le64(e, 40),
            attributes: le64(e, 48),
            name: name_of(e),
        })
        .collect()
}
