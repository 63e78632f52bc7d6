//! Bounded reads of the kernel's text files, and the list of disks in `/sys/block`.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// No attribute of sysfs is longer than a page.
const ATTRIBUTE_MAX: u64 = 4096;
/// VPD page 80h: peripheral byte, page code, length as a big-endian u16.
const VPD_HEADER_LEN: usize = 4;

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// virtio-blk (`vda`).
    VirtioBlk,
    /// SCSI, virtio-scsi included (`sda`).
    Scsi,
    /// NVM Express (`nvme0n1`).
    Nvme,
    /// Xen's paravirtual disk (`xvda`).
    XenVbd,
    /// ATA behind libata (`sda`).
    Ata,
    /// Anything else.
    Other,
}

/// A whole disk as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDeviceInfo {
    /// Kernel name: `vda`.
    pub name: String,
    /// Device node: `/dev/vda`.
    pub node: PathBuf,
    /// Serial number; for Xen, which has none, `vbd-` and the number of the virtual block device.
    pub serial: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Bytes of one LBA.
    pub logical_block_size: u32,
    /// Bytes the device writes without reading first.
    pub physical_block_size: u32,
    /// The hypervisor gave it read-only.
    pub read_only: bool,
    /// The medium can be taken out.
    pub removable: bool,
    /// The device says that it rotates.
    pub rotational: bool,
    /// Model string.
    pub model: Option<String>,
    /// How it is attached.
    pub transport: Transport,
}

/// The whole disks that are there now, by name. Loop, RAM, device-mapper, RAID, optical and floppy
/// devices are left out, and so is what has no size (an empty slot, a disk that is just leaving).
pub fn enumerate() -> Result<Vec<BlockDeviceInfo>> {
    enumerate_in(Path::new("/"))
}

/// [`enumerate`] for a file system root other than `/`.
pub(crate) fn enumerate_in(root: &Path) -> Result<Vec<BlockDeviceInfo>> {
    let block = root.join("sys/block");
    let failed = |e: io::Error| Error::io(format!("listing {}", block.display()), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&block).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if is_disk_name(&name)
            && let Some(device) = describe(&name, &entry.path())
        {
            found.push(device);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The loop device that has the file at `path` behind it, if there is one.
pub fn loop_device_of(path: &Path) -> Result<Option<PathBuf>> {
    let failed = |e: io::Error| Error::io(format!("looking for loop devices of {}", path.display()), e);
    let real = std::fs::canonicalize(path).map_err(failed)?;
    for entry in std::fs::read_dir("/sys/block").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let backing = text(&entry.path().join("loop/backing_file"));
        if backing.is_some_and(|backing| Path::new(&backing) == real) {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

fn is_disk_name(name: &str) -> bool {
    !["loop", "ram", "zram", "dm-", "md", "sr", "fd"].iter().any(|prefix| {
        // `md127` and `fd0`, but not a name that merely begins like them.
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}

/// `None` where the device is empty, hidden (a path of a multipath NVMe) or went away while we looked.
fn describe(name: &str, dir: &Path) -> Option<BlockDeviceInfo> {
    let number = |attribute: &str| text(&dir.join(attribute)).and_then(|t| t.parse::<u64>().ok());
    let flag = |attribute: &str| number(attribute).is_some_and(|n| n != 0);
    // sysfs counts in sectors of 512 bytes whatever the block size.
    let size = number("size")?.checked_mul(512).filter(|size| *size > 0)?;
    if flag("hidden") {
        return None;
    }
    let logical_block_size = u32::try_from(number("queue/logical_block_size")?).ok()?;
    let physical_block_size = number("queue/physical_block_size")
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or(logical_block_size)
        .max(logical_block_size);
    let path = std::fs::canonicalize(dir).ok()?;
    let transport = transport(name, &path);
    Some(BlockDeviceInfo {
        name: name.to_owned(),
        // `cciss!c0d0` is /dev/cciss/c0d0.
        node: Path::new("/dev").join(name.replace('!', "/")),
        serial: serial(transport, dir, &path),
        size,
        logical_block_size,
        physical_block_size,
        read_only: flag("ro"),
        removable: flag("removable"),
        rotational: flag("queue/rotational"),
        model: text(&dir.join("device/model")),
        transport,
    })
}

fn transport(name: &str, path: &Path) -> Transport {
    let below = |prefix: &str| path.iter().any(|c| c.to_str().is_some_and(|c| c.starts_with(prefix)));
    match name {
        _ if name.starts_with("vd") && below("virtio") => Transport::VirtioBlk,
        _ if name.starts_with("nvme") => Transport::Nvme,
        _ if below("vbd-") => Transport::XenVbd,
        _ if name.starts_with("sd") && below("ata") => Transport::Ata,
        _ if name.starts_with("sd") => Transport::Scsi,
        _ => Transport::Other,
    }
}

fn serial(transport: Transport, dir: &Path, path: &Path) -> Option<String> {
    match transport {
        Transport::VirtioBlk => text(&dir.join("serial")),
        Transport::Nvme => text(&dir.join("device/serial")),
        Transport::Scsi | Transport::Ata => vpd_serial(&bytes(&dir.join("device/vpd_pg80")).ok()?),
        Transport::XenVbd => {
            path.iter().filter_map(|c| c.to_str()).find(|c| c.starts_with("vbd-")).map(str::to_owned)
        }
        Transport::Other => text(&dir.join("serial")).or_else(|| text(&dir.join("device/serial"))),
    }
}

/// The unit serial number of a SCSI VPD page 80h (SPC-4, 7.8.15).
fn vpd_serial(page: &[u8]) -> Option<String> {
    let (header, rest) = page.split_at_checked(VPD_HEADER_LEN)?;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[1] != 0x80 {
        return None;
    }
    clean(rest.get(..len)?)
}

/// The first line's worth of an attribute, trimmed; `None` where it is missing, empty or not plain text.
pub(crate) fn text(path: &Path) -> Option<String> {
    clean(&bytes(path).ok()?)
}

fn clean(raw: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(raw).ok()?.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// An attribute's bytes, at most a page.
pub(crate) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    bounded(path, ATTRIBUTE_MAX)
}

/// A file's bytes; one longer than `max` is an error, never a truncated answer.
pub(crate) fn bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    File::open(path)?.take(max.saturating_add(1)).read_to_end(&mut contents)?;
    if contents.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {max} bytes")));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Puts a disk with `attributes` at `device` below sys/devices, and links it into sys/block.
    fn disk(root: &Path, device: &str, attributes: &[(&str, &[u8])]) {
        let dir = root.join("sys/devices").join(device);
        for (name, value) in attributes {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        fs::create_dir_all(root.join("sys/block")).unwrap();
        symlink(&dir, root.join("sys/block").join(dir.file_name().unwrap())).unwrap();
    }

    const PLAIN: [(&str, &[u8]); 2] = [("size", b"2048\n"), ("queue/logical_block_size", b"512\n")];

    fn with<'a>(more: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
        PLAIN.iter().copied().chain(more.iter().copied()).collect()
    }

    #[test]
    fn every_transport_names_its_disk() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        disk(
            root,
            "pci0000:00/0000:00:02.0/virtio1/block/vda",
            &[
                ("size", b"8192\n"),
                ("queue/logical_block_size", b"4096\n"),
                ("queue/physical_block_size", b"4096\n"),
                ("queue/rotational", b"1\n"),
                ("serial", b"guest-1"),
                ("ro", b"1\n"),
            ],
        );
        disk(
            root,
            "pci0000:00/virtio2/host2/target2:0:0/2:0:0:0/block/sda",
            &with(&[("device/vpd_pg80", b"\x00\x80\x00\x06  S1  "), ("device/model", b"QEMU HARDDISK   \n")]),
        );
        disk(root, "pci0000:00/ata1/host0/target0:0:0/0:0:0:0/block/sdb", &with(&[]));
        disk(root, "pci0000:00/nvme/nvme0/nvme0n1", &with(&[("device/serial", b"N1                  \n")]));
        disk(root, "vbd-51712/block/xvda", &PLAIN);

        let found = enumerate_in(root).unwrap();
        let short: Vec<_> =
            found.iter().map(|d| (d.name.as_str(), d.transport, d.serial.as_deref())).collect();
        assert_eq!(
            short,
            [
                ("nvme0n1", Transport::Nvme, Some("N1")),
                ("sda", Transport::Scsi, Some("S1")),
                ("sdb", Transport::Ata, None),
                ("vda", Transport::VirtioBlk, Some("guest-1")),
                ("xvda", Transport::XenVbd, Some("vbd-51712")),
            ]
        );
        let vda = &found[3];
        assert_eq!(vda.node, Path::new("/dev/vda"));
        assert_eq!((vda.size, vda.logical_block_size, vda.physical_block_size), (8192 * 512, 4096, 4096));
        assert!(vda.read_only && vda.rotational && !vda.removable);
        assert_eq!(found[1].model.as_deref(), Some("QEMU HARDDISK"));
        assert_eq!(found[1].physical_block_size, 512, "absent: the logical one");
    }

    #[test]
    fn what_is_no_disk_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        for name in ["loop0", "ram1", "zram0", "dm-0", "md127", "sr0", "fd0"] {
            disk(root.path(), &format!("virtual/block/{name}"), &PLAIN);
        }
        disk(root.path(), "empty/block/vdb", &[("size", b"0\n"), ("queue/logical_block_size", b"512\n")]);
        disk(root.path(), "huge/block/vdc", &[("size", b"18446744073709551615\n")]);
        disk(root.path(), "path/nvme0c0n1", &with(&[("hidden", b"1\n")]));
        symlink("../devices/gone/block/vdd", root.path().join("sys/block/vdd")).unwrap();
        assert_eq!(enumerate_in(root.path()).unwrap(), []);
    }

    #[test]
    fn a_lying_vpd_page_gives_no_serial() {
        assert_eq!(vpd_serial(b"\x00\x80\x00\x02AB").as_deref(), Some("AB"));
        assert_eq!(vpd_serial(b"\x00\x80\x00\x02ABCD").as_deref(), Some("AB"), "what follows is not ours");
        for page in [
            &b""[..],
            b"\x00\x80\x00",
            b"\x00\x80\xff\xffAB",
            b"\x00\x83\x00\x02AB",
            b"\x00\x80\x00\x02A\x01",
        ] {
            assert_eq!(vpd_serial(page), None, "{page:?}");
        }
    }

    #[test]
    fn a_long_file_is_an_error_not_a_short_answer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [b'x'; 11]).unwrap();
        assert_eq!(bounded(file.path(), 10).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(bounded(file.path(), 11).unwrap().len(), 11);
    }

    #[test]
    fn this_machine_can_be_listed() {
        for device in enumerate().unwrap() {
            assert!(device.size > 0 && device.logical_block_size >= 512, "{device:?}");
        }
    }
}
