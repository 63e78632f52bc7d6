//! A DHCPv4 client (RFC 2131): DISCOVER, OFFER, REQUEST, ACK, and renewal.
//!
//! ```text
//! selecting --offer--> requesting --ack--> bound --renew--> bound
//!     ^                    |                  (unicast, then broadcast)
//!     +------ nak ---------+
//! ```
//!
//! What arrives is anybody's: replies with another transaction, hardware address or server are ignored.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::{Error, ErrorKind, Result};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// The wait after the first request; it doubles with each. RFC 2131 says 4 s, from a time of slower
/// networks; a virtual network's first packet is lost when its port comes up late.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(16);
/// An offer is not waited for longer than this many requests; then somebody else's may be taken.
const REQUESTS_MAX: u32 = 3;
const DATAGRAM_MAX: usize = 1500;
/// BOOTP's datagrams had this length, and there are relays that drop shorter ones.
const DATAGRAM_MIN: usize = 300;
/// Routers and name servers kept of each.
const SERVERS_MAX: usize = 8;
const MAC_LEN: u8 = 6;

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Bits of its network.
    pub prefix: u8,
    /// Routers, the preferred one first.
    pub routers: Vec<Ipv4Addr>,
    /// Name servers, the preferred one first.
    pub dns_servers: Vec<Ipv4Addr>,
    /// The server that granted it.
    pub server_id: Ipv4Addr,
    /// How long it lasts; `u32::MAX` is for ever.
    pub lease_seconds: u32,
    /// When to renew it, counted from its grant; `None` where it lasts for ever.
    pub renew_after: Option<Duration>,
    /// The host name the server has for us.
    pub hostname: Option<String>,
}

/// Asks for an address on `interface`, which is up. The first request is sent at once.
pub fn acquire(interface: &str, mac: [u8; 6], deadline: Duration) -> Result<Lease> {
    let socket = Socket::open(interface)?;
    Client::new(&socket, mac, deadline, FIRST_WAIT).acquire()
}

/// Asks for more time on a lease whose address the interface has: the server that granted it, and any
/// server where half the deadline passed. [`ErrorKind::Refused`] means that the address must go.
pub fn renew(interface: &str, mac: [u8; 6], lease: &Lease, deadline: Duration) -> Result<Lease> {
    let socket = Socket::open(interface)?;
    Client::new(&socket, mac, deadline, FIRST_WAIT).renew(lease)
}

/// Where datagrams go and come from; a socket, and in tests a server.
trait Datagrams {
    fn send(&self, datagram: &[u8], to: Ipv4Addr) -> io::Result<()>;
    /// The length of what came within `timeout`.
    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<usize>>;
}

struct Socket(UdpSocket);

impl Socket {
    fn open(interface: &str) -> Result<Self> {
        Self::bound(interface, CLIENT_PORT)
            .map(Self)
            .map_err(|e| Error::io(format!("opening the DHCP port on {interface}"), e))
    }

    fn bound(interface: &str, port: u16) -> io::Result<UdpSocket> {
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_broadcast(&socket, true)?;
        // SAFETY: the option's value is `interface.len()` bytes that outlive the call; the kernel reads
        // no more than that many and keeps none of them.
        let bound = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                interface.as_ptr().cast(),
                interface.len() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        Ok(UdpSocket::from(socket))
    }
}

impl Datagrams for Socket {
    fn send(&self, datagram: &[u8], to: Ipv4Addr) -> io::Result<()> {
        self.0.send_to(datagram, (to, SERVER_PORT)).map(drop)
    }

    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        // Zero would mean for ever.
        self.0.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        match self.0.recv(buf) {
            Ok(len) => Ok(Some(len)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// A reply that is for us.
enum Reply {
    Offer(Lease),
    Ack(Lease),
    Nak(Ipv4Addr),
}

struct Client<'a, D> {
    datagrams: &'a D,
    mac: [u8; 6],
    xid: u32,
    started: Instant,
    deadline: Duration,
    first_wait: Duration,
}

impl<'a, D: Datagrams> Client<'a, D> {
    fn new(datagrams: &'a D, mac: [u8; 6], deadline: Duration, first_wait: Duration) -> Self {
        Self { datagrams, mac, xid: rand::random(), started: Instant::now(), deadline, first_wait }
    }

    fn acquire(&mut self) -> Result<Lease> {
        const DOING: &str = "asking for an address by DHCP";
        loop {
            self.xid = rand::random();
            let discover = self.message(MessageType::Discover, Ipv4Addr::UNSPECIFIED);
            let offered =
                self.exchange(&discover, Ipv4Addr::BROADCAST, u32::MAX, self.deadline, DOING, |reply| {
                    match reply {
                        Reply::Offer(lease) => Some(lease),
                        Reply::Ack(_) | Reply::Nak(_) => None,
                    }
                })?;
            let Some(offer) = offered else { return Err(self.no_answer(DOING)) };

            let mut request = self.message(MessageType::Request, Ipv4Addr::UNSPECIFIED);
            request.opts_mut().insert(DhcpOption::RequestedIpAddress(offer.address));
            request.opts_mut().insert(DhcpOption::ServerIdentifier(offer.server_id));
            let to = Ipv4Addr::BROADCAST;
            let granted =
                self.exchange(&request, to, REQUESTS_MAX, self.deadline, DOING, |reply| match reply {
                    Reply::Ack(lease) if lease.server_id == offer.server_id => Some(Some(lease)),
                    Reply::Nak(server) if server == offer.server_id => Some(None),
                    _ => None,
                })?;
            match granted {
                Some(Some(lease)) => return Ok(lease),
                // Refused: pause, so that a server that always refuses is not flooded.
                Some(None) => std::thread::sleep(self.first_wait.min(self.left(self.deadline))),
                // The server that offered went silent: any other will do.
                None => {}
            }
            if self.left(self.deadline).is_zero() {
                return Err(self.no_answer(DOING));
            }
        }
    }

    fn renew(&mut self, lease: &Lease) -> Result<Lease> {
        const DOING: &str = "renewing a DHCP lease";
        let request = self.message(MessageType::Request, lease.address);
        for (to, until) in [(lease.server_id, self.deadline / 2), (Ipv4Addr::BROADCAST, self.deadline)] {
            let answer = self.exchange(&request, to, u32::MAX, until, DOING, |reply| match reply {
                Reply::Ack(lease) => Some(Some(lease)),
                Reply::Nak(_) => Some(None),
                Reply::Offer(_) => None,
            })?;
            match answer {
                Some(Some(renewed)) if renewed.address == lease.address => return Ok(renewed),
                Some(_) => {
                    return Err(Error::new(ErrorKind::Refused, DOING, "the server wants the address back"));
                }
                None => {}
            }
        }
        Err(self.no_answer(DOING))
    }

    /// Sends `message`, again after ever longer waits, until `accept` takes a reply. `None` where that did
    /// not happen before `until` (counted from the start) or within `sends_max` requests.
    fn exchange<T>(
        &self,
        message: &Message,
        to: Ipv4Addr,
        sends_max: u32,
        until: Duration,
        doing: &str,
        accept: impl Fn(Reply) -> Option<T>,
    ) -> Result<Option<T>> {
        let failed = |e: io::Error| Error::io(doing, e);
        let mut wait = self.first_wait;
        let mut datagram = [0; DATAGRAM_MAX];
        for _ in 0..sends_max {
            if self.left(until).is_zero() {
                break;
            }
            match self.datagrams.send(&self.encode(message, doing)?, to) {
                Ok(()) => {}
                // The link or the route is not there yet; it may be at the next attempt.
                Err(e) if is_passing(&e) => {}
                Err(e) => return Err(failed(e)),
            }
            // A quarter more or less, so that a rack of machines does not ask in step.
            let jittered = wait.mul_f64(rand::random_range(0.75..1.25));
            let resend = Instant::now() + jittered.min(self.left(until));
            loop {
                let left = resend.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                match self.datagrams.receive(&mut datagram, left) {
                    Ok(Some(len)) => {
                        let reply = datagram.get(..len).and_then(|datagram| self.decode(datagram));
                        if let Some(taken) = reply.and_then(&accept) {
                            return Ok(Some(taken));
                        }
                    }
                    Ok(None) => {}
                    Err(e) if is_passing(&e) => std::thread::sleep(left.min(Duration::from_millis(50))),
                    Err(e) => return Err(failed(e)),
                }
            }
            wait = (wait * 2).min(WAIT_MAX);
        }
        Ok(None)
    }

    fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.started.elapsed())
    }

    fn no_answer(&self, doing: &str) -> Error {
        Error::new(ErrorKind::TimedOut, doing, format!("no server answered within {:?}", self.deadline))
    }

    fn message(&self, kind: MessageType, ciaddr: Ipv4Addr) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, ciaddr, none, none, none, &self.mac);
        if ciaddr == none {
            // Without an address of ours only a broadcast reaches us.
            message.set_flags(Flags::default().set_broadcast());
        }
        let wanted = vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::Hostname,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
        ];
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ParameterRequestList(wanted));
        options.insert(DhcpOption::MaxMessageSize(DATAGRAM_MAX as u16));
        message
    }

    fn encode(&self, message: &Message, doing: &str) -> Result<Vec<u8>> {
        let mut message = message.clone();
        message.set_secs(u16::try_from(self.started.elapsed().as_secs()).unwrap_or(u16::MAX));
        let mut datagram = Vec::with_capacity(DATAGRAM_MIN);
        message
            .encode(&mut Encoder::new(&mut datagram))
            .map_err(|e| Error::new(ErrorKind::Invalid, doing, e.to_string()))?;
        datagram.resize(datagram.len().max(DATAGRAM_MIN), 0);
        Ok(datagram)
    }

    /// `None` for what is not a whole reply to our transaction.
    fn decode(&self, datagram: &[u8]) -> Option<Reply> {
        let message = Message::decode(&mut Decoder::new(datagram)).ok()?;
        // The length first: the codec slices the hardware address by what the datagram says.
        if message.opcode() != Opcode::BootReply
            || message.xid() != self.xid
            || message.hlen() != MAC_LEN
            || message.chaddr() != self.mac
        {
            return None;
        }
        match message.opts().msg_type()? {
            MessageType::Offer => lease(&message).map(Reply::Offer),
            MessageType::Ack => lease(&message).map(Reply::Ack),
            MessageType::Nak => server_id(&message).map(Reply::Nak),
            _ => None,
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(error.kind(), NetworkDown | NetworkUnreachable | HostUnreachable)
}

fn server_id(message: &Message) -> Option<Ipv4Addr> {
    match message.opts().get(OptionCode::ServerIdentifier)? {
        DhcpOption::ServerIdentifier(server) => Some(*server),
        _ => None,
    }
}

/// `None` where an address, its mask, its time or its server is missing or makes no sense.
fn lease(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let address = message.yiaddr();
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback() {
        return None;
    }
    let Some(DhcpOption::SubnetMask(mask)) = options.get(OptionCode::SubnetMask) else { return None };
    let Some(DhcpOption::AddressLeaseTime(lease_seconds)) = options.get(OptionCode::AddressLeaseTime) else {
        return None;
    };
    let mask = u32::from(*mask);
    // The ones lead, or it is no mask.
    if mask.count_ones() != mask.leading_ones() || mask == 0 || *lease_seconds == 0 {
        return None;
    }
    let servers = |code| match options.get(code) {
        Some(DhcpOption::Router(list) | DhcpOption::DomainNameServer(list)) => {
            list.iter().copied().filter(|a| !a.is_unspecified()).take(SERVERS_MAX).collect()
        }
        _ => Vec::new(),
    };
    let renew_seconds = match options.get(OptionCode::Renewal) {
        Some(DhcpOption::Renewal(t1)) if (1..*lease_seconds).contains(t1) => *t1,
        _ => (*lease_seconds / 2).max(1),
    };
    Some(Lease {
        address,
        prefix: mask.leading_ones() as u8,
        routers: servers(OptionCode::Router),
        dns_servers: servers(OptionCode::DomainNameServer),
        server_id: server_id(message)?,
        lease_seconds: *lease_seconds,
        renew_after: (*lease_seconds != u32::MAX).then(|| Duration::from_secs(renew_seconds.into())),
        hostname: match options.get(OptionCode::Hostname) {
            Some(DhcpOption::Hostname(name)) => host_name(name),
            _ => None,
        },
    })
}

/// A host name as RFC 1123 allows it; anything else is not passed on.
fn host_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches('\0');
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let fits = (1..=253).contains(&name.len()) && name.chars().all(plain);
    (fits && !name.starts_with(['-', '.'])).then(|| name.to_owned())
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
