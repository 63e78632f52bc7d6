//! The kernel, behind safe calls: the only crate of the project that may say `unsafe`.
//!
//! One file for each kernel interface, all of them synchronous:
//!
//! | file | owns |
//! |---|---|
//! | `block` | a disk or a file, opened exclusively, read and written |
//! | `sysfs` | the list of disks |
//! | `mount` | mounting, and what PID 1 mounts first |
//! | `tree` | the files beneath one directory, none of which leads out of it |
//! | `volume` | a part of a disk mounted where nobody else sees it, loop devices |
//! | `resize` | growing a mounted ext4 |
//! | `net` | interfaces, addresses, routes (rtnetlink) |
//! | `dhcp` | a DHCPv4 client (RFC 2131) |
//! | `uevent` | what the kernel announces when a device comes or goes |
//! | `tty` | consoles and the kernel's log |
//! | `power` | switching off, power buttons, signals and orphans |
//! | `facts` | CPUs, memory, clocks, command line, fw_cfg |
//!
//! Every failure is an [`Error`]: a kind to branch on, what was being done, and the system's reason.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block;
mod dhcp;
mod error;
mod facts;
mod mount;
mod net;
mod power;
mod resize;
mod sysfs;
mod tree;
mod tty;
mod uevent;
mod volume;

pub use block::{KernelBlock, OpenMode};
pub use dhcp::{Lease, acquire, renew};
pub use error::{Error, ErrorKind, Result};
pub use facts::{
    cpu_count, fw_cfg, kernel_command_line, kernel_release, memory_total_bytes, now_realtime, peak_rss_bytes,
    rss_bytes, set_hostname, uptime,
};
pub use mount::{MountFlags, mount, mount_api_filesystems, unmount};
pub use net::{
    Address, Interface, add_address, add_default_route, flush_addresses, interfaces, set_loopback_up, set_up,
};
pub use power::{
    PowerCallback, PowerRequest, block_signals_and_reap, on_power_button, power_off, reap_children, reboot,
};
pub use resize::MountedExt;
pub use sysfs::{BlockDeviceInfo, Transport, enumerate, loop_device_of};
pub use tree::{FileAttributes, FileMetadata, FileType, NewFile, Tree};
pub use tty::{active_consoles, attach_console, kmsg, open_tty, set_console_log_level, set_winsize_default};
pub use uevent::{Action, Uevent, UeventSocket};
pub use volume::{Access, Volume};
