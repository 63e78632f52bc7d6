//! The controller as its operator has it: health, metrics, statistics, the folder, the program.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::Value;
use uvm_controller::serve::Controller;

use crate::support::{Nodes, Site, agent, config, start};

#[test]
fn it_says_that_it_is_well() {
    let site = Site::new();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(site.get(path, "").good().json()["status"], "ok");
    }
}

#[test]
fn metrics_are_for_operators_or_on_an_address_of_their_own() {
    let site = Site::with_node();
    let red = site.token("tenant", Some("red"));
    site.instance("a", &red);
    site.get("/v1/nowhere", &site.operator);
    let text = site.get("/metrics", &site.operator).good().text;
    for line in [
        "uvm_controller_nodes{state=\"ready\"} 1",
        "uvm_controller_instances{state=\"running\"} 1",
        "uvm_controller_memory_bytes{share=\"used\"} 536870912",
        "uvm_controller_node_vcpus{node=\"n1\",share=\"total\"} 64",
        "uvm_controller_jobs_ended_total{kind=\"create-instance\",result=\"succeeded\"} 1",
        "uvm_controller_http_requests_total{method=\"POST\",route=\"/v1/instances\",status=\"202\"} 1",
        "uvm_controller_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
        "uvm_controller_http_request_duration_seconds_bucket{method=\"POST\",route=\"/v1/instances\",le=\"+Inf\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(family) => assert!(families.insert(family.split(' ').next().unwrap()), "twice: {line}"),
            None if line.starts_with("# HELP ") => {}
            None => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                value.parse::<f64>().unwrap();
                let name = name.split('{').next().unwrap();
                let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                assert!(
                    families.contains(name) || base.is_some_and(|base| families.contains(base)),
                    "{line}"
                );
            }
        }
    }
    let own = site.controller().metrics_address().unwrap();
    let plain = agent(&site.file("ca.pem"));
    let served = |path: &str| {
        let mut response = plain.get(format!("http://{own}{path}")).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    };
    let (status, text) = served("/metrics");
    assert!(status == 200 && text.contains("uvm_controller_build_info{version="), "{text}");
    assert_eq!(served("/v1/instances").0, 404);
}

#[test]
fn statistics_come_of_what_was_polled() {
    let site = Site::new();
    let node = site.add_node("n1");
    let red = site.token("tenant", Some("red"));
    let id = site.instance("a", &red);
    let some = |found: &Value| !found["series"].as_array().unwrap_or(&Vec::new()).is_empty();
    let found = site.until(&format!("/v1/nodes/{node}/statistics"), some);
    assert!(found["step_ms"].is_u64());
    let path = format!("/v1/instances/{id}/statistics");
    site.until(&path, some);
    let one = site.get(&format!("{path}?metric=memory_used_bytes"), &red).good().json();
    let series = one["series"].as_array().unwrap();
    assert!(series.iter().all(|series| series["metric"] == "memory_used_bytes"), "{one}");
    assert_eq!(site.get(&format!("{path}?metric=luck"), &red).problem(), "invalid-request");
    assert_eq!(site.get(&format!("{path}?from=5&to=4"), &red).problem(), "invalid-request");
    let config = site.get(&format!("/v1/instances/{id}/config"), &red).good().json();
    assert_eq!(config["id"], id.as_str());
}

#[test]
fn one_folder_has_one_controller_and_keeps_everything() {
    let mut site = Site::with_node();
    let red = site.token("tenant", Some("red"));
    let id = site.instance("a", &red);
    let nodes = Nodes::default();
    let second = Controller::start(&config(site.folder.path()), Box::new(|_| unreachable!()), String::new());
    let error = second.err().expect("a second controller is refused");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains(site.folder.path().to_str().unwrap()), "it names the folder: {error}: {cause}");
    let token = site.file("operator.token");
    let orphan = site.folder.path().join("images/00000000-0000-7000-8000-000000000000");
    std::fs::write(&orphan, "of an image that is gone").unwrap();
    site.restart();
    assert!(!orphan.exists());
    assert_eq!(site.file("operator.token"), token);
    assert_eq!(site.get(&format!("/v1/instances/{id}"), &red).good().json()["name"], "a");
    assert_eq!(site.file("url"), format!("https://{}", site.controller().address()));
    for secret in ["operator.token", "ca.key", "signing.key", "tokens.key", "blobs.key"] {
        let mode = std::fs::metadata(site.folder.path().join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    drop(start(tempfile::tempdir().unwrap().path(), &nodes));
}

#[test]
fn the_program_serves_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let mut child = Command::new(env!("CARGO_BIN_EXE_uvm-controller"))
        .args(["--config", "/dev/null", "serve", "--listen", "127.0.0.1:0"])
        .env("UVM_CONTROLLER_STATE", &state)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut lines = String::new();
    while !lines.contains("the API is at") {
        assert!(log.read_line(&mut lines).unwrap() > 0, "{lines}");
    }
    let read = |name: &str| std::fs::read_to_string(state.join(name)).unwrap();
    let (url, token) = (read("url"), read("operator.token"));
    let status = agent(&read("ca.pem"))
        .get(format!("{url}/v1/instances"))
        .header("authorization", format!("Bearer {token}"))
        .call()
        .unwrap()
        .status();
    assert_eq!(status, 200);
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success(), "it ends well");
    std::io::Read::read_to_string(&mut log, &mut lines).unwrap();
    assert!(lines.contains("SIGTERM") && lines.contains("ended"), "{lines}");
    assert!(!lines.contains(&token) && lines.contains("operator.token"), "no secret in the log: {lines}");

    let refused = Command::new(env!("CARGO_BIN_EXE_uvm-controller"))
        .args(["--config", "/dev/null", "serve"])
        .env("UVM_CONTROLLER_COLOUR", "red")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("colour"));
    let document = Command::new(env!("CARGO_BIN_EXE_uvm-controller")).arg("openapi").output().unwrap();
    assert_eq!(String::from_utf8(document.stdout).unwrap().trim_end(), uvm_controller::http::document());
}
