//! `/etc/fstab`, written whole (fstab(5)).

use super::{Guest, invalid};
use crate::error::Result;

/// One line, in the words of fstab(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FstabEntry {
    /// What is mounted: `UUID=...`, `LABEL=...`, or a path.
    pub spec: String,
    /// Where; `none` for swap.
    pub file: String,
    /// File system type.
    pub vfstype: String,
    /// Options, separated by commas; `defaults` for none.
    pub mntops: String,
    /// Dump frequency; 0 nowadays.
    pub freq: u8,
    /// Order of the check at boot: 1 for the root, 2 for others, 0 for none.
    pub passno: u8,
}

pub(super) fn validate(entries: &[FstabEntry]) -> Result<()> {
    for entry in entries {
        for (field, value) in [
            ("fstab.spec", &entry.spec),
            ("fstab.file", &entry.file),
            ("fstab.vfstype", &entry.vfstype),
            ("fstab.mntops", &entry.mntops),
        ] {
            // Blanks could be escaped in a spec or a file; no machine we make has any.
            if value.is_empty() || value.starts_with('#') || !value.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(invalid(field, value, "must be printable ASCII without blanks"));
            }
        }
        if entry.file != "none" && !entry.file.starts_with('/') {
            return Err(invalid("fstab.file", &entry.file, "is neither an absolute path nor none"));
        }
    }
    Ok(())
}

pub(super) fn set(guest: &mut Guest<'_>, entries: &[FstabEntry]) -> Result<()> {
    let mut text = String::from("# <file system> <mount point> <type> <options> <dump> <pass>\n");
    for FstabEntry { spec, file, vfstype, mntops, freq, passno } in entries {
        text.push_str(&format!("{spec} {file} {vfstype} {mntops} {freq} {passno}\n"));
    }
    guest.write("/etc/fstab", 0o644, text.as_bytes())
}
