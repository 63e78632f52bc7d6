//! A path of the host that a command works on: opened so that nobody else writes it, and told apart by whether it was
//! written to.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uvm_disk::{BlockDevice, Device, Geometry};
use uvm_sys::{KernelBlock, MountedExt, OpenMode};

use super::block::{ReadOnlyDevice, geometry};

/// Why a path cannot be worked on.
pub(crate) type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// A device or file, held for writing. What was made for it is taken back where nothing was written.
pub(crate) struct Target {
    pub(crate) device: Device,
    /// Logical blocks of the disk before it, where it is a partition.
    pub(crate) hidden_blocks: u32,
    written: Arc<AtomicBool>,
    grown: Grown,
}

/// How a file came to its size.
enum Grown {
    No,
    Created(PathBuf),
    From(File, u64),
}

impl Target {
    /// Opens `path`; where `size` is given, a file is created, or made as large. `block_size` is that of the logical
    /// blocks of a plain file.
    pub(crate) fn open(path: &Path, size: Option<u64>, block_size: u32) -> Result<Self, Refusal> {
        let mut grown = match size {
            Some(size) => grow(path, size)?,
            None => Grown::No,
        };
        match hold(path, block_size) {
            Ok(block) => {
                let written = Arc::new(AtomicBool::new(false));
                let hidden = block.partition_start() / u64::from(block.logical_block_size());
                // Further on than 32 bits count there is no boot loader to tell.
                let hidden_blocks = u32::try_from(hidden).unwrap_or(0);
                let device = Arc::new(HostDevice { block, written: Arc::clone(&written) });
                Ok(Self { device, hidden_blocks, written, grown })
            }
            Err(error) => {
                grown.take_back();
                Err(error)
            }
        }
    }

    /// Whether a write has been tried.
    pub(crate) fn is_written(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// The file stays as large as it was made, written to or not.
    pub(crate) fn keep(self) {
        self.written.store(true, Ordering::Release);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.is_written() {
            self.grown.take_back();
        }
    }
}

impl Grown {
    fn take_back(&mut self) {
        // The reason why nothing was written is what the caller hears of.
        match std::mem::replace(self, Self::No) {
            Self::No => {}
            Self::Created(path) => drop(std::fs::remove_file(path)),
            Self::From(file, size) => drop(file.set_len(size)),
        }
    }
}

/// Makes the file that large.
fn grow(path: &Path, size: u64) -> Result<Grown, Refusal> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => {
            let mut grown = Grown::Created(path.to_owned());
            file.set_len(size).inspect_err(|_| grown.take_back())?;
            return Ok(grown);
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    if !path.metadata()?.is_file() {
        return Err("--size is for files; a device has the size it has".into());
    }
    // Held while it is looked at, like any file that is written.
    hold(path, 512)?;
    let file = OpenOptions::new().write(true).open(path)?;
    let old = file.metadata()?.len();
    if size < old {
        return Err(format!("it has {old} bytes; --size {size} would cut it").into());
    }
    file.set_len(size)?;
    Ok(Grown::From(file, old))
}

/// Opens for writing what nobody else uses.
fn hold(path: &Path, block_size: u32) -> Result<KernelBlock, Refusal> {
    if let Some(user) = uvm_sys::loop_device_of(path).map_err(uvm_sys::Error::into_io)? {
        return Err(format!("in use: it is behind {}", user.display()).into());
    }
    let block = KernelBlock::open(path, OpenMode::ReadWrite).map_err(|error| -> Refusal {
        match error.kind() {
            uvm_sys::ErrorKind::Busy => "in use: it is mounted, or held by another program".into(),
            _ => error.into_io().into(),
        }
    })?;
    Ok(if block.is_block_device() { block } else { block.with_logical_block_size(block_size)? })
}

/// Opens `path` to be read; others may write it.
pub(crate) fn open_to_read(path: &Path, block_size: u32) -> Result<Device, Refusal> {
    let block = KernelBlock::open(path, OpenMode::ReadOnly).map_err(uvm_sys::Error::into_io)?;
    let block = if block.is_block_device() { block } else { block.with_logical_block_size(block_size)? };
    Ok(Arc::new(ReadOnlyDevice(block)))
}

/// A device whose ext2, ext3 or ext4 is mounted.
pub(crate) struct Mounted {
    file_system: MountedExt,
    /// To be read.
    pub(crate) device: Device,
}

impl Mounted {
    /// `None` where it is not mounted.
    pub(crate) fn find(path: &Path) -> Result<Option<Self>, Refusal> {
        let found = MountedExt::find(path).map_err(uvm_sys::Error::into_io)?;
        let Some(file_system) = found else { return Ok(None) };
        let device = open_to_read(path, 512)?;
        Ok(Some(Self { file_system, device }))
    }

    /// Where it is mounted.
    pub(crate) fn mount_point(&self) -> &Path {
        self.file_system.mount_point()
    }

    /// Lets the kernel grow it.
    pub(crate) fn grow(&self, size: u64) -> Result<(), Refusal> {
        let block = self.file_system.block_size().map_err(uvm_sys::Error::into_io)?.max(1);
        Ok(self.file_system.grow(size / block).map_err(uvm_sys::Error::into_io)?)
    }
}

/// A kernel device that remembers whether it was written to.
struct HostDevice {
    block: KernelBlock,
    written: Arc<AtomicBool>,
}

impl HostDevice {
    fn before_write(&self) {
        self.written.store(true, Ordering::Release);
    }
}

impl BlockDevice for HostDevice {
    fn geometry(&self) -> Geometry {
        geometry(&self.block)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.block.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.before_write();
        self.block.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before_write();
        self.block.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.before_write();
        self.block.discard(offset, len)
    }
    fn flush(&self) -> io::Result<()> {
        self.block.flush()
    }
}
