//! File systems being built become one [`GuestTree`]: each at its mount point, the root at the top.

use std::io::{Read, Write};

use uvm_disk::ext4::{Attributes as DiskAttributes, Ext4Builder, Ino, NodeKind, Timestamp as DiskTimestamp};
use uvm_guest::{Attributes, Error, ErrorKind, GuestPath, GuestTree, Kind, Metadata, Result, Timestamp};

/// Bytes read from a file under construction at a time.
const COPY: usize = 1 << 20;

/// A file system and where the guest mounts it.
pub(crate) struct Mounted {
    pub(crate) at: GuestPath,
    pub(crate) builder: Ext4Builder,
}

/// The file systems of a guest being built.
pub(crate) struct BuilderTree {
    /// Deepest mount point first, the root last.
    mounted: Vec<Mounted>,
}

/// Where a path leads: which file system, the directory in it, and the name in that directory; no name for
/// the root of a file system.
struct Place {
    mount: usize,
    dir: Ino,
    name: Option<Vec<u8>>,
}

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

impl BuilderTree {
    /// The file systems as one tree. Every mount point is made in the file system above it.
    pub(crate) fn new(mut mounted: Vec<Mounted>, attributes: Attributes) -> Result<Self> {
        mounted.sort_by_key(|mounted| std::cmp::Reverse(mounted.at.components().count()));
        let points: Vec<GuestPath> =
            mounted.iter().rev().map(|mounted| mounted.at.clone()).filter(|at| !at.is_root()).collect();
        let mut tree = Self { mounted };
        for point in points {
            let above = tree.above(&point);
            let mut dir = tree.mounted[above].builder.root();
            let skip = tree.mounted[above].at.components().count();
            for name in point.components().skip(skip) {
                let builder = &mut tree.mounted[above].builder;
                dir = match builder.lookup(dir, name).map_err(from_disk(&point))? {
                    Some(found) => found,
                    None => builder
                        .create_dir(dir, name, attributes_to_disk(attributes))
                        .map_err(from_disk(&point))?,
                };
            }
        }
        Ok(tree)
    }

    /// The contents of a file, from its beginning.
    pub(crate) fn reader(&self, path: &GuestPath) -> Result<impl Read + '_> {
        let (builder, ino, _) = self.file(path)?;
        Ok(FileReader { builder, ino, offset: 0 })
    }

    /// The file systems, when nothing more is to be changed.
    pub(crate) fn into_builders(self) -> impl Iterator<Item = Ext4Builder> {
        self.mounted.into_iter().map(|mounted| mounted.builder)
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

    /// `None` where a directory on the way is missing.
    fn find_place(&self, path: &GuestPath) -> Result<Option<Place>> {
        let mount = self.holding(path);
        let Mounted { at, builder } = &self.mounted[mount];
        let names: Vec<&[u8]> = path.components().skip(at.components().count()).collect();
        let mut dir = builder.root();
        let Some((last, parents)) = names.split_last() else {
            return Ok(Some(Place { mount, dir, name: None }));
        };
        for name in parents {
            let Some(next) = builder.lookup(dir, name).map_err(from_disk(path))? else { return Ok(None) };
            match builder.kind(next).map_err(from_disk(path))? {
                NodeKind::Directory => dir = next,
                NodeKind::Symlink => {
                    return Err(Error::new(
                        ErrorKind::SymlinkInPath,
                        format!("{path} leads through a symbolic link"),
                    ));
                }
                _ => {
                    return Err(Error::new(
                        ErrorKind::WrongType,
                        format!("a parent of {path} is no directory"),
                    ));
                }
            }
        }
        Ok(Some(Place { mount, dir, name: Some(last.to_vec()) }))
    }

    fn place(&self, path: &GuestPath) -> Result<Place> {
        self.find_place(path)?.ok_or_else(|| missing(path))
    }

    /// A place for an entry, not the root of a file system.
    fn named(&self, path: &GuestPath) -> Result<(usize, Ino, Vec<u8>)> {
        let Place { mount, dir, name } = self.place(path)?;
        let name = name.ok_or_else(|| {
            Error::new(ErrorKind::WrongType, format!("{path} is the root of a file system"))
        })?;
        Ok((mount, dir, name))
    }

    fn find(&self, path: &GuestPath) -> Result<Option<(usize, Ino)>> {
        let Some(place) = self.find_place(path)? else { return Ok(None) };
        Ok(match place.name {
            None => Some((place.mount, place.dir)),
            Some(name) => self.mounted[place.mount]
                .builder
                .lookup(place.dir, &name)
                .map_err(from_disk(path))?
                .map(|ino| (place.mount, ino)),
        })
    }

    fn existing(&self, path: &GuestPath) -> Result<(&Ext4Builder, Ino)> {
        let (mount, ino) = self.find(path)?.ok_or_else(|| missing(path))?;
        Ok((&self.mounted[mount].builder, ino))
    }

    fn kind_of(builder: &Ext4Builder, ino: Ino, path: &GuestPath) -> Result<Kind> {
        Ok(match builder.kind(ino).map_err(from_disk(path))? {
            NodeKind::File => Kind::File { size: builder.size(ino).map_err(from_disk(path))? },
            NodeKind::Directory => Kind::Directory,
            NodeKind::Symlink => Kind::Symlink,
            NodeKind::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            NodeKind::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            NodeKind::Fifo => Kind::Fifo,
            NodeKind::Socket => Kind::Socket,
        })
    }

    fn file(&self, path: &GuestPath) -> Result<(&Ext4Builder, Ino, u64)> {
        let (builder, ino) = self.existing(path)?;
        match Self::kind_of(builder, ino, path)? {
            Kind::File { size } => Ok((builder, ino, size)),
            _ => Err(Error::new(ErrorKind::WrongType, format!("{path} is no regular file"))),
        }
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

fn missing(path: &GuestPath) -> Error {
    Error::new(ErrorKind::NotFound, format!("{path} does not exist"))
}

impl GuestTree for BuilderTree {
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>> {
        let Some((mount, ino)) = self.find(path)? else { return Ok(None) };
        let builder = &self.mounted[mount].builder;
        let attributes = attributes_from_disk(builder.attributes(ino).map_err(from_disk(path))?);
        Ok(Some(Metadata { kind: Self::kind_of(builder, ino, path)?, attributes }))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>> {
        let (builder, ino) = self.existing(path)?;
        let entries = builder.list(ino).map_err(from_disk(path))?;
        let mut list = Vec::with_capacity(entries.len());
        for (name, ino, _) in entries {
            let kind = Self::kind_of(builder, ino, path)?;
            list.push((name, kind));
        }
        list.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(list)
    }

    fn read(&self, path: &GuestPath, limit: u64) -> Result<Vec<u8>> {
        let (_, _, size) = self.file(path)?;
        if size > limit {
            let context = format!("{path} has {size} bytes, more than the {limit} that are read");
            return Err(Error::new(ErrorKind::TooLarge, context));
        }
        let mut contents = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        self.copy_out(path, &mut contents)?;
        Ok(contents)
    }

    fn copy_out(&self, path: &GuestPath, sink: &mut dyn Write) -> Result<u64> {
        let (builder, ino, size) = self.file(path)?;
        let mut buffer = vec![0; COPY.min(usize::try_from(size).unwrap_or(COPY)).max(1)];
        let mut offset = 0;
        while offset < size {
            let got = builder.read_at(ino, offset, &mut buffer).map_err(from_disk(path))?;
            if got == 0 {
                return Err(Error::new(ErrorKind::Corrupt, format!("{path} ends before its size")));
            }
            sink.write_all(&buffer[..got])
                .map_err(|error| Error::with_source(ErrorKind::Source, format!("copying {path}"), error))?;
            offset += got as u64;
        }
        Ok(size)
    }

    fn read_link(&self, path: &GuestPath) -> Result<Vec<u8>> {
        let (builder, ino) = self.existing(path)?;
        builder.read_link(ino).map_err(from_disk(path))
    }

    fn write(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<()> {
        let (mount, dir, name) = self.named(path)?;
        let builder = &mut self.mounted[mount].builder;
        if let Some(old) = builder.lookup(dir, &name).map_err(from_disk(path))? {
            if builder.kind(old).map_err(from_disk(path))? == NodeKind::Directory {
                return Err(Error::new(ErrorKind::WrongType, format!("{path} is a directory")));
            }
            builder.unlink(dir, &name).map_err(from_disk(path))?;
        }
        builder
            .create_file(dir, &name, attributes_to_disk(attributes), size, contents)
            .map(|_| ())
            .map_err(from_disk(path))
    }

    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let (mount, dir, name) = self.named(path)?;
        let builder = &mut self.mounted[mount].builder;
        builder.create_dir(dir, &name, attributes_to_disk(attributes)).map(|_| ()).map_err(from_disk(path))
    }

    fn symlink(&mut self, path: &GuestPath, target: &[u8], attributes: Attributes) -> Result<()> {
        let (mount, dir, name) = self.named(path)?;
        let builder = &mut self.mounted[mount].builder;
        builder
            .create_symlink(dir, &name, attributes_to_disk(attributes), target)
            .map(|_| ())
            .map_err(from_disk(path))
    }

    fn hard_link(&mut self, path: &GuestPath, existing: &GuestPath) -> Result<()> {
        let (from, ino) = self.find(existing)?.ok_or_else(|| missing(existing))?;
        let (mount, dir, name) = self.named(path)?;
        if from != mount {
            let context = format!("a hard link {path} to {existing}, which is on another file system");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        self.mounted[mount].builder.link(dir, &name, ino).map_err(from_disk(path))
    }

    fn create_special(&mut self, path: &GuestPath, kind: Kind, attributes: Attributes) -> Result<()> {
        let kind = match kind {
            Kind::CharDevice { major, minor } => NodeKind::CharDevice { major, minor },
            Kind::BlockDevice { major, minor } => NodeKind::BlockDevice { major, minor },
            Kind::Fifo => NodeKind::Fifo,
            Kind::Socket => NodeKind::Socket,
            _ => return Err(Error::new(ErrorKind::WrongType, format!("{path} is no special file"))),
        };
        let (mount, dir, name) = self.named(path)?;
        let builder = &mut self.mounted[mount].builder;
        builder
            .create_special(dir, &name, attributes_to_disk(attributes), kind)
            .map(|_| ())
            .map_err(from_disk(path))
    }

    fn remove(&mut self, path: &GuestPath) -> Result<()> {
        let (mount, dir, name) = self.named(path)?;
        if self.mounted.iter().any(|mounted| mounted.at.is_within(path)) {
            return Err(Error::new(ErrorKind::WrongType, format!("a file system is mounted at {path}")));
        }
        let builder = &mut self.mounted[mount].builder;
        let ino = builder.lookup(dir, &name).map_err(from_disk(path))?.ok_or_else(|| missing(path))?;
        if builder.kind(ino).map_err(from_disk(path))? == NodeKind::Directory
            && !builder.list(ino).map_err(from_disk(path))?.is_empty()
        {
            return Err(Error::new(ErrorKind::NotEmpty, format!("{path} is not empty")));
        }
        builder.unlink(dir, &name).map_err(from_disk(path))
    }

    fn rename(&mut self, from: &GuestPath, to: &GuestPath) -> Result<()> {
        let (from_mount, from_dir, from_name) = self.named(from)?;
        let (to_mount, to_dir, to_name) = self.named(to)?;
        if from_mount != to_mount || self.mounted.iter().any(|mounted| mounted.at.is_within(from)) {
            let context = format!("renaming {from} to {to} crosses file systems");
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        self.mounted[to_mount].builder.rename(from_dir, &from_name, to_dir, &to_name).map_err(from_disk(from))
    }

    fn set_attributes(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let (mount, ino) = self.find(path)?.ok_or_else(|| missing(path))?;
        let builder = &mut self.mounted[mount].builder;
        builder.set_attributes(ino, attributes_to_disk(attributes)).map_err(from_disk(path))
    }

    fn set_xattr(&mut self, path: &GuestPath, name: &[u8], value: &[u8]) -> Result<()> {
        let (mount, ino) = self.find(path)?.ok_or_else(|| missing(path))?;
        self.mounted[mount].builder.set_xattr(ino, name, value).map_err(from_disk(path))
    }

    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (builder, ino) = self.existing(path)?;
        let mut xattrs = builder.xattrs(ino).map_err(from_disk(path))?;
        xattrs.sort();
        Ok(xattrs)
    }
}
