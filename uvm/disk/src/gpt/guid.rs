//! GUIDs as a GPT stores them, and the type GUIDs we know by name.

use std::fmt;

use uuid::{Uuid, uuid};

/// A GUID in on-disk byte order: the first three fields little endian (UEFI appendix A).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// The zero GUID: an unused entry.
    pub const UNUSED: Self = Self([0; 16]);

    /// From the usual form.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid.to_bytes_le())
    }

    /// In the usual form.
    pub const fn to_uuid(self) -> Uuid {
        Uuid::from_bytes_le(self.0)
    }
}

impl From<Uuid> for Guid {
    fn from(uuid: Uuid) -> Self {
        Self::from_uuid(uuid)
    }
}

impl From<Guid> for Uuid {
    fn from(guid: Guid) -> Self {
        guid.to_uuid()
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_uuid().fmt(f)
    }
}

/// Partition type GUIDs, named as the Discoverable Partitions Specification does.
pub mod partition_type {
    use super::{Guid, uuid};

    /// EFI system partition.
    pub const ESP: Guid = Guid::from_uuid(uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"));
    /// Extended boot loader partition.
    pub const XBOOTLDR: Guid = Guid::from_uuid(uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172"));
    /// GRUB's core image on a BIOS machine.
    pub const BIOS_BOOT: Guid = Guid::from_uuid(uuid!("21686148-6449-6e6f-744e-656564454649"));
    /// Any Linux file system.
    pub const LINUX_GENERIC: Guid = Guid::from_uuid(uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4"));
    /// Root file system of an x86-64 machine.
    pub const ROOT_X86_64: Guid = Guid::from_uuid(uuid!("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"));
    /// Root file system of a 64-bit ARM machine.
    pub const ROOT_ARM64: Guid = Guid::from_uuid(uuid!("b921b045-1df0-41c3-af44-4c6f280d3fae"));
    /// `/usr` of an x86-64 machine.
    pub const USR_X86_64: Guid = Guid::from_uuid(uuid!("8484680c-9521-48c6-9c11-b0720656f69e"));
    /// Swap space.
    pub const SWAP: Guid = Guid::from_uuid(uuid!("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"));
    /// `/home`.
    pub const HOME: Guid = Guid::from_uuid(uuid!("933ac7e1-2eb4-4f13-b844-0e14e2aef915"));
    /// `/srv`.
    pub const SRV: Guid = Guid::from_uuid(uuid!("3b8f8425-20e0-4f3b-907f-1a25a76f98e8"));
    /// `/var`.
    pub const VAR: Guid = Guid::from_uuid(uuid!("4d21b016-b534-45c2-a9fb-5c16e091fd2d"));
    /// `/var/tmp`.
    pub const TMP: Guid = Guid::from_uuid(uuid!("7ec6f557-3bc5-4aca-b293-16ef5df639d1"));
    /// LVM physical volume.
    pub const LVM: Guid = Guid::from_uuid(uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928"));
    /// Linux software RAID.
    pub const RAID: Guid = Guid::from_uuid(uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e"));
    /// FAT, exFAT or NTFS data.
    pub const MICROSOFT_BASIC_DATA: Guid = Guid::from_uuid(uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"));
    /// Microsoft reserved partition.
    pub const MICROSOFT_RESERVED: Guid = Guid::from_uuid(uuid!("e3c9e316-0b5c-4db8-817d-f92df00215ae"));

    const NAMES: [(&str, Guid); 16] = [
        ("esp", ESP),
        ("xbootldr", XBOOTLDR),
        ("bios-boot", BIOS_BOOT),
        ("linux-generic", LINUX_GENERIC),
        ("root-x86-64", ROOT_X86_64),
        ("root-arm64", ROOT_ARM64),
        ("usr-x86-64", USR_X86_64),
        ("swap", SWAP),
        ("home", HOME),
        ("srv", SRV),
        ("var", VAR),
        ("tmp", TMP),
        ("lvm", LVM),
        ("raid", RAID),
        ("microsoft-basic-data", MICROSOFT_BASIC_DATA),
        ("microsoft-reserved", MICROSOFT_RESERVED),
    ];

    /// The type GUID of that name.
    pub fn by_name(name: &str) -> Option<Guid> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, guid)| *guid)
    }

    /// The name of a type GUID.
    pub fn name_of(guid: Guid) -> Option<&'static str> {
        NAMES.iter().find(|(_, known)| *known == guid).map(|(name, _)| *name)
    }
}
