//! NTFS 3.1: an empty volume, and of any volume which clusters are used.
//!
//! Microsoft has published no description of the format; what this module knows is what Windows, the kernel's ntfs3 and
//! ntfs-3g agree on. A volume is an array of clusters. Everything in it is a file, and a file is a record of the
//! `$MFT`, itself a file: a header and attributes, each resident (its value is in the record) or not (the record has
//! the runs of clusters where the value lies). Records and index blocks are protected by an update sequence: the last
//! two bytes of each 512 are moved to an array and replaced by a number, so that a torn write is noticed.
//!
//! Not handled: compression and encryption, which no system file uses, and the replaying of `$LogFile`.

mod boot;
mod files;
mod format;
mod index;
mod layout;
mod reader;
mod record;
mod security;
mod upcase;
mod usage;

pub use format::{NtfsOptions, NtfsSummary, format};
pub(crate) use reader::label;
pub use usage::used_extents;

/// Types of attributes.
mod kind {
    pub(super) const STANDARD_INFORMATION: u32 = 0x10;
    pub(super) const ATTRIBUTE_LIST: u32 = 0x20;
    pub(super) const FILE_NAME: u32 = 0x30;
    pub(super) const SECURITY_DESCRIPTOR: u32 = 0x50;
    pub(super) const VOLUME_NAME: u32 = 0x60;
    pub(super) const VOLUME_INFORMATION: u32 = 0x70;
    pub(super) const DATA: u32 = 0x80;
    pub(super) const INDEX_ROOT: u32 = 0x90;
    pub(super) const INDEX_ALLOCATION: u32 = 0xa0;
    pub(super) const BITMAP: u32 = 0xb0;
    pub(super) const END: u32 = 0xffff_ffff;
}

/// Numbers of the records of system files.
mod file {
    pub(super) const MFT: u32 = 0;
    pub(super) const MFT_MIRROR: u32 = 1;
    pub(super) const LOG_FILE: u32 = 2;
    pub(super) const VOLUME: u32 = 3;
    pub(super) const ATTRIBUTE_DEFINITIONS: u32 = 4;
    pub(super) const ROOT: u32 = 5;
    pub(super) const BITMAP: u32 = 6;
    pub(super) const BOOT: u32 = 7;
    pub(super) const BAD_CLUSTERS: u32 = 8;
    pub(super) const SECURE: u32 = 9;
    pub(super) const UPCASE: u32 = 10;
    pub(super) const EXTEND: u32 = 11;
    /// From here to 15: in use, and empty.
    pub(super) const RESERVED: u32 = 12;
    /// From here to 23: free, for pieces of the `$MFT`'s own record.
    pub(super) const SPARE: u32 = 16;
    pub(super) const QUOTA: u32 = 24;
    pub(super) const OBJECT_IDS: u32 = 25;
    pub(super) const REPARSE_POINTS: u32 = 26;
    /// As many a new volume has.
    pub(super) const COUNT: u32 = 27;
}

/// Each so many bytes of a protected structure end in the update sequence number, whatever the sector size.
const STRIDE: usize = 512;
const INDEX_BLOCK_SIZE: u32 = 4096;
/// The signature of a record of the `$MFT`.
const FILE_MAGIC: &[u8; 4] = b"FILE";

/// Text as the format has it.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}
