//! MBR tables, judged by sfdisk: ours read and edited by it, its own read and edited by us, and every fault in between.
#![allow(clippy::unwrap_used)]

mod judge;

use std::sync::Arc;

use judge::fault::{Fault, FaultDevice, every_fault};
use judge::{Image, Loop, agree, agree_with};
use uvm_disk::mbr::{self, Mbr, NewMbrPartition, Slot, system_id};
use uvm_disk::{Alignment, BlockDevice, ErrorKind, Geometry, Place, Result};

const SIZE: u64 = 64 << 20;

fn geometry(size: u64, block: u32) -> Geometry {
    Geometry { size, logical_block_size: block, physical_block_size: block }
}

fn new(slot: Slot, place: Place, mib: u64, kind: u8, block: u32) -> NewMbrPartition {
    NewMbrPartition { slot, place, blocks: Some((mib << 20) / u64::from(block)), kind, bootable: false }
}

/// Two primary partitions, an extended one in slot 4, three logical ones.
fn table(block: u32) -> Mbr {
    let geometry = geometry(SIZE, block);
    let alignment = Alignment::standard(&geometry).unwrap();
    let mut mbr = Mbr::new(0x1234_abcd);
    let fit = Place::FirstFit;
    for (slot, mib, kind) in [
        (Slot::Primary, 5, system_id::FAT32_LBA),
        (Slot::Primary, 7, system_id::LINUX),
        (Slot::Number(4), 38, system_id::EXTENDED_LBA),
        (Slot::Logical, 3, system_id::LINUX),
        (Slot::Logical, 5, system_id::LINUX_SWAP),
        (Slot::Logical, 7, system_id::NTFS),
    ] {
        mbr.add(new(slot, fit, mib, kind, block), &geometry, alignment).unwrap();
    }
    mbr.set_active(Some(2)).unwrap();
    mbr
}

fn with_table(block: u32) -> (Arc<FaultDevice>, Mbr) {
    let disk = FaultDevice::new(SIZE, block);
    let mbr = table(block);
    mbr::write(&*disk, &mbr).unwrap();
    (disk, mbr)
}

/// The device as a file behind a loop device of its block size.
fn judged<T>(device: &FaultDevice, judge: impl FnOnce(&str) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    device.save(&path);
    judge(&Loop::new(&path, device.geometry().logical_block_size).0)
}

const QUIET: [&str; 3] = ["-q", "--no-reread", "--no-tell-kernel"];

/// Number, first block, blocks, system id and active flag.
type Line = (u32, u64, u64, u8, bool);

fn lines(mbr: &Mbr) -> Vec<Line> {
    mbr.partitions.iter().map(|p| (p.number, p.starting_lba, p.blocks, p.kind, p.bootable)).collect()
}

/// What sfdisk reads.
fn sfdisk(disk: &str) -> Vec<Line> {
    let dump = agree("sfdisk", &["-d", disk]);
    let field = |line: &str, name: &str| {
        line.split([',', ':']).find_map(|part| Some(part.trim().strip_prefix(name)?.trim().to_owned()))
    };
    let parse = |line: &str| {
        let number = line.strip_prefix(disk)?.strip_prefix('p')?.split_whitespace().next()?.parse().ok()?;
        let start = field(line, "start=")?.parse().ok()?;
        let blocks = field(line, "size=")?.parse().ok()?;
        let kind = u8::from_str_radix(&field(line, "type=")?, 16).ok()?;
        Some((number, start, blocks, kind, line.contains("bootable")))
    };
    dump.lines().filter_map(parse).collect()
}

#[test]
fn sfdisk_writes_the_same_bytes() {
    for (block, size) in [(512, 256 << 20), (4096, 256 << 20), (512, 20 << 30)] {
        let geometry = geometry(size, block);
        let mib = (1 << 20) / u64::from(block);
        let far = if size > 1 << 30 { 10 << 10 } else { 100 };
        let script = format!(
            "label: dos\nlabel-id: 0xcafe1234\nstart={mib},size={},type=83,bootable\nstart={},size={},type=f\n\
             start={},size={},type=82\nstart={},size={},type=83\n",
            20 * mib,
            far * mib,
            100 * mib,
            (far + 1) * mib,
            10 * mib,
            (far + 12) * mib,
            20 * mib
        );
        let theirs = Image::new(size, block);
        let disk = Loop::new(&theirs.path, block);
        agree_with("sfdisk", &[&QUIET[..], &[&disk.0]].concat(), &script);
        drop(disk);
        let mut mbr = Mbr::new(0xcafe_1234);
        let alignment = Alignment::standard(&geometry).unwrap();
        for (slot, at, mib_size, kind) in [
            (Slot::Primary, 1, 20, 0x83),
            (Slot::Primary, far, 100, 0x0f),
            (Slot::Logical, far + 1, 10, 0x82),
            (Slot::Logical, far + 12, 20, 0x83),
        ] {
            mbr.add(new(slot, Place::At(at * mib), mib_size, kind, block), &geometry, alignment).unwrap();
        }
        mbr.set_active(Some(1)).unwrap();
        let ours = FaultDevice::new(size, block);
        mbr::write(&*ours, &mbr).unwrap();
        assert_eq!(mbr::read(&*theirs).unwrap().unwrap(), mbr);
        for lba in [0, far * mib, (far + 11) * mib] {
            let sector = |device: &dyn BlockDevice| {
                let mut bytes = vec![0; block as usize];
                device.read_at(lba * u64::from(block), &mut bytes).unwrap();
                bytes
            };
            assert_eq!(sector(&*ours), sector(&*theirs), "LBA {lba}, blocks of {block}");
        }
    }
}

/// The edits of both directions: each by its name, ours, and sfdisk's words for the same.
type Edit = (&'static str, fn(&mut Mbr, &Geometry, u64) -> Result<()>);

const EDITS: [Edit; 12] = [
    ("delete a primary", |m, _, _| m.delete(1).map(drop)),
    ("delete the extended", |m, _, _| m.delete(4).map(drop)),
    ("delete the first logical", |m, _, _| m.delete(5).map(drop)),
    ("delete a logical", |m, _, _| m.delete(6).map(drop)),
    ("delete the last logical", |m, _, _| m.delete(7).map(drop)),
    ("add a primary", |m, g, mib| {
        let new = NewMbrPartition {
            slot: Slot::Primary,
            place: Place::LargestGap,
            blocks: Some(2 * mib),
            kind: 0x83,
            bootable: false,
        };
        m.add(new, g, Alignment::standard(g)?).map(drop)
    }),
    ("add a logical", |m, g, mib| {
        let new = NewMbrPartition {
            slot: Slot::Logical,
            place: Place::FirstFit,
            blocks: Some(2 * mib),
            kind: 0x8e,
            bootable: false,
        };
        m.add(new, g, Alignment::standard(g)?).map(drop)
    }),
    ("shrink a primary", |m, g, mib| m.resize(2, 6 * mib, g)),
    ("grow the extended", |m, g, mib| m.resize(4, 45 * mib, g)),
    ("shrink a logical", |m, g, mib| m.resize(6, 4 * mib, g)),
    ("grow the last logical", |m, g, mib| m.resize(7, 12 * mib, g)),
    ("another type and signature", |m, _, _| {
        m.disk_signature = 77;
        m.set_kind(2, 0x8e)
    }),
];

#[test]
fn edits_survive_every_fault_and_sfdisk_reads_them() {
    for block in [512, 4096] {
        let (disk, old) = with_table(block);
        let geometry = disk.geometry();
        let read = judged(&disk, |disk| {
            assert!(agree("sfdisk", &["--verify", disk]).contains("No errors"));
            sfdisk(disk)
        });
        assert_eq!(read, lines(&old));
        for (name, edit) in EDITS {
            let mut new = old.clone();
            edit(&mut new, &geometry, (1 << 20) / u64::from(block)).unwrap();
            assert_ne!(new, old, "{name}");
            let check = |device: &FaultDevice, at: u64, fault: Fault| {
                let found = mbr::read(device).unwrap().unwrap();
                assert!(found == new || found == old, "{name}, {fault:?} at write {at}: {found:#?}");
                assert_eq!(mbr::verify(device).unwrap(), [""; 0], "{name}, {fault:?} at write {at}");
            };
            every_fault(&disk, SIZE, &|d| mbr::update(&*d, &new), &check);
            let device = disk.again(None, 0);
            mbr::update(&*device, &new).unwrap();
            assert_eq!(mbr::read(&*device).unwrap().unwrap(), new, "{name}");
            let read = judged(&device, |disk| {
                let verdict = agree("sfdisk", &["--verify", disk]);
                assert!(verdict.contains("No errors"), "{name}: {verdict}");
                sfdisk(disk)
            });
            assert_eq!(read, lines(&new), "{name}, blocks of {block}");
        }
    }
}

#[test]
fn a_creation_leaves_the_old_table_none_or_the_new() {
    for block in [512, 4096] {
        let (disk, old) = with_table(block);
        let mut new = table(block);
        new.disk_signature = 1;
        new.delete(5).unwrap();
        every_fault(&disk, SIZE, &|d| mbr::write(&*d, &new), &|device, at, fault| {
            let found = mbr::read(device).unwrap();
            assert!(
                found.is_none() || found.as_ref() == Some(&old) || found.as_ref() == Some(&new),
                "{fault:?} at {at}"
            );
        });
    }
}

#[test]
fn sfdisk_edits_ours_and_we_edit_what_it_left() {
    for block in [512, 4096] {
        let (disk, _) = with_table(block);
        let mib = (1 << 20) / u64::from(block);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut device = disk;
        for round in 0..3 {
            device.save(&path);
            let disk = Loop::new(&path, block);
            agree("sfdisk", &[&QUIET[..], &["--delete", &disk.0, "6"]].concat());
            agree_with("sfdisk", &[&QUIET[..], &["--append", &disk.0]].concat(), "size=3M,type=83\n");
            agree("sfdisk", &[&QUIET[..], &["--part-type", &disk.0, "2", "8e"]].concat());
            let theirs = sfdisk(&disk.0);
            drop(disk);
            device = FaultDevice::load(&path, block);
            let mut mbr = mbr::read(&*device).unwrap().unwrap();
            assert_eq!(lines(&mbr), theirs, "round {round}");
            assert_eq!(mbr::verify(&*device).unwrap(), [""; 0]);
            let last = mbr.logical().last().unwrap().number;
            mbr.resize(last, 2 * mib, &device.geometry()).unwrap();
            mbr::update(&*device, &mbr).unwrap();
            mbr.delete(5).unwrap();
            mbr::update(&*device, &mbr).unwrap();
            let add = new(Slot::Logical, Place::FirstFit, 1 + round, 0x82, block);
            mbr.add(add, &device.geometry(), Alignment::standard(&device.geometry()).unwrap()).unwrap();
            mbr::update(&*device, &mbr).unwrap();
            device.flush().unwrap();
            let theirs = judged(&device, sfdisk);
            assert_eq!(theirs, lines(&mbr), "round {round}");
        }
    }
}

#[test]
fn boot_code_and_unknown_bytes_stay() {
    let (disk, mut mbr) = with_table(512);
    disk.write_at(0, &[0xeb; 440]).unwrap();
    disk.write_at(444, &[0x5a, 0x5a]).unwrap();
    let record = mbr.partition(6).unwrap().record_lba * 512;
    disk.write_at(record, &[0xab; 446]).unwrap();
    mbr.resize(6, 4096, &disk.geometry()).unwrap();
    mbr::update(&*disk, &mbr).unwrap();
    mbr.set_active(Some(1)).unwrap();
    mbr::update(&*disk, &mbr).unwrap();
    let mut sector = [0; 512];
    disk.read_at(0, &mut sector).unwrap();
    assert!(sector[..440].iter().all(|b| *b == 0xeb) && sector[444..446] == [0x5a, 0x5a]);
    disk.read_at(record, &mut sector).unwrap();
    assert!(sector[..446].iter().all(|b| *b == 0xab));
}

#[test]
fn what_cannot_be_is_refused_with_the_numbers() {
    let (disk, mbr) = with_table(512);
    let geometry = disk.geometry();
    let alignment = Alignment::standard(&geometry).unwrap();
    let refused = |result: Result<()>, kind: ErrorKind, parts: &[&str]| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for part in parts {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    };
    let try_add =
        |slot, place, mib| mbr.clone().add(new(slot, place, mib, 0x83, 512), &geometry, alignment).map(drop);
    refused(try_add(Slot::Number(1), Place::FirstFit, 1), ErrorKind::Exists, &["partition 1"]);
    refused(try_add(Slot::Number(5), Place::FirstFit, 1), ErrorKind::Invalid, &["1 to 4"]);
    refused(
        try_add(Slot::Primary, Place::At(13000), 1),
        ErrorKind::NoSpace,
        &["13000..=15047", "partition 2", "12288..=26623"],
    );
    refused(try_add(Slot::Primary, Place::FirstFit, 300), ErrorKind::NoSpace, &["614400", "holds"]);
    refused(try_add(Slot::Logical, Place::At(28_672), 1), ErrorKind::NoSpace, &["partition 5"]);
    refused(
        mbr.clone().resize(1, 50000, &geometry),
        ErrorKind::NoSpace,
        &["50000", "2048..=52047", "partition 2 (12288"],
    );
    refused(mbr.clone().resize(5, 50000, &geometry), ErrorKind::NoSpace, &["50000", "partition"]);
    refused(mbr.clone().resize(4, 2048, &geometry), ErrorKind::Invalid, &["not within the extended"]);
    refused(mbr.clone().set_kind(4, 0x83), ErrorKind::Invalid, &["0x0f", "0x83"]);
    refused(mbr.clone().set_active(Some(5)), ErrorKind::Invalid, &["logical"]);
    // One sector cannot change two.
    let mut two = mbr.clone();
    two.set_active(Some(1)).unwrap();
    two.set_kind(5, 0x82).unwrap();
    refused(mbr::update(&*disk, &two), ErrorKind::Unsupported, &["2 blocks", "several updates"]);
    // More than 32 bits of blocks.
    let large = FaultDevice::new(3 << 40, 512);
    let mut wide = Mbr::new(1);
    let whole = |blocks| NewMbrPartition {
        slot: Slot::Primary,
        place: Place::At(2048),
        blocks,
        kind: 0x83,
        bootable: false,
    };
    refused(
        wide.add(whole(Some(1 << 32)), &large.geometry(), alignment).map(drop),
        ErrorKind::NoSpace,
        &["4294967296", "2048..=4294967295"],
    );
    wide.add(whole(None), &large.geometry(), alignment).unwrap();
    mbr::write(&*large, &wide).unwrap();
    assert_eq!(mbr::read(&*large).unwrap().unwrap().partitions[0].ending_lba(), u64::from(u32::MAX));
    wide.partitions[0].blocks = 1 << 33;
    refused(
        mbr::write(&*FaultDevice::new(8 << 40, 512), &wide),
        ErrorKind::Invalid,
        &["8589934592", "4294967295"],
    );
    assert_eq!(mbr::read(&*disk).unwrap().unwrap(), mbr, "nothing was written");
}

#[test]
fn damage_is_named_and_not_edited() {
    let (disk, mbr) = with_table(512);
    let (ext, second) = (mbr.extended().unwrap().starting_lba, mbr.partition(6).unwrap().record_lba);
    let spoiled = |at: u64, bytes: &[u8]| {
        let device = disk.again(None, 0);
        device.write_at(at, bytes).unwrap();
        device
    };
    let cases: [(u64, &[u8], &str); 5] = [
        (second * 512 + 510, &[0, 0], "has no signature"),
        // The second record leads to itself.
        (second * 512 + 462 + 8, &((second - ext) as u32).to_le_bytes(), "comes back"),
        (second * 512 + 462 + 8, &0x7fff_ffffu32.to_le_bytes(), "not on the device"),
        (446, &[0x80], "2 partitions are active"),
        (446 + 12, &100_000u32.to_le_bytes(), "overlap"),
    ];
    for (at, bytes, problem) in cases {
        let device = spoiled(at, bytes);
        let found = mbr::verify(&*device).unwrap();
        assert!(found.iter().any(|line| line.contains(problem)), "{problem}: {found:?}");
        let read = mbr::read(&*device).unwrap().unwrap();
        let writes = device.writes();
        assert!(mbr::update(&*device, &read).is_err(), "{problem}");
        assert_eq!(device.writes(), writes, "{problem}");
    }
}

#[test]
fn the_kernel_takes_the_partitions() {
    let (disk, mbr) = with_table(512);
    judged(&disk, |disk| {
        agree("partx", &["-a", disk]);
        let name = disk.trim_start_matches("/dev/");
        for p in mbr.partitions.iter().filter(|p| !p.is_extended()) {
            let of = |what: &str| {
                let path = format!("/sys/block/{name}/{name}p{}/{what}", p.number);
                std::fs::read_to_string(&path)
                    .unwrap_or_else(|e| panic!("{path}: {e}"))
                    .trim()
                    .parse::<u64>()
                    .unwrap()
            };
            assert_eq!((of("start"), of("size")), (p.starting_lba, p.blocks));
        }
        agree("partx", &["-d", disk]);
        let kinds = agree("partx", &["-r", "-g", "-o", "NR,TYPE", disk]);
        for p in &mbr.partitions {
            assert!(kinds.contains(&format!("{} {:#x}", p.number, p.kind)), "{kinds}");
        }
    });
}

#[test]
fn types_are_those_of_sfdisk() {
    let list = agree("sfdisk", &["-T", "-X", "dos"]).to_lowercase();
    for (name, id) in system_id::named() {
        assert!(list.lines().any(|line| line.starts_with(&format!("{id:2x}  "))), "{name} is {id:x}");
        assert_eq!((system_id::by_name(name), system_id::name_of(id)), (Some(id), Some(name)));
    }
    let said = |id: u8| list.lines().find_map(|line| line.strip_prefix(&format!("{id:2x}  "))).unwrap();
    for (name, words) in [
        ("linux", "linux"),
        ("swap", "linux swap"),
        ("lvm", "linux lvm"),
        ("raid", "linux raid"),
        ("esp", "efi"),
        ("ntfs", "ntfs"),
        ("fat12", "fat12"),
        ("fat16", "fat16"),
        ("fat32", "fat32"),
        ("fat32-lba", "fat32 (lba)"),
        ("extended-lba", "ext'd (lba)"),
        ("protective", "gpt"),
        ("windows-recovery", "winre"),
        ("freebsd", "freebsd"),
        ("openbsd", "openbsd"),
        ("netbsd", "netbsd"),
        ("xbootldr", "linux extended boot"),
        ("prep", "prep"),
    ] {
        assert!(said(system_id::by_name(name).unwrap()).contains(words), "{name}: {words}");
    }
}
