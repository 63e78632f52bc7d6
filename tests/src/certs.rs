//! Certificates for one run: an authority of its own, the node's, a client's, and a stranger's.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
};
use serde_json::{Value, json};

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct KeyPair {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub private_key: String,
}

/// Everybody's certificates.
#[derive(Clone)]
pub struct Pki {
    /// Certificate of the authority that issued the node's and the client's.
    pub authority: String,
    /// Of the appliance, for 127.0.0.1 and localhost.
    pub node: KeyPair,
    /// Of somebody who may call the API.
    pub client: KeyPair,
    /// Of somebody whose authority the appliance does not know.
    pub stranger: KeyPair,
}

impl Pki {
    /// Makes everything anew.
    pub fn new() -> Result<Self> {
        let ours = Authority::new("uvm test authority")?;
        let theirs = Authority::new("another authority")?;
        let names = ["127.0.0.1", "localhost"];
        Ok(Self {
            node: ours.issue("uvm node", &names, ExtendedKeyUsagePurpose::ServerAuth)?,
            client: ours.issue("uvm client", &[], ExtendedKeyUsagePurpose::ClientAuth)?,
            stranger: theirs.issue("a stranger", &[], ExtendedKeyUsagePurpose::ClientAuth)?,
            authority: ours.certificate,
        })
    }

    /// The appliance's configuration with this identity; `console` is `off`, `read-only` or `full`.
    pub fn config(&self, node: &str, console: &str) -> Value {
        json!({
            "node": node,
            "console": console,
            "api": {
                "certificate": self.node.certificate,
                "private_key": self.node.private_key,
                "client_ca": self.authority,
            },
        })
    }
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let key = rcgen::KeyPair::generate().context("making an authority's key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).context("signing an authority's certificate")?.pem();
        Ok(Self { certificate, issuer: Issuer::new(params, key) })
    }

    fn issue(&self, name: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Result<KeyPair> {
        let key = rcgen::KeyPair::generate().context("making a key")?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).context("naming a certificate")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).context("signing a certificate")?;
        Ok(KeyPair { certificate: certificate.pem(), private_key: key.serialize_pem() })
    }
}
