//! `capacity` and `sanitization`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client::{Query, record};
use super::failure::{Failure, Result};
use super::session::{Flags, Recent, Scope, Session, print, read_document};
use super::table::{Details, Table};
use super::units::{bytes, time, word, yes_or_no};
use crate::config::FileFlag;
use crate::model::{Amounts, Capacity, Id, SanitizationRecord};
use crate::signing;

/// `capacity`.
#[derive(Debug, clap::Args)]
pub struct CapacityArguments {
    #[command(flatten)]
    flags: Flags,
}

impl CapacityArguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &Scope::default())?;
        let document = session.client.get("/v1/capacity", &Vec::new())?;
        session.show(document, |capacity: &Capacity| Ok(capacity_table(capacity).to_string()))
    }
}

/// What is used of what there is.
fn part(used: Amounts, all: Amounts) -> [String; 3] {
    let sizes = |used: u64, all: u64| format!("{}/{}", about_mib(used), about_mib(all));
    [
        format!("{}/{}", used.vcpus, all.vcpus),
        sizes(used.memory_mib, all.memory_mib),
        sizes(used.storage_mib, all.storage_mib),
    ]
}

fn about_mib(size: u64) -> String {
    bytes(size.saturating_mul(1 << 20))
}

fn capacity_table(capacity: &Capacity) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "CORDONED",
        ">INSTANCES",
        ">VCPUS",
        ">MEMORY",
        ">STORAGE",
        ">QUARANTINED",
    ]);
    for node in &capacity.nodes {
        let [vcpus, memory, storage] = part(node.used, node.capacity);
        table.row([
            node.name.clone(),
            word(&node.state),
            yes_or_no(node.cordoned).to_owned(),
            node.instances.to_string(),
            vcpus,
            memory,
            storage,
            about_mib(node.quarantined_mib),
        ]);
    }
    let [vcpus, memory, storage] = part(capacity.used, capacity.total);
    let instances: u64 = capacity.nodes.iter().map(|node| node.instances).sum();
    let quarantined = capacity.nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.quarantined_mib));
    let none = String::new;
    let total = "used/all".to_owned();
    table.row([total, none(), none(), instances.to_string(), vcpus, memory, storage, about_mib(quarantined)]);
    let free = capacity.available;
    let [memory, storage] = [about_mib(free.memory_mib), about_mib(free.storage_mib)];
    table.row([
        "available".to_owned(),
        none(),
        none(),
        none(),
        free.vcpus.to_string(),
        memory,
        storage,
        none(),
    ]);
    table
}

/// `sanitization …`.
#[derive(Debug, clap::Args)]
pub struct SanitizationArguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List records of sanitization, the newest first.
    List(Recent),
    /// Show a record; with --json in the form that `verify` reads.
    Show {
        /// Id.
        record: Id,
    },
    /// Verify the signatures of records in a file.
    #[command(after_help = "Examples:\n  uvm-controller sanitization show 0192… --json > record.json\n  \
        uvm-controller sanitization verify record.json\n\n\
        With --public-key no controller is needed. The key is shown by GET /v1/sanitizations/public-key.")]
    Verify {
        /// A record, or a list of them, as JSON; `-` reads standard input.
        file: PathBuf,
        /// The controller's public key, in base64 [default: the controller is asked].
        #[arg(long, value_name = "KEY")]
        public_key: Option<String>,
    },
}

impl SanitizationArguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let open = || Session::open(file, &self.flags, &self.scope);
        match self.verb {
            Verb::List(recent) => {
                let session = open()?;
                let query: Query = session.scoped();
                session.list("/v1/sanitizations", &query, recent.limit, |records| Ok(records_table(records)))
            }
            Verb::Show { record } => {
                let session = open()?;
                let document = session.client.get(&format!("/v1/sanitizations/{record}"), &Vec::new())?;
                session.show(document, |record: &SanitizationRecord| Ok(details(record)))
            }
            Verb::Verify { file, public_key } => {
                let key = match public_key {
                    Some(key) => key,
                    None => {
                        let answer = open()?.client.get("/v1/sanitizations/public-key", &Vec::new())?;
                        record(answer["public_key"].clone())?
                    }
                };
                verify(&file, &key)
            }
        }
    }
}

fn records_table(records: &[SanitizationRecord]) -> Table {
    let mut table = Table::new(&[
        "ENDED",
        "PROJECT",
        "NODE",
        "SERIAL",
        ">SIZE",
        "METHOD",
        "TECHNIQUE",
        ">VERIFIED",
        "COMPLETE",
        "ID",
    ]);
    for record in records {
        table.row([
            time(record.ended_at),
            record.project.clone(),
            record.node_name.clone(),
            record.serial.clone(),
            bytes(record.size_bytes),
            record.method.clone(),
            record.technique.clone(),
            bytes(record.verified_bytes),
            yes_or_no(record.complete).to_owned(),
            record.id.to_string(),
        ]);
    }
    table
}

fn details(record: &SanitizationRecord) -> String {
    Details::default()
        .add("id", record.id.to_string())
        .add("disk", record.disk.to_string())
        .add("serial", &record.serial)
        .add("project", &record.project)
        .add("instance", record.instance.map(|id| id.to_string()).unwrap_or_default())
        .add("node", format!("{} ({})", record.node_name, record.node))
        .add("size", format!("{} bytes", record.size_bytes))
        .add("method", &record.method)
        .add("technique", &record.technique)
        .add("pattern", &record.pattern)
        .add("overwritten", format!("{} bytes", record.overwritten_bytes))
        .add("verified", format!("{} bytes", record.verified_bytes))
        .add("complete", yes_or_no(record.complete))
        .add("reason", &record.reason)
        .add("job", record.job.to_string())
        .add("began", time(record.started_at))
        .add("ended", time(record.ended_at))
        .add("version", &record.version)
        .add("signature", &record.signature)
        .to_string()
}

/// Verifies every record of a file, and says how each one fares.
fn verify(file: &Path, key: &str) -> Result<()> {
    let documents = match read_document(file)? {
        Value::Array(items) => items,
        Value::Object(mut page) if page.get("items").is_some_and(Value::is_array) => {
            page.remove("items").and_then(|items| serde_json::from_value(items).ok()).unwrap_or_default()
        }
        one => vec![one],
    };
    if documents.is_empty() {
        return Err(Failure::usage(format!("{}: there is no record in it", file.display())));
    }
    let mut wrong = 0;
    for document in documents {
        let record: SanitizationRecord = serde_json::from_value(document.clone()).map_err(|error| {
            Failure::usage(format!("{}: no record of sanitization: {error}", file.display()))
        })?;
        // What a reader of the file sees must be what was signed, and nothing beside it.
        let whole = serde_json::to_value(&record).is_ok_and(|signed| signed == document);
        let holds = whole && signing::verify(&record, key);
        wrong += usize::from(!holds);
        let verdict = if holds { "the signature holds" } else { "THE SIGNATURE DOES NOT HOLD" };
        let complete = if record.complete { "complete" } else { "incomplete" };
        print(&format!("{} disk {} {complete}: {verdict}", record.id, record.disk))?;
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(Failure::no(format!("{wrong} of the records: the signature does not hold"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeAmounts, NodeState};

    fn amounts(vcpus: u64, memory_mib: u64, storage_mib: u64) -> Amounts {
        Amounts { vcpus, memory_mib, storage_mib }
    }

    #[test]
    fn capacity_is_shown_node_by_node_and_in_all() {
        let node = NodeAmounts {
            id: Id::default(),
            name: "n1".to_owned(),
            state: NodeState::Ready,
            cordoned: false,
            instances: 3,
            capacity: amounts(64, 65_536, 1 << 20),
            used: amounts(8, 4_608, 1 << 19),
            quarantined_mib: 1_024,
        };
        let capacity = Capacity {
            total: node.capacity,
            used: node.used,
            available: amounts(56, 60_928, 1 << 19),
            nodes: vec![node],
        };
        let text = capacity_table(&capacity).to_string();
        let row = |number: usize| text.lines().nth(number).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(row(1), ["n1", "ready", "no", "3", "8/64", "4.5GiB/64.0GiB", "512.0GiB/1.0TiB", "1.0GiB"]);
        assert_eq!(row(2)[..4], ["used/all", "-", "-", "3"]);
        assert_eq!(row(3), ["available", "-", "-", "-", "56", "59.5GiB", "512.0GiB", "-"]);
    }

    #[test]
    fn a_forged_record_is_found_and_so_is_what_was_added_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let signer = signing::Signer::open_or_create(folder.path()).unwrap();
        let mut record = SanitizationRecord {
            id: Id::new(1, [1; 10]),
            disk: Id::new(1, [2; 10]),
            project: "shop".to_owned(),
            instance: None,
            node: Id::new(1, [3; 10]),
            node_name: "n1".to_owned(),
            serial: "d1".to_owned(),
            size_bytes: 1 << 20,
            method: "clear".to_owned(),
            technique: "overwrite".to_owned(),
            pattern: "random".to_owned(),
            overwritten_bytes: 1 << 20,
            verified_bytes: 1 << 20,
            complete: true,
            reason: String::new(),
            job: Id::new(1, [4; 10]),
            started_at: 1,
            ended_at: 2,
            version: "1".to_owned(),
            signature: String::new(),
        };
        record.signature = signer.sign(&record);
        let good = serde_json::to_value(&record).unwrap();
        let file = folder.path().join("record.json");
        let status = |document: Value| {
            std::fs::write(&file, document.to_string()).unwrap();
            verify(&file, &signer.public_key()).map_err(|failure| failure.status)
        };
        assert_eq!(status(good.clone()), Ok(()));
        assert_eq!(status(serde_json::json!({ "items": [good, good] })), Ok(()));
        let mut forged = good.clone();
        forged["size_bytes"] = Value::from(7);
        assert_eq!(status(serde_json::json!([good, forged])), Err(1));
        let mut added = good.clone();
        added["method_in_words"] = Value::from("purge");
        assert_eq!(status(added), Err(1));
        assert_eq!(status(serde_json::json!([])), Err(2));
        assert_eq!(status(serde_json::json!({ "a": 1 })), Err(2));
    }
}
