//! A job becomes a plan: every LBA decided, printable, hashed. Nothing is read or written here.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uvm_api::{
    Device, ErrorCode, Extent, JobSpec, OverwritePattern, Plan as WirePlan, PlannedPartition, PlannedStep,
    ProvisionSpec, SanitizeSpec,
};
use uvm_disk::Geometry;
use uvm_disk::gpt::PartitionTable;

use super::JobError;
use super::layout::{self, Placed, format_name};
use super::progress::{CLEAR, COMMIT, Counts};
use super::request;
use crate::image::ImageReference;
use crate::inventory::Attached;

/// The step that fetches; the only one that does not touch the device.
pub(crate) const IMAGE: &str = "image";

/// What was seen before planning.
pub(crate) struct Observed {
    pub(crate) attached: Attached,
    pub(crate) contents: Device,
    /// Whether the first and the last MiB are zero; looked at only where the job demands a blank device.
    pub(crate) blank_edges: Option<bool>,
}

/// A step to come.
#[derive(Debug, Clone)]
pub(crate) struct StepPlan {
    pub(crate) name: &'static str,
    pub(crate) description: String,
    pub(crate) bytes: Option<u64>,
    pub(crate) counts: Counts,
    /// Whether it writes to the device; its identity is checked before.
    pub(crate) writes: bool,
}

/// A plan; execution has no decisions left to make.
pub(crate) struct Plan {
    pub(crate) device: Attached,
    pub(crate) steps: Vec<StepPlan>,
    pub(crate) work: Work,
    /// What a client sees of it.
    pub(crate) wire: WirePlan,
}

/// What is to be done, by kind of job.
pub(crate) enum Work {
    Inspect,
    Sanitize(OverwritePattern),
    Provision(Box<Provision>),
}

/// A machine to make.
pub(crate) struct Provision {
    pub(crate) table: PartitionTable,
    pub(crate) placed: Vec<Placed>,
    pub(crate) image: ImageReference,
    pub(crate) guest: request::GuestRequest,
}

/// Plans a job against what was observed.
pub(crate) fn plan(spec: &JobSpec, id: &str, observed: &Observed) -> Result<Plan, JobError> {
    check_expectations(spec, observed)?;
    let (work, steps, partitions) = match spec {
        JobSpec::Inspect(_) => (Work::Inspect, inspect_steps(), Vec::new()),
        JobSpec::Sanitize(spec) => {
            (Work::Sanitize(spec.pattern), sanitize_steps(spec, &observed.attached), Vec::new())
        }
        JobSpec::Provision(spec) => {
            let work = plan_provision(spec, id, observed)?;
            let partitions = work.placed.iter().map(planned_partition).collect();
            let steps = provision_steps(&work, spec);
            (Work::Provision(Box::new(work)), steps, partitions)
        }
    };
    let mut wire = WirePlan {
        plan_hash: String::new(),
        job_id: id.to_owned(),
        kind: spec.kind().to_owned(),
        device: observed.attached.serial.clone(),
        size_bytes: observed.attached.size_bytes,
        logical_block_size: observed.attached.logical_block_size,
        destroys: if spec.writes() { destroyed(observed) } else { Vec::new() },
        partitions,
        steps: steps
            .iter()
            .map(|step| PlannedStep {
                name: step.name.to_owned(),
                description: step.description.clone(),
                bytes: step.bytes,
            })
            .collect(),
    };
    wire.plan_hash = hash(&wire, spec, &observed.contents)?;
    Ok(Plan { device: observed.attached.clone(), steps, work, wire })
}

/// Over the plan, the job (agreeing to a plan agrees to the customization too) and what is on the device, with its
/// GUIDs and UUIDs: another machine's disk of the same shape has another hash.
fn hash(plan: &WirePlan, spec: &JobSpec, contents: &Device) -> Result<String, JobError> {
    let mut spec = serde_json::to_value(spec)
        .map_err(|error| JobError::new(ErrorCode::Internal, format!("hashing the plan: {error}")))?;
    if let Some(object) = spec.as_object_mut() {
        object.remove("plan_hash");
    }
    let text = serde_json::to_vec(&BTreeMap::from([
        ("plan", serde_json::to_value(plan).unwrap_or_default()),
        ("job", spec),
        ("contents", serde_json::to_value((&contents.table, &contents.filesystem)).unwrap_or_default()),
    ]))
    .map_err(|error| JobError::new(ErrorCode::Internal, format!("hashing the plan: {error}")))?;
    Ok(format!("sha256:{}", hex(&Sha256::digest(text))))
}

/// Lower case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_expectations(spec: &JobSpec, observed: &Observed) -> Result<(), JobError> {
    let expected = spec.device();
    let attached = &observed.attached;
    if let Some(size) = expected.size_bytes.filter(|size| *size != attached.size_bytes) {
        return Err(JobError::new(
            ErrorCode::DeviceChanged,
            format!("device {:?} has {} bytes, the job expects {size}", attached.serial, attached.size_bytes),
        ));
    }
    if spec.writes() && attached.read_only {
        return Err(JobError::new(
            ErrorCode::DeviceReadOnly,
            format!("device {:?} is attached read-only", attached.serial),
        ));
    }
    let contents = &observed.contents;
    if expected.must_be_blank {
        if !contents.notes.is_empty() {
            let detail =
                format!("device {:?} must be blank but {}", attached.serial, contents.notes.join("; "));
            return Err(JobError::new(ErrorCode::DeviceChanged, detail));
        }
        if observed.blank_edges == Some(false) && contents.table.is_none() && contents.filesystem.is_none() {
            let detail = format!(
                "device {:?} must be blank but its first or last MiB holds something unknown; sanitize it first",
                attached.serial
            );
            return Err(JobError::new(ErrorCode::DeviceChanged, detail));
        }
        if contents.table.is_some() || contents.filesystem.is_some() {
            let found: Vec<String> = destroyed(observed).into_iter().map(|extent| extent.contents).collect();
            return Err(JobError::new(
                ErrorCode::DeviceChanged,
                format!("device {:?} must be blank but holds {}", attached.serial, found.join(", ")),
            ));
        }
    }
    Ok(())
}

/// Everything on the device, partition by partition where there is a table.
fn destroyed(observed: &Observed) -> Vec<Extent> {
    let blocks = observed.attached.size_bytes / u64::from(observed.attached.logical_block_size.max(1));
    let describe = |filesystem: &Option<uvm_api::FileSystem>| match filesystem {
        Some(found) => match &found.label {
            Some(label) => format!("{} {label:?}", found.format),
            None => found.format.clone(),
        },
        None => "unknown contents".to_owned(),
    };
    let contents = &observed.contents;
    let whole = match (&contents.table, &contents.filesystem) {
        (Some(table), _) => format!("{} partition table", table.kind),
        (None, Some(_)) => describe(&contents.filesystem),
        (None, None) => "no partition table and no file system".to_owned(),
    };
    let mut extents = vec![Extent { starting_lba: 0, ending_lba: blocks.saturating_sub(1), contents: whole }];
    extents.extend(contents.table.iter().flat_map(|table| &table.partitions).map(|partition| Extent {
        starting_lba: partition.starting_lba,
        ending_lba: partition.ending_lba,
        contents: format!("partition {}: {}", partition.number, describe(&partition.filesystem)),
    }));
    extents
}

fn step(name: &'static str, description: impl Into<String>, counts: Counts, bytes: Option<u64>) -> StepPlan {
    let writes = counts == Counts::Writes && name != IMAGE;
    StepPlan { name, description: description.into(), bytes, counts, writes }
}

fn clear_step() -> StepPlan {
    step(CLEAR, "Zero the first and the last MiB: no partition table survives", Counts::Writes, None)
}

fn inspect_steps() -> Vec<StepPlan> {
    vec![step("inspect", "Read tables, file systems and os-release", Counts::Reads, None)]
}

fn sanitize_steps(spec: &SanitizeSpec, device: &Attached) -> Vec<StepPlan> {
    let what = match spec.pattern {
        OverwritePattern::Random => "a random keystream",
        OverwritePattern::Zero => "zeroes",
    };
    let size = device.size_bytes;
    // The first and the last MiB are zeroed before the rest, so that no table survives an interruption.
    let written = size.saturating_add(size.min(2 << 20));
    vec![
        clear_step(),
        step(
            "overwrite",
            format!("Overwrite every addressable byte with {what}"),
            Counts::Writes,
            Some(written),
        ),
        step("verify", "Read every byte back and compare", Counts::Reads, Some(size)),
    ]
}

fn plan_provision(spec: &ProvisionSpec, id: &str, observed: &Observed) -> Result<Provision, JobError> {
    let attached = &observed.attached;
    let geometry = Geometry {
        size: attached.size_bytes,
        logical_block_size: attached.logical_block_size,
        physical_block_size: attached.physical_block_size,
    };
    let (table, placed) = layout::lay_out(&spec.partitions, &geometry, id)?;
    let image = request::image_reference(&spec.image)?;
    let guest = request::guest_request(spec, id, &placed)?;
    Ok(Provision { table, placed, image, guest })
}

fn planned_partition(placed: &Placed) -> PlannedPartition {
    PlannedPartition {
        number: placed.partition.number,
        label: placed.partition.name.clone(),
        type_guid: placed.partition.type_guid.to_string(),
        unique_guid: placed.partition.unique_guid.to_string(),
        starting_lba: placed.partition.starting_lba,
        ending_lba: placed.partition.ending_lba,
        size_bytes: placed.size,
        format: Some(format_name(placed.format).to_owned()),
        filesystem_uuid: Some(placed.uuid_text()),
        path: placed.path.clone(),
    }
}

fn provision_steps(work: &Provision, spec: &ProvisionSpec) -> Vec<StepPlan> {
    let writes = Counts::Writes;
    vec![
        step(IMAGE, format!("Fetch the manifest {} and check it", spec.image.digest), writes, None),
        clear_step(),
        step("layers", "Format ext4 and write the image's layers as they stream in", writes, None),
        step("customize", "Give the guest its name, users, keys, network, identity and fstab", writes, None),
        step("boot", "Format the EFI system partition; write boot loader, kernel and initrd", writes, None),
        step("metadata", "Write the ext4 metadata and the swap header", writes, None),
        step("verify", "Flush, read everything back and compare", Counts::Reads, None),
        step(
            COMMIT,
            format!("Write the GPT with {} partitions, backup first; read it back", work.placed.len()),
            writes,
            None,
        ),
    ]
}
