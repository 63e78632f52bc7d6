//! `uvm-controller`: the controller and its command line.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use uvm_controller::cli;
use uvm_controller::config::{self, FileFlag, ServeConfig, ServeFlags};
use uvm_controller::hypervisor::qemu::{Accelerator, QemuManager, QemuOptions};
use uvm_controller::hypervisor::{Error, ErrorKind};
use uvm_controller::runtime::nodes::{Factory, NodeAddress, Opened, command_line};
use uvm_controller::serve::Controller;
use uvm_controller::{http, log};

/// The controller failed.
const FAILED: u8 = 1;

#[derive(Parser)]
#[command(name = "uvm-controller", version, about = "One API for a grid of nodes")]
struct Arguments {
    #[command(flatten)]
    file: FileFlag,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API and drive the grid, until SIGTERM.
    Serve(ServeFlags),
    /// Print the OpenAPI document of the API.
    Openapi,
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Client(command) => return command.run(&arguments.file, Arguments::command()),
        Command::Serve(flags) => serve(&arguments.file, flags),
        Command::Openapi => {
            print(&http::document());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::warn(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

/// Whoever reads standard output may have gone away.
fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn serve(file: &FileFlag, flags: ServeFlags) -> anyhow::Result<()> {
    let config = ServeConfig::load(file, flags, &config::environment())?;
    allow_many_files();
    for part in [&config.kernel, &config.initramfs] {
        if !part.exists() {
            log::warn(&format!("{} is not there: no utility VM can be booted", part.display()));
        }
    }
    // The signals are taken before anything is begun that has to be ended well.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    drop(entered);
    let accelerator = Accelerator::choose().context("looking for what runs virtual machines here")?;
    let command_line = command_line(accelerator == Accelerator::Tcg);
    let options = QemuOptions { accelerator: Some(accelerator), ..QemuOptions::default() };
    let controller = Controller::start(&config, hypervisors(options), command_line)?;
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => log::info("SIGTERM: ending"),
            _ = interrupt.recv() => log::info("SIGINT: ending"),
        }
    });
    controller.stop();
    log::info("ended");
    Ok(())
}

/// Opens nodes by their kind of hypervisor.
fn hypervisors(options: QemuOptions) -> Factory {
    Box::new(move |node: &NodeAddress| match node.hypervisor.as_str() {
        "qemu" => {
            let manager = QemuManager::open(node.address.as_ref(), options.clone())?;
            Ok(Opened { manager: Arc::new(manager), utility: None })
        }
        other => Err(Error::new(ErrorKind::Unsupported, format!("there is no manager for {other:?}"))),
    })
}

/// Every connection is a file; the limit that shells hand on is for one user's programs. Where it cannot be raised,
/// fewer connections are served at once.
fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
