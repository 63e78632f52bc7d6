//! What a job says of the image and the guest, checked and turned into the words of the layers below.

use std::net::IpAddr;
use std::str::FromStr;

use uvm_api::{
    BootSpec, CustomizeSpec, ErrorCode, EthernetSpec, FileSystemFormat, ImageSource, ImageSpec, NetworkSpec,
    ProvisionSpec, Secret, StreamSource, StreamTarget, UserSpec,
};
use uvm_guest::boot::BootOptions;
use uvm_guest::customize::{Customization, Ethernet, FstabEntry, IpPrefix, Network, Route, User};

use super::JobError;
use super::layout::{Placed, derive};
use crate::image::{Digest, ImageError, ImageReference, Platform, Source, StreamPlace};

/// What the guest is to become. The SSH host key and the clock come in when it is carried out.
pub(crate) struct GuestRequest {
    pub(crate) customization: Customization,
    pub(crate) boot: BootOptions,
    pub(crate) machine_id: [u8; 16],
}

fn invalid(detail: impl Into<String>) -> JobError {
    JobError::new(ErrorCode::InvalidRequest, detail)
}

/// Where a captured device goes.
pub(crate) struct CaptureRequest {
    pub(crate) destination: StreamPlace,
}

/// Where a captured device comes from, and what it must be.
pub(crate) struct RestoreRequest {
    pub(crate) source: StreamPlace,
    pub(crate) digest: Digest,
    /// Bytes as they are stored.
    pub(crate) size: u64,
    pub(crate) device_bytes: u64,
}

/// Where a captured device goes. Only a server takes a stream.
pub(crate) fn capture_request(spec: &StreamTarget) -> Result<CaptureRequest, JobError> {
    let authorization = spec.authorization.as_ref().map(Secret::reveal);
    let destination = StreamPlace::parse(&spec.url, authorization).map_err(refused)?;
    if !destination.is_remote() {
        return Err(invalid("the destination's url begins with https:// or http://"));
    }
    Ok(CaptureRequest { destination })
}

/// Where a captured device comes from.
pub(crate) fn restore_request(spec: &StreamSource) -> Result<RestoreRequest, JobError> {
    let authorization = spec.authorization.as_ref().map(Secret::reveal);
    Ok(RestoreRequest {
        source: StreamPlace::parse(&spec.url, authorization).map_err(refused)?,
        digest: Digest::parse(&spec.digest).map_err(refused)?,
        size: spec.size_bytes,
        device_bytes: spec.device_bytes,
    })
}

/// What is to change on a machine that exists; all else stays as it is.
pub(crate) fn change_request(spec: &CustomizeSpec) -> Result<Customization, JobError> {
    let customization = Customization {
        hostname: spec.hostname.clone(),
        users: spec.users.iter().map(user).collect(),
        network: spec.network.as_ref().map(network_of).transpose()?,
        ..Customization::default()
    };
    if *spec == CustomizeSpec::default() {
        return Err(invalid("customize asks for no change: name a hostname, users or a network"));
    }
    customization.validate().map_err(|error| refused_by_guest(&error))?;
    Ok(customization)
}

/// What a job says is refused by its plan, whatever the layer below would call it.
fn refused(error: ImageError) -> JobError {
    JobError { code: ErrorCode::InvalidRequest, ..JobError::from_source(&error) }
}

fn refused_by_guest(error: &uvm_guest::Error) -> JobError {
    JobError { code: ErrorCode::InvalidRequest, ..JobError::from_source(error) }
}

/// Where the image is. The digest is looked at here, so that a job without a usable one is refused by its plan.
pub(crate) fn image_reference(spec: &ImageSpec) -> Result<ImageReference, JobError> {
    let digest_fits = spec
        .digest
        .strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    if !digest_fits {
        return Err(invalid(format!(
            "image digest {:?}: sha256: and 64 lower case hexadecimal digits are expected",
            spec.digest
        )));
    }
    let source = match &spec.source {
        ImageSource::OciLayout { url } => Source::Layout { url: url.clone() },
        ImageSource::Registry { url, repository } => {
            Source::Registry { url: url.clone(), repository: repository.clone() }
        }
    };
    let (Source::Layout { url } | Source::Registry { url, .. }) = &source;
    if !["http://", "https://", "file://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(invalid("the image's url begins with https://, http:// or file://"));
    }
    Ok(ImageReference {
        source,
        reference: spec.reference.clone().unwrap_or_default(),
        digest: spec.digest.clone(),
        platform: Platform::default(),
    })
}

/// What the guest is to become.
pub(crate) fn guest_request(
    spec: &ProvisionSpec,
    job_id: &str,
    placed: &[Placed],
) -> Result<GuestRequest, JobError> {
    let machine_id = *derive(job_id, "machine-id").as_bytes();
    let network = match &spec.customize.network {
        Some(network) => network_of(network)?,
        None => dhcp_everywhere(),
    };
    let customization = Customization {
        hostname: spec.customize.hostname.clone(),
        users: spec.customize.users.iter().map(user).collect(),
        fstab: Some(fstab(placed)),
        network: Some(network),
        ..Customization::default()
    };
    customization.validate().map_err(|error| refused_by_guest(&error))?;
    let root = placed.iter().find(|placed| placed.path.as_deref() == Some("/"));
    let root_uuid = root.map(Placed::uuid_text).ok_or_else(|| invalid("there is no root partition"))?;
    let boot = boot_options(&spec.boot, root_uuid, machine_id)?;
    Ok(GuestRequest { customization, boot, machine_id })
}

fn boot_options(spec: &BootSpec, root_uuid: String, machine_id: [u8; 16]) -> Result<BootOptions, JobError> {
    let words = spec.consoles.iter().chain(&spec.kernel_arguments);
    if let Some(bad) =
        words.clone().find(|word| word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(invalid(format!("boot: {bad:?} is not one word of the kernel command line")));
    }
    Ok(BootOptions {
        root_uuid,
        kernel_arguments: spec.kernel_arguments.clone(),
        consoles: spec.consoles.clone(),
        machine_id,
        title: None,
    })
}

fn user(spec: &UserSpec) -> User {
    User {
        name: spec.name.clone(),
        gecos: spec.gecos.clone().unwrap_or_default(),
        groups: spec.groups.clone(),
        sudo: spec.sudo.clone(),
        shell: spec.shell.clone(),
        ssh_authorized_keys: spec.ssh_authorized_keys.clone(),
        ..User::default()
    }
}

fn fstab(placed: &[Placed]) -> Vec<FstabEntry> {
    let mut mounted: Vec<&Placed> = placed
        .iter()
        .filter(|placed| placed.path.is_some() || placed.format == FileSystemFormat::Swap)
        .collect();
    // Parents before children; swap, which has no path, last.
    mounted.sort_by(|a, b| (a.path.is_none(), &a.path).cmp(&(b.path.is_none(), &b.path)));
    mounted
        .into_iter()
        .map(|placed| {
            let (vfstype, mntops, passno) = match (placed.format, placed.path.as_deref()) {
                (FileSystemFormat::Ext4, Some("/")) => ("ext4", "errors=remount-ro", 1),
                (FileSystemFormat::Ext2, _) => ("ext2", "defaults", 2),
                (FileSystemFormat::Ext3, _) => ("ext3", "defaults", 2),
                (FileSystemFormat::Ext4, _) => ("ext4", "defaults", 2),
                (FileSystemFormat::Vfat, _) if placed.is_esp() => ("vfat", "umask=0077", 2),
                (FileSystemFormat::Vfat, _) => ("vfat", "defaults", 2),
                (FileSystemFormat::Swap, _) => ("swap", "sw", 0),
                (FileSystemFormat::Ntfs, _) => ("ntfs3", "defaults", 0),
                (FileSystemFormat::None, _) => ("auto", "defaults", 0),
            };
            FstabEntry {
                spec: format!("UUID={}", placed.uuid_text()),
                file: placed.path.clone().unwrap_or_else(|| "none".to_owned()),
                vfstype: vfstype.to_owned(),
                mntops: mntops.to_owned(),
                freq: 0,
                passno,
            }
        })
        .collect()
}

fn dhcp_everywhere() -> Network {
    let ethernet =
        Ethernet { id: "all".to_owned(), name: Some("e*".to_owned()), dhcp4: true, ..Ethernet::default() };
    Network { ethernets: vec![ethernet] }
}

fn network_of(spec: &NetworkSpec) -> Result<Network, JobError> {
    if spec.version != 2 {
        return Err(invalid(format!("network-config version {}; 2 is the one known", spec.version)));
    }
    let ethernets: Result<Vec<Ethernet>, JobError> =
        spec.ethernets.iter().map(|(id, ethernet)| ethernet_of(id, ethernet)).collect();
    Ok(Network { ethernets: ethernets? })
}

fn ethernet_of(id: &str, spec: &EthernetSpec) -> Result<Ethernet, JobError> {
    let match_ = spec.match_.clone().unwrap_or_default();
    let match_mac = match_.macaddress.as_deref().map(mac).transpose()?;
    let name = match (&match_.name, match_mac) {
        (Some(name), _) => Some(name.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(id.to_owned()),
    };
    let nameservers = spec.nameservers.clone().unwrap_or_default();
    let mut routes = Vec::new();
    for route in &spec.routes {
        let via: IpAddr = parse(&route.via, "gateway address")?;
        let to = match route.to.as_str() {
            "default" if via.is_ipv4() => "0.0.0.0/0",
            "default" => "::/0",
            to => to,
        };
        routes.push(Route { to: prefix(to)?, via, on_link: false });
    }
    Ok(Ethernet {
        id: id.to_owned(),
        match_mac,
        name,
        dhcp4: spec.dhcp4,
        dhcp6: spec.dhcp6,
        addresses: spec.addresses.iter().map(|text| prefix(text)).collect::<Result<_, _>>()?,
        routes,
        nameservers: nameservers
            .addresses
            .iter()
            .map(|text| parse(text, "name server address"))
            .collect::<Result<_, _>>()?,
        search: nameservers.search,
    })
}

fn prefix(text: &str) -> Result<IpPrefix, JobError> {
    parse(text, "address with a prefix length, as 192.0.2.10/24")
}

fn parse<T: FromStr>(text: &str, what: &str) -> Result<T, JobError> {
    text.parse().map_err(|_| invalid(format!("network: {text:?} is no {what}")))
}

fn mac(text: &str) -> Result<[u8; 6], JobError> {
    let bad = || invalid(format!("network: {text:?} is no MAC address"));
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.map_err(|_| bad())?.try_into().map_err(|_| bad())
}
