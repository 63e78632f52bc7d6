//! The serial line of a machine: everything it prints is in a file, and one can type into it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often the log is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Lines of the log that a failure shows.
const SHOWN: usize = 15;

/// See the module.
pub struct Serial {
    log: PathBuf,
    input: UnixStream,
    reader: Option<JoinHandle<()>>,
}

impl Serial {
    /// A line whose output goes to `log`. QEMU could write that itself, but has a byte twice in it where nobody
    /// takes the byte at once.
    pub(crate) fn new(input: UnixStream, log: &Path) -> Result<Self> {
        let mut output = input.try_clone()?;
        let mut file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let reader = std::thread::Builder::new().name("serial".to_owned()).spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                file.write_all(&buffer[..count]).expect("there is room for what a machine prints");
            }
        })?;
        Ok(Self { log: log.to_owned(), input, reader: Some(reader) })
    }

    /// Waits until all of it is in the file, once the machine has ended.
    pub(crate) fn finish(&mut self) {
        if let Some(Err(panic)) = self.reader.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }

    /// The file that has everything the machine printed.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What was printed after the first `from` bytes, without what only moves the cursor or colours.
    pub fn text(&self, from: usize) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        plain(bytes.get(from..).unwrap_or_default())
    }

    /// How many bytes were printed.
    pub fn position(&self) -> usize {
        let length = std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        usize::try_from(length).unwrap_or(usize::MAX)
    }

    /// Waits until `text` is printed after the first `from` bytes; returns everything printed there so far.
    pub fn wait_for(&self, text: &str, from: usize, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            let printed = self.text(from);
            if printed.contains(text) {
                return Ok(printed);
            }
            if Instant::now() >= deadline {
                let lines: Vec<&str> = printed.lines().collect();
                let last = lines[lines.len().saturating_sub(SHOWN)..].join("\n  ");
                let log = self.log.display();
                bail!("{text:?} did not appear within {timeout:?} in {log}; its last lines:\n  {last}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        self.input.write_all(format!("{line}\r").as_bytes()).context("typing into the serial line")
    }

    /// Types a line and waits for `expected`, which must not be a part of the line; returns what was printed.
    pub fn ask(&mut self, line: &str, expected: &str, timeout: Duration) -> Result<String> {
        let from = self.position();
        self.type_line(line)?;
        self.wait_for(expected, from, timeout).with_context(|| format!("after typing {line:?}"))
    }
}

/// Text without escape sequences (ECMA-48: `ESC [`, parameters, a final byte) and carriage returns.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => {
                if letters.next() == Some('[') {
                    let _ = letters.find(|letter| ('@'..='~').contains(letter));
                }
            }
            '\r' => {}
            _ => plain.push(letter),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #[test]
    fn escape_sequences_are_not_text() {
        assert_eq!(super::plain(b"\x1b[1;31mred\x1b[0m\r\nlog\x1b[Kin:"), "red\nlogin:");
    }
}
