//! `provision`: from an empty allocation to a bootable machine.
//!
//! Disks and files speak Ignition's vocabulary, the guest cloud-init's, the network network-config v2's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{DeviceRef, DiskSpec, PartitionSpec};

/// `provision`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvisionSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device whose whole contents are replaced, unless `disk` says `wipe_table: false`.
    pub device: DeviceRef,
    /// In order on the disk: `partitions` of `disk` where nothing else is said of it. Empty: EFI system partition of
    /// 512 MiB, swap of 512 MiB, root in the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionSpec>,
    /// The layout of the disk.
    #[serde(default, skip_serializing_if = "is_default")]
    pub disk: DiskSpec,
    /// The operating system.
    pub image: ImageSpec,
    /// What makes the machine the customer's.
    #[serde(default)]
    pub customize: CustomizeSpec,
    /// How it boots.
    #[serde(default)]
    pub boot: BootSpec,
    /// The plan the caller agreed to; nothing is written where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

fn is_default(disk: &DiskSpec) -> bool {
    *disk == DiskSpec::default()
}

/// An image by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Where it is.
    pub source: ImageSource,
    /// Tag, for people; the digest decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// `sha256:…` of the image index or manifest. Mandatory: what comes is checked against it.
    pub digest: String,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ImageSource {
    /// An OCI image layout behind a web server (or `file://` for the host command).
    OciLayout {
        /// URL of the folder that holds `oci-layout`.
        url: String,
    },
    /// A registry that speaks the OCI distribution API.
    Registry {
        /// Base URL, as `https://registry.example:5000`.
        url: String,
        /// Repository name.
        repository: String,
    },
}

/// What makes a machine the customer's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CustomizeSpec {
    /// Host name, RFC 1123.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Users to make, or to give keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserSpec>,
    /// Network; DHCP on every Ethernet interface where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkSpec>,
}

/// A user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSpec {
    /// Login name.
    pub name: String,
    /// Full name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gecos: Option<String>,
    /// Supplementary groups; those the image lacks are created.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// A sudoers rule, as `ALL=(ALL) NOPASSWD:ALL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo: Option<String>,
    /// Login shell; `/bin/bash` where the image has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Lines of `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_authorized_keys: Vec<String>,
}

/// network-config version 2.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// 2.
    pub version: u8,
    /// Interfaces by an id of the caller's choice.
    #[serde(default)]
    pub ethernets: BTreeMap<String, EthernetSpec>,
}

/// An Ethernet interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EthernetSpec {
    /// Which interface; the id is its name where this is missing.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub match_: Option<EthernetMatch>,
    /// IPv4 from DHCP.
    #[serde(default)]
    pub dhcp4: bool,
    /// IPv6 from DHCP.
    #[serde(default)]
    pub dhcp6: bool,
    /// Addresses as `192.0.2.10/24`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// Routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<RouteSpec>,
    /// Name servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nameservers: Option<Nameservers>,
}

/// Which interface is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EthernetMatch {
    /// MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macaddress: Option<String>,
    /// Name, globs allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteSpec {
    /// `default` or a prefix.
    pub to: String,
    /// Gateway.
    pub via: String,
}

/// Name servers and search domains.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Nameservers {
    /// Addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Search domains.
    #[serde(default)]
    pub search: Vec<String>,
}

/// How the machine boots: under UEFI, by systemd-boot on the EFI system partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSpec {
    /// Consoles in the kernel's words; the last one is `/dev/console`.
    #[serde(default = "default_consoles")]
    pub consoles: Vec<String>,
    /// More kernel arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_arguments: Vec<String>,
}

fn default_consoles() -> Vec<String> {
    vec!["tty0".to_owned(), "ttyS0".to_owned()]
}

impl Default for BootSpec {
    fn default() -> Self {
        Self { consoles: default_consoles(), kernel_arguments: Vec::new() }
    }
}
