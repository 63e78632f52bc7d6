//! What a tree should be, and the comparison of a mounted one with it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uvm_disk::ext4::{Attributes, Ext4Builder, Ino, NodeKind, Timestamp};

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Bytes with runs of zeros, some long enough for a hole, at block bounds and off them.
    pub(crate) fn contents(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = self.bytes(length);
        for _ in 0..self.below(6) {
            let start = self.below(length as u64 + 1) as usize;
            let start = if self.below(2) == 0 { start / 4096 * 4096 } else { start };
            let run = [4096, 61_440, 65_536, 69_632, 200_000, 1 << 20][self.below(6) as usize];
            let end = length.min(start + run);
            bytes[start..end].fill(0);
        }
        bytes
    }

    fn name(&mut self) -> Vec<u8> {
        let length = if self.below(20) == 0 { 255 } else { 1 + self.below(40) as usize };
        (0..length)
            .map(|_| b"abcdefghijklmnopqrstuvwxyz0123456789-_ \xC3\xFF\n"[self.below(42) as usize])
            .collect()
    }

    fn attributes(&mut self) -> Attributes {
        Attributes {
            mode: self.below(0o10_000) as u16,
            uid: self.next() as u32 >> self.below(32),
            gid: self.next() as u32 >> self.below(32),
            mtime: Timestamp {
                seconds: self.below(12_700_000_000) as i64 - 2_000_000_000,
                nanoseconds: self.below(1_000_000_000) as u32,
            },
        }
    }
}

pub(crate) struct Node {
    kind: NodeKind,
    attributes: Attributes,
    /// Of a file, or a link's target.
    contents: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The expected tree: paths, and nodes by inode.
pub(crate) struct Model {
    names: BTreeMap<(Ino, Vec<u8>), Ino>,
    nodes: BTreeMap<Ino, Node>,
    directories: Vec<Ino>,
    block_size: u32,
}

impl Model {
    /// Does `operations` random things to `builder` and remembers what should come of it.
    pub(crate) fn build(
        builder: &mut Ext4Builder,
        random: &mut Random,
        operations: u32,
        block_size: u32,
    ) -> Self {
        let directories = vec![builder.root()];
        let mut model = Self { names: BTreeMap::new(), nodes: BTreeMap::new(), directories, block_size };
        for _ in 0..operations {
            let dir = model.directories[random.below(model.directories.len() as u64) as usize];
            let name = random.name();
            if matches!(&name[..], b"." | b"..") || model.names.contains_key(&(dir, name.clone())) {
                continue;
            }
            match random.below(20) {
                0 => model.unlink(builder, random),
                1 => model.link(builder, random, dir, name),
                2 => model.rename(builder, random, dir, name),
                _ => model.create(builder, random, dir, name),
            }
        }
        model
    }

    fn create(&mut self, builder: &mut Ext4Builder, random: &mut Random, dir: Ino, name: Vec<u8>) {
        let attributes = random.attributes();
        let (major, minor) = (random.below(400) as u32, random.below(1000) as u32);
        let mut contents = Vec::new();
        let kind = match random.below(24) {
            0..=2 => NodeKind::Directory,
            3..=5 => NodeKind::Symlink,
            6 => NodeKind::CharDevice { major, minor },
            7 => NodeKind::BlockDevice { major, minor },
            8 => NodeKind::Fifo,
            9 => NodeKind::Socket,
            _ => NodeKind::File,
        };
        let created = match kind {
            NodeKind::Directory => builder.create_dir(dir, &name, attributes),
            NodeKind::Symlink => {
                let length = [1, 20, 59, 60, 61, 255, self.block_size - 1][random.below(7) as usize];
                contents =
                    (0..length).map(|n| if n % 50 == 49 { b'/' } else { b'a' + (n % 26) as u8 }).collect();
                builder.create_symlink(dir, &name, attributes, &contents)
            }
            NodeKind::File => {
                let most = [0, 100, 5000, 70_000, 300_000, 5 << 20][random.below(6) as usize];
                let length = random.below(most + 1) as usize;
                contents = random.contents(length);
                builder.create_file(dir, &name, attributes, contents.len() as u64, &mut &contents[..])
            }
            special => builder.create_special(dir, &name, attributes, special),
        };
        let ino = created.expect("there is room");
        let mut node = Node { kind, attributes, contents, xattrs: BTreeMap::new() };
        for _ in 0..random.below(12).saturating_sub(7) {
            let space: &[u8] = if kind == NodeKind::File { b"user." } else { b"trusted." };
            let length = 1 + random.below(20) as usize;
            let key =
                [space, &random.bytes(length).iter().map(|b| b'a' + b % 26).collect::<Vec<_>>()].concat();
            let length = random.below(200) as usize;
            let value = random.bytes(length);
            builder.set_xattr(ino, &key, &value).expect("there is room");
            node.xattrs.insert(key, value);
        }
        if kind == NodeKind::Directory {
            self.directories.push(ino);
        }
        self.nodes.insert(ino, node);
        self.names.insert((dir, name), ino);
    }

    fn some_name(&self, random: &mut Random) -> Option<((Ino, Vec<u8>), Ino)> {
        let index = random.below(self.names.len().max(1) as u64) as usize;
        self.names.iter().nth(index).map(|(name, ino)| (name.clone(), *ino))
    }

    fn forget(&mut self, builder: &Ext4Builder, ino: Ino) {
        if !self.names.values().any(|other| *other == ino) {
            self.nodes.remove(&ino);
            self.directories.retain(|dir| *dir != ino);
            assert!(builder.kind(ino).is_err(), "the last name went, the node stayed");
        }
    }

    fn unlink(&mut self, builder: &mut Ext4Builder, random: &mut Random) {
        let Some(((dir, name), ino)) = self.some_name(random) else { return };
        let empty = !self.names.keys().any(|(above, _)| *above == ino);
        assert_eq!(builder.unlink(dir, &name).is_ok(), empty, "only what is empty goes");
        if empty {
            self.names.remove(&(dir, name));
            self.forget(builder, ino);
        }
    }

    fn link(&mut self, builder: &mut Ext4Builder, random: &mut Random, dir: Ino, name: Vec<u8>) {
        let Some((_, ino)) = self.some_name(random) else { return };
        let linked = builder.link(dir, &name, ino).is_ok();
        assert_eq!(linked, self.nodes[&ino].kind != NodeKind::Directory);
        if linked {
            self.names.insert((dir, name), ino);
        }
    }

    fn rename(&mut self, builder: &mut Ext4Builder, random: &mut Random, dir: Ino, name: Vec<u8>) {
        let Some(((from_dir, from), ino)) = self.some_name(random) else { return };
        let onto = if random.below(2) == 0 { self.some_name(random) } else { None };
        let ((to_dir, to), replaced) = onto.map_or(((dir, name), None), |(to, other)| (to, Some(other)));
        let renamed = builder.rename(from_dir, &from, to_dir, &to).is_ok();
        if !renamed || replaced == Some(ino) {
            return;
        }
        self.names.remove(&(from_dir, from));
        self.names.insert((to_dir, to), ino);
        if let Some(other) = replaced {
            self.forget(builder, other);
        }
    }

    /// Everything the builder itself says about the tree.
    pub(crate) fn compare_builder(&self, builder: &Ext4Builder) {
        for ((dir, name), ino) in &self.names {
            assert_eq!(builder.lookup(*dir, name).expect("a directory"), Some(*ino));
            let node = &self.nodes[ino];
            assert_eq!(builder.kind(*ino).expect("in use"), node.kind);
            assert_eq!(builder.attributes(*ino).expect("in use"), node.attributes);
            let xattrs: BTreeMap<_, _> = builder.xattrs(*ino).expect("in use").into_iter().collect();
            assert_eq!(xattrs, node.xattrs);
            match node.kind {
                NodeKind::File => {
                    let mut found = vec![1; node.contents.len() + 1];
                    let length = builder.read_at(*ino, 0, &mut found).expect("reads");
                    assert!(found[..length] == node.contents[..], "contents of {name:?}");
                    let middle = node.contents.len() / 2;
                    let length = builder.read_at(*ino, middle as u64, &mut found).expect("reads");
                    assert!(found[..length] == node.contents[middle..], "second half of {name:?}");
                }
                NodeKind::Symlink => assert_eq!(builder.read_link(*ino).expect("a link"), node.contents),
                _ => {}
            }
        }
        for dir in &self.directories {
            let listed = builder.list(*dir).expect("a directory");
            let root = usize::from(*dir == builder.root());
            assert_eq!(listed.len() - root, self.names.keys().filter(|(above, _)| above == dir).count());
        }
    }

    /// Everything the kernel says about it.
    pub(crate) fn compare_mounted(&self, root: Ino, mount: &Path) {
        let mut paths = BTreeMap::from([(root, mount.to_path_buf())]);
        let mut waiting = vec![root];
        let mut compared = 0;
        while let Some(dir) = waiting.pop() {
            let expected: Vec<_> = self.names.iter().filter(|((above, _), _)| *above == dir).collect();
            let found =
                fs::read_dir(&paths[&dir]).expect("reads").map(|entry| entry.expect("reads").file_name());
            let found = found.filter(|name| dir != root || name != "lost+found").count();
            assert_eq!(found, expected.len(), "{:?}", paths[&dir]);
            for ((_, name), ino) in expected {
                let path = paths[&dir].join(OsStr::from_bytes(name));
                self.compare_node(*ino, &path);
                compared += 1;
                if self.nodes[ino].kind == NodeKind::Directory {
                    waiting.push(*ino);
                    paths.insert(*ino, path);
                }
            }
        }
        assert_eq!(compared, self.names.len());
        self.compare_xattrs(&paths, mount);
    }

    fn compare_node(&self, ino: Ino, path: &Path) {
        let node = &self.nodes[&ino];
        let metadata = fs::symlink_metadata(path).expect("is there");
        let a = node.attributes;
        assert_eq!(metadata.ino(), u64::from(ino.get()), "{path:?}");
        assert_eq!((metadata.mode() & 0o7777) as u16, a.mode, "{path:?}");
        assert_eq!((metadata.uid(), metadata.gid()), (a.uid, a.gid), "{path:?}");
        let time = (metadata.mtime(), metadata.mtime_nsec());
        assert_eq!(time, (a.mtime.seconds, i64::from(a.mtime.nanoseconds)), "{path:?}");
        let below = |kind| {
            self.names.iter().filter(move |((above, _), at)| *above == ino && self.nodes[at].kind == kind)
        };
        let links = match node.kind {
            NodeKind::Directory => 2 + below(NodeKind::Directory).count(),
            _ => self.names.values().filter(|other| **other == ino).count(),
        };
        assert_eq!(metadata.nlink(), links as u64, "{path:?}");
        let file_type = metadata.mode() & 0o170_000;
        let device = |major: u32, minor: u32| u64::from(minor & 0xFF | major << 8 | (minor & !0xFF) << 12);
        match node.kind {
            NodeKind::File => {
                assert_eq!(file_type, 0o100_000);
                assert!(fs::read(path).expect("reads") == node.contents, "contents of {path:?}");
            }
            NodeKind::Symlink => {
                let target = fs::read_link(path).expect("a link");
                assert_eq!(target.as_os_str().as_bytes(), node.contents);
            }
            NodeKind::Directory => assert_eq!(file_type, 0o040_000),
            NodeKind::CharDevice { major, minor } => {
                assert_eq!((file_type, metadata.rdev()), (0o020_000, device(major, minor)));
            }
            NodeKind::BlockDevice { major, minor } => {
                assert_eq!((file_type, metadata.rdev()), (0o060_000, device(major, minor)));
            }
            NodeKind::Fifo => assert_eq!(file_type, 0o010_000),
            NodeKind::Socket => assert_eq!(file_type, 0o140_000),
        }
    }

    /// One getfattr for the whole tree; what it prints is compared as a set of lines.
    fn compare_xattrs(&self, directories: &BTreeMap<Ino, PathBuf>, mount: &Path) {
        let mut expected = Vec::new();
        for ((dir, name), ino) in &self.names {
            let path = directories[dir].join(OsStr::from_bytes(name));
            for (key, value) in &self.nodes[ino].xattrs {
                let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                let value = if hex.is_empty() { String::new() } else { format!("0x{hex}") };
                expected.push(format!("{}={value}", String::from_utf8_lossy(key)));
                assert!(path.symlink_metadata().is_ok());
            }
        }
        let mount = mount.to_string_lossy();
        let printed = super::device::run(
            "getfattr",
            &["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", &mount],
        );
        let lines = printed.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let mut found: Vec<_> = lines.map(|line| line.trim_end_matches("0x").to_string()).collect();
        expected.sort();
        found.sort();
        assert!(
            !expected.is_empty() && found == expected,
            "{} found, {} expected",
            found.len(),
            expected.len()
        );
    }
}
