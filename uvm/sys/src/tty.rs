//! Consoles: which there are, taking one as ours, and the kernel's log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::termios::Winsize;

use crate::{Error, Result, sysfs};

/// The kernel cuts a record of /dev/kmsg at about this many bytes.
const KMSG_LINE_MAX: usize = 900;

/// The terminals the kernel uses as consoles, the preferred one (`/dev/console`) last.
pub fn active_consoles() -> Result<Vec<PathBuf>> {
    active_consoles_in(Path::new("/sys/class/tty/console/active"))
}

fn active_consoles_in(active: &Path) -> Result<Vec<PathBuf>> {
    let names = sysfs::bytes(active).map_err(|e| Error::io("reading the active consoles", e))?;
    Ok(String::from_utf8_lossy(&names).split_ascii_whitespace().map(|n| Path::new("/dev").join(n)).collect())
}

/// Makes the terminal at `path` the standard input, output and error of this process and its
/// controlling terminal. From then on Ctrl-C on it, outside raw mode, is a SIGINT to this process.
pub fn attach_console(path: &Path) -> Result<()> {
    let failed = |e: Errno| Error::io(format!("attaching the console {}", path.display()), e);
    let tty = open_tty(path)?;
    match rustix::process::setsid() {
        // We lead a session already.
        Ok(_) | Err(Errno::PERM) => {}
        Err(e) => return Err(failed(e)),
    }
    rustix::process::ioctl_tiocsctty(&tty).map_err(failed)?;
    rustix::stdio::dup2_stdin(&tty).map_err(failed)?;
    rustix::stdio::dup2_stdout(&tty).map_err(failed)?;
    rustix::stdio::dup2_stderr(&tty).map_err(failed)?;
    set_winsize_default(&tty)
}

/// Opens a terminal for reading and writing without making it the controlling one.
pub fn open_tty(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .map_err(|e| Error::io(format!("opening the terminal {}", path.display()), e))
}

/// A serial line does not know its size: 80 by 24 where it says 0 by 0.
pub fn set_winsize_default(tty: &File) -> Result<()> {
    let failed = |e: Errno| Error::io("setting the terminal's size", e);
    let now = rustix::termios::tcgetwinsize(tty).map_err(failed)?;
    if now.ws_row != 0 && now.ws_col != 0 {
        return Ok(());
    }
    let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(tty, size).map_err(failed)
}

/// Writes `message` to the kernel's log, a record for each line.
pub fn kmsg(message: &str) -> Result<()> {
    let failed = |e: io::Error| Error::io("writing to the kernel's log", e);
    let mut log = OpenOptions::new().write(true).open("/dev/kmsg").map_err(failed)?;
    for line in message.lines() {
        // One write is one record.
        log.write_all(kmsg_record(line).as_bytes()).map_err(failed)?;
    }
    Ok(())
}

/// Priority: facility daemon (3), severity informational (6).
fn kmsg_record(line: &str) -> String {
    let mut end = line.len().min(KMSG_LINE_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("<30>uvm: {}\n", &line[..end])
}

/// Lets only kernel messages more urgent than `level` (1 to 8) onto the console.
pub fn set_console_log_level(level: u8) -> Result<()> {
    const SYSLOG_ACTION_CONSOLE_LEVEL: libc::c_int = 8;
    // SAFETY: this action takes a number and no buffer.
    let done =
        unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_LEVEL, std::ptr::null_mut(), libc::c_int::from(level)) };
    if done < 0 {
        return Err(Error::io("setting the console's log level", io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_keep_the_kernels_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "tty0 ttyS0\n").unwrap();
        let consoles = active_consoles_in(file.path()).unwrap();
        assert_eq!(consoles, [Path::new("/dev/tty0"), Path::new("/dev/ttyS0")]);
    }

    #[test]
    fn a_record_is_one_bounded_line() {
        assert_eq!(kmsg_record("ready"), "<30>uvm: ready\n");
        let long = format!("{}{}", "x".repeat(KMSG_LINE_MAX - 1), "ü".repeat(9));
        let record = kmsg_record(&long);
        assert!(record.ends_with("x\n") && record.len() < 1000, "cut before the character that straddles");
    }

    #[test]
    fn a_terminal_without_a_size_gets_one() {
        // SAFETY: posix_openpt takes flags and returns a new descriptor or -1.
        let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY) };
        assert!(fd >= 0);
        // SAFETY: `fd` is open and owned by nobody else.
        let terminal: File = unsafe { <File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        set_winsize_default(&terminal).unwrap();
        let size = rustix::termios::tcgetwinsize(&terminal).unwrap();
        assert_eq!((size.ws_col, size.ws_row), (80, 24));
        let given = Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, given).unwrap();
        set_winsize_default(&terminal).unwrap();
        assert_eq!(rustix::termios::tcgetwinsize(&terminal).unwrap().ws_col, 132);
    }
}
