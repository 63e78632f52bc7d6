//! `partition`: a disk is divided, whole or in place, and gets the empty file systems that its layout names.

use std::sync::Arc;

use uvm_api::{FileSystemFormat, JobResult};
use uvm_disk::{Device, Recorder};

use super::context::Context;
use super::layout::Layout;
use super::plan::FORMAT;
use super::progress::{CLEAR, COMMIT};
use super::{JobError, format, provision, table};

/// Carries it out.
pub(super) fn execute(context: &Context<'_>, layout: &Layout) -> Result<JobResult, JobError> {
    let clock = provision::now()?;
    let target = context.open_target()?;
    context.step(CLEAR, || table::clear(&target, layout))?;
    let (mut formatted, mut verified_bytes) = (0, 0);
    if layout.made().next().is_some() {
        let recorder = Arc::new(Recorder::new(Arc::clone(&target)));
        let disk: Device = Arc::clone(&recorder) as Device;
        context.step(FORMAT, || {
            for placed in layout.made() {
                format::clear_marks(&disk, placed)?;
                format::make_empty(&disk, placed, clock)?;
                formatted += usize::from(placed.format != FileSystemFormat::None);
            }
            Ok(())
        })?;
        verified_bytes = context.step("verify", || Ok(recorder.verify(&mut |_| Ok(()))?))?;
    }
    context.step(COMMIT, || table::commit(&target, layout))?;
    context.progress.set_complete();
    drop(target);
    let_the_kernel_look(context);
    Ok(JobResult::Partition { partitions: layout.placed.len(), formatted, verified_bytes })
}

/// The kernel of a host has the old partitions in mind until it looks again. The disk is complete whatever it says.
fn let_the_kernel_look(context: &Context<'_>) {
    let looked = context.open_target_for_kernel().and_then(|block| match block.is_block_device() {
        true => block.reread_partition_table().map_err(|error| JobError::from_source(&error)),
        false => Ok(()),
    });
    if let Err(error) = looked {
        let why = std::iter::once(error.detail).chain(error.causes).collect::<Vec<_>>().join(": ");
        context.progress.note(format!("the kernel has not read the new table: {why}"));
    }
}
