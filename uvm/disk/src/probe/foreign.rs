//! Contents that are not read here, and are not nothing either: their magic numbers alone, as blkid names them. They
//! count where no file system and no table with partitions was found, for many outlive what they belonged to.

use super::FileSystem;
use super::file_system::{found, magic, serial, some_fat};
use crate::fat::FatReader;
use crate::field::{le64, read};
use crate::{BlockDevice, Result};

const HEAD_LEN: u64 = 8 << 10;
/// md's magic number on little-endian machines.
const RAID: &[u8] = b"\xfc\x4e\x2b\xa9";
const MAGICS: [(&str, usize, &[u8]); 6] = [
    ("linux_raid_member", 0, RAID),
    ("linux_raid_member", 4096, RAID),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("ReFS", 3, b"ReFS\0"),
];
/// Where the uberblocks of the first label of ZFS lie, and how many bytes.
const UBERBLOCKS: u64 = 128 << 10;
/// In the byte order of whoever made it.
const UBERBLOCK: u64 = 0x00ba_b10c;

/// What is on the device, where it has an owner of some kind.
pub(super) fn probe(device: &dyn BlockDevice) -> Result<Option<FileSystem>> {
    // A FAT volume that was cut off, or whose boot sector claims too much.
    if let Some(reader) = some_fat(FatReader::claimed(device))? {
        return Ok(found("vfat", None, Some(serial(&reader))));
    }
    let head = read(device, 0, HEAD_LEN.min(device.geometry().size) as usize, "reading for magic numbers")?;
    let known = MAGICS.iter().find(|(_, at, bytes)| magic(&head, *at, bytes)).map(|(kind, ..)| *kind);
    Ok(match known {
        Some(kind) => found(kind, None, None),
        None if is_raid(device)? => found("linux_raid_member", None, None),
        None if is_zfs(device)? => found("zfs_member", None, None),
        None => None,
    })
}

/// md's superblocks of version 1.0 and 0.90 lie behind the data: 8 to 12 KiB and 64 to 128 KiB before the end.
fn is_raid(device: &dyn BlockDevice) -> Result<bool> {
    let size = device.geometry().size;
    let places =
        [(size & !511).checked_sub(8 << 10).map(|at| at & !4095), (size & !0xffff).checked_sub(64 << 10)];
    for at in places.into_iter().flatten() {
        if read(device, at, RAID.len(), "reading for a RAID superblock")? == RAID {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_zfs(device: &dyn BlockDevice) -> Result<bool> {
    if device.geometry().size < 2 * UBERBLOCKS {
        return Ok(false);
    }
    let blocks = read(device, UBERBLOCKS, UBERBLOCKS as usize, "reading for a label of ZFS")?;
    Ok(blocks.chunks_exact(1024).any(|block| [UBERBLOCK, UBERBLOCK.swap_bytes()].contains(&le64(block, 0))))
}
