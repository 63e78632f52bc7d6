//! Checksums made right again after a change, as whoever means harm would.

use crate::device::{Disk, PAGE};
use uvm_disk::BlockDevice;

/// Groups of an ext file system whose checksums are made right.
const MAX_GROUPS: u32 = 64;
/// Bytes of partition entries that are.
const MAX_ENTRIES: u64 = 1 << 20;

fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}

/// CRC-32C with neither inversion, as ext4 has it.
fn crc(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// Both headers of a GPT, and their entries (UEFI 2.10, section 5.3.2).
pub(crate) fn gpt(disk: &Disk) {
    let block = u64::from(disk.base.logical_block_size);
    let last = disk.geometry().size.saturating_sub(block);
    for at in [block, last] {
        let mut header = disk.get(at, block as usize);
        let size = le32(&header, 12) as usize;
        if !header.starts_with(b"EFI PART") || size < 92 || size > header.len() {
            continue;
        }
        let entries = u64::from(le32(&header, 80)) * u64::from(le32(&header, 84));
        if entries <= MAX_ENTRIES {
            let table = disk.get(le64(&header, 72).saturating_mul(block), entries as usize);
            header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        }
        header[16..20].fill(0);
        let sum = crc32fast::hash(&header[..size]);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.put(at, &header);
    }
}

/// Superblock, descriptors and the changed inodes of an ext4 (the kernel's `Documentation/filesystems/ext4`).
pub(crate) fn ext(disk: &Disk) {
    const METADATA_CSUM: u32 = 0x400;
    const CSUM_SEED: u32 = 0x2000;
    const WIDE: u32 = 0x80;
    let mut sb = disk.get(1024, 1024);
    if le16(&sb, 56) != 0xef53 || le32(&sb, 100) & METADATA_CSUM == 0 {
        return;
    }
    let incompat = le32(&sb, 96);
    let seed = if incompat & CSUM_SEED == 0 { crc(!0, &sb[104..120]) } else { le32(&sb, 0x270) };
    let sum = crc(!0, &sb[..1020]);
    sb[1020..].copy_from_slice(&sum.to_le_bytes());
    disk.put(1024, &sb);
    let block = 1024_u64.checked_shl(le32(&sb, 24)).unwrap_or(0);
    let descriptor = if incompat & WIDE == 0 { 32 } else { usize::from(le16(&sb, 254)).clamp(64, 1024) };
    let inode = Inodes { size: usize::from(le16(&sb, 88)), per_group: le32(&sb, 40), seed };
    let first = u64::from(le32(&sb, 20)) + 1;
    for group in 0..MAX_GROUPS {
        let at = first.saturating_mul(block).saturating_add(u64::from(group) * descriptor as u64);
        let mut bytes = disk.get(at, descriptor);
        let table = u64::from(le32(&bytes, 8));
        if table == 0 || block == 0 {
            break;
        }
        bytes[0x1e..0x20].fill(0);
        let sum = crc(crc(seed, &group.to_le_bytes()), &bytes);
        bytes[0x1e..0x20].copy_from_slice(&sum.to_le_bytes()[..2]);
        disk.put(at, &bytes);
        inode.sum_changed(disk, table.saturating_mul(block), group);
    }
}

struct Inodes {
    size: usize,
    per_group: u32,
    seed: u32,
}

impl Inodes {
    /// The inodes of one table that lie on changed pages.
    fn sum_changed(&self, disk: &Disk, table: u64, group: u32) {
        if !self.size.is_power_of_two() || !(128..=PAGE).contains(&self.size) {
            return;
        }
        let end = table.saturating_add(u64::from(self.per_group) * self.size as u64);
        for page in disk.changed() {
            let at = page * PAGE as u64;
            if at < table || at >= end {
                continue;
            }
            for place in (at..at + PAGE as u64).step_by(self.size) {
                let index = (place - table) / self.size as u64;
                let number = u64::from(group) * u64::from(self.per_group) + index + 1;
                self.sum(disk, place, number as u32);
            }
        }
    }

    fn sum(&self, disk: &Disk, at: u64, number: u32) {
        let mut inode = disk.get(at, self.size);
        let wide = self.size > 128 && le16(&inode, 128) >= 4;
        inode[0x7c..0x7e].fill(0);
        if wide {
            inode[0x82..0x84].fill(0);
        }
        let sum = crc(crc(crc(self.seed, &number.to_le_bytes()), &inode[0x64..0x68]), &inode).to_le_bytes();
        inode[0x7c..0x7e].copy_from_slice(&sum[..2]);
        if wide {
            inode[0x82..0x84].copy_from_slice(&sum[2..]);
        }
        disk.put(at, &inode);
    }
}

/// The headers of a tar archive (POSIX ustar), as far as their sizes lead from one to the next.
pub(crate) fn tar(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + 512) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let digits: String =
            header[124..136].iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_digit).collect();
        let size = usize::from_str_radix(&digits, 8).unwrap_or(0);
        at = at.saturating_add(512).saturating_add(size.next_multiple_of(512));
    }
}
