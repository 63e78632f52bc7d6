//! `cargo xtask fuzz`: every reader of what others wrote, under libFuzzer.
//!
//! The seeds are images made here by foreign tools; what earlier runs found worth keeping is in target/fuzz/corpus, an
//! input that failed in target/fuzz/failed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::deps::{self, Need};

/// What is fuzzed; as `uvm-fuzz` names it.
const TARGETS: &[&str] = &[
    "gpt",
    "mbr",
    "probe",
    "ext4-state",
    "ext4-usage",
    "ext4-resize",
    "os-release",
    "fat",
    "fat-usage",
    "ntfs-usage",
    "usage",
    "tar",
];

/// The longest time one input may take, seconds. A good one takes milliseconds.
const TIMEOUT: u32 = 10;

/// What lets libFuzzer see which way a run went; the sanitizers, which stable Rust lacks, are not needed for that.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What makes the seeds.
const NEEDS: &[Need] = &[
    need("sgdisk", "gdisk"),
    need("sfdisk", "fdisk"),
    need("mkfs.fat", "dosfstools"),
    need("mcopy", "mtools"),
    need("mke2fs", "e2fsprogs"),
    need("mkfs.btrfs", "btrfs-progs"),
    need("mkntfs", "ntfs-3g"),
    need("mkswap", "util-linux"),
    need("tar", "tar"),
    need("setfattr", "attr"),
    need("c++", "g++"),
];

const fn need(probe: &'static str, package: &'static str) -> Need {
    Need { probe, package, why: "make seeds and the fuzzer" }
}

/// Fuzzes one target, or each, for `seconds`.
pub(crate) fn run(target: Option<&str>, seconds: u32) -> Result<()> {
    let chosen: Vec<&str> =
        TARGETS.iter().copied().filter(|name| target.is_none_or(|t| t == *name)).collect();
    ensure!(!chosen.is_empty(), "no such target; there are {}", TARGETS.join(", "));
    deps::ensure(NEEDS)?;
    let root = crate::workspace_root().join("target/fuzz");
    let binary = build(&root)?;
    let images = root.join("images");
    let seeds = root.join("seeds");
    make_seeds(&images, &seeds).context("making the seeds")?;
    let mut failed = Vec::new();
    for name in chosen {
        println!("\nfuzz {name}, {seconds} s");
        if !fuzz(&root, &binary, name, seconds)? {
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "{} failed; the inputs are in {}/failed", failed.join(", "), root.display());
    Ok(())
}

fn build(root: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // With a target named, build scripts and macros are spared the flags.
    cargo.current_dir(crate::workspace_root()).args(["build", "--profile", "fuzz", "--package", "uvm-fuzz"]);
    cargo.args(["--target", TRIPLE, "--target-dir"]).arg(root.join("build"));
    cargo.env("RUSTFLAGS", INSTRUMENTED).env_remove("CARGO_ENCODED_RUSTFLAGS").stdin(Stdio::null());
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "building the fuzzer failed");
    Ok(root.join("build").join(TRIPLE).join("fuzz/uvm-fuzz"))
}

/// Whether nothing was found.
fn fuzz(root: &Path, binary: &Path, name: &str, seconds: u32) -> Result<bool> {
    let corpus = root.join("corpus").join(name);
    let failed = root.join("failed");
    for folder in [&corpus, &failed] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let mut fuzzer = Command::new(binary);
    fuzzer.env("UVM_FUZZ_TARGET", name).env("UVM_FUZZ_IMAGES", root.join("images")).stdin(Stdio::null());
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={TIMEOUT}"));
    fuzzer.arg(format!("-artifact_prefix={}/{name}-", failed.display()));
    let longest = if name == "tar" { 64 << 10 } else { 2 + 64 * 8 };
    fuzzer.args([
        format!("-max_len={longest}"),
        "-print_final_stats=1".to_owned(),
        "-verbosity=0".to_owned(),
    ]);
    fuzzer.arg(&corpus);
    if name == "tar" {
        fuzzer.arg(root.join("seeds"));
    }
    // Its words are wanted where it fails alone.
    let output = fuzzer.output().context("starting the fuzzer")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let ran = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    if output.status.success() {
        let ran: u64 = ran.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
        println!("  {ran} inputs");
        ensure!(ran > 0, "the fuzzer ran no input: {said}");
        return Ok(true);
    }
    let lines: Vec<&str> = said.lines().collect();
    println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    Ok(false)
}

/// Runs a tool that must succeed.
fn tool(name: &str, arguments: &[&str]) -> Result<()> {
    let program = deps::find_command(name).with_context(|| format!("{name} is not there"))?;
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Makes the images and archives, small and anew: they are quicker made than compared.
fn make_seeds(images: &Path, seeds: &Path) -> Result<()> {
    for folder in [images, seeds] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    let tree = seeds.with_file_name("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    make_tree(&tree)?;
    let path = |name: &str| images.join(name).to_string_lossy().into_owned();
    let blank = |name: &str, size: u64| -> Result<String> {
        fs::File::create(path(name))?.set_len(size)?;
        Ok(path(name))
    };
    make_ext(&tree, &blank)?;
    make_fat(&tree, &blank)?;
    make_tables(&blank)?;
    for (name, cluster) in [("ntfs.img", "4096"), ("ntfs-small.img", "512")] {
        tool("mkntfs", &["-q", "-F", "-f", "-c", cluster, &blank(name, 4 << 20)?])?;
    }
    tool("mkswap", &[&blank("swap.img", 64 << 10)?])?;
    tool("mkfs.btrfs", &["-q", "-M", &blank("btrfs.img", 128 << 20)?])?;
    make_archives(&tree, seeds)
}

/// Some of everything: files, a hole, links, a large directory, attributes.
fn make_tree(tree: &Path) -> Result<()> {
    fs::create_dir_all(tree.join("etc"))?;
    fs::write(tree.join("etc/os-release"), "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian\"\n")?;
    fs::write(tree.join("etc/text"), "text ".repeat(2000))?;
    let hole = fs::File::create(tree.join("hole"))?;
    std::os::unix::fs::FileExt::write_all_at(&hole, b"end", 300 << 10)?;
    fs::create_dir_all(tree.join("many"))?;
    for number in 0..120 {
        fs::write(tree.join(format!("many/a file with a longer name {number}")), "")?;
    }
    std::os::unix::fs::symlink("etc/text", tree.join("link"))?;
    std::os::unix::fs::symlink("x".repeat(100), tree.join("long-link"))?;
    fs::hard_link(tree.join("etc/text"), tree.join("same"))?;
    let text = tree.join("etc/text");
    // Not every file system under a work tree takes attributes.
    let _ = tool("setfattr", &["-n", "user.word", "-v", "value", &text.to_string_lossy()]);
    Ok(())
}

type Blank<'b> = &'b dyn Fn(&str, u64) -> Result<String>;

fn make_ext(tree: &Path, blank: Blank<'_>) -> Result<()> {
    let from = tree.to_string_lossy().into_owned();
    let make = |name: &str, size: u64, options: &[&str]| -> Result<String> {
        let image = blank(name, size)?;
        let all = [&["-q", "-F", "-d", &from], options, &[&image]].concat();
        tool("mke2fs", &all)?;
        Ok(image)
    };
    make("ext4-plain.img", 8 << 20, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"])?;
    make("ext4-sums.img", 16 << 20, &["-t", "ext4"])?;
    make("ext2.img", 4 << 20, &["-t", "ext2", "-b", "1024"])?;
    make("ext2-groups.img", 32 << 20, &["-t", "ext2", "-b", "1024", "-O", "sparse_super", "-g", "1024"])?;
    make("ext3.img", 8 << 20, &["-t", "ext3", "-b", "1024"])?;
    make(
        "ext4-meta-bg.img",
        32 << 20,
        &["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode"],
    )?;
    make("ext4-bigalloc.img", 16 << 20, &["-t", "ext4", "-O", "bigalloc", "-C", "65536"])?;
    make("ext4-inline.img", 8 << 20, &["-t", "ext4", "-O", "inline_data,^metadata_csum"])?;
    for (name, options) in [("plain", "^metadata_csum,^64bit"), ("sums", "metadata_csum,64bit")] {
        let image =
            make(&format!("ext4-journal-{name}.img"), 8 << 20, &["-t", "ext4", "-b", "1024", "-O", options])?;
        leave_in_journal(&image)?;
    }
    Ok(())
}

/// Two transactions that have not been carried out: one writes a block, one revokes another.
fn leave_in_journal(image: &str) -> Result<()> {
    let block = format!("{image}.block");
    fs::write(&block, vec![0xa5; 2048])?;
    let commands = format!("{image}.commands");
    fs::write(&commands, format!("jo\njw -b 4000,4001 {block}\njw -r 4002\njc\n"))?;
    tool("debugfs", &["-w", "-f", &commands, image])?;
    fs::remove_file(block)?;
    Ok(fs::remove_file(commands)?)
}

fn make_fat(tree: &Path, blank: Blank<'_>) -> Result<()> {
    let file = tree.join("etc/text").to_string_lossy().into_owned();
    let kinds: [(&str, u64, &[&str]); 4] = [
        ("fat12.img", 1 << 20, &["-F", "12"]),
        ("fat16.img", 8 << 20, &["-F", "16", "-s", "1"]),
        ("fat32.img", 40 << 20, &["-F", "32", "-s", "1"]),
        ("fat16-4096.img", 32 << 20, &["-F", "16", "-S", "4096", "-s", "1"]),
    ];
    for (name, size, options) in kinds {
        let image = blank(name, size)?;
        tool("mkfs.fat", &[options, &["-n", "LABEL", &image]].concat())?;
        tool("mmd", &["-i", &image, "::folder with a long name"])?;
        for to in ["::TEXT.TXT", "::a long name of a file.text", "::folder with a long name/same"] {
            tool("mcopy", &["-i", &image, &file, to])?;
        }
    }
    Ok(())
}

fn make_tables(blank: Blank<'_>) -> Result<()> {
    let gpt = blank("gpt.img", 8 << 20)?;
    tool("sgdisk", &["-n1:0:+1M", "-t1:ef00", "-c1:boot", "-n5:0:0", "-c5:rest", &gpt])?;
    let hybrid = blank("gpt-hybrid.img", 8 << 20)?;
    tool("sgdisk", &["-n1:0:+1M", "-n2:0:0", "-h1", &hybrid])?;
    let mbr = blank("mbr.img", 16 << 20)?;
    let script = format!("{mbr}.script");
    fs::write(
        &script,
        "label: dos\nsize=1M,type=83,bootable\nsize=8M,type=5\nsize=1M,type=82\nsize=1M,type=83\nsize=1M,type=7\n",
    )?;
    let program = deps::find_command("sfdisk").context("sfdisk is not there")?;
    let output = Command::new(program).args(["-q", &mbr]).stdin(fs::File::open(&script)?).output()?;
    ensure!(output.status.success(), "sfdisk: {}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::remove_file(script)?)
}

fn make_archives(tree: &Path, seeds: &Path) -> Result<()> {
    let from = tree.to_string_lossy().into_owned();
    let kinds: [(&str, &[&str]); 5] = [
        ("gnu", &["--format=gnu", "--sparse"]),
        ("pax", &["--format=pax", "--xattrs", "--sparse", "--exclude=many"]),
        ("pax-0.1", &["--format=pax", "--sparse", "--sparse-version=0.1", "--exclude=many"]),
        ("ustar", &["--format=ustar", "--exclude=many"]),
        ("v7", &["--format=v7", "--exclude=many", "--exclude=hole"]),
    ];
    for (name, options) in kinds {
        let to = seeds.join(format!("{name}.tar")).to_string_lossy().into_owned();
        // A record of one block: no padding to 10 KiB.
        tool("tar", &[&["-b", "1", "-C", &from, "-cf", &to], options, &["."]].concat())?;
    }
    Ok(())
}
