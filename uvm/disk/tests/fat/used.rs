//! The map of what is used, against fsck.fat, and by copying nothing else.

use std::ops::Range;
use std::sync::Arc;

use super::judge::{Image, agree};
use super::model::Random;
use super::{clean, content, copied_out, options, put};
use uvm_disk::fat::{FatBuilder, FatOptions, FatReader, FatType, used_extents};
use uvm_disk::usage::Usage;
use uvm_disk::{BlockDevice, Error, ErrorKind, Memory, Result};

pub(crate) fn extents(device: &dyn BlockDevice) -> Result<(Usage, Vec<Range<u64>>)> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    let usage = used_extents(device, &mut |extent| {
        assert!(
            !extent.is_empty() && extents.last().is_none_or(|last| last.end < extent.start),
            "{extent:?}"
        );
        assert!(extent.end <= device.geometry().size);
        extents.push(extent);
        Ok(())
    })?;
    assert_eq!(usage.used, extents.iter().map(|extent| extent.end - extent.start).sum::<u64>());
    Ok((usage, extents))
}

/// Copies what is used to a device full of other bytes; a judge sees the same.
fn judge(image: &Image) {
    let (usage, extents) = extents(image).unwrap();
    let (used, all) = clean(&image.path);
    let capacity = all * u64::from(usage.block_size);
    let in_front = extents[0].start..usage.size - capacity - (usage.size - capacity) % 512;
    assert_eq!(in_front.start, 0);
    let copy = Image::new(image.geometry().size, image.geometry().logical_block_size);
    for at in (0..image.geometry().size).step_by(1 << 20) {
        let len = (image.geometry().size - at).min(1 << 20);
        copy.write_at(at, &vec![0xc5; len as usize]).unwrap();
    }
    for extent in &extents {
        let mut bytes = vec![0; (extent.end - extent.start) as usize];
        image.read_at(extent.start, &mut bytes).unwrap();
        copy.write_at(extent.start, &bytes).unwrap();
    }
    assert_eq!(clean(&copy.path), (used, all));
    assert!(copied_out(&copy.path) == copied_out(&image.path));
    // Not one cluster more than fsck.fat counts.
    let slack = usage.used - used * u64::from(usage.block_size);
    assert!(slack <= usage.size - capacity, "{slack} bytes in front of the clusters, {usage:?}");
}

#[test]
fn what_is_used_is_enough_and_no_more() {
    for (mib, block, fat_type) in [
        (3, 512, FatType::Fat12),
        (64, 4096, FatType::Fat16),
        (34, 512, FatType::Fat32),
        (280, 4096, FatType::Fat32),
    ] {
        let image = Image::new(mib << 20, block);
        let options = FatOptions { fat_type: Some(fat_type), ..options() };
        let mut builder = FatBuilder::new(image.clone(), options).unwrap();
        for i in 0..40 {
            put(&mut builder, &format!("d{}/file {i}", i % 3), &content(i * 1000, i));
        }
        let (dir, _) = super::place(&mut builder, "d1/x");
        (0..13).for_each(|i| builder.unlink(dir, &format!("file {}", i * 3 + 1)).unwrap());
        builder.finish().unwrap();
        judge(&image);
    }
}

#[test]
fn volumes_of_other_makers_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, len| {
        let path = folder.path().join(name);
        std::fs::write(&path, content(len, 3)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (large, small) = (file("large", 700_000), file("lower case.txt", 5000));
    for (mib, arguments) in [
        (2, &["-F", "12"][..]),
        (20, &["-F", "16", "-f", "1"]),
        (40, &["-F", "32", "-s", "1"]),
        (70, &["-S", "4096", "-F", "16"]),
    ] {
        let image = Image::new(mib << 20, 512);
        agree("mkfs.fat", &[arguments, &[image.path()]].concat());
        let run = |tool: &str, rest: &[&str]| agree(tool, &[&["-i", image.path()], rest].concat());
        run("mmd", &["::/folder"]);
        for i in 0..20 {
            run("mcopy", &[&small, &format!("::/folder/{i}.txt")]);
        }
        run("mcopy", &[&large, "::/large.bin"]);
        (0..20).step_by(2).for_each(|i| drop(run("mdel", &[&format!("::/folder/{i}.txt")])));
        judge(&image);
        let reader = FatReader::open(&*image).unwrap();
        assert!(reader.read_file("folder/7.txt", 9000).unwrap() == content(5000, 3));
        assert!(reader.read_file("LARGE.BIN", 1 << 20).unwrap() == content(700_000, 3));
    }
}

#[test]
fn a_visitor_may_stop() {
    let memory = Arc::new(Memory::new(4 << 20, 512));
    FatBuilder::new(memory.clone(), options()).unwrap().finish().unwrap();
    let stopped = used_extents(&*memory, &mut |_| Err(Error::new(ErrorKind::NoSpace, "enough")));
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::NoSpace);
}

/// Whatever the bytes say, a reader ends, within its bounds, and visits nothing that is not on the device.
#[test]
fn hostile_volumes_are_survived() {
    let mut random = Random(7);
    for fat_type in [FatType::Fat12, FatType::Fat16, FatType::Fat32] {
        let size = if fat_type == FatType::Fat32 { 34 << 20 } else { 9 << 20 };
        let good = Arc::new(Memory::new(size, 512));
        let mut builder = FatBuilder::new(
            good.clone(),
            FatOptions { fat_type: Some(fat_type), cluster_size: Some(512), ..options() },
        )
        .or_else(|_| FatBuilder::new(good.clone(), FatOptions { fat_type: Some(fat_type), ..options() }))
        .unwrap();
        put(&mut builder, "EFI/some file", &content(10_000, 1));
        builder.finish().unwrap();
        for round in 0..300 {
            let mut head = vec![0; 96 << 10];
            good.read_at(0, &mut head).unwrap();
            // The boot sector's numbers, and the tables behind it.
            for _ in 0..1 + random.below(4) {
                let at = if round % 3 == 0 { random.below(head.len()) } else { 11 + random.below(42) };
                head[at] = [0, 1, 0xff, 0x80, random.below(256) as u8][random.below(5)];
            }
            good.write_at(0, &head).unwrap();
            if let Err(error) = extents(&*good) {
                assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt), "{error:?}");
            }
            if let Ok(reader) = FatReader::open(&*good) {
                let _ = (
                    reader.label(),
                    reader.free(),
                    reader.list_dir("EFI"),
                    reader.read_file("EFI/some file", 1 << 20),
                );
            }
            let _ = uvm_disk::usage::scan(&*good, &mut |_| Ok(()));
            let mut again =
                FatBuilder::new(good.clone(), FatOptions { fat_type: Some(fat_type), ..options() }).unwrap();
            put(&mut again, "EFI/some file", &content(10_000, 1));
            again.finish().unwrap();
        }
    }
    assert_eq!(extents(&Memory::new(1 << 20, 512)).unwrap_err().kind(), ErrorKind::NotFound);
}
