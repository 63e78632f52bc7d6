//! The controller's own certificate authority (RFC 5280): who is a node's utility VM, who is the controller.
//!
//! | certificate | extended key usage | names |
//! |---|---|---|
//! | the API's | serverAuth | what operators and utility VMs call the controller |
//! | the controller's towards utility VMs | clientAuth | none |
//! | a utility VM's | serverAuth | its node's name, 127.0.0.1, localhost |
//!
//! A node's certificate is none for a client, and no node gets one for a name of the controller: whoever takes over a
//! utility VM can neither command others nor pass for the controller.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    SerialNumber, date_time_ymd,
};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::durable;
use crate::model::Millis;

/// Name of the authority's certificate in the state folder.
pub const CERTIFICATE_FILE: &str = "ca.pem";
/// Name of its private key, readable for the controller alone.
pub const KEY_FILE: &str = "ca.key";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Validity of the authority.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Validity of every other certificate.
const VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
/// Certificates are valid from a day before they are made: not every clock is right.
const BEFORE: Duration = DAY;
/// The last second that a certificate of ours may be made in, in the year 2900: dates have four digits.
const MAX_SECONDS: u64 = 29_348_000_000;
/// Largest certificate request.
const MAX_REQUEST: usize = 64 << 10;
/// Most names of one certificate.
const MAX_NAMES: usize = 64;
/// Names every machine has for itself.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "localhost"];

/// What to branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// What was asked for is not given: a bad request, a bad name.
    Refused,
    /// The state folder or the library failed.
    Failed,
}

/// Why there is no certificate.
#[derive(Debug)]
pub struct Error {
    /// What to branch on.
    pub kind: ErrorKind,
    /// What was being done.
    pub context: String,
    /// Why it failed.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    fn refused(context: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Refused, context: context.into(), source: None }
    }

    fn failed(context: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Failed, context: context.into(), source: None }
    }

    fn caused_by(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

type Result<T> = std::result::Result<T, Error>;

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct KeyPair {
    /// The certificate.
    pub certificate: String,
    /// Its private key. In no log.
    pub private_key: Zeroizing<String>,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(…)")
    }
}

/// See the module.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
    /// What the controller itself is called; no node is given these names.
    controller_names: Mutex<BTreeSet<String>>,
}

impl Authority {
    /// The authority in that folder, made where there is none.
    pub fn open_or_create(folder: &Path, now: Millis) -> Result<Self> {
        let (certificate_path, key_path) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        let cannot = || Error::failed("opening the certificate authority");
        let known = durable::read(&certificate_path).map_err(|error| cannot().caused_by(error))?;
        if known.is_some() && !key_path.exists() {
            // Another key would be another authority, which no node trusts.
            let context = format!(
                "{} is there and {} is not: bring it back from the backup of the state folder",
                certificate_path.display(),
                key_path.display()
            );
            return Err(Error::failed(context));
        }
        // The key first: what was killed between the two goes on with the same key.
        let key = durable::read_or_create(&key_path, durable::PRIVATE, || {
            let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(std::io::Error::other)?;
            Ok(key.serialize_pem().into_bytes())
        });
        let key = Zeroizing::new(key.map_err(|error| cannot().caused_by(error))?);
        let key = std::str::from_utf8(&key).ok().and_then(|pem| rcgen::KeyPair::from_pem(pem).ok());
        let key =
            key.ok_or_else(|| Error::failed(format!("{} holds no private key in PEM", key_path.display())))?;
        let certificate = match known {
            Some(bytes) => bytes,
            None => {
                let made = Self::certify(&key, now)?.into_bytes();
                durable::write(&certificate_path, durable::PUBLIC, &made)
                    .map_err(|error| cannot().caused_by(error))?;
                made
            }
        };
        let unusable =
            || Error::failed(format!("{} holds no certificate in PEM", certificate_path.display()));
        let certificate = String::from_utf8(certificate).map_err(|error| unusable().caused_by(error))?;
        if !belongs(&certificate, &key) {
            let (certificate, key) = (certificate_path.display(), key_path.display());
            return Err(Error::failed(format!("{certificate} is not the certificate of {key}")));
        }
        let issuer =
            Issuer::from_ca_cert_pem(&certificate, key).map_err(|error| unusable().caused_by(error))?;
        let controller_names = Mutex::new(BTreeSet::from(["localhost".to_owned()]));
        Ok(Self { certificate, issuer, controller_names })
    }

    fn certify(key: &rcgen::KeyPair, now: Millis) -> Result<String> {
        let cannot = || Error::failed("making the certificate authority");
        let [a, b, c, d] = durable::random::<4>().map_err(|error| cannot().caused_by(error))?;
        let name = format!("utility VM controller {a:02x}{b:02x}{c:02x}{d:02x}");
        let mut params = params(&name, &[], now, AUTHORITY_VALIDITY)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params.self_signed(key).map_err(|error| cannot().caused_by(error))?.pem())
    }

    /// The authority's certificate in PEM: what others trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// For the API, under these names and addresses.
    pub fn issue_server(&self, names: &[String], now: Millis) -> Result<KeyPair> {
        let own = names.iter().map(|name| name.to_ascii_lowercase());
        self.controller_names.lock().unwrap_or_else(PoisonError::into_inner).extend(own);
        self.issue("utility VM controller", names, ExtendedKeyUsagePurpose::ServerAuth, now)
    }

    /// For the controller towards utility VMs.
    pub fn issue_client(&self, name: &str, now: Millis) -> Result<KeyPair> {
        self.issue(name, &[], ExtendedKeyUsagePurpose::ClientAuth, now)
    }

    /// For a node's utility VM, under the node's name, 127.0.0.1, localhost and further addresses.
    pub fn issue_node(&self, name: &str, addresses: &[IpAddr], now: Millis) -> Result<KeyPair> {
        self.check_node_name(name)?;
        let addresses = addresses.iter().map(IpAddr::to_string);
        let names: Vec<String> =
            [name].into_iter().chain(LOOPBACK).map(str::to_owned).chain(addresses).collect();
        self.issue(name, &names, ExtendedKeyUsagePurpose::ServerAuth, now)
    }

    /// Answers a certificate request (PKCS #10, PEM) for a node's utility VM with a certificate for the node's name.
    /// Of the request nothing counts but the public key, and that its owner signed it.
    pub fn sign_request(&self, request: &str, node_name: &str, now: Millis) -> Result<String> {
        self.check_node_name(node_name)?;
        if request.len() > MAX_REQUEST {
            return Err(Error::refused(format!(
                "the certificate request is larger than {MAX_REQUEST} bytes"
            )));
        }
        let request = CertificateSigningRequestParams::from_pem(request).map_err(|error| {
            Error::refused("the certificate request is not a PKCS #10 request signed by its own key")
                .caused_by(error)
        })?;
        self.sign(
            &request.public_key,
            node_name,
            &[node_name.to_owned()],
            ExtendedKeyUsagePurpose::ServerAuth,
            now,
        )
    }

    fn issue(
        &self,
        name: &str,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
        now: Millis,
    ) -> Result<KeyPair> {
        let key = rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(|error| Error::failed("making a private key").caused_by(error))?;
        let certificate = self.sign(&key, name, names, usage, now)?;
        Ok(KeyPair { certificate, private_key: Zeroizing::new(key.serialize_pem()) })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
        now: Millis,
    ) -> Result<String> {
        let mut params = params(name, names, now, VALIDITY)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(|error| {
            Error::failed(format!("signing the certificate of {name:?}")).caused_by(error)
        })?;
        Ok(certificate.pem())
    }

    /// A node's name becomes a name in its certificate: letters, digits, `-`, `_` and `.`, and none of the controller's.
    fn check_node_name(&self, name: &str) -> Result<()> {
        let refused = |why: &str| Err(Error::refused(format!("node name {name:?}: {why}")));
        let fits = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(fits) {
            return refused("a certificate needs the form of a host name");
        }
        if name.parse::<IpAddr>().is_ok() || name.split('.').all(|label| label.parse::<u64>().is_ok()) {
            return refused("an address is no name");
        }
        let taken = self.controller_names.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.contains(&name.to_ascii_lowercase()) {
            return refused("this is a name of the controller itself");
        }
        Ok(())
    }
}

/// What every certificate has: its subject and other names, a random serial number, its time.
fn params(name: &str, names: &[String], now: Millis, validity: Duration) -> Result<CertificateParams> {
    let cannot = || Error::refused(format!("the certificate of {name:?} cannot have the names {names:?}"));
    if names.len() > MAX_NAMES {
        return Err(Error::refused(format!("a certificate has {MAX_NAMES} names at most")));
    }
    let mut params = CertificateParams::new(names).map_err(|error| cannot().caused_by(error))?;
    params.distinguished_name = DistinguishedName::new();
    // Longer ones are refused by some (RFC 5280, appendix A: 64 characters).
    let common_name: String = name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let mut serial = durable::random::<16>()
        .map_err(|error| Error::failed("choosing a serial number").caused_by(error))?;
    // A positive number of 16 bytes (RFC 5280, 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let seconds = Duration::from_secs((now / 1000).min(MAX_SECONDS));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds.saturating_sub(BEFORE);
    params.not_after = epoch + seconds + validity;
    Ok(params)
}

/// Whether the certificate is that of the key.
fn belongs(certificate: &str, key: &rcgen::KeyPair) -> bool {
    let mut roots = RootCertStore::empty();
    let added = CertificateDer::from_pem_slice(certificate.as_bytes())
        .is_ok_and(|certificate| roots.add(certificate).is_ok());
    added && roots.roots.iter().all(|root| root.subject_public_key_info.ends_with(key.public_key_raw()))
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
