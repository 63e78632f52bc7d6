//! The same engine on a host: `uvm plan`, `uvm apply`, `uvm inspect`.
//!
//! Exit status: 0 done, 2 refused before anything was written, 3 failed, with `disk_state` in the output.

mod failure;
mod inspect;
mod job;
mod mkfs;
mod output;
mod partition;
mod resize;
mod size;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::{Parser, Subcommand};

use self::job::JobArguments;
use self::mkfs::MkfsArguments;
use self::partition::PartitionArguments;
use self::resize::ResizeArguments;
use self::usage::UsageArguments;
use crate::image::ClientOptions;
use crate::inventory::CommandLineInventory;
use crate::job::{Engine, Options};

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
    /// Make a file system on a device or in a file.
    Mkfs(MkfsArguments),
    /// Make an ext2, ext3 or ext4 larger or smaller, mounted or not.
    Resize(ResizeArguments),
    /// Tell which bytes of a device hold something. Writes nothing.
    Usage(UsageArguments),
    /// Divide a device or a file into partitions, and make the file systems that the layout names.
    Partition(PartitionArguments),
    /// Print the OpenAPI document of the appliance's API.
    Openapi,
}

impl Command {
    /// Whether it is there for what it prints, and writes nothing.
    fn tells_only(&self) -> bool {
        match self {
            Self::Plan(_) | Self::Inspect { .. } | Self::Usage(_) | Self::Openapi => true,
            Self::Resize(arguments) => arguments.dry_run,
            Self::Partition(arguments) => arguments.dry_run,
            Self::Apply { .. } | Self::Mkfs(_) => false,
        }
    }
}

fn block_size(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" => Ok(4096),
        _ => Err("512 or 4096".to_owned()),
    }
}

/// Runs the command line.
pub(crate) fn run() -> ExitCode {
    let command = Arguments::parse().command;
    let tells_only = command.tells_only();
    let status = match command {
        Command::Plan(arguments) => job::plan(&arguments),
        Command::Apply { job, journal } => job::apply(&job, journal),
        Command::Inspect { path, json, logical_block_size } => {
            inspect::inspect(&path, json, logical_block_size)
        }
        Command::Mkfs(arguments) => mkfs::mkfs(&arguments),
        Command::Resize(arguments) => resize::run(&arguments),
        Command::Usage(arguments) => usage::usage(&arguments),
        Command::Partition(arguments) => partition::partition(&arguments),
        Command::Openapi => {
            say!("{}", crate::http::document());
            DONE
        }
    };
    // Of a disk that was written the status says what became of it, whether anybody reads along or not.
    if tells_only && status == DONE && crate::OUTPUT_IS_LOST.load(Ordering::Relaxed) {
        say_aside!("uvm: standard output does not take what there is to tell");
        return ExitCode::from(REFUSED);
    }
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
