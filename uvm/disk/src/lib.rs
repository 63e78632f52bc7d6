//! Bytes on a block device: partition tables, file systems, whole copies, sanitization. No syscalls.

pub mod copy;
mod device;
mod error;
pub mod ext4;
pub mod fat;
mod field;
pub mod gpt;
pub mod identity;
pub mod layout;
pub mod mbr;
pub mod ntfs;
mod place;
pub mod probe;
pub mod sanitize;
pub mod swap;
pub mod usage;
mod verify;

pub use device::{BlockDevice, Device, Geometry, Memory, Slice};
pub use error::{Error, ErrorKind, Result};
pub use place::{Alignment, Place};
pub use verify::Recorder;
