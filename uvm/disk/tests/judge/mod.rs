//! Disks as files, and foreign tools that judge them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod fault;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use uvm_disk::{BlockDevice, Geometry};

pub struct Image {
    file: File,
    pub path: PathBuf,
    geometry: Geometry,
    _dir: tempfile::TempDir,
}

impl Image {
    /// A sparse file.
    pub fn new(size: u64, block: u32) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        let geometry = Geometry { size, logical_block_size: block, physical_block_size: block };
        Arc::new(Self { file, path, geometry, _dir: dir })
    }
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

impl BlockDevice for Image {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= self.geometry.size, "write beyond the end");
        self.file.write_all_at(buf, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// Runs a judge, which has to be there; returns its status and all it said.
pub fn ask(tool: &str, args: &[&str]) -> (bool, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(tool)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C.UTF-8")
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap_or_else(|e| panic!("the judge {tool} is missing: {e}"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// The same, and it has to agree.
pub fn agree(tool: &str, args: &[&str]) -> String {
    let (ok, text) = ask(tool, args);
    assert!(ok, "{tool} {args:?}: {text}");
    text
}

/// The same with something to read.
pub fn agree_with(tool: &str, args: &[&str], input: &str) -> String {
    use std::io::Write;
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut command = Command::new(tool);
    command.args(args).env("PATH", path).env("LC_ALL", "C.UTF-8").stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("the judge {tool} is missing: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {text}");
    text
}

/// A loop device over an image, gone when dropped.
pub struct Loop(pub String);

impl Loop {
    pub fn new(path: &Path, block: u32) -> Self {
        let block = block.to_string();
        let device = agree("losetup", &["-b", &block, "-f", "--show", path.to_str().unwrap()]);
        // Partitions of the device's last file stay with it where a test was killed.
        ask("partx", &["-d", "--nr", "1-128", device.trim()]);
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        agree("losetup", &["-d", &self.0]);
    }
}
