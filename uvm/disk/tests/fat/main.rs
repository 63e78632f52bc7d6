//! FAT before its judges: fsck.fat, mtools, blkid and mkfs.fat.
#![allow(clippy::unwrap_used)]

mod fault;
#[path = "../judge/mod.rs"]
mod judge;
mod model;
mod used;

use std::path::Path;
use std::sync::Arc;

use judge::{Image, agree};
use uvm_disk::fat::{FatBuilder, FatNode, FatOptions, FatReader, FatSummary, FatType};
use uvm_disk::{BlockDevice, ErrorKind, Geometry, Memory};

pub(crate) const CLOCK: u64 = 1_700_000_000;

pub(crate) fn content(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

pub(crate) fn options() -> FatOptions {
    FatOptions { label: "ESP".into(), volume_id: 0x1234_abcd, timestamp: CLOCK, ..Default::default() }
}

/// The directory of a path and the name in it; directories on the way are made.
pub(crate) fn place<'p>(builder: &mut FatBuilder, path: &'p str) -> (FatNode, &'p str) {
    let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut dir = builder.root();
    for part in parents.split('/').filter(|part| !part.is_empty()) {
        let found = builder.lookup(dir, part).unwrap().map(|(node, _)| node);
        dir = found.unwrap_or_else(|| builder.create_dir(dir, part, CLOCK).unwrap());
    }
    (dir, name)
}

pub(crate) fn put(builder: &mut FatBuilder, path: &str, bytes: &[u8]) -> FatNode {
    let (dir, name) = place(builder, path);
    builder.create_file(dir, name, bytes.len() as u64, &mut &*bytes, CLOCK).unwrap()
}

/// fsck.fat finds nothing to say; the clusters it counts in use, and in all.
pub(crate) fn clean(path: &Path) -> (u64, u64) {
    let verdict = agree("fsck.fat", &["-n", "-v", path.to_str().unwrap()]);
    for bad in ["dirty", "differ", "wrong", "Free cluster", "Orphan", "Bad", "not ", "Contains"] {
        assert!(!verdict.contains(bad), "{bad}: {verdict}");
    }
    let counts = verdict.lines().last().unwrap().rsplit(' ').find(|word| word.contains('/')).unwrap();
    let (used, all) = counts.split_once('/').unwrap();
    (used.parse().unwrap(), all.parse().unwrap())
}

/// What is in a volume: path and contents, none for a directory, by mcopy; sorted.
pub(crate) fn copied_out(path: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().to_str().unwrap();
    agree("mcopy", &["-s", "-n", "-i", path.to_str().unwrap(), "::*", target]);
    let mut found = Vec::new();
    let mut pending = vec![out.path().to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(out.path()).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                found.push((name, None));
                pending.push(path);
            } else {
                found.push((name, Some(std::fs::read(&path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

/// Stale bytes where tables and directories will be, and a file system that must not be found again.
fn soiled(size: u64, block: u32) -> Arc<Image> {
    let image = Image::new(size, block);
    for at in 0..(size >> 20).min(16) {
        image.write_at(at << 20, &vec![0xe7; 1 << 20]).unwrap();
    }
    image
}

#[test]
fn foreign_tools_read_what_was_built() {
    let cases = [
        (3, 512, FatType::Fat12),
        (20, 4096, FatType::Fat12),
        (64, 512, FatType::Fat16),
        (64, 4096, FatType::Fat16),
        (34, 512, FatType::Fat32),
        (300, 4096, FatType::Fat32),
    ];
    for (mib, block, fat_type) in cases {
        let image = soiled(mib << 20, block);
        let options = FatOptions { fat_type: Some(fat_type), ..options() };
        let mut builder = FatBuilder::new(image.clone(), options).unwrap();
        let mut expected = vec![("EMPTY".to_owned(), Some(Vec::new())), ("hollow".to_owned(), None)];
        let big = if mib == 3 { 350_001 } else { 3_500_001 };
        for (path, len) in [("EFI/BOOT/BOOTX64.EFI", big), ("EFI/a b c/Größe.conf", 12), ("lower.txt", 4096)]
        {
            expected.push((path.to_owned(), Some(content(len, path.len()))));
        }
        for i in 0..if mib == 3 { 100 } else { 1000 } {
            expected.push((format!("many/a rather long name number {i}.conf"), Some(content(i % 7, i))));
        }
        for (path, bytes) in &expected {
            match bytes {
                Some(bytes) => drop(put(&mut builder, path, bytes)),
                None => drop(builder.create_dir(builder.root(), path, CLOCK).unwrap()),
            }
        }
        let summary = builder.finish().unwrap();
        assert_eq!(summary.fat_type, fat_type);
        let (used, all) = clean(&image.path);
        assert_eq!(
            (u64::from(summary.clusters - summary.clusters_free), u64::from(summary.clusters)),
            (used, all)
        );
        let id = agree("blkid", &["-p", "-o", "export", image.path()]);
        let version = format!("VERSION={fat_type:?}\n").to_uppercase();
        assert!(
            id.contains("LABEL=ESP\n") && id.contains("UUID=1234-ABCD\n") && id.contains(&version),
            "{id}"
        );
        expected.extend(["EFI", "EFI/BOOT", "EFI/a b c", "many"].map(|path| (path.to_owned(), None)));
        expected.sort();
        assert!(copied_out(&image.path) == expected, "{fat_type:?} {block}");
        let reader = FatReader::open(&*image).unwrap();
        assert_eq!(reader.label().unwrap().as_deref(), Some("ESP"));
        let free = u64::from(summary.clusters_free) * u64::from(summary.cluster_size);
        assert_eq!(reader.free().unwrap(), free);
        assert_eq!(reader.list_dir("MANY").unwrap().len(), expected.len() - 9);
        assert!(reader.read_file("efi/Boot/bootx64.EFI", 16 << 20).unwrap() == content(big, 20));
    }
}

/// An empty volume, judged.
fn format(size: u64, block: u32, options: FatOptions) -> (Arc<Image>, FatSummary) {
    let image = Image::new(size, block);
    let summary = FatBuilder::new(image.clone(), options).unwrap().finish().unwrap();
    clean(&image.path);
    (image, summary)
}

#[test]
fn the_type_is_the_one_mkfs_fat_chooses() {
    let sizes_kib =
        [100, 1000, 4085, 8192, 16_384, 34_816, 131_072, 262_144, 500_000, 524_288, 1 << 20, 16 << 20];
    for (size, sector) in sizes_kib.into_iter().flat_map(|kib: u64| [(kib << 10, 512), (kib << 10, 4096)]) {
        // Three sectors of 4096 bytes may be left over; mkfs.fat leaves out more.
        let theirs = Image::new(size / 4096 * 4096, sector);
        agree("mkfs.fat", &["-S", &sector.to_string(), theirs.path()]);
        let theirs = FatReader::open(&*theirs).unwrap().fat_type();
        let (image, ours) = format(size / 4096 * 4096, sector, FatOptions::default());
        assert_eq!(ours.fat_type, theirs, "{size} in sectors of {sector}");
        let id = agree("blkid", &["-p", "-o", "export", image.path()]);
        assert!(id.contains("TYPE=vfat") && !id.contains("LABEL="), "{id}");
    }
}

#[test]
fn the_caller_has_it_his_way() {
    let with = |fat_type, cluster_size| FatOptions { fat_type, cluster_size, ..options() };
    for (mib, block, fat_type, cluster_size) in [
        (40, 512, FatType::Fat32, 512),
        (40, 512, FatType::Fat16, 1024),
        (40, 512, FatType::Fat12, 16 << 10),
        (300, 4096, FatType::Fat32, 4096),
        (300, 4096, FatType::Fat16, 32 << 10),
        (300, 512, FatType::Fat16, 64 << 10),
        (5000, 512, FatType::Fat32, 64 << 10),
    ] {
        let (_, summary) = format(mib << 20, block, with(Some(fat_type), Some(cluster_size)));
        assert_eq!((summary.fat_type, summary.cluster_size), (fat_type, cluster_size));
        let (_, summary) = format(mib << 20, block, with(None, Some(cluster_size)));
        assert_eq!(summary.cluster_size, cluster_size);
    }
    let one = FatOptions { fats: Some(1), root_entries: Some(100), hidden_sectors: 2048, ..options() };
    let (image, _) = format(40 << 20, 512, one);
    let info = agree("minfo", &["-i", image.path(), "::"]);
    for line in ["fats: 1", "max available root directory slots: 112", "hidden sectors: 2048"] {
        assert!(info.contains(line), "{line}: {info}");
    }
    // Sectors larger than the device's blocks.
    let (image, _) = format(40 << 20, 512, FatOptions { sector_size: Some(4096), ..options() });
    assert!(agree("minfo", &["-i", image.path(), "::"]).contains("sector size: 4096 bytes"));
}

/// Takes no room for zeroes: they are there already.
struct Empty {
    geometry: Geometry,
    image: Arc<Image>,
}

impl BlockDevice for Empty {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.image.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.image.write_at(offset, buf)
    }
    fn write_zeroes(&self, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn two_tebibytes_are_the_limit() {
    let make = |size, block| {
        let image = Image::new(size, block);
        let geometry = image.geometry();
        let builder = FatBuilder::new(Arc::new(Empty { geometry, image: image.clone() }), options());
        builder.map(|mut builder| {
            put(&mut builder, "file", b"x");
            (image, builder.finish().unwrap())
        })
    };
    for (size, block) in [(2 << 40, 512), (8 << 40, 4096)] {
        let (image, summary) = make(size, block).unwrap();
        assert_eq!((summary.fat_type, summary.cluster_size), (FatType::Fat32, 32 << 10));
        assert_eq!(agree("mtype", &["-i", image.path(), "::/file"]), "x");
        assert!(agree("blkid", &["-p", "-o", "export", image.path()]).contains("VERSION=FAT32\n"));
        assert!(u64::from(summary.clusters) * 32_768 > size / 1000 * 999);
    }
    assert_eq!(make((2 << 40) + 512, 512).err().unwrap().kind(), ErrorKind::Invalid);
}

#[test]
fn bad_requests_are_refused() {
    let refused = |size, block, options| {
        let image = soiled(size, block);
        let error = FatBuilder::new(image.clone(), options).err().unwrap().kind();
        let mut first = [0];
        image.read_at(0, &mut first).unwrap();
        assert_eq!(first, [0xe7], "nothing was written");
        error
    };
    let small = FatOptions { fat_type: Some(FatType::Fat32), ..options() };
    assert_eq!(refused(200 << 20, 4096, small), ErrorKind::NoSpace);
    for bad in [
        FatOptions { label: "far too long".into(), ..options() },
        FatOptions { label: "a/b".into(), ..options() },
        FatOptions { cluster_size: Some(3000), ..options() },
        FatOptions { cluster_size: Some(128 << 10), ..options() },
        FatOptions { cluster_size: Some(256), ..options() },
        FatOptions { sector_size: Some(8192), ..options() },
        FatOptions { fats: Some(3), ..options() },
        FatOptions { root_entries: Some(3), ..options() },
    ] {
        assert_eq!(refused(40 << 20, 512, bad.clone()), ErrorKind::Invalid, "{bad:?}");
    }
    assert_eq!(
        refused(40 << 20, 4096, FatOptions { sector_size: Some(512), ..options() }),
        ErrorKind::Invalid
    );

    let mut builder = FatBuilder::new(Image::new(34 << 20, 512), options()).unwrap();
    let root = builder.root();
    let mut put = |name: &str, size: u64, have: usize| {
        let made = builder.create_file(root, name, size, &mut &vec![1; have][..], 0);
        made.map(|_| ()).map_err(|e| e.kind())
    };
    assert_eq!(put("big", 40 << 20, 0), Err(ErrorKind::NoSpace));
    assert_eq!(put("huge", 1 << 32, 0), Err(ErrorKind::Invalid));
    for name in ["a:b", "", ".", "..", "dot.", "space ", "a\nb", "a/b", &"x".repeat(256), &"😀".repeat(128)]
    {
        assert_eq!(put(name, 1, 1), Err(ErrorKind::Invalid), "{name:?}");
    }
    assert_eq!(put("File", 1, 1), Ok(()));
    assert_eq!(put("fILE", 1, 1), Err(ErrorKind::Exists));
    assert_eq!(put("short", 10, 9), Err(ErrorKind::Source));
    // 33 MiB in all: what the failed ones took is free again.
    assert_eq!(put("most", 32 << 20, 32 << 20), Ok(()));
    builder.finish().unwrap();
}

#[test]
fn names_are_what_mtools_shows() {
    let names = [
        "UPPER.TXT",
        "lower.txt",
        "Mixed.Txt",
        "README",
        "no extension at all",
        "a.b.c.d",
        ".hidden",
        " leading",
        "plus+comma,semi;eq=[x].tar.gz",
        "LONGNA~1.TXT",
        "longname one.txt",
        "longname two.txt",
        "Größe",
        "日本語.txt",
        "emoji 😀 pair",
        "thirteen char",
        "exactly26 units in a name!",
        "~tilde",
        "x",
    ];
    let image = Image::new(40 << 20, 512);
    let mut builder = FatBuilder::new(image.clone(), options()).unwrap();
    let longest = "n".repeat(255);
    let all: Vec<&str> = names.into_iter().chain([longest.as_str()]).collect();
    for (index, name) in all.iter().enumerate() {
        put(&mut builder, &format!("dir/{name}"), &content(index, 7));
    }
    builder.finish().unwrap();
    clean(&image.path);
    // mtools knows no surrogate pairs.
    let mut expected: Vec<_> = (0..)
        .zip(&all)
        .map(|(i, name)| (format!("dir/{}", name.replace('😀', "__")), Some(content(i, 7))))
        .collect();
    expected.push(("dir".into(), None));
    expected.sort();
    assert_eq!(copied_out(&image.path), expected);
    let listing = agree("mdir", &["-a", "-i", image.path(), "::/dir"]);
    for line in
        ["LONGNA~1 TXT", "LONGNA~2 TXT", "LONGNA~3 TXT", "UPPER    TXT", "EXACTL~1    ", "PLUS_C~1 GZ "]
    {
        assert_eq!(listing.lines().filter(|l| l.starts_with(line)).count(), 1, "{line}: {listing}");
    }
    let shown =
        |name: &str| listing.lines().find(|line| line.ends_with(name)).map(|line| line[..12].to_owned());
    assert_eq!(shown("longname two.txt").as_deref(), Some("LONGNA~3 TXT"), "{listing}");
    let mut listed: Vec<_> =
        FatReader::open(&*image).unwrap().list_dir("dir").unwrap().into_iter().map(|e| e.name).collect();
    listed.sort();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    assert_eq!(listed, sorted);
}

#[test]
fn a_directory_holds_as_much_as_fat_counts() {
    let memory = Arc::new(Memory::new(64 << 20, 512));
    let mut builder =
        FatBuilder::new(memory, FatOptions { fat_type: Some(FatType::Fat32), ..options() }).unwrap();
    let dir = builder.create_dir(builder.root(), "d", CLOCK).unwrap();
    let most = (65_536 - 2) / 2;
    for i in 0..most {
        builder.create_file(dir, &format!("f{i}"), 0, &mut std::io::empty(), CLOCK).unwrap();
    }
    let more = builder.create_file(dir, "more", 0, &mut std::io::empty(), CLOCK);
    let more = more.unwrap_err();
    assert_eq!(more.kind(), ErrorKind::NoSpace);
    assert!(more.to_string().contains("65536 entries"), "{more}");
    builder.unlink(dir, "f9").unwrap();
    builder.create_file(dir, "more", 0, &mut std::io::empty(), CLOCK).unwrap();
    builder.finish().unwrap();
}
