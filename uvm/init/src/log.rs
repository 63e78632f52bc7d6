//! The appliance's log: a ring of recent lines that the console shows, and standard error or the kernel's log.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const WARNING: &str = "warning";
/// Lines kept.
const MAX_LINES: usize = 500;

static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
static SINK: Mutex<Option<fn(&str)>> = Mutex::new(None);

/// Sends lines to `sink` from now on. Before, only warnings are shown, on standard error.
pub(crate) fn set_sink(sink: fn(&str)) {
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = Some(sink);
}

fn add(level: &str, message: &str) {
    let line = format!("{} {level} {message}", crate::job::now());
    let sink = *SINK.lock().unwrap_or_else(PoisonError::into_inner);
    match sink {
        Some(sink) => sink(&format!("uvm: {message}")),
        None if level == WARNING => say_aside!("uvm: {message}"),
        None => {}
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
    add(WARNING, message);
}

/// The last `count` lines.
pub(crate) fn recent(count: usize) -> Vec<String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
}
