//! The appliance's configuration: one JSON document from the hypervisor.
//!
//! Under QEMU it is the fw_cfg item `opt/org.uvm/config`; elsewhere, or where it must be, the kernel command
//! line carries it as `uvm.config=` and the document in base64.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use uvm_api::{EthernetMatch, EthernetSpec, NetworkSpec};

/// Name of the fw_cfg item.
pub(crate) const FW_CFG_ITEM: &str = "opt/org.uvm/config";
/// Parameter of the kernel command line.
const PARAMETER: &str = "uvm.config=";

/// What the hypervisor's manager tells the appliance.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Name of this node.
    pub(crate) node: String,
    /// network-config version 2; DHCP on the Ethernet interfaces where it is missing.
    #[serde(default = "dhcp_everywhere")]
    pub(crate) network: NetworkSpec,
    /// Names for `/etc/hosts`.
    #[serde(default)]
    pub(crate) hosts: BTreeMap<String, std::net::IpAddr>,
    /// The API; there is none without it.
    #[serde(default)]
    pub(crate) api: Option<ApiConfig>,
    /// What the serial console may do.
    #[serde(default)]
    pub(crate) console: ConsoleMode,
    /// More certificate authorities (PEM) to trust for image stores.
    #[serde(default)]
    pub(crate) image_store_ca: Option<String>,
}

/// The node's identity. All PEM.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApiConfig {
    /// Where to listen.
    #[serde(default = "default_listen")]
    pub(crate) listen: SocketAddr,
    /// Certificate chain of the node.
    pub(crate) certificate: String,
    /// Its private key.
    pub(crate) private_key: String,
    /// Whose client certificates are admitted.
    pub(crate) client_ca: String,
}

/// What the serial console may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ConsoleMode {
    /// Shows the log, reads nothing.
    Off,
    /// Shows, changes nothing.
    #[default]
    ReadOnly,
    /// Everything.
    Full,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 0], 8443))
}

fn dhcp_everywhere() -> NetworkSpec {
    let any = EthernetMatch { macaddress: None, name: Some("e*".to_owned()) };
    let ethernet = EthernetSpec { match_: Some(any), dhcp4: true, ..EthernetSpec::default() };
    NetworkSpec { version: 2, ethernets: BTreeMap::from([("all".to_owned(), ethernet)]) }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: "uvm".to_owned(),
            network: dhcp_everywhere(),
            hosts: BTreeMap::new(),
            api: None,
            console: ConsoleMode::default(),
            image_store_ca: None,
        }
    }
}

/// The configuration as given, or why there is none. The appliance goes on without: its console still works.
pub(crate) fn load() -> Result<Config, String> {
    let item = uvm_sys::fw_cfg(FW_CFG_ITEM).map_err(|error| format!("fw_cfg {FW_CFG_ITEM}: {error}"))?;
    if let Some(bytes) = item {
        return parse(&bytes).map_err(|error| format!("fw_cfg {FW_CFG_ITEM}: {error}"));
    }
    let line = uvm_sys::kernel_command_line().map_err(|error| format!("the kernel command line: {error}"))?;
    from_command_line(&line).unwrap_or_else(|| {
        Err(format!("neither fw_cfg {FW_CFG_ITEM} nor {PARAMETER} on the kernel command line"))
    })
}

fn from_command_line(line: &str) -> Option<Result<Config, String>> {
    let text = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(PARAMETER))?;
    let decoded = STANDARD.decode(text).or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')));
    Some(match decoded {
        Ok(bytes) => parse(&bytes).map_err(|error| format!("{PARAMETER} {error}")),
        Err(error) => Err(format!("{PARAMETER} is not base64: {error}")),
    })
}

fn parse(bytes: &[u8]) -> Result<Config, String> {
    let config: Config = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if config.network.version != 2 {
        return Err(format!("network version {}; 2 is the one known", config.network.version));
    }
    Ok(config)
}

impl Config {
    /// The configuration as the console shows it: no key.
    pub(crate) fn summary(&self) -> Vec<String> {
        let mut lines = vec![
            format!("node     {}", self.node),
            format!("console  {:?}", self.console),
            match &self.api {
                Some(api) => format!("api      https://{}", api.listen),
                None => "api      none configured".to_owned(),
            },
        ];
        for (id, ethernet) in &self.network.ethernets {
            let how = if ethernet.dhcp4 { "dhcp4".to_owned() } else { ethernet.addresses.join(", ") };
            lines.push(format!("network  {id}: {how}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_read_from_the_command_line_in_either_base64() {
        let json =
            br#"{"node":"n1","console":"full","api":{"certificate":"c","private_key":"k","client_ca":"a"}}"#;
        for text in [STANDARD.encode(json), URL_SAFE_NO_PAD.encode(json)] {
            let config =
                from_command_line(&format!("quiet uvm.config={text} console=ttyS0")).unwrap().unwrap();
            assert_eq!((config.node.as_str(), config.console), ("n1", ConsoleMode::Full));
            assert_eq!(config.api.unwrap().listen.port(), 8443);
            assert!(config.network.ethernets["all"].dhcp4);
        }
        assert!(from_command_line("quiet").is_none());
        assert!(from_command_line("uvm.config=%%").unwrap().is_err_and(|e| e.contains("not base64")));
    }

    #[test]
    fn an_unknown_field_is_refused_by_name() {
        let error = parse(br#"{"node":"n","consoel":"full"}"#).err().unwrap();
        assert!(error.contains("consoel"), "{error}");
    }

    #[test]
    fn the_summary_shows_no_key() {
        let json = br#"{"node":"n","api":{"certificate":"CERT","private_key":"SECRET","client_ca":"CA"}}"#;
        assert!(!parse(json).unwrap().summary().join("\n").contains("SECRET"));
    }
}
