//! Which devices there are, and how one is opened: from the kernel in the appliance, from the command line
//! on a host.

use std::io;
use std::path::PathBuf;

use uvm_api::ErrorCode;
use uvm_sys::{KernelBlock, OpenMode};

use crate::job::JobError;

/// A device as it is attached now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attached {
    /// What jobs call it. Empty where the hypervisor gave none: such a device cannot be a job's target.
    pub(crate) serial: String,
    pub(crate) node: PathBuf,
    pub(crate) size_bytes: u64,
    pub(crate) logical_block_size: u32,
    pub(crate) physical_block_size: u32,
    pub(crate) read_only: bool,
}

/// Where devices come from.
pub(crate) trait Inventory: Send + Sync {
    /// The devices attached now.
    fn attached(&self) -> io::Result<Vec<Attached>>;

    /// The one device with this serial.
    fn find(&self, serial: &str) -> Result<Attached, JobError> {
        let attached = self.attached().map_err(|error| {
            JobError::new(ErrorCode::Internal, format!("the devices cannot be listed: {error}"))
        })?;
        let mut found: Vec<Attached> =
            attached.into_iter().filter(|device| !serial.is_empty() && device.serial == serial).collect();
        let refused =
            |code, detail| JobError { device: Some(serial.to_owned()), ..JobError::new(code, detail) };
        match (found.pop(), found.is_empty()) {
            (Some(device), true) => Ok(device),
            (Some(_), false) => Err(refused(
                ErrorCode::DeviceChanged,
                format!("{} devices have the serial {serial:?}; give each its own", found.len() + 1),
            )),
            (None, _) => Err(refused(
                ErrorCode::DeviceNotFound,
                format!("no device has the serial {serial:?}; GET /v1/devices lists those attached"),
            )),
        }
    }
}

/// Whether two serials lead to one device: on a command line each is what its user says.
pub(crate) fn is_same(a: &Attached, b: &Attached) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let identity = |device: &Attached| {
        let metadata = device.node.metadata().ok()?;
        let block = metadata.file_type().is_block_device();
        Some(if block { (true, metadata.rdev(), 0) } else { (false, metadata.dev(), metadata.ino()) })
    };
    a.node == b.node || identity(a).is_some_and(|found| identity(b) == Some(found))
}

/// Opens a device, exclusively where it is to be written.
pub(crate) fn open(device: &Attached, mode: OpenMode) -> Result<KernelBlock, JobError> {
    if mode == OpenMode::ReadWrite && device.read_only {
        return Err(JobError::new(
            ErrorCode::DeviceReadOnly,
            format!("device {:?} is attached read-only", device.serial),
        ));
    }
    let opened = KernelBlock::open(&device.node, mode).map_err(|error| {
        let code = match error.kind() {
            uvm_sys::ErrorKind::Busy => ErrorCode::DeviceBusy,
            uvm_sys::ErrorKind::NotFound => ErrorCode::DeviceGone,
            _ => ErrorCode::Io,
        };
        JobError { code, device: Some(device.serial.clone()), ..JobError::from_source(&error) }
    })?;
    with_block_size(opened, device.logical_block_size).map_err(|error| JobError::from_source(&error))
}

/// A file has the block size it is given; a device has its own.
fn with_block_size(block: KernelBlock, bytes: u32) -> Result<KernelBlock, uvm_sys::Error> {
    if block.is_block_device() { Ok(block) } else { block.with_logical_block_size(bytes) }
}

/// The block devices of the running kernel.
pub(crate) struct KernelInventory;

impl Inventory for KernelInventory {
    fn attached(&self) -> io::Result<Vec<Attached>> {
        let devices = uvm_sys::enumerate().map_err(io::Error::other)?;
        Ok(devices
            .into_iter()
            .map(|device| Attached {
                serial: device.serial.unwrap_or_default(),
                node: device.node,
                size_bytes: device.size,
                logical_block_size: device.logical_block_size,
                physical_block_size: device.physical_block_size,
                read_only: device.read_only,
            })
            .collect())
    }
}

/// Devices and files named on the command line as `SERIAL=PATH`.
pub(crate) struct CommandLineInventory {
    pub(crate) devices: Vec<(String, PathBuf)>,
    /// Logical block size of plain files.
    pub(crate) file_block_size: u32,
}

impl Inventory for CommandLineInventory {
    fn attached(&self) -> io::Result<Vec<Attached>> {
        self.devices
            .iter()
            .map(|(serial, path)| {
                let opened = KernelBlock::open(path, OpenMode::ReadOnly)
                    .and_then(|block| with_block_size(block, self.file_block_size))
                    .map_err(|error| {
                        let context = error.to_string();
                        let source = error.into_io();
                        io::Error::new(source.kind(), format!("{context}: {source}"))
                    })?;
                Ok(Attached {
                    serial: serial.clone(),
                    node: path.clone(),
                    size_bytes: opened.size(),
                    logical_block_size: opened.logical_block_size(),
                    physical_block_size: opened.physical_block_size(),
                    read_only: false,
                })
            })
            .collect()
    }
}
