//! NTFS volumes of ours in use by the kernel's ntfs3, and what ntfs-3g's tools say of them afterwards.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use uvm_disk::ntfs::{NtfsOptions, format, used_extents};
use uvm_disk::{BlockDevice, Geometry};
use uvm_tests::JudgeVm;

/// A sparse file as a device.
struct Image {
    file: File,
    geometry: Geometry,
}

impl Image {
    fn new(path: &Path, size: u64, block: u32) -> Self {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        file.set_len(size).unwrap();
        Self { file, geometry: Geometry { size, logical_block_size: block, physical_block_size: block } }
    }
}

impl BlockDevice for Image {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_at(offset, &vec![0; len as usize])
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs a judge, which has to be there and to agree.
fn agree(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool)
        .args(arguments)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap_or_else(|e| panic!("the judge {tool} is missing: {e}"));
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {said}");
    said.into_owned()
}

fn check(path: &Path) {
    let path = path.to_str().unwrap();
    for said in [agree("ntfsfix", &["-n", path]), agree("ntfsresize", &["--info", "--force", "-P", path])] {
        let words = ["rror", "orrupt", "ismatch", "nvalid", "ailed", "FAILED", "wrong"];
        assert!(!words.iter().any(|word| said.contains(word)), "{path}: {said}");
    }
}

/// Fills a mounted volume in `$1`: files of many sizes, a large one, a sparse one, deep directories, and thousands of
/// files of which half go again and others are renamed, twice; then prints checksums.
const CHURN: &str = r#"
churn() {
    cd $1
    mkdir -p a/b/c/d/e many kept "Größe ✓"
    dd if=/dev/urandom of=a/large bs=1024 count=6000 2>/dev/null
    for size in 0 1 511 512 700 4095 4096 4097 65535 65536 65537 300000; do
        head -c $size a/large >a/b/c/d/e/file-of-$size
    done
    dd if=a/large of="Größe ✓/sparse" bs=1024 count=10 seek=20000 2>/dev/null
    for round in 1 2; do
        i=0
        while [ $i -lt 1500 ]; do
            echo "$round $i" >many/file-number-$i-of-round-$round
            i=$((i + 1))
        done
        rm many/*[02468]-of-*
        mv many/*1-of-* kept/
        rm -f kept/*[5]1-of-*
    done
    mv many renamed
    cp -r a copied
    rm a/large
    cd /
}
sums() {
    (cd $1 && find . -type f -print0 | sort -z | xargs -0 md5sum && find . -type d | sort) >/tmp/sums
    md5sum </tmp/sums
}
"#;

fn script(volumes: usize) -> String {
    let mut script = CHURN.to_owned();
    for disk in ('a'..).take(volumes) {
        script += &format!(
            "mkdir /{disk}; mount -t ntfs3 /dev/vd{disk} /{disk}; churn /{disk}; before=$(sums /{disk}); umount /{disk}
             mount -t ntfs3 /dev/vd{disk} /{disk}; after=$(sums /{disk}); head -c 300000 /{disk}/copied/large >/tmp/head
             cmp /tmp/head /{disk}/copied/b/c/d/e/file-of-300000
             echo {disk} $(ls /{disk}/renamed | wc -l) $(ls /{disk}/kept | wc -l) $(wc -l </tmp/sums); umount /{disk}
             [ \"$before\" = \"$after\" ]\n"
        );
    }
    let left = ('a'..).nth(volumes).unwrap();
    script +=
        &format!("mkdir /{left}; mount -t ntfs3 /dev/vd{left} /{left}; echo left >/{left}/open; sync\n");
    script + "dmesg | grep -i ntfs || true\n"
}

/// What is in use, copied to a new file, is the same volume.
fn copy_and_compare(image: &Image, path: &Path) {
    let copy_path = path.with_extension("copy");
    let copy = Image::new(&copy_path, image.geometry.size, image.geometry.logical_block_size);
    let mut copy_extent = |extent: Range<u64>| {
        let mut bytes = vec![0; (extent.end - extent.start) as usize];
        image.read_at(extent.start, &mut bytes).unwrap();
        copy.write_at(extent.start, &bytes).unwrap();
        Ok(())
    };
    used_extents(image, &mut copy_extent).unwrap();
    check(&copy_path);
    let list = |path: &Path| agree("ntfsls", &["-R", "-l", "-a", "-s", path.to_str().unwrap()]);
    assert!(list(path) == list(&copy_path), "{}", path.display());
}

#[test]
fn the_kernel_fills_and_churns_what_we_formatted() {
    churn(&[(512, 512), (512, 4096), (512, 65_536), (4096, 4096), (4096, 65_536), (512, 4096)]);
}

#[test]
#[ignore = "takes minutes: every other size of clusters"]
fn the_kernel_fills_and_churns_every_cluster_size() {
    churn(&[(512, 1024), (512, 2048), (512, 8192), (512, 16_384), (512, 32_768), (512, 4096)]);
    churn(&[(4096, 8192), (4096, 16_384), (4096, 32_768), (4096, 4096)]);
}

/// All but the last of these pairs of sector and cluster sizes are unmounted at the end.
fn churn(kinds: &[(u32, u32)]) {
    const SIZE: u64 = 96 << 20;
    let dir = tempfile::tempdir().unwrap();
    let images: Vec<(PathBuf, u32, Image)> = (0..)
        .zip(kinds)
        .map(|(index, &(block, cluster_size))| {
            let path = dir.path().join(format!("disk{index}"));
            let image = Image::new(&path, SIZE, block);
            let options = NtfsOptions {
                cluster_size: Some(cluster_size),
                label: format!("Volume {index}"),
                serial: 77 + index,
                timestamp: 1_700_000_000,
                hidden_sectors: 0,
            };
            format(&image, &options).unwrap();
            (path, block, image)
        })
        .collect();
    let volumes = images.len() - 1;
    let machine = JudgeVm::new(images.iter().map(|(path, block, _)| (path.as_path(), *block)));
    let said = machine.run_script(&script(volumes)).unwrap();
    println!("{said}");
    let complaints = ["failed", "corrupt", "dirty", "unsafe", "error", "inconsistent"];
    assert!(!complaints.iter().any(|word| said.contains(word)), "{said}");
    for (disk, (path, _, image)) in ('a'..).zip(&images[..volumes]) {
        // Of each round's 1500: the even ones are gone, those that end in 1 went on, but for those in 51. Besides them
        // there are 26 files and 14 directories.
        assert!(said.contains(&format!("{disk} 1200 270 1510\n")), "{said}");
        check(path);
        copy_and_compare(image, path);
        let name = "/renamed/file-number-777-of-round-2";
        assert_eq!(agree("ntfscat", &[path.to_str().unwrap(), name]), "2 777\n");
    }
    // The last one is still mounted when the power goes, after a sync.
    let (path, _, left) = &images[volumes];
    check(path);
    copy_and_compare(left, path);
    assert_eq!(agree("ntfscat", &[path.to_str().unwrap(), "/open"]), "left\n");
}
