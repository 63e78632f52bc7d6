//! A mounted file system becomes a [`GuestTree`], with a list of what was changed in it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::ops::Range;

use uvm_guest::{Attributes, Error, ErrorKind, GuestPath, GuestTree, Kind, Metadata, Result, Timestamp};
use uvm_sys::{FileAttributes, FileMetadata, FileType, Tree};

/// Bytes copied at a time.
const COPY: usize = 64 << 10;
/// Entries that one job changes.
const MAX_CHANGED: usize = 100_000;

/// The files of a guest that is installed.
pub(crate) struct MountedTree {
    tree: Tree,
    changed: BTreeSet<GuestPath>,
}

fn from_kernel(path: &GuestPath) -> impl FnOnce(uvm_sys::Error) -> Error + '_ {
    move |error| {
        use uvm_sys::ErrorKind as Kernel;
        let kind = match error.kind() {
            Kernel::NotFound => ErrorKind::NotFound,
            Kernel::SymlinkInPath => ErrorKind::SymlinkInPath,
            Kernel::Exists => ErrorKind::Exists,
            Kernel::WrongType => ErrorKind::WrongType,
            Kernel::NotEmpty => ErrorKind::NotEmpty,
            Kernel::NoSpace => ErrorKind::NoSpace,
            Kernel::TooLarge => ErrorKind::TooLarge,
            Kernel::Unsupported => ErrorKind::Unsupported,
            Kernel::Invalid => ErrorKind::Invalid,
            Kernel::Malformed => ErrorKind::Corrupt,
            _ => ErrorKind::Io,
        };
        Error::with_source(kind, format!("in the guest's {path}"), error)
    }
}

fn attributes_to_kernel(attributes: Attributes) -> FileAttributes {
    FileAttributes {
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        mtime_seconds: attributes.mtime.seconds,
        mtime_nanoseconds: attributes.mtime.nanoseconds,
    }
}

fn kind_of(file_type: FileType) -> Kind {
    match file_type {
        FileType::File { size } => Kind::File { size },
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::CharDevice { major, minor } => Kind::CharDevice { major, minor },
        FileType::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
    }
}

fn metadata_of(metadata: FileMetadata) -> Metadata {
    let FileAttributes { mode, uid, gid, mtime_seconds, mtime_nanoseconds } = metadata.attributes;
    let mtime = Timestamp { seconds: mtime_seconds, nanoseconds: mtime_nanoseconds };
    Metadata { kind: kind_of(metadata.file_type), attributes: Attributes { mode, uid, gid, mtime } }
}

impl MountedTree {
    pub(crate) fn new(tree: Tree) -> Self {
        Self { tree, changed: BTreeSet::new() }
    }

    /// Every path that was written, moved or removed, whatever is there now.
    pub(crate) fn changed(&self) -> &BTreeSet<GuestPath> {
        &self.changed
    }

    /// Makes everything written durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.tree.sync().map_err(from_kernel(&GuestPath::root()))
    }

    /// To be called before a change.
    fn note(&mut self, path: &GuestPath) -> Result<()> {
        if self.changed.len() == MAX_CHANGED && !self.changed.contains(path) {
            let context = format!("more than {MAX_CHANGED} entries would be changed");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        self.changed.insert(path.clone());
        Ok(())
    }

    /// The root has its attributes, but no name that could be given, taken or moved.
    fn note_named(&mut self, path: &GuestPath) -> Result<()> {
        if path.is_root() {
            let context = "the root directory cannot be created, moved or removed";
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        self.note(path)
    }
}

/// Moves exactly `size` bytes; `Ok(false)` where the source ends first.
fn copy(
    path: &GuestPath,
    from: &mut dyn Read,
    to: &mut dyn Write,
    size: u64,
    (read_kind, write_kind): (ErrorKind, ErrorKind),
) -> Result<bool> {
    let mut buffer = vec![0; COPY.min(usize::try_from(size).unwrap_or(COPY))];
    let mut left = size;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(COPY));
        let got = match from.read(&mut buffer[..want]) {
            Ok(0) => return Ok(false),
            Ok(got) => got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::with_source(read_kind, format!("reading for {path}"), error)),
        };
        to.write_all(&buffer[..got]).map_err(|error| {
            let full =
                matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
            let kind = if full { ErrorKind::NoSpace } else { write_kind };
            Error::with_source(kind, format!("copying {path}"), error)
        })?;
        left -= got as u64;
    }
    Ok(true)
}

impl GuestTree for MountedTree {
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>> {
        let found = self.tree.metadata(path.as_bytes()).map_err(from_kernel(path))?;
        Ok(found.map(metadata_of))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>> {
        let entries = self.tree.list(path.as_bytes()).map_err(from_kernel(path))?;
        let mut entries: Vec<_> = entries.into_iter().map(|(name, kind)| (name, kind_of(kind))).collect();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    fn read(&self, path: &GuestPath, limit: u64) -> Result<Vec<u8>> {
        let file = self.tree.open_file(path.as_bytes()).map_err(from_kernel(path))?;
        let mut contents = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut contents)
            .map_err(|error| Error::with_source(ErrorKind::Io, format!("reading {path}"), error))?;
        if contents.len() as u64 > limit {
            return Err(Error::new(ErrorKind::TooLarge, format!("{path} has more than {limit} bytes")));
        }
        Ok(contents)
    }

    fn copy_out(&self, path: &GuestPath, sink: &mut dyn Write) -> Result<u64> {
        let mut file = self.tree.open_file(path.as_bytes()).map_err(from_kernel(path))?;
        let size = file.metadata().map(|metadata| metadata.len()).map_err(|error| {
            Error::with_source(ErrorKind::Io, format!("asking the size of {path}"), error)
        })?;
        match copy(path, &mut file, sink, size, (ErrorKind::Io, ErrorKind::Io))? {
            true => Ok(size),
            false => Err(Error::new(ErrorKind::Corrupt, format!("{path} ends before its size"))),
        }
    }

    fn read_link(&self, path: &GuestPath) -> Result<Vec<u8>> {
        self.tree.read_link(path.as_bytes()).map_err(from_kernel(path))
    }

    fn write(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<()> {
        let data = 0..size;
        self.write_sparse(path, attributes, size, std::slice::from_ref(&data), contents)
    }

    fn write_sparse(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        data: &[Range<u64>],
        contents: &mut dyn Read,
    ) -> Result<()> {
        self.note_named(path)?;
        let mut file = self.tree.create_file(path.as_bytes()).map_err(from_kernel(path))?;
        let mut position = 0;
        for range in data {
            file.skip(range.start.saturating_sub(position)).map_err(from_kernel(path))?;
            let length = range.end.saturating_sub(range.start);
            if !copy(path, contents, &mut file, length, (ErrorKind::Source, ErrorKind::Io))? {
                return Err(Error::new(ErrorKind::Truncated, format!("the contents of {path} ended early")));
            }
            position = range.end;
        }
        file.skip(size.saturating_sub(position)).map_err(from_kernel(path))?;
        file.commit(attributes_to_kernel(attributes)).map_err(from_kernel(path))
    }

    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        self.note_named(path)?;
        let attributes = attributes_to_kernel(attributes);
        self.tree.create_dir(path.as_bytes(), attributes).map_err(from_kernel(path))
    }

    fn symlink(&mut self, path: &GuestPath, target: &[u8], attributes: Attributes) -> Result<()> {
        self.note_named(path)?;
        if target.is_empty() || target.contains(&0) || target.len() > uvm_guest::MAX_PATH {
            return Err(Error::new(ErrorKind::Invalid, format!("{path} cannot link to such a target")));
        }
        let attributes = attributes_to_kernel(attributes);
        self.tree.symlink(path.as_bytes(), target, attributes).map_err(from_kernel(path))
    }

    fn hard_link(&mut self, path: &GuestPath, existing: &GuestPath) -> Result<()> {
        self.note_named(path)?;
        self.note_named(existing)?;
        self.tree.hard_link(path.as_bytes(), existing.as_bytes()).map_err(from_kernel(path))
    }

    fn create_special(&mut self, path: &GuestPath, kind: Kind, attributes: Attributes) -> Result<()> {
        self.note_named(path)?;
        let kind = match kind {
            Kind::CharDevice { major, minor } => FileType::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => FileType::BlockDevice { major, minor },
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
            _ => return Err(Error::new(ErrorKind::Invalid, format!("{path} is to be no special file"))),
        };
        let attributes = attributes_to_kernel(attributes);
        self.tree.create_special(path.as_bytes(), kind, attributes).map_err(from_kernel(path))
    }

    fn remove(&mut self, path: &GuestPath) -> Result<()> {
        self.note_named(path)?;
        self.tree.remove(path.as_bytes()).map_err(from_kernel(path))
    }

    fn rename(&mut self, from: &GuestPath, to: &GuestPath) -> Result<()> {
        self.note_named(from)?;
        self.note_named(to)?;
        if to.is_within(from) && self.metadata(from)?.is_some() {
            return Err(Error::new(ErrorKind::Invalid, format!("{from} cannot move to {to}, into itself")));
        }
        self.tree.rename(from.as_bytes(), to.as_bytes()).map_err(from_kernel(from))
    }

    fn set_attributes(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        self.note(path)?;
        let attributes = attributes_to_kernel(attributes);
        self.tree.set_attributes(path.as_bytes(), attributes).map_err(from_kernel(path))
    }

    fn set_xattr(&mut self, path: &GuestPath, name: &[u8], value: &[u8]) -> Result<()> {
        self.note(path)?;
        self.tree.set_xattr(path.as_bytes(), name, value).map_err(from_kernel(path))
    }

    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut xattrs = self.tree.xattrs(path.as_bytes()).map_err(from_kernel(path))?;
        xattrs.sort();
        Ok(xattrs)
    }
}
