//! What a job's steps work with: their plan, their progress, and the devices, checked once more when they are opened.

use std::sync::Arc;

use uvm_api::ErrorCode;
use uvm_sys::{KernelBlock, OpenMode};

use super::engine::Options;
use super::plan::Plan;
use super::{JobError, Progress};
use crate::adapter::block::{JobDevice, JobSource};
use crate::inventory::{self, Attached, Inventory};

/// See the module.
pub(crate) struct Context<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) progress: &'a Arc<Progress>,
    pub(crate) inventory: &'a dyn Inventory,
    pub(crate) options: &'a Options,
}

impl Context<'_> {
    /// Carries out the step of that name in the plan.
    pub(crate) fn step<T>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T, JobError>,
    ) -> Result<T, JobError> {
        let index = self.plan.steps.iter().position(|step| step.name == name);
        let index = index.expect("every step that is carried out stands in the plan");
        let step = &self.plan.steps[index];
        self.progress.step(index + 1, step, || {
            if step.writes {
                self.check_identity()?;
            }
            work()
        })
    }

    /// The devices are still those that the plan was made for; the one that the job is about is returned.
    pub(crate) fn check_identity(&self) -> Result<Attached, JobError> {
        let device = self.check(&self.plan.device)?;
        self.plan.source.as_ref().map(|source| self.check(source)).transpose()?;
        Ok(device)
    }

    fn check(&self, planned: &Attached) -> Result<Attached, JobError> {
        let refused = |code, what: &str| JobError {
            device: Some(planned.serial.clone()),
            ..JobError::new(code, format!("device {:?} {what}", planned.serial))
        };
        let found = self.inventory.find(&planned.serial).map_err(|error| match error.code {
            ErrorCode::DeviceNotFound => refused(ErrorCode::DeviceGone, "was detached while the job ran"),
            _ => error,
        })?;
        if found != *planned {
            return Err(refused(ErrorCode::DeviceChanged, "is not the one that was planned for any more"));
        }
        Ok(found)
    }

    /// Opens a device as it was planned for, and checks that its serial led to what was opened.
    fn open(&self, planned: &Attached, mode: OpenMode) -> Result<KernelBlock, JobError> {
        let attached = self.check(planned)?;
        let block = inventory::open(&attached, mode)?;
        if block.size() != attached.size_bytes || block.is_gone() {
            return Err(JobError::new(ErrorCode::DeviceChanged, "the device changed while it was opened"));
        }
        // What was opened by name is held now; the serial must still lead to it.
        self.check(planned)?;
        Ok(block)
    }

    /// Opens the planned device for writing, exclusively.
    pub(crate) fn open_target(&self) -> Result<uvm_disk::Device, JobError> {
        let block = self.open_target_for_kernel()?;
        Ok(Arc::new(JobDevice::new(block, Arc::clone(self.progress))))
    }

    /// The same, for what the kernel itself is to do with the device.
    pub(crate) fn open_target_for_kernel(&self) -> Result<KernelBlock, JobError> {
        self.open(&self.plan.device, OpenMode::ReadWrite)
    }

    /// Opens the device that is read, so that nobody writes it meanwhile. One that is attached read-only may be open
    /// elsewhere too: several machines may be made from it at once.
    pub(crate) fn open_source(&self) -> Result<uvm_disk::Device, JobError> {
        let source = self.plan.source.as_ref().unwrap_or(&self.plan.device);
        let mode = if source.read_only { OpenMode::ReadOnly } else { OpenMode::ReadOnlyHeld };
        let block = self.open(source, mode)?;
        let (serial, progress) = (source.serial.clone(), Arc::clone(self.progress));
        Ok(Arc::new(JobSource { block, serial, progress }))
    }
}
