//! Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;

use super::Api;
use crate::core;
use crate::histogram::Histogram;
use crate::model::{Amounts, Capacity};

/// Upper bounds of the classes of a request's duration, in seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// What stands for a path that is none of ours: what clients make up must not become metrics.
const NO_ROUTE: &str = "none";
const MIB: u64 = 1 << 20;

/// Requests answered, by method and route.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(&'static str, String), Route>>);

#[derive(Debug)]
struct Route {
    by_status: BTreeMap<u16, u64>,
    seconds: Histogram,
}

/// Counts a request and how long it took until its answer began.
pub(crate) async fn count(State(api): State<Api>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let mut routes = api.requests.0.lock().unwrap_or_else(PoisonError::into_inner);
    let found = routes
        .entry((method, route))
        .or_insert_with(|| Route { by_status: BTreeMap::new(), seconds: Histogram::new(SECONDS) });
    *found.by_status.entry(response.status().as_u16()).or_default() += 1;
    found.seconds.observe(begun.elapsed().as_secs_f64());
    response
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// A text being written.
#[derive(Default)]
struct Exposition(String);

impl Exposition {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (position, (label, text)) in labels.iter().enumerate() {
            self.0.push(if position == 0 { '{' } else { ',' });
            let _ = write!(self.0, "{label}=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn counts(&mut self, name: &str, help: &str, label: &str, counts: &BTreeMap<String, u64>) {
        self.family(name, "gauge", help);
        for (text, count) in counts {
            self.sample(name, &[(label, text)], count);
        }
    }

    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let bucket = format!("{name}_bucket");
        for (bound, count) in histogram.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.sample(&bucket, &[labels, &[("le", bound.as_str())]].concat(), count);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.sample(&format!("{name}_count"), labels, histogram.count());
    }
}

/// The name of an enum's value on the wire.
fn wire_name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

fn count_by<T: Serialize>(values: impl Iterator<Item = T>) -> BTreeMap<String, u64> {
    values.fold(BTreeMap::new(), |mut counts, value| {
        *counts.entry(wire_name(&value)).or_default() += 1;
        counts
    })
}

/// Everything.
pub(crate) fn text(api: &Api) -> String {
    let mut out = Exposition::default();
    out.family("uvm_controller_build_info", "gauge", "Version of the controller.");
    out.sample("uvm_controller_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    if let Some(bytes) = resident_bytes() {
        out.single("process_resident_memory_bytes", "gauge", "Resident set of the controller.", bytes);
    }
    let capacity = api.grid().read(|state| {
        records(&mut out, state);
        state.capacity()
    });
    amounts(&mut out, &capacity);
    nodes(&mut out, &capacity);
    writer(&mut out, api);
    requests(&mut out, api);
    out.0
}

fn records(out: &mut Exposition, state: &core::State) {
    let nodes = count_by(state.nodes.values().map(|node| node.state));
    out.counts("uvm_controller_nodes", "Nodes, by state.", "state", &nodes);
    let cordoned = state.nodes.values().filter(|node| node.cordoned).count();
    out.single("uvm_controller_nodes_cordoned", "gauge", "Nodes on which nothing new is placed.", cordoned);
    let instances = count_by(state.instances.values().map(|instance| instance.observed_state));
    out.counts("uvm_controller_instances", "Instances, by observed state.", "state", &instances);
    let disks = count_by(state.disks.values().map(|disk| disk.state));
    out.counts("uvm_controller_disks", "Disks, by state.", "state", &disks);
    let jobs = count_by(state.jobs.values().map(|record| record.job.kind));
    out.counts("uvm_controller_jobs_active", "Jobs that have not ended, by kind.", "kind", &jobs);
}

/// One resource: its metric, its help, how much of it there is.
type Resource = (&'static str, &'static str, fn(&Amounts) -> u64);

const RESOURCES: [Resource; 3] = [
    ("vcpus", "Virtual CPUs.", |amounts| amounts.vcpus),
    ("memory_bytes", "Memory for instances.", |amounts| amounts.memory_mib.saturating_mul(MIB)),
    ("storage_bytes", "Storage for disks.", |amounts| amounts.storage_mib.saturating_mul(MIB)),
];

fn amounts(out: &mut Exposition, capacity: &Capacity) {
    for (resource, help, of) in RESOURCES {
        let name = format!("uvm_controller_{resource}");
        out.family(&name, "gauge", &format!("{help} All nodes together."));
        for (share, amounts) in
            [("total", &capacity.total), ("used", &capacity.used), ("available", &capacity.available)]
        {
            out.sample(&name, &[("share", share)], of(amounts));
        }
    }
    let quarantined: u64 = capacity.nodes.iter().map(|node| node.quarantined_mib.saturating_mul(MIB)).sum();
    let name = "uvm_controller_storage_quarantined_bytes";
    out.single(name, "gauge", "Storage kept out of use: its sanitization failed.", quarantined);
}

fn nodes(out: &mut Exposition, capacity: &Capacity) {
    for (resource, help, of) in RESOURCES {
        let name = format!("uvm_controller_node_{resource}");
        out.family(&name, "gauge", &format!("{help} By node."));
        for node in &capacity.nodes {
            for (share, amounts) in [("total", &node.capacity), ("used", &node.used)] {
                out.sample(&name, &[("node", &node.name), ("share", share)], of(amounts));
            }
        }
    }
}

fn writer(out: &mut Exposition, api: &Api) {
    let metrics = api.grid().metrics();
    let name = "uvm_controller_jobs_ended_total";
    out.family(name, "counter", "Jobs that ended since the controller was started, by kind and result.");
    for ((kind, state), count) in &metrics.jobs_ended {
        out.sample(name, &[("kind", &wire_name(kind)), ("result", &wire_name(state))], count);
    }
    let name = "uvm_controller_commit_duration_seconds";
    out.family(name, "summary", "Time until batches of changes were durable.");
    out.sample(&format!("{name}_sum"), &[], metrics.commit_seconds);
    out.sample(&format!("{name}_count"), &[], metrics.commits);
    let counters = [
        ("commits_failed", "Batches that the store did not take.", metrics.commits_failed),
        ("changes", "Changes made durable.", metrics.changes),
        ("inputs", "Requests and outcomes decided on.", metrics.inputs),
    ];
    for (name, help, count) in counters {
        out.single(&format!("uvm_controller_{name}_total"), "counter", help, count);
    }
    let help = "Requests and outcomes that wait for the writer.";
    out.single("uvm_controller_inputs_waiting", "gauge", help, metrics.waiting);
    out.single("uvm_controller_calls_running", "gauge", "Calls to nodes that run.", metrics.calls_running);
    let events = *api.grid().events().borrow();
    out.single("uvm_controller_events_total", "counter", "Events since the store was made.", events);
}

fn requests(out: &mut Exposition, api: &Api) {
    let routes = api.requests.0.lock().unwrap_or_else(PoisonError::into_inner);
    let name = "uvm_controller_http_requests_total";
    out.family(name, "counter", "Requests answered.");
    for ((method, route), found) in routes.iter() {
        for (status, count) in &found.by_status {
            out.sample(name, &[("method", method), ("route", route), ("status", &status.to_string())], count);
        }
    }
    let name = "uvm_controller_http_request_duration_seconds";
    out.family(name, "histogram", "Time until the answer to a request began.");
    for ((method, route), found) in routes.iter() {
        out.histogram(name, &[("method", method), ("route", route)], &found.seconds);
    }
}

/// Resident set of this process.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_break_out_of_their_quotes() {
        let mut out = Exposition::default();
        out.sample("m", &[("a", "x\"} 7\nfake 1\\"), ("b", "ü")], 3);
        assert_eq!(out.0, "m{a=\"x\\\"} 7\\nfake 1\\\\\",b=\"ü\"} 3\n");
        out.0.clear();
        out.single("plain", "gauge", "Help.", 4);
        assert_eq!(out.0, "# HELP plain Help.\n# TYPE plain gauge\nplain 4\n");
    }

    #[test]
    fn a_histogram_has_its_classes_its_sum_and_its_count() {
        let mut histogram = Histogram::new(&[0.5, 1.0]);
        [0.25, 0.5, 0.75, 2.0].into_iter().for_each(|value| histogram.observe(value));
        let mut out = Exposition::default();
        out.histogram("h", &[("r", "/v1")], &histogram);
        assert_eq!(
            out.0,
            "h_bucket{r=\"/v1\",le=\"0.5\"} 2\nh_bucket{r=\"/v1\",le=\"1\"} 3\nh_bucket{r=\"/v1\",le=\"+Inf\"} 4\n\
             h_sum{r=\"/v1\"} 3.5\nh_count{r=\"/v1\"} 4\n"
        );
    }

    #[test]
    fn the_resident_set_is_told() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > MIB));
    }
}
