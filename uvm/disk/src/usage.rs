//! Which bytes of a device hold something: what copying, capturing and migration need not pass over.
//!
//! [`scan`] looks at a whole device, through its partition table and the file systems' own maps. What is not understood
//! is used: a wrong answer costs time, never data.

use std::ops::Range;

use crate::probe::{FileSystem, Part, TableKind, probe};
use crate::{BlockDevice, ErrorKind, Result, ext4, fat, gpt, mbr, ntfs};

/// Boot loaders lie before the first partition (GRUB's core image, U-Boot), RAID members keep their superblock behind
/// the file system: this much at either place is used although nothing says so.
const EDGE: u64 = 1 << 20;

/// Takes one extent of used bytes after the other: ascending, neither empty, overlapping nor adjacent, all on the
/// device. Its error ends the scan.
pub type Visit<'v> = dyn FnMut(Range<u64>) -> Result<()> + 'v;

/// What a scan of one file system found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// As blkid names it: `ext2`, `ext3`, `ext4`, `vfat`, `ntfs`.
    pub format: &'static str,
    /// The unit of allocation, bytes.
    pub block_size: u32,
    /// Bytes the file system spans, from the start of the device.
    pub size: u64,
    /// Bytes in use, metadata included: the sum of the extents.
    pub used: u64,
}

/// What a scan of a whole device found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceUsage {
    /// The partition table.
    pub table: TableKind,
    /// Bytes of the device.
    pub size: u64,
    /// Bytes in use: the sum of the extents, table and boot code included.
    pub used: u64,
    /// What is wrong with the table, one line each.
    pub problems: Vec<String>,
    /// In order of their place on the device. An extended partition is not among them; its logical ones are.
    pub partitions: Vec<PartitionUsage>,
    /// What is on the device itself, where there is no table, or one that is broken or an MBR without partitions.
    pub content: Option<ContentUsage>,
}

/// A partition and how much of it is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionUsage {
    /// From 1.
    pub number: u32,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// What is in it.
    pub content: ContentUsage,
}

/// What is in a partition or on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentUsage {
    /// blkid's name of it; `None` where nothing was recognized.
    pub format: Option<&'static str>,
    /// The unit of allocation, where a map was read.
    pub block_size: Option<u32>,
    /// Bytes in use.
    pub used: u64,
    /// Why all of it counts as used, where no map was read.
    pub assumed: Option<String>,
}

/// Makes extents that come in ascending order, and may touch or overlap, into such as [`Visit`] takes.
pub(crate) struct Merge<'a, 'v> {
    visit: &'a mut Visit<'v>,
    pending: Range<u64>,
    used: u64,
    /// The visitor gave an error.
    pub(crate) stopped: bool,
}

impl<'a, 'v> Merge<'a, 'v> {
    pub(crate) fn new(visit: &'a mut Visit<'v>) -> Self {
        Self { visit, pending: 0..0, used: 0, stopped: false }
    }

    /// Takes an extent that begins where the last one began, or behind it.
    pub(crate) fn add(&mut self, extent: Range<u64>) -> Result<()> {
        if extent.is_empty() {
            return Ok(());
        }
        if !self.pending.is_empty() && extent.start <= self.pending.end {
            self.pending.end = self.pending.end.max(extent.end);
            return Ok(());
        }
        self.emit()?;
        self.pending = extent;
        Ok(())
    }

    fn emit(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.used += self.pending.end - self.pending.start;
        let visited = (self.visit)(self.pending.clone());
        self.stopped = visited.is_err();
        visited
    }

    /// Hands out the last extent; the bytes of all of them.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.emit()?;
        Ok(self.used)
    }
}

/// A stretch of the device that is looked at by itself.
#[derive(Debug, Clone)]
struct Area {
    bytes: Range<u64>,
    /// What it is, if it is a partition; else all of it is used.
    partition: Option<(u32, Option<FileSystem>)>,
}

/// Visits everything a device uses: the areas of the partition table, and each partition as far as its file system's
/// map says, or all of it. Between partitions, nothing is used.
///
/// # Errors
/// A map that turns out broken after some of it was visited ends the scan: it cannot be taken back. One that is seen to
/// be broken at once makes all of its partition used.
pub fn scan(device: &dyn BlockDevice, visit: &mut Visit<'_>) -> Result<DeviceUsage> {
    let size = device.geometry().size;
    let found = probe(device)?;
    let mut merge = Merge::new(visit);
    let mut usage = DeviceUsage {
        table: found.table,
        size,
        used: 0,
        problems: found.problems,
        partitions: Vec::new(),
        content: None,
    };
    // What an MBR says beside a broken GPT may be less than what there was.
    let broken = usage.problems.first().filter(|_| found.table != TableKind::Gpt);
    let broken = broken.map(|problem| format!("the partition table is broken: {problem}"));
    // Two bytes make an MBR, and boot sectors of file systems that are not known here have them too.
    let bare = found.table == TableKind::Mbr && found.partitions.is_empty();
    let assumed = broken.or_else(|| bare.then(|| "the MBR lists no partition".to_owned()));
    if found.table == TableKind::None || assumed.is_some() {
        let file_system = found.file_system.as_ref();
        usage.content = Some(content(device, &(0..size), file_system, assumed, &mut merge)?);
        usage.used = merge.finish()?;
        return Ok(usage);
    }
    let mut areas = Vec::new();
    if found.table == TableKind::Gpt {
        areas.extend(gpt::areas(device)?.into_iter().map(|bytes| Area { bytes, partition: None }));
    }
    let partitions = found.partitions.into_iter().map(|p| {
        let end = p.offset.saturating_add(p.size);
        (p.number, p.offset.min(size)..end.min(size), p.kind, p.file_system)
    });
    let (extended, partitions): (Vec<_>, Vec<_>) = partitions.partition(
        |(_, _, kind, _)| matches!(kind, crate::probe::PartitionKind::Mbr(kind) if mbr::is_extended(*kind)),
    );
    for (_, container, ..) in extended {
        let logical = partitions.iter().map(|(_, bytes, ..)| bytes.clone());
        areas.extend(without(container, logical).into_iter().map(|bytes| Area { bytes, partition: None }));
    }
    let first = partitions.iter().map(|(_, bytes, ..)| bytes.start).min().unwrap_or(size);
    let block = u64::from(device.geometry().logical_block_size);
    areas.push(Area { bytes: 0..first.min(EDGE).max(block).min(size), partition: None });
    areas.extend(
        partitions.into_iter().map(|(number, bytes, _, fs)| Area { bytes, partition: Some((number, fs)) }),
    );
    areas.sort_by_key(|area| (area.bytes.start, area.bytes.end));
    visit_areas(device, &areas, &mut usage, &mut merge)?;
    usage.used = merge.finish()?;
    Ok(usage)
}

/// What of `whole` is in none of `parts`.
fn without(whole: Range<u64>, parts: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut parts: Vec<_> = parts.filter(|part| part.start < whole.end && part.end > whole.start).collect();
    parts.sort_by_key(|part| part.start);
    let mut rest = Vec::new();
    let mut at = whole.start;
    for part in parts {
        if part.start > at {
            rest.push(at..part.start);
        }
        at = at.max(part.end);
    }
    if at < whole.end {
        rest.push(at..whole.end);
    }
    rest
}

/// Areas that overlap are used as a whole: one file system's map says nothing of the other's blocks.
fn visit_areas(
    device: &dyn BlockDevice,
    areas: &[Area],
    usage: &mut DeviceUsage,
    merge: &mut Merge<'_, '_>,
) -> Result<()> {
    let mut rest = areas;
    while let Some(first) = rest.first() {
        let mut end = first.bytes.end;
        let mut count = 1;
        while rest.get(count).is_some_and(|next| next.bytes.start < end) {
            end = end.max(rest[count].bytes.end);
            count += 1;
        }
        let (group, later) = rest.split_at(count);
        rest = later;
        let overlaps = group.iter().any(|area| area.partition.is_some()) && count > 1;
        for area in group {
            let Some((number, file_system)) = &area.partition else {
                merge.add(area.bytes.clone())?;
                continue;
            };
            let assumed = overlaps.then(|| "it overlaps another partition or the partition table".to_owned());
            usage.partitions.push(PartitionUsage {
                number: *number,
                offset: area.bytes.start,
                size: area.bytes.end - area.bytes.start,
                content: content(device, &area.bytes, file_system.as_ref(), assumed, merge)?,
            });
        }
    }
    Ok(())
}

type Map = fn(&dyn BlockDevice, &mut Visit<'_>) -> Result<Usage>;

/// The reader of a file system's own map.
fn map_of(format: &str) -> Option<Map> {
    match format {
        "vfat" => Some(fat::used_extents),
        "ext2" | "ext3" | "ext4" => Some(ext4::used_extents),
        "ntfs" => Some(ntfs::used_extents),
        _ => None,
    }
}

/// Visits what is used within `bytes`; all of it where `assumed` says why, or no map can be read.
fn content(
    device: &dyn BlockDevice,
    bytes: &Range<u64>,
    file_system: Option<&FileSystem>,
    assumed: Option<String>,
    merge: &mut Merge<'_, '_>,
) -> Result<ContentUsage> {
    let format = file_system.map(|file_system| file_system.kind);
    let size = bytes.end - bytes.start;
    let assumed = match (assumed, format, format.and_then(map_of)) {
        (Some(assumed), ..) => assumed,
        (None, None, _) => "nothing known is on it".to_owned(),
        (None, Some(format), None) => format!("the map of {format} is not read"),
        (None, Some(_), Some(map)) => {
            let part = Part { device, offset: bytes.start, size };
            match read_map(&part, map, merge)? {
                Ok(found) => {
                    let end = bytes.start + found.size.min(size);
                    merge.add(end.max(bytes.end.saturating_sub(EDGE))..bytes.end)?;
                    let block_size = Some(found.block_size);
                    return Ok(ContentUsage { format, block_size, used: found.used, assumed: None });
                }
                Err(reason) => reason,
            }
        }
    };
    merge.add(bytes.clone())?;
    Ok(ContentUsage { format, block_size: None, used: size, assumed: Some(assumed) })
}

/// The inner error says why the map cannot be read; nothing of it was visited then.
fn read_map(
    part: &Part<'_>,
    map: Map,
    merge: &mut Merge<'_, '_>,
) -> Result<std::result::Result<Usage, String>> {
    let mut visited = false;
    let read = map(part, &mut |extent| {
        visited = true;
        merge.add(part.offset + extent.start..part.offset + extent.end)
    });
    match read {
        Ok(found) => Ok(Ok(found)),
        Err(error) if visited || merge.stopped || error.kind() == ErrorKind::Io => Err(error),
        Err(error) => Ok(Err(error.to_string())),
    }
}
