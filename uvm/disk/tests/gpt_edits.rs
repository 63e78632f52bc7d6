//! Edits of a GPT: tables that other tools made survive ours, ours survive theirs, and what cannot be is refused.
#![allow(clippy::unwrap_used)]

mod judge;

use std::collections::BTreeMap;
use std::sync::Arc;

use judge::{Image, Loop, agree, agree_with};
use uvm_disk::gpt::{self, Guid, Mirror, NewPartition, PartitionTable, attribute, partition_type};
use uvm_disk::{Alignment, BlockDevice, ErrorKind, Geometry, Memory, Place, identity};

const SIZE: u64 = 64 << 20;
const QUIET: [&str; 3] = ["-q", "--no-reread", "--no-tell-kernel"];

fn new(number: Option<u32>, place: Place, blocks: Option<u64>, seed: u64) -> NewPartition {
    NewPartition {
        number,
        place,
        blocks,
        type_guid: partition_type::LINUX_GENERIC,
        unique_guid: identity::derive("edits", &seed.to_string()).into(),
        attributes: 0,
        name: format!("edit {seed}"),
    }
}

/// What sfdisk says of the table: its header lines, and each partition's line by number.
fn dump(image: &Image, block: u32) -> (Vec<String>, BTreeMap<u32, String>) {
    let disk = Loop::new(&image.path, block);
    let text = agree("sfdisk", &["-d", &disk.0]);
    let (mut header, mut partitions) = (Vec::new(), BTreeMap::new());
    for line in text.lines().filter(|line| !line.starts_with("device:")) {
        match line.strip_prefix(&disk.0).and_then(|rest| rest.strip_prefix('p')?.split_once(" : ")) {
            Some((number, fields)) => {
                partitions.insert(number.trim().parse().unwrap(), fields.to_owned());
            }
            None => header.push(line.to_owned()),
        }
    }
    (header, partitions)
}

fn no_problems(image: &Image, block: u32) {
    let disk = Loop::new(&image.path, block);
    let verdict = agree("sgdisk", &["-v", &disk.0]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    assert!(!verdict.contains("Warning!") && !verdict.contains("Problem:"), "{verdict}");
}

/// Our table in the words of sfdisk, as far as both say the same.
fn agrees_with_sfdisk(table: &PartitionTable, theirs: &BTreeMap<u32, String>) {
    assert_eq!(
        table.partitions.iter().map(|p| p.number).collect::<Vec<_>>(),
        theirs.keys().copied().collect::<Vec<_>>()
    );
    for p in &table.partitions {
        let line: String = theirs[&p.number].to_lowercase().split_whitespace().collect();
        let blocks = p.ending_lba - p.starting_lba + 1;
        let expected =
            format!("start={},size={blocks},type={},uuid={}", p.starting_lba, p.type_guid, p.unique_guid);
        assert!(line.starts_with(&expected), "{expected}: {line}");
        if !p.name.is_empty() {
            // sfdisk escapes what is not ASCII.
            let escape = |byte: u8| match byte {
                0..0x80 => char::from(byte).to_lowercase().to_string(),
                _ => format!("\\x{byte:02x}"),
            };
            let name: String = p.name.bytes().filter(|byte| *byte != b' ').map(escape).collect();
            assert!(line.contains(&format!("name=\"{name}\"")), "{name}: {line}");
        }
    }
}

type Maker = (&'static str, fn(&str, u64));

/// Each makes slots 1, 14 and 15 in an order of its own.
const MAKERS: [Maker; 5] = [
    ("sgdisk", |disk, _| {
        agree(
            "sgdisk",
            &[
                "-n",
                "14:0:+2M",
                "-n",
                "15:0:+6M",
                "-t",
                "15:ef00",
                "-n",
                "1:0:+9M",
                "-A",
                "1:set:2",
                "-A",
                "15:set:50",
                "-c",
                "1:a name",
                disk,
            ],
        );
    }),
    ("sgdisk with 256 entries", |disk, _| {
        agree(
            "sgdisk",
            &["-S", "256", "-n", "14:0:+2M", "-n", "15:0:+6M", "-n", "1:0:+9M", "-t", "1:8e00", disk],
        );
    }),
    ("sgdisk with its table elsewhere", |disk, _| {
        agree("sgdisk", &["-j", "40", "-n", "14:0:+2M", "-n", "15:0:+6M", "-n", "1:0:+9M", disk]);
    }),
    ("sfdisk", |disk, mib| {
        let script = format!(
            "label: gpt\nlabel-id: 12345678-9abc-def0-1122-334455667788\n{disk}p15 : start={},size={},type=U\n\
             {disk}p1 : start={},size={},type=S,name=\"größe\",attrs=\"RequiredPartition GUID:59\"\n{disk}p14 : start={},size={}\n",
            mib,
            6 * mib,
            20 * mib,
            9 * mib,
            10 * mib,
            2 * mib
        );
        agree_with("sfdisk", &[&QUIET[..], &[disk]].concat(), &script);
    }),
    ("sfdisk with 16 entries", |disk, mib| {
        let script = format!(
            "label: gpt\ntable-length: 16\n{disk}p14 : start={},size={}\n{disk}p15 : start={},size={}\n{disk}p1 : start={},size={}\n",
            mib,
            2 * mib,
            4 * mib,
            6 * mib,
            11 * mib,
            9 * mib
        );
        agree_with("sfdisk", &[&QUIET[..], &[disk]].concat(), &script);
    }),
];

#[test]
fn tables_of_other_tools_survive_an_edit_back_and_forth() {
    for block in [512, 4096] {
        let mib = (1 << 20) / u64::from(block);
        for (name, make) in MAKERS {
            let image = Image::new(SIZE, block);
            make(&Loop::new(&image.path, block).0, mib);
            assert_eq!(gpt::verify(&*image).unwrap(), [], "{name}");
            let (header, before) = dump(&image, block);
            let mut table = gpt::read(&*image).unwrap().table;
            agrees_with_sfdisk(&table, &before);
            // Nothing to change: nothing changes.
            let bytes = std::fs::read(&image.path).unwrap();
            gpt::update(&*image, &table).unwrap();
            assert!(bytes == std::fs::read(&image.path).unwrap(), "{name}: an edit of nothing wrote");

            table.resize(14, mib).unwrap();
            let alignment = Alignment::standard(&image.geometry()).unwrap();
            assert_eq!(table.add(new(None, Place::LargestGap, Some(3 * mib), 2), alignment).unwrap(), 2);
            gpt::update(&*image, &table).unwrap();
            let (header_after, after) = dump(&image, block);
            assert_eq!(header, header_after, "{name}");
            assert_eq!((&before[&1], &before[&15]), (&after[&1], &after[&15]), "{name}");
            agrees_with_sfdisk(&table, &after);
            assert_eq!(gpt::verify(&*image).unwrap(), [], "{name}");
            if name != "sgdisk with its table elsewhere" {
                no_problems(&image, block);
            }

            let disk = Loop::new(&image.path, block);
            agree("sgdisk", &["-d", "15", "-c", "2:theirs", "-A", "2:set:60", &disk.0]);
            drop(disk);
            let table = gpt::read(&*image).unwrap().table;
            assert_eq!(gpt::verify(&*image).unwrap(), [], "{name}");
            agrees_with_sfdisk(&table, &dump(&image, block).1);
            assert_eq!(table.partition(2).unwrap().attributes, attribute::READ_ONLY);
            gpt::grow(&*image).unwrap();
            let place = gpt::read(&*image).unwrap().table;
            assert_eq!(place.partitions, table.partitions, "{name}");
        }
    }
}

/// Makes the checksums of the primary copy right after something was put into it.
fn seal(disk: &Memory, entries_len: usize) {
    let mut entries = vec![0; entries_len];
    disk.read_at(1024, &mut entries).unwrap();
    let mut header = [0; 92];
    disk.read_at(512, &mut header).unwrap();
    header[88..].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    disk.write_at(512, &header).unwrap();
}

#[test]
fn what_is_not_ours_stays_byte_by_byte() {
    let disk = Memory::new(SIZE as usize, 512);
    let mut table = PartitionTable::new(&disk.geometry(), identity::derive("edits", "disk").into()).unwrap();
    (table.entry_size, table.entry_count, table.first_usable_lba) = (256, 64, 2048);
    let alignment = Alignment::standard(&disk.geometry()).unwrap();
    for number in [3, 7] {
        table.add(new(Some(number), Place::FirstFit, Some(2048), u64::from(number)), alignment).unwrap();
    }
    table.set_attributes(3, 0x0012_3400_0000_0ff0, 0).unwrap();
    gpt::write(&disk, &table).unwrap();
    disk.write_at(0, &[0xeb; 440]).unwrap();
    // Bytes behind the fields of entry 3, a name that is no UTF-16 and goes on after its end.
    disk.write_at(1024 + 2 * 256 + 128, &[0x77; 128]).unwrap();
    disk.write_at(1024 + 2 * 256 + 56, &[0x00, 0xd8, 0x41, 0x00, 0x00, 0x00, 0x42, 0x00]).unwrap();
    seal(&disk, 64 * 256);
    let mut entry = [0; 256];
    disk.read_at(1024 + 2 * 256, &mut entry).unwrap();

    let mut table = gpt::read(&disk).unwrap().table;
    assert_eq!((table.entry_size, table.entry_count), (256, 64));
    table.delete(7).unwrap();
    table.set_attributes(3, attribute::NO_AUTO, 0x10).unwrap();
    gpt::update(&disk, &table).unwrap();
    assert_eq!(gpt::verify(&disk).unwrap(), []);
    let mut after = [0; 256];
    disk.read_at(1024 + 2 * 256, &mut after).unwrap();
    let attributes: u64 = 0x0012_3400_0000_0fe0 | attribute::NO_AUTO;
    entry[48..56].copy_from_slice(&attributes.to_le_bytes());
    assert_eq!(after, entry);
    let mut boot_code = [0; 440];
    disk.read_at(0, &mut boot_code).unwrap();
    assert_eq!(boot_code, [0xeb; 440]);
}

fn three(block: u32) -> (Arc<Image>, PartitionTable) {
    let image = Image::new(SIZE, block);
    let mib = (1 << 20) / u64::from(block);
    let alignment = Alignment::standard(&image.geometry()).unwrap();
    let disk_guid: Guid = identity::derive("edits", "disk").into();
    let mut table = PartitionTable::new(&image.geometry(), disk_guid).unwrap();
    for number in 1..=3 {
        let place = Place::At((1 + 10 * u64::from(number)) * mib);
        table.add(new(Some(number), place, Some(5 * mib), u64::from(number)), alignment).unwrap();
    }
    gpt::write(&*image, &table).unwrap();
    (image, table)
}

#[test]
fn hybrid_mbrs_are_those_of_sgdisk_and_stay_true() {
    for block in [512, 4096] {
        let (image, table) = three(block);
        let lba0 = |image: &Image| {
            let mut bytes = vec![0; block as usize];
            image.read_at(0, &mut bytes).unwrap();
            bytes
        };
        let protective = lba0(&image);
        for numbers in [&[2][..], &[3, 1], &[1, 2, 3]] {
            let mirrors: Vec<_> = numbers
                .iter()
                .map(|number| Mirror { number: *number, kind: 0x83, bootable: false })
                .collect();
            gpt::write_hybrid(&*image, &mirrors).unwrap();
            let ours = lba0(&image);
            assert_eq!(gpt::verify(&*image).unwrap(), []);
            no_problems(&image, block);
            let list: Vec<_> = numbers.iter().map(u32::to_string).collect();
            agree("sgdisk", &["-h", &list.join(":"), &Loop::new(&image.path, block).0]);
            assert_eq!(ours, lba0(&image), "partitions {numbers:?}, blocks of {block}");
        }
        gpt::write_hybrid(&*image, &[Mirror { number: 2, kind: 0x0c, bootable: true }]).unwrap();
        let hybrid = lba0(&image);
        // What it does not show may change.
        let mut edited = table.clone();
        edited.delete(1).unwrap();
        edited.set_name(2, "shown").unwrap();
        gpt::update(&*image, &edited).unwrap();
        assert_eq!(lba0(&image), hybrid);
        let shown = table.partition(2).unwrap();
        for spoil in
            [|t: &mut PartitionTable| t.delete(2).map(drop), |t: &mut PartitionTable| t.resize(2, 100)]
        {
            let mut wrong = edited.clone();
            spoil(&mut wrong).unwrap();
            let error = gpt::update(&*image, &wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let extent = format!("{}..={}", shown.starting_lba, shown.ending_lba);
            assert!(error.to_string().contains(&extent), "{error}");
        }
        assert_eq!(gpt::read(&*image).unwrap().table, edited);
        gpt::write_protective(&*image).unwrap();
        assert_eq!(lba0(&image), protective);
        for (mirrors, kind) in [
            (vec![], ErrorKind::Invalid),
            (vec![Mirror { number: 9, kind: 0x83, bootable: false }], ErrorKind::NotFound),
            (vec![Mirror { number: 2, kind: 0xee, bootable: false }], ErrorKind::Invalid),
            (vec![Mirror { number: 2, kind: 0x83, bootable: false }; 2], ErrorKind::Invalid),
        ] {
            assert_eq!(gpt::write_hybrid(&*image, &mirrors).unwrap_err().kind(), kind);
        }
    }
}

#[test]
fn an_mbr_in_front_is_not_a_remainder_to_overwrite() {
    let (image, table) = three(512);
    let script = "label: dos\nstart=2048,size=4096\n";
    let other = Image::new(SIZE, 512);
    agree_with("sfdisk", &["-q", other.path()], script);
    let mut foreign = [0; 512];
    other.read_at(0, &mut foreign).unwrap();
    image.write_at(0, &foreign).unwrap();
    for result in [gpt::update(&*image, &table), gpt::repair(&*image).map(drop)] {
        let error = result.unwrap_err();
        assert!(error.to_string().contains("4096 blocks at LBA 2048"), "{error}");
    }
    assert!(
        gpt::verify(&*image).unwrap().iter().any(|p| !p.repairable && p.text.contains("LBA 0 is an MBR"))
    );
    gpt::write_protective(&*image).unwrap();
    assert_eq!(gpt::verify(&*image).unwrap(), []);
}

#[test]
fn damage_is_named_and_repaired() {
    type Damage = (&'static str, fn(&Image, u64, u64));
    let cases: [Damage; 8] = [
        ("primary header: wrong header CRC", |i, block, _| i.write_at(block + 40, &[9]).unwrap()),
        ("primary header: missing", |i, block, _| i.write_at(block, &[0; 512]).unwrap()),
        ("primary header: wrong CRC of the entries", |i, block, _| {
            i.write_at(2 * block + 300, &[9]).unwrap()
        }),
        ("backup header: wrong header CRC", |i, block, last| i.write_at(last * block + 40, &[9]).unwrap()),
        ("backup header: missing", |i, block, last| i.write_at(last * block, &[0; 512]).unwrap()),
        ("LBA 0 is no protective MBR", |i, _, _| i.write_at(440, &[0; 72]).unwrap()),
        ("does not cover the device", |i, _, _| i.write_at(446 + 12, &[1, 0, 0, 0]).unwrap()),
        ("backup header: missing", |i, block, last| {
            i.write_at(last * block, &[0; 512]).unwrap();
            i.write_at(0, &[0; 512]).unwrap();
        }),
    ];
    for block in [512, 4096] {
        for (problem, spoil) in cases {
            let (image, table) = three(block);
            let sound = std::fs::read(&image.path).unwrap();
            spoil(&image, u64::from(block), SIZE / u64::from(block) - 1);
            let found = gpt::verify(&*image).unwrap();
            assert!(found.iter().any(|p| p.text.contains(problem)), "{problem}: {found:?}");
            assert!(found.iter().all(|p| p.repairable), "{found:?}");
            assert_eq!(gpt::repair(&*image).unwrap(), table);
            assert!(sound == std::fs::read(&image.path).unwrap(), "{problem}: repaired byte by byte");
            no_problems(&image, block);
        }
    }
    // A disk that grew, and whose backup only the protective MBR still leads to.
    for block in [512, 4096] {
        let (image, table) = three(block);
        let grown = Image::new(2 * SIZE, block);
        grown.write_at(0, &std::fs::read(&image.path).unwrap()).unwrap();
        grown.write_at(u64::from(block), &[0; 512]).unwrap();
        assert_eq!(gpt::repair(&*grown).unwrap().partitions, table.partitions);
        assert_eq!(gpt::verify(&*grown).unwrap(), []);
        no_problems(&grown, block);
    }
    // Two sound copies that differ: what every reader takes counts.
    let (image, table) = three(512);
    let mut other = vec![0; 33 * 512];
    image.read_at(SIZE - 33 * 512, &mut other).unwrap();
    let mut edited = table.clone();
    edited.delete(3).unwrap();
    gpt::update(&*image, &edited).unwrap();
    image.write_at(SIZE - 33 * 512, &other).unwrap();
    assert!(
        gpt::verify(&*image).unwrap().iter().any(|p| p.text == "partition 3 differs in primary and backup")
    );
    assert_eq!(gpt::repair(&*image).unwrap(), edited);
    no_problems(&image, 512);
}

#[test]
fn a_disk_that_grew_is_as_sgdisk_would_grow_it() {
    for block in [512, 4096] {
        let (image, table) = three(block);
        let bytes = std::fs::read(&image.path).unwrap();
        let [ours, theirs] = [(); 2].map(|()| {
            let grown = Image::new(2 * SIZE, block);
            grown.write_at(0, &bytes).unwrap();
            grown
        });
        let problems = gpt::verify(&*ours).unwrap();
        assert!(problems.iter().any(|p| p.text.contains("not at the last one")), "{problems:?}");
        assert!(agree("sgdisk", &["-v", &Loop::new(&ours.path, block).0]).contains("Problem"));
        let grown = gpt::grow(&*ours).unwrap();
        assert_eq!(grown.partitions, table.partitions);
        no_problems(&ours, block);
        agree("sgdisk", &["-e", &Loop::new(&theirs.path, block).0]);
        assert_eq!(gpt::read(&*theirs).unwrap().table, grown);
        let error = gpt::shrink(&*ours, (20 << 20) / u64::from(block)).unwrap_err();
        let last = table.partition(2).unwrap().ending_lba;
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains(&format!("..={last})")), "{error}");
        no_problems(&ours, block);
    }
}

#[test]
fn what_cannot_be_is_refused_with_the_numbers() {
    let (image, table) = three(512);
    let alignment = Alignment::standard(&image.geometry()).unwrap();
    let refused = |result: uvm_disk::Result<()>, kind: ErrorKind, parts: &[&str]| {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "{part} in {error}"));
    };
    let add = |new| table.clone().add(new, alignment).map(drop);
    let two = "22528..=32767";
    assert_eq!(table.room(2).unwrap(), 63488 - 43008);
    refused(add(new(Some(2), Place::FirstFit, None, 9)), ErrorKind::Exists, &["partition 2"]);
    refused(add(new(Some(129), Place::FirstFit, None, 9)), ErrorKind::Invalid, &["129", "1 to 128"]);
    refused(
        add(new(None, Place::At(22000), Some(1000), 9)),
        ErrorKind::NoSpace,
        &["22000..=22999", "partition 1", two],
    );
    refused(add(new(None, Place::At(23000), None, 9)), ErrorKind::NoSpace, &["23000"]);
    refused(add(new(None, Place::At(10), Some(10), 9)), ErrorKind::NoSpace, &["10..=19", "34..=131038"]);
    refused(add(new(None, Place::FirstFit, Some(60000), 9)), ErrorKind::NoSpace, &["60000 blocks", "57311"]);
    refused(add(new(None, Place::FirstFit, Some(9), 1)), ErrorKind::Invalid, &["GUID of partition"]);
    refused(
        table.clone().resize(1, 30000),
        ErrorKind::NoSpace,
        &["30000", "22528..=52527", "partition 2 (43008..="],
    );
    refused(table.clone().resize(3, 90000), ErrorKind::NoSpace, &["63488..=153487", "34..=131038"]);
    refused(table.clone().resize(3, 0), ErrorKind::Invalid, &["0 blocks"]);
    refused(table.clone().delete(4).map(drop), ErrorKind::NotFound, &["4"]);
    refused(table.clone().set_name(1, &"ä".repeat(37)), ErrorKind::Invalid, &["37", "36"]);
    refused(table.clone().set_type(1, Guid::UNUSED), ErrorKind::Invalid, &["partition 1"]);
    let mut moved = table.clone();
    moved.last_usable_lba += 1;
    refused(gpt::update(&*image, &moved), ErrorKind::NoSpace, &["34..=131039", "34..=131038"]);
    let wide = Geometry { size: SIZE, logical_block_size: 512, physical_block_size: 4096 };
    refused(Alignment::new(&wide, 512).map(drop), ErrorKind::Invalid, &["512", "4096"]);
    assert_eq!(Alignment::new(&wide, 4096).unwrap().blocks(), 8);
    let huge = Geometry { physical_block_size: 3 << 20, ..wide };
    assert_eq!(Alignment::standard(&huge).unwrap().blocks(), 6144);
}

#[test]
fn types_and_attributes_are_those_of_the_tools() {
    let list = agree("sfdisk", &["-T", "-X", "gpt"]).to_lowercase();
    let disk = Image::new(SIZE, 512);
    for (name, guid) in partition_type::named() {
        assert_eq!((partition_type::by_name(name), partition_type::name_of(guid)), (Some(guid), Some(name)));
        let said = list.lines().find_map(|line| line.strip_prefix(&guid.to_string()));
        // Newer than this sfdisk: sgdisk knows them.
        let code = match name {
            "luks" => "8309",
            "dm-crypt" => "8308",
            _ => {
                let said = said.unwrap_or_else(|| panic!("{name} is {guid}"));
                let squeeze = |text: &str| {
                    text.replace([' ', '-', '.', '/', '\'', '(', ')'], "").replace("mips32", "mips")
                };
                if let Some((kind, rest)) =
                    name.split_once('-').filter(|(kind, _)| matches!(*kind, "root" | "usr"))
                {
                    let architecture = squeeze(rest.trim_end_matches("-sig").trim_end_matches("-verity"));
                    let said = squeeze(said);
                    assert!(
                        said.starts_with(&format!("linux{kind}")) && said.ends_with(&architecture),
                        "{name}: {said}"
                    );
                    assert_eq!(name.contains("-verity"), said.contains("verity"), "{name}: {said}");
                    assert_eq!(name.contains("-sig"), said.contains("sign"), "{name}: {said}");
                }
                continue;
            }
        };
        agree("sgdisk", &["-o", "-n", "1:0:0", "-t", &format!("1:{code}"), disk.path()]);
        assert_eq!(gpt::read(&*disk).unwrap().table.partition(1).unwrap().type_guid, guid, "{name}");
    }
    let words = [
        ("required-partition", "RequiredPartition"),
        ("no-block-io", "NoBlockIOProtocol"),
        ("legacy-bios-bootable", "LegacyBIOSBootable"),
        ("growfs", "59"),
        ("read-only", "60"),
        ("no-auto", "63"),
    ];
    agree("sgdisk", &["-o", "-n", "1:0:0", disk.path()]);
    for (ours, theirs) in words {
        agree("sfdisk", &["-q", "--part-attrs", disk.path(), "1", theirs]);
        let attributes = gpt::read(&*disk).unwrap().table.partition(1).unwrap().attributes;
        assert_eq!(
            (attribute::by_name(ours), attribute::names_of(attributes)),
            (Some(attributes), vec![ours])
        );
    }
}

#[test]
fn the_kernel_takes_the_partitions_and_libblkid_names_them() {
    for block in [512, 4096] {
        let (image, table) = three(block);
        let disk = Loop::new(&image.path, block);
        agree("partx", &["-a", &disk.0]);
        let name = disk.0.trim_start_matches("/dev/");
        let sectors = u64::from(block) / 512;
        let said = agree("partx", &["-r", "-g", "-o", "NR,TYPE,UUID,NAME", &disk.0]);
        for p in &table.partitions {
            let of = |what: &str| {
                let path = format!("/sys/block/{name}/{name}p{}/{what}", p.number);
                std::fs::read_to_string(&path)
                    .unwrap_or_else(|e| panic!("{path}: {e}"))
                    .trim()
                    .parse::<u64>()
                    .unwrap()
            };
            let blocks = p.ending_lba - p.starting_lba + 1;
            assert_eq!((of("start"), of("size")), (p.starting_lba * sectors, blocks * sectors));
            let line =
                format!("{} {} {} {}", p.number, p.type_guid, p.unique_guid, p.name.replace(' ', "\\x20"));
            assert!(said.contains(&line), "{line}: {said}");
        }
        agree("partx", &["-d", &disk.0]);
        let whole = agree("blkid", &["-p", "-o", "export", &disk.0]);
        assert!(whole.contains("PTTYPE=gpt") && whole.contains(&table.disk_guid.to_string()), "{whole}");
    }
}

#[test]
fn identities_never_change() {
    // Version 5 by RFC 9562, as Python's uuid5 makes it.
    assert_eq!(identity::derive("job", "disk").to_string(), "f16327ef-2a9a-53c0-877e-ed42c8eb990b");
    assert_eq!(identity::derive_signature("job", "disk"), identity::derive("job", "disk").as_fields().0);
    assert_ne!(identity::derive("job", "partition/1"), identity::derive("job", "partition/2"));
}

/// A generator of its own: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn random_edit(
    table: &mut PartitionTable,
    random: &mut Random,
    alignment: Alignment,
    seed: u64,
) -> uvm_disk::Result<()> {
    let blocks = 1 + random.below(table.last_usable_lba / 4);
    let number = match table.partitions.len() as u64 {
        0 => 1,
        count => table.partitions[random.below(count) as usize].number,
    };
    match random.below(8) {
        0..=2 => {
            let place = [Place::FirstFit, Place::LargestGap, Place::At(random.below(table.last_usable_lba))];
            let number = (random.below(2) == 0).then(|| 1 + random.below(140) as u32);
            let blocks = (random.below(4) != 0).then_some(blocks);
            table.add(new(number, place[random.below(3) as usize], blocks, seed), alignment).map(drop)
        }
        3 => table.delete(number).map(drop),
        4 | 5 => table.resize(number, blocks),
        6 => table.set_name(number, &"ß𝄞".repeat(random.below(15) as usize)),
        _ => table.set_attributes(number, 1 << random.below(64), 1 << random.below(64)),
    }
}

/// Random edits of random disks. sgdisk sees each disk at its end, and after it grew.
fn churn(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let block = [512, 4096][random.below(2) as usize];
        let size = ((1 << 20) + random.below(200 << 20)) / u64::from(block) * u64::from(block);
        let image = Image::new(size, block);
        let geometry = image.geometry();
        let alignment = Alignment::new(&geometry, u64::from(block) << random.below(9)).unwrap();
        let guid = identity::derive("churn", &seed.to_string());
        let mut table = PartitionTable::new(&geometry, guid.into()).unwrap();
        gpt::write(&*image, &table).unwrap();
        let (mut done, mut refused) = (0, 0);
        for step in 0..30 {
            let before = table.clone();
            match random_edit(&mut table, &mut random, alignment, seed << 32 | step) {
                Ok(()) => {
                    gpt::update(&*image, &table).unwrap_or_else(|e| panic!("seed {seed}, step {step}: {e}"));
                    done += 1;
                }
                Err(_) => {
                    assert_eq!(table, before, "a refused edit changes nothing");
                    refused += 1;
                }
            }
            assert_eq!(gpt::read(&*image).unwrap().table, table, "seed {seed}, step {step}");
        }
        assert!(done > 0, "seed {seed}: {refused} edits were refused, none done");
        assert_eq!(gpt::verify(&*image).unwrap(), [], "seed {seed}");
        agrees_with_sfdisk(&table, &dump(&image, block).1);
        let larger = Image::new(size + u64::from(block) * random.below(5000), block);
        let mut bytes = vec![0; size as usize];
        image.read_at(0, &mut bytes).unwrap();
        larger.write_at(0, &bytes).unwrap();
        assert_eq!(gpt::grow(&*larger).unwrap().partitions, table.partitions);
        no_problems(&larger, block);
    }
}

#[test]
fn random_edits_of_random_disks() {
    churn(0..10);
}

#[test]
#[ignore = "slow"]
fn many_random_edits_of_random_disks() {
    churn(10..200);
}
