//! The second half of the demo: the controller makes a machine on this machine's own node, changes it, takes a snapshot
//! of it, deletes it, and shows the record of its sanitization. Everything is asked for through its command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use uvm_tests::{ApplianceFiles, Store};

use super::Times;

const PROJECT: &str = "customer";
const MACHINE: &str = "web-2";
const RENAMED: &str = "web-2-renamed";
/// Small, since every byte of it is read or written several times under translation.
const DISK: &str = "1792MiB";
/// How long the node's utility VM may take to be in service.
const NODE: Duration = Duration::from_secs(120);
/// How long a guest may take to its login prompt.
const LOGIN: Duration = Duration::from_secs(600);

/// A controller that ends with this value.
struct Controller {
    child: Child,
    program: PathBuf,
    state: PathBuf,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Controller {
    fn start(folder: &Path, files: &ApplianceFiles, built: bool) -> Result<Self> {
        let program = build(built)?;
        let state = folder.join("controller");
        let log = fs::File::create(folder.join("controller.log")).context("making the controller's log")?;
        let child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--poll-interval", "2s", "--state"])
            .arg(&state)
            .arg("--kernel")
            .arg(&files.vmlinux)
            .arg("--initramfs")
            .arg(&files.initramfs)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut controller = Self { child, program, state };
        let url = controller.state.join("url");
        let deadline = Instant::now() + NODE;
        while !url.exists() {
            if let Some(status) = controller.child.try_wait()? {
                bail!("the controller ended with {status}");
            }
            ensure!(Instant::now() < deadline, "the controller does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(controller)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--state").arg(&self.state).stdin(Stdio::null());
        command
    }

    /// Runs a command as its user would, showing what it prints.
    fn show(&self, arguments: &[&str]) -> Result<()> {
        println!("\n$ uvm-controller {}", arguments.join(" "));
        let status = self.command(arguments).status().context("starting the command")?;
        ensure!(status.success(), "uvm-controller {}: {status}", arguments.join(" "));
        Ok(())
    }

    fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).arg("--json").output().context("starting the command")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "uvm-controller {}: {}", arguments.join(" "), said.trim());
        serde_json::from_slice(&output.stdout).context("reading the answer")
    }
}

/// The controller's program. A run of the tests has just built it.
fn build(built: bool) -> Result<PathBuf> {
    let program = crate::workspace_root().join("target/debug/uvm-controller");
    if built && program.is_file() {
        return Ok(program);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::workspace_root()).args(["build", "-p", "uvm-controller"]);
    ensure!(cargo.status().context("starting cargo")?.success(), "the controller was not built");
    Ok(program)
}

/// See the module. The name the second guest calls itself in the end.
pub(super) fn show(
    folder: &Path,
    files: &ApplianceFiles,
    (store, digest): (&Store, &str),
    built: bool,
    times: &mut Times,
) -> Result<()> {
    println!("\nthe controller, with this machine as its one node");
    for old in ["controller", "node"] {
        let _ = fs::remove_dir_all(folder.join(old));
    }
    let controller = Controller::start(folder, files, built)?;
    let node = folder.join("node");
    let result = machine(&controller, &node, store, digest, times);
    // What was started outlives the controller: that is its nature, and not wanted here.
    drop(controller);
    end_domains(&node);
    result
}

fn machine(
    controller: &Controller,
    node: &Path,
    store: &Store,
    digest: &str,
    times: &mut Times,
) -> Result<()> {
    let address = node.to_str().context("the folder's name is no text")?;
    times.measure("controller: node registered and in service", || {
        controller.show(&[
            "node",
            "add",
            "local",
            "--address",
            address,
            "--numa",
            "4:4GiB",
            "--storage",
            "32GiB",
        ])?;
        let deadline = Instant::now() + NODE;
        while controller.ask(&["node", "show", "local"])?["state"] != "ready" {
            ensure!(Instant::now() < deadline, "the node's utility VM is not in service");
            std::thread::sleep(Duration::from_millis(200));
        }
        controller.show(&["node", "list"])
    })?;
    let url = store.guest_url();
    controller.show(&["image", "add", "debian-12", "--oci-layout", &url, "--digest", digest])?;
    let machine = ["--project", PROJECT, "--watch"];
    let watched = |what: &[&str]| controller.show(&[what, &machine].concat());
    times.measure("controller: second machine made", || {
        let size = ["--vcpus", "2", "--memory", "768MiB", "--disk", DISK];
        watched(&[&["instance", "create", MACHINE, "--image", "debian-12"][..], &size].concat())
    })?;
    let id = instance_id(controller)?;
    let serial = node.join("domains").join(&id).join("serial.log");
    wait_for_login(&serial, MACHINE)?;
    times.measure("controller: host name and memory changed", || {
        watched(&["instance", "change", MACHINE, "--hostname", RENAMED, "--memory", "1GiB"])
    })?;
    wait_for_login(&serial, RENAMED)?;
    let found = controller.ask(&["instance", "show", MACHINE, "--project", PROJECT])?;
    ensure!(found["memory_mib"] == 1024, "the machine has {} MiB", found["memory_mib"]);
    times.measure("controller: snapshot taken", || watched(&["instance", "snapshot", MACHINE, "before"]))?;
    times.measure("controller: snapshot and machine sanitized and deleted", || {
        watched(&["snapshot", "delete", "before"])?;
        watched(&["instance", "delete", MACHINE])
    })?;
    let left: Vec<_> = fs::read_dir(node.join("pool"))?.collect();
    ensure!(left.is_empty(), "the pool still has {left:?}");
    let records = controller.ask(&["sanitization", "list", "--project", PROJECT])?;
    let records = records["items"].as_array().cloned().unwrap_or_default();
    ensure!(records.len() == 2, "there are {} records of sanitization, not 2", records.len());
    for record in &records {
        ensure!(record["complete"] == true && record["method"] == "clear", "{record}");
    }
    controller.show(&["sanitization", "show", records[0]["id"].as_str().context("a record has an id")?])?;
    controller.show(&["capacity"])
}

fn instance_id(controller: &Controller) -> Result<String> {
    let found = controller.ask(&["instance", "show", MACHINE, "--project", PROJECT])?;
    found["id"].as_str().map(str::to_owned).with_context(|| format!("an instance without an id: {found}"))
}

fn wait_for_login(serial: &Path, hostname: &str) -> Result<()> {
    let deadline = Instant::now() + LOGIN;
    let prompt = format!("{hostname} login:");
    loop {
        let printed = fs::read(serial).unwrap_or_default();
        if String::from_utf8_lossy(&printed).contains(&prompt) {
            println!("the guest says: {prompt}");
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{prompt:?} did not appear in {}", serial.display());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Ends the QEMU processes of a node by the process ids they left, where those are still theirs.
fn end_domains(node: &Path) {
    for domain in fs::read_dir(node.join("domains")).into_iter().flatten().flatten() {
        let Ok(pid) = fs::read_to_string(domain.path().join("pid")) else { continue };
        let line = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&domain.path().display().to_string()) {
            let _ = Command::new("kill").arg(pid.trim()).stderr(Stdio::null()).status();
        }
    }
}
