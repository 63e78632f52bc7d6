//! Random trees and changes to them, against a map.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::judge::Image;
use super::{CLOCK, clean, content, copied_out, options, place, put};
use uvm_disk::fat::{FatBuilder, FatKind, FatOptions, FatReader, FatType, used_extents};
use uvm_disk::{ErrorKind, Memory};

/// xorshift64*.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }

    fn name(&mut self) -> String {
        const LETTERS: [&str; 16] =
            ["a", "B", "c", "D", "e", "f", "1", "2", "_", "-", "~", ".x", " y", "ß", "Ä", "日"];
        let len = if self.below(30) == 0 { 100 } else { 1 + self.below(14) };
        (0..len).map(|_| LETTERS[self.below(LETTERS.len())]).collect()
    }
}

type Model = BTreeMap<String, Option<Vec<u8>>>;

fn taken(model: &Model, path: &str) -> bool {
    // The letters of the names fold as ASCII and Ä do.
    let fold = |path: &str| path.to_ascii_lowercase().replace('Ä', "ä");
    model.keys().any(|key| fold(key) == fold(path))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn pick(model: &Model, random: &mut Random, dirs: bool) -> Option<String> {
    let keys: Vec<_> =
        model.iter().filter(|(_, bytes)| bytes.is_none() == dirs).map(|(key, _)| key).collect();
    (!keys.is_empty()).then(|| keys[random.below(keys.len())].clone())
}

/// One change, to both; the builder may say that it is full.
fn change(builder: &mut FatBuilder, model: &mut Model, random: &mut Random, largest: usize) {
    let dir =
        if random.below(3) == 0 { String::new() } else { pick(model, random, true).unwrap_or_default() };
    let path = join(&dir, &random.name());
    match random.below(10) {
        0..5 => {
            // A new file, or other contents for one.
            let path = if random.below(4) == 0 { pick(model, random, false).unwrap_or(path) } else { path };
            let bytes = content(random.below(largest), random.below(251));
            let (dir, name) = place(builder, &path);
            let made = builder.create_file(dir, name, bytes.len() as u64, &mut &bytes[..], CLOCK);
            match made.map_err(|error| error.kind()) {
                Ok(_) => drop(model.insert(path, Some(bytes))),
                Err(ErrorKind::Exists) => assert!(taken(model, &path), "{path}"),
                Err(kind) => assert_eq!(kind, ErrorKind::NoSpace),
            }
        }
        5 => {
            let (parent, name) = place(builder, &path);
            match builder.create_dir(parent, name, CLOCK).map_err(|error| error.kind()) {
                Ok(_) => drop(model.insert(path, None)),
                Err(ErrorKind::Exists) => assert!(taken(model, &path), "{path}"),
                Err(kind) => assert_eq!(kind, ErrorKind::NoSpace),
            }
        }
        6 | 7 => {
            let Some(path) = pick(model, random, random.0.is_multiple_of(5)) else { return };
            let (dir, name) = place(builder, &path);
            let beneath = format!("{path}/");
            let full = model.keys().any(|key| key.starts_with(&beneath));
            assert_eq!(builder.unlink(dir, name).is_ok(), !full);
            if !full {
                model.remove(&path);
            }
        }
        _ => {
            let Some(from) = pick(model, random, random.0.is_multiple_of(3)) else { return };
            if path.starts_with(&format!("{from}/")) || taken(model, &path) {
                return;
            }
            let (from_dir, from_name) = place(builder, &from);
            let (to_dir, to_name) = place(builder, &path);
            if let Err(error) = builder.rename(from_dir, from_name, to_dir, to_name) {
                assert_eq!(error.kind(), ErrorKind::NoSpace);
                return;
            }
            let moved: Vec<_> = model
                .keys()
                .filter(|key| **key == from || key.starts_with(&format!("{from}/")))
                .cloned()
                .collect();
            for key in moved {
                let value = model.remove(&key).unwrap();
                model.insert(format!("{path}{}", &key[from.len()..]), value);
            }
        }
    }
}

fn live(seed: u64, size: u64, block: u32, fat_type: FatType, changes: usize, largest: usize) {
    let image = Image::new(size, block);
    let options = FatOptions { fat_type: Some(fat_type), ..options() };
    let mut builder = FatBuilder::new(image.clone(), options).unwrap();
    let (mut model, mut random) = (Model::new(), Random(seed));
    for _ in 0..changes {
        change(&mut builder, &mut model, &mut random, largest);
        if let Some(path) = pick(&model, &mut random, false) {
            let (dir, name) = place(&mut builder, &path);
            let (node, _) = builder.lookup(dir, name).unwrap().unwrap();
            let bytes = model[&path].as_ref().unwrap();
            assert_eq!(builder.kind(node).unwrap(), FatKind::File { size: bytes.len() as u32 });
            let at = random.below(bytes.len() + 1);
            let mut buffer = vec![0; random.below(9000)];
            let got = builder.read_at(node, at as u64, &mut buffer).unwrap();
            assert!(buffer[..got] == bytes[at..bytes.len().min(at + buffer.len())], "{path} from {at}");
        }
    }
    let summary = builder.finish().unwrap();
    let (used, all) = clean(&image.path);
    assert_eq!(
        (u64::from(summary.clusters - summary.clusters_free), u64::from(summary.clusters)),
        (used, all)
    );
    let expected: Vec<_> = model.into_iter().collect();
    assert!(copied_out(&image.path) == expected, "seed {seed}");
    let reader = FatReader::open(&*image).unwrap();
    for (path, bytes) in expected {
        match bytes {
            Some(bytes) => assert!(reader.read_file(&path, 1 << 30).unwrap() == bytes, "{path}"),
            None => drop(reader.list_dir(&path).unwrap()),
        }
    }
    assert!(used_extents(&*image, &mut |_| Ok(())).unwrap().used > used * u64::from(summary.cluster_size));
}

#[test]
fn random_trees_survive_random_changes() {
    let mut seed = 0x5eed;
    for (mib, block, fat_type, largest) in [
        (2, 512, FatType::Fat12, 60_000),
        (32, 4096, FatType::Fat12, 900_000),
        (12, 512, FatType::Fat16, 400_000),
        (80, 4096, FatType::Fat16, 900_000),
        (34, 512, FatType::Fat32, 900_000),
        (280, 4096, FatType::Fat32, 900_000),
    ] {
        for _ in 0..2 {
            seed += 1;
            live(seed, mib << 20, block, fat_type, 150, largest);
        }
    }
}

#[test]
#[ignore = "the long run of random_trees_survive_random_changes: forty seconds"]
fn many_random_trees_survive_random_changes() {
    for seed in 1..30 {
        let (mib, block, fat_type) = [
            (1, 512, FatType::Fat12),
            (32, 4096, FatType::Fat12),
            (12, 512, FatType::Fat16),
            (80, 4096, FatType::Fat16),
            (34, 512, FatType::Fat32),
            (280, 4096, FatType::Fat32),
        ][seed as usize % 6];
        let largest = ((mib << 20) as usize / 20).min(1_000_000);
        live(seed * 7919, mib << 20, block, fat_type, 500, largest);
    }
}

#[test]
fn the_same_calls_write_the_same_bytes() {
    let make = || {
        let memory = Arc::new(Memory::new(12 << 20, 512));
        let options = FatOptions { fat_type: Some(FatType::Fat16), ..options() };
        let mut builder = FatBuilder::new(memory.clone(), options).unwrap();
        let (mut model, mut random) = (Model::new(), Random(99));
        (0..200).for_each(|_| change(&mut builder, &mut model, &mut random, 200_000));
        builder.finish().unwrap();
        memory.contents()
    };
    assert!(make() == make());
}

#[test]
fn contents_are_in_one_piece() {
    let image = Image::new(64 << 20, 512);
    let mut builder = FatBuilder::new(image.clone(), options()).unwrap();
    for i in 0..50 {
        put(&mut builder, &format!("dir/file {i}"), &content(100_000 + i, i));
    }
    let (dir, _) = place(&mut builder, "dir/x");
    (0..50).step_by(2).for_each(|i| builder.unlink(dir, &format!("file {i}")).unwrap());
    put(&mut builder, "large", &content(3_000_000, 1));
    builder.finish().unwrap();
    let shown = super::agree("mshowfat", &["-i", image.path(), "::/large", "::/dir/file 1"]);
    for line in shown.lines() {
        assert_eq!(line.matches('<').count(), 1, "one range of clusters: {shown}");
    }
}
