//! Devices for the tests, and the foreign tools that judge what is on them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use uvm_disk::ext4::{Attributes, Ext4Options, Inodes, Timestamp, Variant};
use uvm_disk::{BlockDevice, Geometry};

/// A sparse file as a device that remembers what was written.
pub(crate) struct FileDevice {
    file: File,
    geometry: Geometry,
    /// Offset and length of each `write_at`.
    pub(crate) writes: Mutex<Vec<(u64, u64)>>,
    /// The same of each `write_zeroes`.
    pub(crate) zeroes: Mutex<Vec<(u64, u64)>>,
}

pub(crate) struct Image {
    _directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) device: Arc<FileDevice>,
}

impl Image {
    pub(crate) fn new(size: u64, logical_block_size: u32) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("an image");
        file.set_len(size).expect("the host's file system takes files of this size");
        let geometry = Geometry { size, logical_block_size, physical_block_size: 4096 };
        let device =
            Arc::new(FileDevice { file, geometry, writes: Mutex::default(), zeroes: Mutex::default() });
        Self { _directory: directory, path, device }
    }

    /// A device full of what a formatter must not take for zeros.
    pub(crate) fn dirty(size: u64) -> Self {
        let image = Self::new(size, 512);
        let junk: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8 | 0x80).collect();
        for offset in (0..size).step_by(junk.len()) {
            let length = junk.len().min((size - offset) as usize);
            image.device.file.write_all_at(&junk[..length], offset).expect("writes");
        }
        image
    }

    /// Exit 0 and not a word beyond the five passes.
    pub(crate) fn assert_clean(&self) {
        let output = Command::new("e2fsck").arg("-fn").arg(&self.path).output().expect("e2fsck is installed");
        let text = String::from_utf8_lossy(&output.stdout);
        let expected = |line: &str| line.starts_with("Pass ") || line.contains(" files (") || line.is_empty();
        assert!(output.status.success() && text.lines().all(expected), "e2fsck complains:\n{text}");
    }

    pub(crate) fn dumpe2fs(&self) -> String {
        run("dumpe2fs", &["-h", &self.path.to_string_lossy()])
    }

    pub(crate) fn debugfs(&self, request: &str) -> String {
        run("debugfs", &["-R", request, &self.path.to_string_lossy()])
    }

    pub(crate) fn mount(&self) -> Mounted {
        self.mount_as("ext4")
    }

    pub(crate) fn mount_as(&self, format: &str) -> Mounted {
        let size = self.device.geometry.logical_block_size.to_string();
        let image = self.path.to_string_lossy();
        let arguments = ["--find", "--show", "--sector-size", &size, &image];
        let device = run("losetup", &arguments).trim().to_string();
        let directory = tempfile::tempdir().expect("a directory");
        let mounted = Mounted { device, directory };
        run("mount", &["-t", format, &mounted.device, &mounted.path().to_string_lossy()]);
        mounted
    }
}

impl BlockDevice for FileDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= self.geometry.size, "a write past the end of the device");
        self.writes.lock().expect("no panic").push((offset, buf.len() as u64));
        self.file.write_all_at(buf, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zeroes.lock().expect("no panic").push((offset, len));
        // What is a hole stays one.
        let mut buffer = vec![0; 1 << 20];
        let mut at = offset;
        while at < offset + len {
            let part = buffer.len().min((offset + len - at) as usize);
            self.file.read_exact_at(&mut buffer[..part], at)?;
            if buffer[..part].iter().any(|byte| *byte != 0) {
                buffer.fill(0);
                self.file.write_all_at(&buffer[..part], at)?;
            }
            at += part as u64;
        }
        Ok(())
    }
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A loop mount, gone when dropped.
pub(crate) struct Mounted {
    device: String,
    directory: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A child of another test may hold a file of it for the moment between its fork and its exec.
        let mut left = 500;
        while !Command::new("umount").arg(self.path()).output().is_ok_and(|out| out.status.success()) {
            left -= 1;
            if left == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let detached = Command::new("losetup").arg("-d").arg(&self.device).status();
        if !std::thread::panicking() {
            assert!(left > 0, "{} stays busy", self.path().display());
            assert!(detached.expect("losetup runs").success());
        }
    }
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn options() -> Ext4Options {
    let uuid = *b"\x0b\x5e\x55\xed\x12\x34\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67";
    Ext4Options {
        label: "root".to_string(),
        inodes: Inodes::Ratio(16_384),
        ..Ext4Options::new(Variant::Ext4, uuid, [0x5A; 16], 1_700_000_000)
    }
}

pub(crate) fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: 0, gid: 0, mtime: Timestamp { seconds: 1_600_000_000, nanoseconds: 123_456_789 } }
}
