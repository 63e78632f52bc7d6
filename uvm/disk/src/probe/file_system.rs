//! Magic numbers, labels and identities of file systems, as blkid shows them.

use uuid::Uuid;

use crate::fat::{FatReader, FatType};
use crate::field::{be32, be64, bytes_at, le16, le32, le64, read};
use crate::swap::{PAGE_SIZES, SLEEPING};
use crate::{BlockDevice, ErrorKind, Result};

/// Bytes read from the start; the furthest superblock here, btrfs', ends at 68 KiB.
const HEAD_LEN: u64 = 72 << 10;
const SQUASHFS_MAGIC: u32 = 0x7371_7368;
const EROFS_MAGIC: u32 = 0xe0f5_e1e2;

/// A recognized file system, or another content that has an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// blkid's name for it.
    pub kind: &'static str,
    /// Label.
    pub label: Option<String>,
    /// Identity, printed as blkid does.
    pub uuid: Option<String>,
    /// Bytes it says it has, from its first to its last: less would cut it off.
    pub size: Option<u64>,
    /// Bytes in use.
    pub used: Option<u64>,
    /// Version of the format.
    pub version: Option<String>,
}

fn text(bytes: &[u8], at: usize, len: usize) -> Option<String> {
    let field = bytes.get(at..at.checked_add(len)?)?;
    let field = field.split(|b| *b == 0).next()?;
    let text = super::printable(String::from_utf8_lossy(field).trim_end());
    (!text.is_empty()).then_some(text)
}

fn uuid(bytes: &[u8], at: usize) -> Option<String> {
    let uuid = Uuid::from_bytes(bytes_at(bytes, at));
    (!uuid.is_nil()).then(|| uuid.to_string())
}

pub(super) fn found(kind: &'static str, label: Option<String>, uuid: Option<String>) -> Option<FileSystem> {
    Some(FileSystem { kind, label, uuid, size: None, used: None, version: None })
}

pub(super) fn magic(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// What is on the device; `None` where it is nothing known.
pub(super) fn probe(device: &dyn BlockDevice) -> Result<Option<FileSystem>> {
    let len = HEAD_LEN.min(device.geometry().size) as usize;
    let head = read(device, 0, len, "reading for a file system")?;
    let of_head = [luks, ext, xfs, btrfs, swap, squashfs, erofs, iso9660, lvm, exfat, ntfs];
    match of_head.iter().find_map(|probe| probe(&head)) {
        None => vfat(device),
        // Its label is in a file.
        Some(found) if found.kind == "ntfs" => {
            let label = crate::ntfs::label(device).ok().flatten().map(|label| super::printable(&label));
            Ok(Some(FileSystem { label, ..found }))
        }
        found => Ok(found),
    }
}

pub(super) fn some_fat(opened: Result<FatReader<'_>>) -> Result<Option<FatReader<'_>>> {
    match opened {
        Ok(reader) => Ok(Some(reader)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn serial(reader: &FatReader<'_>) -> String {
    let id = reader.volume_id();
    format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
}

fn vfat(device: &dyn BlockDevice) -> Result<Option<FileSystem>> {
    let Some(reader) = some_fat(FatReader::open(device))? else { return Ok(None) };
    let version = match reader.fat_type() {
        FatType::Fat12 => "FAT12",
        FatType::Fat16 => "FAT16",
        FatType::Fat32 => "FAT32",
    };
    Ok(Some(FileSystem {
        kind: "vfat",
        label: reader.label().ok().flatten().map(|label| super::printable(&label)),
        uuid: Some(serial(&reader)),
        size: Some(reader.size),
        used: reader.free().ok().and_then(|free| reader.size.checked_sub(free)),
        version: Some(version.into()),
    }))
}

fn ext(head: &[u8]) -> Option<FileSystem> {
    const INCOMPAT_64BIT: u32 = 0x80;
    // Beyond what ext3 knows: huge_file, extents and so on (blkid's rule).
    const EXT3_INCOMPAT: u32 = 0x2 | 0x4 | 0x10;
    const EXT3_RO_COMPAT: u32 = 0x1 | 0x2 | 0x4;
    let sb = head.get(1024..2048)?;
    let block_shift = le32(sb, 24);
    if le16(sb, 56) != 0xef53 || block_shift > 6 {
        return None;
    }
    let (compat, incompat, ro_compat) = (le32(sb, 92), le32(sb, 96), le32(sb, 100));
    let kind = if incompat & !EXT3_INCOMPAT != 0 || ro_compat & !EXT3_RO_COMPAT != 0 {
        "ext4"
    } else if compat & 0x4 != 0 {
        "ext3"
    } else {
        "ext2"
    };
    let wide = incompat & INCOMPAT_64BIT != 0;
    let blocks =
        |low, high| u64::from(le32(sb, low)) | if wide { u64::from(le32(sb, high)) << 32 } else { 0 };
    let (total, free) = (blocks(4, 0x150), blocks(12, 0x158));
    let block = 1024u64 << block_shift;
    Some(FileSystem {
        size: total.checked_mul(block),
        used: total.checked_sub(free).and_then(|used| used.checked_mul(block)),
        version: Some(format!("{}.{}", le32(sb, 76), le16(sb, 62))),
        ..found(kind, text(sb, 120, 16), uuid(sb, 104))?
    })
}

fn xfs(head: &[u8]) -> Option<FileSystem> {
    if !magic(head, 0, b"XFSB") {
        return None;
    }
    let block = u64::from(be32(head, 4));
    let (blocks, free) = (be64(head, 8), be64(head, 144));
    Some(FileSystem {
        size: blocks.checked_mul(block),
        used: blocks.checked_sub(free).and_then(|used| used.checked_mul(block)),
        ..found("xfs", text(head, 108, 12), uuid(head, 32))?
    })
}

fn btrfs(head: &[u8]) -> Option<FileSystem> {
    let sb = head.get(65_536..)?;
    if !magic(sb, 64, b"_BHRfS_M") {
        return None;
    }
    Some(FileSystem {
        size: Some(le64(sb, 112)),
        used: Some(le64(sb, 120)),
        ..found("btrfs", text(sb, 299, 256), uuid(sb, 32))?
    })
}

fn swap(head: &[u8]) -> Option<FileSystem> {
    let signatures = PAGE_SIZES.into_iter().map(|page| (page, bytes_at::<10>(head, page as usize - 10)));
    let is_sleeping = |signature: &[u8]| SLEEPING.iter().any(|sleeping| signature.starts_with(sleeping));
    let (page, signature) = { signatures }.find(|(_, s)| s == b"SWAPSPACE2" || is_sleeping(s))?;
    let size = (u64::from(le32(head, 1028)) + 1).checked_mul(page.into());
    let (kind, version) = if is_sleeping(&signature) {
        ("swsuspend", String::from_utf8_lossy(&signature[..9]).to_ascii_lowercase())
    } else {
        ("swap", le32(head, 1024).to_string())
    };
    Some(FileSystem { size, version: Some(version), ..found(kind, text(head, 1052, 16), uuid(head, 1036))? })
}

fn luks(head: &[u8]) -> Option<FileSystem> {
    if !magic(head, 0, b"LUKS\xba\xbe") {
        return None;
    }
    let version = u16::from_be_bytes(bytes_at(head, 6));
    let label = if version == 2 { text(head, 24, 48) } else { None };
    Some(FileSystem {
        version: Some(version.to_string()),
        ..found("crypto_LUKS", label, text(head, 168, 40))?
    })
}

fn squashfs(head: &[u8]) -> Option<FileSystem> {
    let used = le64(head, 40);
    let version = format!("{}.{}", le16(head, 28), le16(head, 30));
    (le32(head, 0) == SQUASHFS_MAGIC).then(|| found("squashfs", None, None)).flatten().map(|fs| FileSystem {
        size: Some(used),
        used: Some(used),
        version: Some(version),
        ..fs
    })
}

fn erofs(head: &[u8]) -> Option<FileSystem> {
    let sb = head.get(1024..1152)?;
    if le32(sb, 0) == EROFS_MAGIC { found("erofs", text(sb, 64, 16), uuid(sb, 48)) } else { None }
}

fn iso9660(head: &[u8]) -> Option<FileSystem> {
    let volume = head.get(32_768..34_816)?;
    if !magic(volume, 0, b"\x01CD001") {
        return None;
    }
    // The time of the last change, else of creation, is the identity.
    let stamp = [830, 813].into_iter().find_map(|at| {
        let digits = volume.get(at..at + 16)?;
        (digits.iter().all(u8::is_ascii_digit) && digits.iter().any(|d| *d != b'0')).then_some(digits)
    });
    let stamp = stamp.map(|digits| {
        let parts = [0..4, 4..6, 6..8, 8..10, 10..12, 12..14, 14..16];
        parts.map(|part| String::from_utf8_lossy(&digits[part]).into_owned()).join("-")
    });
    found("iso9660", text(volume, 40, 32), stamp)
}

fn lvm(head: &[u8]) -> Option<FileSystem> {
    let at = (0..4).map(|sector| sector * 512).find(|at| magic(head, *at, b"LABELONE"))?;
    if !magic(head, at + 24, b"LVM2 001") {
        return None;
    }
    let header = at.checked_add(le32(head, at + 20) as usize)?;
    let id = text(head, header, 32).filter(|id| id.len() == 32 && id.is_ascii());
    let parts = [0..6, 6..10, 10..14, 14..18, 18..22, 22..26, 26..32];
    let id = id.map(|id| parts.map(|part| id[part].to_owned()).join("-"));
    found("LVM2_member", None, id)
}

fn exfat(head: &[u8]) -> Option<FileSystem> {
    if !magic(head, 3, b"EXFAT   ") {
        return None;
    }
    let id = le32(head, 100);
    found("exfat", None, Some(format!("{:04X}-{:04X}", id >> 16, id & 0xffff)))
}

fn ntfs(head: &[u8]) -> Option<FileSystem> {
    if !magic(head, 3, b"NTFS    ") {
        return None;
    }
    // The copy of the boot sector is behind what it counts.
    let sectors = le64(head, 40).checked_add(1);
    Some(FileSystem {
        size: sectors.and_then(|sectors| sectors.checked_mul(u64::from(le16(head, 11)))),
        ..found("ntfs", None, Some(format!("{:016X}", le64(head, 72))))?
    })
}
