//! Idempotency keys, generations, answers of changes.

use serde_json::{Value, json};

use crate::support::{Site, image, instance, key};

#[test]
fn the_same_request_sent_again_is_the_same_answer() {
    let mut site = Site::with_node();
    let red = site.token("tenant", Some("red"));
    let sent = key();
    let header = format!("idempotency-key: {sent}");
    let make = |site: &Site, token: &str, body: &Value| {
        site.call("POST", "/v1/instances", token, &[&header], &body.to_string())
    };
    let first = make(&site, &red, &instance("a", None)).good();
    assert_eq!(first.status, 202);
    for _ in 0..3 {
        let again = make(&site, &red, &instance("a", None));
        assert_eq!((again.status, &again.text), (202, &first.text));
        assert_eq!(again.header("location"), first.header("location"));
    }
    let other = make(&site, &red, &instance("b", None));
    assert_eq!((other.status, other.problem().as_str()), (422, "idempotency-key-reused"));
    // The path is part of the request, and each token has its own keys.
    let elsewhere = site.call("POST", "/v1/images", &red, &[&header], &image("i").to_string());
    assert_eq!(elsewhere.problem(), "idempotency-key-reused");
    let blue = site.token("tenant", Some("blue"));
    assert_ne!(make(&site, &blue, &instance("a", None)).good().id(), first.id());

    site.succeed(&first);
    site.restart();
    let again = make(&site, &red, &instance("a", None));
    assert_eq!((again.status, &again.text), (202, &first.text), "it is known after a restart");
    let deleted = format!("/v1/instances/{}", first.id());
    let header = format!("idempotency-key: {}", key());
    let delete = || site.call("DELETE", &deleted, &red, &[&header], "");
    let gone = delete().good();
    site.succeed(&gone);
    assert_eq!(site.get(&deleted, &red).status, 404);
    let again = delete();
    assert_eq!((again.status, &again.text), (202, &gone.text), "it is known though the thing is gone");
    assert_eq!(site.get("/v1/instances?name=a", &red).json()["items"], json!([]));
}

#[test]
fn many_at_once_with_one_key_make_one() {
    let site = Site::with_node();
    let header = format!("idempotency-key: {}", key());
    let body = instance("a", Some("red")).to_string();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let call = || site.call("POST", "/v1/instances", &site.operator, &[&header], &body).good().text;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    assert_eq!(site.get("/v1/instances", &site.operator).json()["items"].as_array().unwrap().len(), 1);
}

#[test]
fn a_lost_answer_with_a_secret_is_given_again() {
    let site = Site::new();
    let header = format!("idempotency-key: {}", key());
    let body = json!({ "name": "t", "role": "tenant", "project": "p" }).to_string();
    let issue = || site.call("POST", "/v1/tokens", &site.operator, &[&header], &body).good();
    let (first, again) = (issue(), issue());
    assert_eq!((first.status, &first.text), (201, &again.text));
    assert_eq!(site.get("/v1/tokens", &site.operator).json()["items"].as_array().unwrap().len(), 2);
    let secret = first.json()["secret"].as_str().unwrap().to_owned();
    assert_eq!(site.get("/v1/instances", &secret).status, 200);
    let store = std::fs::read(site.folder.path().join("controller.db-wal")).unwrap_or_default();
    let known = [store, std::fs::read(site.folder.path().join("controller.db")).unwrap()].concat();
    assert!(!known.windows(secret.len()).any(|part| part == secret.as_bytes()), "the secret is not kept");
}

#[test]
fn a_change_needs_a_key() {
    let site = Site::new();
    let body = image("i").to_string();
    let missing = site.call("POST", "/v1/images", &site.operator, &[], &body);
    assert_eq!((missing.status, missing.problem().as_str()), (400, "idempotency-key-required"));
    assert!(missing.text.contains("Idempotency-Key: <key>"), "it says how: {}", missing.text);
    let long = format!("idempotency-key: {}", "k".repeat(129));
    assert_eq!(site.call("POST", "/v1/images", &site.operator, &[&long], &body).problem(), "invalid-request");
    let fits = format!("idempotency-key: {}", "k".repeat(128));
    let made = site.call("POST", "/v1/images", &site.operator, &[&fits], &body);
    assert_eq!((made.status, made.header("location")), (201, &*format!("/v1/images/{}", made.id())));
    // A question needs none.
    let plan = json!({ "kind": "create-instance", "request": instance("a", Some("p")) }).to_string();
    let plan = site.call("POST", "/v1/plans", &site.operator, &[], &plan).good().json();
    assert_eq!(plan["feasible"], false, "there is no node: {plan}");
}

#[test]
fn what_changed_since_it_was_read_is_not_changed_again() {
    let site = Site::with_node();
    let node = site.get("/v1/nodes", &site.operator).json()["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/nodes/{node}");
    let tag = site.get(&path, &site.operator).header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    let body = json!({ "labels": { "rack": "r1" } }).to_string();
    let patch = |tag: &str| {
        let key = format!("idempotency-key: {}", key());
        let found = format!("if-match: {tag}");
        let headers: &[&str] = if tag.is_empty() { &[&key] } else { &[&key, &found] };
        site.call("PATCH", &path, &site.operator, headers, &body)
    };
    let missing = patch("");
    assert_eq!((missing.status, missing.problem().as_str()), (428, "precondition-required"));
    assert_eq!(patch("7").problem(), "invalid-request");
    assert_eq!(patch(&tag).status, 200);
    let stale = patch(&tag);
    assert_eq!((stale.status, stale.problem().as_str()), (412, "precondition-failed"));
    let new = site.get(&path, &site.operator);
    assert_ne!(new.header("etag"), tag);
    assert_eq!(new.json()["labels"]["rack"], "r1");
    assert_eq!(patch("*").status, 200);

    let id = site.instance("a", &site.token("tenant", Some("red")));
    let path = format!("/v1/instances/{id}");
    let tag = site.get(&path, &site.operator).header("etag").to_owned();
    let call = |method: &str, path: &str, tag: &str| {
        let key = format!("idempotency-key: {}", key());
        site.call(method, path, &site.operator, &[&key, &format!("if-match: {tag}")], "")
    };
    for (method, path) in [("DELETE", path.clone()), ("POST", format!("{path}/destroy"))] {
        assert_eq!(call(method, &path, "\"999\"").problem(), "precondition-failed", "{method} {path}");
    }
    site.succeed(&call("POST", &format!("{path}/destroy"), &tag).good());
    assert_eq!(call("DELETE", &path, &tag).status, 412, "it was told to be off meanwhile");
    site.succeed(&call("DELETE", &path, "*").good());
}

#[test]
fn cordon_and_uncordon() {
    let site = Site::new();
    let id = site.add_node("n1");
    let path = format!("/v1/nodes/{id}");
    site.post(&format!("{path}/cordon"), &site.operator, &Value::Null).good();
    assert_eq!(site.get(&path, &site.operator).json()["cordoned"], true);
    let refused = site.post("/v1/instances", &site.operator, &instance("a", Some("p")));
    assert_eq!((refused.status, refused.problem().as_str()), (409, "no-capacity"));
    assert!(refused.json()["refusal"]["considered"].is_u64(), "it says why: {}", refused.text);
    site.post(&format!("{path}/uncordon"), &site.operator, &Value::Null).good();
    site.succeed(&site.post("/v1/instances", &site.operator, &instance("a", Some("p"))).good());
    let capacity = site.get("/v1/capacity", &site.operator).good().json();
    assert_eq!(capacity["used"]["memory_mib"], 512, "{capacity}");
}
