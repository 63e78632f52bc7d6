//! Whether an existing file system may be mounted and changed: the words its superblock has on that.

use crate::field::{le16, le32, read};
use crate::{BlockDevice, Error, ErrorKind, Result};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;
/// `s_state`.
const HAS_ERRORS: u16 = 0x2;
/// `s_feature_compat`.
const HAS_JOURNAL: u32 = 0x4;
/// `s_feature_incompat`.
const NEEDS_RECOVERY: u32 = 0x4;

/// Where a file system keeps its journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalPlace {
    /// Nowhere: a cut of the power damages it.
    None,
    /// In itself.
    Internal,
    /// On the device that the superblock names, by a number that means something to the guest alone.
    External,
}

/// What a superblock says of its file system's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Damage was found, and no e2fsck since. Replaying the journal does not mend it.
    pub has_errors: bool,
    /// It was not unmounted; a mount replays its journal.
    pub needs_recovery: bool,
    /// The journal.
    pub journal: JournalPlace,
}

/// Reads the state of the ext2, ext3 or ext4 on a device; [`ErrorKind::NotFound`] where there is none.
pub fn read_state(device: &dyn BlockDevice) -> Result<State> {
    let superblock = read(device, SUPERBLOCK, 1024, "reading an ext superblock")?;
    if le16(&superblock, 0x38) != MAGIC {
        return Err(Error::new(ErrorKind::NotFound, "there is no ext superblock"));
    }
    let (inode, device_number) = (le32(&superblock, 0xE0), le32(&superblock, 0xE4));
    let journal = match (le32(&superblock, 0x5C) & HAS_JOURNAL != 0, inode != 0, device_number != 0) {
        (false, ..) => JournalPlace::None,
        (true, true, false) => JournalPlace::Internal,
        _ => JournalPlace::External,
    };
    Ok(State {
        has_errors: le16(&superblock, 0x3A) & HAS_ERRORS != 0,
        needs_recovery: le32(&superblock, 0x60) & NEEDS_RECOVERY != 0,
        journal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use crate::field::put;

    fn state(changes: &[(usize, u16)]) -> Result<State> {
        let device = Memory::new(4096, 512);
        let mut superblock = vec![0; 1024];
        for (at, value) in [(0x38, MAGIC), (0x3A, 1), (0x5C, 4), (0xE0, 8)].iter().chain(changes) {
            put(&mut superblock, *at, &value.to_le_bytes());
        }
        device.write_at(SUPERBLOCK, &superblock).unwrap();
        read_state(&device)
    }

    #[test]
    fn every_reason_to_leave_it_alone_is_seen() {
        let healthy = State { has_errors: false, needs_recovery: false, journal: JournalPlace::Internal };
        assert_eq!(state(&[]).unwrap(), healthy);
        assert_eq!(state(&[(0x3A, 3)]).unwrap(), State { has_errors: true, ..healthy });
        assert_eq!(state(&[(0x60, 0x46)]).unwrap(), State { needs_recovery: true, ..healthy });
        for (changes, journal) in [
            (&[(0x5C, 0)][..], JournalPlace::None),
            (&[(0xE4, 0x0801)], JournalPlace::External),
            (&[(0xE0, 0), (0xE4, 0x0801)], JournalPlace::External),
            (&[(0xE0, 0)], JournalPlace::External),
        ] {
            assert_eq!(state(changes).unwrap(), State { journal, ..healthy }, "{changes:?}");
        }
        assert_eq!(state(&[(0x38, 0)]).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
