//! Probing, judged by blkid on what foreign tools made.
#![allow(clippy::unwrap_used)]

mod judge;

use judge::{Image, Loop, agree, agree_with};
use uvm_disk::probe::{OsRelease, TableKind, probe, read_os_release};
use uvm_disk::{BlockDevice, Memory};

/// What blkid says under `key`.
fn blkid(path: &str, key: &str) -> Option<String> {
    let text = agree("blkid", &["-p", "-o", "export", path]);
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(|v| v.replace('\\', "")))
}

fn same_as_blkid(image: &Image) {
    let fs = probe(image).unwrap().file_system.expect("a file system");
    assert_eq!(Some(fs.kind.to_owned()), blkid(image.path(), "TYPE"));
    assert_eq!(fs.label, blkid(image.path(), "LABEL"), "{}", fs.kind);
    assert_eq!(fs.uuid, blkid(image.path(), "UUID"), "{}", fs.kind);
}

#[test]
fn file_systems_are_named_as_blkid_does() {
    let makers: [(&str, &[&str]); 8] = [
        ("mkfs.ext4", &["-q", "-F", "-L", "a label"]),
        ("mkfs.ext3", &["-q", "-F"]),
        ("mkfs.ext2", &["-q", "-F", "-L", "two"]),
        ("mkfs.vfat", &["-n", "FATTY"]),
        ("mkfs.vfat", &["-F", "32"]),
        ("mkswap", &["-L", "swappy"]),
        ("mkfs.xfs", &["-q", "-f", "-L", "ex"]),
        ("mkfs.btrfs", &["-q", "-f", "-L", "butter"]),
    ];
    for (tool, args) in makers {
        let image = Image::new(512 << 20, 512);
        agree(tool, &[args, &[image.path()]].concat());
        same_as_blkid(&image);
    }
}

#[test]
fn swap_of_every_page_size_is_known_asleep_and_awake() {
    for page_size in [4096_u64, 8192, 16_384, 32_768, 65_536] {
        let image = Image::new(4 << 20, 512);
        agree("mkswap", &["-L", "swappy", "-p", &page_size.to_string(), image.path()]);
        same_as_blkid(&image);
        for signature in [b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001"] {
            image.write_at(page_size - 10, signature).unwrap();
            same_as_blkid(&image);
            let found = probe(&*image).unwrap().file_system.expect("what a sleeping machine needs to wake");
            assert_eq!(found.kind, "swsuspend");
            assert!(uvm_disk::swap::holds_sleeping_machine(&*image).unwrap());
        }
    }
}

#[test]
fn a_fat_volume_that_was_cut_off_is_not_nothing() {
    let image = Image::new(64 << 20, 512);
    agree("mkfs.vfat", &["-F", "32", image.path()]);
    let cut = Image::new(40 << 20, 512);
    let mut bytes = vec![0; 40 << 20];
    image.read_at(0, &mut bytes).unwrap();
    cut.write_at(0, &bytes).unwrap();
    same_as_blkid(&cut);
    // The table of a disk that was a FAT volume before counts.
    let mut entry = [0; 16];
    entry[4] = 0x83;
    entry[8..16].copy_from_slice(&[0, 8, 0, 0, 0, 8, 0, 0]);
    cut.write_at(446, &entry).unwrap();
    let found = probe(&*cut).unwrap();
    assert_eq!((found.table, found.file_system, found.partitions.len()), (TableKind::Mbr, None, 1));
    // In a partition it is named as well.
    bytes.truncate(1 << 20);
    cut.write_at(1 << 20, &bytes).unwrap();
    assert_eq!(probe(&*cut).unwrap().partitions[0].file_system.as_ref().unwrap().kind, "vfat");
}

/// md's superblock of version 1, which says where it lies.
fn raid_superblock(at: u64) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    bytes[..8].copy_from_slice(&[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]);
    bytes[16..32].fill(b'A');
    bytes[144..152].copy_from_slice(&(at / 512).to_le_bytes());
    let words = bytes.chunks_exact(4).map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())));
    let sum: u64 = words.sum();
    bytes[216..220].copy_from_slice(&((sum & 0xffff_ffff) as u32 + (sum >> 32) as u32).to_le_bytes());
    bytes
}

#[test]
fn what_is_not_read_here_is_not_nothing() {
    const SIZE: u64 = (16 << 20) + 1536;
    let before_end = ((SIZE / 512 - 16) & !7) * 512;
    let old = [0xfc, 0x4e, 0x2b, 0xa9, 0, 0, 0, 0, 90, 0, 0, 0].to_vec();
    let mut f2fs = vec![0; 32];
    f2fs[..20].copy_from_slice(&[0x10, 0x20, 0xf5, 0xf2, 1, 0, 14, 0, 0, 0, 0, 0, 9, 0, 0, 0, 12, 0, 0, 0]);
    let mut bcache = vec![0; 40];
    (bcache[8], bcache[16]) = (8, 1);
    bcache[24..].copy_from_slice(b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81");
    let contents = [
        (0, raid_superblock(0)),
        (4096, raid_superblock(4096)),
        (before_end, raid_superblock(before_end)),
        ((SIZE & !0xffff) - 65_536, old),
        (1024, f2fs),
        (4096, bcache),
        (0, b"\xebR\x90-FVE-FS-".to_vec()),
        (0, b"\0\0\0ReFS\0".to_vec()),
    ];
    for (at, bytes) in contents {
        let image = Image::new(SIZE, 512);
        image.write_at(at, &bytes).unwrap();
        let kind = probe(&*image).unwrap().file_system.map(|found| found.kind.to_owned());
        assert_eq!(kind, blkid(image.path(), "TYPE"), "at {at}");
        // A table with partitions is newer.
        image.write_at(446, &[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0]).unwrap();
        image.write_at(510, &[0x55, 0xaa]).unwrap();
        assert_eq!(probe(&*image).unwrap().table, TableKind::Mbr);
    }
    for uberblock in [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()] {
        let device = Memory::new(1 << 20, 4096);
        device.write_at((128 + 36) << 10, &uberblock).unwrap();
        assert_eq!(probe(&device).unwrap().file_system.unwrap().kind, "zfs_member");
    }
}

#[test]
fn mbr_with_logical_partitions() {
    let image = Image::new(64 << 20, 512);
    let script = image.path.with_extension("sfdisk");
    std::fs::write(&script, "label: dos\n2048,20480,83\n22528,,5\n24576,4096,82\n30720,4096,83\n").unwrap();
    let input = std::fs::File::open(&script).unwrap();
    let mut sfdisk = std::process::Command::new("/usr/sbin/sfdisk");
    assert!(sfdisk.args(["-q", image.path()]).stdin(input).status().unwrap().success());
    let found = probe(&*image).unwrap();
    assert_eq!(found.table, TableKind::Mbr);
    let extents: Vec<_> = found.partitions.iter().map(|p| (p.number, p.offset / 512, p.size / 512)).collect();
    assert_eq!(extents[0], (1, 2048, 20480));
    assert_eq!(extents[2..], [(5, 24576, 4096), (6, 30720, 4096)]);
    // There may be more behind a record that cannot be read.
    image.write_at(28672 * 512 + 510, &[0; 2]).unwrap();
    let found = probe(&*image).unwrap();
    assert_eq!(found.problems, ["the extended boot record at LBA 28672 has no signature"]);
}

/// The first and the last block of what is used, as far as the device is asked.
fn used(image: &Image) -> Vec<std::ops::Range<u64>> {
    let mut extents = Vec::new();
    let mut visit = |extent| {
        extents.push(extent);
        Ok(())
    };
    uvm_disk::usage::scan(image, &mut visit).unwrap();
    extents
}

#[test]
fn a_gpt_that_was_written_over_is_a_remainder() {
    for block in [512, 4096] {
        let mib = (1 << 20) / u64::from(block);
        let image = Image::new(64 << 20, block);
        agree("sgdisk", &["-n", "1:0:+4M", &Loop::new(&image.path, block).0]);
        assert_eq!(probe(&*image).unwrap().table, TableKind::Gpt);
        // Nothing but the protective MBR is missing: its creation was interrupted.
        image.write_at(0, &vec![0; block as usize]).unwrap();
        assert_eq!(probe(&*image).unwrap().table, TableKind::Gpt);

        // Both copies are still sound, and everybody reads the MBR.
        let script = format!("label: dos\nstart={},size={},type=83\n", 8 * mib, 32 * mib);
        let disk = Loop::new(&image.path, block);
        let args = ["-q", "--wipe", "never", "--no-reread", "--no-tell-kernel", &disk.0];
        agree_with("sfdisk", &args, &script);
        assert_eq!(blkid(&disk.0, "PTTYPE").as_deref(), Some("dos"));
        drop(disk);
        let found = probe(&*image).unwrap();
        assert_eq!((found.table, found.partitions.len()), (TableKind::Mbr, 1));
        assert!(found.problems[0].ends_with("the GPT is a remainder"), "{:?}", found.problems);
        assert!(used(&image).iter().any(|bytes| bytes.start <= 8 << 20 && bytes.end >= 40 << 20));

        // A file system over the beginning, whose end was left alone.
        let whole = Image::new(48 << 20, 512);
        agree("mkfs.ext4", &["-q", "-F", "-b", "4096", whole.path()]);
        image.write_at(0, &std::fs::read(&whole.path).unwrap()).unwrap();
        let found = probe(&*image).unwrap();
        assert_eq!((found.table, found.partitions.len()), (TableKind::None, 0));
        assert_eq!(found.file_system.map(|found| found.kind), Some("ext4"));
        assert_eq!(
            found.problems,
            ["LBA 0 is no protective MBR, the device holds ext4: the GPT is a remainder"]
        );
    }
}

#[test]
fn a_file_system_below_an_mbr_says_nothing_of_its_partitions() {
    let image = Image::new(64 << 20, 512);
    agree("mkfs.ext4", &["-q", "-F", image.path()]);
    let script = "label: dos\nstart=2048,size=65536,type=83\n";
    agree_with("sfdisk", &["-q", "--wipe", "never", image.path()], script);
    let found = probe(&*image).unwrap();
    assert_eq!(found.problems, ["LBA 0 is an MBR with partitions, and the device holds ext4"]);
    assert_eq!(used(&image), std::slice::from_ref(&(0..64 << 20)));
}

#[test]
fn a_file_system_has_all_that_it_must_not_lose() {
    // The tables of FAT take 32 MiB here, and NTFS has a copy of its boot sector in the last.
    for (tool, args) in [("mkfs.vfat", &["-F", "32", "-s", "1"][..]), ("mkntfs", &["-F", "-Q", "-q"])] {
        let image = Image::new(2 << 30, 512);
        agree(tool, &[args, &[image.path()]].concat());
        let found = probe(&*image).unwrap().file_system.unwrap();
        // mkfs.vfat leaves out what is no whole track.
        let left_out = (2u64 << 30).checked_sub(found.size.unwrap());
        assert!(left_out.is_some_and(|bytes| bytes < 64 << 10), "{tool}: {left_out:?}");
    }
}

#[test]
fn the_os_of_a_guest() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(tree.path().join("usr/lib")).unwrap();
    std::fs::create_dir_all(tree.path().join("etc")).unwrap();
    let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID='12'\n";
    std::fs::write(tree.path().join("usr/lib/os-release"), text).unwrap();
    std::os::unix::fs::symlink("../usr/lib/os-release", tree.path().join("etc/os-release")).unwrap();
    let image = Image::new(32 << 20, 512);
    agree("mkfs.ext4", &["-q", "-F", "-d", tree.path().to_str().unwrap(), image.path()]);
    let expected = OsRelease {
        pretty_name: Some("Debian GNU/Linux 12 (bookworm)".into()),
        id: Some("debian".into()),
        version_id: Some("12".into()),
    };
    assert_eq!(read_os_release(image.clone()), Some(expected));
    assert_eq!(read_os_release(Image::new(1 << 20, 512)), None);
    // The reader would take as much memory as a link says it is long.
    std::fs::rename(tree.path().join("usr"), tree.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", tree.path().join("usr")).unwrap();
    let image = Image::new(32 << 20, 512);
    agree("mkfs.ext4", &["-q", "-F", "-d", tree.path().to_str().unwrap(), image.path()]);
    assert_eq!(read_os_release(image.clone()), None, "no link is followed");
}

#[test]
fn hostile_bytes_do_not_panic() {
    for seed in 0..200u8 {
        let disk = Memory::new(256 << 10, 512);
        let junk: Vec<u8> = (0..128usize << 10)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> (seed % 23)) as u8 ^ seed)
            .collect();
        disk.write_at(0, &junk).unwrap();
        for (at, magic) in [(0, &b"XFSB"[..]), (1080, b"\x53\xef"), (510, b"\x55\xaa"), (512, b"EFI PART")] {
            disk.write_at(at, magic).unwrap();
            let _ = probe(&disk).unwrap();
        }
    }
}
