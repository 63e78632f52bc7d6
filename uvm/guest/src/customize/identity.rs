//! What makes two machines of one image different: the machine id, the SSH host key, and nothing left of the
//! image's own (machine-id(5), sshd(8), random-seed(8)).

use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{LineEnding, PrivateKey};

use super::{CustomizationReport, Guest};
use crate::error::{Error, ErrorKind, Result};

/// The random part of a machine's identity. There is no `Debug` of it, for one half is a secret.
#[derive(Clone)]
pub struct Identity {
    /// `/etc/machine-id`; also names the boot loader's entries.
    pub machine_id: [u8; 16],
    /// Seed of the ed25519 host key: 32 bytes from a good source, used once.
    pub ssh_host_key_seed: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// What an image may carry of the machine it was made on.
const REMOVED: [&str; 7] = [
    "/var/lib/systemd/random-seed",
    "/var/lib/systemd/credential.secret",
    "/var/lib/NetworkManager/secret_key",
    "/var/lib/NetworkManager/seen-bssids",
    "/var/lib/cloud/instance",
    "/var/lib/cloud/instances",
    "/var/lib/cloud/sem",
];
/// Directories of DHCP leases: a lease of the image's would ask for somebody else's address.
const LEASES: [&str; 4] =
    ["/var/lib/dhcp", "/var/lib/dhclient", "/var/lib/systemd/network", "/var/lib/NetworkManager"];

pub(super) fn reset(
    guest: &mut Guest<'_>,
    identity: &Identity,
    hostname: &str,
    report: &mut CustomizationReport,
) -> Result<()> {
    let machine_id: String = identity.machine_id.iter().map(|b| format!("{b:02x}")).collect();
    guest.write("/etc/machine-id", 0o444, format!("{machine_id}\n").as_bytes())?;
    remove_dbus_id(guest, report)?;
    for path in REMOVED {
        report.removed.extend(guest.remove(path)?);
    }
    for directory in LEASES {
        for name in guest.list(directory)? {
            if name.windows(5).any(|w| w == b"lease") {
                report.removed.extend(remove_entry(guest, directory, &name)?);
            }
        }
    }
    report.ssh_host_key = Some(replace_host_keys(guest, identity, hostname, report)?);
    Ok(())
}

/// D-Bus falls back on `/etc/machine-id`; a link to it is right already.
fn remove_dbus_id(guest: &mut Guest<'_>, report: &mut CustomizationReport) -> Result<()> {
    let path = "/var/lib/dbus/machine-id";
    let at = crate::tree::resolve_parent(guest.tree, &super::absolute(path)?)?;
    if guest.tree.metadata(&at)?.is_some_and(|m| m.kind != crate::tree::Kind::Symlink) {
        report.removed.extend(guest.remove(path)?);
    }
    Ok(())
}

fn remove_entry(
    guest: &mut Guest<'_>,
    directory: &str,
    name: &[u8],
) -> Result<Option<crate::path::GuestPath>> {
    let path = crate::tree::resolve(guest.tree, &super::absolute(directory)?)?.join(name)?;
    crate::tree::remove_all(guest.tree, &path)?;
    Ok(Some(path))
}

/// Removes every host key and writes one new one, so that the first login can be checked against the report.
fn replace_host_keys(
    guest: &mut Guest<'_>,
    identity: &Identity,
    hostname: &str,
    report: &mut CustomizationReport,
) -> Result<String> {
    for name in guest.list("/etc/ssh")? {
        let is_key =
            name.starts_with(b"ssh_host_") && (name.ends_with(b"_key") || name.ends_with(b"_key.pub"));
        if is_key {
            report.removed.extend(remove_entry(guest, "/etc/ssh", &name)?);
        }
    }
    let failed = |e: ssh_key::Error| Error::with_source(ErrorKind::Invalid, "encoding the SSH host key", e);
    let pair = Ed25519Keypair::from_seed(&identity.ssh_host_key_seed);
    let key = PrivateKey::new(KeypairData::Ed25519(pair), format!("root@{hostname}")).map_err(failed)?;
    let private = key.to_openssh(LineEnding::LF).map_err(failed)?;
    let public = key.public_key().to_openssh().map_err(failed)?;
    guest.write("/etc/ssh/ssh_host_ed25519_key", 0o600, private.as_bytes())?;
    guest.write("/etc/ssh/ssh_host_ed25519_key.pub", 0o644, format!("{public}\n").as_bytes())?;
    Ok(public)
}
