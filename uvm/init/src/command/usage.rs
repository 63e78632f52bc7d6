//! `uvm usage`: which bytes of a device hold something.

use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;
use uvm_disk::probe::TableKind;
use uvm_disk::usage::{ContentUsage, DeviceUsage, scan};
use uvm_disk::{Error, ErrorKind};

use super::failure::Failure;
use super::size::shown;
use super::{DONE, block_size};
use crate::adapter::host::open_to_read;

/// `uvm usage` and what follows.
#[derive(clap::Args)]
pub(super) struct UsageArguments {
    /// Device or file: a whole disk, or a file system.
    path: PathBuf,
    /// Print JSON, in bytes.
    #[arg(long)]
    json: bool,
    /// Print the used extents too.
    #[arg(long)]
    extents: bool,
    /// Logical block size of a plain file.
    #[arg(long, default_value_t = 512, value_parser = block_size)]
    logical_block_size: u32,
}

/// The document of `--json`, less the extents, which go out as they are found.
#[derive(Serialize)]
struct Document<'u> {
    size: u64,
    used: u64,
    table: Option<&'static str>,
    problems: &'u [String],
    content: Option<Content<'u>>,
    partitions: Vec<Partition<'u>>,
}

#[derive(Serialize)]
struct Partition<'u> {
    number: u32,
    offset: u64,
    size: u64,
    #[serde(flatten)]
    content: Content<'u>,
}

#[derive(Serialize)]
struct Content<'u> {
    format: Option<&'static str>,
    block_size: Option<u32>,
    used: u64,
    assumed: Option<&'u str>,
}

impl<'u> Content<'u> {
    fn new(content: &'u ContentUsage) -> Self {
        Self {
            format: content.format,
            block_size: content.block_size,
            used: content.used,
            assumed: content.assumed.as_deref(),
        }
    }
}

/// Prints what is in use; the exit status.
pub(super) fn usage(arguments: &UsageArguments) -> u8 {
    match try_usage(arguments) {
        Ok(()) => DONE,
        Err(failure) => failure.say(),
    }
}

fn try_usage(arguments: &UsageArguments) -> Result<(), Failure> {
    let path = arguments.path.as_path();
    let device =
        open_to_read(path, arguments.logical_block_size).map_err(|error| Failure::refused(path, error))?;
    let mut out = Extents { out: BufWriter::new(io::stdout().lock()), json: arguments.json, any: false };
    let list = arguments.extents;
    if list && arguments.json {
        out.say("{\"extents\":[").map_err(|error| Failure::ended(path, false, &error))?;
    }
    let found = scan(&*device, &mut |extent| if list { out.extent(extent) } else { Ok(()) });
    let found = found.map_err(|error| Failure::ended(path, false, &error))?;
    match (arguments.json, list) {
        (true, true) => out.say(&format!("\n],{}", &document(&found)[1..])),
        (true, false) => out.say(&document(&found)),
        (false, _) => out.say(&table(&found)),
    }
    .and_then(|()| out.out.flush().map_err(gone))
    .map_err(|error| Failure::ended(path, false, &error))
}

/// Extents as they are found: there may be more than fit into memory.
struct Extents<W: Write> {
    out: W,
    json: bool,
    any: bool,
}

impl<W: Write> Extents<W> {
    fn extent(&mut self, extent: Range<u64>) -> uvm_disk::Result<()> {
        let (offset, length) = (extent.start, extent.end - extent.start);
        let comma = if std::mem::replace(&mut self.any, true) { "," } else { "" };
        let line = if self.json {
            write!(self.out, "{comma}\n{{\"offset\":{offset},\"length\":{length}}}")
        } else {
            writeln!(self.out, "{offset:>20} {length:>20}")
        };
        line.map_err(gone)
    }

    fn say(&mut self, text: &str) -> uvm_disk::Result<()> {
        let end = if self.json && text.ends_with('[') { "" } else { "\n" };
        write!(self.out, "{text}{end}").map_err(gone)
    }
}

fn gone(error: io::Error) -> Error {
    Error::new(ErrorKind::Source, format!("writing to standard output: {error}"))
}

fn document(found: &DeviceUsage) -> String {
    let partitions = found.partitions.iter().map(|partition| Partition {
        number: partition.number,
        offset: partition.offset,
        size: partition.size,
        content: Content::new(&partition.content),
    });
    let document = Document {
        size: found.size,
        used: found.used,
        table: table_name(found.table),
        problems: &found.problems,
        content: found.content.as_ref().map(Content::new),
        partitions: partitions.collect(),
    };
    serde_json::to_string(&document).expect("numbers and text become JSON")
}

fn table_name(kind: TableKind) -> Option<&'static str> {
    match kind {
        TableKind::None => None,
        TableKind::Gpt => Some("gpt"),
        TableKind::Mbr => Some("mbr"),
    }
}

/// For people.
fn table(found: &DeviceUsage) -> String {
    let row = |name: &str, size: u64, content: &ContentUsage| {
        let format = content.format.unwrap_or("-");
        let assumed = content.assumed.as_ref().map_or(String::new(), |why| format!("  all of it: {why}"));
        format!("{name:>9} {format:<8} {:>11} {:>11}{assumed}", shown(size), shown(content.used))
    };
    let mut lines = vec![format!("{:>9} {:<8} {:>11} {:>11}", "partition", "holds", "size", "used")];
    for partition in &found.partitions {
        lines.push(row(&partition.number.to_string(), partition.size, &partition.content));
    }
    if let Some(content) = &found.content {
        lines.push(row("-", found.size, content));
    }
    let kind = table_name(found.table).unwrap_or("-");
    lines.push(format!("{:>9} {kind:<8} {:>11} {:>11}", "all", shown(found.size), shown(found.used)));
    lines.extend(found.problems.iter().map(|problem| format!("problem: {problem}")));
    lines.join("\n")
}
