//! What every command works with: the API, names for ids, documents or tables, jobs followed.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::{Client, Method, Query, nothing, record};
use super::failure::{Failure, Result};
use super::table::Table;
use super::units::printable;
use super::watch::{self, Board};
use crate::config::{ClientConfig, ClientFlags, FileFlag, Output, environment};
use crate::model::{Accepted, ErrorCode, Id, Job, JobState};

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// Records of one name that are looked at.
const MAX_NAMESAKES: usize = 100;
/// Names that are put in the place of ids.
const MAX_NAMES: usize = 100_000;

/// Flags of every command that calls the API.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Flags {
    /// Print the API's document, as --output json does.
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten, next_help_heading = "Connection")]
    client: ClientFlags,
}

/// Whose things are meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Scope {
    /// The project: names are looked for in it, lists show what is its, what is made belongs to it.
    #[arg(long, value_name = "PROJECT", global = true)]
    pub(super) project: Option<String>,
}

/// How much of a list is shown.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Limit {
    /// Most records shown.
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000, value_parser = at_least_one)]
    pub(super) limit: usize,
}

/// How much of a history is shown.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Recent {
    /// Most records shown: the newest ones.
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = at_least_one)]
    pub(super) limit: usize,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err("a number from 1 on is expected".to_owned()),
    }
}

/// Whether a command waits for its job.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Follow {
    /// Show the job's steps until it ends; the exit status is 0 only if it succeeded.
    #[arg(long, short)]
    pub(super) watch: bool,
}

/// See the module.
pub(super) struct Session {
    pub(super) client: Arc<Client>,
    pub(super) project: Option<String>,
    pub(super) json: bool,
}

impl Session {
    pub(super) fn open(file: &FileFlag, flags: &Flags, scope: &Scope) -> Result<Self> {
        let config = ClientConfig::load(file, flags.client.clone(), &environment()).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!("\n  cause: {cause}"));
            Failure::usage(format!("{error}{}", cause.unwrap_or_default()))
        })?;
        let json = flags.json || config.output == Output::Json;
        Ok(Self { client: Arc::new(Client::new(&config)?), project: scope.project.clone(), json })
    }

    /// Prints the document, or what `show` makes of it.
    pub(super) fn show<T: DeserializeOwned>(
        &self,
        document: Value,
        show: impl FnOnce(&T) -> Result<String>,
    ) -> Result<()> {
        match self.json {
            true => print_json(&document),
            false => print(&show(&record(document)?)?),
        }
    }

    /// Prints a list: the document with its items, or a table of them.
    pub(super) fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &Query,
        limit: usize,
        table: impl FnOnce(&[T]) -> Result<Table>,
    ) -> Result<()> {
        let (items, more) = self.client.list(path, query, limit)?;
        self.items(items, table)?;
        if more {
            note(&format!("there are more; --limit {} shows more of them", limit.saturating_mul(10)));
        }
        Ok(())
    }

    pub(super) fn items<T: DeserializeOwned>(
        &self,
        items: Vec<Value>,
        table: impl FnOnce(&[T]) -> Result<Table>,
    ) -> Result<()> {
        if self.json {
            return print_json(&serde_json::json!({ "items": items }));
        }
        let items: Vec<T> = items.into_iter().map(record).collect::<Result<_>>()?;
        print(&table(&items)?.to_string())
    }

    /// A filter by the project, where one was named.
    pub(super) fn scoped(&self) -> Query {
        self.project.iter().map(|project| ("project", project.clone())).collect()
    }

    /// Changes something, and follows its job where that is wanted.
    pub(super) fn change(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        if_match: Option<u64>,
        follow: Follow,
    ) -> Result<()> {
        let document = self.client.change(method, path, body, if_match)?;
        self.accepted(document, follow)
    }

    /// A change that says nothing but what it does.
    pub(super) fn ask(&self, method: Method, path: &str, follow: Follow) -> Result<()> {
        self.change(method, path, &nothing(), None, follow)
    }

    /// What came of a change.
    pub(super) fn accepted(&self, document: Value, follow: Follow) -> Result<()> {
        let accepted: Accepted = record(document.clone())?;
        match accepted.job {
            Some(job) if follow.watch => {
                if !self.json {
                    print(&format!("{} job {job}", accepted.subject))?;
                }
                self.follow(job)
            }
            _ if self.json => print_json(&document),
            Some(job) => print(&format!(
                "{} accepted: job {job}\nfollow it: uvm-controller job watch {job}",
                accepted.subject
            )),
            None => print(&format!("{} done", accepted.subject)),
        }
    }

    /// Shows a job until it has ended.
    pub(super) fn watch(&self, id: Id) -> Result<Job> {
        let mut board = Board::new();
        let job = watch::follow(&self.client, id, |job| if self.json { Ok(()) } else { board.show(job) })?;
        if self.json {
            print_json(&job)?;
        }
        Ok(job)
    }

    /// Shows a job until it has ended, which is to be a good end.
    pub(super) fn follow(&self, id: Id) -> Result<()> {
        let job = self.watch(id)?;
        match job.state {
            JobState::Succeeded => Ok(()),
            _ => Err(Failure::job(&job)),
        }
    }

    /// The id of a thing that was named by its name or its id. `table` is the last part of the list's path.
    pub(super) fn id(&self, table: &str, text: &str) -> Result<Id> {
        if let Ok(id) = text.parse() {
            return Ok(id);
        }
        let mut query: Query = Vec::new();
        // Tokens have no filter by name: there are few of them.
        if table != "tokens" {
            query.push(("name", text.to_owned()));
        }
        // An image may also be everybody's, and nodes are nobody's.
        if !matches!(table, "nodes" | "images") {
            query.extend(self.scoped());
        }
        let limit = if table == "tokens" { MAX_NAMES } else { MAX_NAMESAKES };
        let (mut found, _) = self.client.list(&format!("/v1/{table}"), &query, limit)?;
        found.retain(|item| item["name"] == text && self.is_in_scope(&item["project"]));
        let own: Vec<&Value> =
            found.iter().filter(|item| self.project.is_some() && !item["project"].is_null()).collect();
        match (found.as_slice(), own.as_slice()) {
            ([one], _) => record(one["id"].clone()),
            (_, [one]) => record(one["id"].clone()),
            ([], _) => Err(Failure::no(format!("there is no {} {text:?}{}", singular(table), self.within()))),
            (many, _) => Err(Failure::no(ambiguous(table, text, many))),
        }
    }

    fn is_in_scope(&self, project: &Value) -> bool {
        project.is_null() || self.project.as_ref().is_none_or(|own| project == own.as_str())
    }

    fn within(&self) -> String {
        self.project.as_ref().map(|project| format!(" in project {project:?}")).unwrap_or_default()
    }

    /// The names of a table's things by their ids. Who may not see them sees ids.
    pub(super) fn names(&self, table: &str) -> Result<BTreeMap<Id, String>> {
        let found = match self.client.list(&format!("/v1/{table}"), &Vec::new(), MAX_NAMES) {
            Ok((found, _)) => found,
            Err(failure) if failure.is(ErrorCode::Forbidden) => Vec::new(),
            Err(failure) => return Err(failure),
        };
        let name = |item: Value| Some((record(item["id"].clone()).ok()?, item["name"].as_str()?.to_owned()));
        Ok(found.into_iter().filter_map(name).collect())
    }
}

/// The name of an id, where it is known.
pub(super) fn name_of(names: &BTreeMap<Id, String>, id: Id) -> String {
    names.get(&id).cloned().unwrap_or_else(|| id.to_string())
}

fn singular(table: &str) -> &str {
    table.trim_end_matches('s')
}

fn ambiguous(table: &str, name: &str, found: &[Value]) -> String {
    let mut text = format!("there are {} {table} {name:?}: say --project, or the id", found.len());
    for item in found {
        let of = |key: &str| item[key].as_str().unwrap_or("-").to_owned();
        text += &format!("\n  {}  project {}", of("id"), of("project"));
    }
    text
}

/// Prints lines on standard output.
pub(super) fn print(text: &str) -> Result<()> {
    write_line(&printable(text))
}

/// Prints a document on standard output, byte for byte.
pub(super) fn print_json(document: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document).map_err(|error| Failure::no(error.to_string()))?;
    write_line(&text)
}

pub(super) fn write_line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
}

/// Says something beside what was asked for.
pub(super) fn note(text: &str) {
    // Whoever reads standard error may have gone away.
    let _ = writeln!(io::stderr().lock(), "uvm-controller: {}", printable(text));
}

/// A file that was named on the command line; `-` is standard input.
pub(super) fn read_file(path: &Path) -> Result<String> {
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", path.display()));
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => io::stdin().lock().take(MAX_FILE + 1).read_to_string(&mut text),
        false => std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| wrong(&error))?;
    match text.len() as u64 > MAX_FILE {
        true => Err(wrong(&format!("larger than {MAX_FILE} bytes"))),
        false => Ok(text),
    }
}

/// A document in a file, with its members named where they are wrong.
pub(super) fn read_document<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_file(path)?;
    serde_json::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}
