//! The kernel's announcements of devices: netlink, family `NETLINK_KOBJECT_UEVENT`.
//!
//! A message is `ACTION@DEVPATH`, then `KEY=VALUE` pairs, each ended by a zero byte.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::{Error, Result};

/// The kernel builds a message in 2 KiB (`UEVENT_BUFFER_SIZE`); the header comes on top.
const MESSAGE_MAX: usize = 8 << 10;
/// Group 1 is what the kernel says, group 2 what udev made of it.
const KERNEL_GROUP: u32 = 1;
/// A burst of hot plug must fit until we come round to read it.
const RECEIVE_BUFFER_LEN: usize = 1 << 20;

/// What happened to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It came.
    Add,
    /// It went.
    Remove,
    /// It changed: a new size, a new medium.
    Change,
    /// Anything else, in the kernel's word.
    Other(String),
}

/// One announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// `block`, `net`, `input`.
    pub subsystem: String,
    /// Path below /sys.
    pub devpath: String,
    /// Name below /dev, for a device that has a node.
    pub devname: Option<String>,
    /// The kernel's count of its announcements.
    pub seqnum: u64,
}

/// Listens to the kernel.
#[derive(Debug)]
pub struct UeventSocket {
    socket: OwnedFd,
}

impl UeventSocket {
    /// Starts to listen; what is announced from now on is not missed.
    pub fn open() -> Result<Self> {
        let failed = |e: Errno| Error::io("listening for uevents", e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let family = AddressFamily::NETLINK;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))
            .map_err(failed)?;
        // Only root may exceed the system's limit; the default holds some hundred messages.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_LEN);
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP)).map_err(failed)?;
        Ok(Self { socket })
    }

    /// The next announcement, or `None` where none came within `timeout`. An error of the kind
    /// [`ErrorKind::Overrun`](crate::ErrorKind::Overrun) says that some were lost: list the devices anew.
    pub fn next(&self, timeout: Duration) -> Result<Option<Uevent>> {
        let deadline = Instant::now().checked_add(timeout);
        let mut message = [0; MESSAGE_MAX];
        loop {
            match rustix::net::recvfrom(&self.socket, &mut message[..], RecvFlags::TRUNC) {
                Ok((_, len, Some(sender))) => {
                    // Port 0 is the kernel; any process may send to the group.
                    let from_kernel = SocketAddrNetlink::try_from(sender).is_ok_and(|s| s.pid() == 0);
                    if let Some(event) = message.get(..len).filter(|_| from_kernel).and_then(parse) {
                        return Ok(Some(event));
                    }
                }
                Ok((_, _, None)) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait(deadline)? {
                        return Ok(None);
                    }
                    continue;
                }
                Err(e) => return Err(Error::io("reading a uevent", e)),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
        }
    }

    /// Whether something may be read before `deadline`.
    fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        match rustix::event::poll(&mut fds, left.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true),
            Err(e) => Err(Error::io("waiting for a uevent", e)),
        }
    }
}

/// `None` for what is no message of the kernel.
fn parse(message: &[u8]) -> Option<Uevent> {
    let mut fields = message.split(|b| *b == 0);
    // `libudev` begins udev's own messages; the kernel's begin with `add@/devices/...`.
    fields.next().filter(|header| header.contains(&b'@'))?;
    let (mut action, mut subsystem, mut devpath, mut devname, mut seqnum) = (None, None, None, None, None);
    for field in fields {
        let Some((key, value)) = std::str::from_utf8(field).ok().and_then(|f| f.split_once('=')) else {
            continue;
        };
        match key {
            "ACTION" => action = Some(value),
            "SUBSYSTEM" => subsystem = Some(value),
            "DEVPATH" => devpath = Some(value),
            "DEVNAME" => devname = Some(value),
            "SEQNUM" => seqnum = value.parse().ok(),
            _ => {}
        }
    }
    let action = match action? {
        "add" => Action::Add,
        "remove" => Action::Remove,
        "change" => Action::Change,
        other => Action::Other(other.to_owned()),
    };
    Some(Uevent {
        action,
        subsystem: subsystem?.to_owned(),
        devpath: devpath?.to_owned(),
        devname: devname.map(str::to_owned),
        seqnum: seqnum?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: &[u8] = b"add@/devices/virtio5/block/vdb\0ACTION=add\0DEVPATH=/devices/virtio5/block/vdb\0\
        SUBSYSTEM=block\0MAJOR=254\0MINOR=16\0DEVNAME=vdb\0DEVTYPE=disk\0SEQNUM=42\0";

    #[test]
    fn a_new_disk_is_read() {
        let event = parse(ADD).unwrap();
        assert_eq!(event.action, Action::Add);
        assert_eq!((event.subsystem.as_str(), event.devname.as_deref()), ("block", Some("vdb")));
        assert_eq!((event.devpath.as_str(), event.seqnum), ("/devices/virtio5/block/vdb", 42));
    }

    #[test]
    fn what_is_cut_or_foreign_is_no_event() {
        for len in 0..ADD.len() - b"42\0".len() {
            assert_eq!(parse(&ADD[..len]), None, "{len} bytes");
        }
        assert_eq!(parse(&[b"libudev\0", ADD].concat()), None);
        assert_eq!(parse(b"add@/x\0ACTION=add\0DEVPATH=/x\0SUBSYSTEM=net\0SEQNUM=-1\0"), None);
        let other = parse(b"bind@/x\0ACTION=bind\0\xff\0DEVPATH=/x\0SUBSYSTEM=pci\0SEQNUM=1\0").unwrap();
        assert_eq!((other.action, other.devname), (Action::Other("bind".into()), None));
    }

    #[test]
    fn the_kernel_is_heard() {
        let socket = UeventSocket::open().unwrap();
        // Root can have the kernel repeat an announcement; others can only listen.
        if std::fs::write("/sys/class/mem/null/uevent", "change").is_err() {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < deadline, "never heard of it");
            let event = socket.next(Duration::from_secs(1)).unwrap();
            if event.is_some_and(|e| e.action == Action::Change && e.devname.as_deref() == Some("null")) {
                break;
            }
        }
    }
}
