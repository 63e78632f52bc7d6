//! QEMU's machine protocol: one JSON object a line over a Unix socket, which has room for one client.

use std::io::{BufRead, BufReader, ErrorKind as IoErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hypervisor::{Error, ErrorKind};

/// How long QEMU may take to answer a command.
const ANSWER: Duration = Duration::from_secs(10);
/// How long one look at the socket takes at most.
const POLL: Duration = Duration::from_millis(100);
/// Bytes of one message at most: QEMU takes in what guests say.
const MAX_MESSAGE: u64 = 16 << 20;
/// Events kept between two commands at most; what comes beyond is lost.
const MAX_EVENTS: usize = 256;

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    /// The beginning of a line that has not come whole yet.
    line: Vec<u8>,
    events: Vec<Value>,
    commands: u64,
}

/// Why a command brought nothing.
#[derive(Debug)]
pub(super) enum QmpError {
    /// QEMU said no, in these words.
    Refused(String),
    /// The connection is of no use any more.
    Lost(Error),
}

impl From<QmpError> for Error {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Refused(message) => Self::new(ErrorKind::Failed, message),
            QmpError::Lost(error) => error,
        }
    }
}

pub(super) type QmpResult<T> = std::result::Result<T, QmpError>;

fn lost(what: &str, error: &std::io::Error) -> QmpError {
    QmpError::Lost(Error::new(ErrorKind::Unreachable, format!("{what} QEMU's monitor: {error}")))
}

impl Qmp {
    /// Connects and greets.
    pub(super) fn connect(path: &Path) -> QmpResult<Self> {
        let stream = UnixStream::connect(path).map_err(|error| lost("connecting to", &error))?;
        let timeouts =
            stream.set_read_timeout(Some(POLL)).and_then(|()| stream.set_write_timeout(Some(ANSWER)));
        timeouts.map_err(|error| lost("preparing", &error))?;
        let reader = BufReader::new(stream);
        let mut qmp = Self { reader, line: Vec::new(), events: Vec::new(), commands: 0 };
        let deadline = Instant::now() + ANSWER;
        while qmp.message(deadline)?.get("QMP").is_none() {}
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> QmpResult<Value> {
        self.commands += 1;
        let id = self.commands;
        let message = json!({ "execute": command, "arguments": arguments, "id": id });
        let sent = self.reader.get_mut().write_all(format!("{message}\n").as_bytes());
        sent.map_err(|error| lost("writing to", &error))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let mut answer = self.message(deadline)?;
            if answer.get("event").is_some() {
                if self.events.len() < MAX_EVENTS {
                    self.events.push(answer);
                }
                continue;
            }
            if answer["id"] != id {
                continue;
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            let words = answer["error"]["desc"].as_str().unwrap_or("refused");
            return Err(QmpError::Refused(format!("{command}: {words}")));
        }
    }

    /// What happened since this was asked for last.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    fn message(&mut self, deadline: Instant) -> QmpResult<Value> {
        loop {
            let room = MAX_MESSAGE.saturating_sub(self.line.len() as u64);
            match self.reader.by_ref().take(room).read_until(b'\n', &mut self.line) {
                Ok(_) if self.line.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.line);
                    self.line.clear();
                    return message.map_err(|error| lost("understanding", &error.into()));
                }
                Ok(0) => return Err(lost("reading from", &IoErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), IoErrorKind::WouldBlock | IoErrorKind::Interrupted) => {}
                Err(error) => return Err(lost("reading from", &error)),
            }
            if Instant::now() >= deadline {
                let message = format!("QEMU did not answer within {ANSWER:?}");
                return Err(QmpError::Lost(Error::new(ErrorKind::TimedOut, message)));
            }
        }
    }
}
