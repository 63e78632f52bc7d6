//! `event`: what happened in the grid, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

use super::client::{Query, record};
use super::failure::Result;
use super::session::{Flags, Recent, Scope, Session, print, write_line};
use super::stream::{Heard, Stream};
use super::table::Table;
use super::units::time;
use crate::config::FileFlag;
use crate::model::{Event, Id};

/// Events read at once.
const PAGE: usize = 1_000;
/// Pages read until the newest events are found.
const MAX_PAGES: usize = 10_000;

/// `event …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List events, the newest last.
    #[command(after_help = "Examples:\n  uvm-controller event list --limit 20\n  \
        uvm-controller event list --watch --project shop\n  \
        uvm-controller event list --watch --json | jq -r .message")]
    List {
        /// Go on with what happens, until interrupted; with --json a document a line.
        #[arg(long, short)]
        watch: bool,
        /// Those after this sequence number.
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0, hide_default_value = true)]
        after: u64,
        /// Those about this thing, as instances/0192….
        #[arg(long)]
        subject: Option<String>,
        /// Those of this job.
        #[arg(long, value_name = "ID")]
        job: Option<Id>,
        #[command(flatten)]
        recent: Recent,
    },
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        let Verb::List { watch, after, subject, job, recent } = self.verb;
        let mut query: Query = session.scoped();
        query.extend(subject.map(|subject| ("subject", subject)));
        query.extend(job.map(|job| ("job", job.to_string())));
        let (newest, last) = newest(&session, &query, after, recent.limit)?;
        match watch {
            false => session.items(newest, |events| Ok(table(events))),
            true => follow(&session, query, newest, last),
        }
    }
}

/// The newest events after one, oldest first, and the sequence number of the last: the API tells them from the oldest
/// on.
fn newest(session: &Session, query: &Query, mut after: u64, limit: usize) -> Result<(Vec<Value>, u64)> {
    let mut kept: VecDeque<Value> = VecDeque::new();
    for _ in 0..MAX_PAGES {
        let mut query = query.clone();
        query.push(("after", after.to_string()));
        let (items, more) = session.client.list("/v1/events", &query, PAGE)?;
        for item in items {
            after = item["sequence"].as_u64().unwrap_or(after);
            kept.push_back(item);
            if kept.len() > limit {
                kept.pop_front();
            }
        }
        if !more {
            break;
        }
    }
    Ok((kept.into(), after))
}

/// Prints events as they happen, for as long as the controller answers.
fn follow(session: &Session, query: Query, newest: Vec<Value>, last: u64) -> Result<()> {
    for document in newest {
        show(session, &record(document)?)?;
    }
    let path = "/v1/events/stream".to_owned();
    let mut stream = Stream::new(Arc::clone(&session.client), path, query, Some(last));
    loop {
        if let Heard::Event(event) = stream.next()? {
            show(session, &event)?;
        }
    }
}

fn show(session: &Session, event: &Event) -> Result<()> {
    match session.json {
        true => write_line(&serde_json::to_string(event).unwrap_or_default()),
        false => print(&line(event)),
    }
}

/// An event where there is no table to align it in.
fn line(event: &Event) -> String {
    let message = event.message.replace('\n', " ");
    format!("{:>6}  {}  {:<20}  {}  {message}", event.sequence, time(event.time), event.kind, event.subject)
        .trim_end()
        .to_owned()
}

fn table(events: &[Event]) -> Table {
    let mut table = Table::new(&[">SEQUENCE", "TIME", "KIND", "SUBJECT", "MESSAGE"]);
    for event in events {
        table.row([
            event.sequence.to_string(),
            time(event.time),
            event.kind.clone(),
            event.subject.clone(),
            event.message.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            sequence: 7,
            time: 1_700_000_000_000,
            kind: "job.failed".to_owned(),
            project: None,
            subject: "instances/1".to_owned(),
            job: None,
            message: "no\nspace".to_owned(),
        };
        assert_eq!(line(&event), "     7  2023-11-14T22:13:20Z  job.failed            instances/1  no space");
    }
}
