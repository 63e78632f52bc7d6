use super::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::IpAddr;

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const DEADLINE: Duration = Duration::from_millis(800);
const WAIT: Duration = Duration::from_millis(20);

/// A server in the place of the socket: answers each request with whatever `answer` says.
struct FakeServer<F> {
    answer: F,
    sent: RefCell<Vec<(MessageType, Ipv4Addr)>>,
    waiting: RefCell<VecDeque<Vec<u8>>>,
}

impl<F: Fn(&Message, usize) -> Vec<Vec<u8>>> FakeServer<F> {
    fn new(answer: F) -> Self {
        Self { answer, sent: RefCell::default(), waiting: RefCell::default() }
    }

    fn kinds(&self) -> Vec<MessageType> {
        self.sent.borrow().iter().map(|(kind, _)| *kind).collect()
    }
}

impl<F: Fn(&Message, usize) -> Vec<Vec<u8>>> Datagrams for FakeServer<F> {
    fn send(&self, datagram: &[u8], to: Ipv4Addr) -> io::Result<()> {
        assert!(datagram.len() >= DATAGRAM_MIN);
        let message = Message::decode(&mut Decoder::new(datagram)).unwrap();
        let mut sent = self.sent.borrow_mut();
        sent.push((message.opts().msg_type().unwrap(), to));
        self.waiting.borrow_mut().extend((self.answer)(&message, sent.len()));
        Ok(())
    }

    fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        match self.waiting.borrow_mut().pop_front() {
            Some(datagram) => {
                buf[..datagram.len()].copy_from_slice(&datagram);
                Ok(Some(datagram.len()))
            }
            None => {
                std::thread::sleep(timeout);
                Ok(None)
            }
        }
    }
}

fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn reply_to(request: &Message, kind: MessageType) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut reply = Message::new_with_id(request.xid(), none, ADDRESS, none, none, request.chaddr());
    reply.set_opcode(Opcode::BootReply);
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(SERVER));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 254, 0)));
    options.insert(DhcpOption::Router(vec![SERVER]));
    options.insert(DhcpOption::DomainNameServer(vec![Ipv4Addr::new(192, 0, 2, 3); 20]));
    options.insert(DhcpOption::AddressLeaseTime(3600));
    options.insert(DhcpOption::Hostname("node-7".into()));
    reply
}

/// What a well-behaved server says.
fn serve(request: &Message) -> Message {
    match request.opts().msg_type().unwrap() {
        MessageType::Discover => reply_to(request, MessageType::Offer),
        _ => reply_to(request, MessageType::Ack),
    }
}

fn acquire_from<F: Fn(&Message, usize) -> Vec<Vec<u8>>>(server: &FakeServer<F>) -> Result<Lease> {
    Client::new(server, MAC, DEADLINE, WAIT).acquire()
}

#[test]
fn a_willing_server_is_enough() {
    let server = FakeServer::new(|m: &Message, _| {
        assert!(m.flags().broadcast());
        if m.opts().has_msg_type(MessageType::Request) {
            let requested = m.opts().get(OptionCode::RequestedIpAddress);
            assert_eq!(requested, Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
            assert_eq!(server_id(m), Some(SERVER));
        }
        vec![bytes(&serve(m))]
    });
    let lease = acquire_from(&server).unwrap();
    assert_eq!((lease.address, lease.prefix, lease.server_id), (ADDRESS, 23, SERVER));
    assert_eq!(lease.routers, [SERVER]);
    assert_eq!(lease.dns_servers.len(), SERVERS_MAX);
    assert_eq!((lease.lease_seconds, lease.renew_after), (3600, Some(Duration::from_secs(1800))));
    assert_eq!(lease.hostname.as_deref(), Some("node-7"));
    assert_eq!(server.kinds(), [MessageType::Discover, MessageType::Request]);
}

#[test]
fn lost_packets_are_sent_again() {
    // The first of each kind is lost.
    let server = FakeServer::new(|m: &Message, n| if n % 2 == 1 { vec![] } else { vec![bytes(&serve(m))] });
    acquire_from(&server).unwrap();
    use MessageType::{Discover, Request};
    assert_eq!(server.kinds(), [Discover, Discover, Request, Request]);
}

#[test]
fn what_is_not_for_us_is_ignored() {
    let server = FakeServer::new(|m: &Message, _| {
        let good = serve(m);
        let altered = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            message.set_yiaddr(Ipv4Addr::new(203, 0, 113, 66));
            bytes(&message)
        };
        let mut long_hlen = altered(&|_| ());
        long_hlen[2] = 255;
        vec![
            vec![],
            vec![0xff; DATAGRAM_MAX],
            bytes(&good)[..200].to_vec(),
            long_hlen,
            altered(&|m| {
                m.set_xid(m.xid() ^ 1);
            }),
            altered(&|m| {
                m.set_chaddr(&[1, 2, 3, 4, 5, 6]);
            }),
            altered(&|m| {
                m.set_opcode(Opcode::BootRequest);
            }),
            altered(&|m| drop(m.opts_mut().remove(OptionCode::ServerIdentifier))),
            altered(&|m| drop(m.opts_mut().remove(OptionCode::SubnetMask))),
            altered(&|m| drop(m.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 255, 0))))),
            altered(&|m| drop(m.opts_mut().insert(DhcpOption::AddressLeaseTime(0)))),
            altered(&|m| drop(m.opts_mut().insert(DhcpOption::MessageType(MessageType::Inform)))),
            bytes(&good),
        ]
    });
    assert_eq!(acquire_from(&server).unwrap().address, ADDRESS);
    assert_eq!(server.kinds().len(), 2, "the good reply was found among the others");
}

#[test]
fn an_ack_of_another_server_is_not_ours() {
    let server = FakeServer::new(|m: &Message, _| {
        let mut reply = serve(m);
        if reply.opts().has_msg_type(MessageType::Ack) {
            reply.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::new(192, 0, 2, 99)));
        }
        vec![bytes(&reply)]
    });
    assert_eq!(acquire_from(&server).unwrap_err().kind(), ErrorKind::TimedOut);
    let requests = server.kinds().iter().take(5).filter(|k| **k == MessageType::Request).count();
    assert_eq!(requests, REQUESTS_MAX as usize, "then it starts over: {:?}", server.kinds());
}

#[test]
fn a_refusal_starts_over() {
    let server = FakeServer::new(|m: &Message, n| match n {
        2 => vec![bytes(&reply_to(m, MessageType::Nak))],
        _ => vec![bytes(&serve(m))],
    });
    acquire_from(&server).unwrap();
    use MessageType::{Discover, Request};
    assert_eq!(server.kinds(), [Discover, Request, Discover, Request]);
}

#[test]
fn silence_ends_at_the_deadline() {
    let server = FakeServer::new(|_: &Message, _| vec![]);
    let error = acquire_from(&server).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let sent = server.kinds().len();
    assert!((3..20).contains(&sent), "the waits double: {sent} requests");
}

#[test]
fn a_lease_is_renewed_by_its_server_then_by_any() {
    let granted =
        lease(&reply_to(&Message::new_with_id(1, ADDRESS, ADDRESS, SERVER, SERVER, &MAC), MessageType::Ack));
    let granted = granted.unwrap();
    let renew = |server: &dyn Fn(&Message, usize) -> Vec<Vec<u8>>| {
        let server = FakeServer::new(server);
        let result = Client::new(&server, MAC, DEADLINE, WAIT).renew(&granted);
        (result, server.sent.into_inner())
    };
    let (renewed, sent) = renew(&|m, _| {
        assert_eq!(m.ciaddr(), ADDRESS);
        assert!(!m.flags().broadcast() && server_id(m).is_none());
        vec![bytes(&serve(m))]
    });
    assert_eq!(renewed.unwrap(), granted);
    assert_eq!(sent, [(MessageType::Request, SERVER)]);

    let (refused, _) = renew(&|m, _| vec![bytes(&reply_to(m, MessageType::Nak))]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Refused);

    let (silent, sent) = renew(&|_, _| vec![]);
    assert_eq!(silent.unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(sent.first().unwrap().1, SERVER);
    assert_eq!(sent.last().unwrap().1, Ipv4Addr::BROADCAST);
}

#[test]
fn a_lease_for_ever_is_never_renewed() {
    let mut ack =
        reply_to(&Message::new_with_id(1, ADDRESS, ADDRESS, SERVER, SERVER, &MAC), MessageType::Ack);
    ack.opts_mut().insert(DhcpOption::AddressLeaseTime(u32::MAX));
    assert_eq!(lease(&ack).unwrap().renew_after, None);
    ack.opts_mut().insert(DhcpOption::Hostname("a;reboot".into()));
    assert_eq!(lease(&ack).unwrap().hostname, None);
}

/// The real socket, in a network of its own: `near` has no address, and both ways are broadcasts.
#[test]
fn the_socket_speaks_without_an_address() {
    crate::net::tests::in_own_network(|near, far| {
        for interface in [near, far] {
            // Both ends live in one network, so each hears an address that is its own.
            for (setting, value) in [("accept_local", "1"), ("rp_filter", "0")] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{}/{setting}", interface.name), value)
                    .unwrap();
            }
            crate::set_up(interface.index).unwrap();
        }
        crate::add_address(far.index, IpAddr::V4(SERVER), 23).unwrap();
        let server = Socket::bound("far", SERVER_PORT).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let requests = std::thread::spawn(move || {
            let mut buf = [0; DATAGRAM_MAX];
            let mut kinds = Vec::new();
            while kinds.last() != Some(&MessageType::Request) {
                let (len, from) = server.recv_from(&mut buf).unwrap();
                assert_eq!(from.port(), CLIENT_PORT);
                let request = Message::decode(&mut Decoder::new(&buf[..len])).unwrap();
                kinds.push(request.opts().msg_type().unwrap());
                server.send_to(&bytes(&serve(&request)), (Ipv4Addr::BROADCAST, CLIENT_PORT)).unwrap();
            }
            kinds
        });
        let lease = acquire("near", near.mac.unwrap(), Duration::from_secs(10)).unwrap();
        assert_eq!((lease.address, lease.prefix), (ADDRESS, 23));
        assert!(requests.join().unwrap().contains(&MessageType::Discover));
        assert_eq!(acquire("nowhere", MAC, WAIT).unwrap_err().kind(), ErrorKind::NotFound);
    });
}
