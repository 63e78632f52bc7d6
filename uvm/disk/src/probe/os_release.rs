//! Which operating system an ext file system holds (os-release(5)).

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ext4_view::{Ext4, Ext4Read};

use super::printable;
use crate::Device;
use crate::field::{le16, le32, read as read_bytes};

const MAX_LEN: u64 = 64 << 10;
/// Block groups of a 16 TiB file system are 131,072; the reader keeps 16 bytes of each in memory.
const MAX_GROUPS: u64 = 1 << 20;

/// What a guest says it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OsRelease {
    /// `PRETTY_NAME`.
    pub pretty_name: Option<String>,
    /// `ID`.
    pub id: Option<String>,
    /// `VERSION_ID`.
    pub version_id: Option<String>,
}

struct Source(Device);

impl Ext4Read for Source {
    fn read(&mut self, start: u64, dst: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.0.read_at(start, dst)?)
    }
}

/// Reads the os-release file; `None` where there is none that can be read.
pub fn read_os_release(device: Device) -> Option<OsRelease> {
    // The reader meets hostile bytes: a panic in it says "not readable", and no more.
    catch_unwind(AssertUnwindSafe(|| load(device))).ok().flatten()
}

/// Whether the superblock's counts are such as the device can hold. The reader takes memory by them, and memory
/// that is not there ends the process, which no unwinding catches.
fn is_plausible(device: &Device) -> Option<bool> {
    const MAGIC: u16 = 0xef53;
    const INCOMPAT_64BIT: u32 = 0x80;
    let superblock = read_bytes(&**device, 1024, 1024, "reading an ext superblock").ok()?;
    let block_size =
        1024_u64.checked_shl(le32(&superblock, 24)).filter(|size| (1024..=65536).contains(size))?;
    let high = if le32(&superblock, 96) & INCOMPAT_64BIT == 0 { 0 } else { le32(&superblock, 0x150) };
    let blocks = u64::from(high) << 32 | u64::from(le32(&superblock, 4));
    let blocks_per_group = u64::from(le32(&superblock, 32));
    let inodes_per_group = u64::from(le32(&superblock, 40));
    Some(
        le16(&superblock, 56) == MAGIC
            && blocks.checked_mul(block_size)? <= device.geometry().size
            && (1..=8 * block_size).contains(&blocks_per_group)
            && (1..=8 * block_size).contains(&inodes_per_group)
            && blocks.div_ceil(blocks_per_group) <= MAX_GROUPS,
    )
}

fn load(device: Device) -> Option<OsRelease> {
    if !is_plausible(&device)? {
        return None;
    }
    let fs = Ext4::load(Box::new(Source(device))).ok()?;
    let bytes = ["/etc/os-release", "/usr/lib/os-release"]
        .into_iter()
        .find_map(|path| (file_len(&fs, path)? <= MAX_LEN).then(|| fs.read(path).ok())?)?;
    Some(parse(&String::from_utf8_lossy(&bytes)))
}

/// Bytes of a regular file that no symbolic link leads to: for a link's target the reader takes as much memory as the
/// link claims to be long. Where the first of the two names is a link, it is one to the second.
fn file_len(fs: &Ext4, path: &str) -> Option<u64> {
    for (end, _) in path.match_indices('/').skip(1) {
        fs.symlink_metadata(&path[..end]).ok().filter(|found| found.file_type().is_dir())?;
    }
    let file = fs.symlink_metadata(path).ok()?;
    file.file_type().is_regular_file().then(|| file.len())
}

fn parse(text: &str) -> OsRelease {
    let mut release = OsRelease::default();
    for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
        let field = match key {
            "PRETTY_NAME" => &mut release.pretty_name,
            "ID" => &mut release.id,
            "VERSION_ID" => &mut release.version_id,
            _ => continue,
        };
        *field = Some(printable(value.trim_matches(['"', '\''])));
    }
    release
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::field::put;
    use crate::{BlockDevice, Memory};

    /// An ext superblock without checksum that claims `blocks` in groups of `blocks_per_group`.
    fn claiming(blocks: u64, blocks_per_group: u32) -> Device {
        let device = Memory::new(1 << 20, 512);
        let mut superblock = vec![0; 1024];
        put(&mut superblock, 4, &(blocks as u32).to_le_bytes());
        put(&mut superblock, 0x150, &((blocks >> 32) as u32).to_le_bytes());
        put(&mut superblock, 32, &blocks_per_group.to_le_bytes());
        put(&mut superblock, 40, &64_u32.to_le_bytes());
        put(&mut superblock, 56, &0xef53_u16.to_le_bytes());
        put(&mut superblock, 96, &0x82_u32.to_le_bytes());
        device.write_at(1024, &superblock).unwrap();
        Arc::new(device)
    }

    #[test]
    fn a_superblock_that_claims_more_than_the_device_costs_no_memory() {
        assert_eq!(is_plausible(&claiming(1024, 8192)), Some(true));
        for (blocks, blocks_per_group) in [(1 << 40, 256), (1025, 8192), (1024, 0), (1024, 8193)] {
            let device = claiming(blocks, blocks_per_group);
            assert_eq!(is_plausible(&device), Some(false), "{blocks} {blocks_per_group}");
            assert_eq!(read_os_release(device), None);
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        let release = parse("PRETTY_NAME=\"\u{1b}[2JDebian\"\n");
        assert_eq!(release.pretty_name.as_deref(), Some("\u{fffd}[2JDebian"));
    }
}
