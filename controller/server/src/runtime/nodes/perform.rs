//! One call: the hypervisor's share of it. What a utility VM does is in `utility`.

use std::collections::HashSet;

use super::{Site, utility, work};
use crate::core::{Call, CallAnswer, CallError, CallErrorKind, Observation};
use crate::hypervisor::{self, DomainState, ErrorKind};
use crate::model::Progress;

/// Makes a call at a site. See [`super::Nodes::perform`].
pub fn perform(
    site: &dyn Site,
    call: &Call,
    on_progress: &mut dyn FnMut(Progress),
    cancelled: &dyn Fn() -> bool,
) -> Result<CallAnswer, CallError> {
    match call {
        Call::Observe => observe(site).map(|observation| CallAnswer::Observed(Box::new(observation))),
        Call::EnsureUtilityVm => utility::ensure(site, cancelled),
        Call::RestartUtilityVm => utility::restart(site, cancelled),
        Call::UvmDevices(serials) => seen(site, serials).map(CallAnswer::Devices),
        Call::UvmJob { id, work } => utility::run_job(site, id, work, on_progress, cancelled)
            .map(|job| CallAnswer::UvmJob(Box::new(job))),
        Call::CancelUvmJob(id) => utility::cancel_job(site, id, cancelled),
        verb => manage(site, verb).map_err(hypervisor_error),
    }
}

/// What the hypervisor does alone.
fn manage(site: &dyn Site, call: &Call) -> hypervisor::Result<CallAnswer> {
    let manager = site.manager();
    match call {
        Call::InspectDomain(id) => {
            return manager.domain(*id).map(|found| CallAnswer::Domain(found.map(Box::new)));
        }
        Call::InspectVolume(id) => return manager.volume(*id).map(CallAnswer::Volume),
        Call::CreateVolume { volume, size_mib } => manager.create_volume(*volume, *size_mib).map(drop),
        Call::GrowVolume { volume, size_mib } => manager.grow_volume(*volume, *size_mib).map(drop),
        Call::DeleteVolume(volume) => manager.delete_volume(*volume),
        Call::Define(spec) => manager.define(spec),
        Call::Undefine(domain) => manager.undefine(*domain),
        Call::Start(domain) => manager.start(*domain),
        Call::Shutdown(domain) => manager.shutdown(*domain),
        Call::Destroy(domain) => manager.destroy(*domain),
        Call::Suspend(domain) => manager.suspend(*domain),
        Call::Resume(domain) => manager.resume(*domain),
        Call::Reboot(domain) => manager.reboot(*domain),
        Call::Attach { domain, attachment } => manager.attach(*domain, attachment),
        Call::Detach { domain, volume } => manager.detach(*domain, *volume),
        Call::SetVcpus { domain, vcpus } => manager.set_vcpus(*domain, *vcpus),
        Call::SetMemory { domain, memory_mib } => manager.set_memory(*domain, *memory_mib),
        Call::SetIoLimits { domain, volume, limits } => manager.set_io_limits(*domain, *volume, *limits),
        Call::Observe
        | Call::EnsureUtilityVm
        | Call::RestartUtilityVm
        | Call::UvmDevices(_)
        | Call::UvmJob { .. }
        | Call::CancelUvmJob(_) => {
            let message = "a call to a utility VM is not made to a hypervisor";
            return Err(hypervisor::Error::new(ErrorKind::Unsupported, message));
        }
    }
    .map(|()| CallAnswer::Done)
}

fn observe(site: &dyn Site) -> Result<Observation, CallError> {
    let report = site.manager().report().map_err(hypervisor_error)?;
    let capacity = site.capacity().map_err(hypervisor_error)?;
    let id = site.node().id;
    // One that does not run is not waited for.
    let runs = report.domains.iter().any(|domain| domain.id == id && domain.state == DomainState::Running);
    let word = if runs { site.utility().ok().and_then(|utility| word_of(&*utility)) } else { None };
    let (utility, uvm_jobs_running) = match word {
        Some((node, jobs)) => (Some(Box::new(node)), jobs),
        None => (None, 0),
    };
    let capabilities = site.manager().capabilities();
    Ok(Observation { report, capabilities, capacity, utility, uvm_jobs_running })
}

/// What the utility VM says of itself, and how many jobs it runs.
fn word_of(utility: &dyn crate::uvm::UtilityVm) -> Option<(uvm_api::Node, usize)> {
    let node = utility.node().ok()?;
    Some((node, utility.jobs_running().ok()?))
}

/// Those of the serial numbers that the utility VM sees, in the order asked for.
fn seen(site: &dyn Site, serials: &[String]) -> Result<Vec<String>, CallError> {
    let devices = site.utility()?.devices().map_err(work::uvm_error)?;
    let seen: HashSet<&str> = devices.iter().map(|device| device.serial.as_str()).collect();
    Ok(serials.iter().filter(|serial| seen.contains(serial.as_str())).cloned().collect())
}

/// A hypervisor's error in the core's words.
pub(super) fn hypervisor_error(error: hypervisor::Error) -> CallError {
    let kind = match error.kind {
        ErrorKind::Unreachable | ErrorKind::TimedOut => CallErrorKind::Unreachable,
        ErrorKind::NotFound => CallErrorKind::NotFound,
        ErrorKind::WrongState => CallErrorKind::WrongState,
        ErrorKind::NoResources => CallErrorKind::NoResources,
        ErrorKind::Unsupported => CallErrorKind::Unsupported,
        // A hypervisor that failed may do better next time; the step's deadline ends the attempts.
        ErrorKind::Failed => CallErrorKind::Transient,
    };
    CallError::new(kind, error.message)
}
