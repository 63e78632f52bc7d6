//! What is written last: directories, tables, and the boot sector that makes a volume of it all.

use super::clusters::Run;
use super::layout::{BACKUP_BOOT_SECTOR, Layout};
use super::tree::{Body, FatNode, ROOT};
use super::{FatBuilder, FatOptions, FatType};
use crate::field::{flush, put, write};
use crate::{Error, ErrorKind, Result};

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

/// Consecutive clusters of a chain, and the one that follows them.
struct Link {
    run: Run,
    next: u32,
}

impl FatBuilder {
    /// Writes directories, tables and, last, the boot sector.
    pub fn finish(mut self) -> Result<FatSummary> {
        if self.contents.failed {
            return Err(Error::new(ErrorKind::Invalid, "finishing a FAT volume after a write failed"));
        }
        let links = self.write_directories()?;
        self.contents.flush()?;
        self.write_tables(&links)?;
        let device = &*self.contents.device;
        let clusters_free = self.clusters.free();
        let (boot, reserved) = self.reserved_area(clusters_free);
        let sector_size = self.layout.sector_size as usize;
        if reserved.len() > sector_size {
            let others = &reserved[sector_size..];
            write(device, sector_size as u64, others, "writing the reserved sectors of FAT")?;
        }
        flush(device, "flushing the FAT volume")?;
        // One logical block: it is there or it is not.
        let block = (device.geometry().logical_block_size as usize).clamp(boot.len(), sector_size);
        write(device, 0, &reserved[..block], "writing the FAT boot sector")?;
        flush(device, "flushing the FAT boot sector")?;
        Ok(FatSummary {
            fat_type: self.layout.fat_type,
            cluster_size: self.layout.cluster_size(),
            clusters: self.layout.clusters,
            clusters_free,
        })
    }

    /// Gives the directories their clusters and writes them. Returns all chains, in order of their clusters.
    fn write_directories(&mut self) -> Result<Vec<Link>> {
        let mut directories: Vec<(FatNode, Vec<Run>)> = Vec::new();
        let mut sizes: Vec<(FatNode, u32)> = Vec::new();
        let mut links = Vec::new();
        let mut last = 0;
        for (at, node) in self.tree.nodes() {
            last = last.max(at.0);
            match &node.body {
                Body::File { runs, .. } => link(runs, &mut links),
                Body::Directory(directory) => sizes.push((at, self.directory_clusters(at, directory))),
            }
        }
        let mut starts = vec![0; last as usize + 1];
        for (at, count) in sizes {
            let mut runs = self.clusters.take_reserved(count)?;
            if at == ROOT && self.layout.fat_type == FatType::Fat32 {
                runs.insert(0, Run { first: ROOT_CLUSTER, count: 1 });
            }
            starts[at.0 as usize] = runs.first().map_or(0, |run| run.first);
            link(&runs, &mut links);
            directories.push((at, runs));
        }
        for (at, runs) in directories {
            let mut bytes = self.encode_directory(at, &starts)?;
            if runs.is_empty() {
                bytes.resize((self.layout.root_sectors * self.layout.sector_size) as usize, 0);
                self.contents.put(self.layout.fixed_root_offset(), &bytes)?;
            }
            let mut done = 0;
            for run in runs {
                let place = self.layout.bytes_of(run.first, run.count);
                let len = (place.end - place.start) as usize;
                let part = &bytes[done..bytes.len().min(done + len)];
                self.contents.put(place.start, part)?;
                self.contents.zero(place.start + part.len() as u64, len - part.len())?;
                done += part.len();
            }
        }
        links.sort_unstable_by_key(|link| link.run.first);
        Ok(links)
    }

    fn write_tables(&self, links: &[Link]) -> Result<()> {
        let device = &*self.contents.device;
        let layout = &self.layout;
        let mut links = links.iter().peekable();
        let mut written = 0;
        let mut first = 0;
        while first < self.clusters.next() {
            let last = self.clusters.next().min(first + TABLE_CHUNK);
            let mut entries = vec![0; (last - first) as usize];
            if first == 0 {
                // Cluster 1, the two high bits set: not dirty, no read errors.
                entries[..2].copy_from_slice(&[0x0fff_ff00 | u32::from(MEDIA), END_OF_CHAIN]);
            }
            while let Some(link) = links.peek().filter(|link| link.run.first < last) {
                for cluster in link.run.first.max(first)..link.run.end().min(last) {
                    let is_last = cluster + 1 == link.run.end();
                    entries[(cluster - first) as usize] = if is_last { link.next } else { cluster + 1 };
                }
                if link.run.end() > last {
                    break;
                }
                links.next();
            }
            let mut bytes = encode_table(layout.fat_type, &entries);
            bytes.resize(bytes.len().next_multiple_of(layout.sector_size as usize), 0);
            for copy in 0..layout.fats {
                write(device, layout.fat_offset(copy) + written, &bytes, "writing a FAT")?;
            }
            written += bytes.len() as u64;
            first = last;
        }
        for copy in 0..layout.fats {
            let (offset, len) = (layout.fat_offset(copy) + written, layout.fat_len() - written);
            if len > 0 {
                let zeroed = device.write_zeroes(offset, len);
                zeroed.map_err(|e| Error::io("zeroing the unused part of a FAT", offset, e))?;
            }
        }
        Ok(())
    }

    /// The boot sector, and everything in front of the tables with it.
    fn reserved_area(&self, clusters_free: u32) -> ([u8; 512], Vec<u8>) {
        let layout = &self.layout;
        let sector_size = layout.sector_size as usize;
        let mut area = vec![0; layout.reserved as usize * sector_size];
        let boot = boot_sector(layout, &self.options, &self.label.unwrap_or(*b"NO NAME    "));
        put(&mut area, 0, &boot);
        if layout.fat_type == FatType::Fat32 {
            // Where to look for a free cluster; unknown where none is left behind the last one in use.
            let next = self.clusters.next();
            let hint = if next < layout.clusters + 2 { next } else { u32::MAX };
            let info = info_sector(clusters_free, hint);
            let backup = BACKUP_BOOT_SECTOR as usize;
            put(&mut area, sector_size, &info);
            put(&mut area, backup * sector_size, &boot);
            put(&mut area, (backup + 1) * sector_size, &info);
        }
        (boot, area)
    }
}

/// Adds the parts of one chain.
fn link(runs: &[Run], links: &mut Vec<Link>) {
    for (index, run) in runs.iter().enumerate() {
        let next = runs.get(index + 1).map_or(END_OF_CHAIN, |next| next.first);
        links.push(Link { run: *run, next });
    }
}

fn boot_sector(layout: &Layout, options: &FatOptions, label: &[u8; 11]) -> [u8; 512] {
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
    b[16] = layout.fats as u8;
    b[21] = MEDIA;
    put(&mut b, 24, &63u16.to_le_bytes());
    put(&mut b, 26, &255u16.to_le_bytes());
    put(&mut b, 28, &options.hidden_sectors.to_le_bytes());
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
        put(&mut b, 17, &(layout.root_entries as u16).to_le_bytes());
        put(&mut b, 22, &(layout.fat_sectors as u16).to_le_bytes());
        36
    };
    b[extended] = 0x80;
    b[extended + 2] = 0x29;
    put(&mut b, extended + 3, &options.volume_id.to_le_bytes());
    put(&mut b, extended + 7, label);
    let name = match layout.fat_type {
        FatType::Fat12 => b"FAT12   ",
        FatType::Fat16 => b"FAT16   ",
        FatType::Fat32 => b"FAT32   ",
    };
    put(&mut b, extended + 18, name);
    put(&mut b, 510, &[0x55, 0xaa]);
    b
}

fn info_sector(clusters_free: u32, hint: u32) -> [u8; 512] {
    let mut b = [0; 512];
    put(&mut b, 0, b"RRaA");
    put(&mut b, 484, b"rrAa");
    put(&mut b, 488, &clusters_free.to_le_bytes());
    put(&mut b, 492, &hint.to_le_bytes());
    put(&mut b, 510, &[0x55, 0xaa]);
    b
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
