//! `sanitize`: NIST SP 800-88 Clear by overwriting, with every byte read back.

use uvm_api::{JobResult, OverwritePattern};
use uvm_disk::sanitize::{Pattern, overwrite, verify_overwrite};

use super::JobError;
use super::context::Context;
use super::progress::CLEAR;

/// Carries it out.
pub(super) fn execute(context: &Context<'_>, pattern: &OverwritePattern) -> Result<JobResult, JobError> {
    let device = context.open_target()?;
    let size = device.geometry().size;
    let written = match pattern {
        OverwritePattern::Zero => Pattern::Zero,
        OverwritePattern::Random => Pattern::Random { seed: rand::random() },
    };
    context.step(CLEAR, || Ok(uvm_disk::gpt::wipe_tables(&*device)?))?;
    context.step("overwrite", || Ok(overwrite(&*device, written, &mut |_| Ok(()))?))?;
    context.step("verify", || Ok(verify_overwrite(&*device, written, &mut |_| Ok(()))?))?;
    context.progress.set_complete();
    Ok(JobResult::Sanitize {
        method: "clear".to_owned(),
        technique: "overwrite".to_owned(),
        pattern: *pattern,
        overwritten_bytes: size,
        verified_bytes: size,
    })
}
