//! The kernel and GNU tar as judges: loop devices, mounts, and whole trees compared.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use super::{Disk, ask, run};

/// A part of a disk's file as a read-only loop device; gone when dropped.
pub struct LoopDevice {
    pub path: String,
}

impl LoopDevice {
    pub fn new(disk: &Disk, offset: u64, size: u64) -> Self {
        Self::set_up(disk, offset, size, &["-r"])
    }

    /// One that may be written to.
    pub fn writable(disk: &Disk, offset: u64, size: u64) -> Self {
        Self::set_up(disk, offset, size, &[])
    }

    fn set_up(disk: &Disk, offset: u64, size: u64, more: &[&str]) -> Self {
        let numbers = [offset, size, u64::from(disk.block)].map(|number| number.to_string());
        let [offset, size, block] = &numbers;
        let file = disk.path.to_str().unwrap();
        let arguments = ["-f", "--show", "-o", offset, "--sizelimit", size, "-b", block, file];
        Self { path: run("losetup", &[more, &arguments].concat()).trim().to_owned() }
    }

    pub fn mount(&self) -> Mounted {
        self.mount_with("ro,noload")
    }

    pub fn mount_for_writing(&self) -> Mounted {
        self.mount_with("rw")
    }

    fn mount_with(&self, options: &str) -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        run("mount", &["-t", "ext4", "-o", options, &self.path, path.to_str().unwrap()]);
        Mounted { path, _folder: folder }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        ask("losetup", &["-d", &self.path]);
    }
}

/// A mounted file system; unmounted when dropped.
pub struct Mounted {
    pub path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        ask("umount", &[&self.path]);
    }
}

/// All that is to be compared of an entry.
#[derive(Debug, Clone)]
pub struct Entry {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    /// Of files; the size of a directory is its file system's affair.
    pub size: u64,
    pub rdev: u64,
    pub links: u64,
    /// Of the paths of this file, the first.
    pub first_link: String,
    pub target: Option<Vec<u8>>,
    pub digest: Option<String>,
    pub xattrs: Vec<String>,
    /// Bytes on the disk; not compared.
    pub allocated: u64,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        let facts = |e: &Self| (e.mode, e.owner, e.mtime, e.size, e.rdev, e.links);
        let more = |e: &Self| (e.first_link.clone(), e.target.clone(), e.digest.clone(), e.xattrs.clone());
        facts(self) == facts(other) && more(self) == more(other)
    }
}

/// A tree by its paths; the root is the empty path, bytes that are not UTF-8 are escaped.
pub struct Tree(BTreeMap<String, Entry>);

impl std::ops::Deref for Tree {
    type Target = BTreeMap<String, Entry>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().utf8_chunks().fold(String::new(), |text, chunk| {
        let escaped: String = chunk.invalid().iter().map(|byte| format!("\\{byte:03o}")).collect();
        text + chunk.valid() + &escaped
    })
}

impl Tree {
    pub fn read(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut first = BTreeMap::new();
        let xattrs = read_xattrs(root);
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            let metadata = path.symlink_metadata().unwrap();
            let name = shown(path.strip_prefix(root).unwrap());
            let kind = metadata.file_type();
            if kind.is_dir() {
                pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                let known: &mut String = first.entry(metadata.ino()).or_insert_with(|| name.clone());
                if name < *known {
                    known.clone_from(&name);
                }
            }
            let device = kind.is_char_device() || kind.is_block_device();
            let entry = Entry {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                size: if kind.is_file() { metadata.len() } else { 0 },
                rdev: if device { metadata.rdev() } else { 0 },
                links: if kind.is_dir() { 0 } else { metadata.nlink() },
                first_link: metadata.ino().to_string(),
                target: kind.is_symlink().then(|| path.read_link().unwrap().as_os_str().as_bytes().to_vec()),
                digest: kind.is_file().then(|| super::image::sha256(&std::fs::read(&path).unwrap())),
                xattrs: xattrs.get(&name).cloned().unwrap_or_default(),
                allocated: metadata.blocks() * 512,
            };
            entries.insert(name, entry);
        }
        for entry in entries.values_mut() {
            let ino: u64 = entry.first_link.parse().unwrap();
            entry.first_link = first.get(&ino).cloned().unwrap_or_default();
        }
        Self(entries)
    }
}

/// Extended attributes of all entries, as getfattr prints them.
fn read_xattrs(root: &Path) -> BTreeMap<String, Vec<String>> {
    let arguments =
        ["-R", "-P", "-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", root.to_str().unwrap()];
    let said = run("getfattr", &arguments);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut path = String::new();
    for line in said.lines() {
        if let Some(name) = line.strip_prefix("# file: ") {
            let below = name.strip_prefix(root.to_str().unwrap()).unwrap();
            path = below.trim_start_matches('/').to_owned();
        } else if !line.is_empty() {
            found.entry(path.clone()).or_default().push(line.to_owned());
        }
    }
    found.values_mut().for_each(|attributes| attributes.sort());
    found
}

fn folder_times(root: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let entries = std::fs::read_dir(&path).unwrap().map(Result::unwrap);
        pending.extend(entries.filter(|e| e.file_type().unwrap().is_dir()).map(|e| e.path()));
        found.push((path.clone(), path.metadata().unwrap().modified().unwrap()));
    }
    found
}

/// Unpacks the layers of an image with GNU tar, whiteouts first, and reads what came out.
pub fn expected_tree(layout: &Path, digest: &str, into: &Path) -> Tree {
    let blob = |digest: &Value| {
        layout.join("blobs/sha256").join(digest.as_str().unwrap().split_once(':').unwrap().1)
    };
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(blob(&Value::from(digest))).unwrap()).unwrap();
    let into = into.to_str().unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let path = blob(&layer["digest"]);
        let how = match layer["mediaType"].as_str().unwrap().rsplit_once('+') {
            Some((_, "zstd")) => "--zstd",
            Some(_) => "--gzip",
            None => "--no-auto-compress",
        };
        let path = path.to_str().unwrap();
        let said = run("tar", &["-t", how, "--quoting-style=literal", "-f", path]);
        let times = folder_times(Path::new(into));
        for line in said.lines() {
            let Some((folder, name)) = line.rsplit_once('/') else { continue };
            let Some(name) = name.strip_prefix(".wh.") else { continue };
            let folder = Path::new(into).join(folder);
            let gone = match name {
                ".wh..opq" => folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect(),
                name => vec![folder.join(name)],
            };
            run("rm", &[vec!["-rf".into(), "--".into()], gone].concat());
        }
        let mut arguments = vec!["-x", how, "-p", "--numeric-owner", "--same-owner", "--xattrs"];
        arguments.extend(["--xattrs-include=*", "--exclude=.wh.*", "-C", into, "-f", path]);
        run("tar", &arguments);
        // A folder that the layer does not name stays as it was, whatever was put into it.
        let named: BTreeSet<&str> = said.lines().map(|line| line.trim_matches(['.', '/'])).collect();
        for (folder, time) in times {
            let name = shown(folder.strip_prefix(into).unwrap());
            if folder.is_dir() && !named.contains(name.trim_matches(['.', '/'])) {
                std::fs::File::open(&folder).unwrap().set_modified(time).unwrap();
            }
        }
    }
    Tree::read(Path::new(into))
}
