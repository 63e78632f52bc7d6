//! Both copies of a table on a device.

use super::header::{self, Header, SIGNATURE};
use super::{ALIGNMENT, PartitionTable, entry_blocks};
use crate::field::{expect, flush, read as read_bytes, write as write_bytes};
use crate::{BlockDevice, Error, ErrorKind, Result, mbr};

/// A table as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadTable {
    /// From the primary copy where that is sound, else from the backup.
    pub table: PartitionTable,
    /// The copy at LBA 1 is sound.
    pub primary_ok: bool,
    /// The copy at the end is sound, where it belongs, and the same as the primary.
    pub backup_ok: bool,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

struct TableCopy {
    header: Header,
    table: PartitionTable,
}

enum Found {
    Copy(TableCopy),
    /// There is a signature, and this is wrong.
    Broken(String),
    Nothing,
}

fn read_copy(device: &dyn BlockDevice, lba: u64) -> Result<Found> {
    let geometry = device.geometry();
    let block_size = u64::from(geometry.logical_block_size);
    if lba == 0 || lba >= geometry.blocks() {
        return Ok(Found::Nothing);
    }
    let block = read_bytes(device, lba * block_size, block_size as usize, "reading a GPT header")?;
    if !block.starts_with(SIGNATURE) {
        return Ok(Found::Nothing);
    }
    let header = match Header::decode(&block, lba) {
        Ok(header) => header,
        Err(problem) => return Ok(Found::Broken(problem)),
    };
    let len = header.entries_len();
    let offset = header.entries_lba.checked_mul(block_size).filter(|offset| {
        header.entries_lba >= 1 && offset.checked_add(len as u64).is_some_and(|end| end <= geometry.size)
    });
    let Some(offset) = offset else {
        return Ok(Found::Broken(format!("entries at LBA {}, not on the device", header.entries_lba)));
    };
    let entries = read_bytes(device, offset, len, "reading GPT entries")?;
    if crc32fast::hash(&entries) != header.entries_crc {
        return Ok(Found::Broken("wrong CRC of the entries".into()));
    }
    let table = PartitionTable {
        disk_guid: header.disk_guid,
        first_usable_lba: header.first_usable_lba,
        last_usable_lba: header.last_usable_lba,
        partitions: header::decode_entries(&entries, header.entry_size),
    };
    Ok(Found::Copy(TableCopy { header, table }))
}

/// Reads the table, from whichever copy is sound. [`ErrorKind::NotFound`] where there is no trace of
/// one, [`ErrorKind::Corrupt`] where neither copy can be used.
pub fn read(device: &dyn BlockDevice) -> Result<ReadTable> {
    let last_lba = device.geometry().blocks().saturating_sub(1);
    let primary = read_copy(device, 1)?;
    let mut problems = Vec::new();
    let mut backup_lba = last_lba;
    if let Found::Copy(copy) = &primary
        && copy.header.alternate_lba != last_lba
    {
        backup_lba = copy.header.alternate_lba;
        problems.push(format!("the backup header is at LBA {backup_lba}, not at the last LBA {last_lba}"));
    }
    let backup = if backup_lba == 1 { Found::Nothing } else { read_copy(device, backup_lba)? };
    let displaced = !problems.is_empty();
    for (name, copy) in [("primary", &primary), ("backup", &backup)] {
        match copy {
            Found::Copy(_) => {}
            Found::Broken(problem) => problems.push(format!("{name} header: {problem}")),
            Found::Nothing => problems.push(format!("{name} header: missing")),
        }
    }
    let found = match (primary, backup) {
        (Found::Copy(primary), Found::Copy(backup)) => {
            let same = primary.table == backup.table;
            if !same {
                problems.push("primary and backup differ".into());
            }
            ReadTable { table: primary.table, primary_ok: true, backup_ok: same && !displaced, problems }
        }
        (Found::Copy(copy), _) => {
            ReadTable { table: copy.table, primary_ok: true, backup_ok: false, problems }
        }
        (_, Found::Copy(copy)) => {
            ReadTable { table: copy.table, primary_ok: false, backup_ok: true, problems }
        }
        (Found::Nothing, Found::Nothing) => {
            return Err(Error::new(ErrorKind::NotFound, "reading a GPT: there is none"));
        }
        _ => {
            let context = format!("reading a GPT: {}", problems.join("; "));
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
    };
    Ok(check_extents(found, last_lba))
}

fn check_extents(mut found: ReadTable, last_lba: u64) -> ReadTable {
    let inside = found.table.problems();
    found.problems.extend(inside);
    for p in found.table.partitions.iter().filter(|p| p.ending_lba > last_lba) {
        found.problems.push(format!("partition {} ends beyond the device", p.number));
    }
    found
}

/// Writes both copies and the protective MBR, then reads all of it back.
///
/// The backup is durable before the primary is touched, and the primary's entries before its header:
/// whenever power fails, one copy is valid. The MBR comes last.
pub fn write(device: &dyn BlockDevice, table: &PartitionTable) -> Result<()> {
    let geometry = device.geometry();
    table.validate(&geometry)?;
    let block_size = geometry.logical_block_size as usize;
    let byte = |lba: u64| lba * u64::from(geometry.logical_block_size);
    let last_lba = geometry.blocks() - 1;
    let backup_entries_lba = last_lba - entry_blocks(&geometry);
    let entries = header::encode_entries(table);
    let crc = crc32fast::hash(&entries);
    let backup = header::encode(table, last_lba, 1, backup_entries_lba, crc, block_size);
    let primary = header::encode(table, 1, last_lba, 2, crc, block_size);
    let protective = mbr::protective(&read_bytes(device, 0, block_size, "reading LBA 0")?, geometry.blocks());

    write_bytes(device, byte(backup_entries_lba), &entries, "writing the backup GPT entries")?;
    write_bytes(device, byte(last_lba), &backup, "writing the backup GPT header")?;
    flush(device, "flushing the backup GPT")?;
    write_bytes(device, byte(2), &entries, "writing the primary GPT entries")?;
    flush(device, "flushing the primary GPT entries")?;
    write_bytes(device, byte(1), &primary, "writing the primary GPT header")?;
    write_bytes(device, 0, &protective, "writing the protective MBR")?;
    flush(device, "flushing the primary GPT")?;

    expect(device, byte(backup_entries_lba), &entries, "reading back the backup GPT entries")?;
    expect(device, byte(last_lba), &backup, "reading back the backup GPT header")?;
    expect(device, byte(2), &entries, "reading back the primary GPT entries")?;
    expect(device, byte(1), &primary, "reading back the primary GPT header")?;
    expect(device, 0, &protective, "reading back the protective MBR")
}

/// Writes zeroes over the first and the last MiB, so that neither copy of a table survives, and reads
/// them back.
pub fn wipe_tables(device: &dyn BlockDevice) -> Result<()> {
    let size = device.geometry().size;
    let len = ALIGNMENT.min(size);
    let zeroes = vec![0; len as usize];
    // Both are tried whatever the first says: half a table may be enough for a firmware.
    let offsets = [0, size - len];
    let wiped = offsets.map(|offset| write_bytes(device, offset, &zeroes, "wiping partition tables"));
    wiped.into_iter().collect::<Result<()>>()?;
    flush(device, "flushing wiped partition tables")?;
    for offset in offsets {
        expect(device, offset, &zeroes, "reading back wiped partition tables")?;
    }
    Ok(())
}
