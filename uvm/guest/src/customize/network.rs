//! Interfaces and name servers, in the words of cloud-init's network-config v2, written for systemd-networkd
//! (systemd.network(5)) or, where the guest has none, for ifupdown (interfaces(5)).

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::str::FromStr;

use super::{Guest, hostname, invalid, systemd};
use crate::error::{Error, ErrorKind, Result};

/// The interfaces of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// One each; every id once.
    pub ethernets: Vec<Ethernet>,
}

/// One interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ethernet {
    /// Names the configuration, and the interface where nothing else does.
    pub id: String,
    /// The interface with this address.
    pub match_mac: Option<[u8; 6]>,
    /// The interface of this name; a pattern (`en*`) under networkd.
    pub name: Option<String>,
    /// Address, routes and name servers by DHCP.
    pub dhcp4: bool,
    /// The same by DHCPv6.
    pub dhcp6: bool,
    /// Fixed addresses with the length of their network's prefix.
    pub addresses: Vec<IpPrefix>,
    /// Routes; the default one is `0.0.0.0/0` or `::/0`.
    pub routes: Vec<Route>,
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which short names are looked up.
    pub search: Vec<String>,
}

/// A route through a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub to: IpPrefix,
    /// Gateway.
    pub via: IpAddr,
    /// The gateway is reached although no address's prefix holds it.
    pub on_link: bool,
}

/// An address and the length of its network's prefix: `192.0.2.7/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPrefix {
    address: IpAddr,
    length: u8,
}

impl IpPrefix {
    /// Refuses a length that the address does not have.
    pub fn new(address: IpAddr, length: u8) -> Result<Self> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if length > longest {
            return Err(invalid("address", &format!("{address}/{length}"), "has a prefix that is too long"));
        }
        Ok(Self { address, length })
    }

    /// The address as given, host bits included.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    fn is_default(&self) -> bool {
        self.address.is_unspecified() && self.length == 0
    }
}

impl FromStr for IpPrefix {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(a, l)| Some((a.parse().ok()?, l.parse().ok()?)));
        let (address, length) =
            parsed.ok_or_else(|| invalid("address", text, "is no address with a prefix length"))?;
        Self::new(address, length)
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Who configures the network in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renderer {
    /// systemd-networkd.
    Networkd,
    /// Debian's ifupdown.
    Ifupdown,
}

pub(super) fn validate(network: &Network) -> Result<()> {
    for (index, ethernet) in network.ethernets.iter().enumerate() {
        let id = &ethernet.id;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
        if id.is_empty() || id.len() > 64 || id.starts_with('.') || !id.bytes().all(plain) {
            return Err(invalid("ethernet", id, "is no id"));
        }
        if network.ethernets[..index].iter().any(|other| other.id == *id) {
            return Err(invalid("ethernet", id, "is named twice"));
        }
        if let Some(name) = &ethernet.name {
            let pattern = |b: u8| plain(b) || b"*?[]".contains(&b);
            if name.is_empty() || name.len() > 32 || !name.bytes().all(pattern) {
                return Err(invalid("name", name, "is no name of an interface"));
            }
        }
        ethernet.search.iter().try_for_each(|domain| hostname::validate(domain))?;
        for route in &ethernet.routes {
            if route.to.address.is_ipv4() != route.via.is_ipv4() {
                return Err(invalid(
                    "route",
                    &route.via.to_string(),
                    "is of another family than its destination",
                ));
            }
        }
    }
    Ok(())
}

/// Finds who will configure the network, and refuses what that one cannot do.
pub(super) fn choose(guest: &Guest<'_>, network: &Network) -> Result<Renderer> {
    if systemd::find(guest, "systemd-networkd.service")?.is_some() {
        return Ok(Renderer::Networkd);
    }
    if !guest.exists("/usr/sbin/ifup")? && !guest.exists("/sbin/ifup")? {
        let context = "the guest has neither systemd-networkd nor ifupdown to configure its network";
        return Err(Error::new(ErrorKind::MissingPackage, context));
    }
    for ethernet in &network.ethernets {
        let pattern = ethernet.name.as_deref().is_some_and(|n| n.contains(['*', '?', '[']));
        if pattern || (ethernet.match_mac.is_some() && ethernet.name.is_none()) {
            let context = format!("ethernet {}: ifupdown needs the interface's own name", ethernet.id);
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
    }
    Ok(Renderer::Ifupdown)
}

pub(super) fn set(
    guest: &mut Guest<'_>,
    network: &Network,
    renderer: Renderer,
    notes: &mut Vec<String>,
) -> Result<()> {
    match renderer {
        Renderer::Networkd => {
            for ethernet in &network.ethernets {
                let path = format!("/etc/systemd/network/10-{}.network", ethernet.id);
                guest.write(&path, 0o644, networkd(ethernet).as_bytes())?;
            }
            systemd::enable(guest, "systemd-networkd.service")?;
        }
        Renderer::Ifupdown => guest.write("/etc/network/interfaces", 0o644, ifupdown(network).as_bytes())?,
    }
    if guest.exists("/etc/cloud/cloud.cfg.d")? {
        // Else cloud-init would write a configuration of its own beside ours at the first boot.
        let path = "/etc/cloud/cloud.cfg.d/99-disable-network-config.cfg";
        guest.write(path, 0o644, b"network: {config: disabled}\n")?;
    }
    name_servers(guest, network, renderer, notes)
}

fn name_servers(
    guest: &mut Guest<'_>,
    network: &Network,
    renderer: Renderer,
    notes: &mut Vec<String>,
) -> Result<()> {
    if renderer == Renderer::Networkd && systemd::find(guest, "systemd-resolved.service")?.is_some() {
        systemd::enable(guest, "systemd-resolved.service")?;
        return guest.link("/etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf");
    }
    let mut text = String::new();
    let search: Vec<&str> =
        network.ethernets.iter().flat_map(|e| e.search.iter().map(String::as_str)).collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let servers: Vec<&IpAddr> = network.ethernets.iter().flat_map(|e| &e.nameservers).collect();
    for server in &servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if servers.is_empty() {
        if renderer == Renderer::Networkd {
            notes.push(
                "the guest has no systemd-resolved and no name server was given: /etc/resolv.conf stays the image's"
                    .to_owned(),
            );
        }
        return Ok(());
    }
    guest.write("/etc/resolv.conf", 0o644, text.as_bytes())
}

fn networkd(ethernet: &Ethernet) -> String {
    let mut text = String::from("[Match]\n");
    let line = |text: fmt::Arguments<'_>, out: &mut String| {
        out.write_fmt(text).expect("writing to a String does not fail");
        out.push('\n');
    };
    if let Some(mac) = ethernet.match_mac {
        let octets: Vec<String> = mac.iter().map(|b| format!("{b:02x}")).collect();
        line(format_args!("MACAddress={}", octets.join(":")), &mut text);
    }
    match &ethernet.name {
        Some(name) => line(format_args!("Name={name}"), &mut text),
        None if ethernet.match_mac.is_none() => line(format_args!("Name={}", ethernet.id), &mut text),
        None => {}
    }
    let dhcp = match (ethernet.dhcp4, ethernet.dhcp6) {
        (true, true) => "yes",
        (true, false) => "ipv4",
        (false, true) => "ipv6",
        (false, false) => "no",
    };
    line(format_args!("\n[Network]\nDHCP={dhcp}"), &mut text);
    for address in &ethernet.addresses {
        line(format_args!("Address={address}"), &mut text);
    }
    for server in &ethernet.nameservers {
        line(format_args!("DNS={server}"), &mut text);
    }
    if !ethernet.search.is_empty() {
        line(format_args!("Domains={}", ethernet.search.join(" ")), &mut text);
    }
    for route in &ethernet.routes {
        line(format_args!("\n[Route]\nDestination={}\nGateway={}", route.to, route.via), &mut text);
        if route.on_link {
            line(format_args!("GatewayOnLink=yes"), &mut text);
        }
    }
    text
}

fn ifupdown(network: &Network) -> String {
    let mut text = String::from("auto lo\niface lo inet loopback\n");
    for ethernet in &network.ethernets {
        let name = ethernet.name.as_ref().unwrap_or(&ethernet.id);
        text.push_str(&format!("\nauto {name}\n"));
        for (family, by_dhcp, is_v4) in [("inet", ethernet.dhcp4, true), ("inet6", ethernet.dhcp6, false)] {
            if by_dhcp {
                text.push_str(&format!("iface {name} {family} dhcp\n"));
            }
            // A route belongs to one stanza only, else the second `ip route add` fails the interface.
            let mut routes: Vec<&Route> =
                ethernet.routes.iter().filter(|r| r.via.is_ipv4() == is_v4).collect();
            for address in ethernet.addresses.iter().filter(|a| a.address.is_ipv4() == is_v4) {
                text.push_str(&format!("iface {name} {family} static\n\taddress {address}\n"));
                for route in routes.drain(..) {
                    text.push_str(&ifupdown_route(route, is_v4));
                }
            }
            if by_dhcp {
                for route in routes {
                    text.push_str(&ifupdown_route(route, is_v4));
                }
            }
        }
    }
    text
}

fn ifupdown_route(route: &Route, is_v4: bool) -> String {
    let family = if is_v4 { "-4" } else { "-6" };
    let on_link = if route.on_link { " onlink" } else { "" };
    if route.to.is_default() && !route.on_link {
        return format!("\tgateway {}\n", route.via);
    }
    format!("\tup ip {family} route add {} via {} dev $IFACE{on_link}\n", route.to, route.via)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ethernet() -> Ethernet {
        Ethernet {
            id: "eth0".into(),
            addresses: vec!["192.0.2.7/24".parse().unwrap(), "2001:db8::7/64".parse().unwrap()],
            routes: vec![
                Route { to: "0.0.0.0/0".parse().unwrap(), via: "192.0.2.1".parse().unwrap(), on_link: false },
                Route { to: "10.0.0.0/8".parse().unwrap(), via: "192.0.2.2".parse().unwrap(), on_link: true },
            ],
            nameservers: vec!["192.0.2.53".parse().unwrap()],
            search: vec!["example.org".into()],
            ..Ethernet::default()
        }
    }

    #[test]
    fn a_fixed_address_for_networkd() {
        let text = networkd(&Ethernet { match_mac: Some([0x52, 0x54, 0, 0xab, 0xcd, 1]), ..ethernet() });
        assert_eq!(
            text,
            "[Match]\nMACAddress=52:54:00:ab:cd:01\n\n[Network]\nDHCP=no\nAddress=192.0.2.7/24\n\
             Address=2001:db8::7/64\nDNS=192.0.2.53\nDomains=example.org\n\n[Route]\nDestination=0.0.0.0/0\n\
             Gateway=192.0.2.1\n\n[Route]\nDestination=10.0.0.0/8\nGateway=192.0.2.2\nGatewayOnLink=yes\n"
        );
        let dhcp = networkd(&Ethernet { id: "ens3".into(), dhcp4: true, ..Ethernet::default() });
        assert_eq!(dhcp, "[Match]\nName=ens3\n\n[Network]\nDHCP=ipv4\n");
    }

    #[test]
    fn a_fixed_address_for_ifupdown() {
        assert_eq!(
            ifupdown(&Network { ethernets: vec![ethernet()] }),
            "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet static\n\taddress 192.0.2.7/24\n\
             \tgateway 192.0.2.1\n\tup ip -4 route add 10.0.0.0/8 via 192.0.2.2 dev $IFACE onlink\n\
             iface eth0 inet6 static\n\taddress 2001:db8::7/64\n"
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in ["192.0.2.7", "192.0.2.7/33", "::/129", "x/8", "192.0.2.7/"] {
            assert_eq!(bad.parse::<IpPrefix>().unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
        let route = Route { to: "::/0".parse().unwrap(), via: "192.0.2.1".parse().unwrap(), on_link: false };
        for bad in [
            Ethernet { id: "../x".into(), ..Ethernet::default() },
            Ethernet { name: Some("a b".into()), ..ethernet() },
            Ethernet { search: vec!["a\nnameserver 6.6.6.6".into()], ..ethernet() },
            Ethernet { routes: vec![route], ..ethernet() },
        ] {
            let network = Network { ethernets: vec![bad] };
            assert_eq!(validate(&network).unwrap_err().kind(), ErrorKind::Invalid, "{network:?}");
        }
        assert!(validate(&Network { ethernets: vec![ethernet(), ethernet()] }).is_err());
    }
}
