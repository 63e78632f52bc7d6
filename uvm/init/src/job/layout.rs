//! Where each partition of a new disk lies: pure arithmetic on what the job asks for.

use std::collections::BTreeSet;

use uuid::Uuid;
use uvm_api::{ErrorCode, FileSystemFormat, FileSystemSpec, PartitionSpec};
use uvm_disk::Geometry;
use uvm_disk::gpt::{self, Guid, Partition, PartitionTable, partition_type};

use super::JobError;

const MIB: u64 = 1 << 20;
/// Least room for the partition that takes the rest of the disk, or for any ext4.
const MIN_EXT4_MIB: u64 = 64;
const MIN_VFAT_MIB: u64 = 4;
const MIN_SWAP_MIB: u64 = 1;

/// A partition and what will be on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) partition: Partition,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) format: FileSystemFormat,
    pub(crate) label: String,
    pub(crate) uuid: Uuid,
    /// Absolute, without a slash at the end; `/` for the root.
    pub(crate) path: Option<String>,
}

impl Placed {
    /// The UUID as blkid prints it: a FAT volume has only 32 bits.
    pub(crate) fn uuid_text(&self) -> String {
        match self.format {
            FileSystemFormat::Vfat => {
                let id = self.volume_id();
                format!("{:04X}-{:04X}", id >> 16, id & 0xffff)
            }
            _ => self.uuid.to_string(),
        }
    }

    /// FAT's volume id.
    pub(crate) fn volume_id(&self) -> u32 {
        self.uuid.as_fields().0
    }
}

fn invalid(detail: String) -> JobError {
    JobError::new(ErrorCode::InvalidRequest, detail)
}

/// An identity that is the same each time the same job is planned.
pub(crate) fn derive(job_id: &str, purpose: &str) -> Uuid {
    const NAMESPACE: Uuid = uuid::uuid!("6f1c0bd2-6f4e-4a52-9a55-8a1c6d7b1f3e");
    Uuid::new_v5(&NAMESPACE, format!("{job_id}/{purpose}").as_bytes())
}

fn default_partitions() -> Vec<PartitionSpec> {
    let partition = |label: &str, size_mib, format, path: Option<&str>| PartitionSpec {
        label: label.to_owned(),
        number: None,
        size_mib,
        type_guid: None,
        filesystem: FileSystemSpec { format, label: None, uuid: None, path: path.map(str::to_owned) },
    };
    vec![
        partition("esp", Some(512), FileSystemFormat::Vfat, Some("/boot/efi")),
        partition("swap", Some(512), FileSystemFormat::Swap, None),
        partition("root", None, FileSystemFormat::Ext4, Some("/")),
    ]
}

/// Lays the partitions out on a device of `geometry`.
pub(crate) fn lay_out(
    specs: &[PartitionSpec],
    geometry: &Geometry,
    job_id: &str,
) -> Result<(PartitionTable, Vec<Placed>), JobError> {
    let defaults;
    let specs = if specs.is_empty() {
        defaults = default_partitions();
        &defaults
    } else {
        specs
    };
    check_paths(specs)?;
    let mut table = PartitionTable::new(geometry, Guid::from_uuid(derive(job_id, "disk")))?;
    let sizes = sizes_mib(specs, geometry, &table)?;
    let block = u64::from(geometry.logical_block_size);
    let mut offset = MIB;
    let mut placed = Vec::new();
    for (index, (spec, size_mib)) in specs.iter().zip(sizes).enumerate() {
        let number = spec.number.unwrap_or(u32::try_from(index + 1).unwrap_or(u32::MAX));
        let size = size_mib * MIB;
        let partition = Partition {
            number,
            type_guid: type_guid(spec)?,
            unique_guid: Guid::from_uuid(derive(job_id, &format!("partition/{number}"))),
            starting_lba: offset / block,
            ending_lba: (offset + size) / block - 1,
            attributes: 0,
            name: spec.label.clone(),
        };
        placed.push(place(spec, partition, offset, size, job_id)?);
        offset += size;
    }
    table.partitions = placed.iter().map(|placed| placed.partition.clone()).collect();
    table.partitions.sort_by_key(|partition| partition.number);
    table
        .validate(geometry)
        .map_err(|error| JobError { code: ErrorCode::InvalidRequest, ..JobError::from_source(&error) })?;
    Ok((table, placed))
}

fn minimum_mib(format: FileSystemFormat) -> u64 {
    match format {
        FileSystemFormat::Ext4 => MIN_EXT4_MIB,
        FileSystemFormat::Vfat => MIN_VFAT_MIB,
        FileSystemFormat::Swap => MIN_SWAP_MIB,
    }
}

/// The size of every partition, the one without a size getting what the others leave.
fn sizes_mib(
    specs: &[PartitionSpec],
    geometry: &Geometry,
    table: &PartitionTable,
) -> Result<Vec<u64>, JobError> {
    let usable_end = (table.last_usable_lba + 1) * u64::from(geometry.logical_block_size);
    let usable_mib = (usable_end / MIB).saturating_sub(gpt::ALIGNMENT / MIB);
    let mut fixed: u64 = 0;
    let mut rest = None;
    for (index, spec) in specs.iter().enumerate() {
        let minimum = minimum_mib(spec.filesystem.format);
        match spec.size_mib.unwrap_or(0) {
            0 => {
                if rest.replace(index).is_some() {
                    return Err(invalid(
                        "two partitions have no size_mib; only one can take the rest".into(),
                    ));
                }
                fixed = fixed.saturating_add(minimum);
            }
            size if size < minimum => {
                return Err(invalid(format!(
                    "partition {:?} has {size} MiB; a {} needs at least {minimum} MiB",
                    spec.label,
                    format_name(spec.filesystem.format)
                )));
            }
            size => fixed = fixed.saturating_add(size),
        }
    }
    if fixed > usable_mib {
        return Err(JobError::new(
            ErrorCode::DeviceTooSmall,
            format!(
                "the partitions need {fixed} MiB, the device of {} bytes has {usable_mib} MiB for them",
                geometry.size
            ),
        ));
    }
    let left = usable_mib - fixed;
    Ok(specs
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            if rest == Some(index) {
                minimum_mib(spec.filesystem.format) + left
            } else {
                spec.size_mib.unwrap_or(0)
            }
        })
        .collect())
}

fn place(
    spec: &PartitionSpec,
    partition: Partition,
    offset: u64,
    size: u64,
    job_id: &str,
) -> Result<Placed, JobError> {
    let filesystem = &spec.filesystem;
    let label = match (&filesystem.label, filesystem.format) {
        (Some(label), _) => label.clone(),
        (None, FileSystemFormat::Vfat) => spec.label.to_ascii_uppercase().chars().take(11).collect(),
        (None, _) => spec.label.chars().take(16).collect(),
    };
    check_label(&label, filesystem.format)?;
    let uuid = match &filesystem.uuid {
        None => derive(job_id, &format!("filesystem/{}", partition.number)),
        Some(_) if filesystem.format == FileSystemFormat::Vfat => {
            return Err(invalid(format!(
                "partition {:?}: a vfat has no UUID; leave `uuid` out, its volume id derives from the job's id",
                spec.label
            )));
        }
        Some(text) => Uuid::parse_str(text)
            .map_err(|_| invalid(format!("partition {:?}: {text:?} is not a UUID", spec.label)))?,
    };
    let path = filesystem.path.clone();
    Ok(Placed { partition, offset, size, format: filesystem.format, label, uuid, path })
}

/// The name of a format on the wire.
pub(crate) fn format_name(format: FileSystemFormat) -> &'static str {
    match format {
        FileSystemFormat::Vfat => "vfat",
        FileSystemFormat::Ext4 => "ext4",
        FileSystemFormat::Swap => "swap",
    }
}

fn type_guid(spec: &PartitionSpec) -> Result<Guid, JobError> {
    let Some(text) = &spec.type_guid else {
        return Ok(match (spec.filesystem.format, spec.filesystem.path.as_deref()) {
            (FileSystemFormat::Vfat, Some(_)) => partition_type::ESP,
            (FileSystemFormat::Vfat, None) => partition_type::MICROSOFT_BASIC_DATA,
            (FileSystemFormat::Swap, _) => partition_type::SWAP,
            (FileSystemFormat::Ext4, Some("/")) => partition_type::ROOT_X86_64,
            (FileSystemFormat::Ext4, _) => partition_type::LINUX_GENERIC,
        });
    };
    partition_type::by_name(text)
        .or_else(|| Uuid::parse_str(text).ok().map(Guid::from_uuid))
        .filter(|guid| *guid != Guid::UNUSED)
        .ok_or_else(|| {
            invalid(format!("partition {:?}: type_guid {text:?} is no GUID and no known name", spec.label))
        })
}

fn check_label(label: &str, format: FileSystemFormat) -> Result<(), JobError> {
    let fits = match format {
        FileSystemFormat::Vfat => {
            label.len() <= 11
                && label
                    .bytes()
                    .all(|b| (b.is_ascii_graphic() || b == b' ') && !br#"*?.,;:/\|+=<>[]""#.contains(&b))
                && !label.bytes().any(|b| b.is_ascii_lowercase())
        }
        _ => label.len() <= 16 && !label.contains('\0'),
    };
    if fits {
        return Ok(());
    }
    let rule = match format {
        FileSystemFormat::Vfat => "at most 11 upper case ASCII characters, none of *?.,;:/\\|+=<>[]\"",
        _ => "at most 16 bytes",
    };
    Err(invalid(format!("the {} label {label:?} does not fit: {rule}", format_name(format))))
}

/// Mount points: one root on ext4, one EFI system partition, every path absolute, plain and once.
fn check_paths(specs: &[PartitionSpec]) -> Result<(), JobError> {
    let mut seen = BTreeSet::new();
    for spec in specs {
        let Some(path) = &spec.filesystem.path else { continue };
        let plain = path == "/"
            || (path.starts_with('/')
                && path[1..].split('/').all(|part| !part.is_empty() && part != "." && part != "..")
                && path.bytes().all(|b| b.is_ascii_graphic()));
        if !plain {
            return Err(invalid(format!("path {path:?} is not a plain absolute path such as /srv/data")));
        }
        if spec.filesystem.format == FileSystemFormat::Swap {
            return Err(invalid(format!("partition {:?}: swap has no path", spec.label)));
        }
        if !seen.insert(path.clone()) {
            return Err(invalid(format!("two partitions have the path {path:?}")));
        }
    }
    let count = |format, of: &dyn Fn(&str) -> bool| {
        specs
            .iter()
            .filter(|s| s.filesystem.format == format && s.filesystem.path.as_deref().is_some_and(of))
            .count()
    };
    if count(FileSystemFormat::Ext4, &|path| path == "/") != 1 {
        return Err(invalid("exactly one ext4 partition must have the path \"/\"".into()));
    }
    if count(FileSystemFormat::Vfat, &|_| true) != 1
        || count(FileSystemFormat::Vfat, &|path| matches!(path, "/boot/efi" | "/efi" | "/boot")) != 1
    {
        return Err(invalid(
            "exactly one vfat partition must have a path: /boot/efi, /efi or /boot, the EFI system partition"
                .into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(size: u64, logical_block_size: u32) -> Geometry {
        Geometry { size, logical_block_size, physical_block_size: 4096 }
    }

    #[test]
    fn the_default_layout_fills_the_disk_on_both_block_sizes() {
        for block in [512, 4096] {
            let geometry = geometry(8 << 30, block);
            let (table, placed) = lay_out(&[], &geometry, "job").unwrap();
            table.validate(&geometry).unwrap();
            assert_eq!(placed.len(), 3);
            assert_eq!(placed[0].offset, MIB);
            assert!(placed.windows(2).all(|w| w[0].offset + w[0].size == w[1].offset));
            let end = placed[2].offset + placed[2].size;
            assert!(geometry.size - end <= 2 * MIB);
            assert_eq!(table.partitions[0].starting_lba, MIB / u64::from(block));
        }
    }

    #[test]
    fn the_same_job_gets_the_same_identities_and_another_gets_others() {
        let geometry = geometry(8 << 30, 512);
        let first = lay_out(&[], &geometry, "a").unwrap();
        assert_eq!(first, lay_out(&[], &geometry, "a").unwrap());
        assert_ne!(first.0.disk_guid, lay_out(&[], &geometry, "b").unwrap().0.disk_guid);
    }

    #[test]
    fn a_small_device_is_refused_with_the_numbers() {
        let error = lay_out(&[], &geometry(512 << 20, 512), "a").unwrap_err();
        assert_eq!(error.code, ErrorCode::DeviceTooSmall);
        assert!(error.detail.contains("1088 MiB") && error.detail.contains("510 MiB"), "{}", error.detail);
    }

    #[test]
    fn bad_layouts_are_refused() {
        let good = default_partitions();
        type Spoil = Box<dyn Fn(&mut Vec<PartitionSpec>)>;
        let cases: Vec<(&str, Spoil)> = vec![
            ("two partitions have no size", Box::new(|p| p[1].size_mib = None)),
            ("exactly one ext4", Box::new(|p| p[2].filesystem.path = Some("/srv".into()))),
            ("exactly one vfat", Box::new(|p| p[0].filesystem.path = None)),
            ("plain absolute", Box::new(|p| p[2].filesystem.path = Some("/a/../b".into()))),
            ("swap has no path", Box::new(|p| p[1].filesystem.path = Some("/x".into()))),
            ("type_guid", Box::new(|p| p[2].type_guid = Some("rooty".into()))),
            ("not a UUID", Box::new(|p| p[2].filesystem.uuid = Some("zz".into()))),
            ("at most 16 bytes", Box::new(|p| p[2].filesystem.label = Some("x".repeat(17)))),
            ("at most 11", Box::new(|p| p[0].filesystem.label = Some("esp".into()))),
            ("at least 64 MiB", Box::new(|p| p[2].size_mib = Some(3))),
            ("not unique", Box::new(|p| p[1].number = Some(1))),
            ("too long", Box::new(|p| p[1].label = "y".repeat(37))),
        ];
        for (expected, spoil) in cases {
            let mut specs = good.clone();
            spoil(&mut specs);
            let error = lay_out(&specs, &geometry(8 << 30, 512), "a").unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{expected}");
            assert!(error.detail.contains(expected), "{expected}: {}", error.detail);
        }
    }
}
