//! The appliance's own network, from its configuration: static addresses or DHCP.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use uvm_api::{EthernetSpec, NetworkSpec};
use uvm_sys::{Interface, Lease};

use crate::config::Config;

/// How long one attempt at a lease lasts before it is logged and begun again.
const DHCP_ATTEMPT: Duration = Duration::from_secs(30);
const RENEW_ATTEMPT: Duration = Duration::from_secs(60);

static NAME_SERVERS: Mutex<Vec<IpAddr>> = Mutex::new(Vec::new());

/// Brings the network up. Static addresses are there on return; leases come when they come.
pub(crate) fn configure(config: &Config) {
    if let Err(error) = uvm_sys::set_loopback_up() {
        crate::log::warn(&format!("loopback: {error}"));
    }
    if let Err(error) = write_hosts(&config.node, &config.hosts) {
        crate::log::warn(&format!("/etc/hosts: {error}"));
    }
    let interfaces = match uvm_sys::interfaces() {
        Ok(interfaces) => interfaces,
        Err(error) => return crate::log::warn(&format!("the network interfaces cannot be listed: {error}")),
    };
    for interface in interfaces.into_iter().filter(|interface| !interface.loopback) {
        match find(&config.network, &interface) {
            Some((_, ethernet)) => bring_up(&interface, ethernet),
            None => crate::log::info(&format!("{}: not in the configuration, left down", interface.name)),
        }
    }
}

fn find<'c>(network: &'c NetworkSpec, interface: &Interface) -> Option<(&'c String, &'c EthernetSpec)> {
    network.ethernets.iter().find(|(id, ethernet)| match &ethernet.match_ {
        None => interface.name == **id,
        Some(wanted) => {
            let mac = wanted
                .macaddress
                .as_deref()
                .is_none_or(|mac| interface.mac.is_some_and(|own| mac.eq_ignore_ascii_case(&mac_text(own))));
            mac && wanted.name.as_deref().is_none_or(|name| match name.strip_suffix('*') {
                Some(prefix) => interface.name.starts_with(prefix),
                None => interface.name == name,
            })
        }
    })
}

/// A MAC address as people write it.
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn bring_up(interface: &Interface, ethernet: &EthernetSpec) {
    let name = &interface.name;
    if let Err(error) = try_bring_up(interface, ethernet) {
        crate::log::warn(&format!("{name}: {error}"));
    }
    if ethernet.dhcp4 {
        let interface = interface.clone();
        let spawned =
            std::thread::Builder::new().name(format!("dhcp-{name}")).spawn(move || keep_lease(&interface));
        if let Err(error) = spawned {
            crate::log::warn(&format!("no thread for DHCP: {error}"));
        }
    }
}

fn try_bring_up(interface: &Interface, ethernet: &EthernetSpec) -> Result<(), String> {
    uvm_sys::set_up(interface.index).map_err(|error| error.to_string())?;
    for text in &ethernet.addresses {
        let (address, prefix) = parse_prefix(text).ok_or_else(|| format!("{text:?} is no address/prefix"))?;
        uvm_sys::add_address(interface.index, address, prefix).map_err(|error| error.to_string())?;
        crate::log::info(&format!("{}: {text}", interface.name));
    }
    for route in &ethernet.routes {
        if !matches!(route.to.as_str(), "default" | "0.0.0.0/0" | "::/0") {
            return Err(format!("a route to {:?}; the appliance takes default routes only", route.to));
        }
        let via = route.via.parse().map_err(|_| format!("{:?} is no gateway address", route.via))?;
        uvm_sys::add_default_route(via, interface.index).map_err(|error| error.to_string())?;
    }
    if let Some(nameservers) = &ethernet.nameservers {
        let servers: Result<Vec<IpAddr>, _> = nameservers.addresses.iter().map(|text| text.parse()).collect();
        add_name_servers(&servers.map_err(|_| "a name server is no IP address".to_owned())?);
    }
    Ok(())
}

fn parse_prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, prefix))
}

/// Gets a lease and keeps it as long as the appliance runs.
fn keep_lease(interface: &Interface) {
    let Some(mac) = interface.mac else { return };
    loop {
        let lease = match uvm_sys::acquire(&interface.name, mac, DHCP_ATTEMPT) {
            Ok(lease) => lease,
            Err(error) => {
                crate::log::warn(&format!("{}: no DHCP lease yet: {error}", interface.name));
                continue;
            }
        };
        match adopt(interface, &lease) {
            Ok(()) => renew_until_lost(interface, mac, lease),
            Err(error) => {
                crate::log::warn(&format!("{}: {error}", interface.name));
                std::thread::sleep(DHCP_ATTEMPT);
            }
        }
    }
}

fn adopt(interface: &Interface, lease: &Lease) -> Result<(), uvm_sys::Error> {
    uvm_sys::flush_addresses(interface.index)?;
    uvm_sys::add_address(interface.index, lease.address.into(), lease.prefix)?;
    if let Some(router) = lease.routers.first() {
        uvm_sys::add_default_route((*router).into(), interface.index)?;
    }
    add_name_servers(&lease.dns_servers.iter().map(|server| IpAddr::from(*server)).collect::<Vec<_>>());
    crate::log::info(&format!("{}: {}/{} by DHCP", interface.name, lease.address, lease.prefix));
    Ok(())
}

fn renew_until_lost(interface: &Interface, mac: [u8; 6], mut lease: Lease) {
    while let Some(wait) = lease.renew_after {
        std::thread::sleep(wait);
        match uvm_sys::renew(&interface.name, mac, &lease, RENEW_ATTEMPT) {
            Ok(renewed) if renewed.address == lease.address => lease = renewed,
            Ok(_) => return,
            Err(error) => {
                crate::log::warn(&format!("{}: the lease was not renewed: {error}", interface.name));
                return;
            }
        }
    }
    // A lease without an end.
    loop {
        std::thread::park();
    }
}

fn add_name_servers(servers: &[IpAddr]) {
    let mut known = NAME_SERVERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for server in servers {
        if !known.contains(server) {
            known.push(*server);
        }
    }
    let text: String = known.iter().map(|server| format!("nameserver {server}\n")).collect();
    if let Err(error) = std::fs::write("/etc/resolv.conf", text) {
        crate::log::warn(&format!("/etc/resolv.conf: {error}"));
    }
}

/// Without this file the C library's resolver fails at once, even for `localhost`.
fn write_hosts(node: &str, hosts: &BTreeMap<String, IpAddr>) -> io::Result<()> {
    std::fs::create_dir_all("/etc")?;
    let mut text = format!("127.0.0.1 localhost {node}\n::1 localhost\n");
    for (name, address) in hosts {
        text.push_str(&format!("{address} {name}\n"));
    }
    std::fs::write("/etc/hosts", text)?;
    std::fs::write("/etc/resolv.conf", "")
}
