//! Who may do what.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use uvm_controller::hypervisor::{Error, ErrorKind};

use crate::support::{Site, image, instance};

/// Methods of the document.
const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

/// What one project owns.
struct Owned {
    instance: String,
    disk: String,
    snapshot: String,
    image: String,
    job: String,
    sanitization: String,
}

impl Owned {
    fn new(site: &Site, token: &str, name: &str) -> Self {
        let id = site.instance(name, token);
        let path = format!("/v1/instances/{id}");
        let snapshot = site.post(&format!("{path}/snapshots"), token, &json!({ "name": "s" })).good();
        let job = site.succeed(&snapshot)["id"].as_str().unwrap().to_owned();
        let disk =
            site.post("/v1/disks", token, &json!({ "name": "x", "size_mib": 64, "instance": id })).good();
        site.succeed(&disk);
        site.succeed(&site.change("DELETE", &format!("/v1/disks/{}", disk.id()), token, &Value::Null).good());
        let records = site.get("/v1/sanitizations", token).good().json();
        Self {
            disk: site.get(&path, token).good().json()["disks"][0].as_str().unwrap().to_owned(),
            snapshot: snapshot.id(),
            image: site.post("/v1/images", token, &image("i")).good().id(),
            job,
            sanitization: records["items"][0]["id"].as_str().unwrap().to_owned(),
            instance: id,
        }
    }

    /// A path of the document, filled in.
    fn fill(&self, path: &str, node: &str, token: &str) -> String {
        let id = match path.split('/').nth(2).unwrap_or_default() {
            "instances" => &self.instance,
            "disks" => &self.disk,
            "snapshots" => &self.snapshot,
            "images" => &self.image,
            "jobs" => &self.job,
            "sanitizations" => &self.sanitization,
            "nodes" => node,
            "tokens" => token,
            _ => "",
        };
        path.replace("{id}", id).replace("{verb}", "destroy").replace("{image}", &self.image)
    }

    /// A body that is as it should be.
    fn body(&self, method: &str, path: &str) -> Value {
        match (method, path) {
            ("post", "/v1/instances") => instance("made", None),
            ("post", "/v1/disks") => json!({ "name": "d", "size_mib": 64, "instance": self.instance }),
            ("post", "/v1/images") => image("made"),
            ("post", "/v1/nodes") => json!({ "name": "made", "hypervisor": "fake", "address": "/made" }),
            ("post", "/v1/tokens") => json!({ "name": "made", "role": "operator" }),
            ("post", "/v1/plans") => json!({ "kind": "delete-instance", "instance": self.instance }),
            ("post", path) if path.ends_with("/restore") => json!({ "snapshot": self.snapshot }),
            ("post", path)
                if ["/snapshots", "/save-image", "/copy"].iter().any(|end| path.ends_with(end)) =>
            {
                json!({ "name": "made" })
            }
            _ => Value::Null,
        }
    }
}

/// Every route that there is, from the document.
fn routes() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(&uvm_controller::http::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        METHODS
            .iter()
            .filter(|method| item.get(**method).is_some())
            .map(|method| ((*method).to_owned(), path.clone()))
    });
    let found: Vec<_> = all.collect();
    assert!(found.len() > 50, "{}", found.len());
    found
}

fn is_open(path: &str) -> bool {
    ["/healthz", "/readyz", "/openapi.json"].contains(&path)
}

fn is_operators(path: &str) -> bool {
    ["/v1/nodes", "/v1/tokens", "/v1/capacity", "/metrics"].iter().any(|begin| path.starts_with(begin))
}

fn is_stream(path: &str) -> bool {
    path.ends_with("/events") && path.contains("jobs") || path.ends_with("/stream")
}

/// The status of a call with a token, or none.
fn status(site: &Site, (method, path): (&str, &str), filled: &str, token: &str, body: &Value) -> u16 {
    if is_stream(path) && method == "get" {
        // The job has ended, and of the grid's stream the beginning is enough.
        let headers =
            if token.is_empty() { vec![] } else { vec![("authorization", format!("Bearer {token}"))] };
        let mut request = crate::support::agent(&site.file("ca.pem")).get(site.url(filled));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        return request.call().unwrap().status().as_u16();
    }
    let reply = match method {
        "get" => site.get(filled, token),
        _ => site.change(&method.to_uppercase(), filled, token, body),
    };
    if reply.status >= 400 {
        reply.problem();
    }
    reply.status
}

#[test]
fn every_route_is_open_to_those_it_is_for_and_nobody_else() {
    let site = Site::with_node();
    let (red, blue) = (site.token("tenant", Some("red")), site.token("tenant", Some("blue")));
    let enrolment = site.token("enrolment", None);
    let owned = Owned::new(&site, &red, "a");
    let node = site.get("/v1/nodes", &site.operator).json()["items"][0]["id"].as_str().unwrap().to_owned();
    let token = site.get("/v1/tokens", &site.operator).json()["items"][0]["id"].as_str().unwrap().to_owned();
    let before = site.get(&format!("/v1/instances/{}", owned.instance), &site.operator).json();
    let events = site.get("/v1/events?limit=1000", &site.operator).json()["items"].as_array().unwrap().len();

    for (method, path) in &routes() {
        let route = (method.as_str(), path.as_str());
        let filled = owned.fill(path, &node, &token);
        let body = owned.body(method, path);
        let of = |token: &str| status(&site, route, &filled, token, &body);
        if is_open(path) {
            assert_eq!(of(""), 200, "{route:?}");
            continue;
        }
        for stranger in ["", "uvm_nobody", &format!("{red}x")] {
            assert_eq!(of(stranger), 401, "{route:?}");
        }
        if path.starts_with("/v1/blobs") {
            assert_eq!(of(&site.operator), 401, "{route:?}");
            continue;
        }
        if route != ("post", "/v1/nodes") {
            assert_eq!(of(&enrolment), 403, "{route:?}");
        }
        let other = of(&blue);
        match path.as_str() {
            path if is_operators(path) => assert_eq!(other, 403, "{route:?}"),
            path if path.contains("{id}") => assert_eq!(other, 404, "{route:?}"),
            // What names another project's thing in its body.
            "/v1/plans" => assert_eq!(other, 404, "{route:?}"),
            "/v1/disks" if method == "post" => assert_eq!(other, 404, "{route:?}"),
            // Its own new things, and lists.
            _ => assert!((200..300).contains(&other), "{route:?} {other}"),
        }
    }
    let after = site.get(&format!("/v1/instances/{}", owned.instance), &site.operator).json();
    assert_eq!(before["generation"], after["generation"], "strangers changed nothing");
    // Blue made an instance and an image of its own; nobody else made anything happen.
    let happened = site.get("/v1/events?limit=1000", &site.operator).json();
    for event in &happened["items"].as_array().unwrap()[events..] {
        assert!(event["project"] == "blue" || event["project"].is_null(), "{event}");
    }

    for (method, path) in &routes() {
        let route = (method.as_str(), path.as_str());
        if is_open(path) || path.starts_with("/v1/blobs") {
            continue;
        }
        let filled = owned.fill(path, &node, &token);
        // Refused for what it says, not for who says it.
        let nonsense = json!({ "nonsense": 1 });
        let expected = if method == "get" { 200 } else { 400 };
        assert_eq!(status(&site, route, &filled, &site.operator, &nonsense), expected, "{route:?}");
        let own = status(&site, route, &filled, &red, &nonsense);
        match is_operators(path) && path != "/v1/nodes" {
            true => assert_eq!(own, 403, "{route:?}"),
            // Registering one is refused by what is in the token, after the body was read.
            false if route == ("post", "/v1/nodes") => assert_eq!(own, 400, "{route:?}"),
            false if is_operators(path) => assert_eq!(own, 403, "{route:?}"),
            false => assert_eq!(own, expected, "{route:?}"),
        }
    }
}

#[test]
fn a_tenant_sees_its_own_and_what_is_everybodys() {
    let site = Site::with_node();
    let (red, blue) = (site.token("tenant", Some("red")), site.token("tenant", Some("blue")));
    Owned::new(&site, &red, "a");
    Owned::new(&site, &blue, "b");
    let everybodys = site.post("/v1/images", &site.operator, &image("everybody")).good().id();
    for list in ["instances", "disks", "snapshots", "images", "jobs", "events", "sanitizations"] {
        let projects = |token: &str, query: &str| -> Vec<String> {
            let found = site.get(&format!("/v1/{list}?limit=1000{query}"), token).good().json();
            let of = |item: &Value| item["project"].as_str().unwrap_or("-").to_owned();
            let mut found: Vec<_> = found["items"].as_array().unwrap().iter().map(of).collect();
            found.sort();
            found.dedup();
            found
        };
        let shared = if list == "images" { vec!["-"] } else { vec![] };
        assert_eq!(projects(&red, ""), [shared.clone(), vec!["red"]].concat(), "{list}");
        assert_eq!(projects(&blue, ""), [shared, vec!["blue"]].concat(), "{list}");
        assert_eq!(projects(&red, "&project=red"), ["red"], "{list}");
        let all = projects(&site.operator, "");
        assert!(all.contains(&"red".to_owned()) && all.contains(&"blue".to_owned()), "{list}: {all:?}");
        assert_eq!(projects(&site.operator, "&project=blue"), ["blue"], "{list}");
        let asked = site.get(&format!("/v1/{list}?project=blue"), &red);
        assert!(asked.status == 404 || asked.json()["items"] == json!([]), "{list}: {}", asked.text);
    }
    // It may use what is everybody's, and not change it.
    assert_eq!(site.get(&format!("/v1/images/{everybodys}"), &red).status, 200);
    assert_eq!(site.change("DELETE", &format!("/v1/images/{everybodys}"), &red, &Value::Null).status, 403);
    // It makes things in its own project alone.
    let elsewhere = site.post("/v1/instances", &red, &instance("c", Some("blue")));
    assert_eq!((elsewhere.status, elsewhere.problem().as_str()), (403, "forbidden"));
    let plan = json!({ "kind": "create-instance", "request": instance("c", Some("blue")) });
    assert_eq!(site.post("/v1/plans", &red, &plan).status, 403);
    let own = json!({ "kind": "create-instance", "request": instance("c", None) });
    let plan = site.post("/v1/plans", &red, &own).good().json();
    assert_eq!(plan["feasible"], true, "{plan}");
}

#[test]
fn a_tenant_is_not_told_where_nodes_are() {
    let site = Site::with_node();
    let red = site.token("tenant", Some("red"));
    let fired = std::sync::Arc::new(AtomicU64::new(0));
    let count = std::sync::Arc::clone(&fired);
    site.fake("n1").set_faults(Some(Box::new(move |_, name| {
        (name == "create_volume").then(|| {
            count.fetch_add(1, Ordering::Relaxed);
            Error::new(ErrorKind::NoResources, "no space in /secret/place/n1/pool")
        })
    })));
    let reply = site.post("/v1/instances", &red, &instance("a", None)).good();
    let job = site.job(&reply);
    assert!(fired.load(Ordering::Relaxed) > 0, "the fault fired");
    assert_eq!(job["state"], "failed");
    assert!(job.to_string().contains("/secret/place"), "operators are told: {job}");
    let one = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    for path in [one.as_str(), "/v1/jobs", "/v1/events?limit=1000"] {
        let shown = site.get(path, &red).good().text;
        assert!(shown.contains("red") && !shown.contains("secret"), "{path}: {shown}");
    }
    let events = site.stream(&format!("{one}/events"), &red, &[], |_| false);
    assert!(!events.is_empty() && events.iter().all(|(_, _, data)| !data.to_string().contains("secret")));
}

#[test]
fn a_token_ends_when_it_expires_or_is_revoked() {
    let site = Site::new();
    let issue = |body: Value| site.post("/v1/tokens", &site.operator, &body).good();
    let short = issue(json!({ "name": "short", "role": "tenant", "project": "p", "ttl_seconds": 1 })).json();
    let secret = short["secret"].as_str().unwrap();
    let mut statuses = Vec::new();
    while statuses.last() != Some(&401) {
        assert!(statuses.len() < 1_000, "it never ends");
        statuses.push(site.get("/v1/instances", secret).status);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let long = issue(json!({ "name": "long", "role": "operator" }));
    assert_eq!(long.status, 201);
    let (id, secret) = (long.json()["token"]["id"].clone(), long.json()["secret"].clone());
    let (id, secret) = (id.as_str().unwrap(), secret.as_str().unwrap());
    assert_eq!(site.get("/v1/tokens", secret).status, 200);
    site.change("DELETE", &format!("/v1/tokens/{id}"), &site.operator, &Value::Null).good();
    let refused = site.get("/v1/tokens", secret);
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, "Bearer"));
    let listed = site.get("/v1/tokens", &site.operator).good();
    assert!(!listed.text.contains("secret"), "{}", listed.text);
    for wrong in [
        json!({ "name": "x", "role": "tenant" }),
        json!({ "name": "x", "role": "operator", "project": "p" }),
        json!({ "name": "", "role": "operator" }),
        json!({ "name": "x", "role": "king" }),
        json!({ "name": "x", "role": "operator", "ttl_seconds": 0 }),
    ] {
        assert_eq!(site.post("/v1/tokens", &site.operator, &wrong).problem(), "invalid-request", "{wrong}");
    }
}

#[test]
fn an_enrolment_token_registers_one_node_and_its_certificate() {
    let site = Site::new();
    let enrolment = site.token("enrolment", None);
    let node = |request: Option<&str>| json!({ "name": "n1", "hypervisor": "fake", "address": "/n1", "certificate_request": request });
    let refused = site.post("/v1/nodes", &enrolment, &node(Some("no request")));
    assert_eq!((refused.status, refused.problem().as_str()), (400, "invalid-request"));
    assert_eq!(site.get("/v1/nodes", &site.operator).json()["items"], json!([]), "and registers nothing");

    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::new(vec!["anything".to_owned()]).unwrap();
    let request = request.serialize_request(&key).unwrap().pem().unwrap();
    let made = site.post("/v1/nodes", &enrolment, &node(Some(&request))).good();
    let answer = made.json();
    assert_eq!(answer["authority"], site.file("ca.pem"));
    assert!(answer["certificate"].as_str().unwrap().contains("BEGIN CERTIFICATE"));
    assert_eq!(site.post("/v1/nodes", &enrolment, &node(None)).status, 401, "it is used up");
    let path = format!("/v1/nodes/{}", made.id());
    assert_eq!(site.get(&path, &site.operator).good().json()["name"], "n1");
}
