//! GUIDs as a GPT stores them.

use std::fmt;

use uuid::Uuid;

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
