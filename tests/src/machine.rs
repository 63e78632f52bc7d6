//! Machines under QEMU: the appliance with its disks, and a guest on its own disk.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{Client, Pki, Qmp, Serial};

/// How long QEMU may take to open its sockets.
const START: Duration = Duration::from_secs(20);
/// How long the appliance may take to answer.
const BOOT: Duration = Duration::from_secs(90);
/// How long a device may take to leave.
const UNPLUG: Duration = Duration::from_secs(30);

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// What runs the machines' instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The CPU's own virtualization.
    Kvm,
    /// Translation.
    Tcg,
}

impl Accel {
    /// `UVM_ACCEL` (`kvm` or `tcg`); else KVM where the CPU offers virtualization and /dev/kvm opens. There are
    /// machines whose /dev/kvm opens and runs no guest: their CPUs show neither vmx nor svm.
    pub fn choose() -> Result<Self> {
        match std::env::var("UVM_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok("") | Err(_) => {}
            Ok(other) => bail!("UVM_ACCEL is {other:?}; kvm or tcg is expected"),
        }
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let offered = flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
        let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        Ok(if offered && opens { Self::Kvm } else { Self::Tcg })
    }

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The files the appliance boots from.
#[derive(Debug, Clone)]
pub struct ApplianceFiles {
    /// The kernel, for direct boot by PVH.
    pub vmlinux: PathBuf,
    /// The archive with `/init`.
    pub initramfs: PathBuf,
}

impl ApplianceFiles {
    /// As `cargo xtask appliance` names them in their folder.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        let files = Self { vmlinux: folder.join("vmlinux"), initramfs: folder.join("initramfs") };
        for file in [&files.vmlinux, &files.initramfs] {
            ensure!(file.is_file(), "{} is not there; `cargo xtask appliance` makes it", file.display());
        }
        Ok(files)
    }
}

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk.
    VirtioBlk,
    /// A disk of the virtio-scsi controller.
    Scsi,
    /// An NVMe controller of its own.
    Nvme,
}

/// A disk: a raw file.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// Serial number, at most 20 bytes.
    pub serial: String,
    /// 512 or 4096.
    pub logical_block_size: u32,
    /// How it is attached.
    pub bus: Bus,
}

impl Disk {
    /// A virtio-blk disk with blocks of 512 bytes.
    pub fn new(path: impl Into<PathBuf>, serial: &str) -> Self {
        Self { path: path.into(), serial: serial.to_owned(), logical_block_size: 512, bus: Bus::VirtioBlk }
    }

    /// The same with a new sparse file of `size` bytes; what was there is gone.
    pub fn create(path: impl Into<PathBuf>, serial: &str, size: u64) -> Result<Self> {
        let disk = Self::new(path, serial);
        let file = fs::File::create(&disk.path).with_context(|| format!("making {}", disk.path.display()))?;
        file.set_len(size).with_context(|| format!("sizing {}", disk.path.display()))?;
        Ok(disk)
    }

    /// The same with another block size and bus.
    #[must_use]
    pub fn with(self, logical_block_size: u32, bus: Bus) -> Self {
        Self { logical_block_size, bus, ..self }
    }

    fn backend(&self, node: &str) -> Value {
        // The host keeps its power while a machine runs, so its page cache is safe enough.
        json!({
            "driver": "raw", "node-name": node, "discard": "unmap", "cache": { "no-flush": true },
            "file": { "driver": "file", "filename": self.path, "cache": { "no-flush": true } },
        })
    }

    fn device(&self, id: &str, node: &str, bus: &str) -> Value {
        let driver = match self.bus {
            Bus::VirtioBlk => "virtio-blk-pci",
            Bus::Scsi => "scsi-hd",
            Bus::Nvme => "nvme",
        };
        json!({
            "driver": driver, "id": id, "drive": node, "serial": self.serial, "bus": bus,
            "logical_block_size": self.logical_block_size, "physical_block_size": 4096,
        })
    }
}

/// A running QEMU; ends with this value.
pub(crate) struct Machine {
    child: Child,
    qmp: Qmp,
    serial: Serial,
    /// Sockets, and what holds secrets.
    _private: tempfile::TempDir,
    started: Instant,
}

impl Machine {
    /// Starts QEMU with what every machine has. Its log and its serial log are `name` in `work`.
    pub(crate) fn start(
        name: &str,
        work: &Path,
        build: impl FnOnce(&mut Command, &Path) -> Result<()>,
    ) -> Result<Self> {
        fs::create_dir_all(work).with_context(|| format!("making {}", work.display()))?;
        let private = tempfile::Builder::new().prefix("uvm-").tempdir().context("making a folder")?;
        let (qmp, line) = (private.path().join("qmp"), private.path().join("serial"));
        let serial_log = work.join(format!("{name}-serial.log"));
        let qemu_log = work.join(format!("{name}-qemu.log"));
        let log = fs::File::create(&qemu_log).with_context(|| format!("making {}", qemu_log.display()))?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "q35", "-cpu", "max", "-accel", Accel::choose()?.name()]);
        command.args(["-device", "virtio-rng-pci"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", option(&qmp)));
        // It waits for us, so that nothing printed is lost.
        command.arg("-chardev").arg(format!("socket,id=line,path={},server=on,wait=on", option(&line)));
        command.args(["-serial", "chardev:line"]);
        build(&mut command, private.path())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = Instant::now();
        let mut child = command.spawn().context("starting qemu-system-x86_64")?;
        let connected = connect(&mut child, &qmp, &line, &serial_log);
        match connected {
            Ok((qmp, serial)) => Ok(Self { child, qmp, serial, _private: private, started }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&qemu_log).unwrap_or_default();
                Err(error.context(format!("QEMU did not start ({}): {}", qemu_log.display(), said.trim())))
            }
        }
    }

    /// Its serial line.
    pub(crate) fn serial(&self) -> &Serial {
        &self.serial
    }

    /// Waits until it has powered itself off.
    pub(crate) fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for QEMU")? {
                self.serial.finish();
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("the machine did not end within {timeout:?}; see {}", self.serial.log().display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path as a value in an option of QEMU, where a comma is doubled.
fn option(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn connect(child: &mut Child, qmp: &Path, line: &Path, log: &Path) -> Result<(Qmp, Serial)> {
    let deadline = Instant::now() + START;
    let line = socket(child, line, deadline)?;
    let qmp = socket(child, qmp, deadline)?;
    Ok((Qmp::new(qmp)?, Serial::new(line, log)?))
}

/// Connects to a socket that QEMU is about to open: the file is there before anybody listens on it.
fn socket(child: &mut Child, path: &Path, deadline: Instant) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(error).with_context(|| format!("connecting to {}", path.display())),
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        ensure!(Instant::now() < deadline, "it did not open {} in time", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// User networking with a port of 127.0.0.1, which QEMU chooses, that leads to `guest_port`.
fn network(command: &mut Command, guest_port: u16) {
    command.arg("-netdev").arg(format!("user,id=net,hostfwd=tcp:127.0.0.1:0-:{guest_port}"));
    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
}

/// The port that QEMU has chosen. `info usernet` has a line
/// `TCP[HOST_FORWARD]  FD  SOURCE-ADDRESS PORT  DESTINATION-ADDRESS PORT  RECVQ SENDQ`.
fn forwarded_port(qmp: &mut Qmp) -> Result<u16> {
    let answer = qmp.execute("human-monitor-command", json!({ "command-line": "info usernet" }))?;
    let text = answer.as_str().unwrap_or_default();
    let line = text.lines().find(|line| line.contains("TCP[HOST_FORWARD]"));
    let port = line.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    port.with_context(|| format!("QEMU forwards no port: {text}"))
}

/// Gives the machine these disks from the start.
pub(crate) fn attach_at_boot(command: &mut Command, disks: &[Disk]) {
    for (index, disk) in disks.iter().enumerate() {
        let node = format!("node-boot{index}");
        let bus = if disk.bus == Bus::Scsi { "scsi.0" } else { "pcie.0" };
        command.arg("-blockdev").arg(disk.backend(&node).to_string());
        command.arg("-device").arg(disk.device(&format!("boot{index}"), &node, bus).to_string());
    }
}

/// How to boot the appliance.
#[derive(Debug, Clone)]
pub struct ApplianceOptions {
    /// What it boots from.
    pub files: ApplianceFiles,
    /// Its configuration.
    pub config: Value,
    /// Folder for its logs.
    pub work: PathBuf,
    /// Begin of the logs' names.
    pub name: String,
    /// Disks that are there from the start.
    pub disks: Vec<Disk>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// PCIe ports for disks that come later.
    pub hot_plug_ports: usize,
}

impl ApplianceOptions {
    /// With 128 MiB and no disks.
    pub fn new(files: ApplianceFiles, config: Value, work: &Path) -> Self {
        Self {
            files,
            config,
            work: work.to_owned(),
            name: "uvm".to_owned(),
            disks: Vec::new(),
            memory_mib: 128,
            hot_plug_ports: 0,
        }
    }
}

/// A disk that was attached to a running appliance.
#[derive(Debug, Clone)]
pub struct HotDisk {
    id: String,
    node: String,
    port: Option<usize>,
}

/// The running appliance.
pub struct Appliance {
    machine: Machine,
    client: Client,
    port: u16,
    ports_used: Vec<bool>,
    attached: usize,
    ready_after: Duration,
}

impl Appliance {
    /// Boots it and waits until it answers.
    pub fn boot(options: &ApplianceOptions, pki: &Pki) -> Result<Self> {
        let mut machine = Machine::start(&options.name, &options.work, |command, private| {
            describe_appliance(command, options, private)
        })?;
        let port = forwarded_port(&mut machine.qmp)?;
        let unknown = Client::with_patience(port, &pki.authority, None, Duration::from_secs(2))?;
        let ready_after = wait_until_healthy(&mut machine, &unknown)?;
        let client = Client::new(port, &pki.authority, Some(&pki.client))?;
        let ports_used = vec![false; options.hot_plug_ports];
        Ok(Self { machine, client, port, ports_used, attached: 0, ready_after })
    }

    /// A client with a certificate.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The port of 127.0.0.1 that leads to the API.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From the start of QEMU to the first answer.
    pub fn ready_after(&self) -> Duration {
        self.ready_after
    }

    /// Its serial line.
    pub fn serial(&mut self) -> &mut Serial {
        &mut self.machine.serial
    }

    /// Its monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.machine.qmp
    }

    /// Attaches a disk to the running machine.
    pub fn attach(&mut self, disk: &Disk) -> Result<HotDisk> {
        self.attached += 1;
        let (id, node) = (format!("hot{}", self.attached), format!("node-hot{}", self.attached));
        let port = match disk.bus {
            Bus::Scsi => None,
            _ => Some(self.ports_used.iter().position(|used| !used).context("every port has a disk")?),
        };
        let bus = port.map_or_else(|| "scsi.0".to_owned(), |port| format!("port{port}"));
        self.machine.qmp.execute("blockdev-add", disk.backend(&node))?;
        self.machine.qmp.execute("device_add", disk.device(&id, &node, &bus))?;
        if let Some(port) = port {
            self.ports_used[port] = true;
        }
        Ok(HotDisk { id, node, port })
    }

    /// Detaches a disk and waits until it is gone.
    pub fn detach(&mut self, disk: HotDisk) -> Result<()> {
        let qmp = &mut self.machine.qmp;
        qmp.execute("device_del", json!({ "id": disk.id }))?;
        qmp.wait_event("DEVICE_DELETED", UNPLUG, |data| data["device"] == disk.id.as_str())?;
        qmp.execute("blockdev-del", json!({ "node-name": disk.node }))?;
        if let Some(port) = disk.port {
            self.ports_used[port] = false;
        }
        Ok(())
    }

    /// Waits until the machine has powered itself off.
    pub fn wait_exit(mut self, timeout: Duration) -> Result<()> {
        let status = self.machine.wait_exit(timeout)?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }
}

fn describe_appliance(command: &mut Command, options: &ApplianceOptions, private: &Path) -> Result<()> {
    // Other users of the machine must not read the node's private key.
    let config = private.join("config.json");
    fs::write(&config, options.config.to_string()).context("writing the appliance's configuration")?;
    let mut line = "console=ttyS0 quiet".to_owned();
    if Accel::choose()? == Accel::Tcg {
        // Calibrating the local APIC's timer waits for ticks that come late under translation.
        line.push_str(" nolapic_timer");
    }
    command.args(["-smp", "1", "-m", &options.memory_mib.to_string(), "-append", &line]);
    command.arg("-kernel").arg(&options.files.vmlinux).arg("-initrd").arg(&options.files.initramfs);
    command.arg("-fw_cfg").arg(format!("name=opt/org.uvm/config,file={}", option(&config)));
    network(command, 8443);
    for index in 0..options.hot_plug_ports {
        let chassis = index + 1;
        command.arg("-device").arg(format!("pcie-root-port,id=port{index},chassis={chassis},slot={chassis}"));
    }
    if options.hot_plug_ports > 0 || options.disks.iter().any(|disk| disk.bus == Bus::Scsi) {
        command.args(["-device", "virtio-scsi-pci,id=scsi"]);
    }
    attach_at_boot(command, &options.disks);
    Ok(())
}

fn wait_until_healthy(machine: &mut Machine, client: &Client) -> Result<Duration> {
    let deadline = machine.started + BOOT;
    // QEMU takes a connection before the machine can: a call made too early hangs until it is sent again.
    let listening = |machine: &Machine| machine.serial.text(0).contains("API on https://");
    let hint = machine.started + Duration::from_secs(30);
    while !listening(machine) && Instant::now() < hint {
        if let Some(status) = machine.child.try_wait()? {
            bail!("the appliance ended ({status}); see {}", machine.serial.log().display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    loop {
        match client.healthz() {
            Ok(_) => return Ok(machine.started.elapsed()),
            Err(error) if Instant::now() >= deadline => {
                let log = machine.serial.log().display();
                bail!("the appliance does not answer: {error}; its serial line: {log}");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// How to boot a guest.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its disk.
    pub disk: Disk,
    /// Folder for its logs.
    pub work: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub cpus: u32,
}

/// A guest that runs on its own disk under UEFI.
pub struct Guest {
    machine: Machine,
    ssh_port: u16,
}

impl Guest {
    /// Starts it; its firmware has no memory of earlier starts, so it must find its boot loader itself.
    pub fn boot(options: &GuestOptions) -> Result<Self> {
        let mut machine = Machine::start("guest", &options.work, |command, private| {
            let vars = private.join("vars.fd");
            fs::copy(OVMF_VARS, &vars).with_context(|| format!("copying {OVMF_VARS}"))?;
            command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}"));
            command.arg("-drive").arg(format!("if=pflash,format=raw,file={}", option(&vars)));
            command.args(["-smp", &options.cpus.to_string(), "-m", &options.memory_mib.to_string()]);
            network(command, 22);
            attach_at_boot(command, std::slice::from_ref(&options.disk));
            Ok(())
        })?;
        let ssh_port = forwarded_port(&mut machine.qmp)?;
        Ok(Self { machine, ssh_port })
    }

    /// The port of 127.0.0.1 that leads to its SSH server.
    pub fn ssh_port(&self) -> u16 {
        self.ssh_port
    }

    /// Waits for text on its serial line; how long after its start it came.
    pub fn wait_for(&self, text: &str, timeout: Duration) -> Result<Duration> {
        self.machine.serial.wait_for(text, 0, timeout)?;
        Ok(self.machine.started.elapsed())
    }

    /// Its serial line.
    pub fn serial(&mut self) -> &mut Serial {
        &mut self.machine.serial
    }

    /// Waits until it has powered itself off.
    pub fn wait_exit(mut self, timeout: Duration) -> Result<()> {
        self.machine.wait_exit(timeout).map(drop)
    }
}
