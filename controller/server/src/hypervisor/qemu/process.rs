//! QEMU's processes. They daemonize and outlive the controller; what tells of them is the lock that each holds on
//! its pidfile, so that a number that went to another process is never taken for one.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind as IoErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::files::failed;
use crate::hypervisor::{Error, ErrorKind, Result};

/// How long QEMU may take from its start until it is a daemon.
const START: Duration = Duration::from_secs(30);
/// How long a process may take to end once it was killed.
const KILLED: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of QEMU's words in an error at most.
const MAX_WORDS: u64 = 1000;

/// Whether a process holds the lock on the pidfile.
pub(super) fn is_alive(pidfile: &Path) -> Result<bool> {
    let file = match OpenOptions::new().read(true).write(true).open(pidfile) {
        Ok(file) => file,
        Err(error) if error.kind() == IoErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("opening", pidfile, &error)),
    };
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(failed("locking", pidfile, &error.into())),
    }
}

/// The number in the pidfile; of use only while the lock on it is held.
pub(super) fn pid(pidfile: &Path) -> Option<Pid> {
    let mut text = String::new();
    File::open(pidfile).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0).and_then(Pid::from_raw)
}

/// Waits until the process is gone; whether it is.
pub(super) fn wait_gone(pidfile: &Path, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    while is_alive(pidfile)? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(true)
}

/// Kills the process that holds the lock on the pidfile, and waits until it is gone.
pub(super) fn kill(pidfile: &Path) -> Result<()> {
    // The handle is of that very process if the lock is held after it was opened.
    let handle = pid(pidfile).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    if !is_alive(pidfile)? {
        return Ok(());
    }
    let killed = handle.map(|handle| pidfd_send_signal(&handle, Signal::KILL));
    if wait_gone(pidfile, KILLED)? {
        return Ok(());
    }
    let message = format!("QEMU does not end; {} names it (killing it: {killed:?})", pidfile.display());
    Err(Error::new(ErrorKind::TimedOut, message))
}

/// Starts QEMU and waits until it is a daemon. What it says before goes to the log.
pub(super) fn start(mut command: Command, log: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(log);
    let file = file.map_err(|error| failed("opening", log, &error))?;
    let twin = file.try_clone().map_err(|error| failed("opening", log, &error))?;
    command.stdin(Stdio::null()).stdout(twin).stderr(file);
    // A signal meant for the controller's group is none for one that is starting.
    command.process_group(0);
    let spawned = command.spawn();
    let mut child = spawned.map_err(|error| {
        let program = command.get_program().to_string_lossy();
        Error::new(ErrorKind::Failed, format!("starting {program}: {error}"))
    })?;
    let deadline = Instant::now() + START;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(refused(status, log)),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            waited => {
                // Without its first process the second one does not get as far as being a daemon.
                let _ = child.kill();
                let _ = child.wait();
                let message = format!("QEMU was not up within {START:?}: {waited:?} {}", words(log));
                return Err(Error::new(ErrorKind::TimedOut, message));
            }
        }
    }
}

fn words(log: &Path) -> String {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(MAX_WORDS)))?;
        file.take(MAX_WORDS).read_to_end(&mut text)
    });
    match read {
        Ok(_) => String::from_utf8_lossy(&text).trim().to_owned(),
        Err(error) => format!("({error})"),
    }
}

fn refused(status: ExitStatus, log: &Path) -> Error {
    let words = words(log);
    let kind = match &words {
        words if words.contains("Cannot allocate memory") => ErrorKind::NoResources,
        words if words.contains("lock") && words.contains("another process") => ErrorKind::WrongState,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, format!("QEMU did not start ({status}): {words}"))
}

/// Nanoseconds that a thread of a process has run.
pub(super) fn thread_cpu_ns(pid: Pid, thread: u64) -> Option<u64> {
    let path = format!("/proc/{}/task/{thread}/schedstat", pid.as_raw_nonzero());
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

/// Bytes of memory a process has in use.
pub(super) fn resident_bytes(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    super::host::kib(&text, "VmRSS:")?.checked_mul(1024)
}
