use std::process::Command;

use super::*;

fn run(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|e| panic!("{tool} is missing: {e}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Whether this process has CAP_SYS_RESOURCE.
fn may_resize() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
    u64::from_str_radix(effective, 16).unwrap() & 1 << 24 != 0
}

#[test]
fn a_mounted_file_system_grows() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let image = image.to_str().unwrap();
    File::create(image).unwrap().set_len(200 << 20).unwrap();
    run("/usr/sbin/mke2fs", &["-q", "-F", "-t", "ext4", "-b", "4096", image, "50M"]);
    let device = run("/usr/sbin/losetup", &["-f", "--show", image]);
    assert!(MountedExt::find(Path::new(&device)).unwrap().is_none());
    assert!(MountedExt::find(Path::new(image)).unwrap().is_none());
    let point = directory.path().join("a place");
    std::fs::create_dir(&point).unwrap();
    run("mount", &["-t", "ext4", &device, point.to_str().unwrap()]);
    std::fs::write(point.join("file"), "kept").unwrap();
    let found = MountedExt::find(Path::new(&device)).unwrap().unwrap();
    assert_eq!((found.mount_point(), found.block_size().unwrap()), (&*point, 4096));
    let grown = found.grow((200 << 20) / 4096);
    let allowed = may_resize();
    if allowed {
        grown.unwrap();
        assert_eq!(found.grow(10_000).unwrap_err().kind(), ErrorKind::Unsupported);
        assert!(found.grow(1 << 40).is_err());
    } else {
        // The kernel asks for CAP_SYS_RESOURCE, which a container may lack; it says so and leaves all as it was.
        assert_eq!(grown.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    assert_eq!(std::fs::read(point.join("file")).unwrap(), b"kept");
    drop(found);
    // A child of another test may hold what was open on it for the moment between its fork and its exec.
    let mut left = 500;
    while !Command::new("umount").arg(&point).output().unwrap().status.success() {
        left -= 1;
        assert!(left > 0, "it stays busy");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    run("/usr/sbin/losetup", &["-d", &device]);
    run("/usr/sbin/e2fsck", &["-fn", image]);
    let blocks = if allowed { 51_200 } else { 12_800 };
    assert!(
        run("/usr/sbin/dumpe2fs", &["-h", image]).contains(&format!("Block count:              {blocks}\n"))
    );
}

#[test]
fn names_with_blanks_come_out_of_the_table_whole() {
    assert_eq!(unescape(br"/a\040b\134c\011"), b"/a b\\c\t");
    assert_eq!(unescape(br"\04"), br"\04");
    assert_eq!(unescape(br"/x\0"), br"/x\0");
}
