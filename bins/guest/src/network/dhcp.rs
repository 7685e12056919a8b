//! Asking a DHCP server for an address (RFC 2131), when the host gives an adapter none.
//!
//! ```text
//!   DISCOVER ─► OFFER ─► REQUEST ─► ACK: the lease       (nothing for a second: again, then for two, ...)
//!                            └────► NAK: from the beginning
//! ```
//!
//! A lease is good for a while; [tenure](super::tenure) knows when it is to be [renewed](renew). hcsshim's
//! guest asks once and then uses the address for ever.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use ipnet::Ipv4Net;
use nix::sys::socket::{setsockopt, sockopt};
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use super::tenure::Terms;

/// Where servers listen.
const SERVER: u16 = 67;
const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::UNSPECIFIED, 68);
/// Subnet mask, router, name servers.
const WANTED: &[u8] = &[1, 3, 6];
/// The largest answer we take.
const LARGEST: usize = 1500;

/// What a server leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address and its network.
    pub address: Ipv4Net,
    /// The default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub servers: Vec<Ipv4Addr>,
    /// Who leased it, to be asked to go on.
    pub server: Option<Ipv4Addr>,
    /// How long it is good; none: for ever.
    pub terms: Option<Terms>,
}

/// What comes of asking for more of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It begins anew.
    Renewed(Lease),
    /// The address is another's, or will be.
    Refused,
    /// Nobody said anything.
    Silence,
}

/// Asks on the interface `name`, which is up, in this thread's namespace. Blocks.
///
/// # Errors
/// Nobody leases anything within `limit`; there is no such interface.
pub fn ask(name: &str, mac: [u8; 6], limit: Duration) -> io::Result<Lease> {
    let mut conversation = Conversation::begin(name, mac)?;
    let end = Instant::now() + limit;
    let mut patience = Duration::from_secs(1);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("no DHCP server leased an address within {} s", limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        conversation.transaction = conversation.transaction.wrapping_add(1);
        if let Some(lease) = conversation.once(patience.min(left))? {
            return Ok(lease);
        }
        patience *= 2;
    }
}

/// Asks once for more of a lease: its server, or whoever hears it. The interface has the address. Blocks.
///
/// # Errors
/// There is no such interface, or no way out.
pub fn renew(
    name: &str,
    mac: [u8; 6],
    lease: &Lease,
    anyone: bool,
    patience: Duration,
) -> io::Result<Answer> {
    let conversation = Conversation::begin(name, mac)?;
    let mut message = conversation.message(DhcpMessageType::Request, None);
    (message.client_ip, message.broadcast) = (lease.address.addr(), false);
    let server = lease.server.filter(|_| !anyone).unwrap_or(Ipv4Addr::BROADCAST);
    conversation.send(message, server)?;
    Ok(match conversation.receive(patience, leased)? {
        Some(Some(lease)) => Answer::Renewed(lease),
        Some(None) => Answer::Refused,
        None => Answer::Silence,
    })
}

struct Conversation {
    socket: UdpSocket,
    mac: [u8; 6],
    transaction: u32,
}

impl Conversation {
    fn begin(name: &str, mac: [u8; 6]) -> io::Result<Self> {
        let socket = UdpSocket::bind(CLIENT)?;
        setsockopt(&socket, sockopt::BindToDevice, &name.to_owned().into())?;
        socket.set_broadcast(true)?;
        // So that a late answer to another conversation is not taken for one to this.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Self { socket, mac, transaction: now.map_or(0, |now| now.subsec_nanos()) })
    }

    /// One round; none if nobody answered, or no.
    fn once(&self, patience: Duration) -> io::Result<Option<Lease>> {
        self.send(self.message(DhcpMessageType::Discover, None), Ipv4Addr::BROADCAST)?;
        let Some(offer) = self.receive(patience, offered)? else { return Ok(None) };
        self.send(self.message(DhcpMessageType::Request, Some(offer)), Ipv4Addr::BROADCAST)?;
        Ok(self.receive(patience, leased)?.flatten())
    }

    fn message(
        &self,
        message_type: DhcpMessageType,
        offer: Option<(Ipv4Addr, Ipv4Addr)>,
    ) -> DhcpRepr<'static> {
        let mac = EthernetAddress(self.mac);
        let nobody = Ipv4Addr::UNSPECIFIED;
        DhcpRepr {
            message_type,
            transaction_id: self.transaction,
            secs: 0,
            client_hardware_address: mac,
            client_ip: nobody,
            your_ip: nobody,
            server_ip: nobody,
            router: None,
            subnet_mask: None,
            relay_agent_ip: nobody,
            // An interface without an address hears nothing else.
            broadcast: true,
            requested_ip: offer.map(|(address, _)| address),
            client_identifier: Some(mac),
            server_identifier: offer.map(|(_, server)| server),
            parameter_request_list: Some(WANTED),
            dns_servers: None,
            max_size: Some(1500),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        }
    }

    fn send(&self, message: DhcpRepr<'_>, to: Ipv4Addr) -> io::Result<()> {
        let mut bytes = vec![0; message.buffer_len()];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        message.emit(&mut packet).map_err(|_| io::Error::other("a DHCP message does not fit"))?;
        self.socket.send_to(&bytes, (to, SERVER)).map(drop)
    }

    /// The first answer to this round that `read` makes sense of.
    fn receive<T>(
        &self,
        patience: Duration,
        read: impl Fn(&DhcpRepr<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let end = Instant::now() + patience;
        let mut buffer = [0; LARGEST];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            };
            let Ok(packet) = DhcpPacket::new_checked(&buffer[..length]) else { continue };
            let Ok(answer) = DhcpRepr::parse(&packet) else { continue };
            let is_ours = answer.transaction_id == self.transaction
                && answer.client_hardware_address.0 == self.mac;
            if let Some(done) = Some(&answer).filter(|_| is_ours).and_then(&read) {
                return Ok(Some(done));
            }
        }
    }
}

/// The address and the server of an offer.
fn offered(answer: &DhcpRepr<'_>) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let is_offer = answer.message_type == DhcpMessageType::Offer;
    is_offer.then_some((answer.your_ip, answer.server_identifier?))
}

/// The lease of an acknowledgement; of a refusal, that there is none.
fn leased(answer: &DhcpRepr<'_>) -> Option<Option<Lease>> {
    match answer.message_type {
        DhcpMessageType::Nak => Some(None),
        DhcpMessageType::Ack => {
            let mask = answer.subnet_mask.unwrap_or(Ipv4Addr::BROADCAST);
            let address = Ipv4Net::with_netmask(answer.your_ip, mask).ok()?;
            let servers = answer.dns_servers.as_ref().map(|all| all.to_vec()).unwrap_or_default();
            let (server, gateway) = (answer.server_identifier, answer.router);
            let terms =
                Terms::of(answer.lease_duration, answer.renew_duration, answer.rebind_duration);
            Some(Some(Lease { address, gateway, servers, server, terms }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Conversation {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Conversation { socket, mac: [2, 0, 0, 0, 0, 1], transaction: 7 }
    }

    #[test]
    fn an_offer_an_acknowledgement_and_a_refusal_are_told_apart() {
        let mut answer = conversation().message(DhcpMessageType::Offer, None);
        answer.your_ip = Ipv4Addr::new(10, 0, 0, 9);
        assert_eq!(offered(&answer), None, "an offer without a server is none");
        answer.server_identifier = Some(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(offered(&answer), Some((answer.your_ip, Ipv4Addr::new(10, 0, 0, 1))));
        assert_eq!(leased(&answer), None);
        answer.message_type = DhcpMessageType::Ack;
        answer.subnet_mask = Some(Ipv4Addr::new(255, 255, 255, 0));
        answer.router = Some(Ipv4Addr::new(10, 0, 0, 1));
        let lease = leased(&answer).flatten().unwrap();
        assert_eq!(
            (lease.address.to_string().as_str(), lease.gateway),
            ("10.0.0.9/24", answer.router)
        );
        answer.subnet_mask = Some(Ipv4Addr::new(255, 0, 255, 0));
        assert_eq!(leased(&answer), None, "a mask with holes is none");
        answer.message_type = DhcpMessageType::Nak;
        assert_eq!(leased(&answer), Some(None));
    }

    #[test]
    fn what_is_sent_can_be_read() {
        let message = conversation().message(
            DhcpMessageType::Request,
            Some((Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 1))),
        );
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
        let packet = DhcpPacket::new_checked(&bytes[..]).unwrap();
        let read = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(read.requested_ip, Some(Ipv4Addr::new(10, 0, 0, 9)));
        assert!(read.broadcast && read.transaction_id == 7);
    }
}
