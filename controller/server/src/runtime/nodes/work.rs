//! What a utility VM is to do, in its own words; and its problems in the core's.

use uvm_api::{
    CaptureSpec, CloneSpec, CustomizeJobSpec, CustomizeSpec, DeviceRef, ErrorCode, ImageSpec, Job, JobSpec,
    OverwritePattern, Problem, ProvisionSpec, RestoreSpec, Retry, SanitizeSpec, Secret, StreamSource,
    StreamTarget, Technique,
};

use super::Site;
use crate::blobs::Verb;
use crate::core::{CallError, CallErrorKind, UvmWork};
use crate::model::{ImageContents, Progress};
use crate::uvm::UvmError;

/// The job that does this work. The same id and work give the same job, whenever they are asked for.
pub(super) fn job_spec(site: &dyn Site, id: &str, work: &UvmWork) -> Result<JobSpec, CallError> {
    let id = Some(id.to_owned());
    Ok(match work {
        UvmWork::Provision { serial, size_mib, contents, config } => {
            let ImageContents::Oci { source, reference, digest } = contents else {
                return Err(permanent("a captured disk is restored, not provisioned"));
            };
            let image =
                ImageSpec { source: source.clone(), reference: reference.clone(), digest: digest.clone() };
            JobSpec::Provision(Box::new(ProvisionSpec {
                id,
                device: device(serial, Some(*size_mib)),
                partitions: config.partitions.clone(),
                disk: uvm_api::DiskSpec::default(),
                image,
                customize: config.customize.clone(),
                boot: config.boot.clone(),
                plan_hash: None,
            }))
        }
        UvmWork::Clone { source, target } => JobSpec::Clone(CloneSpec {
            id,
            device: device(target, None),
            source: device(source, None),
            plan_hash: None,
        }),
        UvmWork::Capture { serial, image } => {
            let place = site.blob(Verb::Put, *image);
            let authorization = Some(Secret::new(place.authorization));
            let destination = StreamTarget { url: place.url, authorization };
            JobSpec::Capture(CaptureSpec { id, device: device(serial, None), destination, plan_hash: None })
        }
        UvmWork::Restore { serial, image, contents } => {
            let ImageContents::Disk { digest, size_bytes, device_bytes } = contents else {
                return Err(permanent("an OCI image is provisioned, not restored"));
            };
            let place = site.blob(Verb::Get, *image);
            let source = StreamSource {
                url: place.url,
                authorization: Some(Secret::new(place.authorization)),
                digest: digest.clone(),
                size_bytes: *size_bytes,
                device_bytes: *device_bytes,
            };
            JobSpec::Restore(Box::new(RestoreSpec {
                id,
                device: device(serial, None),
                source,
                plan_hash: None,
            }))
        }
        UvmWork::Sanitize { serial, size_mib } => JobSpec::Sanitize(SanitizeSpec {
            id,
            device: device(serial, Some(*size_mib)),
            technique: Technique::Overwrite,
            pattern: OverwritePattern::Random,
            plan_hash: None,
        }),
        UvmWork::SetHostname { serial, hostname } => JobSpec::Customize(Box::new(CustomizeJobSpec {
            id,
            device: device(serial, None),
            customize: CustomizeSpec { hostname: Some(hostname.clone()), ..CustomizeSpec::default() },
            plan_hash: None,
        })),
    })
}

/// A disk by its serial number. Blankness is not asked for: the job may be one that was begun before.
fn device(serial: &str, size_mib: Option<u64>) -> DeviceRef {
    let size_bytes = size_mib.and_then(|mib| mib.checked_mul(1 << 20));
    DeviceRef { serial: serial.to_owned(), size_bytes, must_be_blank: false }
}

fn permanent(message: &str) -> CallError {
    CallError::new(CallErrorKind::Permanent, message)
}

/// How far a job is, where it says so.
pub(super) fn progress(job: &Job) -> Option<Progress> {
    job.progress.as_ref().map(|progress| Progress {
        step: progress.step.clone(),
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        bytes_per_second: progress.bytes_per_second,
    })
}

/// A utility VM's error in the core's words.
pub(super) fn uvm_error(error: UvmError) -> CallError {
    match error {
        UvmError::Unreachable(_) => CallError::new(CallErrorKind::UtilityVmAway, error.to_string()),
        UvmError::Problem(problem) => problem_error(&problem),
    }
}

/// A utility VM's problem in the core's words.
pub(super) fn problem_error(problem: &Problem) -> CallError {
    let kind = match problem.code {
        // A disk that was plugged in a moment ago may not have been seen yet.
        ErrorCode::DeviceNotFound => CallErrorKind::Transient,
        ErrorCode::JobConflict | ErrorCode::Unauthorized | ErrorCode::InvalidRequest => {
            CallErrorKind::Permanent
        }
        _ => match problem.retry {
            Some(Retry::Never) => CallErrorKind::Permanent,
            Some(Retry::Same | Retry::AfterRepair | Retry::Unknown) => CallErrorKind::Transient,
            None if problem.status >= 500 => CallErrorKind::Transient,
            None => CallErrorKind::Permanent,
        },
    };
    let mut message = format!("{}: {}", problem.title, problem.detail);
    if let Some(step) = &problem.step {
        message.push_str(&format!(" (step {step})"));
    }
    CallError { kind, message, causes: problem.causes.clone() }
}
