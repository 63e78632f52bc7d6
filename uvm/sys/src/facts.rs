//! What the kernel and the hypervisor say about this machine.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::{Error, ErrorKind, Result, sysfs};

/// No text file of /proc that is read here is longer.
const PROC_MAX: u64 = 64 << 10;
/// A configuration handed over by QEMU is no longer than this.
const FW_CFG_MAX: u64 = 1 << 20;

/// CPUs this process may run on.
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// RAM the kernel manages, in bytes.
pub fn memory_total_bytes() -> Result<u64> {
    kib_field(Path::new("/proc/meminfo"), "MemTotal:")
}

/// The most memory this process ever held resident, in bytes.
pub fn peak_rss_bytes() -> Result<u64> {
    kib_field(Path::new("/proc/self/status"), "VmHWM:")
}

/// The memory this process holds resident now, in bytes.
pub fn rss_bytes() -> Result<u64> {
    kib_field(Path::new("/proc/self/status"), "VmRSS:")
}

fn kib_field(path: &Path, field: &str) -> Result<u64> {
    let context = || format!("reading {field} in {}", path.display());
    let contents = sysfs::bounded(path, PROC_MAX).map_err(|e| Error::io(context(), e))?;
    parse_kib_field(&String::from_utf8_lossy(&contents), field)
        .ok_or_else(|| Error::new(ErrorKind::Malformed, context(), "no such field in kB"))
}

fn parse_kib_field(contents: &str, field: &str) -> Option<u64> {
    let value = contents.lines().find_map(|line| line.strip_prefix(field))?;
    value.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Time since the kernel started, including time suspended.
pub fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// The wall clock.
pub fn now_realtime() -> SystemTime {
    SystemTime::now()
}

/// The kernel's release, as `uname -r` says it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The command line the kernel was started with.
pub fn kernel_command_line() -> Result<String> {
    let contents = sysfs::bounded(Path::new("/proc/cmdline"), PROC_MAX)
        .map_err(|e| Error::io("reading /proc/cmdline", e))?;
    Ok(String::from_utf8_lossy(&contents).trim_end().to_owned())
}

/// The item `name` (`opt/org.uvm/config`) that QEMU hands over; `None` where there is none. One longer
/// than 1 MiB is an error.
pub fn fw_cfg(name: &str) -> Result<Option<Vec<u8>>> {
    fw_cfg_in(Path::new("/sys/firmware/qemu_fw_cfg/by_name"), name)
}

fn fw_cfg_in(by_name: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let context = || format!("reading fw_cfg {name}");
    if name.is_empty() || name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(Error::new(ErrorKind::Invalid, context(), "not the name of an item"));
    }
    match sysfs::bounded(&by_name.join(name).join("raw"), FW_CFG_MAX) {
        Ok(contents) => Ok(Some(contents)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io(context(), e)),
    }
}

/// Sets the host name of this machine.
pub fn set_hostname(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes())
        .map_err(|e| Error::io(format!("setting the host name {name}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kib_or_nothing() {
        let status = "Name:\tuvm\nVmPeak:\t  9 kB\nVmHWM:\t    1234 kB\nVmRSS:\tmany kB\n";
        assert_eq!(parse_kib_field(status, "VmHWM:"), Some(1234 * 1024));
        assert_eq!(parse_kib_field(status, "VmRSS:"), None);
        assert_eq!(parse_kib_field(status, "VmSwap:"), None);
        assert_eq!(parse_kib_field("X: 99999999999999999999 kB", "X:"), None);
        assert_eq!(parse_kib_field("X: 18446744073709551615 kB", "X:"), None);
    }

    #[test]
    fn fw_cfg_is_read_by_name_and_bounded() {
        let root = tempfile::tempdir().unwrap();
        let item = root.path().join("opt/org.uvm/config");
        std::fs::create_dir_all(&item).unwrap();
        std::fs::write(item.join("raw"), b"a\0b").unwrap();
        assert_eq!(fw_cfg_in(root.path(), "opt/org.uvm/config").unwrap().unwrap(), b"a\0b");
        assert_eq!(fw_cfg_in(root.path(), "opt/org.uvm/other").unwrap(), None);
        for name in ["", "..", "opt/../opt", "/etc", "opt//x"] {
            assert_eq!(fw_cfg_in(root.path(), name).unwrap_err().kind(), ErrorKind::Invalid, "{name}");
        }
        std::fs::write(item.join("raw"), vec![0; FW_CFG_MAX as usize + 1]).unwrap();
        assert_eq!(fw_cfg_in(root.path(), "opt/org.uvm/config").unwrap_err().kind(), ErrorKind::Malformed);
    }

    #[test]
    fn this_machine_answers() {
        assert!(cpu_count() >= 1);
        let total = memory_total_bytes().unwrap();
        let rss = rss_bytes().unwrap();
        assert!(total > rss && rss > 0);
        assert!(peak_rss_bytes().unwrap() > 0);
        assert!(uptime() > Duration::ZERO);
        assert!(kernel_release().starts_with(|c: char| c.is_ascii_digit()));
        assert!(!kernel_command_line().unwrap().is_empty());
    }
}
