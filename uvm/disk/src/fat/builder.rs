//! The builder's state: files and directories made, changed and read back.

use std::io::Read;

use super::clusters::{Clusters, Run};
use super::contents::Contents;
use super::layout::Layout;
use super::name::{ShortName, check, encode_label, fold};
use super::time::DosTime;
use super::tree::{Body, Directory, Entry, FatNode, Node, ROOT, Tree, grown, slots_of};
use super::{FatOptions, FatType};
use crate::field::flush;
use crate::{Device, Error, ErrorKind, Result};

/// Signatures of what was on the device before are at its two ends.
const WIPED: u64 = 1 << 20;
/// Bytes copied from one file to another at a time.
const COPY: usize = 1 << 18;

/// Fills room with the contents of a new file; it gets how many bytes came before.
type Fill<'f> = dyn FnMut(&FatBuilder, &mut [u8], u64) -> Result<()> + 'f;

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FatKind {
    /// A file.
    File {
        /// Bytes.
        size: u32,
    },
    /// A directory.
    Directory,
}

/// A new FAT volume under construction.
pub struct FatBuilder {
    pub(super) layout: Layout,
    pub(super) options: FatOptions,
    pub(super) label: Option<ShortName>,
    pub(super) tree: Tree,
    pub(super) clusters: Clusters,
    pub(super) contents: Contents,
}

/// Where a name belongs, and what has it.
struct Place {
    key: Box<str>,
    /// The node, and its name as it was given.
    there: Option<(FatNode, Box<str>)>,
}

impl FatBuilder {
    /// Starts a volume over the whole of `device`; what was there is gone with this call, unless it is refused.
    pub fn new(device: Device, options: FatOptions) -> Result<Self> {
        let label = encode_label(&options.label)?;
        let geometry = device.geometry();
        let layout = Layout::new(&geometry, &options)?;
        let mut clusters = Clusters::new(layout.clusters, layout.cluster_size());
        if layout.fat_type == FatType::Fat32 {
            // The root takes the first cluster, where every reader looks for it.
            clusters.take(1)?;
        }
        let end = geometry.size.saturating_sub(WIPED);
        for (offset, len) in [(0, WIPED.min(geometry.size)), (end, geometry.size - end)] {
            let wiped = device.write_zeroes(offset, len);
            wiped.map_err(|e| Error::io("wiping the ends of the device before formatting", offset, e))?;
        }
        // What was there must not outlive its own contents.
        flush(&*device, "flushing the wiped ends of the device")?;
        let tree = Tree::new(DosTime::new(options.timestamp), u32::from(label.is_some()));
        Ok(Self { layout, label, tree, clusters, contents: Contents::new(device), options })
    }

    /// The root directory.
    pub fn root(&self) -> FatNode {
        ROOT
    }

    /// What the node is.
    pub fn kind(&self, node: FatNode) -> Result<FatKind> {
        Ok(match self.tree.node(node)?.body {
            Body::File { size, .. } => FatKind::File { size },
            Body::Directory(_) => FatKind::Directory,
        })
    }

    /// Time of last modification, seconds since 1970, as the volume will have it.
    pub fn mtime(&self, node: FatNode) -> Result<u64> {
        Ok(self.tree.node(node)?.mtime.seconds())
    }

    /// Sets the time of last modification. The root directory has none.
    pub fn set_mtime(&mut self, node: FatNode, mtime: u64) -> Result<()> {
        let root = node == ROOT;
        let node = self.tree.node_mut(node)?;
        if !root {
            node.mtime = DosTime::new(mtime);
        }
        Ok(())
    }

    /// The node of a name in any case, and the name as it was given.
    pub fn lookup(&self, dir: FatNode, name: &str) -> Result<Option<(FatNode, &str)>> {
        let entry = self.tree.directory(dir)?.entries.get(fold(name).as_str());
        Ok(entry.map(|entry| (entry.node, &*entry.name)))
    }

    /// Names and nodes in a directory, in order of their names without case.
    pub fn list(&self, dir: FatNode) -> Result<impl Iterator<Item = (&str, FatNode)>> {
        Ok(self.tree.directory(dir)?.entries.values().map(|entry| (&*entry.name, entry.node)))
    }

    /// Makes a file of exactly `size` bytes from `contents`. A file of the very same name is replaced when all of them
    /// are there. When it fails, everything is as before.
    pub fn create_file(
        &mut self,
        dir: FatNode,
        name: &str,
        size: u64,
        contents: &mut dyn Read,
        mtime: u64,
    ) -> Result<FatNode> {
        self.create_with(dir, name, size, mtime, &mut |_, room, done| {
            contents.read_exact(room).map_err(|e| {
                Error::source_stream(format!("{name:?}: {size} bytes were announced, {done} came whole"), e)
            })
        })
    }

    /// Makes a file with the contents of another, as [`FatBuilder::create_file`] does.
    pub fn copy_file(&mut self, from: FatNode, dir: FatNode, name: &str, mtime: u64) -> Result<FatNode> {
        let FatKind::File { size } = self.kind(from)? else {
            return Err(Error::new(ErrorKind::Invalid, "a directory is not copied like a file"));
        };
        self.create_with(dir, name, size.into(), mtime, &mut |builder, room, done| {
            builder.read_at(from, done, room).map(|_| ())
        })
    }

    fn create_with(
        &mut self,
        dir: FatNode,
        name: &str,
        size: u64,
        mtime: u64,
        fill: &mut Fill<'_>,
    ) -> Result<FatNode> {
        let size = u32::try_from(size).map_err(|_| {
            Error::new(
                ErrorKind::Invalid,
                format!("{name:?} has {size} bytes; a FAT file has at most 2^32 - 1"),
            )
        })?;
        let place = self.place(dir, name)?;
        if let Some((old, there)) = &place.there
            && (&**there != name || self.kind(*old)? == FatKind::Directory)
        {
            return Err(taken(name, there));
        }
        let slots = if place.there.is_some() { 0 } else { slots_of(name) };
        self.grow(dir, slots)?;
        let runs = match self.clusters.take(size.div_ceil(self.layout.cluster_size())) {
            Ok(runs) => runs,
            Err(error) => {
                self.shrink(dir, slots)?;
                return Err(error);
            }
        };
        if let Err(error) = self.write_runs(&runs, size, fill) {
            runs.iter().for_each(|run| self.clusters.give_back(*run));
            self.shrink(dir, slots)?;
            return Err(error);
        }
        let body = Body::File { size, runs: runs.into_boxed_slice() };
        let node = self.tree.add(DosTime::new(mtime), body);
        let entry = Entry { name: name.into(), node };
        self.tree.directory_mut(dir)?.entries.insert(place.key, entry);
        if let Some((old, _)) = place.there {
            self.release(old)?;
        }
        Ok(node)
    }

    /// Fills the clusters of a new file, the last one to its end: nothing of the device's past stays behind a file.
    fn write_runs(&mut self, runs: &[Run], size: u32, fill: &mut Fill<'_>) -> Result<()> {
        let mut buffer = vec![0; COPY.min(size as usize)];
        let mut done = 0;
        for run in runs {
            let bytes = self.layout.bytes_of(run.first, run.count);
            let mut at = bytes.start;
            while at < bytes.end {
                let len = (bytes.end - at).min(COPY as u64) as usize;
                let data = len.min((u64::from(size) - done) as usize);
                fill(self, &mut buffer[..data], done)?;
                self.contents.put(at, &buffer[..data])?;
                self.contents.zero(at + data as u64, len - data)?;
                done += data as u64;
                at += len as u64;
            }
        }
        Ok(())
    }

    /// Makes an empty directory.
    pub fn create_dir(&mut self, dir: FatNode, name: &str, mtime: u64) -> Result<FatNode> {
        let place = self.place(dir, name)?;
        if let Some((_, there)) = &place.there {
            return Err(taken(name, there));
        }
        let slots = slots_of(name);
        self.grow(dir, slots)?;
        if let Err(error) = self.clusters.reserve(0, 1) {
            self.shrink(dir, slots)?;
            return Err(error);
        }
        let node = self.tree.add(DosTime::new(mtime), Tree::empty_directory(dir));
        let entry = Entry { name: name.into(), node };
        self.tree.directory_mut(dir)?.entries.insert(place.key, entry);
        Ok(node)
    }

    /// Removes a name and what it stands for; a directory has to be empty.
    pub fn unlink(&mut self, dir: FatNode, name: &str) -> Result<()> {
        let place = self.place(dir, name)?;
        let (node, there) = place.there.ok_or_else(|| missing(name))?;
        if let Body::Directory(directory) = &self.tree.node(node)?.body
            && !directory.entries.is_empty()
        {
            return Err(Error::new(ErrorKind::Invalid, format!("the directory {name:?} is not empty")));
        }
        self.tree.directory_mut(dir)?.entries.remove(&place.key);
        self.shrink(dir, slots_of(&there))?;
        self.release(node)
    }

    /// Gives a node another name, replacing a file of that very name by a file.
    pub fn rename(&mut self, dir: FatNode, name: &str, to_dir: FatNode, to_name: &str) -> Result<()> {
        let from = self.place(dir, name)?;
        let to = self.place(to_dir, to_name)?;
        let (node, name) = from.there.ok_or_else(|| missing(name))?;
        let is_dir = self.kind(node)? == FatKind::Directory;
        if is_dir && self.tree.is_within(to_dir, node)? {
            return Err(Error::new(ErrorKind::Invalid, format!("{name:?} cannot move into itself")));
        }
        let replaced = to.there.filter(|(there, _)| *there != node);
        if let Some((there, other)) = &replaced
            && (is_dir || self.kind(*there)? == FatKind::Directory || &**other != to_name)
        {
            return Err(taken(to_name, other));
        }
        self.shrink(dir, slots_of(&name))?;
        let more = if replaced.is_some() { 0 } else { slots_of(to_name) };
        if let Err(error) = self.grow(to_dir, more) {
            self.grow(dir, slots_of(&name))?;
            return Err(error);
        }
        self.tree.directory_mut(dir)?.entries.remove(&from.key);
        let entry = Entry { name: to_name.into(), node };
        self.tree.directory_mut(to_dir)?.entries.insert(to.key, entry);
        if is_dir {
            self.tree.directory_mut(node)?.parent = to_dir;
        }
        replaced.map_or(Ok(()), |(there, _)| self.release(there))
    }

    /// Reads a file; the number of bytes is short only at its end.
    pub fn read_at(&self, node: FatNode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let Body::File { size, runs } = &self.tree.node(node)?.body else {
            return Err(Error::new(ErrorKind::Invalid, "a directory is not read like a file"));
        };
        let len = u64::from(*size).saturating_sub(offset).min(buf.len() as u64);
        let wanted = offset..offset + len;
        let mut start = 0;
        for run in runs {
            let bytes = self.layout.bytes_of(run.first, run.count);
            let end = start + (bytes.end - bytes.start);
            let part = wanted.start.max(start)..wanted.end.min(end);
            if !part.is_empty() {
                let into = (part.start - offset) as usize..(part.end - offset) as usize;
                self.contents.read(bytes.start + (part.start - start), &mut buf[into])?;
            }
            start = end;
        }
        Ok(len as usize)
    }

    fn place(&self, dir: FatNode, name: &str) -> Result<Place> {
        let directory = self.tree.directory(dir)?;
        check(name)?;
        let key = fold(name).into_boxed_str();
        let there = directory.entries.get(&key).map(|entry| (entry.node, entry.name.clone()));
        Ok(Place { key, there })
    }

    /// Gives back what a node without a name has.
    fn release(&mut self, node: FatNode) -> Result<()> {
        let Node { body, .. } = self.tree.remove(node)?;
        match body {
            Body::File { runs, .. } => runs.iter().for_each(|run| self.clusters.give_back(*run)),
            // An empty directory has one cluster.
            Body::Directory(_) => self.clusters.reserve(1, 0)?,
        }
        Ok(())
    }

    /// Clusters that a directory will take when it is written.
    pub(super) fn directory_clusters(&self, dir: FatNode, directory: &Directory) -> u32 {
        let clusters = directory.len().div_ceil(self.layout.cluster_size());
        match self.layout.fat_type {
            _ if dir != ROOT => clusters,
            // The first one is taken already.
            FatType::Fat32 => clusters.saturating_sub(1),
            _ => 0,
        }
    }

    fn resize(&mut self, dir: FatNode, slots: u32) -> Result<()> {
        let directory = self.tree.directory(dir)?;
        let old = self.directory_clusters(dir, directory);
        let before = directory.slots;
        self.tree.directory_mut(dir)?.slots = slots;
        let new = self.directory_clusters(dir, self.tree.directory(dir)?);
        let reserved = self.clusters.reserve(old, new);
        if reserved.is_err() {
            self.tree.directory_mut(dir)?.slots = before;
        }
        reserved
    }

    fn grow(&mut self, dir: FatNode, more: u32) -> Result<()> {
        let fixed = dir == ROOT && self.layout.fat_type != FatType::Fat32;
        let max = if fixed { self.layout.root_entries } else { u32::MAX };
        let slots = grown(self.tree.directory(dir)?, more, max)?;
        self.resize(dir, slots)
    }

    fn shrink(&mut self, dir: FatNode, less: u32) -> Result<()> {
        let slots = self.tree.directory(dir)?.slots - less;
        self.resize(dir, slots)
    }
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{name:?} is not in the FAT directory"))
}

fn taken(name: &str, there: &str) -> Error {
    let context = if name == there {
        format!("{name:?} is in the FAT directory already")
    } else {
        format!("{name:?} and {there:?} differ in case alone; FAT has one of them in a directory")
    };
    Error::new(ErrorKind::Exists, context)
}
