//! Prometheus text format.

use std::fmt::Write;

use uvm_api::JobState;

use super::Api;

pub(crate) fn text(api: &Api) -> String {
    let node = api.node.describe();
    let jobs = api.engine.jobs();
    let count = |state| jobs.iter().filter(|job| job.state == state).count();
    let mut text = String::new();
    let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let plain = |value: String| [(String::new(), value)];
    metric(
        "uvm_build_info",
        "gauge",
        "Version of the utility VM and its kernel.",
        &[(format!("{{version={:?},kernel={:?}}}", node.version, node.kernel), "1".to_owned())],
    );
    metric(
        "uvm_boot_seconds",
        "gauge",
        "Time from the kernel's start to the API listening.",
        &plain(format!("{:.3}", node.boot_ms as f64 / 1000.0)),
    );
    metric(
        "process_resident_memory_bytes",
        "gauge",
        "Resident set of the utility VM.",
        &plain(node.rss_bytes.to_string()),
    );
    metric(
        "uvm_peak_resident_memory_bytes",
        "gauge",
        "Largest resident set since boot.",
        &plain(node.peak_rss_bytes.to_string()),
    );
    metric(
        "uvm_jobs",
        "gauge",
        "Jobs remembered, by state.",
        &[
            ("{state=\"running\"}".to_owned(), count(JobState::Running).to_string()),
            ("{state=\"succeeded\"}".to_owned(), count(JobState::Succeeded).to_string()),
            ("{state=\"failed\"}".to_owned(), count(JobState::Failed).to_string()),
            ("{state=\"cancelled\"}".to_owned(), count(JobState::Cancelled).to_string()),
        ],
    );
    let running: Vec<(String, String)> = jobs
        .iter()
        .filter_map(|job| {
            let progress = job.progress.as_ref()?;
            let labels = format!("{{job={:?},device={:?},step={:?}}}", job.id, job.device, progress.step);
            Some((labels, progress.bytes_done.to_string()))
        })
        .collect();
    metric("uvm_job_step_bytes", "gauge", "Bytes the running step of a job has moved.", &running);
    text
}
