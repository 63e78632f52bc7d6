//! The appliance's kernel as a judge of file systems that this machine's kernel does not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::machine::{Accel, ApplianceFiles, Disk, Machine, attach_at_boot};

/// Static, because nothing else is in the initramfs.
const BUSYBOX: &str = "/bin/busybox";
/// How long a script may take.
const PATIENCE: Duration = Duration::from_secs(500);
const BEGIN: &str = "--- the script begins";
const END: &str = "--- the script ends: ";

/// What PID 1 runs: `/script`, then it says how that ended and powers the machine off.
const INIT: &str = r#"
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
cd /tmp
echo "--- the script begins"
sh -eu /script
status=$?
[ $status = 0 ] || dmesg | tail -n 30
echo "--- the script ends: $status"
sync
poweroff -f
"#;

/// A machine with the appliance's kernel, busybox and some disks. It runs one script.
///
/// The kernel has ext4, vfat and ntfs3. It comes from the folder that `UVM_APPLIANCE` names.
#[derive(Debug, Clone)]
pub struct JudgeVm {
    disks: Vec<Disk>,
    memory_mib: u32,
}

impl JudgeVm {
    /// Runs `script` with `disks`, raw files, as `/dev/vda`, `/dev/vdb` and so on, with logical blocks of 512 bytes.
    ///
    /// # Panics
    /// As [`Self::run_script`] fails.
    pub fn run(disks: &[&Path], script: &str) -> String {
        let disks = disks.iter().map(|path| (*path, 512));
        Self::new(disks).run_script(script).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A machine with these raw files as virtio-blk disks, each with its logical block size.
    pub fn new<'p>(disks: impl IntoIterator<Item = (&'p Path, u32)>) -> Self {
        let disks = disks.into_iter().enumerate().map(|(index, (path, block))| Disk {
            logical_block_size: block,
            ..Disk::new(path, &format!("disk{index}"))
        });
        Self { disks: disks.collect(), memory_mib: 256 }
    }

    /// The same with other memory.
    #[must_use]
    pub fn with_memory(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// Boots, runs `script` with busybox' `sh -eu` as root, and returns what it printed. The folder `/mnt` is there to
    /// mount on, `/tmp` is in memory; a disk that is still mounted at the end is not unmounted. The kernel keeps its
    /// messages for `dmesg`.
    ///
    /// # Errors
    /// With all that was printed, where the script ends with another status than 0, or the machine before it. Where
    /// the judge itself is missing.
    pub fn run_script(&self, script: &str) -> Result<String> {
        let folder = std::env::var_os("UVM_APPLIANCE").context(
            "UVM_APPLIANCE names the folder of the appliance: run `cargo xtask test`, which builds it",
        )?;
        let files = ApplianceFiles::in_folder(Path::new(&folder))?;
        let work = tempfile::Builder::new().prefix("uvm-judge-").tempdir().context("making a folder")?;
        let initramfs = pack(work.path(), script)?;
        let mut machine = Machine::start("judge", work.path(), |command, _| {
            let mut line = "console=ttyS0 quiet loglevel=1 panic=-1 rdinit=/bin/sh".to_owned();
            if Accel::choose()? == Accel::Tcg {
                // As the appliance's tests: calibrating the timer is slow under translation.
                line.push_str(" nolapic_timer");
            }
            line.push_str(" -- /init");
            command.args(["-smp", "1", "-m", &self.memory_mib.to_string(), "-append", &line]);
            command.arg("-kernel").arg(&files.vmlinux).arg("-initrd").arg(&initramfs);
            attach_at_boot(command, &self.disks);
            Ok(())
        })?;
        let ended = machine.wait_exit(PATIENCE);
        let printed = machine.serial().text(0);
        let status = ended.with_context(|| format!("the judge's machine printed:\n{printed}"))?;
        ensure!(status.success(), "QEMU ended with {status}; the judge's machine printed:\n{printed}");
        result(&printed)
    }
}

/// What stands between the marks, where the script was content.
fn result(printed: &str) -> Result<String> {
    let printed = printed.replace('\r', "");
    let parts = printed.split_once(BEGIN).and_then(|(_, rest)| rest.rsplit_once(END));
    let (output, after) =
        parts.with_context(|| format!("the judge's machine did not come to its end:\n{printed}"))?;
    // The kernel says something of its own when it powers off.
    let status = after.lines().next().unwrap_or_default();
    ensure!(status == "0", "the judge's script ended with status {status}:\n{output}");
    Ok(output.trim_start_matches('\n').to_owned())
}

/// An initramfs with busybox, [`INIT`] and the script.
fn pack(work: &Path, script: &str) -> Result<PathBuf> {
    let root = work.join("root");
    fs::create_dir_all(root.join("bin")).context("making a folder")?;
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("copying {BUSYBOX}, of the package busybox-static"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).context("making a link")?;
    fs::write(root.join("init"), INIT).context("writing /init")?;
    fs::write(root.join("script"), script).context("writing /script")?;
    fs::write(work.join("names"), "bin\nbin/busybox\nbin/sh\ninit\nscript\n").context("writing names")?;
    let archive = work.join("initramfs");
    let status = Command::new("cpio")
        .args(["--quiet", "--create", "--format=newc", "--owner=+0:+0"])
        .current_dir(&root)
        .stdin(fs::File::open(work.join("names"))?)
        .stdout(fs::File::create(&archive)?)
        .stderr(Stdio::inherit())
        .status()
        .context("starting cpio")?;
    ensure!(status.success(), "cpio ended with {status}");
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_script_that_ended_well_has_a_result() {
        let whole = format!("noise\r\n{BEGIN}\r\nfine\r\n{END}0\r\n[ 1.2] reboot: Power down");
        assert_eq!(result(&whole).unwrap(), "fine\n");
        assert!(result(&whole.replace(": 0", ": 1")).is_err());
        assert!(result(&format!("{BEGIN}\nfine\n")).is_err());
        assert!(result("Kernel panic").is_err());
    }
}
