//! What is fuzzed, and how much memory each may take.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use uvm_disk::{BlockDevice, Device, ext4, fat, gpt, mbr, ntfs, probe, swap, usage};
use uvm_guest::{GuestTree, MemoryTree, layer};

use crate::device::{Base, Changes, Disk};
use crate::sums;

const MIB: usize = 1 << 20;

/// Whether it understood the disk.
type Read = fn(&Arc<Disk>) -> bool;
type Right = fn(&Disk);

/// A reader of disks: its name, the images that are its, what makes checksums right, what it may allocate, the reader.
pub(crate) struct OfDisk {
    name: &'static str,
    images: &'static str,
    right: Right,
    memory: usize,
    read: Read,
}

const OF_DISKS: &[OfDisk] = &[
    OfDisk { name: "gpt", images: "gpt", right: sums::gpt, memory: 4 * MIB, read: read_gpt },
    OfDisk { name: "mbr", images: "mbr", right: |_| (), memory: MIB, read: read_mbr },
    OfDisk { name: "probe", images: "", right: everything, memory: 8 * MIB, read: read_probe },
    OfDisk { name: "ext4-state", images: "ext", right: sums::ext, memory: 8 * MIB, read: read_state },
    OfDisk { name: "ext4-usage", images: "ext", right: sums::ext, memory: 64 * MIB, read: read_ext_usage },
    OfDisk { name: "ext4-resize", images: "ext", right: sums::ext, memory: 64 * MIB, read: read_ext_resize },
    OfDisk { name: "os-release", images: "ext", right: sums::ext, memory: 64 * MIB, read: read_os_release },
    OfDisk { name: "fat", images: "fat", right: |_| (), memory: 32 * MIB, read: read_fat },
    OfDisk { name: "fat-usage", images: "fat", right: |_| (), memory: 8 * MIB, read: read_fat_usage },
    OfDisk { name: "ntfs-usage", images: "ntfs", right: |_| (), memory: 8 * MIB, read: read_ntfs_usage },
    OfDisk { name: "usage", images: "", right: everything, memory: 64 * MIB, read: read_usage },
];
const TAR: &str = "tar";
const TAR_MEMORY: usize = 64 * MIB;

/// The chosen target with its images.
pub(crate) enum Target {
    Disk { of: &'static OfDisk, bases: Vec<Arc<Base>> },
    Tar,
}

/// An input, made ready outside of what is measured.
pub(crate) enum Prepared {
    Disk(Arc<Disk>),
    Archive(Vec<u8>),
    Nothing,
}

impl Target {
    /// As `UVM_FUZZ_TARGET` and `UVM_FUZZ_IMAGES` say.
    pub(crate) fn from_environment() -> Self {
        let name = std::env::var("UVM_FUZZ_TARGET").unwrap_or_default();
        if name == TAR {
            return Self::Tar;
        }
        let Some(of) = OF_DISKS.iter().find(|of| of.name == name) else {
            let names: Vec<&str> = OF_DISKS.iter().map(|of| of.name).chain([TAR]).collect();
            panic!("UVM_FUZZ_TARGET={name:?}: one of {}", names.join(", "));
        };
        let folder =
            PathBuf::from(std::env::var_os("UVM_FUZZ_IMAGES").expect("UVM_FUZZ_IMAGES names a folder"));
        let entries = std::fs::read_dir(&folder).expect("the folder of images is there");
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        let named = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(of.images))
        };
        let read = |path: &PathBuf| Arc::new(Base::read(path).expect("an image is read"));
        let bases: Vec<Arc<Base>> = paths.iter().filter(|path| named(path)).map(read).collect();
        // A reader that refuses every good image would be tested on nothing.
        let good =
            |base: &&Arc<Base>| (of.read)(&Arc::new(Disk::new(Arc::clone(base), &Changes::new(&[]), 0)));
        let understood: Vec<&str> = bases.iter().filter(good).map(|base| base.name.as_str()).collect();
        assert!(!understood.is_empty(), "{name} understands none of the {} good images", bases.len());
        eprintln!("{name} understands {}", understood.join(" "));
        Self::Disk { of, bases }
    }

    /// Bytes a run may have allocated at one time.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Self::Disk { of, .. } => of.memory,
            Self::Tar => TAR_MEMORY,
        }
    }

    pub(crate) fn prepare(&self, input: &[u8]) -> Prepared {
        match (self, input) {
            (Self::Tar, _) => {
                let mut archive = input.to_vec();
                sums::tar(&mut archive);
                Prepared::Archive(archive)
            }
            (Self::Disk { of, bases }, [which, how, changes @ ..]) => {
                let base = &bases[usize::from(*which) % bases.len()];
                // One in sixteen is cut short, one in eight keeps its wrong checksums.
                let cut = if how >> 4 == 15 { u32::from(how & 7) } else { 0 };
                let disk = Disk::new(Arc::clone(base), &Changes::new(changes), cut);
                if how & 7 != 7 {
                    (of.right)(&disk);
                }
                Prepared::Disk(Arc::new(disk))
            }
            _ => Prepared::Nothing,
        }
    }

    pub(crate) fn run(&self, prepared: Prepared) {
        match (self, prepared) {
            (Self::Disk { of, .. }, Prepared::Disk(disk)) => drop((of.read)(&disk)),
            (Self::Tar, Prepared::Archive(archive)) => unpack(&archive),
            _ => {}
        }
    }
}

fn everything(disk: &Disk) {
    sums::gpt(disk);
    sums::ext(disk);
}

fn read_gpt(disk: &Arc<Disk>) -> bool {
    let _ = gpt::verify(&**disk);
    let Ok(found) = gpt::read(&**disk) else { return false };
    let _ = found.table.gaps();
    for partition in &found.table.partitions {
        let _ = found.table.room(partition.number);
    }
    let valid = found.table.validate(&disk.geometry()).is_ok();
    // What was read can be repaired, or is refused in words.
    if gpt::repair(&**disk).is_ok() {
        gpt::read(&**disk).expect("a repaired table can be read");
    }
    valid
}

fn read_mbr(disk: &Arc<Disk>) -> bool {
    let _ = mbr::verify(&**disk);
    let Ok(Some(found)) = mbr::read(&**disk) else { return false };
    let geometry = disk.geometry();
    let _ = (found.gaps(&geometry), found.logical_gaps());
    for partition in &found.partitions {
        let _ = found.room(partition.number, &geometry);
    }
    if mbr::update(&**disk, &found).is_ok() {
        let again = mbr::read(&**disk).expect("what was written can be read");
        assert_eq!(again.as_ref(), Some(&found), "what was read and written is the same");
    }
    true
}

fn read_probe(disk: &Arc<Disk>) -> bool {
    let _ = swap::holds_sleeping_machine(&**disk);
    probe::probe(&**disk).is_ok()
}

fn read_state(disk: &Arc<Disk>) -> bool {
    ext4::read_state(&**disk).is_ok()
}

type Map = fn(&dyn BlockDevice, &mut usage::Visit<'_>) -> uvm_disk::Result<usage::Usage>;

/// What a map promises: ascending, apart, not empty, on the device, and counted rightly.
fn check_map(disk: &Disk, map: Map) -> bool {
    let size = disk.geometry().size;
    let (mut end, mut sum) = (None, 0);
    let found = map(disk, &mut |extent| {
        assert!(extent.start < extent.end && extent.end <= size, "{extent:?} of {size} bytes");
        assert!(end.is_none_or(|end| end < extent.start), "{extent:?} after {end:?}");
        end = Some(extent.end);
        sum += extent.end - extent.start;
        Ok(())
    });
    if let Ok(usage) = &found {
        assert_eq!(usage.used, sum, "{usage:?}");
    }
    found.is_ok()
}

fn read_ext_usage(disk: &Arc<Disk>) -> bool {
    check_map(disk, ext4::used_extents)
}

/// Plans for half, the same and more; what is planned in place is carried out on what is in memory.
fn read_ext_resize(disk: &Arc<Disk>) -> bool {
    let size = disk.geometry().size;
    if let Ok(plan) = ext4::plan_resize(&**disk, size / 2) {
        let _ = ext4::resize(&**disk, &plan, &mut |_, _| ());
    }
    let _ = ext4::plan_resize(&**disk, size.saturating_mul(4));
    let Ok(plan) = ext4::plan_resize(&**disk, size) else { return false };
    let _ = ext4::resize(&**disk, &plan, &mut |_, _| ());
    true
}

fn read_fat_usage(disk: &Arc<Disk>) -> bool {
    check_map(disk, fat::used_extents)
}

fn read_ntfs_usage(disk: &Arc<Disk>) -> bool {
    check_map(disk, ntfs::used_extents)
}

fn read_usage(disk: &Arc<Disk>) -> bool {
    check_map(disk, |device, visit| {
        let found = usage::scan(device, visit)?;
        Ok(usage::Usage { format: "", block_size: 0, size: found.size, used: found.used })
    })
}

fn read_os_release(disk: &Arc<Disk>) -> bool {
    let device: Device = Arc::clone(disk) as Device;
    probe::read_os_release(device).is_some()
}

fn read_fat(disk: &Arc<Disk>) -> bool {
    let Ok(reader) = fat::FatReader::open(&**disk) else { return false };
    let _ = reader.label();
    let _ = reader.free();
    let Ok(entries) = reader.list_dir("") else { return false };
    for entry in entries.iter().take(16) {
        if entry.is_dir {
            let _ = reader.list_dir(&entry.name);
        } else {
            let _ = reader.read_file(&entry.name, 1 << 20);
        }
    }
    true
}

/// Two layers of the same archive: the second meets what the first left.
fn unpack(archive: &[u8]) {
    let limits = layer::Limits {
        entries: 1000,
        entry_bytes: 1 << 20,
        total_bytes: 4 << 20,
        ..layer::Limits::default()
    };
    let mut tree = MemoryTree::new();
    for _ in 0..2 {
        let mut reader = archive;
        let _ = layer::apply(&mut reader, &mut tree as &mut dyn GuestTree, &limits, &mut |_| {
            ControlFlow::Continue(())
        });
    }
}
