//! `uvm mkfs` as its users meet it, judged by the tools they would have used.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::judge::LoopDevice;
use support::{Disk, MIB, ask, run, uvm};

const UUID: &str = "6f1c0bd2-6f4e-4a52-9a55-8a1c6d7b1f3e";

/// Status, standard output and standard error of `uvm mkfs`.
fn mkfs_with(arguments: &[&str], stdin: &[u8]) -> (i32, String, String) {
    let mut command = Command::new(uvm());
    command.arg("mkfs").args(arguments).env("SOURCE_DATE_EPOCH", "1700000000");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn mkfs(arguments: &[&str]) -> (i32, String, String) {
    mkfs_with(arguments, b"")
}

fn made(arguments: &[&str]) -> String {
    let (status, said, complaint) = mkfs(arguments);
    assert_eq!(status, 0, "{arguments:?}: {complaint}");
    assert_eq!(complaint, "");
    said
}

fn digest(path: &Path) -> String {
    run("sha256sum", &[path]).split(' ').next().unwrap().to_owned()
}

fn blkid(path: &str, tag: &str) -> String {
    ask("blkid", &["-p", "-s", tag, "-o", "value", path]).1.trim().to_owned()
}

/// A tree of some of everything, and archives of it: `.0` the tree, `.1` what a second layer changes.
fn archives(folder: &Path) -> [PathBuf; 2] {
    let tree = folder.join("tree");
    std::fs::create_dir_all(tree.join("a/b")).unwrap();
    std::fs::create_dir_all(tree.join("gone/deeper")).unwrap();
    std::fs::write(tree.join("a/text"), "some text\n".repeat(1000)).unwrap();
    std::fs::write(tree.join("gone/deeper/file"), "x").unwrap();
    std::fs::write(tree.join("replaced"), "old").unwrap();
    std::os::unix::fs::symlink("../a/text", tree.join("a/b/link")).unwrap();
    std::fs::hard_link(tree.join("a/text"), tree.join("a/b/same")).unwrap();
    let hole = File::create(tree.join("hole")).unwrap();
    hole.write_all_at(b"end", 3 * MIB).unwrap();
    for number in 0..300 {
        std::fs::write(tree.join(format!("a/b/{number}")), vec![7; number * 13]).unwrap();
    }
    run("mknod", &[tree.join("null").to_str().unwrap(), "c", "1", "3"]);
    run("setfattr", &["-n", "user.word", "-v", "value", tree.join("a/text").to_str().unwrap()]);
    let upper = folder.join("upper");
    std::fs::create_dir(&upper).unwrap();
    std::fs::write(upper.join("replaced"), "new").unwrap();
    std::fs::write(upper.join(".wh.gone"), "").unwrap();
    ["tree", "upper"].map(|name| {
        let archive = folder.join(format!("{name}.tar"));
        let (archive_text, from) = (archive.to_str().unwrap(), folder.join(name));
        run("tar", &["--xattrs", "--format=pax", "-C", from.to_str().unwrap(), "-cf", archive_text, "."]);
        archive
    })
}

#[test]
fn ext4_holds_what_the_archive_has() {
    for block in [512, 4096] {
        let folder = tempfile::tempdir().unwrap();
        let [lower, _] = archives(folder.path());
        let image = folder.path().join("image");
        let (path, archive) = (image.to_str().unwrap(), lower.to_str().unwrap());
        let block_text = block.to_string();
        let said = made(&[
            "ext4",
            path,
            "--size",
            "64M",
            "-L",
            "root",
            "-U",
            UUID,
            "--from-tar",
            archive,
            "--logical-block-size",
            &block_text,
        ]);
        assert_eq!(said, format!("ext4 {UUID}, 64 MiB, 312 entries\n"));
        run("e2fsck", &["-fn", path]);
        assert_eq!((blkid(path, "TYPE").as_str(), blkid(path, "LABEL").as_str()), ("ext4", "root"));
        assert_eq!(blkid(path, "UUID"), UUID);
        let disk = Disk { path: image.clone(), block, folder };
        let device = LoopDevice::new(&disk, 0, 64 * MIB);
        let mounted = device.mount();
        let compared = ["--compare", "--xattrs", "-f", archive, "-C", mounted.path.to_str().unwrap()];
        assert_eq!(run("tar", &compared), "");
    }
}

#[test]
fn archives_are_layers_in_any_compression_and_the_bytes_are_always_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let [lower, upper] = archives(folder.path());
    let [plain, other] = [&lower, &upper].map(|path| path.to_str().unwrap().to_owned());
    run("gzip", &["-k", &plain]);
    run("zstd", &["-q", "-k", &other]);
    let image = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let make = |name: &str, first: &str, second: &str, stdin: &[u8]| {
        let path = image(name);
        let arguments = [
            "ext4",
            &path,
            "--size",
            "32M",
            "-b",
            "1024",
            "-U",
            UUID,
            "--from-tar",
            first,
            "--from-tar",
            second,
        ];
        let (status, _, complaint) = mkfs_with(&arguments, stdin);
        assert_eq!((status, complaint.as_str()), (0, ""));
        path
    };
    let first = make("first", &plain, &other, b"");
    let second = make("second", &format!("{plain}.gz"), &format!("{other}.zst"), b"");
    let third = make("third", "-", &other, &std::fs::read(&plain).unwrap());
    run("e2fsck", &["-fn", &first]);
    assert!(run("debugfs", &["-R", "cat /replaced", &first]).starts_with("new"));
    assert!(!run("debugfs", &["-R", "ls -p /", &first]).contains("gone"), "the whiteout took it away");
    let same = digest(Path::new(&first));
    assert_eq!([digest(Path::new(&second)), digest(Path::new(&third))], [same.clone(), same]);
}

#[test]
fn ext2_and_ext3_and_their_options_are_what_dumpe2fs_says() {
    let folder = tempfile::tempdir().unwrap();
    let [lower, _] = archives(folder.path());
    let archive = lower.to_str().unwrap();
    let image = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let field = |path: &str, name: &str| {
        let said = run("dumpe2fs", &["-h", path]);
        let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().to_owned()
    };
    for (kind, options, journal) in [
        ("ext2", &["-I", "128", "-N", "5000"][..], false),
        ("ext3", &["-i", "8192", "-m", "1"], true),
        ("ext4", &["-I", "512", "-b", "2048"], true),
        ("ext4", &["--no-journal"], false),
    ] {
        let path = image(&format!("{kind}{}", options.len()));
        made(&[&[kind, &path, "--size", "48M", "--from-tar", archive], options].concat());
        run("e2fsck", &["-fn", &path]);
        assert_eq!(blkid(&path, "TYPE"), kind);
        assert_eq!(
            field(&path, "Filesystem features:").contains("has_journal"),
            journal,
            "{kind} {options:?}"
        );
        let inode_size = if options.contains(&"-I") { options[1] } else { "256" };
        assert_eq!(field(&path, "Inode size:"), inode_size);
    }
    let count: u64 = field(&image("ext24"), "Inode count:").parse().unwrap();
    assert!((5000..6000).contains(&count), "{count}");
    assert_eq!(field(&image("ext34"), "Reserved block count:"), "122");
}

#[test]
fn fat_and_swap_are_what_their_tools_expect() {
    let folder = tempfile::tempdir().unwrap();
    let image = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (bits, size) in [("12", "4M"), ("16", "32M"), ("32", "64M")] {
        for block in ["512", "4096"] {
            let path = image(&format!("fat-{bits}-{block}"));
            // FAT32 has at least 65,525 clusters.
            let size = if bits == "32" && block == "4096" { "300M" } else { size };
            let arguments = ["fat", &path, "--size", size, "--type", bits, "-L", "BOOT", "-U", "12ab-34CD"];
            let said = made(&[&arguments[..], &["--logical-block-size", block]].concat());
            assert!(said.starts_with("vfat 12AB-34CD, "), "{said}");
            run("fsck.fat", &["-n", &path]);
            assert_eq!(
                (blkid(&path, "TYPE"), blkid(&path, "UUID")),
                ("vfat".to_owned(), "12AB-34CD".to_owned())
            );
            assert_eq!(blkid(&path, "VERSION"), format!("FAT{bits}"));
            assert_eq!(blkid(&path, "LABEL"), "BOOT");
        }
    }
    let path = image("swap");
    let said = made(&["swap", &path, "--size", "8M", "-L", "swap", "-U", UUID]);
    assert_eq!(said, format!("swap {UUID}, 8 MiB\n"));
    let label = run("swaplabel", &[&path]);
    assert!(label.contains("swap") && label.contains(UUID), "{label}");
}

#[test]
fn ntfs_is_what_its_tools_expect() {
    let folder = tempfile::tempdir().unwrap();
    for (block, cluster) in [("512", "4096"), ("512", "65536"), ("4096", "4096")] {
        let path = folder.path().join(format!("ntfs-{block}-{cluster}")).to_str().unwrap().to_owned();
        let arguments = ["ntfs", &path, "--size", "32M", "-L", "Daten", "-U", "0123456789abcdef"];
        let said =
            made(&[&arguments[..], &["--cluster-size", cluster, "--logical-block-size", block]].concat());
        assert_eq!(said, "ntfs 0123456789ABCDEF, 32 MiB\n");
        run("ntfsfix", &["-n", &path]);
        assert_eq!((blkid(&path, "TYPE"), blkid(&path, "LABEL")), ("ntfs".to_owned(), "Daten".to_owned()));
        assert_eq!(blkid(&path, "UUID"), "0123456789ABCDEF");
    }
}

/// What must be refused: the arguments after the path, the line, and that nothing changed.
fn refused(arguments: &[&str], path: &Path, line: &str) {
    let before = path.is_file().then(|| (path.metadata().unwrap().len(), digest(path)));
    let shown = path.to_str().unwrap();
    let all = [&arguments[..1], &[shown], &arguments[1..]].concat();
    let (status, said, complaint) = mkfs(&all);
    assert_eq!((status, said.as_str()), (2, ""), "{all:?}: {complaint}");
    assert_eq!(complaint, format!("uvm: {}\n", line.replace("PATH", shown)));
    let after = path.is_file().then(|| (path.metadata().unwrap().len(), digest(path)));
    assert_eq!(before, after, "{all:?} left its mark");
}

#[test]
fn what_cannot_be_is_refused_in_one_line_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    File::create(&file).unwrap().set_len(16 * MIB).unwrap();
    let missing = folder.path().join("missing");
    refused(&["ext4"], &missing, "PATH: No such file or directory (os error 2)");
    refused(&["ext4"], folder.path(), "PATH: neither a block device nor a regular file");
    refused(&["ext4", "-b", "512"], &file, "PATH: ext4 block size 512 is none of 1024, 2048 and 4096");
    refused(
        &["ext4", "-L", "a label that is too long"],
        &file,
        "PATH: the ext4 label \"a label that is too long\" is longer than 16 bytes",
    );
    refused(&["ext4", "--size", "1M"], &file, "PATH: it has 16777216 bytes; --size 1048576 would cut it");
    let pages = "PATH: swap pages of 1000 bytes: powers of two from 4096 to 65536 are possible";
    refused(&["swap", "--page-size", "1000"], &file, pages);
    let clusters = "PATH: FAT clusters of 3000 bytes: powers of two from 512 to 65536 are possible";
    refused(&["fat", "--cluster-size", "3000"], &file, clusters);
    // What was made for it is taken back.
    refused(&["swap", "--size", "4K"], &missing, "PATH: swap on 1 pages: at least 10");
    assert!(!missing.exists());
    refused(
        &["swap", "--size", "32M", "-L", "a label that is too long"],
        &file,
        "PATH: swap label \"a label that is too long\": at most 16 bytes",
    );
    let nowhere = folder.path().join("nowhere");
    let line = format!("{}: No such file or directory (os error 2)", nowhere.display());
    refused(&["ext4", "--from-tar", nowhere.to_str().unwrap()], &file, &line);
    let packed = folder.path().join("packed");
    std::fs::write(&packed, b"\xfd7zXZ\0 and so on").unwrap();
    let reason = "compressed by xz; unpack it before: xz -dc FILE | uvm … --from-tar -";
    let line = format!("{}: {reason}", packed.display());
    refused(&["ext4", "--from-tar", packed.to_str().unwrap()], &file, &line);
    for contents in
        [&b""[..], &[b'n'; 2000], &[0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    {
        std::fs::write(&packed, contents).unwrap();
        let line = format!("{}: it is no tar archive", packed.display());
        refused(&["ext4", "--force", "--from-tar", packed.to_str().unwrap()], &file, &line);
    }
    let line = "-: standard input is one archive, not several";
    refused(&["ext4", "--from-tar", "-", "--from-tar", "-"], &file, line);
}

#[test]
fn an_archive_is_not_overwritten_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let [archive, _] = archives(folder.path());
    let link = folder.path().join("link");
    std::fs::hard_link(&archive, &link).unwrap();
    for from in [&archive, &link] {
        let line = format!("{}: the archive would be overwritten with its own contents", from.display());
        refused(&["ext4", "--size", "32M", "--force", "--from-tar", from.to_str().unwrap()], &archive, &line);
    }
}

#[test]
fn a_whiteout_of_lost_found_empties_it() {
    let folder = tempfile::tempdir().unwrap();
    let layer = |name: &str, files: &[&str]| {
        let tree = folder.path().join(name);
        for file in files {
            std::fs::create_dir_all(tree.join(file).parent().unwrap()).unwrap();
            std::fs::write(tree.join(file), "").unwrap();
        }
        let archive = folder.path().join(format!("{name}.tar"));
        let (tree, path) = (tree.to_str().unwrap(), archive.to_str().unwrap());
        run("tar", &["-C", tree, "-cf", path, "."]);
        path.to_owned()
    };
    let lower = layer("lower", &["lost+found/one", "gone/two"]);
    for (upper, gone) in [("lost+found", false), (".wh..opq", true)] {
        let upper = layer(upper, &[&format!(".wh.{upper}"), "three"]);
        let image = folder.path().join("image");
        let path = image.to_str().unwrap();
        made(&["ext4", path, "--size", "32M", "--force", "--from-tar", &lower, "--from-tar", &upper]);
        run("e2fsck", &["-fn", path]);
        let found = ask("debugfs", &["-R", "ls -p /", path]).1;
        assert!(found.contains("/lost+found/") && found.contains("/three/"), "{found}");
        assert_eq!(!found.contains("/gone/"), gone, "{found}");
        assert!(!ask("debugfs", &["-R", "ls -p /lost+found", path]).1.contains("one"));
    }
}

#[test]
fn what_a_device_holds_is_kept_until_force() {
    let folder = tempfile::tempdir().unwrap();
    let held = |name: &str| {
        let path = folder.path().join(name);
        File::create(&path).unwrap().set_len(32 * MIB).unwrap();
        path
    };
    let ext = held("ext");
    run("mkfs.ext4", &["-q", "-L", "data", "-U", UUID, ext.to_str().unwrap()]);
    refused(
        &["ext4"],
        &ext,
        &format!("PATH: it holds ext4 labelled \"data\", {UUID}; --force takes that away"),
    );
    refused(
        &["swap"],
        &ext,
        &format!("PATH: it holds ext4 labelled \"data\", {UUID}; --force takes that away"),
    );
    let table = held("table");
    run("sgdisk", &["-n1:0:+1M", "-n2:0:0", table.to_str().unwrap()]);
    refused(&["fat"], &table, "PATH: it holds a GPT with 2 partitions; --force takes that away");
    made(&["fat", table.to_str().unwrap(), "--force"]);
    run("fsck.fat", &["-n", table.to_str().unwrap()]);
    made(&["ext4", ext.to_str().unwrap(), "--force"]);
    run("e2fsck", &["-fn", ext.to_str().unwrap()]);
}

#[test]
fn what_is_in_use_is_refused() {
    let disk = Disk::new(32 * MIB, 512);
    let path = disk.path.to_str().unwrap();
    made(&["ext4", path, "--force"]);
    let device = LoopDevice::new(&disk, 0, 32 * MIB);
    let line = format!("PATH: in use: it is behind {}", device.path);
    refused(&["ext4", "--force"], &disk.path, &line);
    refused(&["ext4", "--force", "--size", "64M"], &disk.path, &line);
    let mounted = device.mount();
    let line = "PATH: in use: it is mounted, or held by another program";
    refused(&["ext4", "--force"], Path::new(&device.path), line);
    drop(mounted);
    drop(device);
    let file = File::open(&disk.path).unwrap();
    file.lock().unwrap();
    refused(&["ext4", "--force"], &disk.path, line);
}

#[test]
fn an_archive_that_breaks_off_leaves_no_file_system() {
    let folder = tempfile::tempdir().unwrap();
    let [lower, _] = archives(folder.path());
    let whole = std::fs::read(&lower).unwrap();
    let cut = folder.path().join("cut.tar");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let image = folder.path().join("image");
    let path = image.to_str().unwrap();
    let (status, said, complaint) =
        mkfs(&["ext4", path, "--size", "32M", "--from-tar", cut.to_str().unwrap()]);
    assert_eq!((status, said.as_str()), (3, ""));
    let begin = format!("uvm: {path}: {}: ", cut.display());
    assert!(complaint.starts_with(&begin), "{complaint}");
    assert!(complaint.ends_with("; it holds no file system now\n"), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert_eq!(blkid(path, "TYPE"), "");
    // One that does not fit.
    let (status, _, complaint) = mkfs(&["ext4", path, "--from-tar", &lower.to_string_lossy(), "-b", "4096"]);
    assert_eq!(status, 0, "{complaint}");
    let small = folder.path().join("small");
    let big = folder.path().join("big.tar");
    std::fs::write(folder.path().join("noise"), vec![1; 20 << 20]).unwrap();
    run("tar", &["-C", folder.path().to_str().unwrap(), "-cf", big.to_str().unwrap(), "noise"]);
    let (status, _, complaint) =
        mkfs(&["ext4", small.to_str().unwrap(), "--size", "16M", "--from-tar", big.to_str().unwrap()]);
    assert_eq!(status, 3, "{complaint}");
    assert!(complaint.contains("the ext4 file system is full"), "{complaint}");
}

#[test]
fn the_readme_s_examples_work() {
    let folder = tempfile::tempdir().unwrap();
    let [lower, upper] = archives(folder.path());
    run(
        "zstd",
        &["-q", lower.to_str().unwrap(), "-o", folder.path().join("debian.tar.zst").to_str().unwrap()],
    );
    std::fs::rename(upper, folder.path().join("ours.tar")).unwrap();
    let readme = std::fs::read_to_string(support::root().join("README.md")).unwrap();
    let section = readme.split("### File systems and disks").nth(1).unwrap();
    let examples: Vec<&str> =
        section.split("```").nth(1).unwrap().lines().filter(|line| !line.is_empty()).collect();
    assert!(examples.len() > 4, "{examples:?}");
    for example in examples {
        let (variables, arguments): (Vec<&str>, Vec<&str>) =
            example.split(' ').partition(|word| word.contains('=') && !word.starts_with('-'));
        assert_eq!(arguments[0], "uvm", "{example}");
        let variables = variables.iter().map(|variable| variable.split_once('=').unwrap());
        let mut command = Command::new(uvm());
        let output =
            command.args(&arguments[1..]).envs(variables).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let judged = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    run("e2fsck", &["-fn", &judged("root.img")]);
    run("fsck.fat", &["-n", &judged("esp.img")]);
    run("ntfsfix", &["-n", &judged("data.img")]);
}

#[test]
fn fat_is_filled_from_an_archive() {
    for block in ["512", "4096"] {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir_all(tree.join("EFI/a folder with a long name")).unwrap();
        let contents: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        std::fs::write(tree.join("EFI/a folder with a long name/a kernel.efi"), &contents).unwrap();
        let archive = folder.path().join("efi.tar");
        run("tar", &["-C", tree.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
        let image = folder.path().join("esp").to_str().unwrap().to_owned();
        made(&[
            "fat",
            &image,
            "--size",
            "33M",
            "--from-tar",
            archive.to_str().unwrap(),
            "--logical-block-size",
            block,
        ]);
        run("fsck.fat", &["-n", &image]);
        let out = folder.path().join("out");
        run("mcopy", &["-i", &image, "::EFI/a folder with a long name/a kernel.efi", out.to_str().unwrap()]);
        assert!(std::fs::read(&out).unwrap() == contents, "the file is another one");
    }
    // What FAT cannot hold ends it, by name.
    let folder = tempfile::tempdir().unwrap();
    let [lower, _] = archives(folder.path());
    let image = folder.path().join("esp").to_str().unwrap().to_owned();
    let (status, _, complaint) =
        mkfs(&["fat", &image, "--size", "33M", "--from-tar", lower.to_str().unwrap()]);
    assert_eq!(status, 3, "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
}
