//! What makes an image one customer's machine: its name, users, keys, identity, mounts and network.
//!
//! The vocabulary is cloud-init's. Everything is checked before anything is changed, no program of the guest runs,
//! and links in the guest are followed inside the guest only.

mod fstab;
mod hostname;
mod identity;
mod lines;
mod network;
mod systemd;
mod users;

pub use fstab::FstabEntry;
pub use identity::Identity;
pub use network::{Ethernet, IpPrefix, Network, Renderer, Route};
pub use systemd::enable_unit;
pub use users::{User, UserOutcome};

use crate::error::{Error, ErrorKind, Result};
use crate::path::{GuestPath, printable};
use crate::tree::{
    Attributes, GuestTree, Timestamp, create_dir_all, remove_all, resolve, resolve_parent, write_bytes,
};

/// What is to be set. What is `None` or empty stays as the image has it.
#[derive(Debug, Clone, Default)]
pub struct Customization {
    /// Modification time of every file written: there is no clock here.
    pub timestamp: Timestamp,
    /// A host name after RFC 1123, with or without its domain.
    pub hostname: Option<String>,
    /// Accounts to create, or to give keys to where they exist.
    pub users: Vec<User>,
    /// A machine identity of its own; the image's is removed.
    pub identity: Option<Identity>,
    /// The whole `/etc/fstab`.
    pub fstab: Option<Vec<FstabEntry>>,
    /// Interfaces and name servers.
    pub network: Option<Network>,
}

/// What came of it, for the job's result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CustomizationReport {
    /// Each user with its ids.
    pub users: Vec<UserOutcome>,
    /// The new SSH host key, public half, as in `known_hosts` without the host.
    pub ssh_host_key: Option<String>,
    /// Identity of the image that was removed.
    pub removed: Vec<GuestPath>,
    /// Who configures the network.
    pub renderer: Option<Renderer>,
    /// What an operator should know and nobody needs to repair.
    pub notes: Vec<String>,
}

impl Customization {
    /// Everything that can be refused without looking at the guest.
    pub fn validate(&self) -> Result<()> {
        if let Some(hostname) = &self.hostname {
            hostname::validate(hostname)?;
        }
        users::validate(&self.users)?;
        if let Some(entries) = &self.fstab {
            fstab::validate(entries)?;
        }
        self.network.as_ref().map_or(Ok(()), network::validate)
    }
}

/// Carries a customization out.
///
/// # Errors
/// [`ErrorKind::Invalid`] names the field before anything is written; [`ErrorKind::MissingPackage`] names what the
/// image lacks.
pub fn customize(tree: &mut dyn GuestTree, wanted: &Customization) -> Result<CustomizationReport> {
    wanted.validate()?;
    let mut guest = Guest { tree, timestamp: wanted.timestamp };
    let renderer = wanted.network.as_ref().map(|n| network::choose(&guest, n)).transpose()?;
    users::check_guest(&guest, &wanted.users)?;

    let mut report = CustomizationReport { renderer, ..CustomizationReport::default() };
    if let Some(hostname) = &wanted.hostname {
        hostname::set(&mut guest, hostname).map_err(|e| e.within("setting the host name"))?;
    }
    if let Some(identity) = &wanted.identity {
        let host = wanted.hostname.as_deref().unwrap_or("localhost");
        identity::reset(&mut guest, identity, host, &mut report)
            .map_err(|e| e.within("giving the machine its identity"))?;
    }
    for user in &wanted.users {
        let outcome = users::create(&mut guest, user)
            .map_err(|e| e.within(format!("creating the user {}", printable(user.name.as_bytes()))))?;
        report.users.push(outcome);
    }
    users::write_sudoers(&mut guest, &wanted.users).map_err(|e| e.within("writing the sudo rules"))?;
    if let Some(entries) = &wanted.fstab {
        fstab::set(&mut guest, entries).map_err(|e| e.within("writing /etc/fstab"))?;
    }
    if let (Some(network), Some(renderer)) = (&wanted.network, renderer) {
        network::set(&mut guest, network, renderer, &mut report.notes)
            .map_err(|e| e.within("configuring the network"))?;
    }
    Ok(report)
}

/// The tree under work, with the few ways in which all of the above touch it.
struct Guest<'t> {
    tree: &'t mut dyn GuestTree,
    timestamp: Timestamp,
}

impl Guest<'_> {
    fn attributes(&self, mode: u32) -> Attributes {
        Attributes::root(mode, self.timestamp)
    }

    /// Whether the path leads to something, links followed.
    fn exists(&self, path: &str) -> Result<bool> {
        Ok(crate::tree::resolved_metadata(self.tree, &absolute(path)?)?.is_some())
    }

    /// A file of the guest; what is missing is empty.
    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = resolve(self.tree, &absolute(path)?)?;
        match self.tree.metadata(&path)? {
            Some(_) => self.tree.read(&path, crate::tree::MAX_EDITED),
            None => Ok(Vec::new()),
        }
    }

    /// A file written whole, with its directory. A link that has the file's name is replaced, not followed.
    fn write(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let attributes = self.attributes(mode);
        let path = self.place(path)?;
        write_bytes(self.tree, &path, attributes, contents)
    }

    /// A symbolic link, whatever other file has the name now.
    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let attributes = self.attributes(0o777);
        let path = self.place(path)?;
        match self.tree.metadata(&path)? {
            Some(m) if m.kind == crate::tree::Kind::Directory => {
                return Err(Error::new(ErrorKind::WrongType, format!("{path} is a directory")));
            }
            Some(_) => self.tree.remove(&path)?,
            None => {}
        }
        self.tree.symlink(&path, target.as_bytes(), attributes)
    }

    /// Where a new entry goes, with its directory made.
    fn place(&mut self, path: &str) -> Result<GuestPath> {
        let attributes = self.attributes(0o755);
        let path = resolve_parent(self.tree, &absolute(path)?)?;
        if let Some(parent) = path.parent() {
            create_dir_all(self.tree, &parent, attributes)?;
        }
        Ok(path)
    }

    /// Rewrites a file, keeping mode and owner; a new one gets `mode`.
    fn edit(
        &mut self,
        path: &str,
        mode: u32,
        change: &mut dyn FnMut(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let attributes = self.attributes(mode);
        crate::tree::edit(self.tree, &absolute(path)?, attributes, change)
    }

    /// Removes an entry and what is beneath it; says whether it was there.
    fn remove(&mut self, path: &str) -> Result<Option<GuestPath>> {
        let path = resolve_parent(self.tree, &absolute(path)?)?;
        if self.tree.metadata(&path)?.is_none() {
            return Ok(None);
        }
        remove_all(self.tree, &path)?;
        Ok(Some(path))
    }

    /// Names in a directory; none where it is missing.
    fn list(&self, path: &str) -> Result<Vec<Vec<u8>>> {
        let path = resolve(self.tree, &absolute(path)?)?;
        match self.tree.metadata(&path)? {
            Some(_) => Ok(self.tree.list(&path)?.into_iter().map(|(name, _)| name).collect()),
            None => Ok(Vec::new()),
        }
    }
}

fn absolute(path: &str) -> Result<GuestPath> {
    GuestPath::absolute(path)
}

fn invalid(field: &str, value: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{field}: {} {why}", printable(value.as_bytes())))
}

#[cfg(test)]
mod tests;
