//! The serial console: the operator's last resort when the network does not work.
//!
//! A line editor over the same engine, with the same checks, as the API. It never offers a shell. What would
//! end a running job asks for the serial of the job's device to be typed.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config as EditorConfig, Editor};
use uvm_api::{Device, Job, JobState, PowerAction};

use crate::config::{Config, ConsoleMode};
use crate::job::Engine;
use crate::node::NodeFacts;

const HELP: &str = "\
help               this text
status             the node, its memory and its jobs
devices            block devices and what is on them
inspect SERIAL     one device in full
jobs [ID]          jobs, or one job in full
cancel ID          ask a job to end (asks for its device's serial)
log [LINES]        the last lines of the log
net                network interfaces
config             the configuration
identity           who this node is
reboot, poweroff   end (asks for the serials of devices that jobs hold)";

/// Log lines shown where the operator gives no number.
const LOG_LINES: usize = 30;
/// Lines of history kept.
const HISTORY: usize = 100;

type Line = Editor<(), MemHistory>;

/// The console on this process's terminal.
pub(crate) struct Console {
    pub(crate) config: Arc<Config>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) node: Arc<NodeFacts>,
    pub(crate) power: Sender<PowerAction>,
}

impl Console {
    /// Reads and answers for ever.
    pub(crate) fn run(&self) {
        // From here on the log goes to its ring and the kernel's, not between the operator's letters.
        crate::log::set_sink(|line| {
            let _ = uvm_sys::kmsg(line);
        });
        let _ = uvm_sys::set_console_log_level(1);
        loop {
            if let Err(error) = self.session() {
                crate::log::warn(&format!("console: {error}"));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn session(&self) -> Result<(), ReadlineError> {
        let settings = EditorConfig::builder().max_history_size(HISTORY)?.auto_add_history(true).build();
        let mut line: Line = Editor::with_history(settings, MemHistory::new())?;
        say!("\r\nUtility VM {} on {}. Type help.", env!("CARGO_PKG_VERSION"), self.config.node);
        let prompt = match self.config.console {
            ConsoleMode::Full => format!("{}> ", self.config.node),
            _ => format!("{} (read-only)> ", self.config.node),
        };
        loop {
            match line.readline(&prompt) {
                Ok(text) => {
                    let answer = self.answer(&text, &mut |question| line.readline(question).ok());
                    if !answer.is_empty() {
                        say!("{}", answer.trim_end());
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The answer to a line; `ask` puts a question to the operator.
    fn answer(&self, text: &str, ask: &mut dyn FnMut(&str) -> Option<String>) -> String {
        let words: Vec<&str> = text.split_whitespace().collect();
        let full = self.config.console == ConsoleMode::Full;
        match words.as_slice() {
            [] => String::new(),
            ["help" | "?"] => HELP.to_owned(),
            ["status"] => self.status(),
            ["devices"] => match self.engine.devices() {
                Ok(devices) => table_of_devices(&devices),
                Err(problem) => problem.detail,
            },
            ["inspect", serial] => self.inspect(serial),
            ["jobs"] => table_of_jobs(&self.engine.jobs()),
            ["jobs", id] => match self.engine.job(id) {
                Ok(job) => pretty(&job),
                Err(problem) => problem.detail,
            },
            ["log"] => crate::log::recent(LOG_LINES).join("\n"),
            ["log", lines] => match lines.parse() {
                Ok(lines) => crate::log::recent(lines).join("\n"),
                Err(_) => format!("{lines:?} is not a number of lines"),
            },
            ["net"] => table_of_interfaces(),
            ["config"] => self.config.summary().join("\n"),
            ["identity"] => self.identity(),
            ["cancel" | "reboot" | "poweroff", ..] if !full => {
                "the console is read-only by configuration".to_owned()
            }
            ["cancel", id] => self.cancel(id, ask),
            ["reboot"] => self.end(PowerAction::Reboot, ask),
            ["poweroff"] => self.end(PowerAction::PowerOff, ask),
            [verb @ ("inspect" | "cancel"), ..] => format!("{verb} takes one word; type help"),
            [verb, ..] => format!("there is no command {verb:?}; type help"),
        }
    }

    fn status(&self) -> String {
        let node = self.node.describe();
        let mib = |bytes: u64| bytes >> 20;
        format!(
            "{} version {} kernel {}\nbooted {}, API after {} ms\n{} CPUs, {} MiB memory, {} MiB used by the UVM (peak {})\n{} jobs running, {} remembered",
            node.name,
            node.version,
            node.kernel,
            node.boot_time,
            node.boot_ms,
            node.cpus,
            mib(node.memory_bytes),
            mib(node.rss_bytes),
            mib(node.peak_rss_bytes),
            self.engine.running(),
            self.engine.jobs().len(),
        )
    }

    fn inspect(&self, serial: &str) -> String {
        match self.engine.devices() {
            Ok(devices) => match devices.iter().find(|device| device.serial == serial) {
                Some(device) => pretty(device),
                None => format!("no device has the serial {serial:?}; `devices` lists those attached"),
            },
            Err(problem) => problem.detail,
        }
    }

    fn identity(&self) -> String {
        let node = self.node.describe();
        let mut text =
            format!("node        {}\npublic key  {} (X25519, this boot)", node.name, node.public_key);
        let api = self.config.api.as_ref();
        match api.and_then(|api| crate::http::certificate_fingerprint(&api.certificate)) {
            Some(fingerprint) => {
                let _ = write!(text, "\ncertificate sha256 {fingerprint}");
            }
            None => text.push_str("\ncertificate none"),
        }
        text
    }

    fn cancel(&self, id: &str, ask: &mut dyn FnMut(&str) -> Option<String>) -> String {
        let job = match self.engine.job(id) {
            Ok(job) => job,
            Err(problem) => return problem.detail,
        };
        if job.state != JobState::Running {
            return format!("job {id} has ended already");
        }
        if !confirmed(&job.device, ask) {
            return "that is not its serial; the job goes on".to_owned();
        }
        match self.engine.cancel(id) {
            Ok(_) => format!("job {id} was asked to end; `jobs {id}` tells how it ended"),
            Err(problem) => problem.detail,
        }
    }

    fn end(&self, action: PowerAction, ask: &mut dyn FnMut(&str) -> Option<String>) -> String {
        let running: Vec<Job> =
            self.engine.jobs().into_iter().filter(|job| job.state == JobState::Running).collect();
        for job in &running {
            say!("job {} ({}) is running on {} and would be cancelled", job.id, job.kind, job.device);
            if !confirmed(&job.device, ask) {
                return "that is not its serial; nothing was done".to_owned();
            }
        }
        match self.power.send(action) {
            Ok(()) => "ending".to_owned(),
            Err(_) => "nobody listens to power requests; destroy the VM from its hypervisor".to_owned(),
        }
    }
}

fn confirmed(serial: &str, ask: &mut dyn FnMut(&str) -> Option<String>) -> bool {
    ask("type the serial of the device to go on: ").is_some_and(|typed| typed.trim() == serial)
}

fn pretty<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn table_of_devices(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "no block device is attached".to_owned();
    }
    let mut text = format!("{:<24} {:<12} {:>10} {:>5}  CONTENTS\n", "SERIAL", "NODE", "MIB", "BLOCK");
    for device in devices {
        let contents = match (&device.held_by, &device.table, &device.filesystem) {
            (Some(job), _, _) => format!("held by job {job}"),
            (_, Some(table), _) => {
                let system = device.os_release.as_ref().map_or(String::new(), |name| format!(", {name}"));
                format!("{} with {} partitions{system}", table.kind, table.partitions.len())
            }
            (_, _, Some(found)) => found.format.clone(),
            _ if !device.notes.is_empty() => device.notes.join("; "),
            _ => "no partition table, no file system".to_owned(),
        };
        let serial = if device.serial.is_empty() { "(none)" } else { &device.serial };
        let _ = writeln!(
            text,
            "{serial:<24} {:<12} {:>10} {:>5}  {contents}",
            device.node,
            device.size_bytes >> 20,
            device.logical_block_size
        );
    }
    text
}

fn table_of_jobs(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "no job was submitted since boot".to_owned();
    }
    let mut text = format!("{:<36} {:<10} {:<24} {:<10} STEP\n", "ID", "KIND", "DEVICE", "STATE");
    for job in jobs {
        let state = format!("{:?}", job.state).to_lowercase();
        let step = match (&job.progress, &job.problem) {
            (Some(progress), _) => format!(
                "{} ({}/{}), {} MiB",
                progress.step,
                progress.index,
                progress.steps,
                progress.bytes_done >> 20
            ),
            (_, Some(problem)) => problem.title.clone(),
            _ => String::new(),
        };
        let _ = writeln!(text, "{:<36} {:<10} {:<24} {state:<10} {step}", job.id, job.kind, job.device);
    }
    text
}

fn table_of_interfaces() -> String {
    let interfaces = match uvm_sys::interfaces() {
        Ok(interfaces) => interfaces,
        Err(error) => return error.to_string(),
    };
    let mut text = String::new();
    for interface in interfaces {
        let addresses: Vec<String> =
            interface.addresses.iter().map(|a| format!("{}/{}", a.address, a.prefix)).collect();
        let _ = writeln!(
            text,
            "{:<8} {:<18} {:<5} {:<10} {}",
            interface.name,
            interface.mac.map(crate::network::mac_text).unwrap_or_default(),
            if interface.up { "up" } else { "down" },
            if interface.carrier { "carrier" } else { "no-carrier" },
            addresses.join(" ")
        );
    }
    text
}
