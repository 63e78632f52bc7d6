//! The walls of the house, the policy on dependencies, and the house style where a machine can check it.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const LEAVES: [&str; 5] = ["uvm-api", "uvm-sys", "uvm-disk", "uvm-guest", "uvm-placement"];
/// What only the hub may know: JSON, HTTP, TLS, an async runtime, the command line.
const ABOVE_THE_LEAVES: [&str; 9] =
    ["anyhow", "axum", "clap", "hyper", "rustls", "serde", "serde_json", "ureq", "utoipa"];
/// Steps of jobs: they carry out a plan, and never see the request it was made from.
const STEPS: [&str; 8] = [
    "job/copy.rs",
    "job/customize.rs",
    "job/format.rs",
    "job/inspect.rs",
    "job/partition.rs",
    "job/provision.rs",
    "job/sanitize.rs",
    "job/table.rs",
];
const REQUESTS: [&str; 15] = [
    "BootSpec",
    "CaptureSpec",
    "CloneSpec",
    "CustomizeJobSpec",
    "CustomizeSpec",
    "DiskSpec",
    "ImageSpec",
    "JobSpec",
    "PartitionJobSpec",
    "PartitionSpec",
    "ProvisionSpec",
    "RestoreSpec",
    "SanitizeSpec",
    "StreamSource",
    "StreamTarget",
];
const LICENSES: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Zlib",
];
/// A file longer than this without its tests is two rooms.
const MAX_LINES: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(root()).output().expect(program);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn metadata(arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["metadata", "--format-version", "1", "--locked"], arguments].concat();
    let document: Value = serde_json::from_str(&output(env!("CARGO"), &arguments)).unwrap();
    let packages = document["packages"].as_array().unwrap().clone();
    assert!(packages.len() >= 6);
    packages
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

/// Dependencies of each workspace crate, those of tests apart.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|dependency| dependency["kind"] != "dev").map(|d| name(d).to_owned()).collect()
    };
    metadata(&["--no-deps"]).iter().map(|package| (name(package).to_owned(), of(package))).collect()
}

/// The Rust sources beneath a folder of the workspace, by their paths in it.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut pending = vec![root().join(folder)];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let shown = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((shown, std::fs::read_to_string(&path).unwrap()));
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found
}

/// Whether the file holds nothing but tests.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("tests.rs") || path.contains("/benches/")
}

/// The lines of code before the module of tests, comments left out.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]" || line.starts_with(' '));
    lines.map(|line| line.split("//").next().unwrap_or_default())
}

/// Words of Rust: letters, digits and underscores.
fn says(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

#[test]
fn leaves_import_no_workspace_crate_and_the_hub_only_leaves() {
    let dependencies = dependencies();
    let members: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    for leaf in LEAVES {
        let crossed: Vec<_> = dependencies[leaf].iter().filter(|d| members.contains(d.as_str())).collect();
        assert!(crossed.is_empty(), "{leaf} imports {crossed:?}");
    }
    let of_hub: Vec<&str> =
        dependencies["uvm-init"].iter().map(String::as_str).filter(|d| members.contains(d)).collect();
    assert_eq!(of_hub, ["uvm-api", "uvm-disk", "uvm-guest", "uvm-sys"]);
    let of_server: Vec<&str> =
        dependencies["uvm-controller"].iter().map(String::as_str).filter(|d| members.contains(d)).collect();
    assert_eq!(of_server, ["uvm-api", "uvm-placement"]);
    let of_fuzz: Vec<&str> =
        dependencies["uvm-fuzz"].iter().map(String::as_str).filter(|d| members.contains(d)).collect();
    assert_eq!(of_fuzz, ["uvm-disk", "uvm-guest"]);
    assert!(dependencies["uvm-placement"].is_empty(), "placement is pure");
}

#[test]
fn leaves_have_not_heard_of_json_or_http() {
    let dependencies = dependencies();
    for leaf in ["uvm-sys", "uvm-disk", "uvm-guest"] {
        let known: Vec<_> =
            ABOVE_THE_LEAVES.iter().filter(|name| dependencies[leaf].contains(**name)).collect();
        assert!(known.is_empty(), "{leaf} depends on {known:?}");
    }
    let api: Vec<&str> = dependencies["uvm-api"].iter().map(String::as_str).collect();
    assert_eq!(api, ["serde", "serde_json", "utoipa"], "the wire contract is types only");
}

#[test]
fn leaves_are_synchronous() {
    // The one exception speaks netlink through a library that has no other way.
    let allowed = ["uvm/sys/src/net.rs"];
    for folder in ["uvm/api", "uvm/disk", "uvm/guest", "uvm/sys"] {
        for (path, text) in sources(folder).iter().filter(|(path, _)| !is_test(path)) {
            let found = code(text).find(|line| says(line, "async") || says(line, "tokio"));
            assert!(found.is_none() || allowed.contains(&path.as_str()), "{path}: {found:?}");
        }
    }
}

#[test]
fn the_controllers_core_and_placement_are_pure() {
    // Time, chance, threads and files come in as values, or not at all.
    let words = ["Instant", "SystemTime", "thread", "fs", "net", "rand", "tokio", "rusqlite", "Mutex"];
    for folder in ["controller/server/src/core", "controller/placement/src"] {
        for (path, text) in sources(folder).iter().filter(|(path, _)| !is_test(path)) {
            for line in code(text).filter(|line| line.trim_start().starts_with("use ") || line.contains("::"))
            {
                let found = words.iter().find(|word| says(line, word));
                assert!(found.is_none(), "{path}: {line}");
            }
        }
    }
}

#[test]
fn unsafe_is_in_sys_alone() {
    let mut in_sys = 0;
    for folder in ["uvm", "controller", "xtask", "tests"] {
        for (path, text) in sources(folder) {
            let opened = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code"];
            let found = code(&text).any(|line| opened.iter().any(|word| line.contains(word)));
            // This file names the words it looks for.
            if path.starts_with("uvm/sys/") {
                in_sys += usize::from(found);
            } else if path != "tests/tests/walls.rs" {
                assert!(!found, "{path} says unsafe");
            }
        }
    }
    assert!(in_sys > 0, "the search finds what is there");
}

#[test]
fn the_utility_vm_starts_no_process() {
    let words = ["process::Command", "fork(", "execve", "posix_spawn", "CommandExt"];
    for (path, text) in sources("uvm").iter().filter(|(path, _)| !is_test(path)) {
        for line in code(text) {
            let grouped = line.contains("std::process::{") && says(line, "Command");
            assert!(!grouped && !words.iter().any(|word| line.contains(word)), "{path}: {line}");
        }
    }
}

#[test]
fn leaves_meet_in_adapters() {
    // Kernel interfaces and bytes on a disk meet where a device is opened, nowhere in the jobs' own steps.
    for (path, text) in sources("uvm/init/src").iter().filter(|(path, _)| !is_test(path)) {
        let knows = |leaf: &str| code(text).any(|line| says(line, leaf));
        if path.contains("/adapter/") || path.contains("/job/") {
            continue;
        }
        let leaves = ["uvm_sys", "uvm_disk", "uvm_guest"].iter().filter(|leaf| knows(leaf)).count();
        assert!(leaves <= 1, "{path} joins {leaves} leaves outside of adapter/ and job/");
    }
}

#[test]
fn image_and_adapters_have_not_heard_of_the_wire() {
    for folder in ["uvm/init/src/image", "uvm/init/src/adapter"] {
        for (path, text) in sources(folder) {
            assert!(!code(&text).any(|line| says(line, "uvm_api")), "{path} names types of the wire");
        }
    }
    let mut steps = 0;
    for (path, text) in sources("uvm/init/src/job").iter().filter(|(path, _)| !is_test(path)) {
        let json = code(text).any(|line| says(line, "serde_json"));
        let spoken = ["job/plan.rs", "job/journal.rs"];
        assert!(!json || spoken.iter().any(|end| path.ends_with(end)), "{path} speaks JSON");
        if STEPS.iter().any(|end| path.ends_with(end)) {
            steps += 1;
            let read = REQUESTS.iter().find(|name| code(text).any(|line| says(line, name)));
            assert!(read.is_none(), "{path} reads {read:?} instead of the plan");
        }
    }
    assert_eq!(steps, STEPS.len());
}

#[test]
fn no_path_of_a_developers_machine() {
    let here = root().to_str().unwrap().to_owned();
    let home = std::env::var("HOME").unwrap_or_default();
    // In two pieces, or this file would be the first to be found.
    let needles =
        [here, format!("{home}/.cargo"), format!("{home}/.cache"), ["/.cargo", "/registry/"].concat()];
    let files = output("git", &["ls-files", "--cached", "--others", "--exclude-standard"]);
    let mut looked = 0;
    for file in files.lines() {
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        looked += 1;
        for needle in &needles {
            assert!(!text.contains(needle), "{file} names {needle}");
        }
    }
    assert!(looked > 50);
}

/// Whether some way to read the expression (SPDX, or the older `A/B`) needs only allowed licenses.
fn allowed(expression: &str) -> bool {
    fn alternatives(text: &str) -> bool {
        split(text, " OR ").iter().any(|part| split(part, " AND ").iter().all(|term| term_allowed(term)))
    }
    fn term_allowed(term: &str) -> bool {
        match term.trim().strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
            Some(inner) => alternatives(inner),
            None => LICENSES.contains(&term.trim()),
        }
    }
    /// Splits outside of parentheses.
    fn split<'t>(text: &'t str, by: &str) -> Vec<&'t str> {
        let (mut depth, mut begun, mut parts) = (0, 0, Vec::new());
        for (at, c) in text.char_indices() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                ' ' if depth == 0 && text[at..].starts_with(by) && at >= begun => {
                    parts.push(&text[begun..at]);
                    begun = at + by.len();
                }
                _ => {}
            }
        }
        parts.push(&text[begun..]);
        parts
    }
    alternatives(&expression.replace('/', " OR "))
}

#[test]
fn every_license_is_one_we_may_ship() {
    for good in
        ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0", "MIT AND ISC"]
    {
        assert!(allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-2.0", "(MIT OR ISC) AND MPL-2.0", "MPL-2.0", ""] {
        assert!(!allowed(bad), "{bad}");
    }
    let packages = metadata(&[]);
    assert!(packages.len() > 100);
    for package in &packages {
        let license = package["license"].as_str().unwrap_or_default();
        assert!(allowed(license), "{} {} is under {license:?}", name(package), package["version"]);
    }
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let members: BTreeSet<String> = dependencies().into_keys().collect();
    for package in metadata(&[]) {
        match package["source"].as_str() {
            None => assert!(members.contains(name(&package)), "{} is no member", name(&package)),
            Some(source) => {
                let registry = "registry+https://github.com/rust-lang/crates.io-index";
                assert_eq!(source, registry, "{}", name(&package));
            }
        }
    }
}

#[test]
fn versions_stand_once_in_the_workspace() {
    for package in metadata(&["--no-deps"]) {
        let manifest = std::fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        let mut inside = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
            } else if inside && !line.trim().is_empty() && !line.starts_with('#') {
                assert!(line.contains("workspace = true"), "{}: {line}", name(&package));
            }
        }
    }
}

#[test]
fn no_file_is_two_rooms() {
    for folder in ["uvm", "controller", "xtask/src", "tests/src"] {
        for (path, text) in sources(folder).iter().filter(|(path, _)| !is_test(path)) {
            let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
            assert!(lines <= MAX_LINES, "{path} has {lines} lines without its tests");
        }
    }
}
