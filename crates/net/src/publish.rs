//! Published ports: `[IP:]HOST:GUEST[/tcp|/udp]`. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::NetError;

/// What a port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to one of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Published {
    /// The address of the host; none: every one, of both families.
    pub ip: Option<IpAddr>,
    /// The port of the host, from 1.
    pub host: u16,
    /// The port of the sandbox, from 1.
    pub guest: u16,
    /// What it carries.
    pub protocol: Protocol,
}

impl Published {
    /// The addresses to listen on at the host: all that the kernel's own rules cannot redirect, and
    /// all that must not be anybody else's.
    pub fn listens_on(&self) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), self.host)
    }

    /// Whether only programs of this host can reach it.
    pub fn is_loopback(&self) -> bool {
        self.ip.is_some_and(|ip| ip.is_loopback())
    }

    /// Whether both want the same port of the host.
    pub fn conflicts(&self, other: &Published) -> bool {
        let any = |ip: Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
        let same_family = match (self.ip, other.ip) {
            (Some(one), Some(two)) => one.is_ipv4() == two.is_ipv4(),
            (None, _) | (_, None) => true,
        };
        self.protocol == other.protocol
            && self.host == other.host
            && same_family
            && (any(self.ip) || any(other.ip) || self.ip == other.ip)
    }
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            None => {}
        }
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol.name())
    }
}

impl FromStr for Published {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let bad = |why: &str| NetError::Text {
            what: "published port",
            text: text.to_owned(),
            why: why.to_owned(),
        };
        let (ports, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(bad("it carries `tcp` or `udp`")),
        };
        let shape = || bad("write [IP:]HOST:GUEST[/udp], an IPv6 address in brackets");
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(shape)?;
        let (ip, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((ip, host)) => {
                let inner = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
                let parsed: Option<IpAddr> = inner.unwrap_or(ip).parse().ok();
                let fits = parsed.filter(|ip| ip.is_ipv6() == inner.is_some());
                (Some(fits.ok_or_else(|| bad("its address is none"))?), host)
            }
        };
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let range = || bad("a port is a number from 1 to 65535");
        let (host, guest) = (port(host).ok_or_else(range)?, port(guest).ok_or_else(range)?);
        Ok(Self { ip, host, guest, protocol })
    }
}

impl TryFrom<String> for Published {
    type Error = NetError;
    fn try_from(text: String) -> Result<Self, NetError> {
        text.parse()
    }
}

impl From<Published> for String {
    fn from(port: Published) -> Self {
        port.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> Published {
        text.parse().unwrap()
    }

    #[test]
    fn ports_are_read_as_podman_reads_them_and_written_back() {
        for (text, whole) in [
            ("8080:80", "8080:80/tcp"),
            ("127.0.0.1:8080:80", "127.0.0.1:8080:80/tcp"),
            ("[::1]:53:53/udp", "[::1]:53:53/udp"),
            ("0.0.0.0:1:65535/tcp", "0.0.0.0:1:65535/tcp"),
        ] {
            assert_eq!(port(text).to_string(), whole);
            assert_eq!(port(whole), port(text));
        }
    }

    #[test]
    fn what_is_no_port_is_refused_by_name() {
        for bad in
            ["", "80", ":80", "80:", "0:80", "80:0", "65536:1", "a:80", "::1:80:80", "1:2:3:4"]
        {
            let error = bad.parse::<Published>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
        assert!("[1.2.3.4]:1:1".parse::<Published>().is_err());
        assert!("80:80/sctp".parse::<Published>().is_err());
    }

    #[test]
    fn two_want_the_same_port_when_an_address_is_the_same_or_every_one() {
        let every = port("80:1");
        assert!(every.conflicts(&port("80:2")) && every.conflicts(&port("[::1]:80:2")));
        assert!(port("127.0.0.1:80:1").conflicts(&port("0.0.0.0:80:1")));
        assert!(!port("127.0.0.1:80:1").conflicts(&port("127.0.0.2:80:1")));
        assert!(!port("127.0.0.1:80:1").conflicts(&port("[::1]:80:1")));
        assert!(!every.conflicts(&port("80:1/udp")) && !every.conflicts(&port("81:1")));
    }
}
