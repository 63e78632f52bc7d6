//! A complete guest tree in memory: what the rules of [`GuestTree`] mean, in the shortest form.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::error::{Error, ErrorKind, Result};
use crate::path::{GuestPath, printable};
use crate::tree::{Attributes, GuestTree, Kind, Metadata};

type Names = BTreeMap<Vec<u8>, usize>;

#[derive(Debug)]
enum Content {
    File(Vec<u8>),
    Directory(Names),
    Symlink(Vec<u8>),
    Special(Kind),
}

#[derive(Debug)]
struct Node {
    content: Content,
    attributes: Attributes,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    links: u32,
}

/// A [`GuestTree`] that lives in memory.
#[derive(Debug)]
pub struct MemoryTree {
    // Slots are never used twice: a tree lives as long as one test or one small job.
    nodes: Vec<Option<Node>>,
}

const ROOT: usize = 0;

impl Default for MemoryTree {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryTree {
    /// An empty root directory, 0755, owned by root.
    pub fn new() -> Self {
        let attributes = Attributes::root(0o755, Default::default());
        let content = Content::Directory(Names::new());
        Self { nodes: vec![Some(Node { content, attributes, xattrs: BTreeMap::new(), links: 1 })] }
    }

    /// How many names the entry at `path` has.
    pub fn links(&self, path: &GuestPath) -> Result<u32> {
        Ok(self.node(self.find(path)?).links)
    }

    fn node(&self, id: usize) -> &Node {
        self.nodes[id].as_ref().expect("a name points at a live node")
    }

    fn node_mut(&mut self, id: usize) -> &mut Node {
        self.nodes[id].as_mut().expect("a name points at a live node")
    }

    /// The node of a directory on the way to something, or why it is none.
    fn names(&self, id: usize, path: &GuestPath) -> Result<&Names> {
        match &self.node(id).content {
            Content::Directory(names) => Ok(names),
            Content::Symlink(_) => {
                Err(Error::new(ErrorKind::SymlinkInPath, format!("{path} passes through a symbolic link")))
            }
            _ => Err(Error::new(ErrorKind::WrongType, format!("{path} passes through what is no directory"))),
        }
    }

    fn lookup(&self, path: &GuestPath) -> Result<Option<usize>> {
        let mut id = ROOT;
        for component in path.components() {
            match self.names(id, path)?.get(component) {
                Some(next) => id = *next,
                None => return Ok(None),
            }
        }
        Ok(Some(id))
    }

    fn find(&self, path: &GuestPath) -> Result<usize> {
        self.lookup(path)?.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{path} is not there")))
    }

    /// The parent's node and the last component.
    fn place(&self, path: &GuestPath) -> Result<(usize, Vec<u8>)> {
        let (Some(parent), Some(name)) = (path.parent(), path.name()) else {
            return Err(Error::new(
                ErrorKind::Invalid,
                "the root directory cannot be created, moved or removed",
            ));
        };
        let id = self.find(&parent)?;
        self.names(id, path)?;
        Ok((id, name.to_vec()))
    }

    fn names_mut(&mut self, id: usize) -> &mut Names {
        match &mut self.node_mut(id).content {
            Content::Directory(names) => names,
            _ => unreachable!("place() returns directories only"),
        }
    }

    fn insert(&mut self, path: &GuestPath, content: Content, attributes: Attributes) -> Result<()> {
        let (parent, name) = self.place(path)?;
        let id = self.nodes.len();
        if self.names_mut(parent).contains_key(&name) {
            return Err(Error::new(ErrorKind::Exists, format!("{path} is there already")));
        }
        self.nodes.push(Some(Node { content, attributes, xattrs: BTreeMap::new(), links: 1 }));
        self.names_mut(parent).insert(name, id);
        Ok(())
    }

    fn unlink(&mut self, parent: usize, name: &[u8]) {
        if let Some(id) = self.names_mut(parent).remove(name) {
            let node = self.node_mut(id);
            node.links -= 1;
            if node.links == 0 {
                self.nodes[id] = None;
            }
        }
    }

    fn file(&self, path: &GuestPath) -> Result<&[u8]> {
        match &self.node(self.find(path)?).content {
            Content::File(bytes) => Ok(bytes),
            _ => Err(Error::new(ErrorKind::WrongType, format!("{path} is no regular file"))),
        }
    }

    fn kind(&self, id: usize) -> Kind {
        match &self.node(id).content {
            Content::File(bytes) => Kind::File { size: bytes.len() as u64 },
            Content::Directory(_) => Kind::Directory,
            Content::Symlink(_) => Kind::Symlink,
            Content::Special(kind) => *kind,
        }
    }
}

impl GuestTree for MemoryTree {
    fn metadata(&self, path: &GuestPath) -> Result<Option<Metadata>> {
        let id = self.lookup(path)?;
        Ok(id.map(|id| Metadata { kind: self.kind(id), attributes: self.node(id).attributes }))
    }

    fn list(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Kind)>> {
        match &self.node(self.find(path)?).content {
            Content::Directory(names) => {
                Ok(names.iter().map(|(name, id)| (name.clone(), self.kind(*id))).collect())
            }
            _ => Err(Error::new(ErrorKind::WrongType, format!("{path} is no directory"))),
        }
    }

    fn read(&self, path: &GuestPath, limit: u64) -> Result<Vec<u8>> {
        let bytes = self.file(path)?;
        if bytes.len() as u64 > limit {
            return Err(Error::new(ErrorKind::TooLarge, format!("{path} has more than {limit} bytes")));
        }
        Ok(bytes.to_vec())
    }

    fn copy_out(&self, path: &GuestPath, sink: &mut dyn Write) -> Result<u64> {
        let bytes = self.file(path)?;
        sink.write_all(bytes)
            .map_err(|e| Error::with_source(ErrorKind::Io, format!("copying {path} out"), e))?;
        Ok(bytes.len() as u64)
    }

    fn read_link(&self, path: &GuestPath) -> Result<Vec<u8>> {
        match &self.node(self.find(path)?).content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::new(ErrorKind::WrongType, format!("{path} is no symbolic link"))),
        }
    }

    fn write(
        &mut self,
        path: &GuestPath,
        attributes: Attributes,
        size: u64,
        contents: &mut dyn Read,
    ) -> Result<()> {
        let (parent, name) = self.place(path)?;
        if let Some(Kind::Directory) = self.lookup(path)?.map(|id| self.kind(id)) {
            return Err(Error::new(ErrorKind::WrongType, format!("{path} is a directory")));
        }
        let mut bytes = Vec::new();
        contents.take(size).read_to_end(&mut bytes).map_err(|e| {
            Error::with_source(ErrorKind::Source, format!("reading the contents of {path}"), e)
        })?;
        if bytes.len() as u64 != size {
            return Err(Error::new(ErrorKind::Truncated, format!("the contents of {path} ended early")));
        }
        self.unlink(parent, &name);
        self.insert(path, Content::File(bytes), attributes)
    }

    fn create_dir(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        self.insert(path, Content::Directory(Names::new()), attributes)
    }

    fn symlink(&mut self, path: &GuestPath, target: &[u8], attributes: Attributes) -> Result<()> {
        if target.is_empty() || target.contains(&0) || target.len() > crate::path::MAX_PATH {
            let target = printable(target);
            return Err(Error::new(ErrorKind::Invalid, format!("{path} cannot link to {target}")));
        }
        self.insert(path, Content::Symlink(target.to_vec()), Attributes { mode: 0o777, ..attributes })
    }

    fn hard_link(&mut self, path: &GuestPath, existing: &GuestPath) -> Result<()> {
        let id = self.find(existing)?;
        let (parent, name) = self.place(path)?;
        if self.kind(id) == Kind::Directory {
            return Err(Error::new(ErrorKind::WrongType, format!("{existing} is a directory")));
        }
        if self.names_mut(parent).contains_key(&name) {
            return Err(Error::new(ErrorKind::Exists, format!("{path} is there already")));
        }
        self.names_mut(parent).insert(name, id);
        self.node_mut(id).links += 1;
        Ok(())
    }

    fn create_special(&mut self, path: &GuestPath, kind: Kind, attributes: Attributes) -> Result<()> {
        match kind {
            Kind::File { .. } | Kind::Directory | Kind::Symlink => {
                Err(Error::new(ErrorKind::Invalid, format!("{path}: not a device node, FIFO or socket")))
            }
            _ => self.insert(path, Content::Special(kind), attributes),
        }
    }

    fn remove(&mut self, path: &GuestPath) -> Result<()> {
        let id = self.find(path)?;
        let (parent, name) = self.place(path)?;
        if matches!(&self.node(id).content, Content::Directory(names) if !names.is_empty()) {
            return Err(Error::new(ErrorKind::NotEmpty, format!("the directory {path} is not empty")));
        }
        self.unlink(parent, &name);
        Ok(())
    }

    fn rename(&mut self, from: &GuestPath, to: &GuestPath) -> Result<()> {
        let id = self.find(from)?;
        let (from_parent, from_name) = self.place(from)?;
        let (to_parent, to_name) = self.place(to)?;
        if to.is_within(from) {
            return Err(Error::new(ErrorKind::Invalid, format!("{from} cannot move to {to}, into itself")));
        }
        if let Some(there) = self.lookup(to)? {
            if self.kind(there) == Kind::Directory || self.kind(id) == Kind::Directory {
                return Err(Error::new(ErrorKind::Exists, format!("{to} is there already")));
            }
            if there == id {
                return Ok(());
            }
        }
        self.unlink(to_parent, &to_name);
        self.names_mut(from_parent).remove(&from_name);
        self.names_mut(to_parent).insert(to_name, id);
        Ok(())
    }

    fn set_attributes(&mut self, path: &GuestPath, attributes: Attributes) -> Result<()> {
        let id = self.find(path)?;
        let mode = if self.kind(id) == Kind::Symlink { 0o777 } else { attributes.mode };
        self.node_mut(id).attributes = Attributes { mode, ..attributes };
        Ok(())
    }

    fn set_xattr(&mut self, path: &GuestPath, name: &[u8], value: &[u8]) -> Result<()> {
        let id = self.find(path)?;
        self.node_mut(id).xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }

    fn xattrs(&self, path: &GuestPath) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let node = self.node(self.find(path)?);
        Ok(node.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Timestamp, write_bytes};

    const AT: Attributes =
        Attributes { mode: 0o644, uid: 1, gid: 2, mtime: Timestamp { seconds: 1, nanoseconds: 5 } };

    fn p(path: &str) -> GuestPath {
        GuestPath::absolute(path).unwrap()
    }

    #[test]
    fn no_method_follows_a_link() {
        let mut tree = MemoryTree::new();
        tree.create_dir(&p("/d"), AT).unwrap();
        write_bytes(&mut tree, &p("/d/f"), AT, b"x").unwrap();
        tree.symlink(&p("/l"), b"d", AT).unwrap();
        let through = p("/l/f");
        let kinds = [
            tree.metadata(&through).unwrap_err().kind(),
            tree.read(&through, 9).unwrap_err().kind(),
            write_bytes(&mut tree, &through, AT, b"y").unwrap_err().kind(),
            tree.create_dir(&p("/l/n"), AT).unwrap_err().kind(),
            tree.remove(&through).unwrap_err().kind(),
            tree.hard_link(&p("/h"), &through).unwrap_err().kind(),
            tree.rename(&through, &p("/h")).unwrap_err().kind(),
            tree.set_attributes(&through, AT).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::SymlinkInPath; 8]);
        assert_eq!(tree.list(&p("/l")).unwrap_err().kind(), ErrorKind::WrongType);
        assert_eq!(tree.read(&p("/l"), 9).unwrap_err().kind(), ErrorKind::WrongType);
        assert_eq!(tree.read(&p("/d/f"), 9).unwrap(), b"x");
    }

    #[test]
    fn a_replaced_name_leaves_its_other_links_alone() {
        let mut tree = MemoryTree::new();
        write_bytes(&mut tree, &p("/a"), AT, b"old").unwrap();
        tree.hard_link(&p("/b"), &p("/a")).unwrap();
        assert_eq!(tree.links(&p("/a")).unwrap(), 2);
        write_bytes(&mut tree, &p("/a"), AT, b"new").unwrap();
        assert_eq!(tree.read(&p("/b"), 9).unwrap(), b"old");
        assert_eq!(tree.links(&p("/b")).unwrap(), 1);
        tree.rename(&p("/b"), &p("/a")).unwrap();
        assert_eq!(tree.read(&p("/a"), 9).unwrap(), b"old");
        assert!(tree.metadata(&p("/b")).unwrap().is_none());
    }

    #[test]
    fn refusals_are_told_apart() {
        let mut tree = MemoryTree::new();
        tree.create_dir(&p("/d"), AT).unwrap();
        write_bytes(&mut tree, &p("/d/f"), AT, b"12345").unwrap();
        assert_eq!(tree.remove(&p("/d")).unwrap_err().kind(), ErrorKind::NotEmpty);
        assert_eq!(tree.create_dir(&p("/d"), AT).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(tree.create_dir(&p("/x/y"), AT).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(tree.read(&p("/d/f"), 4).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(tree.rename(&p("/d"), &p("/d/e")).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(tree.hard_link(&p("/e"), &p("/d")).unwrap_err().kind(), ErrorKind::WrongType);
        assert_eq!(write_bytes(&mut tree, &p("/d"), AT, b"").unwrap_err().kind(), ErrorKind::WrongType);
        let short = tree.write(&p("/d/f"), AT, 3, &mut &b"ab"[..]).unwrap_err();
        assert_eq!(short.kind(), ErrorKind::Truncated);
        assert_eq!(tree.read(&p("/d/f"), 9).unwrap(), b"12345");
    }
}
