//! System ids of MBR partitions, by name.

/// Extended partition, addressed by cylinders.
pub const EXTENDED: u8 = 0x05;
/// NTFS or exFAT.
pub const NTFS: u8 = 0x07;
/// FAT32, addressed by LBA.
pub const FAT32_LBA: u8 = 0x0c;
/// Extended partition, addressed by LBA.
pub const EXTENDED_LBA: u8 = 0x0f;
/// Linux swap space.
pub const LINUX_SWAP: u8 = 0x82;
/// Any Linux file system.
pub const LINUX: u8 = 0x83;
/// What protects a GPT.
pub const PROTECTIVE: u8 = 0xee;
/// EFI system partition.
pub const ESP: u8 = 0xef;

const NAMES: [(&str, u8); 44] = [
    ("fat12", 0x01),
    ("fat16-small", 0x04),
    ("extended", EXTENDED),
    ("fat16", 0x06),
    ("ntfs", NTFS),
    ("fat32", 0x0b),
    ("fat32-lba", FAT32_LBA),
    ("fat16-lba", 0x0e),
    ("extended-lba", EXTENDED_LBA),
    ("hidden-fat12", 0x11),
    ("compaq-diagnostics", 0x12),
    ("hidden-fat16-small", 0x14),
    ("hidden-fat16", 0x16),
    ("hidden-ntfs", 0x17),
    ("hidden-fat32", 0x1b),
    ("hidden-fat32-lba", 0x1c),
    ("hidden-fat16-lba", 0x1e),
    ("windows-recovery", 0x27),
    ("plan9", 0x39),
    ("prep", 0x41),
    ("minix", 0x81),
    ("swap", LINUX_SWAP),
    ("linux", LINUX),
    ("linux-extended", 0x85),
    ("ntfs-volume-set", 0x86),
    ("lvm", 0x8e),
    ("freebsd", 0xa5),
    ("openbsd", 0xa6),
    ("netbsd", 0xa9),
    ("darwin-ufs", 0xa8),
    ("darwin-boot", 0xab),
    ("hfs", 0xaf),
    ("solaris-boot", 0xbe),
    ("solaris", 0xbf),
    ("non-fs-data", 0xda),
    ("dell-utility", 0xde),
    ("xbootldr", 0xea),
    ("beos", 0xeb),
    ("protective", PROTECTIVE),
    ("esp", ESP),
    ("ebbr-protective", 0xf8),
    ("vmware-vmfs", 0xfb),
    ("vmware-vmkcore", 0xfc),
    ("raid", 0xfd),
];

/// The system id of that name.
pub fn by_name(name: &str) -> Option<u8> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
}

/// The name of a system id.
pub fn name_of(id: u8) -> Option<&'static str> {
    NAMES.iter().find(|(_, known)| *known == id).map(|(name, _)| *name)
}

/// Every system id we know by name.
pub fn named() -> impl Iterator<Item = (&'static str, u8)> {
    NAMES.into_iter()
}
