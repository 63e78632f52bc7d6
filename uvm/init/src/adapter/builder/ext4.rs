//! An ext4 under construction as a [`GuestTree`].

use std::io::{Read, Write};
use std::ops::Range;

use uvm_disk::ext4::{Attributes as DiskAttributes, Ext4Builder, Ino, NodeKind, Timestamp as DiskTimestamp};
use uvm_guest::{
    Attributes, Error, ErrorKind, GuestPath, GuestTree, Kind, MAX_PATH, Metadata, Result, Timestamp,
};

use super::{copy_out, from_disk, missing, no_directory, read_whole, root_named, stream, wrong_type};

/// Name of a file that will take another's place.
const UNFINISHED: &[u8] = b".uvm-unfinished";
/// Every ext4 has it in its root, and the builder never lets it go.
const LOST_FOUND: &[u8] = b"lost+found";

/// The one file system.
pub(crate) struct Ext4Tree {
    builder: Ext4Builder,
}

/// The directory a path leads to, and the name in it; no name for the root.
struct Place<'p> {
    dir: Ino,
    name: Option<&'p [u8]>,
}

fn attributes_to_disk(attributes: Attributes) -> DiskAttributes {
    DiskAttributes {
        mode: u16::try_from(attributes.mode & 0o7777).unwrap_or_default(),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: DiskTimestamp { seconds: attributes.mtime.seconds, nanoseconds: attributes.mtime.nanoseconds },
    }
}

fn attributes_from_disk(attributes: DiskAttributes) -> Attributes {
    Attributes {
        mode: u32::from(attributes.mode),
        uid: attributes.uid,
        gid: attributes.gid,
        mtime: Timestamp { seconds: attributes.mtime.seconds, nanoseconds: attributes.mtime.nanoseconds },
    }
}

impl Ext4Tree {
    pub(super) fn new(builder: Ext4Builder) -> Self {
        Self { builder }
    }

    pub(super) fn into_builder(self) -> Ext4Builder {
        self.builder
    }

    /// A file from its beginning, and its size.
    pub(super) fn reader(&self, path: &GuestPath) -> Result<(Box<dyn Read + '_>, u64)> {
        let (ino, size) = self.file(path)?;
        Ok((Box::new(FileReader { builder: &self.builder, ino, offset: 0 }), size))
    }

    /// `None` where a directory on the way is missing.
    fn find_place<'p>(&self, path: &'p GuestPath) -> Result<Option<Place<'p>>> {
        let mut dir = self.builder.root();
        let mut names = path.components().peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Ok(Some(Place { dir, name: Some(name) }));
            }
            let Some(next) = self.builder.lookup(dir, name).map_err(from_disk(path))? else {
                return Ok(None);
            };
            match self.builder.kind(next).map_err(from_disk(path))? {
                NodeKind::Directory => dir = next,
                NodeKind::Symlink => {
                    let context = format!("{path} leads through a symbolic link");
                    return Err(Error::new(ErrorKind::SymlinkInPath, context));
                }
                _ => return Err(no_directory(path)),
            }
        }
        Ok(Some(Place { dir, name: None }))
    }

    /// A place for an entry, not the root.
    fn named<'p>(&self, path: &'p GuestPath) -> Result<(Ino, &'p [u8])> {
        let Place { dir, name } = self.find_place(path)?.ok_or_else(|| missing(path))?;
        Ok((dir, name.ok_or_else(root_named)?))
    }

    fn find(&self, path: &GuestPath) -> Result<Option<Ino>> {
        Ok(match self.find_place(path)? {
            None => None,
            Some(Place { dir, name: None }) => Some(dir),
            Some(Place { dir, name: Some(name) }) => {
                self.builder.lookup(dir, name).map_err(from_disk(path))?
            }
        })
    }

    fn existing(&self, path: &GuestPath) -> Result<Ino> {
        self.find(path)?.ok_or_else(|| missing(path))
    }

    fn kind(&self, ino: Ino, path: &GuestPath) -> Result<Kind> {
        Ok(match self.builder.kind(ino).map_err(from_disk(path))? {
            NodeKind::File => Kind::File { size: self.builder.size(ino).map_err(from_disk(path))? },
            NodeKind::Directory => Kind::Directory,
            NodeKind::Symlink => Kind::Symlink,
            NodeKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            NodeKind::Fifo => Kind::Fifo,
            NodeKind::Socket => Kind::Socket,
        })
    }

    fn file(&self, path: &GuestPath) -> Result<(Ino, u64)> {
        let ino = self.existing(path)?;
        match self.kind(ino, path)? {
            Kind::File { size } => Ok((ino, size)),
            _ => Err(wrong_type(format!("{path} is no regular file"))),
        }
    }

    /// A name that nothing in the directory has.
    fn unused_name(&self, dir: Ino, path: &GuestPath) -> Result<Vec<u8>> {
        let mut name = UNFINISHED.to_vec();
        // A directory ends, and so does this.
        while self.builder.lookup(dir, &name).map_err(from_disk(path))?.is_some() {
            name.push(b'_');
        }
        Ok(name)
    }
}

struct FileReader<'b> {
    builder: &'b Ext4Builder,
    ino: Ino,
    offset: u64,
}

impl Read for FileReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.builder.read_at(self.ino, self.offset, buf).map_err(std::io::Error::other)?;
        self.offset += got as u64;
        Ok(got)
    }
}

impl GuestTree for Ext4Tree {
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>> {
        let Some(ino) = self.find(path)? else { return Ok(None) };
        let attributes = attributes_from_disk(self.builder.attributes(ino).map_err(from_disk(path))?);
        Ok(Some(Metadata { kind: self.kind(ino, path)?, attributes }))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>> {
        let ino = self.existing(path)?;
        if self.kind(ino, path)? != Kind::Directory {
            return Err(wrong_type(format!("{path} is no directory")));
        }
        let entries = self.builder.list(ino).map_err(from_disk(path))?;
        let mut list = Vec::with_capacity(entries.len());
        for (name, ino, _) in entries {
            list.push((name, self.kind(ino, path)?));
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
        let ino = self.existing(path)?;
        if self.kind(ino, path)? != Kind::Symlink {
            return Err(wrong_type(format!("{path} is no symbolic link")));
        }
        self.builder.read_link(ino).map_err(from_disk(path))
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
        let (dir, name) = self.named(path)?;
        let attributes = attributes_to_disk(attributes);
        let Some(old) = self.builder.lookup(dir, name).map_err(from_disk(path))? else {
            return stream(path, contents, |contents| {
                self.builder.create_sparse_file(dir, name, attributes, size, data, contents).map(|_| ())
            });
        };
        if self.kind(old, path)? == Kind::Directory {
            return Err(wrong_type(format!("{path} is a directory")));
        }
        // What is there goes when the new contents are whole.
        let unfinished = self.unused_name(dir, path)?;
        stream(path, contents, |contents| {
            self.builder.create_sparse_file(dir, &unfinished, attributes, size, data, contents)
        })?;
        self.builder.rename(dir, &unfinished, dir, name).map_err(from_disk(path))
    }

    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let (dir, name) = self.named(path)?;
        let created = self.builder.create_dir(dir, name, attributes_to_disk(attributes));
        created.map(|_| ()).map_err(from_disk(path))
    }

    fn symlink(&mut self, path: &GuestPath, target: &[u8], attributes: Attributes) -> Result<()> {
        if target.is_empty() || target.contains(&0) || target.len() > MAX_PATH {
            return Err(Error::new(ErrorKind::Invalid, format!("{path} cannot link to such a target")));
        }
        let (dir, name) = self.named(path)?;
        let attributes = attributes_to_disk(Attributes { mode: 0o777, ..attributes });
        let created = self.builder.create_symlink(dir, name, attributes, target);
        created.map(|_| ()).map_err(from_disk(path))
    }

    fn hard_link(&mut self, path: &GuestPath, existing: &GuestPath) -> Result<()> {
        let ino = self.existing(existing)?;
        let (dir, name) = self.named(path)?;
        if self.kind(ino, existing)? == Kind::Directory {
            return Err(wrong_type(format!("{existing} is a directory")));
        }
        self.builder.link(dir, name, ino).map_err(from_disk(path))
    }

    fn create_special(&mut self, path: &GuestPath, kind: Kind, attributes: Attributes) -> Result<()> {
        let kind = match kind {
            Kind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            Kind::Fifo => NodeKind::Fifo,
            Kind::Socket => NodeKind::Socket,
            _ => return Err(Error::new(ErrorKind::Invalid, format!("{path} is to be no special file"))),
        };
        let (dir, name) = self.named(path)?;
        let created = self.builder.create_special(dir, name, attributes_to_disk(attributes), kind);
        created.map(|_| ()).map_err(from_disk(path))
    }

    fn remove(&mut self, path: &GuestPath) -> Result<()> {
        let ino = self.existing(path)?;
        let (dir, name) = self.named(path)?;
        let is_directory = self.kind(ino, path)? == Kind::Directory;
        if is_directory && !self.builder.list(ino).map_err(from_disk(path))?.is_empty() {
            return Err(Error::new(ErrorKind::NotEmpty, format!("{path} is not empty")));
        }
        if is_directory && dir == self.builder.root() && name == LOST_FOUND {
            return Err(Error::new(ErrorKind::Fixed, format!("{path} stays: e2fsck wants it")));
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
        let ino = self.existing(path)?;
        let mode = if self.kind(ino, path)? == Kind::Symlink { 0o777 } else { attributes.mode };
        let attributes = attributes_to_disk(Attributes { mode, ..attributes });
        self.builder.set_attributes(ino, attributes).map_err(from_disk(path))
    }

    fn set_xattr(&mut self, path: &GuestPath, name: &[u8], value: &[u8]) -> Result<()> {
        let ino = self.existing(path)?;
        self.builder.set_xattr(ino, name, value).map_err(from_disk(path))
    }

    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let ino = self.existing(path)?;
        let mut xattrs = self.builder.xattrs(ino).map_err(from_disk(path))?;
        xattrs.sort();
        Ok(xattrs)
    }
}
