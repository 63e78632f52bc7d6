//! Makes a volume in one forward pass.

use std::io::Read;

use super::directory::{ATTR_VOLUME, Target, Tree, short_entry};
use super::layout::{BACKUP_BOOT_SECTOR, FIXED_ROOT_ENTRIES, Layout};
use super::name::is_short_byte;
use super::{FatOptions, FatType};
use crate::field::{flush, put, write};
use crate::{Device, Error, ErrorKind, Result};

const BUFFER_LEN: usize = 1 << 20;
/// Table entries encoded at a time; whole sectors at every width.
const TABLE_CHUNK: u32 = 1 << 17;
const MEDIA: u8 = 0xf8;
const END_OF_CHAIN: u32 = 0x0fff_ffff;
const ROOT_CLUSTER: u32 = 2;

/// What was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FatSummary {
    /// Width of the table.
    pub fat_type: FatType,
    /// Bytes.
    pub cluster_size: u32,
    /// Clusters in all.
    pub clusters: u32,
    /// Clusters not in use.
    pub clusters_free: u32,
}

/// A volume being written. After an error of a method the volume is to be given up.
pub struct FatBuilder {
    device: Device,
    layout: Layout,
    options: FatOptions,
    label: Option<[u8; 11]>,
    tree: Tree,
    next_cluster: u32,
    /// Last cluster of each chain, ascending.
    chain_ends: Vec<u32>,
    /// Contents not yet written; they belong at `position`.
    buffer: Vec<u8>,
    position: u64,
    failed: bool,
}

fn encode_label(label: &str) -> Result<Option<[u8; 11]>> {
    let upper = label.to_ascii_uppercase();
    let fits = upper.len() <= 11 && upper.bytes().all(|b| b == b' ' || is_short_byte(b));
    if !fits || upper.starts_with(' ') {
        return Err(Error::new(ErrorKind::Invalid, format!("FAT label {label:?}")));
    }
    let mut bytes = [b' '; 11];
    bytes[..upper.len()].copy_from_slice(upper.as_bytes());
    Ok((!upper.is_empty()).then_some(bytes))
}

impl FatBuilder {
    /// Decides the layout. Nothing is written yet.
    pub fn new(device: Device, options: FatOptions) -> Result<Self> {
        let label = encode_label(&options.label)?;
        let layout = Layout::new(&device.geometry(), &options)?;
        let is_32 = layout.fat_type == FatType::Fat32;
        // The root takes the first cluster, where every reader looks for it.
        let next_cluster = if is_32 { ROOT_CLUSTER + 1 } else { ROOT_CLUSTER };
        Ok(Self {
            position: layout.cluster_offset(next_cluster),
            tree: Tree::new(usize::from(label.is_some())),
            buffer: Vec::with_capacity(BUFFER_LEN),
            chain_ends: Vec::new(),
            failed: false,
            device,
            layout,
            options,
            label,
            next_cluster,
        })
    }

    /// Makes an empty directory. Its parent is there already.
    pub fn create_dir(&mut self, path: &str) -> Result<()> {
        let (parent, name) = self.tree.locate(path)?;
        self.tree.insert_directory(parent, name, self.options.timestamp)
    }

    /// Makes a file of exactly `size` bytes from `reader`; `mtime` is in seconds since 1970.
    pub fn create_file(&mut self, path: &str, size: u32, reader: &mut dyn Read, mtime: u64) -> Result<()> {
        let (parent, name) = self.tree.locate(path)?;
        let count = size.div_ceil(self.layout.cluster_size());
        if count > self.clusters_left() {
            let context = format!(
                "{path}: {size} bytes do not fit the {} free bytes of the FAT volume",
                u64::from(self.clusters_left()) * u64::from(self.layout.cluster_size())
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let cluster = if count == 0 { 0 } else { self.next_cluster };
        self.tree.insert(parent, name, Target::File { cluster, size }, mtime)?;
        self.allocate(count);
        let streamed = self.stream(path, size, reader);
        self.failed |= streamed.is_err();
        streamed
    }

    fn clusters_left(&self) -> u32 {
        self.layout.clusters + 2 - self.next_cluster
    }

    fn allocate(&mut self, count: u32) {
        self.next_cluster += count;
        if count > 0 {
            self.chain_ends.push(self.next_cluster - 1);
        }
    }

    fn stream(&mut self, path: &str, size: u32, reader: &mut dyn Read) -> Result<()> {
        let mut left = size as usize;
        while left > 0 {
            if self.buffer.len() == BUFFER_LEN {
                self.write_buffer()?;
            }
            let filled = self.buffer.len();
            let want = left.min(BUFFER_LEN - filled);
            self.buffer.resize(filled + want, 0);
            reader.read_exact(&mut self.buffer[filled..]).map_err(|e| {
                Error::source_stream(format!("{path}: reading byte {} of {size}", size as usize - left), e)
            })?;
            left -= want;
        }
        self.pad()
    }

    /// Fills the last cluster, so that nothing of the device's past stays behind a file.
    fn pad(&mut self) -> Result<()> {
        // The buffer is a whole number of clusters long, and so is what was written before.
        let padded = self.buffer.len().next_multiple_of(self.layout.cluster_size() as usize);
        self.buffer.resize(padded, 0);
        if padded == BUFFER_LEN { self.write_buffer() } else { Ok(()) }
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.buffer.len() == BUFFER_LEN {
                self.write_buffer()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_LEN - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        self.pad()
    }

    fn write_buffer(&mut self) -> Result<()> {
        write(&*self.device, self.position, &self.buffer, "writing FAT clusters")?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes directories, tables and, last, the boot sector.
    pub fn finish(mut self) -> Result<FatSummary> {
        if self.failed {
            return Err(Error::new(ErrorKind::Invalid, "finishing a FAT volume after a file failed"));
        }
        let root_link = self.write_directories()?;
        self.write_buffer()?;
        self.write_tables(root_link)?;
        flush(&*self.device, "flushing the FAT volume")?;
        let clusters_free = self.clusters_left();
        write(&*self.device, 0, &self.reserved_area(clusters_free), "writing the FAT boot sector")?;
        flush(&*self.device, "flushing the FAT boot sector")?;
        Ok(FatSummary {
            fat_type: self.layout.fat_type,
            cluster_size: self.layout.cluster_size(),
            clusters: self.layout.clusters,
            clusters_free,
        })
    }

    /// Returns the second cluster of the root, [`END_OF_CHAIN`] where it has one only.
    fn write_directories(&mut self) -> Result<u32> {
        let cluster_size = self.layout.cluster_size() as usize;
        let is_32 = self.layout.fat_type == FatType::Fat32;
        let first_root_len = if is_32 { cluster_size } else { FIXED_ROOT_ENTRIES as usize * 32 };
        let root_rest = self.tree.len(0).saturating_sub(first_root_len);
        if root_rest > 0 && !is_32 {
            return Err(Error::new(ErrorKind::NoSpace, "the FAT root directory holds 512 entries"));
        }
        let mut root_link = END_OF_CHAIN;
        let mut starts = vec![0; self.tree.directories.len()];
        for (index, start) in starts.iter_mut().enumerate() {
            let len = if index == 0 { root_rest } else { self.tree.len(index) };
            let count = len.div_ceil(cluster_size) as u32;
            if count > self.clusters_left() {
                return Err(Error::new(ErrorKind::NoSpace, "the directories do not fit the FAT volume"));
            }
            if index != 0 {
                *start = self.next_cluster;
            } else if count > 0 {
                root_link = self.next_cluster;
            }
            self.allocate(count);
        }
        let label = self.label.map(|label| short_entry(&label, ATTR_VOLUME, 0, 0, self.options.timestamp));
        let mut root = self.tree.encode(0, &starts, label.as_ref().map(|entry| &entry[..]));
        let rest = root.split_off(root.len().min(first_root_len));
        let region =
            if is_32 { cluster_size } else { (self.layout.root_sectors * self.layout.sector_size) as usize };
        root.resize(region, 0);
        let root_offset =
            if is_32 { self.layout.cluster_offset(ROOT_CLUSTER) } else { self.layout.fixed_root_offset() };
        write(&*self.device, root_offset, &root, "writing the FAT root directory")?;
        self.append(&rest)?;
        for index in 1..starts.len() {
            let bytes = self.tree.encode(index, &starts, None);
            self.append(&bytes)?;
        }
        Ok(root_link)
    }

    fn write_tables(&self, root_link: u32) -> Result<()> {
        let mut ends = self.chain_ends.iter().copied().peekable();
        let mut written = 0;
        let mut first = 0;
        while first < self.next_cluster {
            let last = self.next_cluster.min(first + TABLE_CHUNK);
            let entries: Vec<u32> = (first..last)
                .map(|cluster| match cluster {
                    0 => 0x0fff_ff00 | u32::from(MEDIA),
                    // The two high bits set: not dirty, no read errors.
                    1 => END_OF_CHAIN,
                    ROOT_CLUSTER if self.layout.fat_type == FatType::Fat32 => root_link,
                    _ if ends.next_if_eq(&cluster).is_some() => END_OF_CHAIN,
                    _ => cluster + 1,
                })
                .collect();
            let mut bytes = encode_table(self.layout.fat_type, &entries);
            bytes.resize(bytes.len().next_multiple_of(self.layout.sector_size as usize), 0);
            for copy in 0..2 {
                write(&*self.device, self.layout.fat_offset(copy) + written, &bytes, "writing a FAT")?;
            }
            written += bytes.len() as u64;
            first = last;
        }
        for copy in 0..2 {
            let (offset, len) = (self.layout.fat_offset(copy) + written, self.layout.fat_len() - written);
            if len > 0 {
                self.device
                    .write_zeroes(offset, len)
                    .map_err(|e| Error::io("zeroing the unused part of a FAT", offset, e))?;
            }
        }
        Ok(())
    }

    /// Everything in front of the tables.
    fn reserved_area(&self, clusters_free: u32) -> Vec<u8> {
        let layout = &self.layout;
        let sector_size = layout.sector_size as usize;
        let mut area = vec![0; layout.reserved as usize * sector_size];
        let boot = self.boot_sector();
        put(&mut area, 0, &boot);
        if layout.fat_type == FatType::Fat32 {
            let info = self.info_sector(clusters_free);
            put(&mut area, sector_size, &info);
            put(&mut area, BACKUP_BOOT_SECTOR as usize * sector_size, &boot);
            put(&mut area, (BACKUP_BOOT_SECTOR as usize + 1) * sector_size, &info);
        }
        area
    }

    fn boot_sector(&self) -> [u8; 512] {
        let layout = &self.layout;
        let is_32 = layout.fat_type == FatType::Fat32;
        let mut b = [0; 512];
        // Firmware that starts it all the same gets a halt: 0xf4 0xeb 0xfd.
        let code = if is_32 { 90 } else { 62 };
        put(&mut b, 0, &[0xeb, code - 2, 0x90]);
        put(&mut b, code.into(), &[0xf4, 0xeb, 0xfd]);
        put(&mut b, 3, b"MSWIN4.1");
        put(&mut b, 11, &(layout.sector_size as u16).to_le_bytes());
        b[13] = layout.sectors_per_cluster as u8;
        put(&mut b, 14, &(layout.reserved as u16).to_le_bytes());
        b[16] = 2;
        b[21] = MEDIA;
        put(&mut b, 24, &63u16.to_le_bytes());
        put(&mut b, 26, &255u16.to_le_bytes());
        put(&mut b, 28, &self.options.hidden_sectors.to_le_bytes());
        match u16::try_from(layout.total_sectors) {
            Ok(total) if !is_32 => put(&mut b, 19, &total.to_le_bytes()),
            _ => put(&mut b, 32, &layout.total_sectors.to_le_bytes()),
        }
        let extended = if is_32 {
            put(&mut b, 36, &layout.fat_sectors.to_le_bytes());
            put(&mut b, 44, &ROOT_CLUSTER.to_le_bytes());
            put(&mut b, 48, &1u16.to_le_bytes());
            put(&mut b, 50, &(BACKUP_BOOT_SECTOR as u16).to_le_bytes());
            64
        } else {
            put(&mut b, 17, &(FIXED_ROOT_ENTRIES as u16).to_le_bytes());
            put(&mut b, 22, &(layout.fat_sectors as u16).to_le_bytes());
            36
        };
        b[extended] = 0x80;
        b[extended + 2] = 0x29;
        put(&mut b, extended + 3, &self.options.volume_id.to_le_bytes());
        put(&mut b, extended + 7, &self.label.unwrap_or(*b"NO NAME    "));
        let name = match layout.fat_type {
            FatType::Fat12 => b"FAT12   ",
            FatType::Fat16 => b"FAT16   ",
            FatType::Fat32 => b"FAT32   ",
        };
        put(&mut b, extended + 18, name);
        put(&mut b, 510, &[0x55, 0xaa]);
        b
    }

    fn info_sector(&self, clusters_free: u32) -> [u8; 512] {
        let mut b = [0; 512];
        put(&mut b, 0, b"RRaA");
        put(&mut b, 484, b"rrAa");
        put(&mut b, 488, &clusters_free.to_le_bytes());
        // Where to look for a free cluster; unknown on a full volume.
        let hint = if clusters_free == 0 { u32::MAX } else { self.next_cluster };
        put(&mut b, 492, &hint.to_le_bytes());
        put(&mut b, 510, &[0x55, 0xaa]);
        b
    }
}

fn encode_table(fat_type: FatType, entries: &[u32]) -> Vec<u8> {
    match fat_type {
        FatType::Fat32 => entries.iter().flat_map(|e| e.to_le_bytes()).collect(),
        FatType::Fat16 => entries.iter().flat_map(|e| (*e as u16).to_le_bytes()).collect(),
        FatType::Fat12 => entries
            .chunks(2)
            .flat_map(|pair| {
                let high = pair.get(1).copied().unwrap_or(0) & 0xfff;
                let both = pair[0] & 0xfff | high << 12;
                let [a, b, c, _] = both.to_le_bytes();
                [a, b, c]
            })
            .collect(),
    }
}
