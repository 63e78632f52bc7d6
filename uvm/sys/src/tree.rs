//! The files beneath one directory, reached by names that cannot lead out of it.
//!
//! Every path is walked by openat2(2) from the handle of the root, with `RESOLVE_IN_ROOT`, `NO_SYMLINKS`,
//! `NO_MAGICLINKS` and `NO_XDEV`: no link in any component is followed, no other mount is entered. What is done
//! to an entry is done by its name in the handle of its parent, or by a handle of the entry itself, so a path is
//! never joined to a mount point.
//!
//! A path is bytes relative to the root without a leading slash; the root itself is the empty path.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid};
use rustix::fs::{UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::{Error, ErrorKind, Result};

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// The name a file has until it is whole. One that an interrupted run left behind is replaced.
const UNFINISHED: &[u8] = b".uvm-unfinished";
/// Entries of one directory.
const MAX_ENTRIES: usize = 1_000_000;
/// The kernel's own limit for the names of an entry's attributes and for one value (xattr(7)).
const XATTR_MAX: usize = 64 << 10;
/// All attributes of one entry together.
const MAX_XATTR_BYTES: usize = 1 << 20;
/// Longest path shown in a message.
const SHOWN_MAX: usize = 200;
/// The attribute that the kernel drops when a file changes hands.
const CAPABILITY: &[u8] = b"security.capability";
/// Room for a `struct vfs_ns_cap_data` (linux/capability.h), which has 24 bytes.
const CAPABILITY_MAX: usize = 64;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileType {
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

/// Mode, owner and time of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileAttributes {
    /// Permission bits with set-uid, set-gid and sticky (`07777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970 of the last modification; negative before.
    pub mtime_seconds: i64,
    /// 0 to 999 999 999, counted forward.
    pub mtime_nanoseconds: u32,
}

/// What stat(2) knows of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileMetadata {
    /// What it is.
    pub file_type: FileType,
    /// Mode, owner, time.
    pub attributes: FileAttributes,
}

/// See the module. Where the tree is a mount of our own ([`crate::Volume`]), dropping it unmounts.
#[derive(Debug)]
pub struct Tree {
    // Before the mount: fields are dropped in this order.
    root: OwnedFd,
    _mount: Option<OwnedFd>,
}

/// The parent of an entry, and the entry's name in it.
struct Place<'p> {
    dir: OwnedFd,
    name: &'p [u8],
}

impl Place<'_> {
    fn stat(&self) -> rustix::io::Result<Stat> {
        rustix::fs::statat(&self.dir, self.name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

impl Tree {
    /// The tree beneath a directory that is there already.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        Ok(Self { root, _mount: None })
    }

    /// The tree of a mount that nobody else has.
    pub(crate) fn of_mount(mount: OwnedFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&mount, ".", flags, Mode::empty())
            .map_err(|e| Error::io("opening the root of a mounted file system", e))?;
        Ok(Self { root, _mount: Some(mount) })
    }

    /// The number of the device that the file system is on.
    pub(crate) fn device(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.root).map_err(|e| failed("looking at", b"", e))?;
        Ok(stat.st_dev)
    }

    /// Makes everything written durable. Errors of earlier writes that nobody was told of are told here.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root).map_err(|e| Error::io("writing a file system out", e))
    }

    /// What is at `path`, if anything is.
    pub fn metadata(&self, path: &[u8]) -> Result<Option<FileMetadata>> {
        match self.stat(path) {
            Ok(stat) => Ok(Some(metadata_of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed("looking at", path, e)),
        }
    }

    /// The entries of a directory without `.` and `..`, in no order.
    pub fn list(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, FileType)>> {
        let failed = |e| failed("listing", path, e);
        let handle = self.open_to_read(path, OFlags::DIRECTORY, Errno::NOTDIR).map_err(failed)?;
        let mut found = Vec::new();
        for entry in Dir::read_from(&handle).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if found.len() == MAX_ENTRIES {
                let reason = format!("more than {MAX_ENTRIES} entries");
                return Err(Error::new(ErrorKind::TooLarge, format!("listing {}", shown(path)), reason));
            }
            let stat = rustix::fs::statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            found.push((name.to_vec(), metadata_of(&stat).file_type));
        }
        Ok(found)
    }

    /// A regular file, to be read from its beginning.
    pub fn open_file(&self, path: &[u8]) -> Result<File> {
        let handle = self.open_to_read(path, OFlags::empty(), Errno::ISDIR);
        handle.map(File::from).map_err(|e| failed("opening", path, e))
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        let failed = |e| failed("reading the link", path, e);
        if path.is_empty() {
            return Err(failed(Errno::ISDIR));
        }
        let place = self.place(path).map_err(failed)?;
        match rustix::fs::readlinkat(&place.dir, place.name, Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            Err(Errno::INVAL) => {
                let context = format!("reading the link {}", shown(path));
                Err(Error::new(ErrorKind::WrongType, context, "it is no symbolic link"))
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// A file to be written, which takes its name when it is whole ([`NewFile::commit`]). One at a time: it has
    /// the same passing name in every directory.
    pub fn create_file(&mut self, path: &[u8]) -> Result<NewFile<'_>> {
        let failed = |e| failed("creating", path, e);
        let place = self.place(path).map_err(failed)?;
        match place.stat().map(|stat| metadata_of(&stat).file_type) {
            Ok(FileType::Directory) => return Err(failed(Errno::ISDIR)),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        match rustix::fs::unlinkat(&place.dir, UNFINISHED, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody but the owner reads it before it has the mode it is to have.
        let file = rustix::fs::openat2(&place.dir, UNFINISHED, flags, Mode::RUSR | Mode::WUSR, RESOLVE);
        let file = File::from(file.map_err(failed)?);
        Ok(NewFile { file, dir: place.dir, path: path.to_vec(), committed: false, _tree: self })
    }

    /// A new directory.
    pub fn create_dir(&mut self, path: &[u8], attributes: FileAttributes) -> Result<()> {
        self.create("creating the directory", path, attributes, |place| {
            rustix::fs::mkdirat(&place.dir, place.name, Mode::RWXU)
        })
    }

    /// A new symbolic link. Its mode is always 0777.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], attributes: FileAttributes) -> Result<()> {
        self.create("creating the link", path, attributes, |place| {
            rustix::fs::symlinkat(target, &place.dir, place.name)
        })
    }

    /// A new device node, FIFO or socket name.
    pub fn create_special(
        &mut self,
        path: &[u8],
        file_type: FileType,
        attributes: FileAttributes,
    ) -> Result<()> {
        let (kind, device) = match file_type {
            FileType::CharDevice { major, minor } => {
                (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            FileType::BlockDevice { major, minor } => {
                (rustix::fs::FileType::BlockDevice, rustix::fs::makedev(major, minor))
            }
            FileType::Fifo => (rustix::fs::FileType::Fifo, 0),
            FileType::Socket => (rustix::fs::FileType::Socket, 0),
            _ => return Err(failed("creating the special file", path, Errno::INVAL)),
        };
        self.create("creating the special file", path, attributes, |place| {
            rustix::fs::mknodat(&place.dir, place.name, kind, Mode::RUSR | Mode::WUSR, device)
        })
    }

    /// A new name for an entry that is no directory.
    pub fn hard_link(&mut self, path: &[u8], existing: &[u8]) -> Result<()> {
        let link = || {
            let old = self.place(existing)?;
            if is_directory(&old.stat()?) {
                return Err(Errno::ISDIR);
            }
            let new = self.place(path)?;
            rustix::fs::linkat(&old.dir, old.name, &new.dir, new.name, AtFlags::empty())
        };
        link().map_err(|e| failed("linking", path, e))
    }

    /// Removes one entry; a directory must be empty.
    pub fn remove(&mut self, path: &[u8]) -> Result<()> {
        let remove = || {
            let place = self.place(path)?;
            let flags = if is_directory(&place.stat()?) { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(&place.dir, place.name, flags)
        };
        remove().map_err(|e| failed("removing", path, e))
    }

    /// rename(2), but what is there is not replaced where one of the two is a directory.
    pub fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let rename = || {
            let (old, new) = (self.place(from)?, self.place(to)?);
            let moved = old.stat()?;
            match new.stat() {
                Ok(there) if is_directory(&there) || is_directory(&moved) => return Err(Errno::EXIST),
                Ok(_) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
            rustix::fs::renameat(&old.dir, old.name, &new.dir, new.name)
        };
        rename().map_err(|e| failed("renaming", from, e))
    }

    /// Mode, owner and time. The mode of a symbolic link stays; a file's capabilities survive a new owner.
    pub fn set_attributes(&mut self, path: &[u8], attributes: FileAttributes) -> Result<()> {
        let set = || {
            let handle = self.handle(path)?;
            change(&handle, attributes)
        };
        set().map_err(|e| failed("changing owner, mode or time of", path, e))
    }

    /// Sets one extended attribute by its full name.
    pub fn set_xattr(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        let set = || {
            let handle = self.handle(path)?;
            rustix::fs::setxattr(by_handle(&handle), name, value, XattrFlags::empty())
        };
        set().map_err(|e| failed("setting an extended attribute of", path, e))
    }

    /// All extended attributes, in no order.
    pub fn xattrs(&self, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let failed = |e| failed("reading the extended attributes of", path, e);
        let handle = self.handle(path).map_err(failed)?;
        let mut buffer = vec![0; XATTR_MAX];
        let length = match rustix::fs::listxattr(by_handle(&handle), &mut buffer[..]) {
            // A file system without extended attributes.
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            length => length.map_err(failed)?,
        };
        let names: Vec<Vec<u8>> =
            buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
        let mut found = Vec::new();
        let mut total = 0;
        for name in names {
            let length = rustix::fs::getxattr(by_handle(&handle), name.as_slice(), &mut buffer[..]);
            let length = length.map_err(failed)?;
            total += name.len() + length;
            if total > MAX_XATTR_BYTES {
                let context = format!("reading the extended attributes of {}", shown(path));
                let reason = format!("more than {MAX_XATTR_BYTES} bytes of them");
                return Err(Error::new(ErrorKind::TooLarge, context, reason));
            }
            found.push((name, buffer[..length].to_vec()));
        }
        Ok(found)
    }

    fn stat(&self, path: &[u8]) -> rustix::io::Result<Stat> {
        if path.is_empty() { rustix::fs::fstat(&self.root) } else { self.place(path)?.stat() }
    }

    /// Opens the parent. A link or anything else that is no directory on the way there is an error.
    fn place<'p>(&self, path: &'p [u8]) -> rustix::io::Result<Place<'p>> {
        let climbs = |name: &[u8]| matches!(name, b"" | b"." | b"..");
        if path.split(|b| *b == b'/').any(climbs) {
            return Err(Errno::INVAL);
        }
        let (parent, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b"."[..], path),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(&self.root, parent, flags, Mode::empty(), RESOLVE)?;
        Ok(Place { dir, name })
    }

    /// A handle of the entry itself, a link too, which opens nothing: a FIFO or a device stays asleep.
    fn handle(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_empty() {
            return rustix::fs::openat2(&self.root, ".", flags, Mode::empty(), RESOLVE);
        }
        let place = self.place(path)?;
        rustix::fs::openat2(&place.dir, place.name, flags, Mode::empty(), RESOLVE)
    }

    /// Opens a directory (`DIRECTORY`) or else a regular file; `wrong` where it is something else.
    fn open_to_read(&self, path: &[u8], kind: OFlags, wrong: Errno) -> rustix::io::Result<OwnedFd> {
        let fits = |stat: &Stat| match metadata_of(stat).file_type {
            FileType::Directory => kind.contains(OFlags::DIRECTORY),
            FileType::File { .. } => kind.is_empty(),
            _ => false,
        };
        // Looked at before it is opened: a device or a FIFO must not be.
        if !fits(&self.stat(path)?) {
            return Err(wrong);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | kind;
        let opened = if path.is_empty() {
            rustix::fs::openat2(&self.root, ".", flags, Mode::empty(), RESOLVE)?
        } else {
            let place = self.place(path)?;
            rustix::fs::openat2(&place.dir, place.name, flags, Mode::empty(), RESOLVE)?
        };
        if fits(&rustix::fs::fstat(&opened)?) { Ok(opened) } else { Err(wrong) }
    }

    fn create(
        &mut self,
        doing: &str,
        path: &[u8],
        attributes: FileAttributes,
        call: impl FnOnce(&Place<'_>) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let create = || {
            call(&self.place(path)?)?;
            change(&self.handle(path)?, attributes)
        };
        create().map_err(|e| failed(doing, path, e))
    }
}

/// A file that is being written, see [`Tree::create_file`]. Dropped before it is committed it leaves nothing.
#[derive(Debug)]
pub struct NewFile<'t> {
    file: File,
    dir: OwnedFd,
    path: Vec<u8>,
    committed: bool,
    _tree: &'t mut Tree,
}

impl NewFile<'_> {
    /// Leaves a hole of `bytes` and goes on behind it.
    pub fn skip(&mut self, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let position = rustix::fs::tell(&self.file).map_err(|e| failed("extending", &self.path, e))?;
        let end = position.saturating_add(bytes);
        rustix::fs::ftruncate(&self.file, end).map_err(|e| failed("extending", &self.path, e))?;
        let sought = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(end));
        sought.map(|_| ()).map_err(|e| failed("extending", &self.path, e))
    }

    /// Gives the file its attributes, makes it durable, and only then its name: whoever had the name before, the
    /// name leads to the old contents or to all of the new, whenever the power goes.
    pub fn commit(mut self, attributes: FileAttributes) -> Result<()> {
        let failed = |e| failed("finishing", &self.path, e);
        change(&self.file, attributes).map_err(failed)?;
        rustix::fs::fsync(&self.file).map_err(failed)?;
        let name = self.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        rustix::fs::renameat(&self.dir, UNFINISHED, &self.dir, name).map_err(failed)?;
        self.committed = true;
        Ok(())
    }
}

impl Write for NewFile<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if !self.committed {
            // What stays because this fails is replaced by the next file in this directory.
            let _ = rustix::fs::unlinkat(&self.dir, UNFINISHED, AtFlags::empty());
        }
    }
}

/// The entry behind a handle, as a path: for the calls that take no handle of this kind. The kernel goes to the
/// entry itself and no further, even where it is a link.
fn by_handle(handle: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

fn change(handle: &(impl AsRawFd + std::os::fd::AsFd), attributes: FileAttributes) -> rustix::io::Result<()> {
    let FileAttributes { mode, uid, gid, mtime_seconds, mtime_nanoseconds } = attributes;
    // These numbers say "leave as it is" to the kernel.
    if uid == u32::MAX || gid == u32::MAX || mtime_nanoseconds >= 1_000_000_000 {
        return Err(Errno::INVAL);
    }
    let stat = rustix::fs::fstat(handle)?;
    if (stat.st_uid, stat.st_gid) != (uid, gid) {
        let mut capability = [0; CAPABILITY_MAX];
        let kept = rustix::fs::getxattr(by_handle(handle), CAPABILITY, &mut capability[..]);
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(handle, "", owner, group, AtFlags::EMPTY_PATH)?;
        if let Ok(length) = kept {
            rustix::fs::setxattr(by_handle(handle), CAPABILITY, &capability[..length], XattrFlags::empty())?;
        }
    }
    // After the owner, for a new owner takes set-uid and set-gid away.
    if metadata_of(&stat).file_type != FileType::Symlink {
        rustix::fs::chmod(by_handle(handle), Mode::from_raw_mode(mode & 0o7777))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: mtime_seconds, tv_nsec: mtime_nanoseconds as _ },
    };
    rustix::fs::utimensat(CWD, by_handle(handle), &times, AtFlags::empty())
}

fn is_directory(stat: &Stat) -> bool {
    metadata_of(stat).file_type == FileType::Directory
}

fn metadata_of(stat: &Stat) -> FileMetadata {
    use rustix::fs::FileType as Raw;
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let file_type = match Raw::from_raw_mode(stat.st_mode) {
        Raw::Directory => FileType::Directory,
        Raw::Symlink => FileType::Symlink,
        Raw::CharacterDevice => FileType::CharDevice { major, minor },
        Raw::BlockDevice => FileType::BlockDevice { major, minor },
        Raw::Fifo => FileType::Fifo,
        Raw::Socket => FileType::Socket,
        _ => FileType::File { size: u64::try_from(stat.st_size).unwrap_or(0) },
    };
    let attributes = FileAttributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_seconds: stat.st_mtime,
        mtime_nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    FileMetadata { file_type, attributes }
}

fn failed(doing: &str, path: &[u8], errno: Errno) -> Error {
    Error::io(format!("{doing} {}", shown(path)), errno)
}

/// A path of a guest, fit for a message.
fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(SHOWN_MAX)];
    format!("/{}", String::from_utf8_lossy(cut).escape_debug())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
