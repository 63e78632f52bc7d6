//! File systems that mke2fs made, trees of files in them, and what the judges say.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uvm_disk::{BlockDevice, Geometry};

use crate::judge::{Loop, agree, ask};

pub(crate) const MIB: u64 = 1 << 20;

/// Numbers that are the same each time.
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % limit
    }
}

/// A file with a file system; it may grow and shrink.
pub(crate) struct Disk {
    directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) logical_block_size: u32,
}

/// An open [`Disk`].
pub(crate) struct Open {
    file: fs::File,
    geometry: Geometry,
}

impl Disk {
    pub(crate) fn new(size: u64, logical_block_size: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        fs::File::create(&path).unwrap().set_len(size).unwrap();
        Self { directory, path, logical_block_size }
    }

    /// A file system by mke2fs with these options and the files of `tree`.
    pub(crate) fn made(size: u64, options: &str, tree: Option<&Path>) -> Self {
        let disk = Self::new(size, 512);
        // Of several -E only the last counts.
        let mut extended = "hash_seed=6b6b6b6b-6b6b-6b6b-6b6b-6b6b6b6b6b6b,root_owner=0:0".to_owned();
        let mut args = Vec::new();
        let mut words = options.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "-E" => extended = format!("{extended},{}", words.next().unwrap()),
                _ => args.push(word),
            }
        }
        args.extend(["-q", "-F", "-E", &extended]);
        if let Some(tree) = tree {
            args.extend(["-d", tree.to_str().unwrap()]);
        }
        args.push(disk.path());
        agree("mke2fs", &args);
        disk
    }

    pub(crate) fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }

    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn set_len(&self, size: u64) {
        fs::File::options().write(true).open(&self.path).unwrap().set_len(size).unwrap();
    }

    pub(crate) fn open(&self) -> Open {
        let file = fs::File::options().read(true).write(true).open(&self.path).unwrap();
        let size = file.metadata().unwrap().len();
        let block = self.logical_block_size;
        let geometry = Geometry { size, logical_block_size: block, physical_block_size: block };
        Open { file, geometry }
    }

    /// A copy of a file, sharing nothing with it.
    pub(crate) fn copy_of(path: &Path) -> Self {
        let copy = Self::new(0, 512);
        agree("cp", &["--sparse=always", path.to_str().unwrap(), copy.path()]);
        copy
    }

    /// A copy that shares nothing.
    pub(crate) fn copied(&self) -> Self {
        Self { logical_block_size: self.logical_block_size, ..Self::copy_of(&self.path) }
    }

    /// e2fsck finds nothing to say.
    pub(crate) fn assert_clean(&self) {
        assert_clean(&self.path);
    }

    /// A digest of names, contents, links, attributes and times of all files, by way of the kernel.
    pub(crate) fn tree(&self) -> String {
        self.mounted("ro", digest)
    }

    /// Runs something on the mounted file system.
    pub(crate) fn mounted<T>(&self, options: &str, run: impl FnOnce(&Path) -> T) -> T {
        let device = Loop::new(&self.path, self.logical_block_size);
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        agree("mount", &["-t", "ext4", "-o", options, &device.0, root.to_str().unwrap()]);
        let result = run(root);
        // A child of another test may hold a file of it for the moment between its fork and its exec.
        let mut left = 500;
        while !ask("umount", &[root.to_str().unwrap()]).0 {
            left -= 1;
            assert!(left > 0, "{} stays busy", root.display());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        result
    }

    /// What dumpe2fs says behind `name:`.
    pub(crate) fn said(&self, name: &str) -> String {
        let text = agree("dumpe2fs", &["-h", self.path()]);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
    }
}

pub(crate) fn assert_clean(path: &Path) {
    let (ok, text) = ask("e2fsck", &["-fn", path.to_str().unwrap()]);
    let said = text.lines().filter(|line| {
        !line.starts_with("Pass ")
            && !line.starts_with("e2fsck 1.")
            && !line.starts_with(path.to_str().unwrap())
    });
    assert!(ok && said.collect::<String>().is_empty(), "{text}");
}

pub(crate) fn digest(root: &Path) -> String {
    let root = root.to_str().unwrap();
    let script =
        "cd \"$0\" && tar --xattrs --xattrs-include='*' --sort=name --numeric-owner -c . | sha256sum";
    let text = agree("sh", &["-c", script, root]);
    assert!(text.len() >= 64, "{text}");
    text
}

impl BlockDevice for Open {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= self.geometry.size, "a write past the end of the device");
        self.file.write_all_at(buf, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A folder of files of many kinds, some `files` of them, up to `largest` bytes each.
pub(crate) fn grow_tree(root: &Path, files: u64, largest: u64, random: &mut Random) {
    let mut folders = vec![root.to_owned()];
    for number in 0..files {
        let folder = folders[random.below(folders.len() as u64) as usize].clone();
        let path = folder.join(format!("entry-{number:05}"));
        match random.below(12) {
            0 => {
                fs::create_dir(&path).unwrap();
                folders.push(path);
            }
            1 => std::os::unix::fs::symlink("short", &path).unwrap(),
            2 => std::os::unix::fs::symlink("l".repeat(200), &path).unwrap(),
            3 if number > 0 => {
                let first = folder.join(format!("first-{number}"));
                fs::write(&first, number.to_le_bytes()).unwrap();
                fs::hard_link(&first, &path).unwrap();
            }
            4 => {
                let file = fs::File::create(&path).unwrap();
                for piece in 0..5 {
                    file.write_all_at(&vec![7; 3000], piece * 40_000 + random.below(9000)).unwrap();
                }
            }
            _ => {
                let length = random.below(largest) as usize;
                let byte = random.below(256) as u8;
                let contents: Vec<u8> = (0..length).map(|at| byte ^ (at / 512) as u8).collect();
                fs::write(&path, contents).unwrap();
            }
        }
    }
    if files > 0 {
        let path = root.join("with-attributes");
        fs::write(&path, b"x").unwrap();
        let value = "v".repeat(400);
        agree("setfattr", &["-n", "user.long", "-v", &value, path.to_str().unwrap()]);
        fs::write(root.join("big"), vec![3; largest as usize * 4]).unwrap();
    }
}
