use super::*;
use uvm_api::{FileSystemSpec, PartitionSpec};

fn geometry(size: u64, logical_block_size: u32) -> Geometry {
    Geometry { size, logical_block_size, physical_block_size: 4096 }
}

fn machine(specs: &[PartitionSpec], geometry: &Geometry, job_id: &str) -> Result<Layout, JobError> {
    let disk = DiskSpec { partitions: specs.to_vec(), ..DiskSpec::default() };
    lay_out(&disk, Purpose::Machine, None, geometry, job_id)
}

/// A layout as people write it.
fn disk(text: &str) -> DiskSpec {
    serde_json::from_str(text).unwrap()
}

fn gpt(layout: &Layout) -> &PartitionTable {
    match &layout.table {
        Table::Gpt(table) => table,
        Table::Mbr(_) => panic!("an MBR"),
    }
}

#[test]
fn the_default_layout_fills_the_disk_on_both_block_sizes() {
    for block in [512, 4096] {
        let geometry = geometry(8 << 30, block);
        let layout = machine(&[], &geometry, "job").unwrap();
        gpt(&layout).validate(&geometry).unwrap();
        let placed = &layout.placed;
        assert_eq!(placed.len(), 3);
        assert_eq!(placed[0].offset, MIB);
        assert!(placed.windows(2).all(|w| w[0].offset + w[0].size == w[1].offset));
        let end = placed[2].offset + placed[2].size;
        assert!(geometry.size - end <= 2 * MIB);
        assert_eq!(gpt(&layout).partitions[0].starting_lba, MIB / u64::from(block));
        assert!(layout.edit.is_none() && placed.iter().all(|placed| placed.action == Action::Create));
    }
}

#[test]
fn the_same_job_gets_the_same_identities_and_another_gets_others() {
    let geometry = geometry(8 << 30, 512);
    let first = machine(&[], &geometry, "a").unwrap();
    assert_eq!(first, machine(&[], &geometry, "a").unwrap());
    assert_ne!(gpt(&first).disk_guid, gpt(&machine(&[], &geometry, "b").unwrap()).disk_guid);
    // What machines were made with keeps its identities in every version.
    assert_eq!(gpt(&first).partitions[0].unique_guid.to_string(), "d9fabf04-320f-56e0-8e01-edc6a13addb9");
}

#[test]
fn a_small_device_is_refused_with_the_numbers() {
    let error = machine(&[], &geometry(512 << 20, 512), "a").unwrap_err();
    assert_eq!(error.code, ErrorCode::DeviceTooSmall);
    assert_eq!(
        error.detail,
        "the partitions need at least 1088 MiB, the disk has 510 MiB for them: \"esp\" 512 MiB, \"swap\" 512 MiB, \
         \"root\" at least 64 MiB"
    );
}

#[test]
fn bad_layouts_are_refused() {
    let good = default_partitions();
    type Spoil = Box<dyn Fn(&mut Vec<PartitionSpec>)>;
    let cases: Vec<(&str, Spoil)> = vec![
        ("exactly one ext4", Box::new(|p| p[2].filesystem.path = Some("/srv".into()))),
        ("exactly one vfat", Box::new(|p| p[0].filesystem.path = None)),
        ("plain absolute", Box::new(|p| p[2].filesystem.path = Some("/a/../b".into()))),
        ("swap has no path", Box::new(|p| p[1].filesystem.path = Some("/x".into()))),
        ("type_guid", Box::new(|p| p[2].type_guid = Some("rooty".into()))),
        ("not a UUID", Box::new(|p| p[2].filesystem.uuid = Some("zz".into()))),
        ("at most 16 bytes", Box::new(|p| p[2].filesystem.label = Some("x".repeat(17)))),
        ("at most 11", Box::new(|p| p[0].filesystem.label = Some("esp".into()))),
        ("\"root\" has 3 MiB; a ext4 needs at least 64 MiB", Box::new(|p| p[2].size_mib = Some(3))),
        (
            "have the number 1: it is not unique",
            Box::new(|p| {
                p[0].number = Some(1);
                p[1].number = Some(1);
            }),
        ),
        ("this table has numbers from 1 to 128", Box::new(|p| p[1].number = Some(129))),
        ("numbers begin with 1", Box::new(|p| p[1].number = Some(0))),
        ("too long", Box::new(|p| p[1].label = "y".repeat(37))),
        ("has the fixed size_mib 512: say grow", Box::new(|p| p[1].weight = Some(2))),
        ("weight is 1000001, at most 1000000", Box::new(|p| p[2].weight = Some(1_000_001))),
        ("has size_max_mib 10, and at least 64 MiB", Box::new(|p| p[2].size_max_mib = Some(10))),
        ("guid \"x\" is not a GUID", Box::new(|p| p[2].guid = Some("x".into()))),
        (
            "another partition has the guid",
            Box::new(|p| {
                let guid = "11111111-2222-4333-8444-555555555555";
                p[1].guid = Some(guid.into());
                p[2].guid = Some(guid.into());
            }),
        ),
        (
            "there is no attribute \"shiny\" in this table",
            Box::new(|p| p[1].attributes = vec!["shiny".into()]),
        ),
        (
            "block_size_bytes 8192 does not fit: 1024, 2048 or 4096",
            Box::new(|p| {
                p[2].filesystem.block_size_bytes = Some(8192);
            }),
        ),
        ("a swap area has none", Box::new(|p| p[1].filesystem.block_size_bytes = Some(4096))),
        ("not of vfat", Box::new(|p| p[0].filesystem.reserved_percent = Some(1))),
        ("reserved_percent is from 0 to 50", Box::new(|p| p[2].filesystem.reserved_percent = Some(51))),
        (
            "without a file system has no label",
            Box::new(|p| {
                p[1].filesystem = FileSystemSpec { path: Some("/x".into()), ..FileSystemSpec::default() }
            }),
        ),
        ("start_mib is 17592186044416, at most", Box::new(|p| p[2].start_mib = Some(1 << 44))),
        ("size_mib is 17592186044416, at most", Box::new(|p| p[2].size_mib = Some(1 << 44))),
        ("wipe_table is missing", Box::new(|p| p[1].wipe_partition_entry = true)),
    ];
    for (expected, spoil) in cases {
        let mut specs = good.clone();
        spoil(&mut specs);
        let error = machine(&specs, &geometry(8 << 30, 512), "a").unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidRequest, "{expected}: {}", error.detail);
        assert!(error.detail.contains(expected), "{expected}: {}", error.detail);
    }
}

#[test]
fn the_rest_is_shared_by_weight_within_bounds() {
    let text = r#"{"partitions": [
        {"label": "boot", "size_mib": 100, "filesystem": {"format": "vfat"}},
        {"label": "one", "weight": 1000, "size_max_mib": 1000},
        {"label": "two", "weight": 2000, "size_min_mib": 200},
        {"label": "three", "size_mib": 300, "grow": true, "weight": 1000},
        {"label": "none", "weight": 0, "size_min_mib": 7}
    ]}"#;
    for block in [512, 4096] {
        let geometry = geometry(10 << 30, block);
        let layout = lay_out(&disk(text), Purpose::Partitions, None, &geometry, "job").unwrap();
        let sizes: Vec<u64> = layout.placed.iter().map(|placed| placed.size / MIB).collect();
        // 10240 MiB without the two ends leave 10238; 1131 after what is fixed and what has its maximum.
        assert_eq!(sizes, [100, 1000, 6087, 3044, 7]);
        assert_eq!(sizes.iter().sum::<u64>(), 10238);
        assert_eq!(gpt(&layout).partitions[4].name, "none");
    }
}

#[test]
fn a_place_an_alignment_attributes_and_identities_can_be_given() {
    let text = r#"{"alignment_mib": 4, "guid": "11111111-2222-4333-8444-555555555555", "partitions": [
        {"label": "late", "start_mib": 512, "size_mib": 100, "number": 7, "attributes": ["read-only", "no-auto"]},
        {"label": "early", "size_mib": 101, "guid": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"},
        {"label": "rest"}
    ]}"#;
    let geometry = geometry(1 << 30, 512);
    let layout = lay_out(&disk(text), Purpose::Partitions, None, &geometry, "job").unwrap();
    let table = gpt(&layout);
    assert_eq!(table.disk_guid.to_string(), "11111111-2222-4333-8444-555555555555");
    let of = |name: &str| table.partitions.iter().find(|p| p.name == name).unwrap();
    assert_eq!((of("late").number, of("late").starting_lba), (7, 512 * 2048));
    assert_eq!(of("late").attributes, 1 << 60 | 1 << 63);
    assert_eq!((of("early").starting_lba, of("early").ending_lba), (4 * 2048, 105 * 2048 - 1));
    assert_eq!(of("early").unique_guid.to_string(), "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee");
    // The larger gap, from the next multiple of the alignment to the last.
    assert_eq!((of("rest").starting_lba, of("rest").ending_lba), (612 * 2048, 1020 * 2048 - 1));
}

#[test]
fn an_mbr_has_four_partitions_and_ends_at_two_tebibytes() {
    let text = r#"{"table": "mbr", "partitions": [
        {"size_mib": 100, "type_guid": "0x83", "attributes": ["legacy-bios-bootable"]},
        {"size_mib": 100, "filesystem": {"format": "swap"}},
        {}
    ]}"#;
    let geometry = geometry(4 << 40, 512);
    let layout = lay_out(&disk(text), Purpose::Partitions, None, &geometry, "job").unwrap();
    let Table::Mbr(mbr) = &layout.table else { panic!("a GPT") };
    let kinds: Vec<(u8, bool)> = mbr.partitions.iter().map(|p| (p.kind, p.bootable)).collect();
    assert_eq!(kinds, [(0x83, true), (0x82, false), (0x83, false)]);
    assert_eq!(mbr.partitions[2].ending_lba(), (1 << 32) - 1);
    let five = format!(r#"{{"table": "mbr", "partitions": [{}]}}"#, [r#"{"size_mib": 1}"#; 5].join(","));
    let error = lay_out(&disk(&five), Purpose::Partitions, None, &geometry, "job").unwrap_err();
    assert_eq!(error.detail, "5 partitions: this table has room for 4");
}

#[test]
fn a_block_of_a_file_system_is_no_smaller_than_the_devices() {
    let text =
        r#"{"partitions": [{"label": "x", "filesystem": {"format": "ext4", "block_size_bytes": 1024}}]}"#;
    let plan = |block| lay_out(&disk(text), Purpose::Partitions, None, &geometry(1 << 30, block), "job");
    plan(512).unwrap();
    let error = plan(4096).unwrap_err();
    assert_eq!(
        (error.code, error.detail.as_str()),
        (
            ErrorCode::InvalidRequest,
            "partition \"x\": block_size_bytes 1024 does not fit: the device's blocks have 4096"
        )
    );
}

#[test]
fn a_file_system_gets_as_much_of_the_label_as_it_has_room_for() {
    let text = r#"{"partitions": [
        {"label": "größengrößengrößen", "size_mib": 64, "filesystem": {"format": "ext4"}},
        {"label": "efi.system-über", "size_mib": 64, "filesystem": {"format": "vfat"}}
    ]}"#;
    let layout = lay_out(&disk(text), Purpose::Partitions, None, &geometry(1 << 30, 512), "job").unwrap();
    let labels: Vec<&str> = layout.placed.iter().map(|placed| placed.label.as_str()).collect();
    assert_eq!(labels, ["größengrößen", "EFISYSTEM-B"]);
}

#[test]
fn a_file_system_that_cannot_be_made_is_refused_by_the_plan() {
    let plan = |format: &str, size| {
        let text = format!(r#"{{"partitions": [{{"label": "x", "filesystem": {format}}}]}}"#);
        lay_out(&disk(&text), Purpose::Partitions, None, &geometry(size, 512), "job").map_err(|e| e.detail)
    };
    for (format, size, refused) in [
        (r#"{"format": "vfat"}"#, 3 << 40, "partition \"x\": FAT on 6442446848 sectors of 512 bytes"),
        (r#"{"format": "vfat", "block_size_bytes": 512}"#, 1 << 40, "make no FAT volume"),
        (r#"{"format": "ext4"}"#, 17 << 40, "partition \"x\": ext4 is limited to 16 TiB"),
        (r#"{"format": "ext2", "block_size_bytes": 1024}"#, 5 << 40, "need the 64bit feature"),
        (r#"{"format": "ntfs", "block_size_bytes": 512}"#, 3 << 40, "partition \"x\": "),
    ] {
        let error = plan(format, size).unwrap_err();
        assert!(error.contains(refused), "{format}: {error}");
    }
    plan(r#"{"format": "vfat"}"#, 1 << 40).unwrap();
    plan(r#"{"format": "ext4"}"#, 15 << 40).unwrap();
}
