//! The utility VM: PID 1 of the appliance, and a host command with the same engine.

mod adapter;
mod appliance;
mod command;
mod config;
mod console;
mod http;
mod image;
mod inventory;
mod job;
mod log;
mod network;
mod node;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 { appliance::run() } else { command::run() }
}
