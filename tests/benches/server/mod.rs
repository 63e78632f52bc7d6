//! The controller under load: HTTPS from clients on this machine, SQLite with every commit flushed, fake hypervisors.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use uvm_controller::config::{FileFlag, ServeConfig, ServeFlags};
use uvm_controller::hypervisor::fake::{FakeCapabilities, FakeHypervisor, FakeUtilityVm, Moment};
use uvm_controller::hypervisor::{Error, ErrorKind};
use uvm_controller::model::{NodeCapacity, NodeState, NumaCapacity};
use uvm_controller::runtime::nodes::{Factory, NodeAddress, Opened};
use uvm_controller::serve::Controller;

use crate::placement::Row;

const NODES: usize = 1_000;
const INSTANCES: u64 = 50_000;
const CLIENTS: usize = 32;
const LOAD: Duration = Duration::from_secs(10);
/// Creates one after the other, for the time from the call to the utility VM's job.
const SINGLE: usize = 300;
const PATIENCE: Duration = Duration::from_secs(900);
/// Names the state folder to the process that only starts on it and tells how long that took.
const RESTART: &str = "UVM_BENCH_RESTART";

/// When a utility VM's job for a device was sent, by the device's serial number.
type Sent = Arc<Mutex<HashMap<u64, Instant>>>;

static JOBS_SENT: AtomicU64 = AtomicU64::new(0);

fn factory(sent: Sent) -> Factory {
    Box::new(move |_: &NodeAddress| {
        let numa = vec![NumaCapacity { vcpus: 128, memory_mib: 262_144 }; 2];
        let capacity = NodeCapacity { numa, storage_mib: 1 << 24 };
        let manager = Arc::new(FakeHypervisor::new(capacity, FakeCapabilities::Qemu.capabilities()));
        let sent = Arc::clone(&sent);
        manager.set_faults(Some(Box::new(move |moment, name| {
            if (moment, name) == (Moment::Before, "uvm.submit") {
                let number = JOBS_SENT.fetch_add(1, Ordering::Relaxed);
                sent.lock().expect("nobody panics with it").insert(number, Instant::now());
            }
            None
        })));
        let utility = Arc::new(FakeUtilityVm::new(Arc::clone(&manager)));
        Ok(Opened { manager, utility: Some(utility) })
    })
}

fn config(state: &Path) -> ServeConfig {
    let flags = ServeFlags {
        state: Some(state.to_owned()),
        listen: Some("127.0.0.1:0".parse().expect("an address")),
        poll_interval: Some(Duration::from_secs(60)),
        ..ServeFlags::default()
    };
    ServeConfig::load(&FileFlag::default(), flags, &HashMap::new().into_iter().collect())
        .expect("flags that make sense")
}

struct Client {
    agent: Agent,
    base: String,
    token: String,
}

impl Client {
    fn new(state: &Path, controller: &Controller) -> Self {
        let read = |name: &str| std::fs::read_to_string(state.join(name)).expect("the controller left it");
        let root = Certificate::from_pem(read("ca.pem").as_bytes()).expect("a certificate");
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root])).build();
        let agent =
            Agent::config_builder().tls_config(tls).http_status_as_error(false).proxy(None).build().into();
        let token = format!("Bearer {}", read("operator.token").trim());
        Self { agent, base: format!("https://{}", controller.address()), token }
    }

    fn post(&self, path: &str, key: &str, body: &serde_json::Value) {
        let request = self.agent.post(format!("{}{path}", self.base)).header("authorization", &self.token);
        let request = request.header("idempotency-key", key).content_type("application/json");
        let mut answer = request.send(body.to_string()).expect("the API answers");
        let text = answer.body_mut().read_to_string().expect("an answer is text");
        assert!(answer.status().is_success(), "{path}: {} {text}", answer.status());
    }

    fn create(&self, number: u64) {
        let body = json!({
            "name": format!("m{number}"), "project": "acme", "vcpus": 1, "memory_mib": 1024, "image": "debian",
            "disks": [{ "size_mib": 10_240 }],
        });
        self.post("/v1/instances", &format!("create-{number}"), &body);
    }
}

fn percentile(sorted: &[Duration], part: usize) -> f64 {
    sorted[(sorted.len() * part / 100).min(sorted.len() - 1)].as_secs_f64() * 1000.0
}

fn row(name: &str, ours: f64, unit: &'static str, note: impl Into<String>) -> Row {
    Row { name: name.to_owned(), ours, peer: None, unit, note: note.into() }
}

fn wait(what: &str, controller: &Controller, done: impl Fn(&uvm_controller::core::State) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !controller.grid().read(&done) {
        assert!(Instant::now() < deadline, "{what} takes too long");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where this is the process that only starts: does that, and says true.
pub(crate) fn is_restart() -> bool {
    let Some(state) = std::env::var_os(RESTART) else { return false };
    let begun = Instant::now();
    let away: Factory = Box::new(|_: &NodeAddress| {
        Err(Error::new(ErrorKind::Unreachable, "no node while the memory is measured"))
    });
    let controller =
        Controller::start(&config(Path::new(&state)), away, String::new()).expect("it starts again");
    let client = Client::new(Path::new(&state), &controller);
    let url = format!("{}/v1/instances?limit=1", client.base);
    let answer = client.agent.get(url).header("authorization", &client.token).call().expect("it answers");
    assert!(answer.status().is_success());
    let (instances, nodes) = controller.grid().read(|state| (state.instances.len(), state.nodes.len()));
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    println!("{} {kib} {instances} {nodes}", begun.elapsed().as_secs_f64());
    let _ = std::io::stdout().flush();
    std::process::exit(0);
}

/// All of it.
pub(crate) fn rows() -> Vec<Row> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let state = folder.path().join("state");
    let sent = Sent::default();
    let controller =
        Controller::start(&config(&state), factory(Arc::clone(&sent)), String::new()).expect("it starts");
    let client = Client::new(&state, &controller);
    let capacity = json!({
        "numa": [{ "vcpus": 128, "memory_mib": 262_144 }, { "vcpus": 128, "memory_mib": 262_144 }],
        "storage_mib": 1 << 24,
    });
    for index in 0..NODES {
        let name = format!("n{index}");
        let body = json!({ "name": name, "hypervisor": "qemu", "address": name, "capacity": capacity });
        client.post("/v1/nodes", &format!("node-{index}"), &body);
    }
    let source = json!({ "oci-layout": { "url": "https://images.example" } });
    let digest = format!("sha256:{}", "0".repeat(64));
    client.post("/v1/images", "image", &json!({ "name": "debian", "source": source, "digest": digest }));
    wait("the nodes' utility VMs", &controller, |state| {
        state.jobs.is_empty() && state.nodes.values().all(|node| node.state == NodeState::Ready)
    });
    let mut rows = vec![single(&controller, &client, &sent)];
    rows.extend(load(&controller, &state));
    let made = fill(&controller, &state);
    controller.stop();
    rows.extend(restart(&state, made));
    rows
}

/// From the call to the utility VM's job, one create at a time.
fn single(controller: &Controller, client: &Client, sent: &Sent) -> Row {
    let mut times = Vec::new();
    for number in 0..SINGLE {
        let before = JOBS_SENT.load(Ordering::Relaxed);
        let begun = Instant::now();
        client.create(1_000_000 + number as u64);
        let at = loop {
            if let Some(at) = sent.lock().expect("nobody panics with it").get(&before).copied() {
                break at;
            }
            std::thread::sleep(Duration::from_micros(50));
        };
        times.push(at - begun);
        wait("a create", controller, |state| state.jobs.is_empty());
    }
    times.sort_unstable();
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    row("API call to UVM job sent", p50, "ms (p50)", format!("p99 {p99:.1} ms; one at a time, 1,000 nodes"))
}

/// As many creates as the clients can send for a while.
fn load(controller: &Controller, state: &Path) -> Vec<Row> {
    let next = AtomicU64::new(0);
    let before = controller.grid().metrics();
    let begun = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let client = || {
            let client = Client::new(state, controller);
            let mut times = Vec::new();
            while begun.elapsed() < LOAD {
                let asked = Instant::now();
                client.create(next.fetch_add(1, Ordering::Relaxed));
                times.push(asked.elapsed());
            }
            times
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client that ends well")).collect()
    });
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    let after = controller.grid().metrics();
    let commits = after.commits - before.commits;
    let each = (after.commit_seconds - before.commit_seconds) * 1000.0 / commits.max(1) as f64;
    let open = controller.grid().read(|state| state.jobs.len());
    times.sort_unstable();
    let note = format!(
        "{CLIENTS} clients on the same machine over TLS; {commits} commits of {each:.1} ms, {} changes; {open} jobs still \
         open at the end",
        after.changes - before.changes
    );
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    vec![
        row("durable creates through HTTPS", rate, "1/s", note),
        row("latency of a create under that load", p99, "ms (p99)", format!("p50 {p50:.1} ms")),
    ]
}

/// Until the grid has as many instances as it is to have.
fn fill(controller: &Controller, state: &Path) -> usize {
    let next = AtomicU64::new(10_000_000);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let client = Client::new(state, controller);
                while controller.grid().read(|state| state.instances.len() as u64) < INSTANCES {
                    client.create(next.fetch_add(1, Ordering::Relaxed));
                }
            });
        }
    });
    wait("the last creates", controller, |state| state.jobs.is_empty());
    controller.grid().read(|state| state.instances.len())
}

/// Another process takes the state up.
fn restart(state: &Path, made: usize) -> Vec<Row> {
    let program = std::env::current_exe().expect("this program has a path");
    let output = Command::new(program).env(RESTART, state).stdin(Stdio::null()).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [seconds, kib, instances, nodes] = numbers[..] else { panic!("the restart said {text:?} {said:?}") };
    assert_eq!(instances as usize, made, "every instance is there again");
    let what = format!("{nodes:.0} nodes, {instances:.0} instances");
    vec![
        row("restart to serving", seconds, "s", what.clone()),
        row("memory after it", kib / 1024.0, "MiB (RSS)", what),
    ]
}
