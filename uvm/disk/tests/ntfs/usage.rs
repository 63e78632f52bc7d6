//! Which clusters are in use, beside what ntfsinfo and ntfsclone say, and of volumes that lie.

use std::ops::Range;

use uvm_disk::ntfs::{format, used_extents};
use uvm_disk::usage::Usage;
use uvm_disk::{BlockDevice, ErrorKind, Memory, Result};

use super::judge::{Image, agree};
use super::volume::{Volume, number, protect, unprotect};
use super::{LABEL, MIB, check, formatted, number_after, options};

/// The extents, which are as they must be.
fn scan(device: &dyn BlockDevice) -> Result<(Usage, Vec<Range<u64>>)> {
    let size = device.geometry().size;
    let mut extents: Vec<Range<u64>> = Vec::new();
    let usage = used_extents(device, &mut |extent| {
        assert!(extent.start < extent.end && extent.end <= size, "{extent:?}");
        assert!(extents.last().is_none_or(|before| before.end < extent.start), "{extent:?}");
        extents.push(extent);
        Ok(())
    })?;
    assert_eq!(usage.used, extents.iter().map(|extent| extent.end - extent.start).sum::<u64>());
    assert!(usage.size <= size && usage.format == "ntfs");
    Ok((usage, extents))
}

/// Copies what is in use to a new device, lets the judges look at it, and compares it with what ntfsclone copies.
fn copy_and_compare(image: &Image, names: &[String]) {
    let (usage, extents) = scan(image).unwrap();
    let geometry = image.geometry();
    let copy = Image::new(geometry.size, geometry.logical_block_size);
    for extent in &extents {
        let mut bytes = vec![0; (extent.end - extent.start) as usize];
        image.read_at(extent.start, &mut bytes).unwrap();
        copy.write_at(extent.start, &bytes).unwrap();
    }
    let said = agree("ntfsinfo", &["-m", image.path()]);
    let used = number_after(&said, "Volume Size in Clusters") - number_after(&said, "Free Clusters");
    // Besides the clusters, the backup of the boot sector and what is left before it.
    let clusters = usage.used / u64::from(usage.block_size);
    assert!((used..=used + 1).contains(&clusters), "{clusters} {said}");
    check(&copy.path);
    let list = |image: &Image| agree("ntfsls", &["-l", "-a", "-s", image.path()]);
    assert_eq!(list(image), list(&copy));
    for name in names {
        let cat = |image: &Image| agree("ntfscat", &[image.path(), name]);
        assert_eq!(cat(image), cat(&copy), "{name}");
    }
    let clone = copy.path.with_file_name("clone");
    agree("ntfsclone", &["-q", "-o", clone.to_str().unwrap(), image.path()]);
    let (mut ours, mut theirs) = (std::fs::read(&copy.path).unwrap(), std::fs::read(&clone).unwrap());
    // It leaves the backup of the boot sector out, if it does not lie in a cluster that is in use.
    let last = ours.len() - geometry.logical_block_size as usize;
    theirs.resize(ours.len(), 0);
    ours[last..].fill(0);
    theirs[last..].fill(0);
    assert!(ours == theirs, "ntfsclone copies something else");
}

fn fill(image: &Image) -> Vec<String> {
    (0..12)
        .map(|index| {
            let name = format!("file {index}");
            agree("ntfscp", &["-q", image.path(), "/etc/services", &format!("/{name}")]);
            name
        })
        .collect()
}

#[test]
fn what_is_in_use_is_what_ntfsclone_copies() {
    for (block, cluster_size, size) in
        [(512, 512, 20 * MIB + 512), (512, 4096, 30 * MIB), (512, 65_536, 70 * MIB), (4096, 4096, 30 * MIB)]
    {
        let (image, summary) = formatted(size, block, cluster_size);
        let (usage, _) = scan(&*image).unwrap();
        assert_eq!((usage.block_size, usage.size), (cluster_size, size));
        // The backup of the boot sector lies after the clusters.
        let clusters = usage.used / u64::from(cluster_size);
        assert!((summary.used_clusters..=summary.used_clusters + 1).contains(&clusters), "{clusters}");
        copy_and_compare(&image, &fill(&image));
    }
    // One that we did not make.
    let image = Image::new(50 * MIB + 1024, 512);
    agree("mkntfs", &["-q", "-Q", "-F", "-L", LABEL, image.path()]);
    copy_and_compare(&image, &fill(&image));
}

#[test]
fn a_volume_that_was_not_unmounted_is_refused() {
    let (image, _) = formatted(5 * MIB, 512, 1024);
    assert!(scan(&*image).is_ok());
    edit_record(&image, 3, |record| {
        let at = find(record, 0x70) + 24 + 10;
        assert_eq!(record[at..at + 2], [0, 0]);
        record[at] = 1;
    });
    assert!(agree("ntfsinfo", &["-m", "-f", image.path()]).contains("Volume Flags: 0x0001 DIRTY"));
    let refused = |image: &Image| scan(image).map(|(usage, _)| usage).map_err(|error| error.kind());
    assert_eq!(refused(&image), Err(ErrorKind::Unsupported));

    // Nobody has closed the log.
    let (image, _) = formatted(5 * MIB, 512, 1024);
    let log = Volume::open(&image.path).record(2).attributes[&(0x80, String::new())].runs[0].0.unwrap();
    let mut page = vec![0; 4096];
    page[..4].copy_from_slice(b"RSTR");
    page[16..20].copy_from_slice(&4096_u32.to_le_bytes());
    page[24] = 0x30;
    let mut restart = |client: u8, flags: u8| {
        page[0x3c] = client;
        page[0x3d] = client;
        page[0x3e] = flags;
        let mut sealed = page.clone();
        protect(&mut sealed, 0x60);
        image.write_at(log * 1024, &sealed).unwrap();
        image.write_at(log * 1024 + 4096, &[0; 4096]).unwrap();
        refused(&image).map(drop)
    };
    assert_eq!(restart(0, 0), Err(ErrorKind::Unsupported));
    assert_eq!(restart(0, 2), Ok(()), "unmounted");
    assert_eq!(restart(0xff, 0), Ok(()), "no client");
}

#[test]
fn hostile_bytes_end_in_an_error_or_extents_on_the_device() {
    let device = Memory::new(3 << 20, 512);
    format(&device, &options(Some(4096))).unwrap();
    let whole = device.contents();
    let volume = |lcn: u64| lcn * 4096;
    // The boot sector's fields; the records of $MFT, $LogFile, $Volume and $Bitmap as far as they are used.
    let record = |index: u64| volume(4) + index * 1024..volume(4) + index * 1024 + 0x1a0;
    let places = [0..84, record(0), record(2), record(3), record(6)];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut refused, mut read) = (0, 0);
    for round in 0..6000 {
        let place = &places[round % places.len()];
        let mut undo = Vec::new();
        for _ in 0..1 + next() % 4 {
            let at = place.start + next() % (place.end - place.start);
            let value = [0, 1, 0x7f, 0x80, 0xff, next() as u8][(next() % 6) as usize];
            undo.push(at);
            device.write_at(at, &[value]).unwrap();
        }
        match scan(&device) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
        for at in undo {
            device.write_at(at, &whole[at as usize..=at as usize]).unwrap();
        }
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
    assert!(device.contents() == whole);
}

/// Where the first attribute of a type begins.
fn find(record: &[u8], kind: u64) -> usize {
    let mut at = number(record, 20, 2) as usize;
    while number(record, at, 4) != kind {
        assert_ne!(number(record, at, 4), 0xffff_ffff, "no attribute {kind:#x}");
        at += number(record, at + 4, 4) as usize;
    }
    at
}

/// Changes a record in the $MFT and in its mirror; those of volumes with clusters of at most 1 KiB.
fn edit_record(image: &Image, index: u64, edit: impl FnOnce(&mut Vec<u8>)) {
    let volume = Volume::open(&image.path);
    let at = number(&volume.boot, 48, 8) * volume.cluster_size + index * 1024;
    let mut record = vec![0; 1024];
    image.read_at(at, &mut record).unwrap();
    unprotect(&mut record);
    edit(&mut record);
    protect(&mut record, 0x30);
    image.write_at(at, &record).unwrap();
    if index < 4 {
        image.write_at(number(&volume.boot, 56, 8) * volume.cluster_size + index * 1024, &record).unwrap();
    }
}

/// An attribute with runs, from a cluster of the file on; sizes stand in the first one.
fn piece(kind: u8, instance: u8, first: u64, runs: &[(u64, u64)], size: u64) -> Vec<u8> {
    let clusters: u64 = runs.iter().map(|run| run.1).sum();
    let mut bytes = vec![0; 64];
    bytes[0] = kind;
    bytes[8] = 1;
    bytes[10] = 0x40;
    bytes[14] = instance;
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    bytes[24..32].copy_from_slice(&(first + clusters - 1).to_le_bytes());
    bytes[32] = 0x40;
    if first == 0 {
        bytes[40..48].copy_from_slice(&(size.next_multiple_of(512)).to_le_bytes());
        bytes[48..56].copy_from_slice(&size.to_le_bytes());
        bytes[56..64].copy_from_slice(&size.to_le_bytes());
    }
    let mut before = 0_i64;
    for (lcn, clusters) in runs {
        bytes.extend([0x41, *clusters as u8]);
        bytes.extend(((*lcn as i64 - before) as i32).to_le_bytes());
        before = *lcn as i64;
    }
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn list_entry(kind: u8, first: u64, record: u64, sequence: u64, instance: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = kind;
    bytes[4] = 32;
    bytes[7] = 26;
    bytes[8..16].copy_from_slice(&first.to_le_bytes());
    bytes[16..24].copy_from_slice(&(sequence << 48 | record).to_le_bytes());
    bytes[24] = instance;
    bytes
}

/// Gives a record these attributes.
fn with_attributes(record: &mut Vec<u8>, attributes: &[Vec<u8>]) {
    let first = number(record, 20, 2) as usize;
    record.truncate(first);
    record.extend(attributes.concat());
    record.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    let used = record.len() as u32;
    record[24..28].copy_from_slice(&used.to_le_bytes());
    record[40] = 30;
    record.resize(1024, 0);
}

/// A record that holds a piece of another one's attributes.
fn extension(base: u64, base_sequence: u64, attribute: Vec<u8>) -> impl FnOnce(&mut Vec<u8>) {
    move |record| {
        record[22] = 1;
        record[32..40].copy_from_slice(&(base_sequence << 48 | base).to_le_bytes());
        with_attributes(record, &[attribute]);
    }
}

/// The $MFT, its list of attributes and the bitmap each in pieces, described in records of their own, some of which
/// lie in a later piece of the $MFT.
#[test]
fn a_map_in_pieces_is_read_where_they_are() {
    let (image, _) = formatted(20 * MIB, 512, 512);
    let whole = scan(&*image).unwrap();
    let volume = Volume::open(&image.path);
    let (mft, bitmap) = (volume.record(0), volume.record(6));
    let data = (0x80, String::new());
    let (mft_run, mft_size) = (mft.attributes[&data].runs[0], mft.attributes[&data].sizes[1]);
    let bits = volume.contents(&bitmap.attributes[&data]);
    let (old, count) = (bitmap.attributes[&data].runs[0].0.unwrap(), bitmap.attributes[&data].runs[0].1);

    // Two more records far away, and the bitmap's clusters, each apart from the next, backwards.
    let far = 39_000;
    let places: Vec<u64> = (0..count).map(|index| 38_000 - 3 * index).collect();
    let list_at = 38_500;
    let mut bits = bits;
    let set = |bits: &mut Vec<u8>, lcn: u64, used: bool| {
        let (byte, bit) = (lcn as usize / 8, 1 << (lcn % 8));
        assert_eq!(bits[byte] & bit != 0, !used, "cluster {lcn}");
        bits[byte] ^= bit;
    };
    (0..4).for_each(|index| set(&mut bits, far + index, true));
    places.iter().for_each(|lcn| set(&mut bits, *lcn, true));
    set(&mut bits, list_at, true);
    (0..count).for_each(|index| set(&mut bits, old + index, false));
    bits.resize(count as usize * 512, 0);
    for (lcn, part) in places.iter().zip(bits.chunks(512)) {
        image.write_at(lcn * 512, part).unwrap();
    }
    let new = mft_size / 1024;
    let keep = |record: &[u8], kind| {
        let at = find(record, kind);
        record[at..at + number(record, at + 4, 4) as usize].to_vec()
    };

    // The $MFT: its second piece is described in the spare record 16.
    let first = mft_run.1;
    let second = piece(0x80, 0, first, &[(far, 4)], 0);
    edit_record(&image, 16, extension(0, 1, second));
    let list = [(0x10, 0, 0, 0), (0x30, 0, 0, 1), (0x80, 0, 0, 2), (0x80, first, 16, 0), (0xb0, 0, 0, 3)];
    let list: Vec<u8> = list
        .iter()
        .flat_map(|(kind, vcn, record, instance)| {
            list_entry(*kind, *vcn, *record, if *record == 0 { 1 } else { 16 }, *instance)
        })
        .collect();
    edit_record(&image, 0, |record| {
        let mut attributes = vec![
            keep(record, 0x10),
            resident(0x20, 4, &list),
            keep(record, 0x30),
            piece(0x80, 2, 0, &[(mft_run.0.unwrap(), first)], mft_size + 2048),
            keep(record, 0xb0),
        ];
        // What is allocated is that of both pieces.
        attributes[3][40..48].copy_from_slice(&((first + 4) * 512).to_le_bytes());
        for (attribute, instance) in attributes.iter_mut().zip([0, 4, 1, 2, 3]) {
            attribute[14] = instance;
        }
        with_attributes(record, &attributes);
    });
    let in_use = mft.attributes[&(0xb0, String::new())].runs[0].0.unwrap() * 512;
    let mut map = [0; 8];
    image.read_at(in_use, &mut map).unwrap();
    let map = u64::from_le_bytes(map) | 1 << 16 | 0b11 << new;
    image.write_at(in_use, &map.to_le_bytes()).unwrap();

    // The bitmap: both of its pieces are described in the records that lie far away.
    let half = places.len() / 2;
    let runs = |range: Range<usize>| places[range].iter().map(|lcn| (*lcn, 1)).collect::<Vec<_>>();
    let size = bitmap.attributes[&data].sizes[1];
    let mut pieces =
        [piece(0x80, 0, 0, &runs(0..half), size), piece(0x80, 0, half as u64, &runs(half..places.len()), 0)];
    pieces[0][40..48].copy_from_slice(&(count * 512).to_le_bytes());
    for (index, attribute) in pieces.into_iter().enumerate() {
        let mut record = empty_record(new + index as u64);
        extension(6, 6, attribute)(&mut record);
        protect(&mut record, 0x30);
        image.write_at((far + 2 * index as u64) * 512, &record).unwrap();
    }
    let list =
        [(0x10, 0, 6, 6, 0), (0x30, 0, 6, 6, 1), (0x80, 0, new, 1, 0), (0x80, half as u64, new + 1, 1, 0)];
    let list: Vec<u8> = list
        .iter()
        .flat_map(|(kind, vcn, record, sequence, instance)| {
            list_entry(*kind, *vcn, *record, *sequence, *instance)
        })
        .collect();
    image.write_at(list_at * 512, &list).unwrap();
    edit_record(&image, 6, |record| {
        let mut attributes = vec![
            keep(record, 0x10),
            piece(0x20, 2, 0, &[(list_at, 1)], list.len() as u64),
            keep(record, 0x30),
        ];
        for (attribute, instance) in attributes.iter_mut().zip([0, 2, 1]) {
            attribute[14] = instance;
        }
        with_attributes(record, &attributes);
    });

    check(&image.path);
    let moved = scan(&*image).unwrap();
    assert_eq!(moved.0.used, whole.0.used + 5 * 512, "two records and a list more");
    copy_and_compare(&image, &fill(&image));
}

fn resident(kind: u8, instance: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[0] = kind;
    bytes[14] = instance;
    bytes[16..20].copy_from_slice(&(value.len() as u32).to_le_bytes());
    bytes[20] = 24;
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let len = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn empty_record(index: u64) -> Vec<u8> {
    let mut record = vec![0; 1024];
    record[..4].copy_from_slice(b"FILE");
    record[16] = 1;
    record[20] = 0x38;
    record[28..32].copy_from_slice(&1024_u32.to_le_bytes());
    record[44..48].copy_from_slice(&(index as u32).to_le_bytes());
    record
}
