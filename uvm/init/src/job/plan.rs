//! A job becomes a plan: every LBA decided, printable, hashed. Nothing is read or written here.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uvm_api::{
    Device, DeviceRef, DiskSpec, ErrorCode, Extent, JobSpec, OverwritePattern, Plan as WirePlan, PlannedStep,
    ProvisionSpec, SanitizeSpec,
};
use uvm_disk::Geometry;
use uvm_disk::layout::Action;
use uvm_guest::customize::Customization;

use super::JobError;
use super::layout::{self, Existing, Layout, Purpose, Table};
use super::progress::{CLEAR, COMMIT, Counts};
use super::request::{self, CaptureRequest, RestoreRequest};
use crate::image::ImageReference;
use crate::inventory::Attached;

/// The step that fetches; the only one that does not touch the device.
pub(crate) const IMAGE: &str = "image";
/// The step that opens the stream of a captured device.
pub(crate) const STREAM: &str = "stream";

/// The step that makes empty file systems.
pub(crate) const FORMAT: &str = "format";

/// What was seen before planning.
pub(crate) struct Observed {
    pub(crate) attached: Attached,
    pub(crate) contents: Device,
    /// Whether the first and the last MiB are zero; looked at only where the job demands a blank device.
    pub(crate) blank_edges: Option<bool>,
    /// What a job finds that edits it in place.
    pub(crate) existing: Option<Existing>,
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
    /// The device that is read besides.
    pub(crate) source: Option<Attached>,
    pub(crate) steps: Vec<StepPlan>,
    pub(crate) work: Work,
    /// What a client sees of it.
    pub(crate) wire: WirePlan,
}

impl Plan {
    /// The layout of its disk, where it is divided.
    pub(super) fn layout(&self) -> Option<&Layout> {
        self.work.layout()
    }
}

/// What is to be done, by kind of job.
pub(crate) enum Work {
    Inspect,
    Sanitize(OverwritePattern),
    Provision(Box<Provision>),
    Clone,
    Capture(CaptureRequest),
    Restore(RestoreRequest),
    Customize(Box<Customization>),
    Partition(Box<Layout>),
}

impl Work {
    fn layout(&self) -> Option<&Layout> {
        match self {
            Self::Provision(work) => Some(&work.layout),
            Self::Partition(layout) => Some(layout),
            _ => None,
        }
    }
}

/// A machine to make.
pub(crate) struct Provision {
    pub(crate) layout: Layout,
    pub(crate) image: ImageReference,
    pub(crate) guest: request::GuestRequest,
}

/// Plans a job against what was observed; `source` is what a clone reads.
pub(crate) fn plan(
    spec: &JobSpec,
    id: &str,
    observed: &Observed,
    source: Option<&Observed>,
) -> Result<Plan, JobError> {
    check_expectations(spec.device(), spec.writes(), observed)?;
    if let (Some(expected), Some(source)) = (spec.source_device(), source) {
        check_expectations(expected, false, source)?;
    }
    let (work, steps, partitions) = match spec {
        JobSpec::Inspect(_) => (Work::Inspect, inspect_steps(), Vec::new()),
        JobSpec::Sanitize(spec) => {
            (Work::Sanitize(spec.pattern), sanitize_steps(spec, &observed.attached), Vec::new())
        }
        JobSpec::Provision(spec) => {
            let work = plan_provision(spec, id, observed)?;
            let partitions = layout::planned(&work.layout, &geometry(&observed.attached));
            let steps = provision_steps(&work, spec);
            (Work::Provision(Box::new(work)), steps, partitions)
        }
        JobSpec::Clone(_) => {
            let source =
                source.ok_or_else(|| JobError::new(ErrorCode::Internal, "a clone without a source"))?;
            (Work::Clone, clone_steps(source, &observed.attached)?, Vec::new())
        }
        JobSpec::Capture(spec) => {
            let work = request::capture_request(&spec.destination)?;
            let steps = capture_steps(&work, &observed.attached);
            (Work::Capture(work), steps, Vec::new())
        }
        JobSpec::Restore(spec) => {
            let work = request::restore_request(&spec.source)?;
            let steps = restore_steps(&work, &observed.attached)?;
            (Work::Restore(work), steps, Vec::new())
        }
        JobSpec::Customize(spec) => {
            let work = request::change_request(&spec.customize)?;
            (Work::Customize(Box::new(work)), customize_steps(), Vec::new())
        }
        JobSpec::Partition(spec) => {
            let geometry = geometry(&observed.attached);
            let existing = observed.existing.as_ref();
            let work = layout::lay_out(&spec.disk, Purpose::Partitions, existing, &geometry, id)?;
            let partitions = layout::planned(&work, &geometry);
            let steps = partition_steps(&work);
            (Work::Partition(Box::new(work)), steps, partitions)
        }
    };
    let mut wire = WirePlan {
        plan_hash: String::new(),
        job_id: id.to_owned(),
        kind: spec.kind().to_owned(),
        device: observed.attached.serial.clone(),
        size_bytes: observed.attached.size_bytes,
        logical_block_size: observed.attached.logical_block_size,
        destroys: destroys(spec, &work, observed),
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
    wire.plan_hash = hash(&wire, spec, observed, source)?;
    let source = source.map(|source| source.attached.clone());
    Ok(Plan { device: observed.attached.clone(), source, steps, work, wire })
}

/// Over the plan, the job (agreeing to a plan agrees to the customization too, but not to a credential) and what is on
/// the devices, with its GUIDs and UUIDs: another machine's disk of the same shape has another hash.
fn hash(
    plan: &WirePlan,
    spec: &JobSpec,
    observed: &Observed,
    source: Option<&Observed>,
) -> Result<String, JobError> {
    let contents = |seen: &Observed| {
        serde_json::to_value((&seen.contents.table, &seen.contents.filesystem)).unwrap_or_default()
    };
    let mut spec = serde_json::to_value(spec.without_credentials())
        .map_err(|error| JobError::new(ErrorCode::Internal, format!("hashing the plan: {error}")))?;
    if let Some(object) = spec.as_object_mut() {
        object.remove("plan_hash");
    }
    let mut hashed = BTreeMap::from([
        ("plan", serde_json::to_value(plan).unwrap_or_default()),
        ("job", spec),
        ("contents", contents(observed)),
    ]);
    hashed.extend(source.map(|source| ("source", contents(source))));
    let text = serde_json::to_vec(&hashed)
        .map_err(|error| JobError::new(ErrorCode::Internal, format!("hashing the plan: {error}")))?;
    Ok(format!("sha256:{}", hex(&Sha256::digest(text))))
}

/// Lower case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_expectations(expected: &DeviceRef, writes: bool, observed: &Observed) -> Result<(), JobError> {
    let attached = &observed.attached;
    let refuse = |code, what: String| {
        let detail = format!("device {:?} {what}", attached.serial);
        Err(JobError { device: Some(attached.serial.clone()), ..JobError::new(code, detail) })
    };
    if let Some(size) = expected.size_bytes.filter(|size| *size != attached.size_bytes) {
        let what = format!("has {} bytes, the job expects {size}", attached.size_bytes);
        return refuse(ErrorCode::DeviceChanged, what);
    }
    if writes && attached.read_only {
        return refuse(ErrorCode::DeviceReadOnly, "is attached read-only".to_owned());
    }
    let contents = &observed.contents;
    if !expected.must_be_blank {
        return Ok(());
    }
    if !contents.notes.is_empty() {
        return refuse(ErrorCode::DeviceChanged, format!("must be blank but {}", contents.notes.join("; ")));
    }
    if contents.table.is_some() || contents.filesystem.is_some() {
        let found: Vec<String> = destroyed(observed).into_iter().map(|extent| extent.contents).collect();
        return refuse(ErrorCode::DeviceChanged, format!("must be blank but holds {}", found.join(", ")));
    }
    if observed.blank_edges == Some(false) {
        let what = "must be blank but its first or last MiB holds something unknown; sanitize it first";
        return refuse(ErrorCode::DeviceChanged, what.to_owned());
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
    vec![
        clear_step(),
        step(
            "overwrite",
            format!("Overwrite every addressable byte with {what}"),
            Counts::Writes,
            Some(size),
        ),
        step("verify", "Read every byte back and compare", Counts::Reads, Some(size)),
    ]
}

/// What a whole copy does to its target, once it has a source of `bytes`.
fn copy_steps(from: String, bytes: u64, target: &Attached) -> Result<Vec<StepPlan>, JobError> {
    let size = target.size_bytes;
    if bytes > size {
        let detail = format!("device {:?} has {size} bytes, {from} has {bytes}", target.serial);
        return Err(JobError::new(ErrorCode::DeviceTooSmall, detail));
    }
    let behind = match size - bytes {
        0 => String::new(),
        more => format!(
            "; the {more} bytes behind become zero, and the backup of a GPT stays where its disk ended"
        ),
    };
    // What is read is counted: ranges of zeroes are no writes.
    let copy = step(
        "copy",
        format!("Copy the {bytes} bytes of {from}, but for the first and the last MiB{behind}"),
        Counts::Reads,
        Some(bytes),
    );
    let verify = step(
        "verify",
        "Flush, read everything back and compare; make zero what has to be and is not",
        Counts::Reads,
        Some(size),
    );
    Ok(vec![
        clear_step(),
        StepPlan { writes: true, ..copy },
        StepPlan { writes: true, ..verify },
        step(COMMIT, "Write the last MiB, then the first; read them back", Counts::Writes, None),
    ])
}

fn clone_steps(source: &Observed, target: &Attached) -> Result<Vec<StepPlan>, JobError> {
    let from = &source.attached;
    if from.logical_block_size != target.logical_block_size {
        let detail = format!(
            "device {:?} has blocks of {} bytes, the source {:?} of {}: its partition table would not be found",
            target.serial, target.logical_block_size, from.serial, from.logical_block_size
        );
        return Err(JobError::new(ErrorCode::InvalidRequest, detail));
    }
    let contents = match (&source.contents.os_release, destroyed(source).into_iter().next()) {
        (Some(system), _) => system.clone(),
        (None, Some(whole)) => whole.contents,
        (None, None) => "nothing".to_owned(),
    };
    copy_steps(format!("the source {:?} ({contents})", from.serial), from.size_bytes, target)
}

fn capture_steps(work: &CaptureRequest, device: &Attached) -> Vec<StepPlan> {
    let description = format!("Read the whole device, compress it and send it to {}", work.destination);
    vec![step("capture", description, Counts::Reads, Some(device.size_bytes))]
}

fn restore_steps(work: &RestoreRequest, target: &Attached) -> Result<Vec<StepPlan>, JobError> {
    let block = u64::from(target.logical_block_size.max(1));
    if work.device_bytes == 0 || !work.device_bytes.is_multiple_of(block) {
        let detail = format!(
            "device_bytes is {}; the device {:?} is counted in blocks of {block} bytes",
            work.device_bytes, target.serial
        );
        return Err(JobError::new(ErrorCode::InvalidRequest, detail));
    }
    let open = step(
        STREAM,
        format!("Open the stream {} of {} bytes at {}", work.digest, work.size, work.source),
        Counts::Reads,
        None,
    );
    let copies = copy_steps("the captured device".to_owned(), work.device_bytes, target)?;
    Ok(std::iter::once(open).chain(copies).collect())
}

fn customize_steps() -> Vec<StepPlan> {
    vec![
        step("open", "Find the root file system and look at the machine on it", Counts::Reads, None),
        step("customize", "Change what was asked for, one whole file after the other", Counts::Writes, None),
        step("verify", "Read back what was changed", Counts::Reads, None),
    ]
}

/// Whether the job edits the partition table that a disk has.
pub(crate) fn edits_in_place(spec: &JobSpec) -> bool {
    match spec {
        JobSpec::Provision(spec) => layout::edits_in_place(&spec.disk, Purpose::Machine),
        JobSpec::Partition(spec) => layout::edits_in_place(&spec.disk, Purpose::Partitions),
        _ => false,
    }
}

fn geometry(attached: &Attached) -> Geometry {
    Geometry {
        size: attached.size_bytes,
        logical_block_size: attached.logical_block_size,
        physical_block_size: attached.physical_block_size,
    }
}

fn destroys(spec: &JobSpec, work: &Work, observed: &Observed) -> Vec<Extent> {
    match (work.layout(), &observed.existing) {
        (Some(layout), Some(existing)) => layout::destroyed(layout, existing, &geometry(&observed.attached)),
        // A blank disk is replaced as a whole, whatever the job says.
        (Some(_), _) => destroyed(observed),
        _ if spec.replaces_contents() => destroyed(observed),
        _ => Vec::new(),
    }
}

fn plan_provision(spec: &ProvisionSpec, id: &str, observed: &Observed) -> Result<Provision, JobError> {
    if !spec.partitions.is_empty() && !spec.disk.partitions.is_empty() {
        let detail = "partitions stand in the job and in its disk: name them in one place";
        return Err(JobError::new(ErrorCode::InvalidRequest, detail));
    }
    let mut disk: DiskSpec = spec.disk.clone();
    if disk.partitions.is_empty() {
        disk.partitions.clone_from(&spec.partitions);
    }
    let existing = observed.existing.as_ref();
    let layout = layout::lay_out(&disk, Purpose::Machine, existing, &geometry(&observed.attached), id)?;
    let image = request::image_reference(&spec.image)?;
    let guest = request::guest_request(spec, id, &layout.placed)?;
    Ok(Provision { layout, image, guest })
}

/// What the step `clear` does to tables.
fn clear_of(layout: &Layout) -> StepPlan {
    let Some(edit) = &layout.edit else { return clear_step() };
    let gone: Vec<String> = layout
        .made()
        .filter(|placed| placed.action == Action::Wipe)
        .chain(&layout.deleted)
        .map(|placed| placed.number.to_string())
        .collect();
    let stays = layout.placed.len() - layout.made().count();
    let description = match (gone.as_slice(), edit.before == edit.between) {
        (_, true) => {
            format!("Check that the partition table is the one planned for; {stays} partitions stay")
        }
        ([one], _) => format!("Take partition {one} out of the table; {stays} partitions stay"),
        _ => format!("Take partitions {} out of the table; {stays} partitions stay", gone.join(", ")),
    };
    step(CLEAR, description, Counts::Writes, None)
}

fn commit_of(layout: &Layout) -> StepPlan {
    let kind = match layout.table {
        Table::Gpt(_) => "GPT",
        Table::Mbr(_) => "MBR",
    };
    let partitions = layout.placed.len();
    let description = match (&layout.edit, &layout.table) {
        (None, Table::Gpt(_)) => {
            format!("Write the GPT with {partitions} partitions, backup first; read it back")
        }
        (None, Table::Mbr(_)) => format!("Write the MBR with {partitions} partitions; read it back"),
        (Some(_), _) => format!("Update the {kind} to {partitions} partitions; read it back"),
    };
    step(COMMIT, description, Counts::Writes, None)
}

fn partition_steps(layout: &Layout) -> Vec<StepPlan> {
    let made = layout.made().count();
    let mut steps = vec![clear_of(layout)];
    if made > 0 {
        let description = format!("Clear {made} new partitions of old marks; make their file systems");
        steps.push(step(FORMAT, description, Counts::Writes, None));
        steps.push(step("verify", "Flush, read everything back and compare", Counts::Reads, None));
    }
    steps.push(commit_of(layout));
    steps
}

fn provision_steps(work: &Provision, spec: &ProvisionSpec) -> Vec<StepPlan> {
    let writes = Counts::Writes;
    vec![
        step(IMAGE, format!("Fetch the manifest {} and check it", spec.image.digest), writes, None),
        clear_of(&work.layout),
        step("layers", "Format ext4 and write the image's layers as they stream in", writes, None),
        step("customize", "Give the guest its name, users, keys, network, identity and fstab", writes, None),
        step("boot", "Format the EFI system partition; write boot loader, kernel and initrd", writes, None),
        step("metadata", "Write the ext4 metadata and the swap header", writes, None),
        step("verify", "Flush, read everything back and compare", Counts::Reads, None),
        commit_of(&work.layout),
    ]
}
