//! Names: creating, linking, moving and removing nodes.

use std::hash::RandomState;
use std::io::Read;
use std::ops::Range;

use super::builder::{Ext4Builder, ROOT, gone, ino};
use super::dir::{Directory, check_name, grow};
use super::inode::{Attributes, Body, Ino, Inode, MOST_LINKS, NodeKind, check_attributes};
use super::layout::FIRST_INODE;
use super::sparse;
use crate::{Error, ErrorKind, Result};

/// A target this long still fits the inode.
const FAST_SYMLINK: usize = 59;

impl Ext4Builder {
    /// The inode of a name, if it is there.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        Ok(self.directory(dir)?.get(name, &self.hasher).map(ino))
    }

    /// Names, inodes and kinds in a directory, sorted by name.
    pub fn list(&self, dir: Ino) -> Result<Vec<(Vec<u8>, Ino, NodeKind)>> {
        let entries = self.directory(dir)?.iter();
        let entries = entries.map(|(name, inode)| Ok((name.to_vec(), ino(inode), self.kind(ino(inode))?)));
        let mut entries = entries.collect::<Result<Vec<_>>>()?;
        entries.sort_unstable_by(|(name, ..), (other, ..)| name.cmp(other));
        Ok(entries)
    }

    /// Creates a file of exactly `size` bytes read from `contents`. At least 64 KiB of zeros in whole blocks
    /// become a hole. When it fails, nothing of the file stays.
    pub fn create_file(
        &mut self,
        dir: Ino,
        name: &[u8],
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<Ino> {
        self.check_new(dir, name, &attributes)?;
        let data = 0..size;
        self.create_mapped(dir, name, NodeKind::File, attributes, size, std::slice::from_ref(&data), contents)
    }

    /// Creates a file of `size` bytes whose contents are only in the ranges of `data`, ascending and apart;
    /// `contents` gives those one after the other. The rest is a hole, which costs neither time nor room.
    pub fn create_sparse_file(
        &mut self,
        dir: Ino,
        name: &[u8],
        attributes: Attributes,
        size: u64,
        data: &[Range<u64>],
        contents: &mut dyn Read,
    ) -> Result<Ino> {
        self.check_new(dir, name, &attributes)?;
        let mut end = 0;
        for range in data {
            if range.start < end || range.end < range.start || range.end > size {
                let context = format!("a file of {size} bytes cannot have data at {range:?} behind {end}");
                return Err(Error::new(ErrorKind::Invalid, context));
            }
            end = range.end;
        }
        self.create_mapped(dir, name, NodeKind::File, attributes, size, data, contents)
    }

    /// Creates an empty directory.
    pub fn create_dir(&mut self, dir: Ino, name: &[u8], attributes: Attributes) -> Result<Ino> {
        self.check_new(dir, name, &attributes)?;
        self.check_subdirectories(dir)?;
        let new = Directory::new(dir.get());
        let reserved = new.reserve(&self.shape);
        self.reserve(reserved)?;
        let body = Body::Directory(Box::new(new));
        let created = self
            .take_inode()
            .and_then(|number| self.place(dir, name, number, NodeKind::Directory, attributes, body));
        if created.is_err() {
            self.reserved -= reserved;
        } else {
            self.directory_mut(dir)?.subdirectories += 1;
        }
        created
    }

    /// Creates a symbolic link; its target is shorter than a block.
    pub fn create_symlink(
        &mut self,
        dir: Ino,
        name: &[u8],
        attributes: Attributes,
        target: &[u8],
    ) -> Result<Ino> {
        self.check_new(dir, name, &attributes)?;
        if target.is_empty() || target.len() >= self.layout.block_size as usize || target.contains(&0) {
            let context = format!("{} bytes cannot be the target of a symbolic link", target.len());
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        if target.len() > FAST_SYMLINK {
            let size = target.len() as u64;
            let all = 0..size;
            let data = std::slice::from_ref(&all);
            return self.create_mapped(dir, name, NodeKind::Symlink, attributes, size, data, &mut &*target);
        }
        let number = self.take_inode()?;
        self.place(dir, name, number, NodeKind::Symlink, attributes, Body::FastSymlink(target.into()))
    }

    /// Creates a device node, a named pipe or a socket.
    pub fn create_special(
        &mut self,
        dir: Ino,
        name: &[u8],
        attributes: Attributes,
        kind: NodeKind,
    ) -> Result<Ino> {
        self.check_new(dir, name, &attributes)?;
        match kind {
            NodeKind::File | NodeKind::Directory | NodeKind::Symlink => {
                return Err(Error::new(ErrorKind::Invalid, format!("{kind:?} is not a special file")));
            }
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor }
                if major >= 1 << 12 || minor >= 1 << 20 =>
            {
                let context = format!("{major}:{minor} is not a device number of Linux");
                return Err(Error::new(ErrorKind::Invalid, context));
            }
            _ => {}
        }
        let number = self.take_inode()?;
        self.place(dir, name, number, kind, attributes, Body::Special(kind))
    }

    /// Gives a node that is not a directory one more name.
    pub fn link(&mut self, dir: Ino, name: &[u8], target: Ino) -> Result<()> {
        let inode = self.inode(target)?;
        if inode.is_directory() {
            return Err(Error::new(ErrorKind::Invalid, "a directory cannot have a second name"));
        }
        if inode.links() >= MOST_LINKS {
            let context = format!("inode {} has {MOST_LINKS} links, as many as ext4 can count", target.get());
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        self.check_free_name(dir, name)?;
        self.add_name(dir, name, target.get())?;
        self.inode_mut(target)?.links += 1;
        Ok(())
    }

    /// Removes a name, and the node with its last one. A directory must be empty.
    pub fn unlink(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        let target = self.lookup(dir, name)?.ok_or_else(|| no_name(name))?;
        self.check_movable(target)?;
        if let Body::Directory(directory) = &self.inode(target)?.body {
            if !directory.is_empty() {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("directory {} is not empty", shown(name)),
                ));
            }
            let parent = self.directory_mut(dir)?;
            parent.subdirectories -= 1;
        }
        self.remove_name(dir, name)?;
        self.drop_link(target)
    }

    /// Moves a name. A node that is not a directory replaces another that is not.
    pub fn rename(&mut self, from_dir: Ino, from: &[u8], to_dir: Ino, to: &[u8]) -> Result<()> {
        let moved = self.lookup(from_dir, from)?.ok_or_else(|| no_name(from))?;
        self.check_movable(moved)?;
        check_name(to)?;
        let is_directory = self.inode(moved)?.is_directory();
        let replaced = self.lookup(to_dir, to)?;
        match replaced {
            // As rename(2): two names of one file both stay.
            Some(same) if same == moved => return Ok(()),
            Some(other) if is_directory || self.inode(other)?.is_directory() => {
                return Err(Error::new(ErrorKind::Exists, format!("{} exists", shown(to))));
            }
            _ => {}
        }
        if is_directory {
            self.check_not_below(moved, to_dir)?;
            if from_dir != to_dir {
                self.check_subdirectories(to_dir)?;
            }
        }
        match replaced {
            // The entry keeps its place, so that nothing can fail any more.
            Some(other) => {
                let (directory, hasher) = self.directory_and_hasher(to_dir)?;
                directory.replace(to, moved.get(), hasher);
                self.drop_link(other)?;
            }
            None => self.add_name(to_dir, to, moved.get())?,
        }
        self.remove_name(from_dir, from)?;
        if is_directory {
            self.directory_mut(from_dir)?.subdirectories -= 1;
            self.directory_mut(to_dir)?.subdirectories += 1;
            self.directory_mut(moved)?.parent = to_dir.get();
        }
        Ok(())
    }

    /// A file or link with blocks: streams first, names last.
    #[expect(clippy::too_many_arguments, reason = "what a file is, and where its bytes come from")]
    fn create_mapped(
        &mut self,
        dir: Ino,
        name: &[u8],
        kind: NodeKind,
        attributes: Attributes,
        size: u64,
        data: &[Range<u64>],
        contents: &mut dyn Read,
    ) -> Result<Ino> {
        let largest = self.layout.largest_file();
        if size > largest {
            let context = format!("a file of {size} bytes is larger than this file system's {largest}");
            return Err(Error::new(ErrorKind::Invalid, context));
        }
        let number = self.take_inode()?;
        let mut extents = Vec::new();
        let written = sparse::runs(data, size, u64::from(self.layout.block_size)).try_for_each(|run| {
            let first = run.bytes.start / u64::from(self.layout.block_size);
            let mut padded = sparse::Padded::new(&run, contents);
            self.write_contents(first, run.bytes.end - run.bytes.start, &mut padded, &mut extents)
        });
        let runs: Vec<_> = extents.iter().map(|extent| extent.physical()).collect();
        let map = match written.and_then(|()| self.build_map(number, extents)) {
            Ok(map) => map,
            Err(error) => {
                runs.into_iter().for_each(|run| self.allocator.release(run));
                self.free_inodes.push(number);
                return Err(error);
            }
        };
        let body = match kind {
            NodeKind::Symlink => Body::SlowSymlink { size: size as u32, map },
            _ => Body::File { size, map },
        };
        self.place(dir, name, number, kind, attributes, body)
    }

    /// The lowest inode number that was never in use, or one given back.
    fn take_inode(&mut self) -> Result<u32> {
        if let Some(number) = self.free_inodes.pop() {
            return Ok(number);
        }
        let total = self.layout.inodes();
        if self.inodes.len() >= total as usize {
            let context = format!("the ext4 file system is full: all its {total} inodes are in use");
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        grow(&mut self.inodes, 1, 1024);
        self.inodes.push(Inode::default());
        Ok(self.inodes.len() as u32)
    }

    /// Makes the inode and gives it its name; takes both back where there is no room for the name.
    fn place(
        &mut self,
        dir: Ino,
        name: &[u8],
        number: u32,
        kind: NodeKind,
        attributes: Attributes,
        body: Body,
    ) -> Result<Ino> {
        let mut inode = Inode::new(kind, attributes, body);
        inode.links = 1;
        *self.slot(number) = inode;
        if let Err(error) = self.add_name(dir, name, number) {
            self.free_node(number);
            return Err(error);
        }
        Ok(ino(number))
    }

    fn add_name(&mut self, dir: Ino, name: &[u8], number: u32) -> Result<()> {
        let directory = self.directory(dir)?;
        let more = directory.reserve_with(name, &self.shape)? - directory.reserve(&self.shape);
        self.reserve(more)?;
        let (directory, hasher) = self.directory_and_hasher(dir)?;
        directory.insert(name, number, hasher);
        Ok(())
    }

    fn remove_name(&mut self, dir: Ino, name: &[u8]) -> Result<()> {
        let shape = self.shape;
        let (directory, hasher) = self.directory_and_hasher(dir)?;
        let before = directory.reserve(&shape);
        directory.remove(name, hasher);
        self.reserved -= before - directory.reserve(&shape);
        Ok(())
    }

    /// Takes one link away, and the node with the last one.
    fn drop_link(&mut self, target: Ino) -> Result<()> {
        let shape = self.shape;
        let inode = self.inode_mut(target)?;
        inode.links -= 1;
        if inode.links > 0 {
            return Ok(());
        }
        if let Body::Directory(directory) = &inode.body {
            self.reserved -= directory.reserve(&shape);
        }
        self.free_node(target.get());
        Ok(())
    }

    fn free_node(&mut self, number: u32) {
        let inode = std::mem::take(self.slot(number));
        if let Some(map) = inode.map() {
            map.extents().iter().for_each(|extent| self.allocator.release(extent.physical()));
            map.nodes().iter().for_each(|node| self.allocator.release(*node..node + 1));
        }
        self.reserved -= u64::from(inode.xattrs.is_some_and(|xattrs| xattrs.needs_block()));
        self.free_inodes.push(number);
    }

    fn check_new(&self, dir: Ino, name: &[u8], attributes: &Attributes) -> Result<()> {
        check_attributes(attributes)?;
        self.check_free_name(dir, name)
    }

    fn check_free_name(&self, dir: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        match self.lookup(dir, name)? {
            Some(_) => Err(Error::new(ErrorKind::Exists, format!("{} exists", shown(name)))),
            None => Ok(()),
        }
    }

    /// e2fsck wants lost+found where it is.
    fn check_movable(&self, target: Ino) -> Result<()> {
        if target.get() == FIRST_INODE {
            return Err(Error::new(ErrorKind::Invalid, "lost+found stays"));
        }
        Ok(())
    }

    /// Without dir_nlink each subdirectory is a link that has to be counted.
    fn check_subdirectories(&self, dir: Ino) -> Result<()> {
        let links = self.directory(dir)?.subdirectories + 2;
        if links >= MOST_LINKS && !self.layout.features.dir_nlink {
            let context =
                format!("directory {} has all the subdirectories it can without dir_nlink", dir.get());
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        Ok(())
    }

    /// A directory cannot move into itself.
    fn check_not_below(&self, moved: Ino, to_dir: Ino) -> Result<()> {
        let mut above = to_dir;
        while above.get() != ROOT {
            if above == moved {
                return Err(Error::new(ErrorKind::Invalid, "a directory cannot move into itself"));
            }
            above = ino(self.directory(above)?.parent);
        }
        Ok(())
    }

    fn directory(&self, dir: Ino) -> Result<&Directory> {
        match &self.inode(dir)?.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(not_a_directory(dir)),
        }
    }

    fn directory_mut(&mut self, dir: Ino) -> Result<&mut Directory> {
        self.directory_and_hasher(dir).map(|(directory, _)| directory)
    }

    fn directory_and_hasher(&mut self, dir: Ino) -> Result<(&mut Directory, &RandomState)> {
        let Self { inodes, hasher, .. } = self;
        match inodes.get_mut(dir.get() as usize - 1).map(|inode| &mut inode.body) {
            Some(Body::Directory(directory)) => Ok((directory, hasher)),
            Some(Body::Unused) | None => Err(gone(dir)),
            Some(_) => Err(not_a_directory(dir)),
        }
    }
}

fn not_a_directory(dir: Ino) -> Error {
    Error::new(ErrorKind::Invalid, format!("inode {} is not a directory", dir.get()))
}

fn no_name(name: &[u8]) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} is not there", shown(name)))
}

fn shown(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&name[..name.len().min(300)]))
}
