//! A FAT volume under construction as a [`GuestTree`].
//!
//! As where the kernel mounts one: everything is root's, with mode 0755, and times are even seconds from 1980. Owners and
//! modes are dropped without a word; links, special files and extended attributes are refused. Names are looked up in
//! any case, and two that differ in case alone are refused: nothing is removed by a name it does not have, for what takes
//! its place would be another file everywhere else.

use std::io::{Read, Write};

use uvm_disk::fat::{FatBuilder, FatKind, FatNode};
use uvm_guest::{Attributes, Error, ErrorKind, GuestPath, GuestTree, Kind, Metadata, Result, Timestamp};

use super::{copy_out, from_disk, missing, no_directory, read_whole, root_named, stream, wrong_type};

/// What the kernel shows by default.
const MODE: u32 = 0o755;

/// The one volume.
pub(crate) struct FatTree {
    builder: FatBuilder,
}

/// The directory a path leads to, and the name in it; no name for the root.
struct Place<'p> {
    dir: FatNode,
    name: Option<&'p [u8]>,
}

fn seconds(attributes: Attributes) -> u64 {
    u64::try_from(attributes.mtime.seconds).unwrap_or(0)
}

fn unsupported(path: &GuestPath, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{path}: FAT holds no {what}"))
}

fn text<'n>(path: &GuestPath, name: &'n [u8]) -> Result<&'n str> {
    std::str::from_utf8(name)
        .map_err(|_| Error::new(ErrorKind::Invalid, format!("{path}: a name on FAT has to be UTF-8")))
}

impl FatTree {
    pub(super) fn new(builder: FatBuilder) -> Self {
        Self { builder }
    }

    pub(super) fn into_builder(self) -> FatBuilder {
        self.builder
    }

    /// A file from its beginning, and its size.
    pub(super) fn reader(&self, path: &GuestPath) -> Result<(Box<dyn Read + '_>, u64)> {
        let (node, size) = self.file(path)?;
        Ok((Box::new(FileReader { builder: &self.builder, node, offset: 0 }), size))
    }

    /// A new file with the contents of another.
    pub(super) fn copy(&mut self, from: &GuestPath, to: &GuestPath, attributes: Attributes) -> Result<()> {
        let (node, _) = self.file(from)?;
        let (dir, name) = self.named(to)?;
        let copied = self.builder.copy_file(node, dir, name, seconds(attributes));
        copied.map(|_| ()).map_err(from_disk(to))
    }

    /// `None` where a directory on the way is missing.
    fn find_place<'p>(&self, path: &'p GuestPath) -> Result<Option<Place<'p>>> {
        let mut dir = self.builder.root();
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Ok(Some(Place { dir, name: Some(name) }));
            }
            let Some(next) = self.lookup(dir, name, path)? else { return Ok(None) };
            if self.builder.kind(next).map_err(from_disk(path))? != FatKind::Directory {
                return Err(no_directory(path));
            }
            dir = next;
        }
        Ok(Some(Place { dir, name: None }))
    }

    /// A name that is not UTF-8 is not there.
    fn lookup(&self, dir: FatNode, name: &[u8], path: &GuestPath) -> Result<Option<FatNode>> {
        let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
        Ok(self.builder.lookup(dir, name).map_err(from_disk(path))?.map(|(node, _)| node))
    }

    /// A place for an entry, not the root.
    fn named<'p>(&self, path: &'p GuestPath) -> Result<(FatNode, &'p str)> {
        let Place { dir, name } = self.find_place(path)?.ok_or_else(|| missing(path))?;
        Ok((dir, text(path, name.ok_or_else(root_named)?)?))
    }

    fn find(&self, path: &GuestPath) -> Result<Option<FatNode>> {
        Ok(match self.find_place(path)? {
            None => None,
            Some(Place { dir, name: None }) => Some(dir),
            Some(Place { dir, name: Some(name) }) => self.lookup(dir, name, path)?,
        })
    }

    fn existing(&self, path: &GuestPath) -> Result<FatNode> {
        self.find(path)?.ok_or_else(|| missing(path))
    }

    /// Refuses a path that leads to an entry by a name in another case, its own or that of a directory on the way.
    fn expect_same_case(&self, path: &GuestPath) -> Result<()> {
        let mut dir = self.builder.root();
        for name in path.components() {
            let name = text(path, name)?;
            let found = self.builder.lookup(dir, name).map_err(from_disk(path))?;
            let (node, there) = found.ok_or_else(|| missing(path))?;
            if there != name {
                let context = format!(
                    "{path}: {name:?} and {there:?} differ in case alone; FAT has one of them in a directory"
                );
                return Err(Error::new(ErrorKind::Exists, context));
            }
            dir = node;
        }
        Ok(())
    }

    fn kind(&self, node: FatNode, path: &GuestPath) -> Result<Kind> {
        Ok(match self.builder.kind(node).map_err(from_disk(path))? {
            FatKind::File { size } => Kind::File { size: size.into() },
            FatKind::Directory => Kind::Directory,
        })
    }

    fn file(&self, path: &GuestPath) -> Result<(FatNode, u64)> {
        let node = self.existing(path)?;
        match self.kind(node, path)? {
            Kind::File { size } => Ok((node, size)),
            _ => Err(wrong_type(format!("{path} is no regular file"))),
        }
    }
}

struct FileReader<'b> {
    builder: &'b FatBuilder,
    node: FatNode,
    offset: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.builder.read_at(self.node, self.offset, buf).map_err(std::io::Error::other)?;
        self.offset += got as u64;
        Ok(got)
    }
}

impl GuestTree for FatTree {
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>> {
        let Some(node) = self.find(path)? else { return Ok(None) };
        let seconds = self.builder.mtime(node).map_err(from_disk(path))?;
        let mtime = Timestamp { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanoseconds: 0 };
        Ok(Some(Metadata { kind: self.kind(node, path)?, attributes: Attributes::root(MODE, mtime) }))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>> {
        let node = self.existing(path)?;
        if self.kind(node, path)? != Kind::Directory {
            return Err(wrong_type(format!("{path} is no directory")));
        }
        let mut list = Vec::new();
        for (name, node) in self.builder.list(node).map_err(from_disk(path))? {
            list.push((name.as_bytes().to_vec(), self.kind(node, path)?));
        }
        list.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(list)
    }

    fn read(&self, path: &GuestPath, limit: u64) -> Result<Vec<u8>> {
        let (mut reader, size) = self.reader(path)?;
        read_whole(path, &mut reader, size, limit)
    }

    fn copy_out(&self, path: &GuestPath, sink: &mut dyn Write) -> Result<u64> {
        let (mut reader, size) = self.reader(path)?;
        copy_out(path, &mut reader, size, sink)
    }

    fn read_link(&self, path: &GuestPath) -> Result<Vec<u8>> {
        self.existing(path)?;
        Err(wrong_type(format!("{path} is no symbolic link")))
    }

    fn write(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<()> {
        let (dir, name) = self.named(path)?;
        if let Some(old) = self.lookup(dir, name.as_bytes(), path)?
            && self.kind(old, path)? == Kind::Directory
        {
            return Err(wrong_type(format!("{path} is a directory")));
        }
        stream(path, contents, |contents| {
            self.builder.create_file(dir, name, size, contents, seconds(attributes)).map(|_| ())
        })
    }

    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let (dir, name) = self.named(path)?;
        let created = self.builder.create_dir(dir, name, seconds(attributes));
        created.map(|_| ()).map_err(from_disk(path))
    }

    fn symlink(&mut self, path: &GuestPath, _: &[u8], _: Attributes) -> Result<()> {
        Err(unsupported(path, "symbolic links"))
    }

    fn hard_link(&mut self, path: &GuestPath, _: &GuestPath) -> Result<()> {
        Err(unsupported(path, "hard links"))
    }

    fn create_special(&mut self, path: &GuestPath, _: Kind, _: Attributes) -> Result<()> {
        Err(unsupported(path, "device nodes, pipes or sockets"))
    }

    fn remove(&mut self, path: &GuestPath) -> Result<()> {
        let node = self.existing(path)?;
        self.expect_same_case(path)?;
        let (dir, name) = self.named(path)?;
        if self.kind(node, path)? == Kind::Directory
            && self.builder.list(node).map_err(from_disk(path))?.next().is_some()
        {
            return Err(Error::new(ErrorKind::NotEmpty, format!("{path} is not empty")));
        }
        self.builder.unlink(dir, name).map_err(from_disk(path))
    }

    fn rename(&mut self, from: &GuestPath, to: &GuestPath) -> Result<()> {
        self.existing(from)?;
        let (from_dir, from_name) = self.named(from)?;
        let (to_dir, to_name) = self.named(to)?;
        if to.is_within(from) {
            return Err(Error::new(ErrorKind::Invalid, format!("{from} cannot move to {to}, into itself")));
        }
        self.builder.rename(from_dir, from_name, to_dir, to_name).map_err(from_disk(from))
    }

    fn set_attributes(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let node = self.existing(path)?;
        self.builder.set_mtime(node, seconds(attributes)).map_err(from_disk(path))
    }

    fn set_xattr(&mut self, path: &GuestPath, _: &[u8], _: &[u8]) -> Result<()> {
        self.existing(path)?;
        Err(unsupported(path, "extended attributes"))
    }

    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.existing(path)?;
        Ok(Vec::new())
    }
}
