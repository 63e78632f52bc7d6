//! What is measured on: made once, kept in target/bench.

use std::path::{Path, PathBuf};

use super::measure::{command, timed};
use super::{GIB, text};

/// Raise it when what is made here changes.
const VERSION: &str = "1";
/// About a GiB of Debian 12.
const PACKAGES: &str = "linux-image-amd64,build-essential,git,vim,python3,openjdk-17-jdk-headless";
const FULL_FOLDERS: usize = 2000;
const FILES_IN_A_FOLDER: usize = 100;

/// Where everything is.
pub(crate) struct Data {
    pub(crate) folder: PathBuf,
    /// A Debian system as a tar.
    pub(crate) archive: PathBuf,
    /// The same, unpacked.
    pub(crate) tree: PathBuf,
    /// Entries of the archive.
    pub(crate) files: u64,
    /// A 64 GiB ext4 with 200,000 files.
    pub(crate) full: PathBuf,
    /// Which mke2fs it is.
    pub(crate) mke2fs: String,
}

impl Data {
    pub(crate) fn prepare() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let folder = root.join("target/bench");
        std::fs::create_dir_all(&folder).unwrap();
        let archive = made(&folder.join(format!("debian-{VERSION}.tar")), make_archive);
        let tree = made(&folder.join(format!("debian-{VERSION}")), |to| {
            std::fs::create_dir_all(to).unwrap();
            let options =
                ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", text(&archive), "-C", text(to)];
            timed(&mut command("tar", &options));
        });
        let full = made(&folder.join(format!("full-{VERSION}.img")), make_full);
        let listed = std::process::Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
        let files = listed.stdout.iter().filter(|byte| **byte == b'\n').count() as u64;
        let version =
            command("mke2fs", &["-V"]).stderr(std::process::Stdio::piped()).output().unwrap().stderr;
        let mke2fs = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_owned();
        // Into the page cache.
        timed(&mut command("cat", &[text(&archive)]));
        timed(&mut command("tar", &["-cf", "/dev/null", "--ignore-failed-read", "-C", text(&tree), "."]));
        Self { folder, archive, tree, files, full, mke2fs }
    }
}

/// What is at `path`, made under another name first if it is not there.
fn made(path: &Path, make: impl FnOnce(&Path)) -> PathBuf {
    if !path.exists() {
        let partial = path.with_extension("partial");
        let _ = std::fs::remove_dir_all(&partial);
        let _ = std::fs::remove_file(&partial);
        eprintln!("making {}", path.display());
        make(&partial);
        std::fs::rename(&partial, path).unwrap();
    }
    path.to_owned()
}

fn make_archive(to: &Path) {
    let include = format!("--include={PACKAGES}");
    let mut options = vec!["--format=tar", "--variant=extract", "--architectures=amd64", "--components=main"];
    options.extend([include.as_str(), "bookworm", text(to)]);
    timed(command("mmdebstrap", &options).env("SOURCE_DATE_EPOCH", "1700000000"));
}

fn make_full(to: &Path) {
    std::fs::File::create(to).unwrap().set_len(64 * GIB).unwrap();
    timed(&mut command("mkfs.ext4", &["-q", "-F", text(to)]));
    let point = to.with_extension("mounted");
    std::fs::create_dir_all(&point).unwrap();
    timed(&mut command("mount", &["-o", "loop", text(to), text(&point)]));
    for folder in 0..FULL_FOLDERS {
        let folder = point.join(format!("folder-{folder}"));
        std::fs::create_dir(&folder).unwrap();
        for file in 0..FILES_IN_A_FOLDER {
            // Some holes between them, as in a file system that is lived in.
            std::fs::write(folder.join(file.to_string()), vec![1; 100 + file * 120]).unwrap();
        }
    }
    for folder in (0..FULL_FOLDERS).step_by(2) {
        for file in (0..FILES_IN_A_FOLDER).step_by(10) {
            let path = point.join(format!("folder-{folder}/{file}"));
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, [2; 100]).unwrap();
        }
    }
    timed(&mut command("umount", &[text(&point)]));
    std::fs::remove_dir(&point).unwrap();
}
