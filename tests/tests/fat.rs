//! FAT before the Linux kernel's vfat: what `uvm mkfs fat` filled from an archive is mounted, read, written to, and
//! judged again.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::image::sha256;
use support::{MIB, run, uvm};
use uvm_tests::JudgeVm;

/// Type, MiB and logical block size of each volume.
const VOLUMES: [(&str, u64, u32); 6] =
    [("12", 4, 512), ("12", 40, 4096), ("16", 40, 512), ("16", 90, 4096), ("32", 48, 512), ("32", 300, 4096)];

/// Mounts each disk, compares every name and every file with the lists that lie on it, and changes it; `DISKS` becomes
/// the letters of the disks. It says little: a serial line is slow, and not to be trusted with thousands of lines.
const SCRIPT: &str = r#"
mount_fat() { mount -t vfat -o utf8 /dev/vd$1 /mnt; }
for disk in DISKS; do
    mount_fat $disk
    cd /mnt
    find . | sort > /tmp/found
    cmp /tmp/found names
    sha256sum -c sums > /tmp/sums || { grep -v OK /tmp/sums; exit 1; }
    # Files come, move and go; the small volumes have room for all of them.
    mkdir churn
    for i in $(seq 1 300); do echo "contents $i" > "churn/A Long Name $i.txt"; done
    for i in $(seq 1 3 300); do rm "churn/A Long Name $i.txt"; done
    for i in $(seq 2 3 300); do mv "churn/A Long Name $i.txt" "moved $i"; done
    rm -r many
    for i in $(seq 2 3 300); do mv "moved $i" churn/; done
    dd if=/dev/zero of=churn/big bs=4096 count=100 2>/dev/null
    cd /
    umount /mnt
    mount_fat $disk
    [ "$(ls /mnt/churn | wc -l)" = 201 ] && [ "$(cat '/mnt/churn/moved 299')" = "contents 299" ]
    umount /mnt
    # The kernel saw no error: it would mount read-only, or mark the volume.
    ! dmesg | grep -i 'fat-fs.*\(error\|corrupt\|unmounted\)'
    echo "judged $disk"
done
"#;

/// Files for a volume, as a folder, with the lists of their names and digests.
fn files(folder: &Path) {
    let bytes = |len: usize| -> Vec<u8> { (0..len).map(|i| (i * 31 + i / 251) as u8).collect() };
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, len) in [
        ("EFI/BOOT/BOOTX64.EFI", 700_001),
        ("EFI/empty", 0),
        ("loader/entries/0123456789abcdef0123456789abcdef-6.1.0-18-amd64.conf", 4096),
        ("Größe/日本語 😀.txt", 5000),
        ("plus+comma, and more.tar.gz", 1),
        ("lower.txt", 2),
        ("UPPER.TXT", 3),
    ] {
        files.insert(name.to_owned(), bytes(len));
    }
    files.extend((0..400).map(|i| (format!("many/{} file {i}", "long ".repeat(i % 40)), bytes(i % 5))));
    let sums =
        files.iter().map(|(name, bytes)| format!("{}  ./{name}\n", sha256(bytes).replace("sha256:", "")));
    let sums: String = sums.collect();
    let dirs = [
        ".",
        "./EFI",
        "./EFI/BOOT",
        "./loader",
        "./loader/entries",
        "./Größe",
        "./many",
        "./names",
        "./sums",
    ];
    let mut names: Vec<String> = files.keys().map(|name| format!("./{name}")).collect();
    names.extend(dirs.map(str::to_owned));
    names.sort();
    files.insert("sums".to_owned(), sums.into_bytes());
    files.insert("names".to_owned(), (names.join("\n") + "\n").into_bytes());
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn volumes(work: &Path) -> Vec<(PathBuf, u32)> {
    let (folder, archive) = (work.join("files"), work.join("files.tar"));
    files(&folder);
    run("tar", &["-C", folder.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    let made = VOLUMES.map(|(bits, mib, block)| {
        let path = work.join(format!("fat{bits}-{block}"));
        let output = Command::new(uvm())
            .args(["mkfs", "fat", "--type", bits, "--label", "JUDGED", "--uuid", "1234-ABCD"])
            .args(["--size", &(mib * MIB).to_string(), "--logical-block-size", &block.to_string()])
            .arg("--from-tar")
            .args([&archive, &path])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (path, block)
    });
    made.into()
}

#[test]
fn the_kernel_reads_and_writes_fat() {
    let work = tempfile::tempdir().unwrap();
    let volumes = volumes(work.path());
    let letters: Vec<String> = ('a'..).take(volumes.len()).map(String::from).collect();
    let machine = JudgeVm::new(volumes.iter().map(|(path, block)| (path.as_path(), *block)));
    let said = machine.run_script(&SCRIPT.replace("DISKS", &letters.join(" "))).unwrap();
    assert_eq!(said.matches("judged ").count(), volumes.len(), "{said}");
    for (path, _) in &volumes {
        let verdict = run("fsck.fat", &["-n", "-v", path.to_str().unwrap()]);
        for bad in ["dirty", "differ", "wrong", "Free cluster", "Orphan", "Bad"] {
            assert!(!verdict.contains(bad), "{bad}: {verdict}");
        }
    }
}
