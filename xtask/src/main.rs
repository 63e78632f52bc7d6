//! `cargo xtask`: the developer's commands. They may run child processes and install what a build needs; the utility VM
//! never does either.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod appliance;
mod bench;
mod cache;
mod cpio;
mod demo;
mod deps;
mod fuzz;
mod image;
mod kernel;
mod oci;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds and shows the utility VM.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turns a blank disk into a machine, boots it and logs in; everything that is missing is built first
    Demo,
    /// Runs everything a change must pass
    Test {
        /// Includes the tests that are ignored by default
        #[arg(long)]
        all: bool,
    },
    /// Builds the appliance's kernel and initramfs into target/appliance
    Appliance {
        /// Adds a fragment of kernel-config/optional to the kernel; may be given more than once
        #[arg(long, value_name = "FRAGMENT")]
        with: Vec<String>,
    },
    /// Measures, beside peers where there are some, and puts the table into docs/bench.md
    Bench {
        /// What is measured
        subject: bench::Subject,
    },
    /// Lets everything that reads what others wrote meet inputs made to break it
    Fuzz {
        /// One target; each where it is missing
        target: Option<String>,
        /// How long each is fuzzed
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Makes a guest image from image-recipes as an OCI image layout
    Image {
        /// The recipe's name: a file of image-recipes without its .toml
        recipe: String,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo => demo::run(false),
        Command::Bench { subject } => bench::run(subject),
        Command::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Command::Test { all } => test::run(all),
        Command::Appliance { with } if with.is_empty() => appliance::build().map(drop),
        Command::Appliance { with } => appliance::build_with(&with).map(drop),
        Command::Image { recipe } => image::build(&recipe).map(drop),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the work tree this command was started from.
fn workspace_root() -> PathBuf {
    // Cargo sets the variable at run time too, which stays right when the clone was moved after the build.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}
