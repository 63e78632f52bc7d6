//! `customize`: changes to a machine that is installed on a disk.
//!
//! ```text
//! open       find the root file system; refuse what must not be changed          reads
//! customize  the kernel mounts it, every file is replaced whole, all is synced   writes
//! verify     unmounted; mounted again read-only; every change is read back       reads
//! ```
//!
//! The kernel that mounts a guest's file system is the appliance's own (or the host's, where `uvm apply` is run by
//! hand). It carries out what the guest's journal still holds. The mount is seen by nobody and ends with the job.
//!
//! The disk is a machine at every moment. Each file is written under another name, made durable and then renamed, so
//! after a cut of the power it is the old one or the new one, whole; the journal does the same for the file system. A
//! failed edit leaves the disk `modified`: some of the files may be new. The same job again completes it.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use uvm_api::{ErrorCode, JobResult};
use uvm_disk::ext4::{JournalPlace, read_state};
use uvm_disk::gpt::partition_type::{ROOT_ARM64, ROOT_X86_64};
use uvm_disk::probe::{PartitionKind, Probe, probe, read_os_release};
use uvm_disk::{Device, Slice, swap};
use uvm_guest::customize::{Customization, CustomizationReport, Renderer, customize};
use uvm_guest::{GuestPath, GuestTree, Kind, Metadata, resolve, resolved_metadata};
use uvm_sys::{Access, KernelBlock, Volume};

use super::JobError;
use super::context::Context;
use super::plan::hex;
use super::provision::{now, timestamp};
use crate::adapter::block::ReadOnlyDevice;
use crate::adapter::mounted::MountedTree;

const HOSTNAME: &str = "/etc/hostname";
const MACHINE_ID: &str = "/etc/machine-id";
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];
/// Bytes of a name or an id that are read.
const MAX_NAME: u64 = 4096;

/// Carries it out.
pub(super) fn execute(context: &Context<'_>, work: &Customization) -> Result<JobResult, JobError> {
    // Where a machine finds its file systems is not ours to say once it is installed.
    let wanted = Customization { timestamp: timestamp(now()?), fstab: None, ..work.clone() };
    let (disk, root) = context.step("open", || open(context))?;
    let (disk, edited) = context.step("customize", || edit(context, disk, &root, &wanted))?;
    context.step("verify", || verify(disk, &root, &wanted, &edited))?;
    context.progress.set_complete();
    let mut notes = edited.report.notes.clone();
    if root.was_in_use {
        let note =
            "the machine had not been shut down: what its file system's journal held was carried out first";
        notes.push(note.to_owned());
    }
    if edited.entries.is_empty() {
        notes.push("the machine was so already; no file was written".to_owned());
        return Ok(JobResult::Customize { changed: Vec::new(), notes });
    }
    Ok(JobResult::Customize { changed: changes(&wanted, &edited.report), notes })
}

/// Where the root file system lies.
struct Root {
    offset: u64,
    size: u64,
    /// It was not unmounted when the machine last ran.
    was_in_use: bool,
}

/// A partition, or the whole disk, and what was recognized in it.
struct Part {
    name: String,
    offset: u64,
    size: u64,
    format: Option<&'static str>,
    is_root_by_type: bool,
    slice: Device,
}

fn unsuitable(detail: impl Into<String>) -> JobError {
    JobError::new(ErrorCode::GuestUnsuitable, detail)
}

fn from_kernel(error: uvm_sys::Error) -> JobError {
    use uvm_sys::ErrorKind as Kind;
    let code = match error.kind() {
        Kind::Busy => ErrorCode::DeviceBusy,
        Kind::NotFound => ErrorCode::DeviceGone,
        Kind::NoSpace => ErrorCode::NoSpace,
        Kind::Invalid | Kind::Malformed | Kind::Unsupported => ErrorCode::GuestUnsuitable,
        _ => ErrorCode::Io,
    };
    JobError { code, ..JobError::from_source(&error) }
}

/// In a machine that exists, what does not fit is the guest's; there is no image that could be wrong.
fn from_guest(error: uvm_guest::Error) -> JobError {
    let found = JobError::from_source(&error);
    let code = match found.code {
        ErrorCode::Internal => ErrorCode::Io,
        ErrorCode::ImageInvalid | ErrorCode::UnsafePath => ErrorCode::GuestUnsuitable,
        code => code,
    };
    JobError { code, ..found }
}

/// Looks at a disk that is held, and gives it back.
fn look<T>(
    disk: KernelBlock,
    look: impl FnOnce(&Device) -> Result<T, JobError>,
) -> Result<(KernelBlock, T), JobError> {
    let held = Arc::new(ReadOnlyDevice(disk));
    let device: Device = Arc::clone(&held) as Device;
    let seen = look(&device)?;
    drop(device);
    let held = Arc::into_inner(held)
        .ok_or_else(|| JobError::new(ErrorCode::Internal, "a reader of the disk was not closed"))?;
    Ok((held.0, seen))
}

fn open(context: &Context<'_>) -> Result<(KernelBlock, Root), JobError> {
    let disk = context.open_target_for_kernel()?;
    let (disk, root) = look(disk, find_root)?;
    if root.was_in_use {
        // What a reader sees now may be older than what the journal holds.
        return Ok((disk, root));
    }
    // Refusals come before the first write where they can.
    let (disk, checked) = mounted(disk, &root, Access::ReadOnly, |guest| check_guest(guest))?;
    checked.map(|()| (disk, root))
}

/// Works on the mounted root. The disk is held again afterwards, so nothing of it is mounted any more.
fn mounted<T>(
    disk: KernelBlock,
    root: &Root,
    access: Access,
    work: impl FnOnce(&mut MountedTree) -> Result<T, JobError>,
) -> Result<(KernelBlock, Result<T, JobError>), JobError> {
    let volume = Volume::claim(disk, root.offset, root.size).map_err(from_kernel)?;
    let mut guest = MountedTree::new(volume.mount_ext4(access).map_err(from_kernel)?);
    let done = work(&mut guest);
    drop(guest);
    match (volume.reclaim(), done) {
        (Ok(disk), done) => Ok((disk, done)),
        (Err(error), Ok(_)) => Err(from_kernel(error)),
        (Err(error), Err(mut first)) => {
            first.causes.push(format!("and the disk could not be held again: {error}"));
            Err(first)
        }
    }
}

/// The one ext4 with an operating system on it, fit to be changed.
fn find_root(device: &Device) -> Result<Root, JobError> {
    let parts = parts_of(device, &probe(&**device)?);
    for part in parts.iter().filter(|part| part.format.is_none_or(|format| format == "swsuspend")) {
        if swap::holds_sleeping_machine(&*part.slice)? {
            let detail =
                format!("the machine is hibernated in {}: wake it and shut it down first", part.name);
            return Err(unsuitable(detail));
        }
    }
    let is_ext = |part: &&Part| part.format.is_some_and(|format| format.starts_with("ext"));
    let (mut roots, others): (Vec<&Part>, Vec<&Part>) =
        parts.iter().filter(is_ext).partition(|part| read_os_release(Arc::clone(&part.slice)).is_some());
    if roots.is_empty() {
        // The kernel can carry out journals that the reader of os-release cannot; it will say what is there.
        roots = others.into_iter().filter(|part| was_in_use(part)).collect();
    }
    if roots.len() > 1 {
        let by_type: Vec<&Part> = roots.iter().copied().filter(|part| part.is_root_by_type).collect();
        roots = if by_type.len() == 1 { by_type } else { roots };
    }
    match roots[..] {
        [] => Err(no_root(&parts)),
        [root] => fit(root),
        _ => {
            let names: Vec<&str> = roots.iter().map(|part| part.name.as_str()).collect();
            Err(unsuitable(format!("several operating systems are installed: {}", names.join(", "))))
        }
    }
}

fn was_in_use(part: &Part) -> bool {
    read_state(&*part.slice).is_ok_and(|state| state.needs_recovery)
}

fn parts_of(device: &Device, found: &Probe) -> Vec<Part> {
    let size = device.geometry().size;
    let whole = found.file_system.as_ref().map(|file_system| Part {
        name: "the disk without a partition table".to_owned(),
        offset: 0,
        size,
        format: Some(file_system.kind),
        is_root_by_type: false,
        slice: Arc::clone(device),
    });
    let partitions = found.partitions.iter().filter_map(|partition| {
        let slice = Slice::new(Arc::clone(device), partition.offset, partition.size)?;
        Some(Part {
            name: format!("partition {}", partition.number),
            offset: partition.offset,
            size: partition.size,
            format: partition.file_system.as_ref().map(|file_system| file_system.kind),
            is_root_by_type: matches!(partition.kind, PartitionKind::Gpt(ROOT_X86_64 | ROOT_ARM64)),
            slice: Arc::new(slice),
        })
    });
    whole.into_iter().chain(partitions).collect()
}

/// Says what is there instead.
fn no_root(parts: &[Part]) -> JobError {
    if let Some(part) = parts.iter().find(|part| part.format == Some("crypto_LUKS")) {
        return unsuitable(format!("{} is encrypted (crypto_LUKS): its root cannot be opened", part.name));
    }
    let found: Vec<String> = parts
        .iter()
        .map(|part| format!("{} holds {}", part.name, part.format.unwrap_or("nothing known")))
        .collect();
    match found.is_empty() {
        true => unsuitable("there is no machine: no partition table and no file system was found"),
        false => unsuitable(format!("no ext4 with an operating system was found: {}", found.join(", "))),
    }
}

fn fit(part: &Part) -> Result<Root, JobError> {
    let format = part.format.unwrap_or_default();
    if format != "ext4" {
        return Err(unsuitable(format!(
            "the root file system in {} is {format}; only ext4 is changed",
            part.name
        )));
    }
    let state = read_state(&*part.slice)?;
    if state.has_errors {
        let detail = format!("the root file system in {} is damaged: run e2fsck in the guest", part.name);
        return Err(unsuitable(detail));
    }
    match state.journal {
        JournalPlace::Internal => {}
        JournalPlace::None => {
            let detail = format!(
                "the root file system in {} has no journal: a cut of the power would damage it",
                part.name
            );
            return Err(unsuitable(detail));
        }
        // The number in the superblock is the guest's; here it may name another tenant's disk.
        JournalPlace::External => {
            let detail = format!("the root file system in {} keeps its journal on another device", part.name);
            return Err(unsuitable(detail));
        }
    }
    Ok(Root { offset: part.offset, size: part.size, was_in_use: state.needs_recovery })
}

fn check_guest(guest: &MountedTree) -> Result<(), JobError> {
    let kind = |absolute: &str| -> uvm_guest::Result<Option<Kind>> {
        Ok(resolved_metadata(guest, &path(absolute))?.map(|metadata| metadata.kind))
    };
    if kind("/etc").map_err(from_guest)? != Some(Kind::Directory) {
        return Err(unsuitable("the root file system has no directory /etc"));
    }
    let is_file = |absolute: &str| matches!(kind(absolute), Ok(Some(Kind::File { .. })));
    if !OS_RELEASE.iter().any(|absolute| is_file(absolute)) {
        return Err(unsuitable("there is no operating system: no /etc/os-release"));
    }
    Ok(())
}

fn path(absolute: &str) -> GuestPath {
    GuestPath::absolute(absolute).expect("a constant path goes down")
}

/// What a small file holds, links followed inside the guest; nothing where it cannot be read.
fn text(guest: &MountedTree, absolute: &str) -> Option<Vec<u8>> {
    let path = resolve(guest, &path(absolute)).ok()?;
    guest.read(&path, MAX_NAME).ok()
}

/// An entry as it can be compared: what is known of it, a digest of what is in it, its extended attributes.
#[derive(PartialEq, Eq)]
struct Entry {
    metadata: Metadata,
    contents: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an edit left.
struct Edited {
    report: CustomizationReport,
    /// Every path that was touched, and what is there now.
    paths: BTreeSet<GuestPath>,
    entries: Vec<Option<Entry>>,
    /// As it was before.
    machine_id: Option<Vec<u8>>,
}

fn edit(
    context: &Context<'_>,
    disk: KernelBlock,
    root: &Root,
    wanted: &Customization,
) -> Result<(KernelBlock, Edited), JobError> {
    // Mounting writes: the superblock, and what the journal holds.
    context.progress.touch();
    let (disk, edited) = mounted(disk, root, Access::ReadWrite, |guest| {
        check_guest(guest)?;
        let machine_id = text(guest, MACHINE_ID);
        let report = customize(guest, wanted).map_err(from_guest)?;
        guest.sync().map_err(from_guest)?;
        let paths = guest.changed().clone();
        let entries = entries(guest, &paths)?;
        Ok(Edited { report, paths, entries, machine_id })
    })?;
    edited.map(|edited| (disk, edited))
}

fn entries(guest: &MountedTree, paths: &BTreeSet<GuestPath>) -> Result<Vec<Option<Entry>>, JobError> {
    paths.iter().map(|path| entry(guest, path).map_err(from_guest)).collect()
}

fn entry(guest: &MountedTree, path: &GuestPath) -> uvm_guest::Result<Option<Entry>> {
    let Some(metadata) = guest.metadata(path)? else { return Ok(None) };
    let contents = match metadata.kind {
        Kind::File { .. } => {
            let mut digest = Hashed(Sha256::new());
            guest.copy_out(path, &mut digest)?;
            digest.0.finalize().to_vec()
        }
        Kind::Symlink => guest.read_link(path)?,
        _ => Vec::new(),
    };
    Ok(Some(Entry { metadata, contents, xattrs: guest.xattrs(path)? }))
}

struct Hashed(Sha256);

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn differs(detail: impl Into<String>) -> JobError {
    JobError::new(ErrorCode::VerificationFailed, detail)
}

/// The disk is unmounted. What was read before is forgotten, so that all of this comes from the device.
fn verify(disk: KernelBlock, root: &Root, wanted: &Customization, edited: &Edited) -> Result<(), JobError> {
    disk.flush().map_err(|error| uvm_disk::Error::io("flushing the disk", 0, error))?;
    let (disk, state) = look(disk, |device| {
        let slice = Slice::new(Arc::clone(device), root.offset, root.size)
            .ok_or_else(|| JobError::new(ErrorCode::DeviceChanged, "the disk is smaller than it was"))?;
        Ok(read_state(&slice)?)
    })?;
    if state.has_errors {
        return Err(differs("the kernel found damage in the root file system: run e2fsck in the guest"));
    }
    if state.needs_recovery {
        return Err(differs("the root file system was not unmounted"));
    }
    let (_disk, same) = mounted(disk, root, Access::ReadOnly, |guest| compare(guest, wanted, edited))?;
    same
}

fn compare(guest: &MountedTree, wanted: &Customization, edited: &Edited) -> Result<(), JobError> {
    let found = entries(guest, &edited.paths)?;
    let compared = edited.paths.iter().zip(&edited.entries).zip(&found);
    if let Some(((path, _), _)) = compared.into_iter().find(|((_, wrote), read)| wrote != read) {
        return Err(differs(format!("{path} is not what was written")));
    }
    if let Some(hostname) = &wanted.hostname
        && text(guest, HOSTNAME) != Some(format!("{hostname}\n").into_bytes())
    {
        return Err(differs(format!("{HOSTNAME} does not hold the name {hostname}")));
    }
    let machine_id = match &wanted.identity {
        Some(identity) => Some(format!("{}\n", hex(&identity.machine_id)).into_bytes()),
        None => edited.machine_id.clone(),
    };
    if text(guest, MACHINE_ID) != machine_id {
        return Err(differs(format!("{MACHINE_ID} is not the machine's own any more")));
    }
    Ok(())
}

/// What was changed, in words.
fn changes(wanted: &Customization, report: &CustomizationReport) -> Vec<String> {
    let mut changed: Vec<String> = wanted.hostname.iter().map(|name| format!("host name: {name}")).collect();
    if let Some(identity) = &wanted.identity {
        changed.push(format!("machine id: {}", hex(&identity.machine_id)));
    }
    changed.extend(report.ssh_host_key.iter().map(|key| format!("SSH host key: {key}")));
    changed.extend(report.users.iter().map(|user| {
        let what = if user.created { "created" } else { "changed" };
        format!("user {}: {what}, uid {}", user.name, user.uid)
    }));
    if let (Some(network), Some(renderer)) = (&wanted.network, report.renderer) {
        let ids: Vec<&str> = network.ethernets.iter().map(|ethernet| ethernet.id.as_str()).collect();
        let by = match renderer {
            Renderer::Networkd => "systemd-networkd",
            Renderer::Ifupdown => "ifupdown",
        };
        changed.push(format!("network by {by}: {}", ids.join(", ")));
    }
    changed
}
