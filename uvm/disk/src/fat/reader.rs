//! Reads a volume of anybody's making; whatever is on it, within bounds.

use super::FatType;
use super::directory::{
    ATTR_DIRECTORY, ATTR_LONG, ATTR_VOLUME, ENTRY_LEN, LONG_OFFSETS, LONG_UNITS, MAX_ENTRIES, checksum,
};
use super::name::{ShortName, fold, short_to_string};
use crate::field::{bytes_at, le16, le32, read as read_bytes};
use crate::{BlockDevice, Error, ErrorKind, Result};

const MAX_LONG_ENTRIES: usize = 20;
/// Larger tables are not counted: the volume's own figure has to do.
const MAX_COUNTED_TABLE: u64 = 16 << 20;
const MAX_DEPTH: usize = 64;
/// As mkfs.fat makes at most.
const MAX_FATS: u64 = 4;

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FatEntry {
    /// The long name where there is one.
    pub name: String,
    /// A directory, not a file.
    pub is_dir: bool,
    /// Bytes of a file.
    pub size: u32,
    first_cluster: u32,
    short: String,
}

/// An open volume.
pub struct FatReader<'d> {
    device: &'d dyn BlockDevice,
    fat_type: FatType,
    volume_id: u32,
    boot_label: [u8; 11],
    pub(super) cluster_size: u32,
    pub(super) clusters: u32,
    /// Bytes from the boot sector to the last one.
    pub(crate) size: u64,
    fat_offset: u64,
    fat_len: u64,
    root_offset: u64,
    root_len: usize,
    root_cluster: u32,
    pub(super) data_offset: u64,
    info_offset: u64,
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

impl<'d> FatReader<'d> {
    /// [`ErrorKind::NotFound`] where the boot sector is not one of FAT; [`ErrorKind::Corrupt`] where it is, and claims
    /// more than there is.
    pub fn open(device: &'d dyn BlockDevice) -> Result<Self> {
        let reader = Self::claimed(device)?;
        let table_len = reader.fat_type.table_len(u64::from(reader.clusters) + 2);
        // The tables end where the root directory begins: there is the one that counts.
        let has_table = reader.fat_offset + reader.fat_len <= reader.root_offset;
        if reader.size > device.geometry().size || table_len > reader.fat_len || !has_table {
            return Err(corrupt("the FAT boot sector claims more than there is"));
        }
        Ok(reader)
    }

    /// What the boot sector says, whether it can be so or not: that is enough to know whose volume this was.
    pub(crate) fn claimed(device: &'d dyn BlockDevice) -> Result<Self> {
        let none = || Error::new(ErrorKind::NotFound, "reading a FAT boot sector: there is none");
        if device.geometry().size < 512 {
            return Err(none());
        }
        let b = read_bytes(device, 0, 512, "reading a FAT boot sector")?;
        let sector = u64::from(le16(&b, 11));
        let (per_cluster, reserved, fats) = (u64::from(b[13]), u64::from(le16(&b, 14)), u64::from(b[16]));
        let fat_sectors = match le16(&b, 22) {
            0 => u64::from(le32(&b, 36)),
            sectors => u64::from(sectors),
        };
        let sound = le16(&b, 510) == 0xaa55
            && matches!(sector, 512 | 1024 | 2048 | 4096)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=MAX_FATS).contains(&fats)
            && fat_sectors > 0
            && (b[21] == 0xf0 || b[21] >= 0xf8);
        if !sound {
            return Err(none());
        }
        let total = match le16(&b, 19) {
            0 => u64::from(le32(&b, 32)),
            sectors => u64::from(sectors),
        };
        let root_len = u64::from(le16(&b, 17)) * 32;
        let root_start = reserved + fats * fat_sectors;
        let data_start = root_start + root_len.div_ceil(sector);
        let clusters = total.checked_sub(data_start).ok_or_else(none)? / per_cluster;
        let clusters = u32::try_from(clusters).map_err(|_| none())?;
        let is_32 = le16(&b, 22) == 0;
        let extended = if is_32 { 64 } else { 36 };
        let fat_len = fat_sectors * sector;
        let active = match le16(&b, 40) {
            // Only one table is kept up to date, and this says which.
            flags if is_32 && flags & 0x80 != 0 => u64::from(flags & 0xf),
            _ => 0,
        };
        let fat_type = if is_32 { FatType::Fat32 } else { FatType::of(clusters.min(65_524)) };
        Ok(Self {
            device,
            fat_type,
            volume_id: le32(&b, extended + 3),
            boot_label: bytes_at(&b, extended + 7),
            cluster_size: (per_cluster * sector) as u32,
            clusters,
            size: total * sector,
            fat_offset: reserved * sector + active * fat_len,
            fat_len,
            root_offset: root_start * sector,
            root_len: root_len as usize,
            root_cluster: if is_32 { le32(&b, 44) } else { 0 },
            data_offset: data_start * sector,
            info_offset: u64::from(le16(&b, 48)) * sector,
        })
    }

    /// Width of the table.
    pub fn fat_type(&self) -> FatType {
        self.fat_type
    }

    /// The serial number.
    pub fn volume_id(&self) -> u32 {
        self.volume_id
    }

    /// The label in the root directory, else the one in the boot sector.
    pub fn label(&self) -> Result<Option<String>> {
        let root = self.directory_bytes(None)?;
        let live = root.chunks_exact(ENTRY_LEN).take_while(|e| e[0] != 0).filter(|e| e[0] != 0xe5);
        let mut labels = live
            .filter(|e| e[11] & 0x3f != ATTR_LONG && e[11] & (ATTR_VOLUME | ATTR_DIRECTORY) == ATTR_VOLUME);
        let bytes: ShortName = match labels.next() {
            Some(entry) => bytes_at(entry, 0),
            None if &self.boot_label == b"NO NAME    " => return Ok(None),
            None => self.boot_label,
        };
        let label = String::from_utf8_lossy(&bytes).trim_end_matches([' ', '\0']).to_owned();
        Ok((!label.is_empty()).then_some(label))
    }

    /// Bytes of free clusters.
    pub fn free(&self) -> Result<u64> {
        let free = if self.fat_type.table_len(u64::from(self.clusters) + 2) <= MAX_COUNTED_TABLE {
            let table = self.table(0, self.clusters + 1)?;
            (2..self.clusters + 2).filter(|cluster| self.entry(&table, 0, *cluster) == 0).count() as u64
        } else {
            let info = read_bytes(self.device, self.info_offset, 512, "reading the FAT information sector")?;
            u64::from(le32(&info, 488).min(self.clusters))
        };
        Ok(free * u64::from(self.cluster_size))
    }

    /// The bytes of the table that hold the entries from `first` to `last`.
    pub(super) fn table(&self, first: u32, last: u32) -> Result<Vec<u8>> {
        let start = u64::from(first) * u64::from(self.fat_type.bits()) / 8;
        let end = self.fat_type.table_len(u64::from(last) + 1).min(self.fat_len);
        read_bytes(self.device, self.fat_offset + start, (end - start) as usize, "reading a FAT")
    }

    /// An entry out of bytes that begin at entry `first`, which is even.
    pub(super) fn entry(&self, table: &[u8], first: u32, cluster: u32) -> u32 {
        let index = (cluster - first) as usize;
        match self.fat_type {
            FatType::Fat32 => le32(table, index * 4) & 0x0fff_ffff,
            FatType::Fat16 => le16(table, index * 2).into(),
            FatType::Fat12 => u32::from(le16(table, index * 3 / 2)) >> (index % 2 * 4) & 0xfff,
        }
    }

    fn is_cluster(&self, cluster: u32) -> bool {
        cluster >= 2 && cluster - 2 < self.clusters
    }

    /// Follows a chain for at most `max` bytes: a circle ends there.
    fn chain_bytes(&self, first: u32, max: usize) -> Result<Vec<u8>> {
        const WINDOW: u32 = 4096;
        let mut bytes = Vec::new();
        let mut cluster = first;
        let mut window = (0, Vec::new());
        while bytes.len() < max {
            if !self.is_cluster(cluster) {
                return Err(corrupt(format!("a FAT chain leads to cluster {cluster}")));
            }
            let offset = self.data_offset + u64::from(cluster - 2) * u64::from(self.cluster_size);
            bytes.extend(read_bytes(
                self.device,
                offset,
                self.cluster_size as usize,
                "reading FAT clusters",
            )?);
            let start = cluster / WINDOW * WINDOW;
            if window.1.is_empty() || window.0 != start {
                window = (start, self.table(start, (start + WINDOW - 1).min(self.clusters + 1))?);
            }
            cluster = self.entry(&window.1, start, cluster);
            if self.is_end(cluster) {
                break;
            }
        }
        bytes.truncate(max);
        Ok(bytes)
    }

    fn is_end(&self, entry: u32) -> bool {
        entry
            >= match self.fat_type {
                FatType::Fat12 => 0xff8,
                FatType::Fat16 => 0xfff8,
                FatType::Fat32 => 0x0fff_fff8,
            }
    }

    fn directory_bytes(&self, cluster: Option<u32>) -> Result<Vec<u8>> {
        match cluster {
            None if self.fat_type != FatType::Fat32 => {
                read_bytes(self.device, self.root_offset, self.root_len, "reading the FAT root directory")
            }
            None => self.chain_bytes(self.root_cluster, MAX_ENTRIES * ENTRY_LEN),
            Some(cluster) => self.chain_bytes(cluster, MAX_ENTRIES * ENTRY_LEN),
        }
    }

    fn find(&self, path: &str) -> Result<Option<FatEntry>> {
        let mut at: Option<FatEntry> = None;
        let missing = || Error::new(ErrorKind::NotFound, format!("{path} is not on the FAT volume"));
        for part in path.split('/').filter(|part| !part.is_empty()).take(MAX_DEPTH) {
            if at.as_ref().is_some_and(|entry| !entry.is_dir) {
                return Err(missing());
            }
            let entries = decode(&self.directory_bytes(at.map(|entry| entry.first_cluster))?);
            let wanted = fold(part);
            let found = entries.into_iter().find(|e| fold(&e.name) == wanted || e.short == wanted);
            at = Some(found.ok_or_else(missing)?);
        }
        Ok(at)
    }

    /// What is in a directory, without `.` and `..`.
    pub fn list_dir(&self, path: &str) -> Result<Vec<FatEntry>> {
        match self.find(path)? {
            Some(entry) if !entry.is_dir => {
                Err(Error::new(ErrorKind::Invalid, format!("{path} is not a directory")))
            }
            entry => Ok(decode(&self.directory_bytes(entry.map(|entry| entry.first_cluster))?)),
        }
    }

    /// A file of at most `max` bytes.
    pub fn read_file(&self, path: &str, max: u32) -> Result<Vec<u8>> {
        match self.find(path)? {
            Some(entry) if !entry.is_dir && entry.size <= max => {
                let bytes = self.chain_bytes(entry.first_cluster, entry.size as usize)?;
                let whole = bytes.len() == entry.size as usize;
                if whole { Ok(bytes) } else { Err(corrupt(format!("the FAT chain of {path} is too short"))) }
            }
            _ => Err(Error::new(ErrorKind::Invalid, format!("{path} is no file of at most {max} bytes"))),
        }
    }
}

/// The files and directories among the entries.
fn decode(bytes: &[u8]) -> Vec<FatEntry> {
    let mut found = Vec::new();
    // Entries of a long name that wait for their short one: checksum and units, last part first.
    let mut long: Vec<(u8, [u16; LONG_UNITS])> = Vec::new();
    for e in bytes.chunks_exact(ENTRY_LEN).take_while(|e| e[0] != 0) {
        if e[0] == 0xe5 {
            long.clear();
        } else if e[11] & 0x3f == ATTR_LONG {
            if e[0] & 0x40 != 0 || long.len() == MAX_LONG_ENTRIES {
                long.clear();
            }
            long.push((e[13], LONG_OFFSETS.map(|at| le16(e, at))));
        } else {
            let short: ShortName = bytes_at(e, 0);
            let parts = std::mem::take(&mut long);
            if e[11] & ATTR_VOLUME != 0 || e[0] == b'.' {
                continue;
            }
            let ours = !parts.is_empty() && parts.iter().all(|(sum, _)| *sum == checksum(&short));
            let units: Vec<u16> =
                parts.iter().rev().flat_map(|(_, units)| *units).take_while(|unit| *unit != 0).collect();
            let (shown, short) = (short_to_string(&short, e[12]), short_to_string(&short, 0));
            found.push(FatEntry {
                name: if ours { String::from_utf16_lossy(&units) } else { shown },
                is_dir: e[11] & ATTR_DIRECTORY != 0,
                size: le32(e, 28),
                first_cluster: u32::from(le16(e, 20)) << 16 | u32::from(le16(e, 26)),
                short,
            });
        }
    }
    found
}
