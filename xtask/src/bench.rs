//! `cargo xtask bench`: measures, and puts the table into docs/bench.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::deps::{self, Need};

/// What can be measured.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Subject {
    /// Placement, and the controller under load
    Controller,
    /// Formatting, filling and scanning file systems
    Disk,
}

/// What is measured beside.
const DISK_NEEDS: [Need; 5] = [
    need("mkfs.ext4", "e2fsprogs"),
    need("mmdebstrap", "mmdebstrap"),
    need("mount", "mount"),
    need("strace", "strace"),
    need("tar", "tar"),
];

const fn need(probe: &'static str, package: &'static str) -> Need {
    Need { probe, package, why: "measure beside it" }
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Disk => "disk",
        }
    }
}

/// Runs the benchmark in release mode and keeps its table.
pub(crate) fn run(subject: Subject) -> Result<()> {
    let name = subject.name();
    let root = crate::workspace_root();
    let mut cargo = cargo(&root);
    if let Subject::Disk = subject {
        deps::ensure(&DISK_NEEDS)?;
        cargo.env("UVM_BINARY", build_uvm(&root)?);
    }
    cargo.args(["bench", "-p", "uvm-tests", "--bench", name]);
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    let text = String::from_utf8(output.stdout).context("the benchmark's output is no text")?;
    ensure!(output.status.success(), "the benchmark ended with {}", output.status);
    let table: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
    ensure!(table.len() > 2, "the benchmark printed no table: {text}");
    let table = table.join("\n");
    println!("{table}");
    let path = root.join("docs/bench.md");
    let kept = fs::read_to_string(&path).unwrap_or_else(|_| "# Measured\n".to_owned());
    fs::write(&path, replaced(&kept, name, &table)).with_context(|| format!("writing {}", path.display()))
}

fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}

/// The host command as its users have it.
fn build_uvm(root: &Path) -> Result<PathBuf> {
    let mut build = cargo(root);
    build.args([
        "build",
        "--release",
        "-p",
        "uvm-init",
        "--bin",
        "uvm",
        "--message-format=json-render-diagnostics",
    ]);
    let output = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    ensure!(output.status.success(), "building uvm failed");
    let messages = String::from_utf8(output.stdout).context("cargo's messages are no text")?;
    let built = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().filter(|path| path.ends_with("/uvm")).map(PathBuf::from)
    });
    built.context("cargo named no program that it built")
}

/// The document with another table between the marks of its subject; at its end where there are none.
fn replaced(document: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let section = format!("{begin}\n{table}\n{end}");
    match (document.find(&begin), document.find(&end)) {
        (Some(from), Some(to)) if from < to => {
            format!("{}{section}{}", &document[..from], &document[to + end.len()..])
        }
        _ => format!("{}\n\n## {name}\n\n{section}\n", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::replaced;

    #[test]
    fn a_table_takes_the_place_of_the_older_one() {
        let first = replaced("# Measured\n", "x", "| 1 |");
        assert_eq!(first, "# Measured\n\n## x\n\n<!-- x -->\n| 1 |\n<!-- /x -->\n");
        assert_eq!(replaced(&first, "x", "| 2 |"), first.replace("| 1 |", "| 2 |"));
    }
}
