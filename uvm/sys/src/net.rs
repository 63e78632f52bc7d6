//! Interfaces, addresses and routes, by rtnetlink.
//!
//! rtnetlink is asynchronous; each call here runs it to its end on a thread and a runtime of its own, so
//! that callers need not know, and may themselves run inside a runtime.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::{Error, ErrorKind, Result};

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network.
    pub prefix: u8,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's number for it.
    pub index: u32,
    /// The kernel's name for it: `eth0`.
    pub name: String,
    /// Ethernet address; `None` for what has none.
    pub mac: Option<[u8; 6]>,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Whether it was set up.
    pub up: bool,
    /// Whether the cable is in.
    pub carrier: bool,
    /// Its addresses.
    pub addresses: Vec<Address>,
}

type NetlinkResult<T> = std::result::Result<T, rtnetlink::Error>;

/// Every interface there is now, by index.
pub fn interfaces() -> Result<Vec<Interface>> {
    run("listing the network interfaces", async |handle| {
        let mut found = Vec::new();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await? {
            found.push(interface(&link));
        }
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            let Some(interface) = found.iter_mut().find(|i| i.index == message.header.index) else {
                continue;
            };
            // On a point-to-point link `Address` is the other end's and `Local` is ours.
            let local = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            if let Some(address) = local.or(any) {
                interface.addresses.push(Address { address, prefix: message.header.prefix_len });
            }
        }
        found.sort_by_key(|i| i.index);
        Ok(found)
    })
}

fn interface(link: &LinkMessage) -> Interface {
    let flags = link.header.flags;
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        mac: None,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Address(mac) if !interface.loopback => {
                interface.mac = mac.as_slice().try_into().ok()
            }
            _ => {}
        }
    }
    interface
}

/// Sets the interface up.
pub fn set_up(index: u32) -> Result<()> {
    run(&format!("setting interface {index} up"), async |handle| {
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    })
}

/// Sets the loopback up: without it nothing on this machine reaches 127.0.0.1.
pub fn set_loopback_up() -> Result<()> {
    match interfaces()?.into_iter().find(|i| i.loopback) {
        Some(loopback) => set_up(loopback.index),
        None => Err(Error::new(ErrorKind::NotFound, "setting the loopback up", "there is none")),
    }
}

/// Gives the interface an address. One it has already is no error.
pub fn add_address(index: u32, address: IpAddr, prefix: u8) -> Result<()> {
    run(&format!("adding {address}/{prefix} to interface {index}"), async |handle| {
        handle.address().add(index, address, prefix).replace().execute().await
    })
}

/// Takes every address from the interface but the IPv6 link-local ones, which the kernel made.
pub fn flush_addresses(index: u32) -> Result<()> {
    run(&format!("removing the addresses of interface {index}"), async |handle| {
        let mut addresses = handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = addresses.try_next().await? {
            let link_local = message
                .attributes
                .iter()
                .any(|a| matches!(a, AddressAttribute::Address(IpAddr::V6(a)) if a.is_unicast_link_local()));
            if message.header.index == index && !link_local {
                handle.address().del(message).execute().await?;
            }
        }
        Ok(())
    })
}

/// Sends what is for elsewhere to `gateway` through the interface, in place of an earlier default route.
pub fn add_default_route(gateway: IpAddr, index: u32) -> Result<()> {
    run(&format!("adding the default route by {gateway} on interface {index}"), async |handle| {
        // A provider's gateway may lie outside the address's own prefix, hence on-link.
        let message = match gateway {
            IpAddr::V4(gateway) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(index)
                .onlink()
                .build(),
            IpAddr::V6(gateway) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway(gateway)
                .output_interface(index)
                .onlink()
                .build(),
        };
        handle.route().add(message).replace().execute().await
    })
}

/// Runs `body` with a connection to the kernel. The thread keeps the caller's network namespace.
fn run<T: Send>(context: &str, body: impl AsyncFnOnce(Handle) -> NetlinkResult<T> + Send) -> Result<T> {
    let failed = |e: std::io::Error| Error::io(context, e);
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
            tokio::spawn(connection);
            body(handle).await.map_err(|e| refused(context, e))
        })
    };
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("netlink".into()).spawn_scoped(scope, work).map_err(failed)?;
        thread
            .join()
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, context, "the netlink library panicked")))
    })
}

fn refused(context: &str, error: rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => Error::io(context, message.to_io()),
        other => Error::new(ErrorKind::Io, context, other.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// Runs `body` in a network of its own with two interfaces, `near` and `far`, joined by a cable; not
    /// where the machine forbids it (no root).
    pub(crate) fn in_own_network(body: impl FnOnce(&Interface, &Interface) + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: only this thread's network changes; sockets opened before keep theirs.
                let unshared =
                    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
                if unshared == Err(rustix::io::Errno::PERM) {
                    return;
                }
                run("joining near and far", async |handle| {
                    handle.link().add(rtnetlink::LinkVeth::new("near", "far").build()).execute().await
                })
                .unwrap();
                let find = |name: &str| interfaces().unwrap().into_iter().find(|i| i.name == name).unwrap();
                body(&find("near"), &find("far"));
            });
        });
    }

    #[test]
    fn an_interface_is_configured_and_cleared() {
        in_own_network(|near, far| {
            assert!(!near.up && !near.carrier && near.mac.is_some() && near.addresses.is_empty());
            set_loopback_up().unwrap();
            set_up(near.index).unwrap();
            set_up(far.index).unwrap();
            let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
            for _ in 0..2 {
                add_address(near.index, address, 24).unwrap();
                add_default_route(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), near.index).unwrap();
                add_default_route(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), near.index).unwrap();
            }
            let all = interfaces().unwrap();
            let near = all.iter().find(|i| i.name == "near").unwrap();
            assert!(near.up && near.carrier && !near.loopback);
            assert!(near.addresses.contains(&Address { address, prefix: 24 }), "{near:?}");
            let loopback = all.iter().find(|i| i.loopback).unwrap();
            assert!(loopback.up && loopback.mac.is_none());

            flush_addresses(near.index).unwrap();
            let all = interfaces().unwrap();
            let near = all.iter().find(|i| i.name == "near").unwrap();
            assert!(near.addresses.iter().all(|a| a.address.is_ipv6()), "{near:?}");
            assert!(all.iter().any(|i| i.loopback && !i.addresses.is_empty()), "others keep theirs");
        });
    }

    #[test]
    fn an_interface_that_is_not_there_is_said_so() {
        in_own_network(|_, _| {
            assert_eq!(set_up(0x7fff_fff0).unwrap_err().kind(), ErrorKind::NotFound);
        });
    }
}
