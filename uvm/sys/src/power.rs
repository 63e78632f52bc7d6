//! Ending the machine, the signals that ask PID 1 to, and the children it inherits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::WaitOptions;
use rustix::system::RebootCommand;

use crate::{Error, Result, sysfs};

/// Who asks the machine to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// The power button: what a hypervisor presses for an orderly shutdown.
    Button,
    /// SIGTERM.
    Terminate,
    /// SIGINT: Ctrl-Alt-Del, but also Ctrl-C on the controlling terminal; the kernel does not tell which.
    Interrupt,
    /// SIGPWR.
    PowerFail,
}

/// What is told of a [`PowerRequest`]; called from a thread of its own, more than once where the button
/// is pressed more than once.
pub type PowerCallback = Arc<dyn Fn(PowerRequest) + Send + Sync>;

// linux/input-event-codes.h
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const INPUT_EVENT_LEN: usize = size_of::<libc::input_event>();
/// Input devices watched at most; a virtual machine has two or three.
const BUTTONS_MAX: usize = 16;
/// Time that everything dirty has to reach the disks before the machine ends.
const SYNC_DEADLINE: Duration = Duration::from_secs(30);
/// Children reaped in one go.
const REAP_MAX: usize = 4096;

/// Writes everything out and switches the machine off. Returns only where the kernel refused.
pub fn power_off() -> Error {
    end(RebootCommand::PowerOff, "powering off")
}

/// Writes everything out and restarts the machine. Returns only where the kernel refused.
pub fn reboot() -> Error {
    end(RebootCommand::Restart, "rebooting")
}

/// A hung disk must not keep the machine from ending.
fn sync_within(deadline: Duration) {
    let (done, finished) = std::sync::mpsc::channel();
    let spawned = std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
        rustix::fs::sync();
        let _ = done.send(());
    });
    if spawned.is_ok() {
        let _ = finished.recv_timeout(deadline);
    }
}

fn end(command: RebootCommand, context: &str) -> Error {
    sync_within(SYNC_DEADLINE);
    match rustix::system::reboot(command) {
        Err(e) => Error::io(context, e),
        // A container's kernel may kill us a moment later; there is nothing left to do meanwhile.
        Ok(()) => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
    }
}

/// Collects the children that ended, and says how many. PID 1 inherits every orphan.
pub fn reap_children() -> usize {
    for reaped in 0..REAP_MAX {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return reaped,
        }
    }
    REAP_MAX
}

/// Takes SIGCHLD, SIGTERM, SIGINT and SIGPWR out of every thread's way and into one of its own, which
/// reaps and calls back. Call it from the main thread before any other thread is started: threads
/// inherit what is blocked.
pub fn block_signals_and_reap(callback: PowerCallback) -> Result<()> {
    let set = block(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR])?;
    let watch = move || {
        reap_children();
        loop {
            let mut signal = 0;
            // SAFETY: `set` is an initialized signal set and `signal` outlives the call.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {
                continue;
            }
            match signal {
                libc::SIGTERM => callback(PowerRequest::Terminate),
                libc::SIGINT => callback(PowerRequest::Interrupt),
                libc::SIGPWR => callback(PowerRequest::PowerFail),
                _ => {
                    reap_children();
                }
            }
        }
    };
    spawn("signals", watch)
}

fn block(signals: &[libc::c_int]) -> Result<libc::sigset_t> {
    // SAFETY: a sigset_t is plain numbers; sigemptyset makes it valid, sigaddset and pthread_sigmask
    // read and write nothing but the set, and the old mask is not asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(set),
            errno => Err(Error::io("blocking signals", io::Error::from_raw_os_error(errno))),
        }
    }
}

/// Watches every power button there is now; says how many. Zero is no error: not every hypervisor has one.
pub fn on_power_button(callback: PowerCallback) -> Result<usize> {
    let mut buttons = Vec::new();
    for name in power_buttons_in(Path::new("/sys/class/input")) {
        let path = Path::new("/dev/input").join(name);
        match File::open(&path) {
            Ok(button) => buttons.push(button),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(format!("opening the power button {}", path.display()), e)),
        }
    }
    let count = buttons.len();
    if count > 0 {
        spawn("power-button", move || watch_buttons(buttons, &callback))?;
    }
    Ok(count)
}

/// Names of the event devices that have a power key.
fn power_buttons_in(class: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(class) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("event"))
        .filter(|name| {
            let keys = sysfs::text(&class.join(name).join("device/capabilities/key"));
            keys.is_some_and(|keys| bitmap_has(&keys, KEY_POWER))
        })
        .take(BUTTONS_MAX)
        .collect()
}

/// Whether bit `bit` is set in a bitmap as sysfs prints it: words in hex, the highest first.
fn bitmap_has(words: &str, bit: u16) -> bool {
    let word_bits = usize::BITS as usize;
    let word = words.split_ascii_whitespace().rev().nth(usize::from(bit) / word_bits);
    word.and_then(|w| usize::from_str_radix(w, 16).ok())
        .is_some_and(|w| w >> (usize::from(bit) % word_bits) & 1 == 1)
}

/// Ends when the last device is gone.
fn watch_buttons(mut buttons: Vec<File>, callback: &PowerCallback) {
    while !buttons.is_empty() {
        let mut fds: Vec<_> = buttons.iter().map(|b| PollFd::new(b, PollFlags::IN)).collect();
        if rustix::event::poll(&mut fds, None).is_err() {
            continue; // interrupted
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut index = 0;
        buttons.retain_mut(|button| {
            index += 1;
            !ready[index - 1] || read_button(button, callback)
        });
    }
}

/// Whether the device is still there.
fn read_button(button: &mut impl Read, callback: &PowerCallback) -> bool {
    let mut events = [0; INPUT_EVENT_LEN * 16];
    match button.read(&mut events) {
        Ok(0) => false,
        Ok(n) => {
            if events[..n].chunks_exact(INPUT_EVENT_LEN).any(is_power_press) {
                callback(PowerRequest::Button);
            }
            true
        }
        Err(e) => e.kind() == io::ErrorKind::Interrupted,
    }
}

/// `struct input_event`: a time, then type, code and value; a value of 1 is a key going down.
fn is_power_press(event: &[u8]) -> bool {
    let tail = [EV_KEY.to_ne_bytes(), KEY_POWER.to_ne_bytes()].concat();
    event.ends_with(&[tail.as_slice(), &1i32.to_ne_bytes()].concat())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
        .map_err(|e| Error::io(format!("starting the thread {name}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = vec![7; INPUT_EVENT_LEN - 8];
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    #[test]
    fn only_pressing_the_power_key_counts() {
        let pressed = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&pressed);
        let callback: PowerCallback = Arc::new(move |request| seen.lock().unwrap().push(request));
        let other = [event(EV_KEY, KEY_POWER, 0), event(EV_KEY, 30, 1), event(0, 0, 0)].concat();
        assert!(read_button(&mut other.as_slice(), &callback));
        assert_eq!(*pressed.lock().unwrap(), []);
        let press = [event(EV_KEY, KEY_POWER, 1), event(0, 0, 0)].concat();
        assert!(read_button(&mut press.as_slice(), &callback));
        assert_eq!(*pressed.lock().unwrap(), [PowerRequest::Button]);
        assert!(!read_button(&mut io::empty(), &callback), "the device is gone");
        assert!(read_button(&mut &press[..5], &callback), "half an event is none");
        assert_eq!(pressed.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_power_button_is_found_by_its_key() {
        let root = tempfile::tempdir().unwrap();
        for (name, keys) in
            [("event0", "10000000000000 0\n"), ("event1", "ffff 0 0\n"), ("mouse0", "10000000000000 0\n")]
        {
            let dir = root.path().join(name).join("device/capabilities");
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("key"), keys).unwrap();
        }
        assert_eq!(power_buttons_in(root.path()), ["event0"]);
        assert!(!bitmap_has("", KEY_POWER));
        assert!(!bitmap_has("junk 0", KEY_POWER));
    }
}
