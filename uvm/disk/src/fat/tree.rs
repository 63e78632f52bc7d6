//! The files and directories of a volume under construction.

use std::collections::BTreeMap;

use super::clusters::Run;
use super::directory::{ENTRY_LEN, MAX_ENTRIES};
use super::name;
use super::time::DosTime;
use crate::{Error, ErrorKind, Result};

/// A file or a directory of a volume under construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FatNode(pub(super) u32);

pub(super) const ROOT: FatNode = FatNode(0);

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Entry {
    /// As it was given.
    pub(super) name: Box<str>,
    pub(super) node: FatNode,
}

/// A directory; its entries lie on the disk in the order of their names without case.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: FatNode,
    /// By name without case.
    pub(super) entries: BTreeMap<Box<str>, Entry>,
    /// Entries of 32 bytes it takes, the label or `.` and `..` included.
    pub(super) slots: u32,
}

impl Directory {
    fn new(parent: FatNode, slots: u32) -> Self {
        Self { parent, entries: BTreeMap::new(), slots }
    }

    /// Bytes of its entries.
    pub(super) fn len(&self) -> u32 {
        self.slots * ENTRY_LEN as u32
    }
}

#[derive(Debug)]
pub(super) enum Body {
    /// The runs of an empty file are none.
    File {
        size: u32,
        runs: Box<[Run]>,
    },
    Directory(Box<Directory>),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) mtime: DosTime,
    pub(super) body: Body,
}

/// All nodes; the first is the root.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Option<Node>>,
    unused: Vec<u32>,
}

fn gone() -> Error {
    Error::new(ErrorKind::NotFound, "the file is no longer on the FAT volume")
}

impl Tree {
    pub(super) fn new(mtime: DosTime, label_entries: u32) -> Self {
        let body = Body::Directory(Box::new(Directory::new(ROOT, label_entries)));
        Self { nodes: vec![Some(Node { mtime, body })], unused: Vec::new() }
    }

    pub(super) fn node(&self, node: FatNode) -> Result<&Node> {
        self.nodes.get(node.0 as usize).and_then(Option::as_ref).ok_or_else(gone)
    }

    pub(super) fn node_mut(&mut self, node: FatNode) -> Result<&mut Node> {
        self.nodes.get_mut(node.0 as usize).and_then(Option::as_mut).ok_or_else(gone)
    }

    pub(super) fn directory(&self, node: FatNode) -> Result<&Directory> {
        match &self.node(node)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File { .. } => Err(Error::new(ErrorKind::Invalid, "a file is no directory")),
        }
    }

    pub(super) fn directory_mut(&mut self, node: FatNode) -> Result<&mut Directory> {
        match &mut self.node_mut(node)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File { .. } => Err(Error::new(ErrorKind::Invalid, "a file is no directory")),
        }
    }

    /// The live nodes in the order they were made.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (FatNode, &Node)> {
        (0..).map(FatNode).zip(&self.nodes).filter_map(|(at, node)| Some((at, node.as_ref()?)))
    }

    pub(super) fn add(&mut self, mtime: DosTime, body: Body) -> FatNode {
        let node = Some(Node { mtime, body });
        match self.unused.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                FatNode(at)
            }
            None => {
                self.nodes.push(node);
                // A volume has fewer than 2^28 clusters, and an entry takes part of one.
                FatNode((self.nodes.len() - 1) as u32)
            }
        }
    }

    pub(super) fn empty_directory(parent: FatNode) -> Body {
        Body::Directory(Box::new(Directory::new(parent, 2)))
    }

    /// Takes a node out.
    pub(super) fn remove(&mut self, node: FatNode) -> Result<Node> {
        let removed = self.nodes.get_mut(node.0 as usize).and_then(Option::take).ok_or_else(gone)?;
        self.unused.push(node.0);
        Ok(removed)
    }

    /// Whether `node` is `above` or lies beneath it.
    pub(super) fn is_within(&self, node: FatNode, above: FatNode) -> Result<bool> {
        let mut at = node;
        while at != above {
            if at == ROOT {
                return Ok(false);
            }
            at = self.directory(at)?.parent;
        }
        Ok(true)
    }
}

/// Entries of 32 bytes that a name takes.
pub(super) fn slots_of(name: &str) -> u32 {
    name::long_entries(name) + 1
}

/// The slots of a directory with `more` entries, at most as many as FAT counts.
pub(super) fn grown(directory: &Directory, more: u32, max: u32) -> Result<u32> {
    let slots = directory.slots + more;
    let max = max.min(MAX_ENTRIES as u32);
    if slots > max {
        let context = format!("the FAT directory is full: it holds {max} entries of 32 bytes");
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    Ok(slots)
}
