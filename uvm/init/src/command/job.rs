//! Jobs on the host: `uvm plan`, `uvm apply`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use uvm_api::{DiskState, ErrorCode, Event, EventBody, JobSpec, Plan, Problem};

use super::output::{complain, plain, print_json, print_problem, word};
use super::{DONE, FAILED, REFUSED, block_size, engine};
use crate::job::Engine;

/// Largest document.
const MAX_DOCUMENT: u64 = 1 << 20;

#[derive(clap::Args)]
pub(super) struct JobArguments {
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

fn device(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((serial, path)) if !serial.is_empty() && !path.is_empty() => {
            Ok((serial.to_owned(), path.into()))
        }
        _ => Err("SERIAL=PATH is expected".to_owned()),
    }
}

/// A document of the wire; `-` is standard input.
pub(super) fn read_document<T: DeserializeOwned>(path: &Path) -> Result<T, Problem> {
    use std::io::Read;
    let invalid = |detail: String| Problem::new(ErrorCode::InvalidRequest, detail);
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_DOCUMENT + 1).read_to_end(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_DOCUMENT + 1).read_to_end(&mut text))
    };
    read.map_err(|error| invalid(format!("{}: {error}", path.display())))?;
    if text.len() as u64 > MAX_DOCUMENT {
        return Err(invalid(format!("{}: a document has at most {MAX_DOCUMENT} bytes", path.display())));
    }
    serde_json::from_slice(&text).map_err(|error| invalid(format!("{}: {error}", path.display())))
}

pub(super) fn plan(arguments: &JobArguments) -> u8 {
    let engine = engine(arguments.devices.clone(), arguments.logical_block_size, None);
    match read_document::<JobSpec>(&arguments.job).and_then(|spec| engine.plan(spec)) {
        Ok(plan) if arguments.json => print_json(&plan),
        Ok(plan) => {
            print_plan(&plan);
            DONE
        }
        Err(problem) => complain(&problem, arguments.json, REFUSED),
    }
}

pub(super) fn apply(arguments: &JobArguments, journal: Option<PathBuf>) -> u8 {
    let engine = engine(arguments.devices.clone(), arguments.logical_block_size, journal);
    let submitted = read_document::<JobSpec>(&arguments.job).and_then(|spec| engine.submit(spec));
    let job = match submitted {
        Ok(submitted) => submitted.job.id,
        Err(problem) => return complain(&problem, arguments.json, REFUSED),
    };
    carry_out(&engine, &job, arguments.json)
}

/// Follows a job to its end.
pub(super) fn carry_out(engine: &Engine, job: &str, json: bool) -> u8 {
    let mut after = 0;
    loop {
        let events = match engine.wait_events(job, after, Duration::from_secs(1)) {
            Ok(events) => events,
            Err(problem) => return complain(&problem, json, FAILED),
        };
        for event in events {
            after = event.sequence;
            if let Some(status) = show(&event, json) {
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
        EventBody::Note { message, .. } => say!("      {}", plain(message)),
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

fn print_plan(plan: &Plan) {
    say!(
        "{} on {} ({} MiB, blocks of {})",
        plan.kind,
        plain(&plan.device),
        plan.size_bytes >> 20,
        plan.logical_block_size
    );
    say!("job id     {}", plan.job_id);
    say!("plan hash  {}", plan.plan_hash);
    print_partitions(plan);
    say!("\nsteps:");
    for step in &plan.steps {
        say!("  {:<10} {}", step.name, plain(&step.description));
    }
}

/// What will be lost, and what becomes of each partition and why.
pub(super) fn print_partitions(plan: &Plan) {
    if !plan.destroys.is_empty() {
        say!("\nwill be lost:");
    }
    for extent in &plan.destroys {
        say!("  LBA {:>12} to {:>12}  {}", extent.starting_lba, extent.ending_lba, plain(&extent.contents));
    }
    if !plan.partitions.is_empty() {
        say!("\npartitions:");
    }
    for partition in &plan.partitions {
        say!(
            "  {:>3}  LBA {:>12} to {:>12}  {:>8} MiB  {:<8} {:<5} {:<12} {}: {}",
            partition.number,
            partition.starting_lba,
            partition.ending_lba,
            partition.size_bytes >> 20,
            plain(&partition.label),
            partition.format.as_deref().unwrap_or("-"),
            partition.path.as_deref().unwrap_or("-"),
            word(&partition.action),
            plain(&partition.reason),
        );
    }
}
