//! POSIX ACLs as archivers write them (`SCHILY.acl.access`, `SCHILY.acl.default`: the text of POSIX.1e 23.3, of star
//! and bsdtar with an id as the fourth field) in the form of `setxattr(2)`.

use super::archive::{corrupt, unsupported};
use crate::error::Result;
use crate::path::printable;

const VERSION: u32 = 2;
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// The value of the extended attribute; `None` where the ACL says no more than a mode does.
pub(super) fn acl(text: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut entries = Vec::new();
    for line in text.split(|byte| matches!(byte, b',' | b'\n')) {
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if !line.is_empty() {
            entries.push(entry(line)?);
        }
    }
    entries.sort_unstable();
    let named = entries.iter().any(|(tag, ..)| [USER, GROUP, MASK].contains(tag));
    if !named {
        return Ok(None);
    }
    let mut value = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&permissions.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    Ok(Some(value))
}

/// Tag, id and permissions, in the order of the kernel.
fn entry(line: &[u8]) -> Result<(u16, u32, u16)> {
    let malformed = || corrupt(&format!("the ACL entry {} is malformed", printable(line)));
    let mut fields = line.split(|byte| *byte == b':').map(<[u8]>::trim_ascii);
    let tag = fields.next().unwrap_or_default();
    let second = fields.next().ok_or_else(malformed)?;
    let (qualifier, permissions) = match fields.next() {
        Some(third) => (second, third),
        // `mask:rwx` and `other:r--` may leave the empty field out.
        None => (&b""[..], second),
    };
    let (tag, needs_id) = match (tag, qualifier.is_empty()) {
        (b"user" | b"u", true) => (USER_OBJ, false),
        (b"user" | b"u", false) => (USER, true),
        (b"group" | b"g", true) => (GROUP_OBJ, false),
        (b"group" | b"g", false) => (GROUP, true),
        (b"mask" | b"m", true) => (MASK, false),
        (b"other" | b"o", true) => (OTHER, false),
        _ => return Err(malformed()),
    };
    let id = if needs_id { id(qualifier, fields.next())? } else { NO_ID };
    let mut bits = 0;
    for permission in permissions {
        bits |= match permission {
            b'r' => 4,
            b'w' => 2,
            b'x' => 1,
            b'-' => 0,
            _ => return Err(malformed()),
        };
    }
    Ok((tag, id, bits))
}

/// Names mean nothing outside of the machine that wrote them.
fn id(name: &[u8], fourth: Option<&[u8]>) -> Result<u32> {
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u32>().ok();
    fourth.and_then(number).or_else(|| number(name)).filter(|id| *id != NO_ID).ok_or_else(|| {
        let name = printable(name);
        unsupported(format!(
            "an ACL for {name} by name and not by number (GNU tar says both with --xattrs-include='*')"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn texts_of_all_archivers() {
        let value = acl(b"user::rw-,user:1000:r--,group::r--,mask::r--,other::---").unwrap().unwrap();
        let mut expected = vec![2, 0, 0, 0];
        for (tag, permissions, id) in
            [(1, 6, NO_ID), (2, 4, 1000), (4, 4, NO_ID), (16, 4, NO_ID), (32, 0, NO_ID)]
        {
            expected.extend_from_slice(&[tag, 0, permissions, 0]);
            expected.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(value, expected);
        let star = b"user::rw-,user:joe:r--:1000,group::r--,mask::r--,other::---";
        assert_eq!(acl(star).unwrap().unwrap(), expected);
        let lines = b"user::rw-\nuser:1000:r-- #effective:r--\ngroup::r--\nmask:r--\nother:---\n";
        assert_eq!(acl(lines).unwrap().unwrap(), expected);
        assert_eq!(acl(b"user::rw-,group::r--,other::r--").unwrap(), None);
    }

    #[test]
    fn what_means_nothing_here_is_refused() {
        let kind = |text: &[u8]| acl(text).expect_err("refused").kind();
        assert_eq!(kind(b"user:joe:r--"), ErrorKind::Unsupported);
        for bad in [&b"user"[..], b"x::r--", b"mask:5:r--", b"user::rq-"] {
            assert_eq!(kind(bad), ErrorKind::Corrupt, "{}", printable(bad));
        }
    }
}
