//! Mounting, and the file systems that PID 1 cannot do without.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::io::Errno;
pub use rustix::mount::MountFlags;
use rustix::mount::UnmountFlags;

use crate::{Error, ErrorKind, Result};

struct ApiFilesystem {
    source: &'static str,
    /// Below the root.
    target: &'static str,
    fstype: &'static str,
    flags: MountFlags,
    data: &'static str,
}

const LOCKED: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// In this order: /dev/pts lies in /dev. The sizes are shares of RAM, since that is what fills up.
const API_FILESYSTEMS: [ApiFilesystem; 6] = [
    ApiFilesystem { source: "proc", target: "proc", fstype: "proc", flags: LOCKED, data: "" },
    ApiFilesystem { source: "sysfs", target: "sys", fstype: "sysfs", flags: LOCKED, data: "" },
    ApiFilesystem {
        source: "devtmpfs",
        target: "dev",
        fstype: "devtmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "mode=0755",
    },
    ApiFilesystem {
        source: "devpts",
        target: "dev/pts",
        fstype: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "mode=0620,ptmxmode=0666",
    },
    ApiFilesystem {
        source: "tmpfs",
        target: "run",
        fstype: "tmpfs",
        flags: LOCKED,
        data: "mode=0755,size=10%",
    },
    ApiFilesystem {
        source: "tmpfs",
        target: "tmp",
        fstype: "tmpfs",
        flags: LOCKED,
        data: "mode=1777,size=25%",
    },
];

/// Mounts /proc, /sys, /dev, /dev/pts, /run and /tmp. What is a mount point already is left as it is, and
/// devpts is left out where the kernel was built without it: whoever needs it will say so.
pub fn mount_api_filesystems() -> Result<()> {
    mount_api_filesystems_in(Path::new("/"))
}

fn mount_api_filesystems_in(root: &Path) -> Result<()> {
    for fs in &API_FILESYSTEMS {
        let target = root.join(fs.target);
        let failed = |e: io::Error| Error::io(format!("creating {}", target.display()), e);
        std::fs::create_dir_all(&target).map_err(failed)?;
        if is_mount_point(&target).map_err(failed)? {
            continue;
        }
        match mount(Path::new(fs.source), &target, fs.fstype, fs.flags, fs.data) {
            Err(e) if e.kind() == ErrorKind::Busy => {}
            Err(e) if fs.fstype == "devpts" && e.kind() == ErrorKind::NotFound => {}
            done => done?,
        }
    }
    Ok(())
}

/// By the device number: there is no /proc to ask yet.
fn is_mount_point(path: &Path) -> io::Result<bool> {
    let parent = path.parent().unwrap_or(path);
    Ok(std::fs::metadata(path)?.dev() != std::fs::metadata(parent)?.dev())
}

/// mount(2). A guest's file system is mounted with `NOSUID | NODEV | NOEXEC`.
pub fn mount(source: &Path, target: &Path, fstype: &str, flags: MountFlags, data: &str) -> Result<()> {
    let context = || format!("mounting {} on {} as {fstype}", source.display(), target.display());
    let data = CString::new(data).map_err(|e| Error::io(context(), io::Error::from(e)))?;
    rustix::mount::mount(source, target, fstype, flags, data.as_c_str()).map_err(|e| match e {
        // The kernel does not know this file system.
        Errno::NODEV => {
            Error::new(ErrorKind::NotFound, context(), format!("no file system {fstype} in this kernel"))
        }
        e => Error::io(context(), e),
    })
}

/// umount2(2). Everything is written out when it returns. [`ErrorKind::Busy`] while something is open below.
pub fn unmount(target: &Path) -> Result<()> {
    rustix::mount::unmount(target, UnmountFlags::NOFOLLOW)
        .map_err(|e| Error::io(format!("unmounting {}", target.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in mounts of its own; not where the machine forbids it (no root).
    fn in_own_mounts(body: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flags = rustix::thread::UnshareFlags::NEWNS.union(rustix::thread::UnshareFlags::FS);
                // SAFETY: only this thread's view of the mounts and its working directory change.
                if unsafe { rustix::thread::unshare_unsafe(flags) } == Err(Errno::PERM) {
                    return;
                }
                let flags = rustix::mount::MountPropagationFlags::PRIVATE
                    .union(rustix::mount::MountPropagationFlags::REC);
                rustix::mount::mount_change("/", flags).unwrap();
                body();
            });
        });
    }

    #[test]
    fn a_tmpfs_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path();
        in_own_mounts(|| {
            mount(Path::new("none"), target, "tmpfs", LOCKED, "size=1m").unwrap();
            std::fs::write(target.join("x"), "y").unwrap();
            let open = std::fs::File::open(target.join("x")).unwrap();
            assert_eq!(unmount(target).unwrap_err().kind(), ErrorKind::Busy);
            drop(open);
            unmount(target).unwrap();
            assert!(!target.join("x").exists());
            let unknown = mount(Path::new("none"), target, "nosuchfs", LOCKED, "").unwrap_err();
            assert_eq!(unknown.kind(), ErrorKind::NotFound);
        });
    }

    #[test]
    fn the_api_filesystems_are_mounted_once() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        in_own_mounts(|| {
            mount_api_filesystems_in(root).unwrap();
            mount_api_filesystems_in(root).unwrap();
            let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
            for fs in &API_FILESYSTEMS {
                let line = format!(" {} {} ", root.join(fs.target).display(), fs.fstype);
                assert_eq!(mounts.matches(&line).count(), 1, "{line} in {mounts}");
            }
            assert!(root.join("dev/null").exists() && root.join("proc/self/status").exists());
        });
    }
}
