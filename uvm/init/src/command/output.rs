//! What commands print: JSON documents, and problems for people.

use uvm_api::Problem;

use super::DONE;

/// Without what a terminal would obey: it may quote what an archive, a disk or a document has for a name.
pub(super) fn plain(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

pub(super) fn print_json<T: serde::Serialize>(value: &T) -> u8 {
    say!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
    DONE
}

pub(super) fn complain(problem: &Problem, json: bool, status: u8) -> u8 {
    if json {
        say!("{}", serde_json::to_string(problem).unwrap_or_default());
    } else {
        print_problem(problem);
    }
    status
}

pub(super) fn print_problem(problem: &Problem) {
    say_aside!("uvm: {}: {}", problem.title, plain(&problem.detail));
    for cause in &problem.causes {
        say_aside!("  because: {}", plain(cause));
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
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}
