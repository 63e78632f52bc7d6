//! Bytes on a block device: partition tables, file systems, sanitization. No syscalls.

mod device;
mod error;

pub use device::{BlockDevice, Device, Geometry, Memory, Slice};
pub use error::{Error, ErrorKind, Result};
