//! What the tests of the host command share: the program, disks as files, jobs, and images made by hand.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod image;
pub mod judge;

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use serde_json::{Value, json};
use uvm_api::{DiskState, ErrorCode, Event, EventBody, JobResult, Problem};

pub const MIB: u64 = 1 << 20;
/// The serial that the jobs name.
pub const SERIAL: &str = "DISK-1";
pub const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f anna@example";

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The program under test: `UVM_BINARY`, or what cargo builds of this tree.
pub fn uvm() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("UVM_BINARY") {
            return path.into();
        }
        let output = Command::new(env!("CARGO"))
            .args(["build", "-p", "uvm-init", "--bin", "uvm", "--message-format=json-render-diagnostics"])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).unwrap();
        let built = messages.lines().find_map(|line| {
            let message: Value = serde_json::from_str(line).ok()?;
            message["executable"].as_str().filter(|path| path.ends_with("/uvm")).map(PathBuf::from)
        });
        built.expect("cargo names the program it built")
    })
}

/// Runs a foreign tool, which has to be there; whether it was content, and what it said.
pub fn ask<S: AsRef<std::ffi::OsStr>>(tool: &str, arguments: &[S]) -> (bool, String) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(tool).args(arguments).env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("the judge {tool} is missing: {error}"));
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Runs a tool that must be content.
pub fn run<S: AsRef<std::ffi::OsStr>>(tool: &str, arguments: &[S]) -> String {
    let (content, said) = ask(tool, arguments);
    let words: Vec<String> = arguments.iter().map(|a| a.as_ref().to_string_lossy().into_owned()).collect();
    assert!(content, "{tool} {}: {said}", words.join(" "));
    said
}

/// A plain file as a disk.
pub struct Disk {
    pub path: PathBuf,
    pub block: u32,
    pub folder: tempfile::TempDir,
}

impl Disk {
    /// A sparse file whose beginning and end hold what a wipe must take away.
    pub fn new(size: u64, block: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = folder.path().join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&[0xee; 8192], 0).unwrap();
        file.write_all_at(&[0xee; 8192], size - 8192).unwrap();
        Self { path, block, folder }
    }

    pub fn size(&self) -> u64 {
        self.path.metadata().unwrap().len()
    }

    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Whether no partition table can be there: first and last MiB are zero.
    pub fn has_no_table(&self) -> bool {
        let zero = |offset| self.read(offset, MIB).iter().all(|byte| *byte == 0);
        zero(0) && zero(self.size() - MIB)
    }

    /// A digest of every byte.
    pub fn digest(&self) -> String {
        run("sha256sum", &[&self.path]).split(' ').next().unwrap().to_owned()
    }

    /// The arguments that give this disk to a command.
    pub fn arguments(&self) -> Vec<String> {
        vec![
            "--device".to_owned(),
            format!("{SERIAL}={}", self.path.display()),
            "--logical-block-size".to_owned(),
            self.block.to_string(),
        ]
    }
}

/// How a run of the program ended.
#[derive(Debug)]
pub struct Ended {
    pub status: i32,
    pub events: Vec<Event>,
    pub refusal: Option<Problem>,
    pub said: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut ended = Self {
            status: output.status.code().unwrap_or(-1),
            events: Vec::new(),
            refusal: None,
            said: said.clone() + &String::from_utf8_lossy(&output.stderr),
        };
        for line in said.lines() {
            match serde_json::from_str::<Event>(line) {
                Ok(event) => ended.events.push(event),
                Err(_) => ended.refusal = Some(serde_json::from_str(line).expect("an event or a problem")),
            }
        }
        ended
    }

    pub fn result(&self) -> &JobResult {
        assert_eq!(self.status, 0, "{}", self.said);
        match &self.events.last().expect("there are events").body {
            EventBody::Succeeded { disk_state: DiskState::Complete, result } => result,
            other => panic!("{other:?}"),
        }
    }

    pub fn problem(&self) -> &Problem {
        match (self.events.last().map(|event| &event.body), &self.refusal) {
            (_, Some(problem)) => problem,
            (Some(EventBody::Failed { problem }), _) => problem,
            _ => panic!("no problem: {}", self.said),
        }
    }

    /// The end every failed job must come to.
    pub fn failed(&self, code: ErrorCode, state: DiskState, step: &str) -> &Problem {
        let problem = self.problem();
        assert_eq!(problem.code, code, "{problem:#?}");
        assert_eq!(problem.disk_state, Some(state), "{problem:#?}");
        assert_eq!(problem.step.as_deref(), Some(step), "{problem:#?}");
        assert_eq!(self.status, if state == DiskState::Untouched { 2 } else { 3 }, "{}", self.said);
        problem
    }
}

fn job_file(job: &Value, disk: &Disk) -> PathBuf {
    let path = disk.folder.path().join("job.json");
    std::fs::write(&path, serde_json::to_vec_pretty(job).unwrap()).unwrap();
    path
}

/// `uvm apply --json`, ready to run.
pub fn apply_command(job: &Value, disk: &Disk) -> Command {
    let mut command = Command::new(uvm());
    command.arg("apply").arg(job_file(job, disk)).arg("--json").args(disk.arguments());
    command
}

pub fn apply(job: &Value, disk: &Disk) -> Ended {
    Ended::of(apply_command(job, disk).output().unwrap())
}

/// `uvm plan --json`: status and document.
pub fn plan(job: &Value, disk: &Disk) -> (i32, Value) {
    let mut command = Command::new(uvm());
    command.arg("plan").arg(job_file(job, disk)).arg("--json").args(disk.arguments());
    let output = command.output().unwrap();
    let document = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().unwrap(), document)
}

/// A job for a machine named `web-1` with the user `anna`.
pub fn provision(id: &str, url: &str, digest: &str) -> Value {
    json!({
        "kind": "provision",
        "id": id,
        "device": {"serial": SERIAL},
        "image": {"source": {"oci-layout": {"url": url}}, "digest": digest},
        "customize": {
            "hostname": "web-1.example.org",
            "users": [{"name": "anna", "gecos": "Anna", "ssh_authorized_keys": [KEY]}],
            "network": {"version": 2, "ethernets": {"lan": {
                "match": {"macaddress": "52:54:00:12:34:56"},
                "addresses": ["192.0.2.10/24"],
                "routes": [{"to": "default", "via": "192.0.2.1"}],
                "nameservers": {"addresses": ["192.0.2.53"], "search": ["example.org"]},
            }}},
        },
        "boot": {"consoles": ["ttyS0"], "kernel_arguments": ["quiet"]},
    })
}

/// The same on a disk of 256 MiB.
pub fn small(id: &str, url: &str, digest: &str) -> Value {
    let mut job = provision(id, url, digest);
    job["partitions"] = json!([
        {"label": "esp", "size_mib": 64, "filesystem": {"format": "vfat", "path": "/boot/efi"}},
        {"label": "swap", "size_mib": 16, "filesystem": {"format": "swap"}},
        {"label": "root", "filesystem": {"format": "ext4", "path": "/"}},
    ]);
    job
}

pub fn small_disk() -> Disk {
    Disk::new(256 * MIB, 512)
}
