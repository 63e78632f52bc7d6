//! Server-sent events: read, and taken up again where a connection broke.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, Query};
use super::failure::{Failure, Result};
use crate::model::{Event, Progress};

/// Longest line of a stream.
const MAX_LINE: u64 = 1 << 20;
/// Lines of one message.
const MAX_LINES: usize = 1_000;
/// Connections in a row that bring nothing; a controller that is started again is back long before.
const MAX_BREAKS: usize = 60;
/// Pause before the next one.
const PAUSE: Duration = Duration::from_secs(1);

/// What a stream brings.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    /// Something happened.
    Event(Event),
    /// The watched job goes on.
    Progress(Progress),
}

/// A stream of events that outlives its connections.
pub(super) struct Stream {
    client: Arc<Client>,
    path: String,
    query: Query,
    last: Option<u64>,
    connection: Option<BufReader<Box<dyn Read + Send>>>,
    breaks: usize,
}

impl Stream {
    /// The events after `last`; where that is `None`, from where the API begins.
    pub(super) fn new(client: Arc<Client>, path: String, query: Query, last: Option<u64>) -> Self {
        Self { client, path, query, last, connection: None, breaks: 0 }
    }

    /// Waits for what comes next.
    pub(super) fn next(&mut self) -> Result<Heard> {
        loop {
            match self.message() {
                Ok(Some(heard)) => {
                    self.breaks = 0;
                    return Ok(heard);
                }
                // The stream ended, or what it brought is none of ours.
                Ok(None) => {}
                Err(failure) if !failure.may_pass() || self.breaks >= MAX_BREAKS => return Err(failure),
                Err(_) => {}
            }
            if self.connection.is_none() {
                self.breaks += 1;
                if self.breaks > MAX_BREAKS {
                    return Err(Failure::unreachable("the stream of events ends again and again"));
                }
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// One message; the connection is gone where there is none.
    fn message(&mut self) -> Result<Option<Heard>> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let body: Box<dyn Read + Send> =
                    Box::new(self.client.stream(&self.path, &self.query, self.last)?);
                BufReader::new(body)
            }
        };
        let message = read_message(&mut connection)
            .map_err(|error| Failure::unreachable(format!("the stream of events broke: {error}")))?;
        let Some(message) = message else { return Ok(None) };
        self.connection = Some(connection);
        self.last = message.id.or(self.last);
        let not_ours = |error| Failure::no(format!("an event that cannot be understood: {error}"));
        let heard = match message.kind.as_str() {
            "progress" if message.id.is_none() => {
                Heard::Progress(serde_json::from_str(&message.data).map_err(not_ours)?)
            }
            _ => Heard::Event(serde_json::from_str(&message.data).map_err(not_ours)?),
        };
        Ok(Some(heard))
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    id: Option<u64>,
    kind: String,
    data: String,
}

/// The next message with data; `None` at the end. A message that breaks off counts for nothing.
fn read_message(from: &mut impl BufRead) -> io::Result<Option<Message>> {
    let mut message = Message::default();
    for _ in 0..MAX_LINES {
        let mut line = Vec::new();
        from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return match line.is_empty() {
                true => Ok(None),
                false => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "a line that breaks off, or is too long"))
                }
            };
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        if line.is_empty() {
            if !message.data.is_empty() {
                return Ok(Some(message));
            }
            message = Message::default();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => message.id = value.parse().ok(),
            "event" => value.clone_into(&mut message.kind),
            "data" => {
                if !message.data.is_empty() {
                    message.data.push('\n');
                }
                message.data.push_str(value);
            }
            // Comments keep the connection alive.
            _ => {}
        }
        if message.data.len() as u64 > MAX_LINE {
            break;
        }
    }
    // Comments alone may go on for ever: the connection is made anew.
    match message.data.is_empty() {
        true => Ok(None),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<(Option<u64>, String, String)> {
        let mut from = text.as_bytes();
        let mut found = Vec::new();
        while let Some(message) = read_message(&mut from).unwrap() {
            found.push((message.id, message.kind, message.data));
        }
        found
    }

    #[test]
    fn messages_are_read_and_comments_passed_over() {
        let text = ": hello\n\nid: 7\nevent: job.failed\ndata: {\"a\":\ndata: 1}\n\n:\n\nevent: progress\r\ndata:{}\r\n\r\n";
        let found = all(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], (Some(7), "job.failed".to_owned(), "{\"a\":\n1}".to_owned()));
        assert_eq!(found[1], (None, "progress".to_owned(), "{}".to_owned()));
    }

    #[test]
    fn a_message_that_breaks_off_counts_for_nothing() {
        assert!(all("id: 7\ndata: {}\n").is_empty(), "its end is missing");
        let mut from = "id: 7\nda".as_bytes();
        assert!(read_message(&mut from).is_err());
    }

    #[test]
    fn what_never_ends_is_cut() {
        let long = format!("data: {}\n\n", "x".repeat(MAX_LINE as usize));
        assert!(read_message(&mut long.as_bytes()).is_err());
        let comments = ":\n".repeat(MAX_LINES + 1);
        assert_eq!(read_message(&mut comments.as_bytes()).unwrap(), None);
        let lines = format!("data: {}\n", "x".repeat(1 << 19)).repeat(3);
        assert!(read_message(&mut lines.as_bytes()).is_err());
    }
}
