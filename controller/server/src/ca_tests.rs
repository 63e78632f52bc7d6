use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::UnixTime;

use super::*;

fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// Runs openssl: whether it succeeded, and everything it said.
fn openssl(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

struct Folder {
    folder: tempfile::TempDir,
    authority: Authority,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path(), now()).unwrap();
        Self { folder, authority }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    /// What `openssl verify` says to the certificate, for a purpose.
    fn verify(&self, certificate: &str, purpose: &str) -> (bool, String) {
        let authority = self.write("authority.pem", self.authority.certificate_pem());
        let certificate = self.write("certificate.pem", certificate);
        openssl(&["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &authority, &certificate])
    }

    fn text(&self, certificate: &str) -> String {
        let certificate = self.write("certificate.pem", certificate);
        let (good, said) = openssl(&["x509", "-noout", "-text", "-in", &certificate]);
        assert!(good, "{said}");
        said
    }
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// Whether a utility VM would take the certificate for one of a client: its configuration of rustls, to the letter.
fn admitted_by_utility_vm(authority: &Authority, certificate: &str) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(der(authority.certificate_pem())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .unwrap();
    verifier.verify_client_cert(&der(certificate), &[], UnixTime::now()).is_ok()
}

#[test]
fn openssl_takes_each_certificate_for_its_purpose_alone() {
    let f = Folder::new();
    let server = f.authority.issue_server(&["ctl.example".to_owned(), "10.0.2.2".to_owned()], now()).unwrap();
    let client = f.authority.issue_client("controller", now()).unwrap();
    let node = f.authority.issue_node("rack-1.node_7", &["192.0.2.7".parse().unwrap()], now()).unwrap();
    for (pair, purpose, other) in [
        (&server, "sslserver", "sslclient"),
        (&client, "sslclient", "sslserver"),
        (&node, "sslserver", "sslclient"),
    ] {
        let (good, said) = f.verify(&pair.certificate, purpose);
        assert!(good, "{said}");
        let (good, said) = f.verify(&pair.certificate, other);
        assert!(!good && said.contains("purpose"), "{said}");
        let text = f.text(&pair.certificate);
        assert!(text.contains("CA:FALSE"), "{text}");
        assert!(text.contains("Digital Signature"), "{text}");
    }
    assert!(f.text(&server.certificate).contains("DNS:ctl.example, IP Address:10.0.2.2"));
    let text = f.text(&node.certificate);
    let names = "DNS:rack-1.node_7, IP Address:127.0.0.1, DNS:localhost, IP Address:192.0.2.7";
    assert!(text.contains(names), "{text}");
    assert!(text.contains("CN = rack-1.node_7"), "{text}");
}

#[test]
fn a_utility_vm_refuses_a_nodes_certificate_as_a_clients() {
    let f = Folder::new();
    let client = f.authority.issue_client("controller", now()).unwrap();
    let node = f.authority.issue_node("n1", &[], now()).unwrap();
    let api = f.authority.issue_server(&["ctl".to_owned()], now()).unwrap();
    assert!(admitted_by_utility_vm(&f.authority, &client.certificate));
    assert!(!admitted_by_utility_vm(&f.authority, &node.certificate));
    assert!(!admitted_by_utility_vm(&f.authority, &api.certificate));
    let stranger = Folder::new().authority.issue_client("controller", now()).unwrap();
    assert!(!admitted_by_utility_vm(&f.authority, &stranger.certificate));
}

#[test]
fn times_and_serial_numbers_are_as_promised() {
    let f = Folder::new();
    // 2030-01-01T00:00:00Z.
    let then = 1_893_456_000_000;
    let texts: Vec<String> =
        (0..2).map(|_| f.text(&f.authority.issue_node("n1", &[], then).unwrap().certificate)).collect();
    assert!(texts[0].contains("Not Before: Dec 31 00:00:00 2029 GMT"), "{}", texts[0]);
    assert!(texts[0].contains("Not After : Jan  1 00:00:00 2031 GMT"), "{}", texts[0]);
    let serial = |text: &str| {
        let line = text.lines().skip_while(|line| !line.contains("Serial Number")).nth(1).unwrap();
        line.trim().to_owned()
    };
    let (first, second) = (serial(&texts[0]), serial(&texts[1]));
    assert_eq!(first.split(':').count(), 16, "{first}");
    assert_ne!(first, second);
    let authority = f.text(f.authority.certificate_pem());
    assert!(authority.contains("CA:TRUE, pathlen:0"), "{authority}");
    assert!(authority.contains("Certificate Sign"), "{authority}");
    // A clock that is wild makes no certificate that cannot be written.
    assert!(f.authority.issue_client("c", Millis::MAX).is_ok());
    assert!(f.authority.issue_client("c", 0).is_ok());
}

#[test]
fn the_authority_is_made_once_and_never_replaced() {
    let f = Folder::new();
    let mode = fs::metadata(f.path(KEY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let again = Authority::open_or_create(f.folder.path(), now()).unwrap();
    assert_eq!(again.certificate_pem(), f.authority.certificate_pem());
    let issued = again.issue_client("controller", now()).unwrap();
    assert!(f.verify(&issued.certificate, "sslclient").0, "issued by the one that was read");
    // Killed between the two files: the key stays.
    let key = fs::read(f.path(KEY_FILE)).unwrap();
    fs::remove_file(f.path(CERTIFICATE_FILE)).unwrap();
    let again = Authority::open_or_create(f.folder.path(), now()).unwrap();
    assert_eq!(fs::read(f.path(KEY_FILE)).unwrap(), key);
    assert_ne!(again.certificate_pem(), f.authority.certificate_pem());
    // The key of another, no key, and no certificate at all.
    let other = Folder::new();
    fs::copy(other.path(KEY_FILE), f.path(KEY_FILE)).unwrap();
    assert!(refusal(&f).contains("not the certificate of"));
    fs::remove_file(f.path(KEY_FILE)).unwrap();
    assert!(refusal(&f).contains("backup"));
    assert!(!f.path(KEY_FILE).exists());
    fs::write(f.path(KEY_FILE), "no key").unwrap();
    assert!(refusal(&f).contains("no private key"));
}

fn refusal(f: &Folder) -> String {
    let error = Authority::open_or_create(f.folder.path(), now()).err().expect("it is refused");
    assert_eq!(error.kind, ErrorKind::Failed);
    error.to_string()
}

#[test]
fn names_of_the_controller_and_what_is_no_name_are_refused() {
    let f = Folder::new();
    f.authority.issue_server(&["Ctl.example".to_owned(), "192.0.2.1".to_owned()], now()).unwrap();
    let long = "a".repeat(64);
    for name in [
        "",
        ".",
        "a..b",
        "a b",
        "*",
        "*.example",
        "-a",
        "a-",
        "ä",
        "a\0",
        "10.0.2.2",
        "1.2",
        "::1",
        "localhost",
        "LocalHost",
        "ctl.EXAMPLE",
        "a/b",
        "a,b",
        &long,
    ] {
        let error = f.authority.issue_node(name, &[], now()).expect_err(name);
        assert_eq!(error.kind, ErrorKind::Refused, "{name:?}");
    }
    for name in ["n", "node-1", "Node_1.rack2", "1a"] {
        f.authority.issue_node(name, &[], now()).unwrap();
    }
}

/// A request made by openssl, asking for more than it gets.
fn request(f: &Folder, algorithm: &[&str]) -> String {
    let (key, request) = (f.path("request.key"), f.path("request.pem"));
    let mut arguments = vec!["req", "-new", "-nodes", "-subj", "/CN=ctl.example"];
    arguments.extend(["-addext", "basicConstraints=CA:TRUE", "-addext", "extendedKeyUsage=clientAuth"]);
    arguments.extend(["-addext", "subjectAltName=DNS:ctl.example"]);
    arguments.extend(algorithm);
    arguments.extend(["-keyout", key.to_str().unwrap(), "-out", request.to_str().unwrap()]);
    let (good, said) = openssl(&arguments);
    assert!(good, "{said}");
    fs::read_to_string(request).unwrap()
}

#[test]
fn a_request_gets_our_usages_and_names_and_its_own_key() {
    let f = Folder::new();
    for algorithm in [
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"][..],
        &["-newkey", "ed25519"],
        &["-newkey", "rsa:2048"],
    ] {
        let request = request(&f, algorithm);
        let certificate = f.authority.sign_request(&request, "n1", now()).unwrap();
        assert!(f.verify(&certificate, "sslserver").0, "{algorithm:?}");
        assert!(!f.verify(&certificate, "sslclient").0, "{algorithm:?}");
        assert!(!admitted_by_utility_vm(&f.authority, &certificate));
        let text = f.text(&certificate);
        assert!(text.contains("DNS:n1\n") && text.contains("CA:FALSE"), "{text}");
        assert!(text.contains("CN = n1") && !text.contains("ctl.example"), "{text}");
        let certificate = f.write("certificate.pem", &certificate);
        let key = f.path("request.key");
        let of_certificate = openssl(&["x509", "-noout", "-pubkey", "-in", &certificate]).1;
        assert_eq!(of_certificate, openssl(&["pkey", "-pubout", "-in", key.to_str().unwrap()]).1);
    }
}

#[test]
fn no_byte_of_what_a_request_says_can_be_another_one() {
    let f = Folder::new();
    let pem = request(&f, &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).unwrap();
    let written = |der: &[u8]| {
        let body = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    };
    assert!(f.authority.sign_request(&written(&der), "n1", now()).is_ok());
    // What is signed ends where the algorithm's name begins; around the signature itself some bits mean nothing.
    let ecdsa_with_sha256 = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
    let signed = der.windows(12).rposition(|window| window == ecdsa_with_sha256).unwrap();
    assert!(signed > 150, "{signed}");
    for at in 0..signed {
        let mut forged = der.clone();
        forged[at] ^= 0x01;
        let error = f.authority.sign_request(&written(&forged), "n1", now()).expect_err("one bit is another");
        assert_eq!(error.kind, ErrorKind::Refused, "byte {at}");
    }
    for at in 0..der.len() {
        let cut = f.authority.sign_request(&written(&der[..at]), "n1", now());
        assert_eq!(cut.expect_err("it is cut").kind, ErrorKind::Refused, "cut at {at}");
    }
    for bad in ["", "no request", &pem[..40], &"-".repeat(MAX_REQUEST + 1)] {
        assert_eq!(f.authority.sign_request(bad, "n1", now()).unwrap_err().kind, ErrorKind::Refused);
    }
    assert_eq!(f.authority.sign_request(&pem, "localhost", now()).unwrap_err().kind, ErrorKind::Refused);
}
