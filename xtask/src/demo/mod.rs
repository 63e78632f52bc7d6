//! `cargo xtask demo`: from a blank disk to a customer's machine that answers over SSH, with everything in between.

mod grid;

use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use uvm_api::{
    CustomizeSpec, DeviceRef, Event, EventBody, ImageSource, ImageSpec, Job, JobResult, JobSpec, JobState,
    Node, PowerAction, ProvisionSpec, UserSpec,
};
use uvm_tests::{
    Accel, Appliance, ApplianceFiles, ApplianceOptions, Client, Disk, Guest, GuestOptions, Pki, Store,
};

use crate::deps::{self, Need};
use crate::{appliance, image};

/// What running machines needs.
pub(crate) const NEEDS: [Need; 3] = [
    Need { probe: "qemu-system-x86_64", package: "qemu-system-x86", why: "run the utility VM and the guest" },
    Need { probe: "/usr/share/OVMF/OVMF_CODE_4M.fd", package: "ovmf", why: "boot the guest under UEFI" },
    Need { probe: "ssh", package: "openssh-client", why: "log in to the guest" },
];

const DISK_SIZE: u64 = 4 << 30;
const SERIAL: &str = "customer-disk-1";
const HOSTNAME: &str = "web-1";
const USER: &str = "customer";
/// Generous, because under translation a minute of another CPU is ten.
const LOGIN: Duration = Duration::from_secs(600);
const SSH: Duration = Duration::from_secs(300);
const POWER_OFF: Duration = Duration::from_secs(180);
/// Between two lines of progress where the output is no terminal.
const QUIET: Duration = Duration::from_secs(5);

/// target/demo/report.json.
#[derive(Debug, Default, Serialize)]
struct Report {
    guest_login: bool,
    hostname: String,
    steps: Vec<Step>,
    uvm: Uvm,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    seconds: f64,
    bytes: u64,
}

#[derive(Debug, Default, Serialize)]
struct Uvm {
    boot_ms: u64,
    peak_rss_kib: u64,
}

/// What took how long, in order.
#[derive(Default)]
struct Times(Vec<(String, Duration)>);

impl Times {
    fn add(&mut self, what: impl Into<String>, time: Duration) {
        self.0.push((what.into(), time));
    }

    fn measure<T>(&mut self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let started = Instant::now();
        let value = work()?;
        self.add(what, started.elapsed());
        Ok(value)
    }
}

/// Runs the demo; `built` says that the controller's debug build is the one of this tree.
pub(crate) fn run(built: bool) -> Result<()> {
    deps::ensure(&NEEDS)?;
    let folder = crate::workspace_root().join("target/demo");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    // A report of an earlier run must not be taken for this one's.
    let _ = fs::remove_file(folder.join("report.json"));
    show(&folder, built).with_context(|| format!("the demo failed; its logs: {}", logs(&folder)))
}

fn logs(folder: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|item| Some(item.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .map(|path| path.display().to_string())
        .collect();
    names.sort();
    if names.is_empty() { "none was written yet".to_owned() } else { names.join(", ") }
}

fn show(folder: &Path, controller_built: bool) -> Result<()> {
    for name in ["uvm-serial.log", "uvm-qemu.log", "guest-serial.log", "guest-qemu.log"] {
        let _ = fs::remove_file(folder.join(name));
    }
    let mut times = Times::default();
    let built = times.measure("appliance built, or found in the cache", appliance::build)?;
    let layout = times.measure("image made, or found in the cache", || image::build("debian-12"))?;
    let started = Instant::now();
    let accel = Accel::choose()?.name();
    let store = Store::start(&layout.dir)?;
    println!("image store: {}", store.url());
    let disk = Disk::create(folder.join("guest.img"), SERIAL, DISK_SIZE)?;
    let key = make_key(folder)?;

    let files = ApplianceFiles { vmlinux: built.vmlinux, initramfs: built.initramfs };
    let (job, node, steps) =
        provision(folder, files.clone(), &disk, &store, &layout.digest, &key, &mut times)?;
    let host_key = match &job.result {
        Some(JobResult::Provision { ssh_host_key: Some(key), .. }) => key.clone(),
        other => bail!("the job's result names no SSH host key: {other:?}"),
    };
    let mut report = Report {
        steps,
        uvm: Uvm { boot_ms: node.boot_ms, peak_rss_kib: node.peak_rss_bytes / 1024 },
        ..Report::default()
    };
    report.hostname = visit_guest(folder, disk, &host_key, &key, &mut times)?;
    report.guest_login = true;
    grid::show(folder, &files, (&store, &layout.digest), controller_built, &mut times)?;
    times.add("all of it after the builds", started.elapsed());
    print_table(&report, &times, accel);
    let path = folder.join("report.json");
    let mut text = serde_json::to_string_pretty(&report)?;
    text.push('\n');
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!(
        "\nthe guest's disk: {}\nthe report:       {}",
        folder.join("guest.img").display(),
        path.display()
    );
    Ok(())
}

/// The customer's key pair; the private half never leaves this machine.
fn make_key(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("customer_ed25519");
    for old in [path.clone(), path.with_extension("pub")] {
        let _ = fs::remove_file(old);
    }
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "customer@example", "-f"]).arg(&path);
    let output = command.output().context("starting ssh-keygen")?;
    ensure!(output.status.success(), "ssh-keygen failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(path)
}

fn job(store: &Store, digest: &str, public_key: &str) -> JobSpec {
    JobSpec::Provision(Box::new(ProvisionSpec {
        id: Some("demo".to_owned()),
        device: DeviceRef { serial: SERIAL.to_owned(), size_bytes: Some(DISK_SIZE), must_be_blank: true },
        partitions: Vec::new(),
        disk: uvm_api::DiskSpec::default(),
        image: ImageSpec {
            source: ImageSource::OciLayout { url: store.guest_url() },
            reference: Some("12".to_owned()),
            digest: digest.to_owned(),
        },
        customize: CustomizeSpec {
            hostname: Some(HOSTNAME.to_owned()),
            users: vec![UserSpec {
                name: USER.to_owned(),
                gecos: Some("The customer".to_owned()),
                groups: vec!["sudo".to_owned()],
                sudo: Some("ALL=(ALL) NOPASSWD:ALL".to_owned()),
                ssh_authorized_keys: vec![public_key.trim().to_owned()],
                ..UserSpec::default()
            }],
            network: None,
        },
        boot: uvm_api::BootSpec::default(),
        plan_hash: None,
    }))
}

/// Boots the utility VM, lets it make the machine, and powers it off.
fn provision(
    folder: &Path,
    files: ApplianceFiles,
    disk: &Disk,
    store: &Store,
    digest: &str,
    key: &Path,
    times: &mut Times,
) -> Result<(Job, Node, Vec<Step>)> {
    let pki = Pki::new()?;
    let mut options = ApplianceOptions::new(files, pki.config("node-1", "read-only"), folder);
    options.disks = vec![disk.clone()];
    println!("\nutility VM: booting with {} MiB", options.memory_mib);
    let uvm = Appliance::boot(&options, &pki).context("booting the utility VM")?;
    let client = uvm.client().clone();
    times.add("utility VM, QEMU's start to /healthz", uvm.ready_after());
    let node = client.node().context("asking the node for its facts")?;
    times.add("    of it, the kernel's start to the API", Duration::from_millis(node.boot_ms));
    println!("utility VM: version {}, kernel {}, API after {} ms", node.version, node.kernel, node.boot_ms);

    let public_key = fs::read_to_string(key.with_extension("pub")).context("reading the customer's key")?;
    let mut spec = job(store, digest, &public_key);
    let plan = client.dry_run(&spec).context("planning the job")?;
    print_plan(&plan);
    if let JobSpec::Provision(spec) = &mut spec {
        spec.plan_hash = Some(plan.plan_hash);
    }
    fs::write(folder.join("job.json"), serde_json::to_string_pretty(&spec)? + "\n")?;
    let submitted = Instant::now();
    let job = client.submit(&spec).context("submitting the job")?;
    let (job, steps) = follow(&client, &job.id)?;
    if job.state != JobState::Succeeded {
        let problem = serde_json::to_string_pretty(&job.problem)?;
        bail!("the job ended {:?}, the disk is {:?}: {problem}", job.state, job.disk_state);
    }
    times.add("the job", submitted.elapsed());
    for step in &steps {
        times.add(format!("    {}", step.name), Duration::from_secs_f64(step.seconds));
    }
    let node = client.node().context("asking the node for its facts")?;
    times.measure("utility VM powered off", || {
        client.power(PowerAction::PowerOff, false).context("powering the utility VM off")?;
        uvm.wait_exit(POWER_OFF)
    })?;
    Ok((job, node, steps))
}

fn print_plan(plan: &uvm_api::Plan) {
    println!("\nplan {}", plan.plan_hash);
    for extent in &plan.destroys {
        println!("  lost: LBA {} to {}, {}", extent.starting_lba, extent.ending_lba, extent.contents);
    }
    for partition in &plan.partitions {
        println!(
            "  partition {}: {:<6} {:>6} MiB  {:<5} {}",
            partition.number,
            partition.label,
            partition.size_bytes >> 20,
            partition.format.as_deref().unwrap_or("-"),
            partition.path.as_deref().unwrap_or(""),
        );
    }
    let steps: Vec<&str> = plan.steps.iter().map(|step| step.name.as_str()).collect();
    println!("  steps: {}\n", steps.join(", "));
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Follows the job to its end, showing how it goes.
fn follow(client: &Client, id: &str) -> Result<(Job, Vec<Step>)> {
    let mut steps = Vec::new();
    let mut progress = Progress { terminal: std::io::stdout().is_terminal(), printed: Instant::now() };
    let job = client.wait(id, &mut |event| {
        progress.show(event);
        if let EventBody::StepDone { step, bytes, duration_ms } = &event.body {
            let seconds = Duration::from_millis(*duration_ms).as_secs_f64();
            steps.push(Step { name: step.clone(), seconds, bytes: *bytes });
        }
    });
    Ok((job.context("following the job")?, steps))
}

/// One line for a step, rewritten in place on a terminal.
struct Progress {
    terminal: bool,
    printed: Instant,
}

impl Progress {
    fn show(&mut self, event: &Event) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        match &event.body {
            EventBody::StepStarted { step, index, steps, .. } => {
                self.printed = Instant::now();
                if self.terminal {
                    print!("\r\x1b[K[{index}/{steps}] {step}");
                }
            }
            EventBody::Progress { step, bytes_done, bytes_total, bytes_per_second } => {
                if !self.terminal && self.printed.elapsed() < QUIET {
                    return;
                }
                self.printed = Instant::now();
                let total = bytes_total.map_or(String::new(), |total| format!(" of {:.0}", mib(total)));
                let rate = mib(*bytes_per_second);
                print!("{clear}  {step:<10} {:>8.1}{total} MiB, {rate:.1} MiB/s", mib(*bytes_done));
                if !self.terminal {
                    println!();
                }
            }
            EventBody::Note { message, .. } => println!("{clear}    {message}"),
            EventBody::StepDone { step, bytes, duration_ms } => {
                let seconds = Duration::from_millis(*duration_ms).as_secs_f64();
                let rate = mib(*bytes) / seconds.max(0.001);
                let bytes = mib(*bytes);
                println!("{clear}  {step:<10} done: {bytes:>8.1} MiB in {seconds:>7.2} s, {rate:>7.1} MiB/s");
            }
            EventBody::Succeeded { disk_state, .. } => {
                let state = format!("{disk_state:?}").to_lowercase();
                println!("{clear}job done, the disk is {state}")
            }
            EventBody::Failed { problem } | EventBody::Cancelled { problem } => {
                println!("{clear}job ended: {}: {}", problem.title, problem.detail);
            }
            EventBody::Planned { .. } | EventBody::Unknown => {}
        }
        // Progress is a nicety: a closed output must not end the demo.
        let _ = std::io::stdout().flush();
    }
}

/// Boots the finished guest, logs in as the customer, looks around and powers it off. Its host name.
fn visit_guest(folder: &Path, disk: Disk, host_key: &str, key: &Path, times: &mut Times) -> Result<String> {
    println!("\nguest: booting from its own disk under UEFI");
    let options = GuestOptions { disk, work: folder.to_owned(), memory_mib: 1024, cpus: 2 };
    let started = Instant::now();
    let guest = Guest::boot(&options).context("booting the guest")?;
    let login = guest.wait_for("login:", LOGIN).context("waiting for the guest's login prompt")?;
    times.add("guest, QEMU's start to the login prompt", login);
    println!("guest: login prompt after {:.1} s", login.as_secs_f64());
    let ssh = Ssh::new(folder, guest.ssh_port(), host_key, key)?;
    let hostname = ssh.until_answered("hostname")?;
    times.add("guest, QEMU's start to the answer over SSH", started.elapsed());
    println!("guest: answered over SSH: {hostname}");
    ensure!(hostname == HOSTNAME, "the guest calls itself {hostname:?}, the job said {HOSTNAME:?}");

    let root = ssh.ask("findmnt -no SOURCE,FSTYPE /")?;
    let swaps = ssh.ask("tail -n +2 /proc/swaps")?;
    // A unit that failed is worth seeing; whether it matters is for the reader.
    let state =
        ssh.ask("timeout 240 systemctl is-system-running --wait || systemctl --failed --plain --no-legend")?;
    println!("guest: root {root}\nguest: swap {swaps}\nguest: system {state}");
    ensure!(!swaps.is_empty(), "the guest uses no swap area");
    times.measure("guest powered off", || {
        // The connection may end before the answer does.
        let _ = ssh.run("sudo -n poweroff")?;
        guest.wait_exit(POWER_OFF).context("powering the guest off")
    })?;
    Ok(hostname)
}

/// Logs in with the customer's key, to nobody but the holder of the host key that the job's result named.
struct Ssh {
    port: u16,
    known_hosts: PathBuf,
    key: PathBuf,
}

impl Ssh {
    fn new(folder: &Path, port: u16, host_key: &str, key: &Path) -> Result<Self> {
        let known_hosts = folder.join("known_hosts");
        let words: Vec<&str> = host_key.split_whitespace().take(2).collect();
        fs::write(&known_hosts, format!("[127.0.0.1]:{port} {}\n", words.join(" ")))
            .with_context(|| format!("writing {}", known_hosts.display()))?;
        Ok(Self { port, known_hosts, key: key.to_owned() })
    }

    fn run(&self, line: &str) -> Result<Output> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-i"]).arg(&self.key);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        for option in [
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "ConnectTimeout=30",
            "ServerAliveInterval=10",
            "LogLevel=ERROR",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg(format!("{USER}@127.0.0.1")).arg(line).stdin(Stdio::null());
        ssh.output().context("starting ssh")
    }

    fn ask(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(output.status.success(), "{line}: {} {}", text(&output.stdout), text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// The login prompt may come before the SSH server.
    fn until_answered(&self, line: &str) -> Result<String> {
        let deadline = Instant::now() + SSH;
        loop {
            match self.ask(line) {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context("the guest does not answer over SSH"));
                }
                Err(_) => std::thread::sleep(Duration::from_secs(1)),
            }
        }
    }
}

fn print_table(report: &Report, times: &Times, accel: &str) {
    println!("\nwhat took how long (QEMU with {accel})");
    for (what, time) in &times.0 {
        let name = what.trim_start();
        let bytes = report.steps.iter().find(|step| step.name == name && what.starts_with("    "));
        let bytes = bytes.filter(|step| step.bytes > 0);
        let bytes = bytes.map_or(String::new(), |step| format!("{:>10.1} MiB", mib(step.bytes)));
        println!("  {what:<46}{:>9.2} s{bytes}", time.as_secs_f64());
    }
    println!(
        "  {:<46}{:>9.1} MiB",
        "utility VM, largest resident set",
        report.uvm.peak_rss_kib as f64 / 1024.0
    );
}
