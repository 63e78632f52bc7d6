//! File systems being built become one [`GuestTree`]: each at its mount point, the root at the top.

mod ext4;
mod fat;

use std::borrow::Cow;
use std::io::{Read, Write};
use std::ops::Range;

use uvm_guest::{Attributes, Error, ErrorKind, GuestPath, GuestTree, Kind, Metadata, Result, create_dir_all};

use self::ext4::Ext4Tree;
use self::fat::FatTree;

/// Bytes read from a file under construction at a time.
const COPY: usize = 1 << 20;

/// One file system under construction.
pub(crate) enum Volume {
    Ext4(Box<Ext4Tree>),
    Fat(Box<FatTree>),
}

impl From<uvm_disk::ext4::Ext4Builder> for Volume {
    fn from(builder: uvm_disk::ext4::Ext4Builder) -> Self {
        Self::Ext4(Box::new(Ext4Tree::new(builder)))
    }
}

impl From<uvm_disk::fat::FatBuilder> for Volume {
    fn from(builder: uvm_disk::fat::FatBuilder) -> Self {
        Self::Fat(Box::new(FatTree::new(builder)))
    }
}

impl Volume {
    fn tree(&self) -> &dyn GuestTree {
        match self {
            Self::Ext4(tree) => &**tree,
            Self::Fat(tree) => &**tree,
        }
    }

    fn tree_mut(&mut self) -> &mut dyn GuestTree {
        match self {
            Self::Ext4(tree) => &mut **tree,
            Self::Fat(tree) => &mut **tree,
        }
    }

    /// A file from its beginning, and its size.
    fn reader(&self, path: &GuestPath) -> Result<(Box<dyn Read + '_>, u64)> {
        match self {
            Self::Ext4(tree) => tree.reader(path),
            Self::Fat(tree) => tree.reader(path),
        }
    }

    /// Writes everything that waits for the end.
    pub(crate) fn finish(self) -> uvm_disk::Result<()> {
        match self {
            Self::Ext4(tree) => tree.into_builder().finish().map(|_| ()),
            Self::Fat(tree) => tree.into_builder().finish().map(|_| ()),
        }
    }
}

/// A file system and where the guest mounts it.
pub(crate) struct Mounted {
    pub(crate) at: GuestPath,
    pub(crate) volume: Volume,
}

/// The file systems of a guest being built.
pub(crate) struct BuilderTree {
    /// Deepest mount point first, the root last.
    mounted: Vec<Mounted>,
}

/// Why something of the disk failed, told of a path.
fn from_disk(path: &GuestPath) -> impl FnOnce(uvm_disk::Error) -> Error + '_ {
    move |error| {
        use uvm_disk::ErrorKind as Disk;
        let kind = match error.kind() {
            Disk::NoSpace => ErrorKind::NoSpace,
            Disk::NotFound => ErrorKind::NotFound,
            Disk::Exists => ErrorKind::Exists,
            Disk::Source => ErrorKind::Source,
            Disk::Invalid => ErrorKind::Invalid,
            Disk::Unsupported => ErrorKind::Unsupported,
            Disk::Corrupt => ErrorKind::Corrupt,
            Disk::Io | Disk::VerificationFailed => ErrorKind::Io,
        };
        Error::with_source(kind, format!("building {path}"), error)
    }
}

fn missing(path: &GuestPath) -> Error {
    Error::new(ErrorKind::NotFound, format!("{path} does not exist"))
}

fn wrong_type(context: String) -> Error {
    Error::new(ErrorKind::WrongType, context)
}

/// A component before the last one is no directory.
fn no_directory(path: &GuestPath) -> Error {
    wrong_type(format!("a parent of {path} is no directory"))
}

/// The root of a file system has no name.
fn root_named() -> Error {
    Error::new(ErrorKind::Invalid, "the root of a file system cannot be created, moved or removed")
}

/// Of a buffer for a file of that size.
fn buffer_len(size: u64) -> usize {
    COPY.min(usize::try_from(size).unwrap_or(COPY)).max(1)
}

/// Contents that remember whether they ended early.
struct Contents<'c> {
    inner: &'c mut dyn Read,
    ended: bool,
}

impl Read for Contents<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.ended |= got == 0 && !buf.is_empty();
        Ok(got)
    }
}

/// Lets `write` stream `contents`; that they ended early is told apart from a stream that failed.
fn stream<T>(
    path: &GuestPath,
    contents: &mut dyn Read,
    write: impl FnOnce(&mut dyn Read) -> uvm_disk::Result<T>,
) -> Result<T> {
    let mut contents = Contents { inner: contents, ended: false };
    write(&mut contents).map_err(|error| match error.kind() {
        uvm_disk::ErrorKind::Source if contents.ended => {
            let context = format!("the contents of {path} ended early");
            Error::with_source(ErrorKind::Truncated, context, error)
        }
        _ => from_disk(path)(error),
    })
}

/// A whole file out of a reader of `size` bytes.
fn copy_out(path: &GuestPath, reader: &mut dyn Read, size: u64, sink: &mut dyn Write) -> Result<u64> {
    let mut buffer = vec![0; buffer_len(size)];
    let mut done = 0;
    while done < size {
        let got = reader
            .read(&mut buffer)
            .map_err(|error| Error::with_source(ErrorKind::Io, format!("reading {path}"), error))?;
        if got == 0 {
            return Err(Error::new(ErrorKind::Corrupt, format!("{path} ends before its size")));
        }
        sink.write_all(&buffer[..got])
            .map_err(|error| Error::with_source(ErrorKind::Source, format!("copying {path}"), error))?;
        done += got as u64;
    }
    Ok(size)
}

/// A whole file of at most `limit` bytes.
fn read_whole(path: &GuestPath, reader: &mut dyn Read, size: u64, limit: u64) -> Result<Vec<u8>> {
    if size > limit {
        let context = format!("{path} has {size} bytes, more than the {limit} that are read");
        return Err(Error::new(ErrorKind::TooLarge, context));
    }
    let mut contents = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    copy_out(path, reader, size, &mut contents)?;
    Ok(contents)
}

impl BuilderTree {
    /// The file systems as one tree. Every mount point is made in the file system above it.
    pub(crate) fn new(mut mounted: Vec<Mounted>, attributes: Attributes) -> Result<Self> {
        mounted.sort_by_key(|mounted| std::cmp::Reverse(mounted.at.components().count()));
        let points: Vec<GuestPath> =
            mounted.iter().rev().map(|mounted| mounted.at.clone()).filter(|at| !at.is_root()).collect();
        let mut tree = Self { mounted };
        for point in points {
            let above = tree.above(&point);
            let Mounted { at, volume } = &mut tree.mounted[above];
            let inside = beneath(at, &point)?;
            create_dir_all(volume.tree_mut(), &inside, attributes)?;
        }
        Ok(tree)
    }

    /// The file systems, when nothing more is to be changed.
    pub(crate) fn into_volumes(self) -> impl Iterator<Item = Volume> {
        self.mounted.into_iter().map(|mounted| mounted.volume)
    }

    /// A new file with the contents of another, wherever each of them lies.
    pub(crate) fn copy(&mut self, from: &GuestPath, to: &GuestPath, attributes: Attributes) -> Result<()> {
        let (source, target) = (self.holding(from), self.holding(to));
        if source == target {
            let Mounted { at, volume } = &mut self.mounted[target];
            let (source, target) = (beneath(at, from)?, beneath(at, to)?);
            return match volume {
                Volume::Fat(tree) => tree.copy(&source, &target, attributes),
                Volume::Ext4(_) => Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("copying {from} to {to} within one ext4 under construction"),
                )),
            };
        }
        let indices = [source, target];
        let [source, target] = self
            .mounted
            .get_disjoint_mut(indices)
            .map_err(|_| Error::new(ErrorKind::Invalid, "no file system is mounted"))?;
        let (from, to) = (beneath(&source.at, from)?, beneath(&target.at, to)?);
        let (mut reader, size) = source.volume.reader(&from)?;
        target.volume.tree_mut().write(&to, attributes, size, &mut reader)
    }

    /// Which file system holds `path`.
    fn holding(&self, path: &GuestPath) -> usize {
        self.mounted
            .iter()
            .position(|mounted| path.is_within(&mounted.at))
            .unwrap_or(self.mounted.len().saturating_sub(1))
    }

    /// Which file system holds the directory that `point` is mounted on.
    fn above(&self, point: &GuestPath) -> usize {
        self.holding(&point.parent().unwrap_or_default())
    }

    fn part<'p>(&self, path: &'p GuestPath) -> Result<(&dyn GuestTree, Cow<'p, GuestPath>)> {
        let Mounted { at, volume } = &self.mounted[self.holding(path)];
        Ok((volume.tree(), beneath(at, path)?))
    }

    fn part_mut<'p>(&mut self, path: &'p GuestPath) -> Result<(&mut dyn GuestTree, Cow<'p, GuestPath>)> {
        let index = self.holding(path);
        let Mounted { at, volume } = &mut self.mounted[index];
        Ok((volume.tree_mut(), beneath(at, path)?))
    }

    /// Whether a file system is mounted at `path` or beneath it.
    fn holds_mount(&self, path: &GuestPath) -> bool {
        !path.is_root() && self.mounted.iter().any(|mounted| mounted.at.is_within(path))
    }

    /// Both paths beneath the mount point they share.
    fn pair<'p>(
        &mut self,
        what: &str,
        first: &'p GuestPath,
        second: &'p GuestPath,
    ) -> Result<(&mut dyn GuestTree, Cow<'p, GuestPath>, Cow<'p, GuestPath>)> {
        let index = self.holding(first);
        if index != self.holding(second) {
            let context = format!("{what} {first} and {second}, which are on two file systems");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let Mounted { at, volume } = &mut self.mounted[index];
        Ok((volume.tree_mut(), beneath(at, first)?, beneath(at, second)?))
    }
}

/// `path` as the file system mounted at `at` knows it.
fn beneath<'p>(at: &GuestPath, path: &'p GuestPath) -> Result<Cow<'p, GuestPath>> {
    if at.is_root() {
        return Ok(Cow::Borrowed(path));
    }
    let rest = path.as_bytes().get(at.as_bytes().len()..).unwrap_or_default();
    GuestPath::absolute(rest).map(Cow::Owned)
}

impl GuestTree for BuilderTree {
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>> {
        let (tree, path) = self.part(path)?;
        tree.metadata(&path)
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>> {
        let (tree, path) = self.part(path)?;
        tree.list(&path)
    }

    fn read(&self, path: &GuestPath, limit: u64) -> Result<Vec<u8>> {
        let (tree, path) = self.part(path)?;
        tree.read(&path, limit)
    }

    fn copy_out(&self, path: &GuestPath, sink: &mut dyn Write) -> Result<u64> {
        let (tree, path) = self.part(path)?;
        tree.copy_out(&path, sink)
    }

    fn read_link(&self, path: &GuestPath) -> Result<Vec<u8>> {
        let (tree, path) = self.part(path)?;
        tree.read_link(&path)
    }

    fn write(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.write(&path, attributes, size, contents)
    }

    fn write_sparse(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        data: &[Range<u64>],
        contents: &mut dyn Read,
    ) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.write_sparse(&path, attributes, size, data, contents)
    }

    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.create_dir(&path, attributes)
    }

    fn symlink(&mut self, path: &GuestPath, target: &[u8], attributes: Attributes) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.symlink(&path, target, attributes)
    }

    fn hard_link(&mut self, path: &GuestPath, existing: &GuestPath) -> Result<()> {
        let (tree, path, existing) = self.pair("a hard link between", path, existing)?;
        tree.hard_link(&path, &existing)
    }

    fn create_special(&mut self, path: &GuestPath, kind: Kind, attributes: Attributes) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.create_special(&path, kind, attributes)
    }

    fn remove(&mut self, path: &GuestPath) -> Result<()> {
        if self.holds_mount(path) {
            return Err(Error::new(ErrorKind::Fixed, format!("a file system is mounted at {path}")));
        }
        let (tree, path) = self.part_mut(path)?;
        tree.remove(&path)
    }

    fn rename(&mut self, from: &GuestPath, to: &GuestPath) -> Result<()> {
        if self.holds_mount(from) {
            return Err(Error::new(ErrorKind::Unsupported, format!("a file system is mounted at {from}")));
        }
        let (tree, from, to) = self.pair("renaming between", from, to)?;
        tree.rename(&from, &to)
    }

    fn set_attributes(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.set_attributes(&path, attributes)
    }

    fn set_xattr(&mut self, path: &GuestPath, name: &[u8], value: &[u8]) -> Result<()> {
        let (tree, path) = self.part_mut(path)?;
        tree.set_xattr(&path, name, value)
    }

    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (tree, path) = self.part(path)?;
        tree.xattrs(&path)
    }
}
