//! The real process, killed for real: by SIGKILL before and after each flush of the store's log, while a machine is made
//! and deleted. And a disk that is full.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use uvm_controller::config::{FileFlag, ServeConfig, ServeFlags};
use uvm_controller::hypervisor::fake::{FakeCapabilities, FakeHypervisor, FakeUtilityVm};
use uvm_controller::model::{NodeCapacity, NumaCapacity};
use uvm_controller::runtime::nodes::{Factory, NodeAddress, Opened};
use uvm_controller::serve::Controller;

const STATE: &str = "UVM_KILLED_STATE";
const PATIENCE: Duration = Duration::from_secs(60);
/// Flushes at most that one workflow is tried with.
const MAX_FLUSHES: u32 = 200;

/// Kills the process at the n-th flush of a file of that name: before it where n is positive, else after it.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int at(int fd, int after) {
    static long seen[2];
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, "controller.db-wal")) return 0;
    const char *text = getenv("KILL_AT");
    long wanted = text ? atol(text) : 0;
    long count = __atomic_add_fetch(&seen[after], 1, __ATOMIC_SEQ_CST);
    if (wanted && (after ? -wanted : wanted) == count) raise(SIGKILL);
    return 0;
}

#define WRAP(name) int name(int fd) { \
    int (*real)(int) = dlsym(RTLD_NEXT, #name); \
    at(fd, 0); int result = real(fd); at(fd, 1); return result; }
WRAP(fsync)
WRAP(fdatasync)
"#;

fn capacity() -> NodeCapacity {
    NodeCapacity { numa: vec![NumaCapacity { vcpus: 8, memory_mib: 8192 }], storage_mib: 65_536 }
}

/// The controller's process: only where it was told a state folder.
#[test]
fn serves_where_it_is_told_to() {
    let Some(state) = std::env::var_os(STATE).map(PathBuf::from) else { return };
    let nodes = state.with_extension("node");
    let factory: Factory = Box::new(move |_: &NodeAddress| {
        let manager = FakeHypervisor::open(&nodes, capacity(), FakeCapabilities::Qemu.capabilities());
        let manager = Arc::new(manager.unwrap());
        let utility = Arc::new(FakeUtilityVm::new(Arc::clone(&manager)));
        Ok(Opened { manager, utility: Some(utility) })
    });
    let flags = ServeFlags {
        state: Some(state),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        poll_interval: Some(Duration::from_secs(1)),
        ..ServeFlags::default()
    };
    let config = ServeConfig::load(&FileFlag::default(), flags, &std::iter::empty().collect()).unwrap();
    let _controller = Controller::start(&config, factory, String::new()).unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

struct Process {
    child: Child,
    state: PathBuf,
    agent: Agent,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(state: &Path, shim: Option<(&Path, i64)>) -> Self {
        let _ = std::fs::remove_file(state.join("url"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["serves_where_it_is_told_to", "--exact", "--nocapture"]).env(STATE, state);
        if let Some((library, at)) = shim {
            command.env("LD_PRELOAD", library).env("KILL_AT", at.to_string());
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !state.join("url").exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the controller does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        let pem = std::fs::read(state.join("ca.pem")).unwrap();
        let root = Certificate::from_pem(&pem).unwrap();
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root])).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        Self { child, state: state.to_owned(), agent }
    }

    /// A call; `None` where there was no answer.
    fn call(&self, method: &str, path: &str, key: &str, body: Option<&Value>) -> Option<(u16, Value)> {
        let read = |name: &str| std::fs::read_to_string(self.state.join(name)).ok();
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", read("url")?));
        let request = request.header("authorization", format!("Bearer {}", read("operator.token")?.trim()));
        let request = request.header("idempotency-key", key).header("content-type", "application/json");
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut answer = self.agent.run(request.body(body).unwrap()).ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        Some((answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.call("GET", path, "none", None).map(|(_, value)| value)
    }

    fn killed(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Until no job runs, or the process is gone.
    fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.killed() {
            assert!(Instant::now() < deadline, "the jobs do not end");
            let jobs = self.get("/v1/jobs?limit=1000");
            let open = jobs.as_ref().and_then(|jobs| jobs["items"].as_array()).is_none_or(|jobs| {
                jobs.iter()
                    .any(|job| ["running", "undoing"].contains(&job["state"].as_str().unwrap_or_default()))
            });
            if !open {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn machine() -> Value {
    json!({ "name": "web", "project": "acme", "vcpus": 1, "memory_mib": 256, "image": "debian",
        "disks": [{ "size_mib": 64 }] })
}

/// A state folder with a node in service and an image.
fn template(folder: &Path) -> PathBuf {
    let state = folder.join("template");
    let mut process = Process::start(&state, None);
    let node = json!({ "name": "n1", "hypervisor": "qemu", "address": "n1", "capacity": capacity() });
    assert_eq!(process.call("POST", "/v1/nodes", "n", Some(&node)).unwrap().0, 201);
    let source = json!({ "oci-layout": { "url": "https://images.example" } });
    let image = json!({ "name": "debian", "source": source, "digest": format!("sha256:{}", "0".repeat(64)) });
    assert_eq!(process.call("POST", "/v1/images", "i", Some(&image)).unwrap().0, 201);
    let deadline = Instant::now() + PATIENCE;
    while process.get("/v1/nodes").unwrap()["items"][0]["state"] != "ready" {
        assert!(Instant::now() < deadline, "the node is not in service");
        std::thread::sleep(Duration::from_millis(20));
    }
    process.settle();
    state
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let status = Command::new(program).args(arguments).status().expect(program);
    assert!(status.success(), "{program} {arguments:?}");
}

fn shim(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    std::fs::write(&source, SHIM).unwrap();
    run(
        "cc",
        &[
            "-shared".as_ref(),
            "-fPIC".as_ref(),
            "-o".as_ref(),
            library.as_ref(),
            source.as_ref(),
            "-ldl".as_ref(),
        ],
    );
    library
}

/// What is really there: guests and volumes.
fn really(state: &Path) -> (usize, usize) {
    let text = std::fs::read_to_string(state.with_extension("node")).unwrap();
    let node = FakeHypervisor::from_json(&text).unwrap();
    assert!(node.violations().is_empty(), "{:?}", node.violations());
    // One domain is the utility VM's.
    (node.domains().len() - 1, node.volumes().len())
}

#[test]
fn killed_at_any_flush_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (library, template) = (shim(folder.path()), template(folder.path()));
    let mut kills = 0;
    for direction in [1, -1] {
        for nth in 1..=MAX_FLUSHES {
            let state = folder.path().join("state");
            for (from, to) in [
                (template.clone(), state.clone()),
                (template.with_extension("node"), state.with_extension("node")),
            ] {
                let _ = std::fs::remove_dir_all(&to);
                run("cp", &["-a".as_ref(), from.as_ref(), to.as_ref()]);
            }
            let at = i64::from(nth) * direction;
            let mut process = Process::start(&state, Some((&library, at)));
            let promised = process.call("POST", "/v1/instances", "create", Some(&machine()));
            process.settle();
            let mut gone = None;
            if !process.killed() {
                let id = promised.as_ref().unwrap().1["id"].as_str().unwrap().to_owned();
                gone = process.call("DELETE", &format!("/v1/instances/{id}"), "delete", None);
                process.settle();
            }
            let killed = process.killed();
            drop(process);
            let mut process = Process::start(&state, None);
            process.settle();
            // The same request again is the same machine, whatever became of the first answer.
            if gone.is_none() {
                let (status, again) =
                    process.call("POST", "/v1/instances", "create", Some(&machine())).unwrap();
                assert!((200..300).contains(&status), "{at}: {status} {again}");
                if let Some((202, first)) = &promised {
                    assert_eq!(again["id"], first["id"], "{at}");
                }
                process.settle();
                let found = process.get("/v1/instances").unwrap();
                let deleting =
                    found["items"][0]["deleting"] == true || found["items"].as_array().unwrap().is_empty();
                if !deleting {
                    assert_eq!(found["items"][0]["observed_state"], "running", "{at}: {found}");
                    assert_eq!(really(&state), (1, 1), "{at}");
                    assert_eq!(process.get("/v1/disks").unwrap()["items"].as_array().unwrap().len(), 1);
                }
            } else {
                assert_eq!(really(&state), (0, 0), "{at}");
                let records = process.get("/v1/sanitizations").unwrap();
                assert_eq!(records["items"].as_array().unwrap().len(), 1, "{at}: {records}");
            }
            if !killed {
                assert!(nth > 10, "{nth} flushes are too few for a workflow");
                break;
            }
            kills += 1;
        }
    }
    println!("killed {kills} times");
    assert!(kills > 20, "{kills}");
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let small = folder.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=24m", "none"].map(AsRef::<std::ffi::OsStr>::as_ref);
    run("mount", &[&mount[..], &[small.as_ref()]].concat());
    let process = Process::start(&small.join("state"), None);
    let image = |name: &str| {
        let source = json!({ "oci-layout": { "url": "https://images.example" } });
        json!({ "name": name, "source": source, "digest": format!("sha256:{}", "0".repeat(64)) })
    };
    assert_eq!(process.call("POST", "/v1/images", "before", Some(&image("before"))).unwrap().0, 201);
    let ballast = small.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    let mut refused = None;
    for number in 0..200 {
        let (status, problem) = process
            .call("POST", "/v1/images", &format!("full-{number}"), Some(&image(&format!("full-{number}"))))
            .unwrap();
        if status != 201 {
            refused = Some((number, status, problem));
            break;
        }
    }
    let (number, status, problem) = refused.expect("the disk was full");
    assert_eq!((status, problem["code"].as_str()), (507, Some("store-failed")), "{problem}");
    assert_eq!(process.get("/healthz").unwrap()["status"], "ok");
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    let name = format!("full-{number}");
    let deadline = Instant::now() + PATIENCE;
    while process.call("POST", "/v1/images", &name, Some(&image(&name))).unwrap().0 != 201 {
        assert!(Instant::now() < deadline, "there is space again, and nothing is taken");
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = process.get("/v1/images?limit=1000").unwrap()["items"].as_array().unwrap().len();
    assert_eq!(found, number + 2, "what was accepted is there, and nothing else");
    drop(process);
    run("umount", &[small.as_ref()]);
}
