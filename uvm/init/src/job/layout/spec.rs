//! What a job says of one partition, checked and turned into the words of `uvm_disk::layout`.

use std::collections::BTreeSet;

use uuid::Uuid;
use uvm_api::{FileSystemFormat, FileSystemSpec, PartitionSpec, TableKind};
use uvm_disk::gpt::{Guid, partition_type};
use uvm_disk::layout::{Wanted, WantedFileSystem};
use uvm_disk::mbr::system_id;
use uvm_disk::probe::PartitionKind;

use super::{MIB, Purpose, invalid};
use crate::job::JobError;

/// As systemd-repart has it.
const DEFAULT_WEIGHT: u32 = 1000;
const MAX_WEIGHT: u32 = 1_000_000;
/// Largest number of MiB taken for a size; 8 EiB, beyond what a device counts.
const MAX_MIB: u64 = 1 << 43;

/// The name of a format on the wire.
pub(crate) fn format_name(format: FileSystemFormat) -> &'static str {
    match format {
        FileSystemFormat::None => "none",
        FileSystemFormat::Vfat => "vfat",
        FileSystemFormat::Ext2 => "ext2",
        FileSystemFormat::Ext3 => "ext3",
        FileSystemFormat::Ext4 => "ext4",
        FileSystemFormat::Ntfs => "ntfs",
        FileSystemFormat::Swap => "swap",
    }
}

pub(super) fn is_ext(format: FileSystemFormat) -> bool {
    matches!(format, FileSystemFormat::Ext2 | FileSystemFormat::Ext3 | FileSystemFormat::Ext4)
}

/// Least room for a file system.
fn minimum_mib(format: FileSystemFormat) -> u64 {
    match format {
        FileSystemFormat::Ext2 | FileSystemFormat::Ext3 | FileSystemFormat::Ext4 => 64,
        FileSystemFormat::Vfat | FileSystemFormat::Ntfs => 4,
        FileSystemFormat::Swap | FileSystemFormat::None => 1,
    }
}

/// What messages call it.
pub(super) fn named(spec: &PartitionSpec, index: usize) -> String {
    match (spec.label.as_str(), spec.number) {
        ("", Some(number)) => format!("partition number {number}"),
        ("", None) => format!("partition {} of the list", index + 1),
        (label, _) => format!("partition {label:?}"),
    }
}

/// Every partition as the decision wants it.
pub(super) fn wanted(
    specs: &[PartitionSpec],
    table: TableKind,
    purpose: Purpose,
) -> Result<Vec<Wanted>, JobError> {
    specs.iter().enumerate().map(|(index, spec)| one(spec, index, table, purpose)).collect()
}

fn one(spec: &PartitionSpec, index: usize, table: TableKind, purpose: Purpose) -> Result<Wanted, JobError> {
    let Room { min, least, max, weight } = room(spec, index)?;
    let start = spec.start_mib.filter(|start| *start > 0);
    let start = start.map(|start| bytes(start, "start_mib", spec, index)).transpose()?;
    check_options(&spec.filesystem, &named(spec, index))?;
    if spec.number == Some(0) {
        return Err(invalid(format!("{}: numbers begin with 1", named(spec, index))));
    }
    if !spec.should_exist && spec.number.is_none() && spec.label.is_empty() && spec.guid.is_none() {
        let what = "one that is to be gone needs a number, a label or a guid";
        return Err(invalid(format!("{}: {what}", named(spec, index))));
    }
    Ok(Wanted {
        number: spec.number,
        name: Some(spec.label.clone()).filter(|label| !label.is_empty()),
        unique_guid: spec.guid.as_ref().map(|text| guid(text, spec, index)).transpose()?,
        kind: spec.type_guid.as_ref().map(|text| kind(text, table, spec, index)).transpose()?,
        start,
        min,
        least,
        max,
        weight,
        file_system: file_system(&spec.filesystem, purpose),
        should_exist: spec.should_exist,
        wipe_entry: spec.wipe_partition_entry,
        resize: spec.resize,
    })
}

fn file_system(spec: &FileSystemSpec, purpose: Purpose) -> Option<WantedFileSystem> {
    if spec.format == FileSystemFormat::None {
        return None;
    }
    let must_be_new = match (purpose, spec.format, spec.path.as_deref()) {
        (Purpose::Machine, FileSystemFormat::Ext4, Some("/")) => Some("the machine's root file system"),
        (Purpose::Machine, FileSystemFormat::Vfat, Some("/boot/efi" | "/efi" | "/boot")) => {
            Some("the EFI system partition")
        }
        _ => None,
    };
    Some(WantedFileSystem {
        format: format_name(spec.format),
        label: spec.label.clone(),
        uuid: spec.uuid.clone(),
        wipe: spec.wipe_filesystem,
        must_be_new,
    })
}

fn bytes(mib: u64, field: &str, spec: &PartitionSpec, index: usize) -> Result<u64, JobError> {
    if mib > MAX_MIB {
        return Err(invalid(format!("{}: {field} is {mib}, at most {MAX_MIB}", named(spec, index))));
    }
    Ok(mib * MIB)
}

/// What the fields of the size say, in bytes: see [`Wanted`].
struct Room {
    min: u64,
    least: u64,
    max: Option<u64>,
    weight: u32,
}

fn room(spec: &PartitionSpec, index: usize) -> Result<Room, JobError> {
    let name = named(spec, index);
    let needed = minimum_mib(spec.filesystem.format);
    let format = format_name(spec.filesystem.format);
    let too_small = |size: u64| match spec.filesystem.format {
        FileSystemFormat::None => None,
        _ if size >= needed => None,
        _ => Some(invalid(format!("{name} has {size} MiB; a {format} needs at least {needed} MiB"))),
    };
    let size = spec.size_mib.filter(|size| *size > 0);
    if let (Some(size), false) = (size, spec.grow) {
        if spec.weight.is_some() || spec.size_min_mib.is_some() || spec.size_max_mib.is_some() {
            return Err(invalid(format!(
                "{name} has the fixed size_mib {size}: say grow: true for it to take part of the rest, or leave out \
                 weight, size_min_mib and size_max_mib"
            )));
        }
        if let Some(error) = too_small(size) {
            return Err(error);
        }
        let size = bytes(size, "size_mib", spec, index)?;
        return Ok(Room { min: size, least: size, max: Some(size), weight: 0 });
    }
    let weight = spec.weight.unwrap_or(DEFAULT_WEIGHT);
    if weight > MAX_WEIGHT {
        return Err(invalid(format!("{name}: weight is {weight}, at most {MAX_WEIGHT}")));
    }
    let asked = size.max(spec.size_min_mib.filter(|min| *min > 0));
    if let Some(error) = asked.and_then(too_small) {
        return Err(error);
    }
    let min = asked.unwrap_or(needed);
    if let Some(max) = spec.size_max_mib.filter(|max| *max < min) {
        return Err(invalid(format!("{name} has size_max_mib {max}, and at least {min} MiB")));
    }
    let max = spec.size_max_mib.map(|max| bytes(max, "size_max_mib", spec, index)).transpose()?;
    let min = bytes(min, "size_min_mib", spec, index)?;
    Ok(Room { min, least: if asked.is_some() { min } else { 0 }, max, weight })
}

fn guid(text: &str, spec: &PartitionSpec, index: usize) -> Result<Guid, JobError> {
    let parsed = Uuid::parse_str(text).ok().map(Guid::from_uuid).filter(|guid| *guid != Guid::UNUSED);
    parsed.ok_or_else(|| invalid(format!("{}: guid {text:?} is not a GUID", named(spec, index))))
}

fn kind(text: &str, table: TableKind, spec: &PartitionSpec, index: usize) -> Result<PartitionKind, JobError> {
    let unknown = |what: &str| invalid(format!("{}: type_guid {text:?} is {what}", named(spec, index)));
    match table {
        TableKind::Gpt => partition_type::by_name(text)
            .or_else(|| Uuid::parse_str(text).ok().map(Guid::from_uuid))
            .filter(|guid| *guid != Guid::UNUSED)
            .map(PartitionKind::Gpt)
            .ok_or_else(|| unknown("no GUID and no known name")),
        TableKind::Mbr => mbr_type(text)
            .map(PartitionKind::Mbr)
            .ok_or_else(|| unknown("no type of an MBR: 0x and two hexadecimal digits, or a known name")),
    }
}

fn mbr_type(text: &str) -> Option<u8> {
    let byte = match text {
        "linux-generic" => system_id::LINUX,
        "microsoft-basic-data" => system_id::NTFS,
        _ => match text.strip_prefix("0x") {
            Some(digits) => u8::from_str_radix(digits, 16).ok()?,
            None => system_id::by_name(text)?,
        },
    };
    // An extended partition is a table of its own; the protective one says that there is a GPT.
    (!matches!(byte, 0 | 0x05 | 0x0f | 0x85 | system_id::PROTECTIVE)).then_some(byte)
}

/// The type of a partition that is made, where the job does not say one.
pub(super) fn default_kind(spec: &PartitionSpec, table: TableKind) -> PartitionKind {
    let esp = matches!(spec.filesystem.path.as_deref(), Some("/boot/efi" | "/efi" | "/boot"));
    match table {
        TableKind::Gpt => PartitionKind::Gpt(match spec.filesystem.format {
            FileSystemFormat::Vfat if esp => partition_type::ESP,
            FileSystemFormat::Vfat | FileSystemFormat::Ntfs => partition_type::MICROSOFT_BASIC_DATA,
            FileSystemFormat::Swap => partition_type::SWAP,
            FileSystemFormat::Ext4 if spec.filesystem.path.as_deref() == Some("/") => {
                partition_type::ROOT_X86_64
            }
            FileSystemFormat::Ext2
            | FileSystemFormat::Ext3
            | FileSystemFormat::Ext4
            | FileSystemFormat::None => partition_type::LINUX_GENERIC,
        }),
        TableKind::Mbr => PartitionKind::Mbr(match spec.filesystem.format {
            FileSystemFormat::Vfat if esp => system_id::ESP,
            FileSystemFormat::Vfat => system_id::FAT32_LBA,
            FileSystemFormat::Ntfs => system_id::NTFS,
            FileSystemFormat::Swap => system_id::LINUX_SWAP,
            FileSystemFormat::Ext2
            | FileSystemFormat::Ext3
            | FileSystemFormat::Ext4
            | FileSystemFormat::None => system_id::LINUX,
        }),
    }
}

fn check_options(spec: &FileSystemSpec, name: &str) -> Result<(), JobError> {
    let format = format_name(spec.format);
    let refuse = |field: &str, rule: &str| Err(invalid(format!("{name}: {field} {rule}")));
    if spec.format == FileSystemFormat::None {
        let rest = FileSystemSpec { format: FileSystemFormat::None, ..FileSystemSpec::default() };
        if *spec != rest {
            return Err(invalid(format!(
                "{name}: a partition without a file system has no label, uuid, path or options of one"
            )));
        }
        return Ok(());
    }
    if !is_ext(spec.format) && (spec.bytes_per_inode.is_some() || spec.reserved_percent.is_some()) {
        return refuse(
            "bytes_per_inode and reserved_percent",
            &format!("are of ext2, ext3 and ext4, not of {format}"),
        );
    }
    if let Some(size) = spec.block_size_bytes {
        let fits = match spec.format {
            FileSystemFormat::Ext2 | FileSystemFormat::Ext3 | FileSystemFormat::Ext4 => {
                matches!(size, 1024 | 2048 | 4096)
            }
            FileSystemFormat::Vfat => size.is_power_of_two() && (512..=32768).contains(&size),
            FileSystemFormat::Ntfs => size.is_power_of_two() && (512..=65536).contains(&size),
            FileSystemFormat::Swap | FileSystemFormat::None => false,
        };
        if !fits {
            let rule = match spec.format {
                FileSystemFormat::Swap | FileSystemFormat::None => "a swap area has none",
                FileSystemFormat::Vfat => "clusters are a power of two from 512 to 32768",
                FileSystemFormat::Ntfs => "clusters are a power of two from 512 to 65536",
                FileSystemFormat::Ext2 | FileSystemFormat::Ext3 | FileSystemFormat::Ext4 => {
                    "1024, 2048 or 4096"
                }
            };
            return refuse(&format!("block_size_bytes {size}"), &format!("does not fit: {rule}"));
        }
    }
    if spec.bytes_per_inode.is_some_and(|bytes| !(1024..=67_108_864).contains(&bytes)) {
        return refuse("bytes_per_inode", "is from 1024 to 67108864");
    }
    if spec.reserved_percent.is_some_and(|percent| percent > 50) {
        return refuse("reserved_percent", "is from 0 to 50");
    }
    Ok(())
}

/// The label of a file system to make.
pub(super) fn file_system_label(spec: &PartitionSpec) -> Result<String, JobError> {
    let format = spec.filesystem.format;
    let label = match (&spec.filesystem.label, format) {
        (Some(label), _) => label.clone(),
        // As much of the partition's as there is room for.
        (None, FileSystemFormat::Vfat) => {
            let label = spec.label.to_ascii_uppercase();
            label.chars().filter(|c| u8::try_from(*c).is_ok_and(is_of_fat_label)).take(11).collect()
        }
        (None, FileSystemFormat::Ntfs) => spec.label.clone(),
        (None, _) => spec.label[..spec.label.floor_char_boundary(16)].to_owned(),
    };
    check_label(&label, format)?;
    Ok(label)
}

fn is_of_fat_label(b: u8) -> bool {
    (b.is_ascii_graphic() || b == b' ') && !b.is_ascii_lowercase() && !br#"*?.,;:/\|+=<>[]""#.contains(&b)
}

fn check_label(label: &str, format: FileSystemFormat) -> Result<(), JobError> {
    let (fits, rule) = match format {
        FileSystemFormat::Vfat => (
            label.len() <= 11 && label.bytes().all(is_of_fat_label),
            "at most 11 upper case ASCII characters, none of *?.,;:/\\|+=<>[]\"",
        ),
        FileSystemFormat::Ntfs => {
            (label.encode_utf16().count() <= 128 && !label.contains('\0'), "at most 128 UTF-16 units")
        }
        _ => (label.len() <= 16 && !label.contains('\0'), "at most 16 bytes"),
    };
    if fits {
        return Ok(());
    }
    Err(invalid(format!("the {} label {label:?} does not fit: {rule}", format_name(format))))
}

/// Mount points: every path absolute, plain and once; of a machine one root on ext4 and one EFI system partition.
pub(super) fn check_paths(specs: &[PartitionSpec], purpose: Purpose) -> Result<(), JobError> {
    let mut seen = BTreeSet::new();
    for (index, spec) in specs.iter().enumerate() {
        let Some(path) = &spec.filesystem.path else { continue };
        let plain = path == "/"
            || (path.starts_with('/')
                && path[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..")
                && path.bytes().all(|b| b.is_ascii_graphic()));
        if !plain {
            return Err(invalid(format!("path {path:?} is not a plain absolute path such as /srv/data")));
        }
        if spec.filesystem.format == FileSystemFormat::Swap {
            return Err(invalid(format!("{}: swap has no path", named(spec, index))));
        }
        if !seen.insert(path.clone()) {
            return Err(invalid(format!("two partitions have the path {path:?}")));
        }
    }
    if purpose == Purpose::Partitions {
        return Ok(());
    }
    let count = |format, of: &dyn Fn(&str) -> bool| {
        specs
            .iter()
            .filter(|s| s.should_exist && s.filesystem.format == format)
            .filter(|s| s.filesystem.path.as_deref().is_some_and(of))
            .count()
    };
    if count(FileSystemFormat::Ext4, &|path| path == "/") != 1 {
        return Err(invalid("exactly one ext4 partition must have the path \"/\"".into()));
    }
    if count(FileSystemFormat::Vfat, &|path| matches!(path, "/boot/efi" | "/efi" | "/boot")) != 1 {
        return Err(invalid(
            "exactly one vfat partition must have the path /boot/efi, /efi or /boot, the EFI system partition"
                .into(),
        ));
    }
    Ok(())
}

/// No block of a file system is smaller than one of the device.
pub(super) fn check_block_sizes(specs: &[PartitionSpec], logical_block_size: u32) -> Result<(), JobError> {
    for (index, spec) in specs.iter().enumerate() {
        let small = spec.filesystem.block_size_bytes.filter(|size| *size < logical_block_size);
        if let Some(size) = small {
            let name = named(spec, index);
            return Err(invalid(format!(
                "{name}: block_size_bytes {size} does not fit: the device's blocks have {logical_block_size}"
            )));
        }
    }
    Ok(())
}
