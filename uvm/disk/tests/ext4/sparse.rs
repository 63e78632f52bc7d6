//! Sparse files: what is told to be a hole is never read, and never written.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use uvm_disk::ErrorKind;
use uvm_disk::ext4::{Ext4Builder, Ext4Options};

use crate::GIB;
use crate::device::{Image, attributes, options};

fn contents(length: u64) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8 + 1).collect()
}

#[test]
fn data_lies_where_it_was_said_to() {
    for (block_size, logical_block_size) in [(1024, 512), (4096, 4096)] {
        let image = Image::new(GIB, logical_block_size);
        let options = Ext4Options { block_size, ..options() };
        let mut builder = Ext4Builder::new(image.device.clone(), options).expect("new");
        let root = builder.root();
        let combed: Vec<Range<u64>> = (0..2000).map(|n| n * 9000 + 17..n * 9000 + 17 + n % 700).collect();
        let cases: [(u64, Vec<Range<u64>>); 7] = [
            (100 * GIB, vec![70 * GIB..70 * GIB + 5000, 100 * GIB - 1..100 * GIB]),
            (5 * GIB, vec![]),
            (1, std::iter::once(0..1).collect()),
            (12_345, vec![1..2, 4095..4097, 12_344..12_345]),
            (2000 * 9000, combed),
            (300_000, vec![0..100_000, 200_000..300_000]),
            (1 << 20, vec![5..5, 1 << 19..(1 << 19) + 1, 1 << 20..1 << 20]),
        ];
        for (index, (size, data)) in cases.iter().enumerate() {
            let stored = contents(data.iter().map(|range| range.end - range.start).sum());
            let name = format!("sparse{index}");
            let (name, mut stored) = (name.as_bytes(), &stored[..]);
            let file = builder.create_sparse_file(root, name, attributes(0o644), *size, data, &mut stored);
            let file = file.expect("room for its data");
            assert_eq!(builder.size(file).expect("in use"), *size);
            assert!(stored.is_empty());
        }
        builder.finish().expect("finished");
        let written: u64 =
            image.device.writes.lock().expect("no panic").iter().map(|(_, length)| length).sum();
        assert!(written < 32 << 20, "{written} bytes for files of 105 GiB");
        image.assert_clean();
        let mounted = image.mount();
        for (index, (size, data)) in cases.iter().enumerate() {
            let path = mounted.path().join(format!("sparse{index}"));
            let metadata = fs::metadata(&path).expect("is there");
            let blocks: u64 = data.iter().map(|d| (d.end - d.start).div_ceil(512) + 16).sum();
            assert!(metadata.len() == *size && metadata.blocks() <= blocks * 2 + 64, "{metadata:?}");
            let file = fs::File::open(&path).expect("opens");
            let mut expected = vec![0; (*size).min(20 << 20) as usize];
            let mut stored = contents(data.iter().map(|range| range.end - range.start).sum()).into_iter();
            for range in data {
                let bytes: Vec<u8> = stored.by_ref().take((range.end - range.start) as usize).collect();
                match expected.get_mut(range.start as usize..range.end as usize) {
                    Some(place) => place.copy_from_slice(&bytes),
                    None => {
                        let mut found = vec![0; bytes.len()];
                        file.read_exact_at(&mut found, range.start).expect("reads");
                        assert!(found == bytes, "file {index} at {range:?}");
                    }
                }
            }
            let mut found = vec![1; expected.len()];
            file.read_exact_at(&mut found, 0).expect("reads");
            assert!(found == expected, "file {index}");
        }
    }
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let image = Image::new(GIB, 512);
    let mut builder = Ext4Builder::new(image.device.clone(), options()).expect("new");
    let root = builder.root();
    for bounds in [&[(5, 3)][..], &[(0, 5), (4, 6)], &[(0, 101)], &[(200, 200)], &[(8, 9), (0, 1)]] {
        let data: Vec<Range<u64>> = bounds.iter().map(|(start, end)| *start..*end).collect();
        let made =
            builder.create_sparse_file(root, b"file", attributes(0o644), 100, &data, &mut std::io::repeat(1));
        assert_eq!(made.expect_err("refused").kind(), ErrorKind::Invalid, "{data:?}");
    }
    let data = 0..100;
    let data = std::slice::from_ref(&data);
    let short =
        builder.create_sparse_file(root, b"file", attributes(0o644), 100, data, &mut &contents(99)[..]);
    assert_eq!(short.expect_err("it ends early").kind(), ErrorKind::Source);
    builder.finish().expect("finished");
    image.assert_clean();
}
