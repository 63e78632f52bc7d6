//! The log: plain lines on standard error, for whoever keeps them. No secrets.

use std::io::Write;
use std::time::SystemTime;

fn line(level: &str, message: &str) {
    let now = humantime::format_rfc3339_millis(SystemTime::now());
    // One line each, whatever a guest or a node put into the message. Whoever reads may have gone away.
    let message = message.replace(['\n', '\r'], " ");
    let _ = writeln!(std::io::stderr().lock(), "{now} {level} {message}");
}

/// Something an operator may want to know.
pub fn info(message: &str) {
    line("info", message);
}

/// Something that should not have happened.
pub fn warn(message: &str) {
    line("warning", message);
}
