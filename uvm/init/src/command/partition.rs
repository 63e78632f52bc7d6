//! `uvm partition`: a device or a file is divided as a layout says.

use std::path::{Path, PathBuf};

use uvm_api::{DeviceRef, DiskSpec, JobSpec, PartitionJobSpec};

use super::job::{carry_out, print_partitions, read_document};
use super::output::{complain, print_json};
use super::{DONE, REFUSED, block_size, engine};

#[derive(clap::Args)]
pub(super) struct PartitionArguments {
    /// Device or file.
    path: PathBuf,
    /// The layout (JSON): the `disk` of a job; `-` reads standard input.
    #[arg(long, value_name = "LAYOUT.json")]
    layout: PathBuf,
    /// Print what would be done, and why. Writes nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON: the plan, then one event a line.
    #[arg(long)]
    json: bool,
    /// Identities that the layout does not give derive from this; made up where it is missing.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Logical block size of a plain file.
    #[arg(long, default_value_t = 512, value_parser = block_size)]
    logical_block_size: u32,
}

fn job(arguments: &PartitionArguments, disk: DiskSpec) -> PartitionJobSpec {
    let serial = arguments.path.display().to_string();
    PartitionJobSpec {
        id: arguments.id.clone(),
        device: DeviceRef { serial, size_bytes: None, must_be_blank: false },
        disk,
        plan_hash: None,
    }
}

pub(super) fn partition(arguments: &PartitionArguments) -> u8 {
    let path: &Path = &arguments.path;
    let devices = vec![(path.display().to_string(), path.to_owned())];
    let engine = engine(devices, arguments.logical_block_size, None);
    let planned = read_document(&arguments.layout).and_then(|disk| {
        let mut spec = job(arguments, disk);
        let plan = engine.plan(JobSpec::Partition(Box::new(spec.clone())))?;
        spec.id = Some(plan.job_id.clone());
        spec.plan_hash = Some(plan.plan_hash.clone());
        Ok((spec, plan))
    });
    let (spec, plan) = match planned {
        Ok(planned) => planned,
        Err(problem) => return complain(&problem, arguments.json, REFUSED),
    };
    match (arguments.json, arguments.dry_run) {
        (true, true) => return print_json(&plan),
        (true, false) => say!("{}", serde_json::to_string(&plan).unwrap_or_default()),
        (false, _) => print_partitions(&plan),
    }
    if arguments.dry_run {
        return DONE;
    }
    match engine.submit(JobSpec::Partition(Box::new(spec))) {
        Ok(submitted) => carry_out(&engine, &submitted.job.id, arguments.json),
        Err(problem) => complain(&problem, arguments.json, REFUSED),
    }
}
