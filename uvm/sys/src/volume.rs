//! A part of a disk, mounted where nobody else can see it.
//!
//! The mount is never attached to a directory (fsopen(2), fsmount(2)): it lives as long as the handles of it, so
//! no path leads to it, no other process meets it, and nothing stays mounted where this process ends.
//!
//! The kernel gives the parts of a disk names of their own, its partitions. A plain file has none; its part
//! becomes a loop device that goes away with its last user.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Setter, ioctl};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::{Error, ErrorKind, KernelBlock, OpenMode, Result, Tree, sysfs};

// linux/loop.h.
const LOOP_CLR_FD: rustix::ioctl::Opcode = 0x4C01;
const LOOP_CONFIGURE: rustix::ioctl::Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others may be faster to take the free loop device; more often than this it is no accident.
const LOOP_TRIES: u32 = 32;
/// Entries of a disk's folder in sysfs that are looked at; a GPT has 128 partitions.
const MAX_SYSFS_ENTRIES: usize = 4096;
/// A mount is gone when its last handle is, but for what others (udev) do with the device in passing.
const RECLAIM_TRIES: u32 = 100;
const RECLAIM_PAUSE: Duration = Duration::from_millis(20);

/// What may be done with a mounted file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing is written, not even what is left in the journal.
    ReadOnly,
    /// The kernel carries out what is left in the journal first.
    ReadWrite,
}

/// A part of a disk that can be mounted.
#[derive(Debug)]
pub struct Volume {
    disk: KernelBlock,
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// A partition, or the whole disk where `offset` is 0. The disk is open but not held: the kernel mounts no part
    /// of a disk that somebody holds. While it is open its device number goes to no other disk.
    Device { node: PathBuf, number: u64, offset: u64, size: u64 },
    /// The disk is a file, and stays locked.
    Loop(LoopDevice),
}

impl Volume {
    /// Prepares `size` bytes at `offset` of a disk that is held exclusively.
    pub fn claim(disk: KernelBlock, offset: u64, size: u64) -> Result<Self> {
        let context = || format!("finding {size} bytes at {offset} of {}", disk.path().display());
        if offset.checked_add(size).is_none_or(|end| end > disk.size()) {
            return Err(Error::new(ErrorKind::Invalid, context(), "beyond the end of the disk"));
        }
        if !disk.is_block_device() {
            let attached = LoopDevice::attach(&disk, offset, size)?;
            return Ok(Self { disk, part: Part::Loop(attached) });
        }
        let number = number_of(&disk)?;
        let (node, part) = match find_part(&disk, number, offset, size)? {
            Some(found) => found,
            None => {
                // The table may have been written after the kernel last looked.
                disk.reread_partition_table()?;
                let reason = "the kernel knows no such partition";
                let missing = || Error::new(ErrorKind::Unsupported, context(), reason);
                find_part(&disk, number, offset, size)?.ok_or_else(missing)?
            }
        };
        let open = KernelBlock::open(disk.path(), OpenMode::ReadOnly)?;
        same_disk(&open, number)?;
        Ok(Self { disk: open, part: Part::Device { node, number: part, offset, size } })
    }

    /// Mounts it as ext4, without set-uid programs, devices and programs. Once at a time.
    pub fn mount_ext4(&self, access: Access) -> Result<Tree> {
        let (node, number) = match &self.part {
            Part::Device { node, number, .. } => (node, *number),
            Part::Loop(attached) => (&attached.node, attached.number),
        };
        let mount = mount_ext4(node, access)
            .map_err(|e| Error::io(format!("mounting {} as ext4", node.display()), e))?;
        let tree = Tree::of_mount(mount)?;
        // By its number, for the name may lead elsewhere by now.
        let is_ours = match &self.part {
            Part::Loop(_) => true,
            Part::Device { offset, size, .. } => {
                let disk = number_of(&self.disk)?;
                let found = find_part(&self.disk, disk, *offset, *size)?;
                !self.disk.is_gone() && found.is_some_and(|(_, found)| found == number)
            }
        };
        if !is_ours || tree.device()? != number {
            let context = format!("mounting {}", node.display());
            return Err(Error::new(ErrorKind::NotFound, context, "the disk is another one now"));
        }
        Ok(tree)
    }

    /// Holds the disk exclusively again, which proves that nothing of it is mounted any more.
    pub fn reclaim(self) -> Result<KernelBlock> {
        if let Part::Loop(_) = self.part {
            return Ok(self.disk);
        }
        let number = number_of(&self.disk)?;
        let mut tries = 1;
        let held = loop {
            match KernelBlock::open(self.disk.path(), OpenMode::ReadWrite) {
                Err(e) if e.kind() == ErrorKind::Busy && tries < RECLAIM_TRIES => {
                    std::thread::sleep(RECLAIM_PAUSE);
                    tries += 1;
                }
                opened => break opened?,
            }
        };
        same_disk(&held, number)?;
        Ok(held)
    }
}

fn number_of(disk: &KernelBlock) -> Result<u64> {
    let metadata = disk.file().metadata();
    Ok(metadata.map_err(|e| Error::io(format!("looking at {}", disk.path().display()), e))?.rdev())
}

fn same_disk(disk: &KernelBlock, number: u64) -> Result<()> {
    if number_of(disk)? == number && !disk.is_gone() {
        return Ok(());
    }
    let context = format!("opening {} again", disk.path().display());
    Err(Error::new(ErrorKind::NotFound, context, "it is another disk now"))
}

/// Node and number of the device that covers exactly these bytes of the disk.
fn find_part(disk: &KernelBlock, number: u64, offset: u64, size: u64) -> Result<Option<(PathBuf, u64)>> {
    if offset == 0 && size == disk.size() {
        return Ok(Some((disk.path().to_owned(), number)));
    }
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    find_partition(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}")), offset, size)
        .map_err(|e| Error::io(format!("listing the partitions of {}", disk.path().display()), e))
}

fn find_partition(folder: &Path, offset: u64, size: u64) -> io::Result<Option<(PathBuf, u64)>> {
    for entry in std::fs::read_dir(folder)?.take(MAX_SYSFS_ENTRIES) {
        let entry = entry?;
        let attribute = |name: &str| sysfs::text(&entry.path().join(name));
        // sysfs counts in sectors of 512 bytes whatever the block size.
        let bytes = |name: &str| attribute(name)?.parse::<u64>().ok()?.checked_mul(512);
        if attribute("partition").is_none() || bytes("start") != Some(offset) || bytes("size") != Some(size) {
            continue;
        }
        let Some(number) = attribute("dev").as_deref().and_then(parse_number) else { continue };
        let Ok(name) = entry.file_name().into_string() else { continue };
        return Ok(Some((Path::new("/dev").join(name.replace('!', "/")), number)));
    }
    Ok(None)
}

fn parse_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn mount_ext4(node: &Path, access: Access) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_create_exclusive, fsconfig_set_flag, fsconfig_set_string};
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| match e {
        // The kernel does not know this file system.
        Errno::NODEV => Errno::OPNOTSUPP,
        e => e,
    })?;
    fsconfig_set_string(&context, "source", node)?;
    // The first damage found ends the writing.
    fsconfig_set_string(&context, "errors", "remount-ro")?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    if access == Access::ReadOnly {
        fsconfig_set_flag(&context, "ro")?;
        fsconfig_set_flag(&context, "noload")?;
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    // Never a share in what somebody else has mounted; a kernel before 6.6 cannot promise it.
    match fsconfig_create_exclusive(&context) {
        Err(Errno::OPNOTSUPP) => fsconfig_create(&context)?,
        created => created?,
    }
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A part of a file as a block device. Detached when dropped; the kernel waits for a mount that is still there.
#[derive(Debug)]
struct LoopDevice {
    device: File,
    node: PathBuf,
    number: u64,
}

/// `struct loop_config` (linux/loop.h) with its `struct loop_info64` spelled out.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// `lo_device`, `lo_inode`, `lo_rdevice`: told by the kernel.
    told: [u64; 3],
    offset: u64,
    size_limit: u64,
    /// `lo_number`, `lo_encrypt_type`, `lo_encrypt_key_size`.
    numbers: [u32; 3],
    flags: u32,
    /// `lo_file_name`, `lo_crypt_name`, `lo_encrypt_key`.
    names: [[u8; 32]; 5],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 8 + 232 + 64);

impl LoopDevice {
    fn attach(disk: &KernelBlock, offset: u64, size: u64) -> Result<Self> {
        let failed = |e: io::Error| {
            let context = format!("making {size} bytes at {offset} of {} a device", disk.path().display());
            Error::io(context, e)
        };
        // Opened anew: the lock is the opening's that has it, and is not to live as long as the device.
        let backing = format!("/proc/self/fd/{}", disk.file().as_raw_fd());
        let backing = OpenOptions::new().read(true).write(true).open(backing).map_err(failed)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        let control = control.map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let context = format!("making a part of {} a device", disk.path().display());
                Error::new(ErrorKind::Unsupported, context, "this kernel has no loop devices")
            }
            _ => failed(e),
        })?;
        for _ in 0..LOOP_TRIES {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns a number or -1.
            let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
            if free < 0 {
                return Err(failed(io::Error::last_os_error()));
            }
            let node = PathBuf::from(format!("/dev/loop{free}"));
            let device = OpenOptions::new().read(true).write(true).open(&node).map_err(failed)?;
            let config = LoopConfig {
                fd: backing.as_raw_fd().cast_unsigned(),
                block_size: disk.logical_block_size(),
                told: [0; 3],
                offset,
                size_limit: size,
                numbers: [0; 3],
                flags: LO_FLAGS_AUTOCLEAR,
                names: [[0; 32]; 5],
                init: [0; 2],
                reserved: [0; 8],
            };
            // SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which this is, and takes a reference of its own
            // to the file behind the descriptor.
            match unsafe { ioctl(&device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) } {
                Err(Errno::BUSY) => continue, // somebody else was faster
                configured => configured.map_err(|e| failed(e.into()))?,
            }
            let number = device.metadata().map_err(failed)?.rdev();
            return Ok(Self { device, node, number });
        }
        Err(failed(Errno::BUSY.into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // SAFETY: LOOP_CLR_FD takes no argument. Where it fails the device goes when it is closed.
        let _ = unsafe { ioctl(&self.device, NoArg::<LOOP_CLR_FD>::new()) };
    }
}

#[cfg(test)]
#[path = "volume_tests.rs"]
mod tests;
