//! NTFS, judged by ntfs-3g's tools: ntfsfix, ntfsresize, ntfsinfo, ntfsls, ntfscat, ntfscp, ntfsclone and mkntfs.
#![allow(clippy::unwrap_used)]

#[path = "../judge/mod.rs"]
mod judge;
mod usage;
mod volume;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use judge::fault::{FaultDevice, every_fault};
use judge::{Image, agree, ask};
use uvm_disk::ntfs::{NtfsOptions, NtfsSummary, format};
use uvm_disk::{BlockDevice, ErrorKind};
use volume::{Attribute, Record, Volume, number};

const MIB: u64 = 1 << 20;
const LABEL: &str = "Größe ✓";

fn options(cluster_size: Option<u32>) -> NtfsOptions {
    NtfsOptions {
        cluster_size,
        label: LABEL.into(),
        serial: 0x0123_4567_89ab_cdef,
        timestamp: 1_700_000_000,
        hidden_sectors: 2048,
    }
}

fn formatted(size: u64, block: u32, cluster_size: u32) -> (Arc<Image>, NtfsSummary) {
    let image = Image::new(size, block);
    let summary = format(&*image, &options(Some(cluster_size))).unwrap();
    assert_eq!(summary.cluster_size, cluster_size);
    (image, summary)
}

/// ntfsfix and ntfsresize, which reads every record and compares the bitmap with what is in use, have nothing to say.
/// Returns what ntfsresize said.
fn check(path: &Path) -> String {
    let path = path.to_str().unwrap();
    let said = agree("ntfsfix", &["-n", path]);
    let words = ["rror", "orrupt", "ismatch", "nvalid", "ailed", "FAILED", "wrong", "differ"];
    assert!(!words.iter().any(|word| said.contains(word)), "ntfsfix -n: {said}");
    let (ok, said) = ask("ntfsresize", &["--info", "--force", "--no-progress-bar", path]);
    // It compares everything before it finds that it cannot resize such a volume.
    let (checked, rest) = said.split_once("Collecting resizing constraints").unwrap_or((&said, ""));
    assert!(ok || rest.contains("Highly fragmented $Bitmap isn't supported yet"), "ntfsresize: {said}");
    assert!(checked.contains("Accounting clusters"), "{said}");
    assert!(!words.iter().any(|word| checked.contains(word)), "ntfsresize: {said}");
    said
}

/// The number after a word in what a tool said.
fn number_after(text: &str, word: &str) -> u64 {
    let after = text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {text}")).1;
    let digits: String =
        after.trim_start_matches([' ', ':', '\t']).chars().take_while(char::is_ascii_alphanumeric).collect();
    digits.parse().unwrap_or_else(|e| panic!("{word:?} {digits:?}: {e}"))
}

/// What the judges say of a new volume.
fn judge_new(image: &Image, block: u32, summary: &NtfsSummary) {
    let said = check(&image.path);
    assert_eq!(number_after(&said, "Cluster size"), summary.cluster_size.into(), "{said}");
    let said = agree("ntfsinfo", &["-m", image.path()]);
    assert!(said.contains(&format!("Volume Name: {LABEL}\n")), "{said}");
    assert!(said.contains("Volume Flags: 0x0000\n") && said.contains("Volume Version: 3.1\n"), "{said}");
    assert_eq!(number_after(&said, "Sector Size"), block.into(), "{said}");
    assert_eq!(number_after(&said, "Volume Size in Clusters"), summary.clusters, "{said}");
    assert_eq!(number_after(&said, "MFT Record Size"), block.max(1024).into(), "{said}");
    let free = number_after(&said, "Free Clusters");
    assert_eq!(summary.clusters - free, summary.used_clusters, "{said}");
    let listed = agree("ntfsls", &["-a", "-s", image.path()]);
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    let all = ["$AttrDef", "$BadClus", "$Bitmap", "$Boot", "$Extend", "$LogFile", "$MFT", "$MFTMirr"];
    assert_eq!(names, [&all[..], &["$Secure", "$UpCase", "$Volume", ".", ".."]].concat(), "{listed}");
}

#[test]
fn judges_accept_every_cluster_size_on_every_sector_size() {
    for block in [512, 4096_u32] {
        for power in block.trailing_zeros()..=16 {
            for size in [3 * MIB, 40 * MIB + 7 * 4096, 300 * MIB] {
                let (image, summary) = formatted(size, block, 1 << power);
                judge_new(&image, block, &summary);
            }
        }
    }
}

#[test]
fn judges_accept_small_and_large_volumes() {
    for (block, cluster_size, size) in [
        (512, 512, MIB),
        (512, 4096, MIB),
        (4096, 4096, MIB + 12_288),
        (512, 2048, 3_999_744),
        (512, 4096, 20 << 30),
        (4096, 65_536, 3 << 40),
    ] {
        let (image, summary) = formatted(size, block, cluster_size);
        // Nothing is written but metadata, and zeroes at both ends.
        let written = 512 * std::fs::metadata(&image.path).unwrap().blocks();
        let metadata = summary.used_clusters * u64::from(cluster_size);
        assert!(written <= metadata + 2 * MIB + 8192, "{written} {metadata}");
        judge_new(&image, block, &summary);
    }
}

#[test]
#[ignore = "writes 0.6 GB: the bitmap of as many clusters as there can be"]
fn judges_accept_as_many_clusters_as_there_can_be() {
    let image = Image::new((16 << 40) - 4096, 512);
    let summary = format(&*image, &options(None)).unwrap();
    assert_eq!((summary.cluster_size, summary.clusters), (4096, u64::from(u32::MAX) - 1));
    judge_new(&image, 512, &summary);
    let usage = uvm_disk::ntfs::used_extents(&*image, &mut |_| Ok(())).unwrap();
    // What follows the last cluster is just as long as one.
    assert_eq!(usage.used / 4096, summary.used_clusters + 1);
}

/// Makes what mkntfs does in the same way comparable, and forgets where things lie.
fn comparable(volume: &Volume, index: usize) -> Record {
    const HIDDEN_SYSTEM: u8 = 6;
    let mut record = volume.record(index);
    for ((kind, _), attribute) in &mut record.attributes {
        if let Some(value) = &mut attribute.value {
            match (index, kind) {
                // We set no archive bit on the root directory.
                (5, 0x10) => value[32] = HIDDEN_SYSTEM,
                // The $MFT's sizes, see below.
                (0, 0x30) => value[40..56].fill(0),
                _ => {}
            }
        } else {
            attribute.runs.retain(|(lcn, _)| lcn.is_none());
        }
        match (index, kind) {
            // Our $MFT goes to the end of its last cluster, and is all records.
            (0, 0x80) => attribute.sizes.clear(),
            // mkntfs pads the descriptor of the root directory with 3.9 KiB of zeroes, and needs clusters for it.
            (5, 0x50) => *attribute = Attribute { value: None, flags: 0, sizes: vec![], runs: vec![] },
            _ => {}
        }
    }
    record
}

/// The contents of a file that mkntfs and we fill with the same.
fn same_contents(ours: &Volume, theirs: &Volume, index: usize, name: &str) {
    let read = |volume: &Volume| {
        let record = volume.record(index);
        volume.contents(&record.attributes[&(0x80, name.to_owned())])
    };
    assert!(read(ours) == read(theirs), "contents of record {index}, {name:?}");
}

/// The root directory's entries: reference, and the key but for the sizes in those of the $MFT and $AttrDef.
fn entries(volume: &Volume) -> Vec<(u64, Vec<u8>)> {
    let mut block = volume.contents(&volume.record(5).attributes[&(0xa0, "$I30".to_owned())]);
    volume::unprotect(&mut block);
    let mut at = 0x18 + number(&block, 0x18, 4) as usize;
    let mut entries = Vec::new();
    while number(&block, at + 12, 2) & 2 == 0 {
        let reference = number(&block, at, 8);
        let mut key = block[at + 16..at + 16 + number(&block, at + 10, 2) as usize].to_vec();
        if [0, 4].contains(&(reference & 0xffff)) {
            key[40..56].fill(0);
        }
        entries.push((reference, key));
        at += number(&block, at + 8, 2) as usize;
    }
    assert_eq!(entries.len(), 12);
    entries
}

#[test]
fn records_and_contents_are_those_of_mkntfs() {
    let dir = tempfile::tempdir().unwrap();
    for (block, cluster_size, size) in [
        (512, 512, 3 * MIB),
        (512, 4096, 40 * MIB),
        (512, 65_536, 300 * MIB + 512),
        (4096, 4096, 40 * MIB),
        (4096, 32_768, 13 << 30),
    ] {
        let path = dir.path().join("theirs");
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let (blocks, clusters) = (block.to_string(), cluster_size.to_string());
        let mut arguments = vec!["-q", "-T", "-Q", "-F", "-L", LABEL, "-s", &blocks, "-c", &clusters];
        arguments.extend(["-p", "2048", "-H", "255", "-S", "63", path.to_str().unwrap()]);
        agree("mkntfs", &arguments);
        let image = Image::new(size, block);
        format(&*image, &NtfsOptions { timestamp: 0, ..options(Some(cluster_size)) }).unwrap();
        let (ours, theirs) = (Volume::open(&image.path), Volume::open(&path));

        // All fields but the jump, where the $MFT and its mirror are, and the serial number.
        let fields =
            |volume: &Volume| [&volume.boot[3..48], &volume.boot[64..72], &volume.boot[510..]].concat();
        assert_eq!(fields(&ours), fields(&theirs), "boot sector {block} {cluster_size}");
        // mkntfs puts $AttrDef into its record where that is large enough.
        let skipped = (block == 4096).then_some(4);
        for index in (0..16).chain(24..27).filter(|index| Some(*index) != skipped) {
            let (ours, theirs) = (comparable(&ours, index), comparable(&theirs, index));
            assert!(ours == theirs, "{block} {cluster_size} {size}: {index}\n{ours:?}\n{theirs:?}");
        }
        for (index, name) in [(2, ""), (4, ""), (9, "$SDS"), (10, "")] {
            if Some(index) != skipped {
                same_contents(&ours, &theirs, index, name);
            }
        }
        assert_eq!(entries(&ours), entries(&theirs), "root directory {cluster_size}");
        let theirs_bitmap = theirs.record(6).attributes[&(0x80, String::new())].clone();
        let ours_bitmap = ours.record(6).attributes[&(0x80, String::new())].clone();
        assert_eq!(ours_bitmap.sizes, theirs_bitmap.sizes);
    }
}

#[test]
fn label_and_serial_number_are_what_blkid_and_we_read() {
    for label in ["", "x", LABEL, &"w".repeat(128)] {
        let image = Image::new(3 * MIB, 512);
        format(&*image, &NtfsOptions { label: label.into(), ..options(None) }).unwrap();
        check(&image.path);
        let found = uvm_disk::probe::probe(&*image).unwrap().file_system.unwrap();
        assert_eq!((found.kind, found.label.as_deref().unwrap_or("")), ("ntfs", label));
        assert_eq!(found.uuid.as_deref(), Some("0123456789ABCDEF"));
        let blkid =
            |tag: &str| ask("blkid", &["-p", "-o", "value", "-s", tag, image.path()]).1.trim().to_owned();
        assert_eq!((blkid("TYPE").as_str(), blkid("UUID").as_str()), ("ntfs", "0123456789ABCDEF"));
        // blkid does not undo the update sequence, which a label so long crosses.
        if label.len() < 100 {
            assert_eq!(blkid("LABEL"), label);
        }
    }
    for label in ["w".repeat(129), "a\0b".into()] {
        let image = Image::new(3 * MIB, 512);
        let error = format(&*image, &NtfsOptions { label, ..options(None) }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let try_format = |size, block, cluster_size| {
        format(&*Image::new(size, block), &options(cluster_size)).map_err(|error| error.kind())
    };
    for cluster_size in [256, 1000, 131_072] {
        assert_eq!(try_format(40 * MIB, 512, Some(cluster_size)), Err(ErrorKind::Invalid));
    }
    assert_eq!(try_format(40 * MIB, 4096, Some(2048)), Err(ErrorKind::Invalid), "less than a sector");
    assert_eq!(try_format(MIB - 512, 512, None), Err(ErrorKind::NoSpace));
    assert_eq!(try_format(MIB, 512, Some(65_536)), Err(ErrorKind::NoSpace), "sixteen clusters");
    assert_eq!(try_format(3 << 40, 512, Some(512)), Err(ErrorKind::NoSpace), "2^32 clusters and more");
    assert!(try_format(MIB, 512, None).is_ok());
}

#[test]
fn what_was_there_is_gone_and_the_bytes_are_the_same_again() {
    for (tool, arguments) in [("mkfs.ext4", ["-q", "-F"].as_slice()), ("mkfs.btrfs", &["-q", "-f"])] {
        let image = Image::new(200 * MIB, 512);
        agree(tool, &[arguments, &[image.path()]].concat());
        format(&*image, &options(None)).unwrap();
        let signatures = agree("wipefs", &["--no-act", "--noheadings", "--output", "TYPE", image.path()]);
        // wipefs takes the end of every boot sector for a partition table, that of mkntfs too.
        assert_eq!(signatures.split_whitespace().collect::<Vec<_>>(), ["ntfs", "dos"], "after {tool}");
        check(&image.path);
    }
    let dirty = Image::new(5 * MIB, 512);
    dirty.write_at(0, &vec![0xe7; (5 * MIB) as usize]).unwrap();
    let clean = Image::new(5 * MIB, 512);
    for image in [&dirty, &clean] {
        format(&**image, &options(Some(1024))).unwrap();
    }
    check(&dirty.path);
    // Of what is in use, all was written; the rest is as it was.
    let (dirty, clean) = (std::fs::read(&dirty.path).unwrap(), std::fs::read(&clean.path).unwrap());
    let differ = dirty.iter().zip(&clean).filter(|(a, b)| a != b).all(|(a, b)| (*a, *b) == (0xe7, 0));
    assert!(differ, "formatting the same gives the same");
}

#[test]
fn files_written_by_ntfscp_are_there_and_the_volume_stays_right() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|number| (number as u8).to_le_bytes()).collect();
    std::fs::write(&source, &bytes).unwrap();
    for (block, cluster_size) in [(512, 512), (512, 4096), (512, 65_536), (4096, 4096), (4096, 16_384)] {
        let (image, _) = formatted(40 * MIB, block, cluster_size);
        for index in 0..40 {
            let name = format!("/a file with number {index}");
            let from = if index == 7 { source.to_str().unwrap() } else { "/etc/passwd" };
            agree("ntfscp", &["-q", image.path(), from, &name]);
        }
        check(&image.path);
        let read = dir.path().join("read");
        let copy = format!("ntfscat {} '/a file with number 7' > {}", image.path(), read.display());
        agree("sh", &["-c", &copy]);
        assert!(std::fs::read(&read).unwrap() == bytes, "{block} {cluster_size}");
    }
}

#[test]
fn a_fault_leaves_no_volume_or_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("survivor");
    let whole_ones = std::cell::Cell::new(0);
    for block in [512, 4096] {
        let before = FaultDevice::new(3 * MIB, block);
        let faults = every_fault(
            &before,
            3 * MIB,
            &|device| format(&*device, &options(None)).map(drop),
            &|survivor, _, _| {
                let probed = uvm_disk::probe::probe(survivor).unwrap();
                if let Some(found) = probed.file_system {
                    assert_eq!(found.kind, "ntfs");
                    survivor.save(&path);
                    check(&path);
                    whole_ones.set(whole_ones.get() + 1);
                }
            },
        );
        assert!(faults >= 30, "{faults}");
    }
    // Only the boot sector itself, and it is one block, may be there after a fault.
    assert!(whole_ones.get() <= 2, "{}", whole_ones.get());
}
