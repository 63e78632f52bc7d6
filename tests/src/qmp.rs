//! QEMU's machine protocol: JSON lines over a Unix socket.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long QEMU may take to answer a command.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one look at the socket takes at most.
const POLL: Duration = Duration::from_millis(50);
/// Events kept for those who ask later.
const MAX_EVENTS: usize = 1000;

/// A connection to one QEMU.
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// The beginning of a line that has not come whole yet.
    line: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Greets the QEMU at the other end of `stream`.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(POLL))?;
        let mut qmp = Self { reader: BufReader::new(stream), line: Vec::new(), events: VecDeque::new() };
        let deadline = Instant::now() + PATIENCE;
        while qmp.next(deadline)?.get("QMP").is_none() {}
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let message = json!({ "execute": command, "arguments": arguments });
        self.reader.get_mut().write_all(format!("{message}\n").as_bytes())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answer = self.next(deadline).with_context(|| format!("waiting for {command}"))?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("{command}: {}", error["desc"].as_str().unwrap_or("refused"));
            }
            self.keep(answer);
        }
    }

    /// Waits for an event whose data `matches`.
    pub fn wait_event(
        &mut self,
        name: &str,
        timeout: Duration,
        matches: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        let wanted = |event: &Value| event["event"] == name && matches(&event["data"]);
        loop {
            if let Some(index) = self.events.iter().position(&wanted) {
                return Ok(self.events.remove(index).unwrap_or_default());
            }
            let event = self.next(deadline).with_context(|| format!("waiting for the event {name}"))?;
            self.keep(event);
        }
    }

    fn keep(&mut self, message: Value) {
        if message.get("event").is_some() {
            if self.events.len() == MAX_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(message);
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Value> {
        loop {
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(0) => bail!("QEMU closed its monitor"),
                Ok(_) if self.line.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.line).context("reading QEMU's message");
                    self.line.clear();
                    return message;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("reading from QEMU's monitor"),
            }
            if Instant::now() >= deadline {
                bail!("QEMU sent nothing in time");
            }
        }
    }
}
