//! The trait that carries all work on a guest's files, and what can be said in terms of it alone.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::path::GuestPath;

/// Seconds and nanoseconds since 1970, UTC. Negative seconds lie before it; nanoseconds always count forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds, rounded towards the past.
    pub seconds: i64,
    /// 0 to 999 999 999.
    pub nanoseconds: u32,
}

/// What every entry carries beside its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-uid, set-gid and sticky (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
}

impl Attributes {
    /// Owned by root.
    pub fn root(mode: u32, mtime: Timestamp) -> Self {
        Self { mode, uid: 0, gid: 0, mtime }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File {
        /// Bytes of contents.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice {
        /// Driver.
        major: u32,
        /// Instance.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Driver.
        major: u32,
        /// Instance.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
}

/// What is known of an entry without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// Mode, owner, time.
    pub attributes: Attributes,
}

/// A guest's files, whoever holds them: a file system being built, or a mounted one.
///
/// No method follows a symbolic link in any component. Where a component before the last one is a link, every
/// method fails with [`ErrorKind::SymlinkInPath`]; the last component is taken as the entry itself. A missing
/// component is [`ErrorKind::NotFound`] (in [`GuestTree::metadata`]: `None`), one that is no directory
/// [`ErrorKind::WrongType`].
pub trait GuestTree {
    /// What is at `path`, if anything is.
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>>;

    /// The entries of a directory, without `.` and `..`, in order of their bytes.
    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>>;

    /// A whole file; [`ErrorKind::TooLarge`] beyond `limit` bytes.
    fn read(&self, path: &GuestPath, limit: u64) -> Result<Vec<u8>>;

    /// Streams a whole file into `sink`; returns the bytes written.
    fn copy_out(&self, path: &GuestPath, sink: &mut dyn Write) -> Result<u64>;

    /// The target of a symbolic link.
    fn read_link(&self, path: &GuestPath) -> Result<Vec<u8>>;

    /// A new file of exactly `size` bytes under this name. What had the name before, if it is no directory, is
    /// replaced, and its other hard links keep their contents. `contents` ending early is an error, and
    /// nothing is read past `size`.
    fn write(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<()>;

    /// A new file as [`GuestTree::write`] makes it, with `data` only in these ranges of it, ascending and apart;
    /// `contents` has those one behind the other. The rest is zeros, which a tree that knows holes does not write.
    fn write_sparse(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        data: &[Range<u64>],
        contents: &mut dyn Read,
    ) -> Result<()> {
        self.write(path, attributes, size, &mut Holes { contents, data, position: 0, size })
    }

    /// A new directory.
    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()>;

    /// A new symbolic link to `target`; its mode is always `0777`.
    fn symlink(&mut self, path: &GuestPath, target: &[u8], attributes: Attributes) -> Result<()>;

    /// A new name for an entry that is no directory.
    fn hard_link(&mut self, path: &GuestPath, existing: &GuestPath) -> Result<()>;

    /// A new device node, FIFO or socket name.
    fn create_special(&mut self, path: &GuestPath, kind: Kind, attributes: Attributes) -> Result<()>;

    /// Removes one entry; a directory must be empty. What belongs to the file system itself stays, which is
    /// [`ErrorKind::Fixed`].
    fn remove(&mut self, path: &GuestPath) -> Result<()>;

    /// Gives an entry another name, replacing what is there unless one of the two is a directory.
    fn rename(&mut self, from: &GuestPath, to: &GuestPath) -> Result<()>;

    /// Mode, owner and time of an entry.
    fn set_attributes(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()>;

    /// Sets one extended attribute, by its full name (`user.x`, `security.capability`).
    fn set_xattr(&mut self, path: &GuestPath, name: &[u8], value: &[u8]) -> Result<()>;

    /// All extended attributes, in order of their names.
    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
}

/// A sparse file's contents with its holes as zeros.
struct Holes<'c> {
    contents: &'c mut dyn Read,
    data: &'c [Range<u64>],
    position: u64,
    size: u64,
}

impl Read for Holes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let [first, rest @ ..] = self.data
            && first.end <= self.position
        {
            self.data = rest;
        }
        let data = self.data.first().cloned().unwrap_or(self.size..self.size);
        let in_data = data.contains(&self.position);
        let end = if in_data { data.end } else { data.start };
        let wanted =
            usize::try_from(end.saturating_sub(self.position)).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        let got = if in_data {
            self.contents.read(buffer)?.min(buffer.len())
        } else {
            buffer.fill(0);
            buffer.len()
        };
        self.position += got as u64;
        Ok(got)
    }
}

/// Links one path may cross, as in the kernel.
const MAX_SYMLINKS: usize = 40;
/// Depth and number of entries that [`remove_all`] takes on.
const MAX_REMOVED: usize = 1_000_000;
/// Largest configuration file that is edited in memory.
pub(crate) const MAX_EDITED: u64 = 16 << 20;

/// Where `path` leads inside the guest, links followed as a process in a chroot would, the last one too. What
/// does not exist stays in the answer as named, so that it can be created there.
pub fn resolve(tree: &dyn GuestTree, path: &GuestPath) -> Result<GuestPath> {
    let mut pending: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
    let mut resolved = GuestPath::root();
    let mut links = 0;
    let mut missing = false;
    while let Some(component) = pending.pop() {
        if component == b".." {
            if missing {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("resolving {path}: {resolved} is missing"),
                ));
            }
            resolved = resolved.parent().unwrap_or_default();
            continue;
        }
        let next = resolved.join(&component)?;
        match if missing { None } else { tree.metadata(&next)? }.map(|m| m.kind) {
            Some(Kind::Symlink) => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Error::new(ErrorKind::SymlinkLoop, format!("too many links in {path}")));
                }
                let target = tree.read_link(&next)?;
                if target.first() == Some(&b'/') {
                    resolved = GuestPath::root();
                }
                let parts = target.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".");
                pending.extend(parts.rev().map(<[u8]>::to_vec));
            }
            Some(Kind::Directory) => resolved = next,
            Some(_) if pending.is_empty() => resolved = next,
            Some(_) => {
                return Err(Error::new(
                    ErrorKind::WrongType,
                    format!("resolving {path}: {next} is no directory"),
                ));
            }
            None => {
                missing = true;
                resolved = next;
            }
        }
    }
    Ok(resolved)
}

/// As [`resolve`], but the last component is the entry itself, link or not.
pub fn resolve_parent(tree: &dyn GuestTree, path: &GuestPath) -> Result<GuestPath> {
    match (path.parent(), path.name()) {
        (Some(parent), Some(name)) => resolve(tree, &parent)?.join(name),
        _ => Ok(GuestPath::root()),
    }
}

/// What `path` leads to, links followed.
pub fn resolved_metadata(tree: &dyn GuestTree, path: &GuestPath) -> Result<Option<Metadata>> {
    let path = resolve(tree, path)?;
    tree.metadata(&path)
}

/// Makes `path` and what is missing above it, all with the same attributes. No link is followed.
pub fn create_dir_all(tree: &mut dyn GuestTree, path: &GuestPath, attributes: Attributes) -> Result<()> {
    let mut current = GuestPath::root();
    for component in path.components() {
        current = current.join(component)?;
        match tree.metadata(&current)?.map(|m| m.kind) {
            Some(Kind::Directory) => {}
            Some(_) => {
                return Err(Error::new(ErrorKind::WrongType, format!("{current} is no directory")));
            }
            None => tree.create_dir(&current, attributes)?,
        }
    }
    Ok(())
}

/// Removes an entry with everything beneath it; nothing there is no error. The root stays.
pub fn remove_all(tree: &mut dyn GuestTree, path: &GuestPath) -> Result<()> {
    remove_beneath(tree, path, false)
}

/// As [`remove_all`], but what belongs to the file system itself ([`ErrorKind::Fixed`]) stays, and is empty.
pub(crate) fn remove_what_can_go(tree: &mut dyn GuestTree, path: &GuestPath) -> Result<()> {
    remove_beneath(tree, path, true)
}

fn remove_beneath(tree: &mut dyn GuestTree, path: &GuestPath, keep_fixed: bool) -> Result<()> {
    let Some(metadata) = tree.metadata(path)? else { return Ok(()) };
    if path.is_root() {
        return Err(Error::new(ErrorKind::Invalid, "the root directory cannot be removed"));
    }
    // A path once listed is met again on top of the stack, and is empty by then.
    let mut stack = vec![(path.clone(), metadata.kind == Kind::Directory)];
    let mut seen = 0;
    while let Some((current, to_list)) = stack.pop() {
        if !to_list {
            match tree.remove(&current) {
                Err(error) if keep_fixed && error.kind() == ErrorKind::Fixed => {}
                removed => removed?,
            }
            continue;
        }
        let entries = tree.list(&current)?;
        seen += entries.len();
        if seen > MAX_REMOVED {
            return Err(Error::new(ErrorKind::TooLarge, format!("{path} has too many entries to remove")));
        }
        let children: Result<Vec<_>> =
            entries.iter().map(|(name, kind)| Ok((current.join(name)?, *kind == Kind::Directory))).collect();
        stack.push((current, false));
        stack.extend(children?);
    }
    Ok(())
}

/// A file from bytes in memory.
pub fn write_bytes(
    tree: &mut dyn GuestTree,
    path: &GuestPath,
    attributes: Attributes,
    contents: &[u8],
) -> Result<()> {
    tree.write(path, attributes, contents.len() as u64, &mut &*contents)
}

/// Rewrites a file that may be there: `change` gets the old contents (empty where there is no file) and
/// returns the new ones. Mode, owner and extended attributes of an existing file stay; a new one gets `fresh`.
/// Links are followed. An unchanged file is not written.
pub fn edit(
    tree: &mut dyn GuestTree,
    path: &GuestPath,
    fresh: Attributes,
    change: &mut dyn FnMut(&[u8]) -> Result<Vec<u8>>,
) -> Result<()> {
    let path = resolve(tree, path)?;
    let Some(metadata) = tree.metadata(&path)? else {
        let contents = change(b"")?;
        return write_bytes(tree, &path, fresh, &contents);
    };
    let before = tree.read(&path, MAX_EDITED)?;
    let after = change(&before)?;
    if after == before {
        return Ok(());
    }
    let xattrs = tree.xattrs(&path)?;
    write_bytes(tree, &path, Attributes { mtime: fresh.mtime, ..metadata.attributes }, &after)?;
    for (name, value) in xattrs {
        tree.set_xattr(&path, &name, &value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTree;

    const AT: Attributes =
        Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 7, nanoseconds: 0 } };

    fn p(path: &str) -> GuestPath {
        GuestPath::absolute(path).unwrap()
    }

    #[test]
    fn resolve_stays_beneath_the_root() {
        let mut tree = MemoryTree::new();
        create_dir_all(&mut tree, &p("/usr/lib/x"), AT).unwrap();
        tree.symlink(&p("/lib"), b"usr/lib", AT).unwrap();
        tree.symlink(&p("/up"), b"../../../../usr/./lib/x/../..", AT).unwrap();
        tree.symlink(&p("/loop"), b"/loop", AT).unwrap();
        tree.symlink(&p("/dangling"), b"/run/x", AT).unwrap();
        tree.symlink(&p("/astray"), b"/run/../etc", AT).unwrap();
        write_bytes(&mut tree, &p("/file"), AT, b"f").unwrap();
        let to = |from: &str| resolve(&tree, &p(from)).map(|r| r.to_string());
        assert_eq!(to("/lib/x/new").unwrap(), "/usr/lib/x/new");
        assert_eq!(to("/up/lib").unwrap(), "/usr/lib");
        assert_eq!(to("/dangling").unwrap(), "/run/x");
        assert_eq!(to("/loop").unwrap_err().kind(), ErrorKind::SymlinkLoop);
        assert_eq!(to("/astray").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(to("/file/x").unwrap_err().kind(), ErrorKind::WrongType);
        assert_eq!(resolve_parent(&tree, &p("/lib/x")).unwrap(), p("/usr/lib/x"));
        assert_eq!(resolve_parent(&tree, &p("/lib")).unwrap(), p("/lib"));
    }

    #[test]
    fn remove_all_takes_a_whole_branch_and_no_more() {
        let mut tree = MemoryTree::new();
        create_dir_all(&mut tree, &p("/a/b/c"), AT).unwrap();
        create_dir_all(&mut tree, &p("/keep"), AT).unwrap();
        tree.symlink(&p("/a/b/out"), b"/keep", AT).unwrap();
        write_bytes(&mut tree, &p("/a/b/c/f"), AT, b"x").unwrap();
        remove_all(&mut tree, &p("/a")).unwrap();
        remove_all(&mut tree, &p("/a")).unwrap();
        let names: Vec<_> = tree.list(&GuestPath::root()).unwrap().into_iter().map(|e| e.0).collect();
        assert_eq!(names, [b"keep"]);
        assert_eq!(remove_all(&mut tree, &GuestPath::root()).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn edit_keeps_what_it_does_not_change() {
        let mut tree = MemoryTree::new();
        let secret = Attributes { mode: 0o640, uid: 3, gid: 42, ..AT };
        write_bytes(&mut tree, &p("/shadow"), secret, b"old\n").unwrap();
        tree.set_xattr(&p("/shadow"), b"user.x", b"1").unwrap();
        tree.symlink(&p("/link"), b"shadow", AT).unwrap();
        let now = Attributes { mtime: Timestamp { seconds: 9, nanoseconds: 0 }, ..AT };
        edit(&mut tree, &p("/link"), now, &mut |old| Ok([old, b"new\n"].concat())).unwrap();
        let metadata = tree.metadata(&p("/shadow")).unwrap().unwrap();
        assert_eq!(metadata.attributes, Attributes { mtime: now.mtime, ..secret });
        assert_eq!(tree.read(&p("/shadow"), 100).unwrap(), b"old\nnew\n");
        assert_eq!(tree.xattrs(&p("/shadow")).unwrap(), [(b"user.x".to_vec(), b"1".to_vec())]);
        assert_eq!(tree.metadata(&p("/link")).unwrap().unwrap().kind, Kind::Symlink);
    }
}
