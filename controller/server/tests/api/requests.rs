//! Malformed requests, lists, limits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use serde_json::{Value, json};
use uvm_controller::http::document;

use crate::support::{Site, image, key};

#[test]
fn whatever_is_wrong_is_a_problem_that_says_what() {
    let site = Site::new();
    let operator = &site.operator;
    let key = format!("idempotency-key: {}", key());
    let nobody = "/v1/instances/00000000-0000-7000-8000-000000000000";
    let cases: &[(&str, &str, &str, u16, &str)] = &[
        ("GET", "/", "", 404, "there is no /"),
        ("GET", "/v1/machines", "", 404, "/v1/machines"),
        ("PUT", "/v1/instances", "", 405, "PUT"),
        ("BREW", "/v1/instances", "", 405, "BREW"),
        ("GET", "/v1/instances/x%ffy", "", 400, ""),
        ("GET", "/v1/instances/one", "", 400, "one"),
        ("GET", nobody, "", 404, "there is no instances/"),
        ("POST", &format!("{nobody}/explode"), "", 404, "explode"),
        ("POST", &format!("{nobody}/start"), "", 404, ""),
        ("POST", &format!("{nobody}/start"), "{\"force\":true}", 400, "force"),
        ("GET", "/v1/instances?colour=red", "", 400, "colour"),
        ("GET", "/v1/instances?state=sleepy", "", 400, "sleepy"),
        ("GET", "/v1/instances?limit=0", "", 400, "limit"),
        ("GET", "/v1/instances?limit=1001", "", 400, "1000"),
        ("GET", "/v1/instances?limit=many", "", 400, "limit"),
        ("GET", "/v1/instances?cursor=first", "", 400, "cursor"),
        ("GET", "/v1/events?cursor=AAAA", "", 400, "cursor"),
        ("GET", "/v1/events?after=-1", "", 400, "after"),
        ("POST", "/v1/disks", "", 400, "name"),
        ("POST", "/v1/disks", "{", 400, "EOF"),
        ("POST", "/v1/disks", "[]", 400, ""),
        ("POST", "/v1/disks", "\u{0}", 400, ""),
        ("POST", "/v1/disks", "{\"name\":\"d\",\"size_mib\":\"large\"}", 400, "size_mib"),
        ("POST", "/v1/disks", "{\"name\":\"d\",\"colour\":1}", 400, "colour"),
        (
            "POST",
            "/v1/instances",
            "{\"name\":\"a\",\"disks\":[{\"size_mib\":1},{\"size\":1}]}",
            400,
            "disks[1]",
        ),
        ("POST", "/v1/plans", "{\"kind\":\"explode\"}", 400, "explode"),
        ("POST", "/v1/tokens", "{\"name\":\"t\",\"role\":\"tenant\"} x", 400, "trailing"),
    ];
    for (method, path, body, status, says) in cases {
        let reply = site.call(method, path, operator, &[&key, "if-match: *"], body);
        assert_eq!(reply.status, *status, "{method} {path} {body}: {}", reply.text);
        reply.problem();
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(says), "{method} {path} {body}: {detail}");
    }
    let large = format!("{{\"name\":\"{}\"}}", "x".repeat(1 << 20));
    let reply = site.call("POST", "/v1/disks", operator, &[&key], &large);
    assert_eq!((reply.status, reply.problem().as_str()), (413, "invalid-request"));
    for header in ["authorization: Basic eDp5", "authorization: Bearer ", "authorization: Bearer", "x: y"] {
        assert_eq!(
            site.call("GET", "/v1/instances", "", &[header], "").problem(),
            "unauthorized",
            "{header}"
        );
    }
    let long = format!("authorization: Bearer {}", "x".repeat(4_000));
    assert_eq!(site.call("GET", "/v1/instances", "", &[&long], "").status, 401);
    assert_eq!(
        site.call("GET", "/v1/events", operator, &["last-event-id: x", "accept: text/event-stream"], "")
            .status,
        400
    );
}

fn sorted_names(records: &[Value]) -> Vec<String> {
    let mut names: Vec<_> =
        records.iter().map(|record| record["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_list_is_walked_whole_while_it_grows() {
    let site = Site::new();
    let names: Vec<String> = (0..25).map(|number| format!("i{number:02}")).collect();
    for name in &names {
        site.post("/v1/images", &site.operator, &image(name)).good();
    }
    for limit in [1, 7, 25, 26] {
        let walked = site.walk(&format!("/v1/images?limit={limit}"), &site.operator, |_| {});
        assert_eq!(sorted_names(&walked), names, "{limit}");
        assert!(walked.windows(2).all(|pair| pair[0]["id"].as_str() < pair[1]["id"].as_str()), "{limit}");
    }
    let mut first = Value::Null;
    let walked = site.walk("/v1/images?limit=10", &site.operator, |page| {
        if page == 1 {
            // What was shown goes, and something new comes.
            first = site.get("/v1/images?limit=1", &site.operator).json()["items"][0].clone();
            let path = format!("/v1/images/{}", first["id"].as_str().unwrap());
            site.change("DELETE", &path, &site.operator, &Value::Null).good();
            site.post("/v1/images", &site.operator, &image("new")).good();
        }
    });
    assert_eq!(sorted_names(&walked), [names, vec!["new".to_owned()]].concat());
    let one = site.get("/v1/images?name=i07", &site.operator).json();
    assert_eq!((one["items"].as_array().unwrap().len(), &one["items"][0]["name"]), (1, &json!("i07")));
    // What is read from the store, in the other direction and by number.
    let events = site.walk("/v1/events?limit=7", &site.operator, |_| {});
    let all = site.get("/v1/events?limit=1000", &site.operator).json();
    assert_eq!(json!(events), all["items"]);
    assert!(events.windows(2).all(|pair| pair[0]["sequence"].as_u64() < pair[1]["sequence"].as_u64()));
    assert!(events.len() > 25);
}

#[test]
fn jobs_and_records_are_walked_newest_first() {
    let site = Site::with_node();
    let red = site.token("tenant", Some("red"));
    let id = site.instance("a", &red);
    for verb in ["destroy", "start", "destroy", "start", "suspend", "resume"] {
        site.succeed(&site.post(&format!("/v1/instances/{id}/{verb}"), &red, &Value::Null).good());
    }
    let kinds = |walked: Vec<Value>| -> Vec<String> {
        walked.iter().map(|job| job["kind"].as_str().unwrap().to_owned()).collect()
    };
    let expected = ["resume", "suspend", "start", "destroy", "start", "destroy", "create-instance"];
    for limit in [1, 2, 7, 100] {
        assert_eq!(kinds(site.walk(&format!("/v1/jobs?limit={limit}"), &red, |_| {})), expected, "{limit}");
    }
    let filtered = |query: &str| kinds(site.walk(&format!("/v1/jobs?limit=1{query}"), &red, |_| {}));
    assert_eq!(filtered("&kind=start"), ["start", "start"]);
    assert_eq!(filtered("&state=failed"), [""; 0]);
    assert_eq!(filtered(&format!("&subject=instances/{id}&node=n1")), expected);
    assert_eq!(filtered("&node=n2"), [""; 0]);
    let delete = site.change("DELETE", &format!("/v1/instances/{id}"), &red, &Value::Null).good();
    site.succeed(&delete);
    let records = site.walk("/v1/sanitizations?limit=1", &red, |_| {});
    assert_eq!(records.len(), 1);
    let record: uvm_controller::model::SanitizationRecord =
        serde_json::from_value(records[0].clone()).unwrap();
    let key = site.get("/v1/sanitizations/public-key", &red).good().json();
    assert_eq!(key["algorithm"], "ed25519");
    assert!(record.complete);
    assert!(uvm_controller::signing::verify(&record, key["public_key"].as_str().unwrap()));
}

#[test]
fn the_document_is_served_and_covers_what_is_served() {
    let site = Site::new();
    let served = site.get("/openapi.json", "").good();
    assert_eq!(served.text, document());
    let document: Value = served.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["responses"]["default"].is_object(), "{method} {path} has no problem");
            let headers = operation["parameters"].to_string();
            let changes = ["post", "patch", "delete"].contains(&method.as_str()) && path != "/v1/plans";
            assert_eq!(headers.contains("Idempotency-Key"), changes, "{method} {path}");
        }
    }
    // Every name that is referred to is there.
    let text = document.to_string();
    for reference in text.split("#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

fn tls(
    site: &Site,
    version: &'static rustls::SupportedProtocolVersion,
) -> std::io::Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let authority = site.file("ca.pem");
    roots.add(rustls_pki_types::CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let connection =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(site.controller().address())?);
    stream.flush()?;
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn answer(stream: &mut impl Read) -> String {
    let mut text = Vec::new();
    // However it ends: with or without a farewell.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn what_is_no_request_harms_nobody() {
    let site = Site::new();
    assert!(tls(&site, &rustls::version::TLS12).is_err(), "TLS 1.3 alone");
    let mut plain = TcpStream::connect(site.controller().address()).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
    assert!(!answer(&mut plain).contains("200 OK"));
    let open = || tls(&site, &rustls::version::TLS13).unwrap();
    let mut stream = open();
    stream.write_all(b"\0\x01\x02\r\n\r\n").unwrap();
    assert!(answer(&mut stream).starts_with("HTTP/1.1 400"));
    let mut stream = open();
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes()).unwrap();
    assert!(answer(&mut stream).starts_with("HTTP/1.1 431"));
    let mut stream = open();
    let _ = stream.write_all(format!("GET /healthz HTTP/1.1\r\nhost: {}", "x".repeat(1 << 20)).as_bytes());
    assert!(!answer(&mut stream).contains("200 OK"));
    // A connection that is kept alive serves several, and one that says close ends.
    let mut stream = open();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    assert_eq!(answer(&mut stream).matches("200 OK").count(), 2);
    // A body that breaks off changes nothing.
    let mut stream = open();
    let head = format!(
        "POST /v1/images HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nidempotency-key: k\r\ncontent-length: 500\r\n\r\n{{",
        site.operator
    );
    stream.write_all(head.as_bytes()).unwrap();
    drop(stream);
    assert_eq!(site.get("/v1/images", &site.operator).good().json()["items"], json!([]));
}

#[test]
fn the_certificate_is_renewed_while_it_serves() {
    let site = Site::new();
    let shown = || {
        let stream = tls(&site, &rustls::version::TLS13).unwrap();
        stream.conn.peer_certificates().unwrap()[0].to_vec()
    };
    let mut old = tls(&site, &rustls::version::TLS13).unwrap();
    let first = shown();
    assert_eq!(shown(), first);
    site.controller().renew_certificate().unwrap();
    assert_ne!(shown(), first, "and it is trusted as the first was");
    old.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    assert!(answer(&mut old).contains("200 OK"), "connections that were open go on");
}
