//! The utility VM: PID 1 of the appliance, and a host command with the same engine.

/// A line on standard output. Whoever reads it may have gone away; the work goes on.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        if writeln!(std::io::stdout().lock(), $($text)*).is_err() {
            crate::OUTPUT_IS_LOST.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }};
}

/// Something that was to be said could not be: standard output is full or closed.
static OUTPUT_IS_LOST: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// As `say!`, on standard error.
macro_rules! say_aside {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr().lock(), $($text)*);
    }};
}

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
