//! `cargo xtask appliance`: the kernel and one static binary in an initramfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cache;
use crate::cpio::{Archive, DeviceNumber};
use crate::kernel;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The limit of kernel and initramfs together, as they are downloaded and kept: the compressed kernel counts.
const SIZE_LIMIT: u64 = 16 << 20;

/// The files the utility VM boots from, in target/appliance.
#[derive(Clone, Debug)]
pub(crate) struct Appliance {
    /// The kernel for direct boot by PVH.
    pub(crate) vmlinux: PathBuf,
    /// The kernel for everything else.
    pub(crate) bzimage: PathBuf,
    /// The archive with `/init`.
    pub(crate) initramfs: PathBuf,
}

/// Builds the appliance with the default kernel.
pub(crate) fn build() -> Result<Appliance> {
    build_with(&[])
}

/// Builds the appliance with optional kernel fragments.
pub(crate) fn build_with(fragments: &[String]) -> Result<Appliance> {
    let root = crate::workspace_root();
    let kernel = kernel::build(fragments)?;
    let binary = build_binary(&root)?;
    let folder = root.join("target/appliance");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let appliance = Appliance {
        vmlinux: folder.join("vmlinux"),
        bzimage: folder.join("bzImage"),
        initramfs: folder.join("initramfs"),
    };
    cache::copy_whole(&kernel.vmlinux, &appliance.vmlinux)?;
    cache::copy_whole(&kernel.bzimage, &appliance.bzimage)?;
    let archive = initramfs(&binary)?;
    let partial = folder.join(format!("initramfs.{}.partial", std::process::id()));
    fs::write(&partial, archive).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, &appliance.initramfs)?;
    report(&appliance, &binary)?;
    Ok(appliance)
}

/// Builds `uvm` as one file that needs no loader and no library.
fn build_binary(root: &Path) -> Result<Vec<u8>> {
    // A folder of its own: other flags in the usual one would make cargo build everything anew, each time.
    let target = root.join("target/static");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["build", "--release", "--package", "uvm-init", "--bin", "uvm"]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = cargo.status().context("starting cargo")?;
    ensure!(status.success(), "building the static uvm failed");
    let path = target.join(TARGET).join("release/uvm");
    let binary = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(is_static(&binary)?, "{} is not static: it names a program interpreter", path.display());
    Ok(binary)
}

/// Whether an ELF file runs without a dynamic loader: it has no PT_INTERP header.
fn is_static(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u32 = 3;
    let bytes = |offset: usize, length: usize| {
        let end = offset.checked_add(length);
        end.and_then(|end| elf.get(offset..end)).context("the ELF file is cut short")
    };
    let half = |offset| Ok::<_, anyhow::Error>(u16::from_le_bytes(bytes(offset, 2)?.try_into()?) as usize);
    ensure!(bytes(0, 6)? == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file");
    let headers = usize::try_from(u64::from_le_bytes(bytes(32, 8)?.try_into()?))?;
    let (size, count) = (half(54)?, half(56)?);
    for index in 0..count {
        let offset = headers.checked_add(index * size).context("the ELF header points past its file")?;
        if u32::from_le_bytes(bytes(offset, 4)?.try_into()?) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Not compressed: unpacking 10 MiB of zstd takes the kernel 0.3 s more under TCG than copying them.
fn initramfs(binary: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for name in ["dev", "proc", "sys", "run", "tmp", "etc"] {
        archive.directory(name, if name == "tmp" { 0o1777 } else { 0o755 })?;
    }
    // The kernel opens it for PID 1 before anything can be mounted.
    archive.character_device("dev/console", 0o600, DeviceNumber { major: 5, minor: 1 })?;
    // Rust's runtime ends a program whose standard streams are closed, as they are where there is no console,
    // unless it can open this.
    archive.character_device("dev/null", 0o666, DeviceNumber { major: 1, minor: 3 })?;
    archive.file("init", 0o755, binary)?;
    Ok(archive.finish()?)
}

fn report(appliance: &Appliance, binary: &[u8]) -> Result<()> {
    let size = |path: &Path| Ok::<_, anyhow::Error>(fs::metadata(path)?.len());
    let (vmlinux, bzimage) = (size(&appliance.vmlinux)?, size(&appliance.bzimage)?);
    let initramfs = size(&appliance.initramfs)?;
    let row = |name: &str, bytes: u64| println!("  {name:<22}{:>8.2} MiB", bytes as f64 / f64::from(1 << 20));
    println!("target/appliance:");
    row("bzImage", bzimage);
    row("vmlinux", vmlinux);
    row("uvm, static", binary.len() as u64);
    row("initramfs", initramfs);
    row("bzImage + initramfs", bzimage + initramfs);
    row("vmlinux + initramfs", vmlinux + initramfs);
    if bzimage + initramfs > SIZE_LIMIT {
        bail!("kernel and initramfs together are larger than {} MiB", SIZE_LIMIT >> 20);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        // The test itself runs through the dynamic loader.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(!is_static(&own).unwrap());
        let mut cut = own.clone();
        cut.truncate(70);
        assert!(is_static(&cut).is_err());
        assert!(is_static(b"#!/bin/sh\n").is_err());
    }
}
