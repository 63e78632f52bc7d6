//! Names inside a guest: bytes, relative to the guest's root, that can only go down.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// Longest name of one directory entry (`NAME_MAX`).
pub const MAX_COMPONENT: usize = 255;
/// Longest path (`PATH_MAX` without its NUL, rounded to what the kernel takes).
pub const MAX_PATH: usize = 4095;

/// A path beneath the guest's root: no `..`, no NUL, no empty component. The root itself is the empty path.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestPath {
    // The components joined by '/': one allocation each, for there may be hundreds of thousands.
    joined: Vec<u8>,
}

impl GuestPath {
    /// The guest's root directory.
    pub fn root() -> Self {
        Self::default()
    }

    /// A relative path. `.` and doubled or trailing slashes are dropped, as the kernel does.
    pub fn parse(path: &[u8]) -> Result<Self> {
        if path.first() == Some(&b'/') {
            return Err(refused(path, "is absolute"));
        }
        Self::beneath(path)
    }

    /// A path as the guest itself writes it (`/etc/passwd`); the leading slash may be left out.
    pub fn absolute(path: impl AsRef<[u8]>) -> Result<Self> {
        Self::beneath(path.as_ref())
    }

    fn beneath(path: &[u8]) -> Result<Self> {
        let mut joined = Vec::with_capacity(path.len().min(MAX_PATH));
        for component in path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".") {
            push(&mut joined, component)?;
        }
        Ok(Self { joined })
    }

    /// This path and one more component.
    pub fn join(&self, name: impl AsRef<[u8]>) -> Result<Self> {
        let name = name.as_ref();
        if name.is_empty() || name == b"." || name.contains(&b'/') {
            return Err(refused(name, "is not the name of a directory entry"));
        }
        let mut joined = self.joined.clone();
        push(&mut joined, name)?;
        Ok(Self { joined })
    }

    /// The components from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.joined.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// The last component; the root has none.
    pub fn name(&self) -> Option<&[u8]> {
        self.components().next_back()
    }

    /// The directory above; the root has none.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.joined.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self { joined: self.joined[..end].to_vec() })
    }

    /// Whether this is the root directory.
    pub fn is_root(&self) -> bool {
        self.joined.is_empty()
    }

    /// Whether `self` is `other` or lies beneath it.
    pub fn is_within(&self, other: &Self) -> bool {
        match self.joined.strip_prefix(other.joined.as_slice()) {
            Some(rest) => other.is_root() || rest.is_empty() || rest[0] == b'/',
            None => false,
        }
    }

    /// The bytes, components joined by `/`, without a leading one.
    pub fn as_bytes(&self) -> &[u8] {
        &self.joined
    }
}

fn push(joined: &mut Vec<u8>, component: &[u8]) -> Result<()> {
    if component == b".." {
        return Err(refused(component, "leads upwards"));
    }
    if component.contains(&0) {
        return Err(refused(component, "holds a NUL byte"));
    }
    if component.len() > MAX_COMPONENT || joined.len() + 1 + component.len() > MAX_PATH {
        return Err(refused(component, "is longer than a file system takes"));
    }
    if !joined.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(component);
    Ok(())
}

fn refused(path: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::UnsafePath, format!("the path {} {why}", printable(path)))
}

/// Foreign bytes made fit for a message: control characters escaped, long ones cut.
pub(crate) fn printable(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let tail = if bytes.len() > SHOWN { "…" } else { "" };
    format!("\"{}{tail}\"", String::from_utf8_lossy(shown).escape_debug())
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.joined).escape_debug())
    }
}

impl fmt::Debug for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_only_goes_down() {
        for bad in [&b"/etc"[..], b"../x", b"a/../b", b"a/..", b"a\0b", &[b'a'; 256]] {
            assert_eq!(GuestPath::parse(bad).unwrap_err().kind(), ErrorKind::UnsafePath, "{bad:?}");
        }
        let long = [b"abc/".repeat(1024), b"x".to_vec()].concat();
        assert_eq!(GuestPath::parse(&long).unwrap_err().kind(), ErrorKind::UnsafePath);
        assert_eq!(GuestPath::parse(b"./a//b/./c/").unwrap().as_bytes(), b"a/b/c");
        assert!(GuestPath::parse(b"./").unwrap().is_root());
        assert_eq!(GuestPath::absolute("/etc/passwd").unwrap().as_bytes(), b"etc/passwd");
    }

    #[test]
    fn parents_and_prefixes() {
        let path = GuestPath::absolute("/a/bc/d").unwrap();
        assert_eq!(path.parent().unwrap().to_string(), "/a/bc");
        assert_eq!(GuestPath::absolute("a").unwrap().parent(), Some(GuestPath::root()));
        assert_eq!(GuestPath::root().parent(), None);
        assert_eq!(path.name(), Some(&b"d"[..]));
        assert!(path.is_within(&GuestPath::absolute("/a/bc").unwrap()));
        assert!(!path.is_within(&GuestPath::absolute("/a/b").unwrap()));
        assert!(path.is_within(&GuestPath::root()));
        assert!(path.join("..").is_err() && path.join("x/y").is_err());
    }
}
