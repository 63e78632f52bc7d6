//! Both copies of a table, as they are found on a device.

use super::guard::{self, Guard};
use super::header::{Header, SIGNATURE};
use super::{ALIGNMENT, PartitionTable};
use crate::field::{expect, flush, read as read_bytes, write as write_bytes};
use crate::{BlockDevice, Error, ErrorKind, Geometry, Result, mbr};

/// A table as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadTable {
    /// From the primary copy where that is sound, else from the backup.
    pub table: PartitionTable,
    /// The copy at LBA 1 is sound.
    pub primary_ok: bool,
    /// The copy at the end is sound, where it belongs, and the same as the primary.
    pub backup_ok: bool,
    /// Why LBA 0 does not protect it: systems that go by the standard see no GPT then, but what LBA 0 says.
    pub unprotected: Option<String>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

/// A copy whose checksums are right.
pub(super) struct TableCopy {
    /// The header's block.
    pub(super) block: Vec<u8>,
    pub(super) header: Header,
    /// The array in whole blocks.
    pub(super) entries: Vec<u8>,
    pub(super) table: PartitionTable,
    pub(super) lba: u64,
}

impl TableCopy {
    /// The blocks of its array, first and last.
    pub(super) fn entries_extent(&self) -> (u64, u64) {
        let blocks = (self.entries.len() / self.block.len()) as u64;
        (self.header.entries_lba, self.header.entries_lba + blocks.saturating_sub(1))
    }
}

pub(super) enum Found {
    Copy(Box<TableCopy>),
    /// There is a signature, and this is wrong; the header where only the entries are.
    Broken(String, Option<Header>),
    Nothing,
}

impl Found {
    pub(super) fn copy(&self) -> Option<&TableCopy> {
        match self {
            Self::Copy(copy) => Some(copy),
            Self::Broken(..) | Self::Nothing => None,
        }
    }

    pub(super) fn header(&self) -> Option<&Header> {
        match self {
            Self::Copy(copy) => Some(&copy.header),
            Self::Broken(_, header) => header.as_ref(),
            Self::Nothing => None,
        }
    }

    pub(super) fn problem(&self) -> Option<&str> {
        match self {
            Self::Copy(_) => None,
            Self::Broken(problem, _) => Some(problem),
            Self::Nothing => Some("missing"),
        }
    }
}

/// What is on the device before anything is decided.
pub(super) struct Copies {
    pub(super) geometry: Geometry,
    pub(super) lba0: Vec<u8>,
    pub(super) primary: Found,
    pub(super) backup: Found,
    /// Where the backup was looked for, or found.
    pub(super) backup_lba: u64,
}

impl Copies {
    pub(super) fn last_lba(&self) -> u64 {
        self.geometry.blocks().saturating_sub(1)
    }

    /// The copy that counts: the primary where that is sound.
    pub(super) fn valid(&self) -> Result<&TableCopy> {
        if let Some(copy) = self.primary.copy().or_else(|| self.backup.copy()) {
            return Ok(copy);
        }
        if let (Found::Nothing, Found::Nothing) = (&self.primary, &self.backup) {
            return Err(Error::new(ErrorKind::NotFound, "reading a GPT: there is none"));
        }
        let problem = |found: &Found| found.problem().unwrap_or_default().to_owned();
        let (primary, backup) = (problem(&self.primary), problem(&self.backup));
        let context = format!("reading a GPT: primary header: {primary}; backup header: {backup}");
        Err(Error::new(ErrorKind::Corrupt, context))
    }
}

/// Reads both copies. The backup is where the primary says, else in the last block, else in the last one that the
/// protective MBR covers: a device may have grown.
pub(super) fn locate(device: &dyn BlockDevice) -> Result<Copies> {
    let geometry = device.geometry();
    let block_size = geometry.logical_block_size as usize;
    let last_lba = geometry.blocks().saturating_sub(1);
    if geometry.blocks() == 0 {
        let (primary, backup) = (Found::Nothing, Found::Nothing);
        return Ok(Copies { geometry, lba0: Vec::new(), primary, backup, backup_lba: 0 });
    }
    let lba0 = read_bytes(device, 0, block_size, "reading LBA 0")?;
    let primary = read_copy(device, 1)?;
    let alternate = primary.header().map(|header| header.alternate_lba);
    let mut candidates = vec![alternate.unwrap_or(last_lba), last_lba];
    candidates.extend(mbr::protected_until(&lba0));
    let mut backup = Found::Nothing;
    let mut backup_lba = last_lba;
    for lba in candidates.into_iter().filter(|lba| *lba > 1 && *lba <= last_lba) {
        let found = read_copy(device, lba)?;
        let better = matches!(found, Found::Copy(_)) || matches!(backup, Found::Nothing);
        if better && !matches!(found, Found::Nothing) {
            (backup, backup_lba) = (found, lba);
        }
        if backup.copy().is_some() {
            break;
        }
    }
    Ok(Copies { geometry, lba0, primary, backup, backup_lba })
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
        Err(problem) => return Ok(Found::Broken(problem, None)),
    };
    let len = (header.entries_len() as u64).next_multiple_of(block_size);
    let offset = header.entries_lba.checked_mul(block_size).filter(|offset| {
        header.entries_lba > 1 && offset.checked_add(len).is_some_and(|end| end <= geometry.size)
    });
    let Some(offset) = offset else {
        let problem = format!("entries at LBA {}, not on the device", header.entries_lba);
        return Ok(Found::Broken(problem, Some(header)));
    };
    let entries = read_bytes(device, offset, len as usize, "reading GPT entries")?;
    if crc32fast::hash(&entries[..header.entries_len()]) != header.entries_crc {
        return Ok(Found::Broken("wrong CRC of the entries".into(), Some(header)));
    }
    let table = header.table(&entries);
    Ok(Found::Copy(Box::new(TableCopy { block, header, entries, table, lba })))
}

/// Reads the table, from whichever copy is sound. [`ErrorKind::NotFound`] where there is no trace of
/// one, [`ErrorKind::Corrupt`] where neither copy can be used.
pub fn read(device: &dyn BlockDevice) -> Result<ReadTable> {
    let copies = locate(device)?;
    let last_lba = copies.last_lba();
    let table = copies.valid()?.table.clone();
    let mut problems = Vec::new();
    let displaced = copies.primary.copy().is_some_and(|copy| copy.header.alternate_lba != last_lba)
        || copies.backup.copy().is_some_and(|copy| copy.lba != last_lba);
    if displaced {
        let lba = copies.primary.copy().map_or(copies.backup_lba, |copy| copy.header.alternate_lba);
        problems.push(format!("the backup header is at LBA {lba}, not at the last LBA {last_lba}"));
    }
    for (name, copy) in [("primary", &copies.primary), ("backup", &copies.backup)] {
        problems.extend(copy.problem().map(|problem| format!("{name} header: {problem}")));
    }
    let (primary, backup) = (copies.primary.copy(), copies.backup.copy());
    let differ = primary.zip(backup).is_some_and(|(primary, backup)| primary.table != backup.table);
    if differ {
        problems.push("primary and backup differ".into());
    }
    problems.extend(table.problems());
    for p in table.partitions.iter().filter(|p| p.ending_lba > last_lba) {
        problems.push(format!("partition {} ends beyond the device", p.number));
    }
    let unprotected = match guard::look(&copies.lba0, copies.geometry.blocks()) {
        Guard::Foreign(what) => {
            problems.push(what.clone());
            Some(what)
        }
        Guard::Nothing => Some("LBA 0 is no protective MBR".to_owned()),
        Guard::Protective { .. } | Guard::Hybrid(_) => None,
    };
    let (primary_ok, backup_ok) = (primary.is_some(), backup.is_some() && !displaced && !differ);
    Ok(ReadTable { table, primary_ok, backup_ok, unprotected, problems })
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
