//! Security descriptors: those of the system files, and the `$Secure` file where others share theirs by a number.

use crate::field::{le32, put};

/// The number of [`read_only`] in `$Secure`.
pub(super) const READ_ONLY_ID: u32 = 0x100;
/// The number of [`writable`] in `$Secure`.
pub(super) const WRITABLE_ID: u32 = 0x101;
/// Each part of `$SDS` of this size has a copy right after it.
const SDS_BLOCK: usize = 0x4_0000;

// Identifiers of who is meant, of the NT authority, S-1-5.
const SYSTEM: &[u32] = &[18];
const AUTHENTICATED_USERS: &[u32] = &[11];
pub(super) const ADMINISTRATORS: &[u32] = &[32, 544];
const USERS: &[u32] = &[32, 545];

/// Applies to new files and directories below, and not to the directory itself.
const INHERIT_ONLY: u8 = 0x0b;
const READ: u32 = 0x0012_0089;
const READ_WRITE: u32 = 0x0012_019f;
const ALL: u32 = 0x001f_01ff;
const MODIFY: u32 = 0x0013_01bf;
const READ_EXECUTE: u32 = 0x0012_00a9;
const GENERIC_ALL: u32 = 0x1000_0000;
const GENERIC_MODIFY: u32 = 0xe001_0000;
const GENERIC_READ_EXECUTE: u32 = 0xa000_0000;

/// A security identifier: revision, count, the authority (5) in 6 big-endian bytes, the parts.
pub(super) fn sid(parts: &[u32]) -> Vec<u8> {
    let mut bytes = vec![1, parts.len() as u8, 0, 0, 0, 0, 0, 5];
    bytes.extend(parts.iter().flat_map(|part| part.to_le_bytes()));
    bytes
}

/// A self-relative descriptor: header, list of who is allowed what, owner, group.
fn descriptor(owner: &[u32], group: &[u32], allowed: &[(u8, u32, &[u32])]) -> Vec<u8> {
    const HEADER: usize = 20;
    let mut list = vec![0; 8];
    for (flags, mask, who) in allowed {
        let sid = sid(who);
        list.extend([0, *flags]);
        list.extend((8 + sid.len() as u16).to_le_bytes());
        list.extend(mask.to_le_bytes());
        list.extend(sid);
    }
    let (size, count) = (list.len() as u16, allowed.len() as u16);
    list[0] = 2;
    put(&mut list, 2, &size.to_le_bytes());
    put(&mut list, 4, &count.to_le_bytes());

    let owner_at = HEADER + list.len();
    let owner = sid(owner);
    let mut bytes = vec![0; HEADER];
    bytes[0] = 1;
    // Self-relative, with a list of who is allowed what.
    put(&mut bytes, 2, &0x8004_u16.to_le_bytes());
    put(&mut bytes, 4, &(owner_at as u32).to_le_bytes());
    put(&mut bytes, 8, &((owner_at + owner.len()) as u32).to_le_bytes());
    put(&mut bytes, 16, &(HEADER as u32).to_le_bytes());
    bytes.extend(list);
    bytes.extend(owner);
    bytes.extend(sid(group));
    bytes
}

/// Of `$AttrDef` and `$Boot`.
pub(super) fn read_only() -> Vec<u8> {
    descriptor(SYSTEM, ADMINISTRATORS, &[(0, READ, SYSTEM), (0, READ, ADMINISTRATORS)])
}

/// Of `$Volume` and the reserved files.
pub(super) fn writable() -> Vec<u8> {
    descriptor(SYSTEM, ADMINISTRATORS, &[(0, READ_WRITE, SYSTEM), (0, READ_WRITE, ADMINISTRATORS)])
}

/// Of the root directory: users read and add, their own files they change. As Windows gives a data disk.
pub(super) fn root() -> Vec<u8> {
    let allowed: [(u8, u32, &[u32]); 8] = [
        (0, ALL, ADMINISTRATORS),
        (INHERIT_ONLY, GENERIC_ALL, ADMINISTRATORS),
        (0, ALL, SYSTEM),
        (INHERIT_ONLY, GENERIC_ALL, SYSTEM),
        (0, MODIFY, AUTHENTICATED_USERS),
        (INHERIT_ONLY, GENERIC_MODIFY, AUTHENTICATED_USERS),
        (0, READ_EXECUTE, USERS),
        (INHERIT_ONLY, GENERIC_READ_EXECUTE, USERS),
    ];
    descriptor(SYSTEM, SYSTEM, &allowed)
}

/// An entry of `$SDS`, and what its two indexes say of it.
pub(super) struct Shared {
    pub(super) hash: u32,
    pub(super) id: u32,
    /// Hash, number, offset in `$SDS` and length: the entry's header and the value of both indexes.
    pub(super) header: [u8; 20],
    descriptor: Vec<u8>,
    offset: usize,
}

/// The descriptors in `$Secure`, by number.
pub(super) fn shared() -> Vec<Shared> {
    let of =
        |mask| descriptor(ADMINISTRATORS, ADMINISTRATORS, &[(0, mask, SYSTEM), (0, mask, ADMINISTRATORS)]);
    let mut offset = 0;
    let mut shared = Vec::new();
    for (id, descriptor) in [(READ_ONLY_ID, of(READ)), (WRITABLE_ID, of(READ_WRITE))] {
        let hash = hash(&descriptor);
        let mut header = [0; 20];
        put(&mut header, 0, &hash.to_le_bytes());
        put(&mut header, 4, &id.to_le_bytes());
        put(&mut header, 8, &(offset as u64).to_le_bytes());
        put(&mut header, 16, &(20 + descriptor.len() as u32).to_le_bytes());
        let len = header.len() + descriptor.len();
        shared.push(Shared { hash, id, header, descriptor, offset });
        offset += len.next_multiple_of(16);
    }
    shared
}

/// The hash by which Windows finds a descriptor: for each 32 bits, rotate and add.
fn hash(descriptor: &[u8]) -> u32 {
    let words = (0..descriptor.len()).step_by(4).map(|at| le32(descriptor, at));
    words.fold(0_u32, |hash, word| hash.rotate_left(3).wrapping_add(word))
}

/// The stream `$SDS`: the entries, and their copies.
pub(super) fn sds(shared: &[Shared]) -> Vec<u8> {
    let len = shared.iter().map(|one| one.offset + 20 + one.descriptor.len()).max().unwrap_or(0);
    let mut bytes = vec![0; SDS_BLOCK + len];
    for one in shared {
        for at in [one.offset, SDS_BLOCK + one.offset] {
            put(&mut bytes, at, &one.header);
            put(&mut bytes, at + 20, &one.descriptor);
        }
    }
    bytes
}
