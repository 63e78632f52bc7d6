//! An OCI image layer (an uncompressed tar stream), put onto a guest's tree in one forward pass.
//!
//! OCI image specification, "Image Layer Filesystem Changeset". An entry replaces what lower layers put under its
//! name, a directory merges with a directory, `.wh.name` removes what lower layers call `name`, and `.wh..wh..opq`
//! empties its directory of what came from below. Every owner, mode, time, link, device node and extended
//! attribute arrives as the archive has it; ACLs also from the text that archivers write.
//!
//! The archive is hostile: an entry may only name places beneath the root that are reached without a link. The
//! first entry that does otherwise ends the layer.

mod acl;
mod archive;
mod fields;
mod pax;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet};
use std::hash::BuildHasher;
use std::io::Read;
use std::ops::ControlFlow;

use crate::error::{Error, ErrorKind, Result};
use crate::path::{GuestPath, printable};
use crate::tree::{Attributes, GuestTree, Kind, remove_all, remove_what_can_go};
use archive::{Archive, Entry, Item};
pub use fields::begins_archive;

/// What a layer may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries, extended headers included.
    pub entries: u64,
    /// Bytes of one file, holes included.
    pub entry_bytes: u64,
    /// Bytes of all files, holes included.
    pub total_bytes: u64,
    /// Bytes of one extended header; it is held in memory.
    pub extended_header_bytes: u64,
}

impl Default for Limits {
    /// Two million entries, 16 TiB in all; the caller, who knows the disk, lowers it.
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            entry_bytes: 16 << 40,
            total_bytes: 16 << 40,
            extended_header_bytes: 1 << 20,
        }
    }
}

/// How far a layer has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Tar headers seen.
    pub entries: u64,
    /// Bytes of file contents handed to the tree.
    pub bytes: u64,
    /// Bytes read from the stream.
    pub stream_bytes: u64,
}

/// What a layer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerSummary {
    /// Entries made or merged, whiteouts not counted.
    pub entries: u64,
    /// Whiteouts and opaque markers.
    pub whiteouts: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Length of the stream with its padding.
    pub stream_bytes: u64,
}

/// Paths of a layer's directories, all together: a million of 100 bytes.
const MAX_DIRECTORY_BYTES: usize = 100 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Puts the layer that `reader` holds onto `tree`, and reads `reader` to its end. `progress` is called every
/// 256 KiB of the stream and at the end; `Break` ends the layer with [`ErrorKind::Cancelled`].
///
/// # Errors
/// [`ErrorKind::Truncated`] for a stream without the archive's end marker, [`ErrorKind::UnsafePath`],
/// [`ErrorKind::Duplicate`], [`ErrorKind::TooLarge`], [`ErrorKind::Corrupt`], [`ErrorKind::Unsupported`], and
/// whatever the tree says. After an error the tree holds a part of the layer.
pub fn apply(
    reader: &mut dyn Read,
    tree: &mut dyn GuestTree,
    limits: &Limits,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<LayerSummary> {
    let mut archive = Archive::new(reader, limits, progress);
    let mut layer = Layer {
        tree,
        ours: HashSet::new(),
        cleared: HashSet::new(),
        hasher: RandomState::new(),
        directories: BTreeMap::new(),
        directory_bytes: 0,
        parent: None,
        summary: LayerSummary::default(),
    };
    while let Some(entry) = archive.next()? {
        layer.entry(&mut archive, &entry).map_err(|e| named(&entry, e))?;
    }
    archive.drain()?;
    layer.settle_directories()?;
    Ok(LayerSummary { bytes: archive.state.bytes, stream_bytes: archive.state.stream_bytes, ..layer.summary })
}

/// Names the entry; a link in its path is the archive's fault.
fn named(entry: &Entry, error: Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::SymlinkInPath => ErrorKind::UnsafePath,
        kind => kind,
    };
    let name = printable(&entry.path);
    let context = match entry.item {
        Item::HardLink => format!("unpacking {name}, a hard link to {}", printable(&entry.link)),
        _ => format!("unpacking {name}"),
    };
    Error::with_source(kind, context, error)
}

struct Layer<'t> {
    tree: &'t mut dyn GuestTree,
    /// Paths this layer made, by their 64-bit keyed hash: eight bytes each instead of a whole path, so that
    /// memory stays small on images of a million files.
    ours: HashSet<u64>,
    /// Directories that hold nothing of lower layers any more, in the same form: markers without end look into each
    /// of them once.
    cleared: HashSet<u64>,
    hasher: RandomState,
    /// What each directory this layer named or changed must say in the end: work on its entries may touch it.
    directories: BTreeMap<GuestPath, Attributes>,
    directory_bytes: usize,
    /// The directory of the last entry, already known to be reached without a link. Nothing on its way can be
    /// replaced later, for all of it is in `ours`.
    parent: Option<GuestPath>,
    summary: LayerSummary,
}

impl Layer<'_> {
    fn entry(&mut self, archive: &mut Archive<'_>, entry: &Entry) -> Result<()> {
        let path = GuestPath::parse(&entry.path)?;
        match path.name() {
            None if entry.item == Item::Directory => {
                self.summary.entries += 1;
                self.note(&path, entry.attributes)?;
                return self.xattrs(&path, entry);
            }
            None => return Err(Error::new(ErrorKind::UnsafePath, "the root of the tree is a directory")),
            Some(name) if name.starts_with(WHITEOUT) => {
                self.summary.whiteouts += 1;
                self.whiteout(&path, entry)?;
                return archive.contents(entry).finish(Ok(()));
            }
            Some(_) => {}
        }
        self.summary.entries += 1;
        self.prepare_parent(&path, entry)?;
        if entry.item == Item::Directory {
            self.directory(&path, entry)?;
        } else {
            self.other(archive, &path, entry)?;
        }
        self.xattrs(&path, entry)
    }

    fn directory(&mut self, path: &GuestPath, entry: &Entry) -> Result<()> {
        match self.tree.metadata(path)?.map(|m| m.kind) {
            Some(Kind::Directory) => {}
            Some(_) => {
                self.refuse_duplicate(path)?;
                self.tree.remove(path)?;
                self.tree.create_dir(path, entry.attributes)?;
            }
            None => self.tree.create_dir(path, entry.attributes)?,
        }
        self.ours.insert(self.hash(path));
        self.note(path, entry.attributes)
    }

    fn other(&mut self, archive: &mut Archive<'_>, path: &GuestPath, entry: &Entry) -> Result<()> {
        self.refuse_duplicate(path)?;
        if entry.item == Item::Special(Kind::CharDevice { major: 0, minor: 0 }) {
            let context = "a character device 0:0 is an overlay's whiteout, not an image's";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let target = self.hard_link_target(path, entry)?;
        if self.tree.metadata(path)?.is_some() {
            remove_all(self.tree, path)?;
        }
        match &entry.item {
            Item::File => {
                let mut contents = archive.contents(entry);
                let (attributes, size) = (entry.attributes, entry.size);
                let written = match &entry.data[..] {
                    [all] if *all == (0..size) => self.tree.write(path, attributes, size, &mut contents),
                    data => self.tree.write_sparse(path, attributes, size, data, &mut contents),
                };
                contents.finish(written)?;
            }
            Item::Symlink => self.tree.symlink(path, symlink_target(entry)?, entry.attributes)?,
            Item::HardLink => self.tree.hard_link(path, &target)?,
            Item::Special(kind) => self.tree.create_special(path, *kind, entry.attributes)?,
            Item::Directory => unreachable!("directories are merged, not made here"),
        }
        self.ours.insert(self.hash(path));
        Ok(())
    }

    /// Where a hard link leads: an entry that is there, is no directory, and will still be there afterwards.
    fn hard_link_target(&self, path: &GuestPath, entry: &Entry) -> Result<GuestPath> {
        if entry.item != Item::HardLink {
            return Ok(GuestPath::root());
        }
        let target = GuestPath::parse(&entry.link)?;
        if target.is_within(path) {
            return Err(Error::new(ErrorKind::UnsafePath, "a hard link to itself or to what it replaces"));
        }
        match self.tree.metadata(&target)?.map(|m| m.kind) {
            None => Err(Error::new(ErrorKind::NotFound, format!("{target} is not there"))),
            Some(Kind::Directory) => {
                Err(Error::new(ErrorKind::WrongType, format!("{target} is a directory")))
            }
            Some(_) => Ok(target),
        }
    }

    /// Attributes of a hard link are those of its target, which has them already.
    fn xattrs(&mut self, path: &GuestPath, entry: &Entry) -> Result<()> {
        if entry.item != Item::HardLink {
            for (name, value) in &entry.xattrs {
                self.tree.set_xattr(path, name, value)?;
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, path: &GuestPath, entry: &Entry) -> Result<()> {
        let name = path.name().expect("a whiteout has a name");
        if entry.item != Item::File || entry.size != 0 {
            return Err(Error::new(ErrorKind::Unsupported, "a whiteout that is not an empty file"));
        }
        let parent = path.parent().expect("a path with a name has a parent");
        if !self.reach(&parent)? {
            return Ok(());
        }
        self.remember(&parent)?;
        if name == OPAQUE {
            if !self.cleared.insert(self.hash(&parent)) {
                return Ok(());
            }
            for (child, _) in self.tree.list(&parent)? {
                self.remove_lower(parent.join(&child)?)?;
            }
            return Ok(());
        }
        match name.strip_prefix(WHITEOUT) {
            Some(removed) if !removed.is_empty() && !removed.starts_with(WHITEOUT) => {
                self.remove_lower(parent.join(removed)?)
            }
            _ => Err(Error::new(ErrorKind::Unsupported, "an unknown whiteout")),
        }
    }

    /// Removes what lower layers put at and beneath `path`, and leaves what this layer made and what belongs to the
    /// file system itself, of which the image knows nothing.
    fn remove_lower(&mut self, path: GuestPath) -> Result<()> {
        let mut stack = vec![path];
        while let Some(current) = stack.pop() {
            let kind = self.tree.metadata(&current)?.map(|m| m.kind);
            if !self.ours.contains(&self.hash(&current)) {
                remove_what_can_go(self.tree, &current)?;
            } else if kind == Some(Kind::Directory) && self.cleared.insert(self.hash(&current)) {
                self.remember(&current)?;
                for (name, _) in self.tree.list(&current)? {
                    stack.push(current.join(&name)?);
                }
            }
        }
        Ok(())
    }

    /// Makes sure that the parent of `path` is a directory reached without a link, making what is missing.
    fn prepare_parent(&mut self, path: &GuestPath, entry: &Entry) -> Result<()> {
        let parent = path.parent().expect("the root was dealt with before");
        if self.parent.as_ref() == Some(&parent) {
            return Ok(());
        }
        let attributes = Attributes::root(0o755, entry.attributes.mtime);
        let mut missing = Vec::new();
        let mut current = parent.clone();
        while !self.reach(&current)? {
            let above = current.parent().expect("the root is always there");
            missing.push(std::mem::replace(&mut current, above));
        }
        for directory in missing.into_iter().rev() {
            self.remember(&current)?;
            self.tree.create_dir(&directory, attributes)?;
            self.note(&directory, attributes)?;
            current = directory;
        }
        self.remember(&parent)?;
        let mut above = Some(parent.clone());
        while let Some(directory) = above.filter(|d| self.ours.insert(self.hasher.hash_one(d))) {
            above = directory.parent();
        }
        self.parent = Some(parent);
        Ok(())
    }

    /// Whether a directory is there, reached without a link. A link or a file on the way is an error.
    fn reach(&self, directory: &GuestPath) -> Result<bool> {
        match self.tree.metadata(directory) {
            Ok(None) => return Ok(false),
            Ok(Some(metadata)) if metadata.kind == Kind::Directory => return Ok(true),
            _ => {}
        }
        // Names the component, which costs a walk for each.
        let mut current = GuestPath::root();
        for component in directory.components() {
            current = current.join(component)?;
            match self.tree.metadata(&current)?.map(|m| m.kind) {
                Some(Kind::Directory) => {}
                None => return Ok(false),
                Some(Kind::Symlink) => {
                    let context = format!("{current} is a symbolic link");
                    return Err(Error::new(ErrorKind::UnsafePath, context));
                }
                Some(_) => {
                    return Err(Error::new(ErrorKind::WrongType, format!("{current} is no directory")));
                }
            }
        }
        Ok(true)
    }

    /// Notes how a directory is before its entries change, unless the layer has said how it is to be.
    fn remember(&mut self, directory: &GuestPath) -> Result<()> {
        if !self.directories.contains_key(directory)
            && let Some(metadata) = self.tree.metadata(directory)?
        {
            self.note(directory, metadata.attributes)?;
        }
        Ok(())
    }

    /// What a directory must say in the end.
    fn note(&mut self, directory: &GuestPath, attributes: Attributes) -> Result<()> {
        if self.directories.insert(directory.clone(), attributes).is_none() {
            self.directory_bytes += directory.as_bytes().len();
            if self.directory_bytes > MAX_DIRECTORY_BYTES {
                let context =
                    format!("the paths of its directories take more than {MAX_DIRECTORY_BYTES} bytes");
                return Err(Error::new(ErrorKind::TooLarge, context));
            }
        }
        Ok(())
    }

    fn settle_directories(&mut self) -> Result<()> {
        for (path, attributes) in &self.directories {
            // A whiteout may have removed one after its entries were touched.
            match self.tree.metadata(path) {
                Ok(Some(metadata)) if metadata.kind == Kind::Directory => {
                    self.tree.set_attributes(path, *attributes)?;
                }
                Err(e) if !matches!(e.kind(), ErrorKind::SymlinkInPath | ErrorKind::WrongType) => {
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn refuse_duplicate(&self, path: &GuestPath) -> Result<()> {
        if self.ours.contains(&self.hash(path)) {
            return Err(Error::new(ErrorKind::Duplicate, format!("the layer has {path} twice")));
        }
        Ok(())
    }

    fn hash(&self, path: &GuestPath) -> u64 {
        self.hasher.hash_one(path)
    }
}

fn symlink_target(entry: &Entry) -> Result<&[u8]> {
    // Where it leads is the guest's business: nothing here ever follows it out of the tree.
    if entry.link.is_empty() || entry.link.contains(&0) || entry.link.len() > crate::path::MAX_PATH {
        let target = printable(&entry.link);
        return Err(Error::new(ErrorKind::UnsafePath, format!("the link's target {target} is impossible")));
    }
    Ok(&entry.link)
}
