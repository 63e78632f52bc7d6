//! What is on a device: tables, file systems, the operating system. Reads only, and trusts nothing.

mod file_system;
mod foreign;
mod os_release;

pub use file_system::FileSystem;
pub use os_release::{OsRelease, read_os_release};

use crate::gpt::Guid;
use crate::{BlockDevice, ErrorKind, Geometry, Result, gpt, mbr};

/// Kind of partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// No table.
    None,
    /// GUID partition table.
    Gpt,
    /// Master boot record.
    Mbr,
}

/// What says the purpose of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionKind {
    /// GPT type.
    Gpt(Guid),
    /// MBR system id.
    Mbr(u8),
}

/// A partition and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbedPartition {
    /// From 1.
    pub number: u32,
    /// GPT name.
    pub name: Option<String>,
    /// Its purpose.
    pub kind: PartitionKind,
    /// GPT partition GUID.
    pub unique_guid: Option<Guid>,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What was recognized in it.
    pub file_system: Option<FileSystem>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The table.
    pub table: TableKind,
    /// GPT disk GUID.
    pub disk_guid: Option<Guid>,
    /// What is wrong with the table, one line each.
    pub problems: Vec<String>,
    /// By number.
    pub partitions: Vec<ProbedPartition>,
    /// A file system on the device itself, where there is no table.
    pub file_system: Option<FileSystem>,
}

/// Part of a borrowed device.
pub(crate) struct Part<'d> {
    pub(crate) device: &'d dyn BlockDevice,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl BlockDevice for Part<'_> {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.size, ..self.device.geometry() }
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.size => self.device.read_at(self.offset + offset, buf),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }
    fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn write_zeroes(&self, _: u64, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn discard(&self, _: u64, _: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn probe_part(device: &dyn BlockDevice, offset: u64, size: u64) -> Result<Option<FileSystem>> {
    match offset.checked_add(size) {
        Some(end) if end <= device.geometry().size => {
            let part = Part { device, offset, size };
            file_system::probe(&part)?.map_or_else(|| foreign::probe(&part), |found| Ok(Some(found)))
        }
        _ => Ok(None),
    }
}

/// Looks at a whole device.
pub fn probe(device: &dyn BlockDevice) -> Result<Probe> {
    let mut found = Probe {
        table: TableKind::None,
        disk_guid: None,
        problems: Vec::new(),
        partitions: Vec::new(),
        file_system: None,
    };
    let block = device.geometry().logical_block_size;
    match gpt::read(device) {
        Ok(read) => match remainder(device, &read)? {
            None => return of_gpt(device, read, found),
            Some(problem) => found.problems.push(problem),
        },
        Err(error) if error.kind() == ErrorKind::Corrupt => found.problems.push(error.to_string()),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // A boot sector may look like an empty MBR: a file system goes first.
    found.file_system = file_system::probe(device)?;
    let table = mbr::read_chain(device)?;
    let divided = table.as_ref().is_some_and(|(mbr, _)| !mbr.partitions.is_empty());
    if let Some(file_system) = &found.file_system {
        // Either may be what is left of the past.
        let problem = format!("LBA 0 is an MBR with partitions, and the device holds {}", file_system.kind);
        found.problems.extend(divided.then_some(problem));
        return Ok(found);
    }
    // A table with partitions may stand in the boot sector of what was there before it.
    if !divided {
        found.file_system = foreign::probe(device)?;
    }
    let Some((mbr, broken)) = table.filter(|_| found.file_system.is_none()) else { return Ok(found) };
    found.table = TableKind::Mbr;
    found.problems.extend(broken);
    for p in mbr.partitions {
        // Two times 32 bits and a block size: no overflow.
        let (offset, size) = (p.starting_lba * u64::from(block), p.blocks * u64::from(block));
        found.partitions.push(ProbedPartition {
            number: p.number,
            name: None,
            kind: PartitionKind::Mbr(p.kind),
            unique_guid: None,
            offset,
            size,
            file_system: probe_part(device, offset, size)?,
        });
    }
    Ok(found)
}

/// Whether a GPT was left behind by whoever wrote an MBR or a file system over its beginning, and why: no system finds
/// it any more, and what it calls free may be in use. Without a protective MBR it counts where nothing else is there: its
/// creation was interrupted.
fn remainder(device: &dyn BlockDevice, read: &gpt::ReadTable) -> Result<Option<String>> {
    let Some(why) = &read.unprotected else { return Ok(None) };
    let mbr = mbr::read(device)?.filter(|mbr| !mbr.partitions.is_empty());
    Ok(match (file_system::probe(device)?, mbr) {
        (Some(found), _) => Some(format!("{why}, the device holds {}: the GPT is a remainder", found.kind)),
        (None, Some(_)) => Some(format!("{why}: the GPT is a remainder")),
        (None, None) => None,
    })
}

fn of_gpt(device: &dyn BlockDevice, read: gpt::ReadTable, mut found: Probe) -> Result<Probe> {
    let block = device.geometry().logical_block_size;
    found.table = TableKind::Gpt;
    found.disk_guid = Some(read.table.disk_guid);
    found.problems = read.problems;
    for p in read.table.partitions {
        let Some((offset, size)) = p.extent(block) else { continue };
        found.partitions.push(ProbedPartition {
            number: p.number,
            name: Some(printable(&p.name)),
            kind: PartitionKind::Gpt(p.type_guid),
            unique_guid: Some(p.unique_guid),
            offset,
            size,
            file_system: probe_part(device, offset, size)?,
        });
    }
    Ok(found)
}

/// Text from a disk without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
