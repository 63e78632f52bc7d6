//! A mounted ext file system, grown by the kernel because `uvm resize` asks it to.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{MIB, run, uvm};
use uvm_tests::JudgeVm;

/// The last disk is the program. Each other one is mounted, grown, filled past what it was before, and refused to become
/// smaller.
const SCRIPT: &str = r#"
cat /dev/vdPROGRAM > /tmp/uvm
chmod +x /tmp/uvm
for disk in DISKS; do
    mount -t ext4 /dev/vd$disk /mnt
    before=$(sha256sum < /mnt/kept)
    /tmp/uvm resize /dev/vd$disk --dry-run
    [ "$(stat -f -c %b /mnt)" -lt 110000 ]
    /tmp/uvm resize /dev/vd$disk
    dd if=/dev/urandom of=/mnt/large bs=1M count=150 2>/dev/null
    sum=$(sha256sum < /mnt/large)
    ! /tmp/uvm resize /dev/vd$disk --size 50M
    umount /mnt
    mount -t ext4 /dev/vd$disk /mnt
    [ "$(sha256sum < /mnt/large)" = "$sum" ]
    [ "$(sha256sum < /mnt/kept)" = "$before" ]
    umount /mnt
    ! dmesg | grep -i 'ext4-fs error'
done
"#;

fn made(folder: &Path, name: &str, options: &[&str]) -> std::path::PathBuf {
    let path = folder.join(name);
    let tar = folder.join("kept.tar");
    fs::write(folder.join("kept"), vec![0x5A; 3_000_001]).unwrap();
    run("tar", &["-C", folder.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "kept"]);
    let output = Command::new(uvm())
        .arg("mkfs")
        .args(options)
        .args(["--size", "100M", "--from-tar"])
        .args([&tar, &path])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::File::options().write(true).open(&path).unwrap().set_len(300 * MIB).unwrap();
    path
}

#[test]
fn the_kernel_grows_what_is_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let disks = [("ext4", &["ext4"][..]), ("small-blocks", &["ext4", "-b", "1024"]), ("ext3", &["ext3"])]
        .map(|(name, options)| made(folder.path(), name, options));
    let program = folder.path().join("program");
    let mut bytes = fs::read(uvm()).unwrap();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    fs::write(&program, bytes).unwrap();
    let all: Vec<&Path> = disks.iter().chain([&program]).map(AsRef::as_ref).collect();
    let script = SCRIPT.replace("DISKS", "a b c").replace("PROGRAM", "d");
    let said = JudgeVm::run(&all, &script);
    assert_eq!(said.matches(": grown by the kernel from 100 MiB to 300 MiB").count(), 3, "{said}");
    assert_eq!(said.matches(": would be grown by the kernel").count(), 3, "{said}");
    assert_eq!(said.matches("it is made smaller where it is not mounted").count(), 3, "{said}");
    for disk in &disks {
        let path = disk.to_str().unwrap();
        run("e2fsck", &["-fn", path]);
        let blocks = run("dumpe2fs", &["-h", path]);
        let value = |name: &str| -> u64 {
            let line = blocks.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().parse().unwrap()
        };
        assert_eq!(value("Block count:") * value("Block size:"), 300 * MIB);
    }
}
