//! `uvm partition` and the layouts of `provision`: tables and file systems judged by foreign tools, and what is kept
//! compared byte for byte. Needs root: what is kept is written through loop devices.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::{Command, Output};

use serde_json::{Value, json};
use support::image::{Layout, entry};
use support::judge::{LoopDevice, Mounted, Tree};
use support::*;
use uvm_api::{DiskState, ErrorCode, PartitionAction, Plan};

/// `uvm partition` on the disk.
fn partition(disk: &Disk, layout: &Value, more: &[&str]) -> Output {
    let path = disk.folder.path().join("layout.json");
    std::fs::write(&path, serde_json::to_vec_pretty(layout).unwrap()).unwrap();
    let mut command = Command::new(uvm());
    command.arg("partition").arg(&disk.path).arg("--layout").arg(path);
    command.args(["--logical-block-size", &disk.block.to_string()]).args(more).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.clone(), output.stderr.clone()].concat()).unwrap()
}

/// When the file was last written to, by anybody.
fn written(disk: &Disk) -> std::time::SystemTime {
    disk.path.metadata().unwrap().modified().unwrap()
}

fn divide(disk: &Disk, layout: &Value) {
    let output = partition(disk, layout, &["--id", "a-layout"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

fn dry_run(disk: &Disk, layout: &Value) -> Plan {
    let before = written(disk);
    let output = partition(disk, layout, &["--dry-run", "--json", "--id", "a-layout"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(written(disk), before, "a dry run wrote");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Refused with exactly this line, and nothing is written.
fn refused(disk: &Disk, layout: &Value, line: &str) {
    let before = written(disk);
    let output = partition(disk, layout, &["--id", "a-layout"]);
    let said = said(&output).replace(disk.path.to_str().unwrap(), "DISK");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.lines().any(|had| had == line), "expected:\n{line}\nsaid:\n{said}");
    assert_eq!(written(disk), before, "{line}");
}

fn blank(size: u64, block: u32) -> Disk {
    let disk = Disk::new(size, block);
    std::fs::File::options().write(true).truncate(true).open(&disk.path).unwrap().set_len(size).unwrap();
    disk
}

fn sfdisk(disk: &Disk) -> Value {
    let whole = LoopDevice::new(disk, 0, disk.size());
    serde_json::from_str::<Value>(&run("sfdisk", &["-J", &whole.path])).unwrap()["partitiontable"].clone()
}

/// Number, first block and blocks of each partition, as sfdisk reads them.
fn extents(disk: &Disk) -> Vec<(u64, u64, u64)> {
    let table = sfdisk(disk);
    let number = |node: &str| node.rsplit('p').next().unwrap().parse::<u64>().unwrap();
    let rows = table["partitions"].as_array().cloned().unwrap_or_default();
    rows.iter()
        .map(|row| {
            let field = |name: &str| row[name].as_u64().unwrap();
            (number(row["node"].as_str().unwrap()), field("start"), field("size"))
        })
        .collect()
}

fn sound_gpt(disk: &Disk) {
    let whole = LoopDevice::new(disk, 0, disk.size());
    let said = run("sgdisk", &["-v", &whole.path]);
    assert!(said.contains("No problems found"), "{said}");
}

/// The partition of that number as a device.
fn part(disk: &Disk, number: u64) -> LoopDevice {
    let (_, start, blocks) = extents(disk).into_iter().find(|row| row.0 == number).unwrap();
    LoopDevice::new(disk, start * u64::from(disk.block), blocks * u64::from(disk.block))
}

fn bytes(disk: &Disk, number: u64) -> Vec<u8> {
    let (_, start, blocks) = extents(disk).into_iter().find(|row| row.0 == number).unwrap();
    disk.read(start * u64::from(disk.block), blocks * u64::from(disk.block))
}

/// A partition mounted for writing.
fn mount_for_writing(disk: &Disk, number: u64) -> (LoopDevice, Mounted) {
    let (_, start, blocks) = extents(disk).into_iter().find(|row| row.0 == number).unwrap();
    let block = u64::from(disk.block);
    let device = LoopDevice::writable(disk, start * block, blocks * block);
    let mounted = device.mount_for_writing();
    (device, mounted)
}

#[test]
fn a_blank_disk_gets_a_table_and_file_systems() {
    let layout = |block: u32| {
        json!({"partitions": [
            {"label": "esp", "size_mib": 64, "filesystem": {"format": "vfat", "path": "/boot/efi"}},
            {"label": "swap", "size_mib": 16, "number": 14, "filesystem": {"format": "swap"}},
            {"label": "one", "weight": 1, "attributes": ["read-only"], "filesystem":
                {"format": "ext4", "block_size_bytes": block.max(1024), "bytes_per_inode": 8192, "reserved_percent": 1}},
            {"label": "two", "weight": 2, "size_max_mib": 150, "type_guid": "home", "filesystem": {"format": "ext3"}},
            {"label": "win", "size_mib": 8, "filesystem": {"format": "ntfs"}}
        ]})
    };
    for block in [512, 4096] {
        let layout = layout(block);
        let disk = blank(512 * MIB, block);
        let plan = dry_run(&disk, &layout);
        divide(&disk, &layout);
        sound_gpt(&disk);
        let mib = MIB / u64::from(block);
        let rows: Vec<_> = extents(&disk).iter().map(|row| (row.0, row.1 / mib, row.2 / mib)).collect();
        // 510 MiB; 150 for two, and what is left for one.
        assert_eq!(rows, [(1, 1, 64), (3, 81, 272), (4, 353, 150), (5, 503, 8), (14, 65, 16)]);
        let planned: Vec<_> = plan
            .partitions
            .iter()
            .map(|p| (u64::from(p.number), p.starting_lba / mib, p.size_bytes / MIB))
            .collect();
        assert_eq!(planned, [(1, 1, 64), (14, 65, 16), (3, 81, 272), (4, 353, 150), (5, 503, 8)]);
        assert!(plan.partitions.iter().all(|p| p.action == PartitionAction::Create));
        run("e2fsck", &["-fn", &part(&disk, 3).path]);
        run("e2fsck", &["-fn", &part(&disk, 4).path]);
        run("fsck.fat", &["-n", &part(&disk, 1).path]);
        run("swaplabel", &[&part(&disk, 14).path]);
        assert_eq!(run("blkid", &["-p", "-o", "value", "-s", "TYPE", &part(&disk, 5).path]).trim(), "ntfs");
        let one = run("dumpe2fs", &["-h", &part(&disk, 3).path]);
        assert!(one.contains(&format!("Block size:               {}\n", block.max(1024))), "{one}");
        let whole = LoopDevice::new(&disk, 0, disk.size());
        let info = run("sgdisk", &["-i3", &whole.path]);
        assert!(info.contains("Attribute flags: 1000000000000000"), "{info}");
        assert!(run("sgdisk", &["-i4", &whole.path]).contains("933AC7E1-2EB4-4F13-B844-0E14E2AEF915"));

        // What is as it should be stays, byte for byte, whatever job says so.
        let before = disk.digest();
        let again = dry_run(&disk, &layout);
        assert!(again.partitions.iter().all(|p| p.action == PartitionAction::Keep), "{again:#?}");
        assert_eq!(
            again.partitions[0].reason,
            "partition 1 \"esp\" has the label \"esp\" and is as it is wanted"
        );
        divide(&disk, &layout);
        assert_eq!(disk.digest(), before);
    }
}

#[test]
fn an_mbr_on_request() {
    let layout = json!({"table": "mbr", "wipe_table": true, "partitions": [
        {"size_mib": 32, "attributes": ["legacy-bios-bootable"], "filesystem": {"format": "vfat"}},
        {"filesystem": {"format": "ext4"}},
    ]});
    for block in [512, 4096] {
        let disk = Disk::new(200 * MIB, block);
        divide(&disk, &layout);
        let table = sfdisk(&disk);
        assert_eq!(table["label"], "dos");
        let types: Vec<_> =
            table["partitions"].as_array().unwrap().iter().map(|p| p["type"].clone()).collect();
        assert_eq!(types, ["c", "83"]);
        assert_eq!(table["partitions"][0]["bootable"], true);
        run("e2fsck", &["-fn", &part(&disk, 2).path]);
        run("fsck.fat", &["-n", &part(&disk, 1).path]);
        // One more in place; the others stay.
        let first = bytes(&disk, 1);
        let more = json!({"table": "mbr", "partitions": [
            {"number": 1}, {"number": 2, "wipe_partition_entry": true, "size_mib": 70}, {"number": 3}
        ]});
        divide(&disk, &more);
        let mib = MIB / u64::from(block);
        let rows: Vec<_> = extents(&disk).iter().map(|row| (row.0, row.1 / mib, row.2 / mib)).collect();
        assert_eq!(rows, [(1, 1, 32), (2, 33, 70), (3, 103, 97)]);
        assert!(bytes(&disk, 1) == first);
        let output = LoopDevice::new(&disk, 0, disk.size());
        run("sfdisk", &["--verify", &output.path]);
    }
}

#[test]
fn a_block_device_is_divided_as_a_file_is() {
    let layout = json!({"wipe_table": true, "partitions": [
        {"label": "boot", "size_mib": 64, "filesystem": {"format": "ext2"}},
        {"label": "data", "filesystem": {"format": "ext4"}},
    ]});
    for block in [512, 4096] {
        let file = Disk::new(200 * MIB, block);
        divide(&file, &layout);
        let disk = Disk::new(200 * MIB, block);
        let device = LoopDevice::writable(&disk, 0, disk.size());
        let path = disk.folder.path().join("layout.json");
        std::fs::write(&path, layout.to_string()).unwrap();
        let arguments = ["partition", &device.path, "--layout", path.to_str().unwrap(), "--id", "a-layout"];
        let output = Command::new(uvm()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        drop(device);
        assert_eq!(extents(&disk), extents(&file));
        assert!(disk.read(0, MIB) == file.read(0, MIB));
        run("e2fsck", &["-fn", &part(&disk, 1).path]);
        run("e2fsck", &["-fn", &part(&disk, 2).path]);
    }
}

/// A disk that sgdisk divided, with files on partition 5.
fn foreign(block: u32) -> Disk {
    let disk = blank(512 * MIB, block);
    let whole = LoopDevice::writable(&disk, 0, disk.size());
    let mib = MIB / u64::from(block);
    let extent =
        |number, first: u64, size: u64| format!("-n{number}:{}:{}", first * mib, (first + size) * mib - 1);
    run(
        "sgdisk",
        &[
            &extent(1, 1, 32),
            "-t1:ef00",
            "-c1:esp",
            &extent(5, 200, 100),
            "-c5:data",
            &extent(2, 33, 80),
            "-c2:old",
            &whole.path,
        ],
    );
    drop(whole);
    run(
        "mkfs.ext4",
        &[
            "-q",
            "-b",
            "4096",
            "-E",
            &format!("offset={}", 200 * MIB),
            "-L",
            "files",
            disk.path.to_str().unwrap(),
            "100m",
        ],
    );
    let (_device, mounted) = mount_for_writing(&disk, 5);
    std::fs::write(mounted.path.join("precious"), "keep me\n".repeat(10_000)).unwrap();
    disk
}

#[test]
fn what_others_made_is_kept_resized_and_replaced() {
    for block in [512, 4096] {
        let disk = foreign(block);
        let kept = bytes(&disk, 5);
        // The disk becomes larger, as disks of machines do.
        std::fs::File::options().write(true).open(&disk.path).unwrap().set_len(600 * MIB).unwrap();
        let layout = json!({"partitions": [
            {"label": "esp", "filesystem": {"format": "vfat", "wipe_filesystem": true}},
            {"label": "data", "resize": true, "filesystem": {"format": "ext4", "label": "files"}},
            {"label": "old", "should_exist": false, "wipe_partition_entry": true},
            {"label": "new", "size_mib": 150, "filesystem": {"format": "ext4"}}
        ]});
        let plan = dry_run(&disk, &layout);
        let rows: Vec<_> = plan.partitions.iter().map(|p| (p.number, p.action, p.reason.as_str())).collect();
        assert_eq!(
            rows,
            [
                (
                    1,
                    PartitionAction::Wipe,
                    "partition 1 \"esp\" has the label \"esp\"; its vfat is made anew: wipe_filesystem is true"
                ),
                (4, PartitionAction::Create, "no partition is \"new\""),
                (
                    5,
                    PartitionAction::Resize,
                    "partition 5 \"data\" has the label \"data\"; resize it from 100 MiB to 399 MiB"
                ),
                (
                    2,
                    PartitionAction::Delete,
                    "partition 2 \"old\" has the label \"old\"; should_exist is false"
                ),
            ]
        );
        let lost: Vec<&str> = plan.destroys.iter().map(|extent| extent.contents.as_str()).collect();
        assert_eq!(lost, ["partition 1: unknown contents", "partition 2: unknown contents", "unpartitioned"]);
        divide(&disk, &layout);
        sound_gpt(&disk);
        let mib = MIB / u64::from(block);
        let rows: Vec<_> = extents(&disk).iter().map(|row| (row.0, row.1 / mib, row.2 / mib)).collect();
        assert_eq!(rows, [(1, 1, 32), (4, 33, 150), (5, 200, 399)]);
        assert!(bytes(&disk, 5)[..kept.len()] == kept, "a kept partition was written to");
        run("e2fsck", &["-fn", &part(&disk, 4).path]);
        run("fsck.fat", &["-n", &part(&disk, 1).path]);
        let data = part(&disk, 5);
        let mounted = data.mount();
        assert_eq!(
            std::fs::read(mounted.path.join("precious")).unwrap(),
            "keep me\n".repeat(10_000).as_bytes()
        );
    }
}

#[test]
fn the_new_place_of_what_is_made_anew_is_lost_too() {
    let disk = foreign(512);
    let layout = json!({"partitions": [
        {"label": "esp"}, {"label": "data"},
        {"label": "old", "size_mib": 150, "wipe_partition_entry": true}
    ]});
    let plan = dry_run(&disk, &layout);
    let lost: Vec<_> = plan.destroys.iter().map(|lost| (lost.contents.as_str(), lost.starting_lba)).collect();
    let old = plan.partitions.iter().find(|planned| planned.label == "old").unwrap();
    assert_eq!(old.action, PartitionAction::Wipe);
    assert_eq!(lost[0].0, "partition 2: unknown contents");
    assert_eq!(lost[1..], [("unpartitioned", old.starting_lba)]);
}

#[test]
fn what_is_not_agreed_to_is_refused_in_one_line() {
    let disk = foreign(512);
    let keep = |label: &str| json!({"label": label});
    let cases = [
        (
            json!({"partitions": [keep("esp"), keep("old")]}),
            "uvm: device changed: the disk holds partition 5 \"data\" (ext4, 100 MiB), which the layout does not mention: mention \
             it to keep it, say should_exist: false and wipe_partition_entry: true to delete it, or wipe_table: true to \
             replace the whole disk",
        ),
        (
            json!({"partitions": [keep("esp"), keep("old"), {"label": "data", "size_mib": 50}]}),
            "uvm: device changed: partition 5 \"data\" (ext4, 100 MiB) has the label \"data\", but it has 100 MiB, not 50 MiB; say \
             wipe_partition_entry: true to make it anew, or resize: true where only the size differs",
        ),
        (
            json!({"partitions": [keep("esp"), keep("old"), {"label": "data", "size_mib": 50, "resize": true}]}),
            "uvm: device changed: partition 5 \"data\" (ext4, 100 MiB) cannot become 50 MiB: the file system on it has 100 MiB; \
             shrink that first",
        ),
        (
            json!({"partitions": [keep("esp"), keep("old"), {"label": "data", "filesystem": {"format": "vfat"}}]}),
            "uvm: device changed: partition 5 \"data\" (ext4, 100 MiB) has the label \"data\", but there is a ext4 on it, not a \
             vfat; say wipe_filesystem: true",
        ),
        (
            json!({"table": "mbr", "partitions": []}),
            "uvm: device changed: the disk has a GPT, the layout wants an MBR; say wipe_table: true to replace the whole disk",
        ),
        (
            json!({"partitions": [keep("esp"), keep("old"), keep("data"), {"label": "huge", "size_mib": 300}]}),
            "uvm: device too small: the partitions need at least 300 MiB, the disk has 298 MiB in gaps of 87 MiB, 211 MiB for \
             them: \"huge\" 300 MiB",
        ),
        (json!({"partitions": [{"label": "x", "sizeMiB": 3}]}), ""),
    ];
    for (layout, line) in cases {
        if line.is_empty() {
            let output = partition(&disk, &layout, &[]);
            assert!(said(&output).contains("unknown field `sizeMiB`"), "{}", said(&output));
            assert_eq!(output.status.code(), Some(2));
        } else {
            refused(&disk, &layout, line);
        }
    }
    let unknown = Disk::new(64 * MIB, 512);
    refused(
        &unknown,
        &json!({"partitions": [{}]}),
        "uvm: device changed: the disk has no partition table, and its first or last MiB holds something unknown; say wipe_table: \
         true to replace the whole disk",
    );
    run("mkfs.ext4", &["-q", "-F", unknown.path.to_str().unwrap()]);
    refused(
        &unknown,
        &json!({"partitions": [{}]}),
        "uvm: device changed: the disk holds a ext4 and no partition table; say wipe_table: true to replace the whole disk",
    );
}

/// A machine with a data partition that outlives it.
fn machine(id: &str, layout: &Layout) -> Value {
    let mut job = provision(id, &layout.url(), &layout.manifest);
    job["disk"] = json!({"wipe_table": false, "partitions": [
        {"label": "esp", "size_mib": 64, "filesystem": {"format": "vfat", "path": "/boot/efi", "wipe_filesystem": true}},
        {"label": "root", "filesystem": {"format": "ext4", "path": "/", "wipe_filesystem": true}},
        {"label": "data", "size_mib": 64, "filesystem": {"format": "ext4", "path": "/srv/data"}},
        {"label": "share", "size_mib": 8, "filesystem": {"format": "vfat", "path": "/srv/share"}},
    ]});
    job
}

fn number_of(planned: &Value, label: &str) -> u64 {
    let partitions = planned["partitions"].as_array().unwrap();
    partitions.iter().find(|p| p["label"] == label).unwrap()["number"].as_u64().unwrap()
}

#[test]
fn a_machine_is_made_anew_around_its_data() {
    let old = Layout::with_entries(&[entry("etc/motd", b'0', "", b"the first\n")]);
    let new = Layout::with_entries(&[entry("etc/motd", b'0', "", b"the second\n")]);
    for block in [512, 4096] {
        let disk = blank(400 * MIB, block);
        let job = machine("first", &old);
        let (status, planned) = plan(&job, &disk);
        assert_eq!(status, 0, "{planned}");
        apply(&job, &disk).result();
        let data = number_of(&planned, "data");
        {
            let (_device, mounted) = mount_for_writing(&disk, data);
            std::fs::write(mounted.path.join("precious"), "keep me\n".repeat(10_000)).unwrap();
        }
        let kept = (bytes(&disk, data), bytes(&disk, number_of(&planned, "share")));

        // Half a machine is none, and the data are there.
        let broken = Layout::with_entries(&[entry("../escape", b'0', "", b"x")]);
        apply(&machine("broken", &broken), &disk).failed(
            ErrorCode::UnsafePath,
            DiskState::PartialUnbootable,
            "layers",
        );
        sound_gpt(&disk);
        assert_eq!(extents(&disk).iter().map(|row| row.0).collect::<Vec<_>>(), [3, 4]);
        assert!(bytes(&disk, data) == kept.0);

        let job = machine("second", &new);
        let (_, planned) = plan(&job, &disk);
        let actions: Vec<_> =
            planned["partitions"].as_array().unwrap().iter().map(|p| p["action"].clone()).collect();
        assert_eq!(actions, ["create", "create", "keep", "keep"]);
        apply(&job, &disk).result();
        sound_gpt(&disk);
        // And once more, over a whole machine.
        let (_, planned) = plan(&job, &disk);
        let reasons: Vec<_> = planned["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| format!("{}: {}", p["action"].as_str().unwrap(), p["reason"].as_str().unwrap()))
            .collect();
        assert_eq!(
            reasons,
            [
                "wipe: partition 1 \"esp\" has the label \"esp\"; its vfat is made anew: wipe_filesystem is true",
                "wipe: partition 2 \"root\" has the label \"root\"; its ext4 is made anew: wipe_filesystem is true",
                "keep: partition 3 \"data\" has the label \"data\" and is as it is wanted",
                "keep: partition 4 \"share\" has the label \"share\" and is as it is wanted",
            ]
        );
        let mut job = machine("third", &new);
        job["plan_hash"] = plan(&job, &disk).1["plan_hash"].clone();
        apply(&job, &disk).result();
        sound_gpt(&disk);
        assert!((bytes(&disk, 3), bytes(&disk, 4)) == kept, "what is kept was written to");
        run("e2fsck", &["-fn", &part(&disk, 2).path]);
        run("e2fsck", &["-fn", &part(&disk, 3).path]);
        let uuid = |number| run("blkid", &["-p", "-s", "UUID", "-o", "value", &part(&disk, number).path]);
        let (data_uuid, share_uuid) = (uuid(3), uuid(4));
        let root = part(&disk, 2);
        let mounted = root.mount();
        let tree = Tree::read(&mounted.path);
        assert!(tree.contains_key("srv/data") && tree.contains_key("srv/share"));
        assert_eq!(std::fs::read_to_string(mounted.path.join("etc/motd")).unwrap(), "the second\n");
        let fstab = std::fs::read_to_string(mounted.path.join("etc/fstab")).unwrap();
        assert!(fstab.contains(&format!("UUID={} /srv/data ext4 ", data_uuid.trim())), "{fstab}");
        assert!(fstab.contains(&format!("UUID={} /srv/share vfat ", share_uuid.trim())), "{fstab}");
    }
}

#[test]
fn the_layout_that_people_read_is_one() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let layouts: Vec<&str> = readme
        .split("```json\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .filter(|block| block.contains("wipe_table"))
        .collect();
    assert_eq!(layouts.len(), 1);
    let mut job = machine("readme", &Layout::with_entries(&[]));
    job["disk"] = serde_json::from_str(layouts[0]).unwrap();
    let disk = blank(60 << 30, 512);
    let (status, planned) = plan(&job, &disk);
    assert_eq!(status, 0, "{planned}");
    let mib: Vec<u64> = planned["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|partition| partition["size_bytes"].as_u64().unwrap() / MIB)
        .collect();
    // 61438 MiB: what the two fixed ones leave, three to one.
    assert_eq!(mib, [512, 38015, 12671, 10240]);
}
