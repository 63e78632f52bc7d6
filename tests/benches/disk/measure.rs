//! Clocks, counters of bytes, memory.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A foreign tool, where a user would find it or in the folders of system commands.
pub(crate) fn command(tool: &str, arguments: &[&str]) -> Command {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("env");
    command.arg(format!("PATH={path}")).args(["LC_ALL=C", tool]).args(arguments);
    // e2image and mke2fs name themselves there.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Seconds a command takes, which must succeed.
pub(crate) fn timed(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let status = command.status().unwrap();
    let took = begun.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    took.as_secs_f64()
}

/// Measures once what was written before has reached the disk.
pub(crate) fn settled(measure: impl FnOnce() -> f64) -> f64 {
    assert!(Command::new("sync").status().unwrap().success());
    measure()
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Bytes a command's writes to files took, by strace; standard output and error are not counted.
pub(crate) fn written(command: &Command) -> u64 {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", "trace=write,writev,pwrite64,pwritev,pwritev2", "-s", "0", "-o"]);
    traced.arg(log.path()).arg(command.get_program()).args(command.get_args());
    traced.stdin(Stdio::null()).stdout(Stdio::null());
    let status = traced.status().expect("strace is there");
    assert!(status.success(), "{traced:?}: {status}");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let bytes = text.lines().filter(|line| !["(1,", "(2,"].iter().any(|stream| line.contains(stream)));
    bytes.filter_map(|line| line.rsplit_once(" = ")?.1.trim().parse::<u64>().ok()).sum()
}

/// Memory a process had at most.
pub(crate) struct Peak {
    /// Bytes resident.
    pub(crate) resident: u64,
}

/// Runs a command and watches its `VmHWM`.
pub(crate) fn peak_memory(command: &mut Command) -> Peak {
    const EVERY: Duration = Duration::from_millis(2);
    let mut child = command.spawn().unwrap();
    let path = format!("/proc/{}/status", child.id());
    let mut resident = 0;
    loop {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        resident = resident.max(kib.unwrap_or(0) << 10);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}: {status}");
            return Peak { resident };
        }
        std::thread::sleep(EVERY);
    }
}

/// What was read before is read from the disk again. Needs root.
pub(crate) fn drop_caches() {
    assert!(Command::new("sync").status().unwrap().success());
    std::fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop the kernel's caches");
}
