//! Inodes: what is known of one while building, and its bytes on disk.

use std::num::NonZeroU32;

use super::bytes::{crc, high16, high32, low16, low32, put_u16, put_u32};
use super::dir::Directory;
use super::extent::Map;
use super::layout::{GOOD_OLD_INODE_SIZE, Layout};
use super::xattr::Xattrs;
use crate::{Error, ErrorKind, Result};

/// More links than this a non-directory cannot have.
pub(super) const MOST_LINKS: u32 = 65_000;
const EXTENTS_FLAG: u32 = 0x8_0000;
const INDEX_FLAG: u32 = 0x1000;
/// Bytes behind the first 128 of an inode that is larger: times, the checksum's other half.
pub(super) const EXTRA_SIZE: usize = 32;
/// 2310-04-04: the end of what e2fsck believes.
const LATEST: i64 = 0x2_7FFF_FFFF;

const FIFO: u16 = 0o010_000;
const CHARACTER: u16 = 0o020_000;
const DIRECTORY: u16 = 0o040_000;
const BLOCK: u16 = 0o060_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;
const SOCKET: u16 = 0o140_000;

/// An inode of one builder. After its last link is gone the number may come back for another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub(super) NonZeroU32);

impl Ino {
    /// The inode number.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// A point in time. ext4 could store it until 2446, but e2fsck takes what is past 4 April 2310 for a mistaken
/// time before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970; before 1901 and after 4 April 2310 the nearest time within is written.
    pub seconds: i64,
    /// Below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Mode, owner and time of a file. The access time follows the modification time; change and creation
/// time are that of the file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, set-id and sticky bits: 0o7777.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last modification.
    pub mtime: Timestamp,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice {
        /// Below 4096.
        major: u32,
        /// Below 1,048,576.
        minor: u32,
    },
    /// Block device.
    BlockDevice {
        /// Below 4096.
        major: u32,
        /// Below 1,048,576.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

impl NodeKind {
    /// The type bits of `st_mode`.
    pub(super) fn type_bits(self) -> u16 {
        match self {
            Self::File => REGULAR,
            Self::Directory => DIRECTORY,
            Self::Symlink => SYMLINK,
            Self::CharDevice { .. } => CHARACTER,
            Self::BlockDevice { .. } => BLOCK,
            Self::Fifo => FIFO,
            Self::Socket => SOCKET,
        }
    }
}

/// The type byte of a directory entry, from the mode of what it names.
pub(super) fn entry_type(mode: u16) -> u8 {
    match mode & 0o170_000 {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER => 3,
        BLOCK => 4,
        FIFO => 5,
        SOCKET => 6,
        SYMLINK => 7,
        _ => 0,
    }
}

#[derive(Debug, Default)]
pub(super) enum Body {
    /// Reserved, or given back.
    #[default]
    Unused,
    File {
        size: u64,
        map: Map,
    },
    Directory(Box<Directory>),
    FastSymlink(Box<[u8]>),
    SlowSymlink {
        size: u32,
        map: Map,
    },
    Special(NodeKind),
}

#[derive(Debug, Default)]
pub(super) struct Inode {
    /// With type bits.
    pub(super) mode: u16,
    /// Directories do not use it: theirs follow from their subdirectories.
    pub(super) links: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nanoseconds: u32,
    pub(super) seconds: i64,
    pub(super) xattrs: Option<Box<Xattrs>>,
    pub(super) body: Body,
}

impl Inode {
    pub(super) fn new(kind: NodeKind, attributes: Attributes, body: Body) -> Self {
        let mut inode = Self { mode: kind.type_bits(), body, ..Self::default() };
        inode.set_attributes(attributes);
        inode
    }

    pub(super) fn set_attributes(&mut self, attributes: Attributes) {
        self.mode = self.mode & 0o170_000 | attributes.mode;
        self.uid = attributes.uid;
        self.gid = attributes.gid;
        self.seconds = attributes.mtime.seconds;
        self.nanoseconds = attributes.mtime.nanoseconds;
    }

    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            mode: self.mode & 0o7777,
            uid: self.uid,
            gid: self.gid,
            mtime: Timestamp { seconds: self.seconds, nanoseconds: self.nanoseconds },
        }
    }

    pub(super) fn kind(&self) -> Option<NodeKind> {
        Some(match &self.body {
            Body::Unused => return None,
            Body::File { .. } => NodeKind::File,
            Body::Directory(_) => NodeKind::Directory,
            Body::FastSymlink(_) | Body::SlowSymlink { .. } => NodeKind::Symlink,
            Body::Special(kind) => *kind,
        })
    }

    pub(super) fn is_unused(&self) -> bool {
        matches!(self.body, Body::Unused)
    }

    pub(super) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    /// Number of links; for a directory with more than can be counted, 1.
    pub(super) fn links(&self) -> u32 {
        match &self.body {
            Body::Directory(directory) if directory.subdirectories + 2 > MOST_LINKS => 1,
            Body::Directory(directory) => directory.subdirectories + 2,
            _ => u32::from(self.links),
        }
    }

    /// The map of its blocks, where it is of a kind that has one.
    pub(super) fn map(&self) -> Option<&Map> {
        match &self.body {
            Body::File { map, .. } | Body::SlowSymlink { map, .. } => Some(map),
            Body::Directory(directory) => Some(&directory.map),
            _ => None,
        }
    }

    pub(super) fn size(&self, block_size: u32) -> u64 {
        match &self.body {
            Body::File { size, .. } => *size,
            Body::SlowSymlink { size, .. } => u64::from(*size),
            Body::FastSymlink(target) => target.len() as u64,
            Body::Directory(directory) => directory.map.blocks_of_data() * u64::from(block_size),
            Body::Unused | Body::Special(_) => 0,
        }
    }

    /// Fills its place in the inode table, all zeros before. `seed` is its checksum seed, `created` the change
    /// and creation time.
    pub(super) fn encode(&self, layout: &Layout, seed: u32, created: u64, bytes: &mut [u8]) {
        self.encode_fields(layout, created, bytes);
        if layout.metadata_csum() {
            let checksum = crc(seed, bytes);
            put_u16(bytes, 0x7C, low16(checksum));
            if bytes.len() > GOOD_OLD_INODE_SIZE as usize {
                put_u16(bytes, 0x82, high16(checksum));
            }
        }
    }

    fn encode_fields(&self, layout: &Layout, created: u64, bytes: &mut [u8]) {
        let block_size = layout.block_size;
        let size = self.size(block_size);
        put_u16(bytes, 0x00, self.mode);
        put_u16(bytes, 0x02, low16(self.uid));
        put_u32(bytes, 0x04, low32(size));
        put_u16(bytes, 0x18, low16(self.gid));
        put_u16(bytes, 0x1A, self.links() as u16);
        put_u32(bytes, 0x6C, high32(size));
        put_u16(bytes, 0x78, high16(self.uid));
        put_u16(bytes, 0x7A, high16(self.gid));
        let modified = Timestamp { seconds: self.seconds, nanoseconds: self.nanoseconds };
        let created = Timestamp { seconds: i64::try_from(created).unwrap_or(i64::MAX), nanoseconds: 0 };
        for (at, extra_at, time) in [(0x08, 0x8C, modified), (0x0C, 0x84, created), (0x10, 0x88, modified)] {
            put_time(bytes, at, extra_at, time);
        }
        if bytes.len() > GOOD_OLD_INODE_SIZE as usize {
            put_u16(bytes, 0x80, EXTRA_SIZE as u16);
            put_time(bytes, 0x90, 0x94, created);
        }
        let mut blocks = 0;
        if let Some(map) = self.map() {
            let indexed = matches!(&self.body, Body::Directory(directory) if directory.indexed);
            let extents = if map.has_extents(layout.mapping()) { EXTENTS_FLAG } else { 0 };
            put_u32(bytes, 0x20, extents | if indexed { INDEX_FLAG } else { 0 });
            bytes[0x28..0x28 + 60].copy_from_slice(&map.root(layout.mapping()));
            blocks = map.blocks();
        }
        match &self.body {
            Body::FastSymlink(target) => bytes[0x28..0x28 + target.len()].copy_from_slice(target),
            Body::Special(NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor }) => {
                put_device(bytes, *major, *minor);
            }
            _ => {}
        }
        if let Some(xattrs) = &self.xattrs {
            if let Some(area) = bytes.get_mut(GOOD_OLD_INODE_SIZE as usize + EXTRA_SIZE..) {
                xattrs.encode_inode(area);
            }
            put_u32(bytes, 0x68, low32(xattrs.block));
            put_u16(bytes, 0x76, low16(high32(xattrs.block)));
            blocks += u64::from(xattrs.block != 0);
        }
        let sectors = blocks * u64::from(block_size / 512);
        put_u32(bytes, 0x1C, low32(sectors));
        put_u16(bytes, 0x74, low16(high32(sectors)));
    }
}

/// The low 32 bits in the old field; two more bits of seconds and the nanoseconds in the new one. An inode of 128
/// bytes has the old fields alone, and its times end in 2038.
fn put_time(bytes: &mut [u8], at: usize, extra_at: usize, time: Timestamp) {
    let earliest = i64::from(i32::MIN);
    let has_extra = bytes.len() >= extra_at + 4;
    let seconds = time.seconds.clamp(earliest, if has_extra { LATEST } else { i64::from(i32::MAX) });
    put_u32(bytes, at, low32(seconds as u64));
    if has_extra {
        let epoch = ((seconds - earliest) >> 32) as u32;
        put_u32(bytes, extra_at, epoch | time.nanoseconds << 2);
    }
}

/// The kernel's old encoding where both numbers fit a byte, else the new one.
fn put_device(bytes: &mut [u8], major: u32, minor: u32) {
    if major < 256 && minor < 256 {
        put_u32(bytes, 0x28, major << 8 | minor);
    } else {
        put_u32(bytes, 0x2C, minor & 0xFF | major << 8 | (minor & !0xFF) << 12);
    }
}

/// Refuses attributes the disk has no room for.
pub(super) fn check_attributes(attributes: &Attributes) -> Result<()> {
    if attributes.mode & !0o7777 != 0 {
        let context = format!("{:#o} is not a mode of permission bits only", attributes.mode);
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    if attributes.mtime.nanoseconds >= 1_000_000_000 {
        let context = format!("{} nanoseconds are a second or more", attributes.mtime.nanoseconds);
        return Err(Error::new(ErrorKind::Invalid, context));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_takes_the_memory_the_docs_say() {
        assert!(size_of::<Inode>() <= 64, "{}", size_of::<Inode>());
    }

    #[test]
    fn times_reach_from_1901_to_2310() {
        let epoch = |seconds| {
            let mut bytes = [0; 8];
            put_time(&mut bytes, 0, 4, Timestamp { seconds, nanoseconds: 0 });
            (i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]), bytes[4] & 3)
        };
        assert_eq!(epoch(-1), (-1, 0));
        assert_eq!(epoch(1 << 31), (i32::MIN, 1));
        assert_eq!(epoch(1 << 32), (0, 1));
        assert_eq!(epoch(i64::MAX), (i32::MAX, 2));
        assert_eq!(epoch(i64::MIN), (i32::MIN, 0));
        let mut old = [0; 4];
        put_time(&mut old, 0, 4, Timestamp { seconds: 1 << 31, nanoseconds: 1 });
        assert_eq!(i32::from_le_bytes(old), i32::MAX);
    }
}
