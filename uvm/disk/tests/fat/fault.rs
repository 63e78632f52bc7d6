//! What a failed write or a cut of the power leaves: no file system, or a whole one.

use std::cell::Cell;

use super::judge::ask;
use super::judge::fault::{Fault, FaultDevice, every_fault};
use super::{CLOCK, clean, content, options};
use uvm_disk::fat::{FatBuilder, FatOptions, FatReader, FatType};

fn build(device: std::sync::Arc<FaultDevice>, fat_type: FatType) -> uvm_disk::Result<()> {
    let mut builder = FatBuilder::new(device, FatOptions { fat_type: Some(fat_type), ..options() })?;
    let dir = builder.create_dir(builder.root(), "EFI", CLOCK)?;
    for i in 0..12 {
        let bytes = content(150_000, i);
        builder.create_file(dir, &format!("a long name {i}"), 150_000, &mut &bytes[..], CLOCK)?;
    }
    builder.unlink(dir, "a long name 3")?;
    let bytes = content(90_000, 9);
    builder.create_file(dir, "a long name 4", 90_000, &mut &bytes[..], CLOCK)?;
    builder.finish().map(|_| ())
}

#[test]
fn a_fault_leaves_nothing_or_a_whole_volume() {
    for (size, block, fat_type) in
        [(4 << 20, 512, FatType::Fat12), (70 << 20, 4096, FatType::Fat16), (34 << 20, 512, FatType::Fat32)]
    {
        // Another volume was there before, with other files.
        let before = FaultDevice::new(size, block);
        let mut old =
            FatBuilder::new(before.clone(), FatOptions { label: "OLD".into(), ..options() }).unwrap();
        old.create_file(old.root(), "old", 9000, &mut &content(9000, 5)[..], CLOCK).unwrap();
        old.finish().unwrap();
        let (folder, whole) = (tempfile::tempdir().unwrap(), Cell::new(0));
        let path = folder.path().join("disk");
        let check = |survivor: &FaultDevice, at: u64, fault: Fault| {
            survivor.save(&path);
            let (found, text) = ask("blkid", &["-p", path.to_str().unwrap()]);
            if !found {
                return;
            }
            clean(&path);
            let reader = FatReader::open(survivor).unwrap();
            let old = text.contains("LABEL=\"OLD\"");
            let listed = reader.list_dir(if old { "" } else { "EFI" }).unwrap().len();
            assert_eq!(listed, if old { 1 } else { 11 }, "{fault:?} at {at}: {text}");
            let (name, bytes) =
                if old { ("old", content(9000, 5)) } else { ("EFI/a long name 4", content(90_000, 9)) };
            assert!(reader.read_file(name, 1 << 20).unwrap() == bytes, "{fault:?} at {at}");
            whole.set(whole.get() + u32::from(!old));
        };
        let faults = every_fault(&before, size, &|device| build(device, fat_type), &check);
        assert!(faults > 20, "{faults}");
        // The last write makes it a volume.
        assert!(whole.get() <= 2, "{}", whole.get());
    }
}

#[test]
fn after_a_failed_write_there_is_no_finishing() {
    let device = FaultDevice::new(34 << 20, 512).again(Some((2, Fault::Fail)), 1);
    let mut builder = FatBuilder::new(device.clone(), options()).unwrap();
    let root = builder.root();
    let bytes = content(3 << 20, 1);
    // The write behind it fails while the second file comes.
    assert!(builder.create_file(root, "a", 3 << 20, &mut &bytes[..], CLOCK).is_err() && device.fired());
    assert!(builder.finish().is_err());
}
