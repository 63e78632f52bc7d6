//! Extended attributes: in the inode while they fit, the rest in one block.

use super::bytes::{crc, put_u16, put_u32};
use super::inode::EXTRA_SIZE;
use super::layout::{GOOD_OLD_INODE_SIZE, Layout};
use crate::{Error, ErrorKind, Result};

const MAGIC: u32 = 0xEA02_0000;
const INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;
const ENTRY: usize = 16;
/// Four zero bytes end the entries.
const TERMINATOR: usize = 4;

const ACCESS: u8 = 2;
const DEFAULT: u8 = 3;
const PREFIXES: [(u8, &[u8]); 4] = [(1, b"user."), (4, b"trusted."), (6, b"security."), (7, b"system.")];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Xattr {
    index: u8,
    name: Box<[u8]>,
    /// As on disk: an ACL is in ext4's own form.
    value: Box<[u8]>,
}

impl Xattr {
    fn size(&self) -> usize {
        (ENTRY + self.name.len()).next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// The order the kernel searches a block in.
    fn key(&self) -> (u8, usize, &[u8]) {
        (self.index, self.name.len(), &self.name)
    }

    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// The extended attributes of one inode, in the order of the disk.
#[derive(Debug, Default, Clone)]
pub(super) struct Xattrs {
    list: Vec<Xattr>,
    /// The block that holds those the inode has no room for, once it was written.
    pub(super) block: u64,
    /// Bytes behind the fields of the inode: 96 in one of 256 bytes, none in one of 128.
    area: usize,
}

impl Xattrs {
    /// The same attributes with `name` set; an error where they do not all fit.
    pub(super) fn with(
        &self,
        name: &[u8],
        value: &[u8],
        is_directory: bool,
        layout: &Layout,
    ) -> Result<Self> {
        let (index, suffix) = parse_name(name)?;
        if index == DEFAULT && !is_directory {
            return Err(invalid(name, "only a directory has a default ACL"));
        }
        let value =
            if index == ACCESS || index == DEFAULT { acl_to_disk(name, value)? } else { value.to_vec() };
        let new = Xattr { index, name: suffix.into(), value: value.into() };
        let mut list: Vec<_> = self.list.iter().filter(|old| old.key() != new.key()).cloned().collect();
        list.push(new);
        list.sort_by(|a, b| a.key().cmp(&b.key()));
        let fields = GOOD_OLD_INODE_SIZE as usize + EXTRA_SIZE;
        let new = Self { list, block: 0, area: (layout.inode_size as usize).saturating_sub(fields) };
        let needed: usize = new.split().1.iter().map(|xattr| xattr.size()).sum();
        let room = layout.block_size as usize - BLOCK_HEADER - TERMINATOR;
        if needed > room {
            let shown = String::from_utf8_lossy(name);
            let context =
                format!("extended attribute {shown:?}: {needed} bytes for {room} in the attribute block");
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        Ok(new)
    }

    /// Names and values as a program sees them.
    pub(super) fn all(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.list.iter().map(|xattr| (full_name(xattr), visible_value(xattr))).collect()
    }

    /// Whether a block is needed.
    pub(super) fn needs_block(&self) -> bool {
        !self.split().1.is_empty()
    }

    /// Those in the inode and those in the block.
    fn split(&self) -> (Vec<&Xattr>, Vec<&Xattr>) {
        let mut room = self.area.saturating_sub(INODE_HEADER + TERMINATOR);
        self.list.iter().partition(|xattr| {
            let fits = xattr.size() <= room;
            room -= if fits { xattr.size() } else { 0 };
            fits
        })
    }

    /// Fills the inode's area.
    pub(super) fn encode_inode(&self, area: &mut [u8]) {
        let (inside, _) = self.split();
        if !inside.is_empty() {
            put_u32(area, 0, MAGIC);
            encode(&inside, &mut area[INODE_HEADER..], 0);
        }
    }

    /// The block, whose own number goes into its checksum.
    pub(super) fn encode_block(&self, block: u64, layout: &Layout, seed: u32) -> Vec<u8> {
        let (_, outside) = self.split();
        let mut bytes = vec![0; layout.block_size as usize];
        put_u32(&mut bytes, 0, MAGIC);
        put_u32(&mut bytes, 4, 1);
        put_u32(&mut bytes, 8, 1);
        encode(&outside, &mut bytes, BLOCK_HEADER);
        let hash = outside.iter().map(|xattr| xattr.hash()).try_fold(0u32, |hash, entry| {
            // An entry without a hash makes the block one that is never shared.
            (entry != 0).then_some(hash.rotate_left(16) ^ entry)
        });
        put_u32(&mut bytes, 12, hash.unwrap_or(0));
        if layout.metadata_csum() {
            let checksum = crc(crc(seed, &block.to_le_bytes()), &bytes);
            put_u32(&mut bytes, 16, checksum);
        }
        bytes
    }
}

/// Entries from `at` upwards, values from the end downwards; value offsets count from the area's start.
fn encode(list: &[&Xattr], area: &mut [u8], mut at: usize) {
    let mut end = area.len();
    for xattr in list {
        let length = xattr.value.len();
        end -= length.next_multiple_of(4);
        area[at] = xattr.name.len() as u8;
        area[at + 1] = xattr.index;
        put_u16(area, at + 2, if length == 0 { 0 } else { end as u16 });
        put_u32(area, at + 8, length as u32);
        put_u32(area, at + 12, xattr.hash());
        area[at + ENTRY..at + ENTRY + xattr.name.len()].copy_from_slice(&xattr.name);
        area[end..end + length].copy_from_slice(&xattr.value);
        at += (ENTRY + xattr.name.len()).next_multiple_of(4);
    }
}

fn parse_name(name: &[u8]) -> Result<(u8, &[u8])> {
    match name {
        b"system.posix_acl_access" => return Ok((ACCESS, b"")),
        b"system.posix_acl_default" => return Ok((DEFAULT, b"")),
        // ext4 keeps the contents of small files under this name.
        b"system.data" => return Err(invalid(name, "the name is reserved")),
        _ => {}
    }
    for (index, prefix) in PREFIXES {
        if let Some(suffix) = name.strip_prefix(prefix) {
            if suffix.is_empty() || suffix.len() > 255 || suffix.contains(&0) {
                return Err(invalid(name, "not a possible name"));
            }
            return Ok((index, suffix));
        }
    }
    Err(invalid(name, "ext4 has no such namespace"))
}

fn full_name(xattr: &Xattr) -> Vec<u8> {
    match xattr.index {
        ACCESS => b"system.posix_acl_access".to_vec(),
        DEFAULT => b"system.posix_acl_default".to_vec(),
        index => {
            let prefix =
                PREFIXES.iter().find(|(known, _)| *known == index).map_or(&b""[..], |(_, prefix)| prefix);
            [prefix, &xattr.name[..]].concat()
        }
    }
}

fn visible_value(xattr: &Xattr) -> Vec<u8> {
    if xattr.index == ACCESS || xattr.index == DEFAULT {
        acl_from_disk(&xattr.value)
    } else {
        xattr.value.to_vec()
    }
}

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The kernel's attribute form (version 2, each entry with an id) to ext4's (version 1, an id only where
/// there is one). What the kernel would refuse is refused.
fn acl_to_disk(name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let malformed = || invalid(name, "not a valid POSIX ACL");
    let (version, entries) = value.split_first_chunk::<4>().ok_or_else(malformed)?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return Err(malformed());
    }
    let mut disk = 1u32.to_le_bytes().to_vec();
    let (mut previous, mut seen) = (0, 0);
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let named = tag == USER || tag == GROUP;
        if ![USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&tag)
            || permissions > 7
            || tag < previous
            || (tag == previous && !named)
        {
            return Err(malformed());
        }
        (previous, seen) = (tag, seen | tag);
        disk.extend_from_slice(&entry[..if named { 8 } else { 4 }]);
    }
    let required = USER_OBJ | GROUP_OBJ | OTHER | if seen & (USER | GROUP) != 0 { MASK } else { 0 };
    if seen & required != required {
        return Err(malformed());
    }
    Ok(disk)
}

fn acl_from_disk(disk: &[u8]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    let mut rest = disk.get(4..).unwrap_or_default();
    while let Some((entry, after)) = rest.split_first_chunk::<4>() {
        value.extend_from_slice(entry);
        rest = after;
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = if tag == USER || tag == GROUP { rest.split_first_chunk::<4>() } else { None };
        if let Some((id, after)) = id {
            value.extend_from_slice(id);
            rest = after;
        } else {
            value.extend_from_slice(&[0xFF; 4]);
        }
    }
    value
}

fn invalid(name: &[u8], why: &str) -> Error {
    let shown = String::from_utf8_lossy(&name[..name.len().min(300)]);
    Error::new(ErrorKind::Invalid, format!("extended attribute {shown:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn an_acl_goes_to_disk_and_back() {
        let none = u32::MAX;
        let value =
            acl(&[(1, 7, none), (2, 5, 1000), (2, 6, 1001), (4, 5, none), (16, 7, none), (32, 0, none)]);
        let disk = acl_to_disk(b"a", &value).expect("a valid ACL");
        assert_eq!(disk.len(), 4 + 4 * 4 + 2 * 8);
        assert_eq!(acl_from_disk(&disk), value);
    }

    #[test]
    fn malformed_acls_are_refused() {
        let none = u32::MAX;
        let full = acl(&[(1, 7, none), (4, 5, none), (32, 0, none)]);
        assert!(acl_to_disk(b"a", &full).is_ok());
        for value in [
            vec![],
            full[..full.len() - 1].to_vec(),
            full[..full.len() - 8].to_vec(),
            acl(&[]),
            acl(&[(1, 8, none), (4, 5, none), (32, 0, none)]),
            acl(&[(4, 5, none), (1, 7, none), (32, 0, none)]),
            acl(&[(1, 7, none), (1, 7, none), (4, 5, none), (32, 0, none)]),
            acl(&[(1, 7, none), (2, 7, 5), (4, 5, none), (32, 0, none)]),
            acl(&[(1, 7, none), (3, 7, 5), (4, 5, none), (32, 0, none)]),
        ] {
            assert_eq!(acl_to_disk(b"a", &value).expect_err("malformed").kind(), ErrorKind::Invalid);
        }
    }
}
