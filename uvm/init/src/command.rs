//! The same engine on a host: `uvm plan`, `uvm apply`, `uvm inspect`.
//!
//! Exit status: 0 done, 2 refused before anything was written, 3 failed, with `disk_state` in the output.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use uvm_api::{DiskState, ErrorCode, Event, EventBody, JobSpec, Plan, Problem};

use crate::image::ClientOptions;
use crate::inventory::CommandLineInventory;
use crate::job::{Engine, Options};

/// Largest job document.
const MAX_JOB: u64 = 1 << 20;

const DONE: u8 = 0;
const REFUSED: u8 = 2;
const FAILED: u8 = 3;

#[derive(Parser)]
#[command(name = "uvm", version, about = "Makes machines out of block devices and files")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the plan of a job: steps, extents that will be lost, partitions, plan_hash. Writes nothing.
    Plan(JobArguments),
    /// Carry a job out.
    Apply {
        #[command(flatten)]
        job: JobArguments,
        /// Also append every event to a file in this folder, one file a job.
        #[arg(long, value_name = "DIR")]
        journal: Option<PathBuf>,
    },
    /// Tell what is on a device or file. Writes nothing.
    Inspect {
        /// Device or file.
        path: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Logical block size of a plain file.
        #[arg(long, default_value_t = 512, value_parser = block_size)]
        logical_block_size: u32,
    },
    /// Print the OpenAPI document of the appliance's API.
    Openapi,
}

#[derive(clap::Args)]
struct JobArguments {
    /// The job document (JSON); `-` reads standard input.
    job: PathBuf,
    /// A device by the serial the job calls it: SERIAL=PATH. May be a plain file.
    #[arg(long = "device", value_name = "SERIAL=PATH", required = true, value_parser = device)]
    devices: Vec<(String, PathBuf)>,
    /// Print JSON: the plan, or one event a line.
    #[arg(long)]
    json: bool,
    /// Logical block size of plain files.
    #[arg(long, default_value_t = 512, value_parser = block_size)]
    logical_block_size: u32,
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 or 4096".to_owned()),
    }
}

fn device(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((serial, path)) if !serial.is_empty() && !path.is_empty() => {
            Ok((serial.to_owned(), path.into()))
        }
        _ => Err("SERIAL=PATH is expected".to_owned()),
    }
}

/// Runs the command line.
pub(crate) fn run() -> ExitCode {
    let status = match Arguments::parse().command {
        Command::Plan(arguments) => plan(&arguments),
        Command::Apply { job, journal } => apply(&job, journal),
        Command::Inspect { path, json, logical_block_size } => inspect(&path, json, logical_block_size),
        Command::Openapi => {
            say!("{}", crate::http::document());
            DONE
        }
    };
    ExitCode::from(status)
}

fn engine(
    devices: Vec<(String, PathBuf)>,
    file_block_size: u32,
    journal_dir: Option<PathBuf>,
) -> Arc<Engine> {
    let inventory = CommandLineInventory { devices, file_block_size };
    Engine::new(Arc::new(inventory), Options { image: ClientOptions::default(), journal_dir, max_running: 1 })
}

fn read_job(path: &Path) -> Result<JobSpec, Problem> {
    use std::io::Read;
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidRequest, detail);
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_JOB + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_JOB + 1).read_to_end(&mut text))
    };
    read.map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    if text.len() as u64 > MAX_JOB {
        return Err(invalid(format!("{}: a job document has at most {MAX_JOB} bytes", path.display())));
    }
    serde_json::from_slice(&text).map_err(|error| invalid(format!("{}: {error}", path.display())))
}

fn plan(arguments: &JobArguments) -> u8 {
    let engine = engine(arguments.devices.clone(), arguments.logical_block_size, None);
    match read_job(&arguments.job).and_then(|spec| engine.plan(spec)) {
        Ok(plan) if arguments.json => print_json(&plan),
        Ok(plan) => {
            print_plan(&plan);
            DONE
        }
        Err(problem) => complain(&problem, arguments.json, REFUSED),
    }
}

fn apply(arguments: &JobArguments, journal: Option<PathBuf>) -> u8 {
    let engine = engine(arguments.devices.clone(), arguments.logical_block_size, journal);
    let submitted = read_job(&arguments.job).and_then(|spec| engine.submit(spec));
    let job = match submitted {
        Ok(submitted) => submitted.job.id,
        Err(problem) => return complain(&problem, arguments.json, REFUSED),
    };
    let mut after = 0;
    loop {
        let events = match engine.wait_events(&job, after, Duration::from_secs(1)) {
            Ok(events) => events,
            Err(problem) => return complain(&problem, arguments.json, FAILED),
        };
        for event in events {
            after = event.sequence;
            if let Some(status) = show(&event, arguments.json) {
                return status;
            }
        }
    }
}

/// Prints an event; the exit status where it was the last.
fn show(event: &Event, json: bool) -> Option<u8> {
    if json {
        say!("{}", serde_json::to_string(event).unwrap_or_default());
    }
    let status = match &event.body {
        EventBody::Succeeded { .. } => Some(DONE),
        EventBody::Failed { problem } | EventBody::Cancelled { problem } => {
            Some(if problem.disk_state == Some(DiskState::Untouched) { REFUSED } else { FAILED })
        }
        _ => None,
    };
    if json {
        return status;
    }
    let mib = |bytes: u64| bytes >> 20;
    match &event.body {
        EventBody::StepStarted { step, index, steps, .. } => say!("[{index}/{steps}] {step}"),
        EventBody::Progress { bytes_done, bytes_total, bytes_per_second, .. } => match bytes_total {
            Some(total) => {
                say!("      {} of {} MiB, {} MiB/s", mib(*bytes_done), mib(*total), mib(*bytes_per_second))
            }
            None => say!("      {} MiB, {} MiB/s", mib(*bytes_done), mib(*bytes_per_second)),
        },
        EventBody::Note { message, .. } => say!("      {message}"),
        EventBody::StepDone { bytes, duration_ms, .. } => {
            say!("      done: {} MiB in {}.{:03} s", mib(*bytes), duration_ms / 1000, duration_ms % 1000);
        }
        EventBody::Succeeded { result, .. } => {
            say!("{}", serde_json::to_string_pretty(result).unwrap_or_default());
        }
        EventBody::Failed { problem } | EventBody::Cancelled { problem } => print_problem(problem),
        EventBody::Planned { plan_hash, .. } => say!("plan {plan_hash}"),
        EventBody::Unknown => {}
    }
    status
}

fn inspect(path: &Path, json: bool, logical_block_size: u32) -> u8 {
    let engine = engine(vec![("device".to_owned(), path.to_owned())], logical_block_size, None);
    match engine.devices() {
        Ok(mut devices) => match devices.pop() {
            Some(device) if json => print_json(&device),
            Some(device) => {
                print_device(&device);
                DONE
            }
            None => REFUSED,
        },
        Err(problem) => complain(&problem, json, REFUSED),
    }
}

fn print_json<T: serde::Serialize>(value: &T) -> u8 {
    say!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
    DONE
}

fn complain(problem: &Problem, json: bool, status: u8) -> u8 {
    if json {
        say!("{}", serde_json::to_string(problem).unwrap_or_default());
    } else {
        print_problem(problem);
    }
    status
}

fn print_problem(problem: &Problem) {
    say_aside!("uvm: {}: {}", problem.title, problem.detail);
    for cause in &problem.causes {
        say_aside!("  because: {cause}");
    }
    if let Some(step) = &problem.step {
        say_aside!("  step: {step}");
    }
    if let Some(offset) = problem.offset {
        say_aside!("  offset: byte {offset}");
    }
    if let Some(state) = problem.disk_state {
        say_aside!("  disk_state: {}", word(&state));
    }
    if let Some(retry) = problem.retry {
        say_aside!("  retry: {}", word(&retry));
    }
}

/// An enum's name on the wire.
fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

fn print_plan(plan: &Plan) {
    say!(
        "{} on {} ({} MiB, blocks of {})",
        plan.kind,
        plan.device,
        plan.size_bytes >> 20,
        plan.logical_block_size
    );
    say!("job id     {}", plan.job_id);
    say!("plan hash  {}", plan.plan_hash);
    if !plan.destroys.is_empty() {
        say!("\nwill be lost:");
    }
    for extent in &plan.destroys {
        say!("  LBA {:>12} to {:>12}  {}", extent.starting_lba, extent.ending_lba, extent.contents);
    }
    if !plan.partitions.is_empty() {
        say!("\npartitions:");
    }
    for partition in &plan.partitions {
        say!(
            "  {:>3}  LBA {:>12} to {:>12}  {:>8} MiB  {:<8} {:<5} {}",
            partition.number,
            partition.starting_lba,
            partition.ending_lba,
            partition.size_bytes >> 20,
            partition.label,
            partition.format.as_deref().unwrap_or("-"),
            partition.path.as_deref().unwrap_or("-"),
        );
    }
    say!("\nsteps:");
    for step in &plan.steps {
        say!("  {:<10} {}", step.name, step.description);
    }
}

fn print_device(device: &uvm_api::Device) {
    say!("{}  {} MiB, blocks of {}", device.node, device.size_bytes >> 20, device.logical_block_size);
    if let Some(system) = &device.os_release {
        say!("  system      {system}");
    }
    let describe = |found: &uvm_api::FileSystem| {
        let used = found.used_bytes.map_or(String::new(), |used| format!(", {} MiB used", used >> 20));
        let label = found.label.as_deref().map_or(String::new(), |label| format!(" {label:?}"));
        format!("{}{label} {}{used}", found.format, found.uuid.as_deref().unwrap_or(""))
    };
    if let Some(found) = &device.filesystem {
        say!("  filesystem  {}", describe(found));
    }
    if let Some(table) = &device.table {
        say!("  table       {} {}", table.kind, table.disk_guid.as_deref().unwrap_or(""));
        for partition in &table.partitions {
            say!(
                "  {:>3}  {:>8} MiB  {:<16} {}",
                partition.number,
                partition.size_bytes >> 20,
                partition.label.as_deref().unwrap_or(""),
                partition.filesystem.as_ref().map_or_else(|| partition.type_guid.clone(), describe),
            );
        }
    }
    for note in &device.notes {
        say!("  note        {note}");
    }
}
