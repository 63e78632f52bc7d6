//! Which devices there are, and how one is opened: from the kernel in the appliance, from the command line
//! on a host.

use std::io;
use std::path::{Path, PathBuf};

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
        let attached = self.attached().map_err(|error| unlisted(&error))?;
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

/// Why there is no list of devices: on a command line the fault of a path.
pub(crate) fn unlisted(error: &io::Error) -> JobError {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::DeviceNotFound,
        io::ErrorKind::PermissionDenied => ErrorCode::Io,
        io::ErrorKind::InvalidInput => ErrorCode::InvalidRequest,
        _ => ErrorCode::Internal,
    };
    let detail = match code {
        ErrorCode::Internal => format!("the devices cannot be listed: {error}"),
        _ => error.to_string(),
    };
    JobError::new(code, detail)
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
    let refused = |error: &uvm_sys::Error| {
        let code = match error.kind() {
            uvm_sys::ErrorKind::Busy => ErrorCode::DeviceBusy,
            uvm_sys::ErrorKind::NotFound => ErrorCode::DeviceGone,
            _ => ErrorCode::Io,
        };
        JobError { code, device: Some(device.serial.clone()), ..JobError::from_source(error) }
    };
    let opened = KernelBlock::open(&device.node, mode).map_err(|error| refused(&error))?;
    if mode != OpenMode::ReadOnly && !opened.is_block_device() {
        let user = loop_device_in_use(&device.node).map_err(|error| refused(&error))?;
        if let Some(user) = user {
            let detail = format!("device {:?} is in use: it is behind {}", device.serial, user.display());
            let device = Some(device.serial.clone());
            return Err(JobError { device, ..JobError::new(ErrorCode::DeviceBusy, detail) });
        }
    }
    with_block_size(opened, device.logical_block_size).map_err(|error| JobError::from_source(&error))
}

/// The loop device of a file, where that is mounted or held: whoever does so holds the file itself no more than others.
fn loop_device_in_use(file: &Path) -> Result<Option<PathBuf>, uvm_sys::Error> {
    use uvm_sys::ErrorKind::{Busy, PermissionDenied};
    let Some(user) = uvm_sys::loop_device_of(file)? else { return Ok(None) };
    // Who may not look takes it for used.
    let held = KernelBlock::open(&user, OpenMode::ReadOnlyHeld)
        .is_err_and(|error| matches!(error.kind(), Busy | PermissionDenied));
    Ok(held.then_some(user))
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
                        let is_unfit = error.kind() == uvm_sys::ErrorKind::Invalid;
                        let source = error.into_io();
                        let kind = if is_unfit { io::ErrorKind::InvalidInput } else { source.kind() };
                        io::Error::new(kind, format!("{context}: {source}"))
                    })?;
                Ok(Attached {
                    serial: serial.clone(),
                    node: path.clone(),
                    size_bytes: opened.size(),
                    logical_block_size: opened.logical_block_size(),
                    physical_block_size: opened.physical_block_size(),
                    read_only: opened.is_read_only(),
                })
            })
            .collect()
    }
}
