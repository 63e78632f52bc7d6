//! Attribute bits of a partition, by name (UEFI 2.10, table 5.8, and the Discoverable Partitions Specification).
//! Bits without a name here stay as they are.

/// The platform needs the partition: do not delete it.
pub const REQUIRED_PARTITION: u64 = 1;
/// The firmware makes no block device of it.
pub const NO_BLOCK_IO: u64 = 1 << 1;
/// What a BIOS boot loader starts.
pub const LEGACY_BIOS_BOOTABLE: u64 = 1 << 2;
/// The file system is grown to the partition's size when it is mounted.
pub const GROWFS: u64 = 1 << 59;
/// Mounted read-only.
pub const READ_ONLY: u64 = 1 << 60;
/// Microsoft: a shadow copy of another partition.
pub const SHADOW_COPY: u64 = 1 << 61;
/// Microsoft: hidden.
pub const HIDDEN: u64 = 1 << 62;
/// Not mounted, and no drive letter, unless someone asks.
pub const NO_AUTO: u64 = 1 << 63;

const NAMES: [(&str, u64); 8] = [
    ("required-partition", REQUIRED_PARTITION),
    ("no-block-io", NO_BLOCK_IO),
    ("legacy-bios-bootable", LEGACY_BIOS_BOOTABLE),
    ("growfs", GROWFS),
    ("read-only", READ_ONLY),
    ("shadow-copy", SHADOW_COPY),
    ("hidden", HIDDEN),
    ("no-auto", NO_AUTO),
];

/// Every bit that has a name here.
pub const NAMED: u64 = REQUIRED_PARTITION
    | NO_BLOCK_IO
    | LEGACY_BIOS_BOOTABLE
    | GROWFS
    | READ_ONLY
    | SHADOW_COPY
    | HIDDEN
    | NO_AUTO;

/// The bit of that name.
pub fn by_name(name: &str) -> Option<u64> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, bit)| *bit)
}

/// The names of the bits that are set; those without a name are left out.
pub fn names_of(attributes: u64) -> Vec<&'static str> {
    NAMES.iter().filter(|(_, bit)| attributes & bit != 0).map(|(name, _)| *name).collect()
}
