//! Writes the "newc" archive an initramfs is: a header of hexadecimal fields, the name, the contents, each padded to
//! four bytes (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

/// A device's major and minor number.
#[derive(Clone, Copy)]
pub(crate) struct DeviceNumber {
    /// Selects the driver.
    pub(crate) major: u32,
    /// Selects the device of the driver.
    pub(crate) minor: u32,
}

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;

/// The archive being written. Owners are root and times are zero, so the same input gives the same bytes.
pub(crate) struct Archive<W: Write> {
    out: W,
    next_inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub(crate) fn new(out: W) -> Self {
        Self { out, next_inode: 1 }
    }

    /// Adds a directory.
    pub(crate) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(name, S_IFDIR | permissions, DeviceNumber { major: 0, minor: 0 }, &[])
    }

    /// Adds a character device.
    pub(crate) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        device: DeviceNumber,
    ) -> io::Result<()> {
        self.entry(name, S_IFCHR | permissions, device, &[])
    }

    /// Adds a regular file.
    pub(crate) fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.entry(name, S_IFREG | permissions, DeviceNumber { major: 0, minor: 0 }, contents)
    }

    /// Writes the trailer and returns the writer.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.next_inode = 0;
        self.entry("TRAILER!!!", 0, DeviceNumber { major: 0, minor: 0 }, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: DeviceNumber, contents: &[u8]) -> io::Result<()> {
        let too_large =
            |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{name}: too large for an archive"));
        let size = u32::try_from(contents.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let links = if mode & S_IFDIR != 0 && mode & S_IFREG == 0 { 2 } else { 1 };
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields =
            [self.next_inode, mode, 0, 0, links, 0, size, 0, 0, device.major, device.minor, name_size, 0];
        self.next_inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&b"\0\0\0\0"[..1 + padding(header.len() + name.len() + 1)])?;
        self.out.write_all(contents)?;
        self.out.write_all(&b"\0\0\0"[..padding(contents.len())])
    }
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// bsdtar or cpio would do; GNU cpio is what the kernel's own tools are checked with.
    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, DeviceNumber { major: 5, minor: 1 }).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is the judge of this test: install the package cpio");
        cpio.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..2], ["drwxr-xr-x", "2"]);
        assert_eq!(lines[0].last(), Some(&"dev"));
        assert_eq!(lines[1][..6], ["crw-------", "1", "0", "0", "5,", "1"]);
        assert_eq!(lines[1].last(), Some(&"dev/console"));
        assert_eq!(lines[2][..5], ["-rwxr-xr-x", "1", "0", "0", "5"]);
        assert_eq!(lines[2].last(), Some(&"init"));
        assert_eq!(lines.len(), 3);
    }
}
