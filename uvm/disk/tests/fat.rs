//! FAT, judged by fsck.fat, mtools and blkid.
#![allow(clippy::unwrap_used)]

mod judge;

use judge::{Image, agree};
use uvm_disk::fat::{FatBuilder, FatOptions, FatReader, FatType};
use uvm_disk::{BlockDevice, ErrorKind};

fn content(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

fn options() -> FatOptions {
    FatOptions { label: "ESP".into(), volume_id: 0x1234_abcd, timestamp: 1_700_000_000, ..Default::default() }
}

/// What a volume gets: path and length; no length for a directory.
fn tree() -> Vec<(String, Option<usize>)> {
    let mut tree: Vec<(String, Option<usize>)> = vec![
        ("EFI".into(), None),
        ("EFI/BOOT".into(), None),
        ("EFI/BOOT/BOOTX64.EFI".into(), Some(3_500_001)),
        ("EFI/debian with spaces".into(), None),
        ("EFI/debian with spaces/vmlinuz-6.1.0-18-amd64".into(), Some(777)),
        ("EFI/debian with spaces/Größe.conf".into(), Some(12)),
        ("lower.txt".into(), Some(4096)),
        ("EMPTY".into(), Some(0)),
        ("many".into(), None),
    ];
    tree.extend((0..1000).map(|i| (format!("many/a rather long name number {i}.conf"), Some(i % 7))));
    tree.extend((0..100).map(|i| (format!("File in the root {i}"), Some(i))));
    tree
}

fn fill(builder: &mut FatBuilder, tree: &[(String, Option<usize>)]) {
    for (path, len) in tree {
        match len {
            None => builder.create_dir(path).unwrap(),
            Some(len) => {
                let bytes = content(*len, path.len());
                builder.create_file(path, *len as u32, &mut &bytes[..], 1_700_000_000).unwrap();
            }
        }
    }
}

#[test]
fn foreign_tools_read_what_was_built() {
    let cases = [(34, 512, None), (100, 512, None), (512, 512, None), (300, 4096, None)];
    let cases = cases.into_iter().chain([(64, 512, Some(FatType::Fat16)), (64, 4096, Some(FatType::Fat16))]);
    for (mib, block, fat_type) in cases {
        let image = Image::new(mib << 20, block);
        // Stale bytes where tables and directories will be.
        for at in 0..mib.min(16) {
            image.write_at(at << 20, &vec![0xe7; 1 << 20]).unwrap();
        }
        let mut builder = FatBuilder::new(image.clone(), FatOptions { fat_type, ..options() }).unwrap();
        let mut tree = tree();
        if fat_type.is_some() {
            tree.retain(|(path, _)| !path.starts_with("File"));
        }
        fill(&mut builder, &tree);
        let summary = builder.finish().unwrap();
        assert_eq!(summary.fat_type, fat_type.unwrap_or(FatType::Fat32));

        let verdict = agree("fsck.fat", &["-n", "-v", image.path()]);
        assert!(!verdict.to_lowercase().contains("dirty") && !verdict.contains("differ"), "{verdict}");
        assert!(!verdict.contains("wrong") && !verdict.contains("Free cluster"), "{verdict}");
        let id = agree("blkid", &["-p", "-o", "export", image.path()]);
        assert!(id.contains("LABEL=ESP\n") && id.contains("UUID=1234-ABCD\n"), "{id}");
        let listing = agree("mdir", &["-/", "-b", "-i", image.path(), "::/"]);
        let shown =
            |path: &str| listing.lines().any(|line| line.trim_end_matches('/') == format!("::/{path}"));
        for (path, _) in &tree {
            assert!(shown(path), "{path} in {listing}");
        }
        let out = tempfile::tempdir().unwrap();
        agree("mcopy", &["-s", "-i", image.path(), "::/EFI", "::/many", out.path().to_str().unwrap()]);
        let reader = FatReader::open(&*image).unwrap();
        assert_eq!(reader.label().unwrap().as_deref(), Some("ESP"));
        let free = u64::from(summary.clusters_free) * u64::from(summary.cluster_size);
        assert_eq!(reader.free().unwrap(), free);
        for (path, len) in tree.iter().filter_map(|(path, len)| len.map(|len| (path, len))) {
            let expected = content(len, path.len());
            // Each look-up reads the directory: a few of the many are enough.
            if !path.starts_with("many") || path.ends_with("00.conf") {
                assert!(reader.read_file(path, 16 << 20).unwrap() == expected, "{path}");
            }
            if path.contains('/') {
                assert!(std::fs::read(out.path().join(path)).unwrap() == expected, "{path} by mcopy");
            }
        }
    }
}

#[test]
fn bad_requests_are_refused() {
    let image = Image::new(34 << 20, 512);
    let mut builder = FatBuilder::new(image.clone(), options()).unwrap();
    let mut put = |path: &str, len: u32, have: usize| {
        builder.create_file(path, len, &mut &vec![1; have][..], 0).map_err(|e| e.kind())
    };
    assert_eq!(put("big", 40 << 20, 0), Err(ErrorKind::NoSpace));
    assert_eq!(put("none/there", 1, 1), Err(ErrorKind::NotFound));
    assert_eq!(put("a:b", 1, 1), Err(ErrorKind::Invalid));
    assert_eq!(put("File", 1, 1), Ok(()));
    assert_eq!(put("fILE", 1, 1), Err(ErrorKind::Exists));
    assert_eq!(put("short", 10, 9), Err(ErrorKind::Source));
    assert_eq!(builder.finish().unwrap_err().kind(), ErrorKind::Invalid);
    let small = FatBuilder::new(
        Image::new(200 << 20, 4096),
        FatOptions { fat_type: Some(FatType::Fat32), ..options() },
    );
    assert_eq!(small.err().unwrap().kind(), ErrorKind::NoSpace);
}
