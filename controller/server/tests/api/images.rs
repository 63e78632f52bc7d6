//! Blobs: what utility VMs send and fetch.

use std::io::{Read, Write};

use serde_json::{Value, json};
use uvm_controller::blobs::{Blobs, Verb, secret};
use uvm_controller::model::Id;

use crate::support::{Site, agent};

/// An image that is being captured, and what its job was given.
struct Captured {
    site: Site,
    image: Id,
    put: String,
    get: String,
}

impl Captured {
    fn new() -> Self {
        let site = Site::with_node();
        let red = site.token("tenant", Some("red"));
        let id = site.instance("a", &red);
        // The utility VM's job goes on for long.
        site.fake("n1").set(|settings| settings.job_polls = 1_000_000);
        let saved =
            site.post(&format!("/v1/instances/{id}/save-image"), &red, &json!({ "name": "i" })).good();
        let image: Id = saved.id().parse().unwrap();
        let folder = site.folder.path();
        // The same key on another folder: authorizations are worth the same everywhere.
        let other = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(other.path(), &secret(folder).unwrap()).unwrap();
        let (put, get) = (blobs.authorization(Verb::Put, image), blobs.authorization(Verb::Get, image));
        Self { site, image, put, get }
    }

    fn path(&self) -> String {
        format!("/v1/blobs/{}", self.image)
    }

    fn send(&self, authorization: &str, bytes: &[u8]) -> (u16, Value) {
        let request = agent(&self.site.file("ca.pem")).put(self.site.url(&self.path()));
        let mut response = request.header("authorization", authorization).send(bytes).unwrap();
        (
            response.status().as_u16(),
            serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap(),
        )
    }

    fn fetch(&self, headers: &[(&str, &str)]) -> (u16, String, Vec<u8>) {
        let mut request = agent(&self.site.file("ca.pem"))
            .get(self.site.url(&self.path()))
            .header("authorization", &self.get);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.call().unwrap();
        let status = response.status().as_u16();
        let tag =
            response.headers().get("etag").map(|tag| tag.to_str().unwrap().to_owned()).unwrap_or_default();
        let mut bytes = Vec::new();
        response.into_body().into_reader().read_to_end(&mut bytes).unwrap();
        (status, tag, bytes)
    }

    fn stored(&self) -> usize {
        std::fs::read_dir(self.site.folder.path().join("images")).unwrap().count()
    }
}

#[test]
fn a_captured_disk_is_sent_and_fetched_with_its_own_authorization() {
    let captured = Captured::new();
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(captured.send(&captured.get, b"few").0, 401, "of another verb");
    assert_eq!(captured.fetch(&[]).0, 404, "it has no contents yet");
    assert_eq!(captured.stored(), 0);
    let (status, stored) = captured.send(&captured.put, &bytes);
    assert_eq!((status, &stored["size_bytes"]), (201, &json!(bytes.len())));
    let digest: String = ring::digest::digest(&ring::digest::SHA256, &bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(stored["digest"], format!("sha256:{digest}"));
    assert_eq!(captured.send(&captured.put, &bytes).0, 201, "a job that begins again sends again");

    // Its job is forgotten, given once more, and ends at once.
    captured.site.fake("n1").set(|settings| settings.job_polls = 0);
    captured.site.fake("n1").reboot_utility_vm();
    captured.site.until(&format!("/v1/images/{}", captured.image), |image| image["ready"] == true);
    let (status, refused) = captured.send(&captured.put, b"other");
    assert_eq!((status, &refused["code"]), (409, &json!("wrong-state")), "what is ready never changes");
    let (status, tag, fetched) = captured.fetch(&[]);
    assert!(status == 200 && fetched == bytes);
    let (status, _, rest) = captured.fetch(&[("range", "bytes=4999990-"), ("if-range", &tag)]);
    assert!(status == 206 && rest == bytes[4_999_990..]);
    let (status, _, whole) = captured.fetch(&[("range", "bytes=4999990-"), ("if-range", "\"other\"")]);
    assert!(status == 200 && whole == bytes);
    assert_eq!(captured.fetch(&[("range", "bytes=5000000-")]).0, 416);

    let path = format!("/v1/images/{}", captured.image);
    captured.site.change("DELETE", &path, &captured.site.operator, &Value::Null).good();
    assert_eq!(captured.fetch(&[]).0, 404);
    for _ in 0..500 {
        if captured.stored() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("the contents outlive the image");
}

/// Gives some bytes, then ends the connection.
struct Breaking(usize);

impl Read for Breaking {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| std::io::Error::other("the line is dead"))?;
        buffer.fill(7);
        Ok(buffer.len())
    }
}

#[test]
fn what_breaks_off_leaves_nothing() {
    let captured = Captured::new();
    let mut breaking = Breaking(20);
    let body = ureq::SendBody::from_reader(&mut breaking);
    let request = agent(&captured.site.file("ca.pem")).put(captured.site.url(&captured.path()));
    let sent = request.header("authorization", &captured.put).send(body);
    assert!(sent.is_err(), "the fault fired: {sent:?}");
    for _ in 0..500 {
        if captured.stored() == 0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(captured.stored(), 0);
    assert_eq!(captured.send(&captured.put, b"whole").0, 201);
    std::io::stdout().flush().unwrap();
}
