//! The machine of a domain as QEMU's command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::disks::{self, PORTS};
use super::files::{Folder, failed, make_whole};
use super::record::Live;
use crate::hypervisor::{Boot, DomainSpec, Error, ErrorKind, Result, Role};

/// How QEMU is run on a node.
#[derive(Debug, Clone)]
pub struct QemuOptions {
    /// QEMU's program.
    pub program: PathBuf,
    /// What runs the machines' instructions; chosen by the host where it is missing.
    pub accelerator: Option<Accelerator>,
    /// TCP ports of guests that ports of 127.0.0.1 lead to; QEMU chooses those.
    pub forward_ports: Vec<u16>,
    /// The guests' UEFI firmware.
    pub firmware_code: PathBuf,
    /// What the firmware's memory begins as.
    pub firmware_vars: PathBuf,
}

impl Default for QemuOptions {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            accelerator: None,
            forward_ports: vec![22],
            firmware_code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            firmware_vars: "/usr/share/OVMF/OVMF_VARS_4M.fd".into(),
        }
    }
}

/// What runs the machines' instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The CPU's own virtualization.
    Kvm,
    /// Translation.
    Tcg,
}

impl Accelerator {
    /// `UVM_ACCEL` (`kvm` or `tcg`); else KVM where the CPU offers virtualization and /dev/kvm opens. There are
    /// machines whose /dev/kvm opens and runs no guest: their CPUs show neither vmx nor svm.
    pub fn choose() -> Result<Self> {
        match std::env::var("UVM_ACCEL").as_deref() {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok("") | Err(_) => {}
            Ok(other) => {
                let message = format!("UVM_ACCEL is {other:?}; kvm or tcg is expected");
                return Err(Error::new(ErrorKind::Failed, message));
            }
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

/// Text as a value in an option of QEMU, where a comma is doubled.
fn option(text: &str) -> String {
    text.replace(',', ",,")
}

fn path_option(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(option(text)),
        None => Err(Error::new(ErrorKind::WrongState, format!("{} is no UTF-8", path.display()))),
    }
}

/// TCP ports of the domain that ports of 127.0.0.1 lead to, the one of its service first.
pub(super) fn forwarded<'o>(spec: &'o DomainSpec, options: &'o QemuOptions) -> &'o [u16] {
    match &spec.boot {
        Boot::Kernel { service_port, .. } => std::slice::from_ref(service_port),
        Boot::Disk => &options.forward_ports,
    }
}

/// The command that starts a domain with what `live` says.
pub(super) fn describe(
    folder: &Folder,
    options: &QemuOptions,
    accelerator: Accelerator,
    spec: &DomainSpec,
    live: &Live,
) -> Result<Command> {
    let id = spec.id;
    let mut command = Command::new(&options.program);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-daemonize"]);
    // The guest is hostile, and QEMU is what stands between it and the node.
    command.args(["-sandbox", "on,obsolete=deny,resourcecontrol=deny"]);
    command.arg("-pidfile").arg(folder.pid(id));
    command.arg("-name").arg(format!("guest={}", option(&spec.name)));
    command.args(["-uuid", &id.to_string(), "-machine", "q35", "-cpu", "max"]);
    command.args(["-accel", accelerator.name(), "-smp", &live.vcpus.to_string()]);
    command.args(["-m", &format!("{}M", live.memory_mib), "-device", "virtio-rng-pci"]);
    // A guest that powers itself off, or panics, stays to be looked at; one that reboots goes on.
    command.args(["-no-shutdown", "-action", "panic=pause", "-device", "pvpanic-pci"]);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", path_option(&folder.socket(id))?));
    let serial = path_option(&folder.serial_log(id))?;
    command.arg("-chardev").arg(format!("file,id=serial,path={serial},append=on"));
    command.args(["-serial", "chardev:serial"]);
    network(&mut command, spec, forwarded(spec, options));
    boot(&mut command, folder, options, spec)?;
    match spec.role {
        // The SCSI controller takes disks at any time and asks no guest to let go of them.
        Role::Utility => {
            command.args(["-device", "virtio-scsi-pci,id=scsi"]);
        }
        Role::Guest => {
            for port in 0..PORTS {
                let number = port + 1;
                // Without windows of I/O ports, of which there are not enough for so many.
                let device =
                    format!("pcie-root-port,id=port{port},chassis={number},slot={number},io-reserve=0");
                command.arg("-device").arg(device);
            }
        }
    }
    for (index, disk) in live.disks.iter().enumerate() {
        let first = spec.boot == Boot::Disk && index == 0;
        let file = folder.volume(disk.attachment.volume);
        command.arg("-object").arg(disks::limits_object(&disk.attachment).to_string());
        for node in disks::nodes(&disk.attachment, &file)? {
            command.arg("-blockdev").arg(node.to_string());
        }
        let mut device = disks::device(disk);
        if first {
            device["bootindex"] = json!(1);
        }
        command.arg("-device").arg(device.to_string());
    }
    Ok(command)
}

fn network(command: &mut Command, spec: &DomainSpec, ports: &[u16]) {
    let forwards: String = ports.iter().map(|port| format!(",hostfwd=tcp:127.0.0.1:0-:{port}")).collect();
    command.arg("-netdev").arg(format!("user,id=net{forwards}"));
    command.arg("-device").arg(format!("virtio-net-pci,netdev=net,romfile=,mac={}", option(&spec.mac)));
}

fn boot(command: &mut Command, folder: &Folder, options: &QemuOptions, spec: &DomainSpec) -> Result<()> {
    match &spec.boot {
        Boot::Kernel { kernel, initramfs, command_line, .. } => {
            command.args(["-kernel", kernel, "-initrd", initramfs, "-append", command_line]);
            let config = path_option(&folder.config(spec.id))?;
            command.arg("-fw_cfg").arg(format!("name=opt/org.uvm/config,file={config}"));
        }
        Boot::Disk => {
            let vars = folder.vars(spec.id);
            if !vars.exists() {
                let from = &options.firmware_vars;
                let original = fs::read(from).map_err(|error| failed("reading", from, &error))?;
                make_whole(&vars, |file| std::io::Write::write_all(file, &original))?;
            }
            let code = path_option(&options.firmware_code)?;
            command.arg("-drive").arg(format!("if=pflash,format=raw,readonly=on,file={code}"));
            command.arg("-drive").arg(format!("if=pflash,format=raw,file={}", path_option(&vars)?));
        }
    }
    Ok(())
}
