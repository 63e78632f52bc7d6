//! `cargo xtask test`: everything a change must pass, in one run; a failure does not hide what comes after it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::deps::{self, Need};
use crate::{appliance, demo, fuzz, image};

/// How long each reader is fuzzed, and in a run of everything.
const FUZZ_SECONDS: u32 = 3;
const FUZZ_ALL_SECONDS: u32 = 60;

/// The judges: foreign tools that say whether what we write is right.
const NEEDS: [Need; 30] = [
    need("sgdisk", "gdisk", "judge partition tables"),
    need("sfdisk", "fdisk", "judge partition tables"),
    need("fsck.fat", "dosfstools", "judge FAT"),
    need("mcopy", "mtools", "read FAT"),
    need("e2fsck", "e2fsprogs", "judge ext4"),
    need("debugfs", "e2fsprogs", "read ext4"),
    need("mkfs.xfs", "xfsprogs", "make file systems to recognize"),
    need("mkfs.btrfs", "btrfs-progs", "make file systems to recognize"),
    need("blkid", "util-linux", "judge labels and UUIDs"),
    need("swaplabel", "util-linux", "judge swap areas"),
    need("setpriv", "util-linux", "run commands without root's rights"),
    need("losetup", "mount", "let the kernel judge file systems"),
    need("file", "file", "judge what files are"),
    need("setfattr", "attr", "make and judge extended attributes"),
    need("getfacl", "acl", "make and judge access lists"),
    need("tar", "tar", "make image layers"),
    need("gzip", "gzip", "make image layers"),
    need("zstd", "zstd", "make image layers"),
    need("skopeo", "skopeo", "judge OCI images"),
    need("docker-registry", "docker-registry", "serve OCI images"),
    need("cpio", "cpio", "judge the initramfs"),
    need("/bin/busybox", "busybox-static", "let the appliance's kernel judge file systems"),
    need("ntfsfix", "ntfs-3g", "judge NTFS"),
    need("ntfsls", "ntfs-3g", "read NTFS"),
    need("pwck", "passwd", "judge a guest's users"),
    need("ssh-keygen", "openssh-client", "judge SSH keys"),
    need("cc", "gcc", "link Rust programs"),
    need("c++", "g++", "build libFuzzer"),
    need("openssl", "openssl", "judge certificates and signatures"),
    need("groff", "groff-base", "judge man pages"),
];

const fn need(probe: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { probe, package, why }
}

/// How many passed and failed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    fn add(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                eprintln!("{name} failed: {error:#}");
                self.failed += 1;
            }
        }
    }
}

/// Runs everything; `all` includes the tests that are ignored by default.
pub(crate) fn run(all: bool) -> Result<()> {
    deps::ensure(&NEEDS)?;
    deps::ensure(&demo::NEEDS)?;
    let mut tally = Tally::default();
    tally.add("cargo fmt", cargo(&["fmt", "--all", "--check"]));
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    tally.add("cargo clippy", cargo(&clippy));
    let variables = build();
    let variables = match variables {
        Ok(variables) => {
            tally.passed += 1;
            variables
        }
        Err(error) => {
            tally.add("the build of appliance and image", Err(error));
            Vec::new()
        }
    };
    tests(all, &variables, &mut tally)?;
    println!("\ncargo xtask fuzz");
    tally.add("fuzzing", fuzz::run(None, if all { FUZZ_ALL_SECONDS } else { FUZZ_SECONDS }));
    println!("\ncargo xtask demo");
    tally.add("the demo", demo::run(true));
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    ensure!(tally.failed == 0, "not everything passed");
    Ok(())
}

/// Builds what the tests of the whole run, and tells them where it is.
fn build() -> Result<Vec<(&'static str, OsString)>> {
    let built = appliance::build()?;
    let layout = image::build("debian-12")?;
    let folder = built.initramfs.parent().context("the initramfs lies in a folder")?.to_owned();
    let binary = crate::workspace_root().join("target/static/x86_64-unknown-linux-gnu/release/uvm");
    ensure!(binary.is_file(), "{} is not there after its build", binary.display());
    Ok(vec![
        ("UVM_BINARY", binary.into()),
        ("UVM_APPLIANCE", folder.into()),
        ("UVM_IMAGE", layout.dir.into()),
        ("UVM_IMAGE_DIGEST", layout.digest.into()),
    ])
}

fn command(arguments: &[&str]) -> Command {
    println!("\ncargo {}", arguments.join(" "));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::workspace_root()).args(arguments).stdin(Stdio::null());
    cargo
}

fn cargo(arguments: &[&str]) -> Result<()> {
    let status = command(arguments).status().context("starting cargo")?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Runs the tests of all packages, showing their output as it comes.
fn tests(all: bool, variables: &[(&'static str, OsString)], tally: &mut Tally) -> Result<()> {
    let mut arguments = vec!["test", "--workspace", "--no-fail-fast"];
    if all {
        arguments.extend(["--", "--include-ignored"]);
    }
    let mut cargo = command(&arguments);
    cargo.envs(variables.iter().cloned()).stdout(Stdio::piped());
    let mut child = cargo.spawn().context("starting cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let before = tally.failed;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading the output of the tests")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(found) = result_line(&line) {
            tally.passed += found.passed;
            tally.failed += found.failed;
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    // A package that does not build has no result line.
    if !status.success() && tally.failed == before {
        tally.failed += 1;
    }
    Ok(())
}

/// What a line like `test result: ok. 5 passed; 0 failed; 0 ignored; …` counts.
fn result_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        counts.split("; ").find_map(|part| part.strip_suffix(word)?.trim().parse().ok()).unwrap_or(0)
    };
    Some(Tally { passed: count("passed"), failed: count("failed") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_lines_of_cargo_test_are_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(result_line(line), Some(Tally { passed: 12, failed: 3 }));
        assert_eq!(result_line("test a::result: ok ... ok"), None);
    }
}
