//! Signatures of records of sanitization: Ed25519 (RFC 8032) over the record's canonical JSON, which is its members
//! in the order of their names, without spaces and without `signature`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::durable;
use crate::model::SanitizationRecord;

/// Name of the key's file (PKCS #8, readable for the controller alone) in the state folder.
pub const KEY_FILE: &str = "signing.key";

/// The controller's signing key.
pub struct Signer {
    key: Ed25519KeyPair,
}

impl Signer {
    /// The key in that folder, made where there is none.
    pub fn open_or_create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(KEY_FILE);
        let bytes = Zeroizing::new(durable::read_or_create(&path, durable::PRIVATE, || {
            let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                .map_err(|_| io::Error::other("making a signing key failed"))?;
            Ok(key.as_ref().to_vec())
        })?);
        let key = Ed25519KeyPair::from_pkcs8(&bytes).map_err(|error| {
            let why = format!("{} is not an Ed25519 key in PKCS #8: {error}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        Ok(Self { key })
    }

    /// The public key's 32 bytes in base64.
    pub fn public_key(&self) -> String {
        STANDARD.encode(self.key.public_key())
    }

    /// The signature of a record, whatever stands in its `signature`; in base64.
    pub fn sign(&self, record: &SanitizationRecord) -> String {
        STANDARD.encode(self.key.sign(canonical(record).as_bytes()))
    }
}

/// Whether the record's signature was made by the owner of that key (as [`Signer::public_key`] tells it) over what the
/// record says.
pub fn verify(record: &SanitizationRecord, public_key: &str) -> bool {
    let Ok(key) = STANDARD.decode(public_key) else { return false };
    let Ok(signature) = STANDARD.decode(&record.signature) else { return false };
    UnparsedPublicKey::new(&ED25519, key).verify(canonical(record).as_bytes(), &signature).is_ok()
}

/// What is signed.
fn canonical(record: &SanitizationRecord) -> String {
    let value = serde_json::to_value(record).expect("a record has nothing that JSON cannot say");
    // The record is flat: sorting its members sorts everything.
    let mut members: BTreeMap<String, Value> =
        serde_json::from_value(value).expect("a record is an object with members");
    members.remove("signature");
    serde_json::to_string(&members).expect("JSON values can be written")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;
    use crate::model::Id;

    fn id(byte: u8) -> Id {
        Id::new(1_700_000_000_000 + u64::from(byte), [byte; 10])
    }

    fn record() -> SanitizationRecord {
        SanitizationRecord {
            id: id(1),
            disk: id(2),
            project: "shop".to_owned(),
            instance: Some(id(3)),
            node: id(4),
            node_name: "n1".to_owned(),
            serial: "d0000000000000002".to_owned(),
            size_bytes: 64 << 20,
            method: "clear".to_owned(),
            technique: "overwrite".to_owned(),
            pattern: "random".to_owned(),
            overwritten_bytes: 64 << 20,
            verified_bytes: 64 << 20,
            complete: true,
            reason: "none \"at\" all".to_owned(),
            job: id(5),
            started_at: 1_700_000_000_000,
            ended_at: 1_700_000_001_000,
            version: "0.1.0".to_owned(),
            signature: String::new(),
        }
    }

    fn signed(signer: &Signer) -> SanitizationRecord {
        let record = record();
        SanitizationRecord { signature: signer.sign(&record), ..record }
    }

    #[test]
    fn a_signature_holds_over_a_restart_and_for_its_key_alone() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let signer = Signer::open_or_create(folder.path()).unwrap();
        let record = signed(&signer);
        let again = Signer::open_or_create(folder.path()).unwrap();
        assert!(verify(&record, &again.public_key()));
        assert_eq!(again.sign(&record), record.signature, "the signature is not part of what is signed");
        let stranger = Signer::open_or_create(other.path()).unwrap();
        assert!(!verify(&record, &stranger.public_key()));
        assert!(!verify(&record, "no key"));
        assert!(!verify(&SanitizationRecord { signature: "no signature".to_owned(), ..record }, ""));
        let mode = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn any_other_value_of_any_member_breaks_the_signature() {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::open_or_create(folder.path()).unwrap();
        let value = serde_json::to_value(signed(&signer)).unwrap();
        let members: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(members.len(), 20, "{members:?}");
        for name in members {
            let mut forged = value.clone();
            let member = &mut forged[&name];
            *member = match member {
                Value::Bool(was) => Value::Bool(!*was),
                Value::Number(was) => Value::from(was.as_u64().unwrap() ^ 1),
                Value::String(was) => {
                    // One character is another one: the last, so that an id stays an id.
                    let last = if was.ends_with('1') { '2' } else { '1' };
                    was.pop();
                    Value::String(format!("{was}{last}"))
                }
                other => panic!("{name} is {other}"),
            };
            let forged: SanitizationRecord = serde_json::from_value(forged).unwrap();
            assert!(!verify(&forged, &signer.public_key()), "{name} was changed");
        }
        let record = signed(&signer);
        assert!(!verify(&SanitizationRecord { instance: None, ..record }, &signer.public_key()));
    }

    #[test]
    fn openssl_verifies_what_anybody_can_write_down() {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::open_or_create(folder.path()).unwrap();
        let record = signed(&signer);
        let (text, signature, key) =
            (folder.path().join("text"), folder.path().join("signature"), folder.path().join("key.der"));
        let json = format!(
            concat!(
                r#"{{"complete":true,"disk":"{}","ended_at":1700000001000,"id":"{}","instance":"{}","job":"{}","#,
                r#""method":"clear","node":"{}","node_name":"n1","overwritten_bytes":67108864,"#,
                r#""pattern":"random","project":"shop","reason":"none \"at\" all","serial":"d0000000000000002","#,
                r#""size_bytes":67108864,"started_at":1700000000000,"technique":"overwrite","#,
                r#""verified_bytes":67108864,"version":"0.1.0"}}"#
            ),
            id(2),
            id(1),
            id(3),
            id(5),
            id(4)
        );
        std::fs::write(&text, json).unwrap();
        std::fs::write(&signature, STANDARD.decode(&record.signature).unwrap()).unwrap();
        // RFC 8410: SubjectPublicKeyInfo of an Ed25519 key is these 12 bytes and the key.
        let mut der = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".to_vec();
        der.extend(STANDARD.decode(signer.public_key()).unwrap());
        std::fs::write(&key, der).unwrap();
        let output = Command::new("openssl")
            .args(["pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER"])
            .arg("-inkey")
            .arg(&key)
            .arg("-in")
            .arg(&text)
            .arg("-sigfile")
            .arg(&signature)
            .output()
            .expect("openssl");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("Verified Successfully"), "{output:?}");
    }
}
