//! A controller over fake nodes, and a client of its API.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, http};
use uvm_controller::config::{FileFlag, ServeConfig, ServeFlags};
use uvm_controller::hypervisor::fake::{FakeCapabilities, FakeHypervisor, FakeUtilityVm};
use uvm_controller::model::{NodeCapacity, NumaCapacity};
use uvm_controller::runtime::nodes::{Factory, NodeAddress, Opened};
use uvm_controller::serve::Controller;

/// How often something is looked at until it is as it should be.
const LOOKS: u32 = 1_500;
const PAUSE: Duration = Duration::from_millis(20);
/// Longest silence of the API; streams send a comment every 15 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// Fake nodes, by their address.
pub(crate) type Nodes = Arc<Mutex<BTreeMap<String, Arc<FakeHypervisor>>>>;

fn factory(nodes: Nodes) -> Factory {
    Box::new(move |node: &NodeAddress| {
        let mut nodes = nodes.lock().unwrap();
        let manager = nodes.entry(node.address.clone()).or_insert_with(|| {
            let numa = vec![NumaCapacity { vcpus: 64, memory_mib: 262_144 }];
            let capacity = NodeCapacity { numa, storage_mib: 1 << 24 };
            Arc::new(FakeHypervisor::new(capacity, FakeCapabilities::Qemu.capabilities()))
        });
        let utility = Arc::new(FakeUtilityVm::new(Arc::clone(manager)));
        Ok(Opened { manager: Arc::clone(manager) as _, utility: Some(utility) })
    })
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The answer, which must be good.
    pub(crate) fn good(self) -> Self {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text);
        self
    }

    /// The code of the problem, whose form is looked at too.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{} {}", self.status, self.text);
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        let code = problem["code"].as_str().unwrap().to_owned();
        assert_eq!(problem["type"], format!("urn:uvm:controller:problem:{code}"));
        assert!(!problem["detail"].as_str().unwrap().is_empty());
        code
    }

    pub(crate) fn id(&self) -> String {
        self.json()["id"].as_str().unwrap_or_else(|| panic!("no id: {}", self.text)).to_owned()
    }
}

/// See the module.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    pub(crate) nodes: Nodes,
    pub(crate) controller: Option<Controller>,
    pub(crate) operator: String,
    agent: Agent,
}

impl Site {
    /// An empty grid.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nodes = Nodes::default();
        let controller = start(folder.path(), &nodes);
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let (operator, agent) = (read("operator.token"), agent(&read("ca.pem")));
        Self { folder, nodes, controller: Some(controller), operator, agent }
    }

    /// A grid of one node, whose address is a secret of the operators.
    pub(crate) fn with_node() -> Self {
        let site = Self::new();
        site.add_node("n1");
        site
    }

    /// Another controller over the same folder and nodes.
    pub(crate) fn restart(&mut self) {
        self.controller.take().unwrap().stop();
        self.controller = Some(start(self.folder.path(), &self.nodes));
    }

    pub(crate) fn controller(&self) -> &Controller {
        self.controller.as_ref().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.controller().address())
    }

    /// A call. Headers are `name: value`.
    pub(crate) fn call(&self, method: &str, path: &str, token: &str, headers: &[&str], body: &str) -> Reply {
        let mut request = http::Request::builder().method(method).uri(self.url(path));
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let sent = request.body(body.to_owned()).unwrap();
        let response = self.agent.run(sent).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let (parts, mut body) = response.into_parts();
        let text = body.read_to_string().unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    pub(crate) fn get(&self, path: &str, token: &str) -> Reply {
        self.call("GET", path, token, &[], "")
    }

    /// A change, with a new key and whatever generation there is.
    pub(crate) fn change(&self, method: &str, path: &str, token: &str, body: &Value) -> Reply {
        let key = format!("idempotency-key: {}", key());
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.call(method, path, token, &[&key, "if-match: *"], &body)
    }

    pub(crate) fn post(&self, path: &str, token: &str, body: &Value) -> Reply {
        self.change("POST", path, token, body)
    }

    /// The secret of a new token.
    pub(crate) fn token(&self, role: &str, project: Option<&str>) -> String {
        let body = json!({ "name": role, "role": role, "project": project });
        let issued = self.post("/v1/tokens", &self.operator, &body).good().json();
        issued["secret"].as_str().unwrap().to_owned()
    }

    pub(crate) fn add_node(&self, name: &str) -> String {
        let body = json!({ "name": name, "hypervisor": "fake", "address": format!("/secret/place/{name}") });
        let id = self.post("/v1/nodes", &self.operator, &body).good().id();
        self.until(&format!("/v1/nodes/{id}"), |node| node["state"] == "ready");
        id
    }

    pub(crate) fn fake(&self, name: &str) -> Arc<FakeHypervisor> {
        Arc::clone(&self.nodes.lock().unwrap()[&format!("/secret/place/{name}")])
    }

    /// Looks as an operator until it is so.
    pub(crate) fn until(&self, path: &str, so: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Value::Null;
        for _ in 0..LOOKS {
            seen = self.get(path, &self.operator).json();
            if so(&seen) {
                return seen;
            }
            std::thread::sleep(PAUSE);
        }
        panic!("{path} is {seen}");
    }

    /// The end of the job that an answer names.
    pub(crate) fn job(&self, reply: &Reply) -> Value {
        let job = reply.json()["job"].as_str().unwrap_or_else(|| panic!("no job: {}", reply.text)).to_owned();
        assert_eq!(reply.header("location"), format!("/v1/jobs/{job}"));
        let ended = |job: &Value| ["succeeded", "failed", "cancelled"].iter().any(|end| job["state"] == *end);
        self.until(&format!("/v1/jobs/{job}"), ended)
    }

    pub(crate) fn succeed(&self, reply: &Reply) -> Value {
        let job = self.job(reply);
        assert_eq!(job["state"], "succeeded", "{job}");
        job
    }

    /// A machine that is made; its id.
    pub(crate) fn instance(&self, name: &str, token: &str) -> String {
        let reply = self.post("/v1/instances", token, &instance(name, None)).good();
        self.succeed(&reply);
        reply.id()
    }

    /// The events of a stream, as id, kind and data, until `enough` or the stream's end.
    pub(crate) fn stream(
        &self,
        path: &str,
        token: &str,
        headers: &[&str],
        enough: impl Fn(&[(u64, String, Value)]) -> bool,
    ) -> Vec<(u64, String, Value)> {
        let mut request = self.agent.get(self.url(path)).header("authorization", format!("Bearer {token}"));
        for header in headers {
            let (name, value) = header.split_once(": ").unwrap();
            request = request.header(name, value);
        }
        let response = request.call().unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (mut found, mut id, mut kind) = (Vec::new(), None, String::new());
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.unwrap();
            match line.split_once(": ") {
                Some(("id", text)) => id = Some(text.parse().unwrap()),
                Some(("event", text)) => kind = text.to_owned(),
                Some(("data", text)) => {
                    // Progress has no id: it is not part of what is resumed.
                    if let Some(id) = id.take() {
                        found.push((id, kind.clone(), serde_json::from_str(text).unwrap()));
                    } else {
                        assert_eq!(kind, "progress");
                    }
                }
                _ => {}
            }
            if line.is_empty() && enough(&found) {
                break;
            }
        }
        found
    }

    /// All records of a list, page by page.
    pub(crate) fn walk(&self, path: &str, token: &str, mut between: impl FnMut(usize)) -> Vec<Value> {
        let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = self.get(&format!("{path}{cursor}"), token).good().json();
            found.extend(page["items"].as_array().unwrap().iter().cloned());
            pages += 1;
            assert!(pages < 1_000, "the list has no end");
            between(pages);
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return found,
            }
        }
    }

    /// A read from a file of the state folder.
    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }
}

pub(crate) fn agent(authority: &str) -> Agent {
    let root = Certificate::from_pem(authority.as_bytes()).unwrap();
    let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&[root])).build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .max_redirects(0)
        .proxy(None)
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .build()
        .into()
}

pub(crate) fn config(folder: &Path) -> ServeConfig {
    let flags = ServeFlags {
        state: Some(folder.to_owned()),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        metrics_listen: Some("127.0.0.1:0".parse().unwrap()),
        poll_interval: Some(Duration::from_millis(100)),
        ..ServeFlags::default()
    };
    let file = FileFlag { config: Some("/dev/null".into()) };
    ServeConfig::load(&file, flags, &BTreeMap::new()).unwrap()
}

pub(crate) fn start(folder: &Path, nodes: &Nodes) -> Controller {
    Controller::start(&config(folder), factory(Arc::clone(nodes)), String::new()).unwrap()
}

pub(crate) fn key() -> String {
    format!("{:032x}", rand::random::<u128>())
}

pub(crate) fn instance(name: &str, project: Option<&str>) -> Value {
    let mut body =
        json!({ "name": name, "vcpus": 1, "memory_mib": 512, "disks": [{ "size_mib": 64 }], "start": true });
    if let Some(project) = project {
        body["project"] = json!(project);
    }
    body
}

pub(crate) fn image(name: &str) -> Value {
    json!({
        "name": name,
        "source": { "registry": { "url": "https://registry.example", "repository": "debian" } },
        "digest": format!("sha256:{}", "ab".repeat(32)),
    })
}
