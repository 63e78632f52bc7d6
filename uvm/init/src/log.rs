//! The appliance's log: a ring of recent lines that the console shows, and standard error or the kernel's log.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Lines kept.
const MAX_LINES: usize = 500;

static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
static SINK: OnceLock<fn(&str)> = OnceLock::new();

/// Sends lines to `sink` from now on instead of to standard error.
pub(crate) fn set_sink(sink: fn(&str)) {
    let _ = SINK.set(sink);
}

fn add(level: &str, message: &str) {
    let line = format!("{} {level} {message}", crate::job::now());
    match SINK.get() {
        Some(sink) => sink(&format!("uvm: {message}")),
        None => eprintln!("uvm: {message}"),
    }
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if lines.len() == MAX_LINES {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// Something an operator may want to know.
pub(crate) fn info(message: &str) {
    add("info", message);
}

/// Something that should not have happened.
pub(crate) fn warn(message: &str) {
    add("warning", message);
}

/// The last `count` lines.
pub(crate) fn recent(count: usize) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
}
