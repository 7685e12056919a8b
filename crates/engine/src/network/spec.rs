//! What a sandbox asks of a network, and what it has of one. Plain data.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use coracle_net::discover::Device;
use coracle_net::egress::Egress;
use coracle_net::endpoint::Endpoint;
use coracle_net::private::{Join, Joined, NetworkSpec};
use coracle_net::publish::Published;
use coracle_net::rates::Rates;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::user;
use crate::error::Error;

/// Where a network card leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Nowhere: there is none.
    None,
    /// To a private network.
    Private(NetworkSpec),
    /// To a network that QEMU makes up, for who has no right to any other.
    User,
    /// To whatever is in this namespace.
    Namespace(PathBuf),
    /// To whatever the plugins of this CNI network make.
    Cni(String),
}

impl Source {
    /// The name under which it is found again.
    pub(crate) fn network(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Private(spec) => Some(spec.name.clone()),
            Self::User => Some("user".to_owned()),
            Self::Namespace(path) => Some(format!("ns:{}", path.display())),
            Self::Cni(name) => Some(format!("cni:{name}")),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    /// Reads `none`, `user`, `ns:PATH`, `cni:NETWORK`, or a private network with its options.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::BadNetwork { network: text.to_owned(), why: why.to_owned() };
        if text == "none" {
            return Ok(Self::None);
        }
        if text == "user" {
            return Ok(Self::User);
        }
        if text == "host" {
            return Err(bad("a sandbox cannot have the host's own network"));
        }
        if let Some(path) = text.strip_prefix("ns:") {
            let path = std::path::absolute(path).map_err(|_| bad("it names no path"))?;
            return Ok(Self::Namespace(path));
        }
        if let Some(name) = text.strip_prefix("cni:") {
            if name.is_empty() || name.contains('/') {
                return Err(bad("it names no CNI network"));
            }
            return Ok(Self::Cni(name.to_owned()));
        }
        let read = text.parse().map(Self::Private);
        read.map_err(|source| Error::Network {
            what: format!("use network {text:?}"),
            source: Box::new(source),
        })
    }
}

/// A network a sandbox asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttachRequest {
    /// Where it leads.
    pub source: Source,
    /// Ports of the host that are to lead to the sandbox.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub published: Vec<Published>,
    /// What the sandbox may begin to talk to.
    #[serde(default)]
    #[schemars(with = "String")]
    pub egress: Egress,
    /// How fast it may send and receive.
    #[serde(default)]
    pub rates: Rates,
    /// Name servers; none: the network's, or the host's.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Further names on the network.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The hardware address; none: one of ours.
    #[serde(default)]
    pub mac: Option<[u8; 6]>,
}

impl AttachRequest {
    /// A network with nothing special about it.
    pub fn to(source: Source) -> Self {
        Self {
            source,
            published: Vec::new(),
            egress: Egress::All,
            rates: Rates::default(),
            dns: Vec::new(),
            aliases: Vec::new(),
            mac: None,
        }
    }

    /// Refuses by name what cannot work.
    ///
    /// # Errors
    /// What it is.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |why: &str| {
            let network = self.source.network().unwrap_or_else(|| "none".to_owned());
            Err(Error::BadNetwork { network, why: why.to_owned() })
        };
        match &self.source {
            Source::Private(_) => Ok(()),
            Source::None if !self.published.is_empty() => bad("it has no ports to publish"),
            Source::None => Ok(()),
            Source::User
                if !matches!(&self.egress, Egress::All)
                    && self.egress != Egress::Only(Vec::new()) =>
            {
                bad("it knows `--egress all` and `none` only")
            }
            Source::User
                if self.published.iter().any(|port| port.ip.is_some_and(|ip| ip.is_ipv6())) =>
            {
                bad("it publishes at IPv4 addresses only")
            }
            Source::User | Source::Namespace(_) | Source::Cni(_) if !self.rates.is_unlimited() => {
                bad("how fast it may be is not up to us")
            }
            Source::User => Ok(()),
            Source::Namespace(_) | Source::Cni(_) if !self.published.is_empty() => {
                bad("publishing ports is up to who made it")
            }
            Source::Namespace(_) | Source::Cni(_) if self.egress != Egress::All => {
                bad("what may leave it is up to who made it")
            }
            Source::Namespace(_) | Source::Cni(_) if self.mac.is_some() => {
                bad("its devices have hardware addresses already")
            }
            Source::Namespace(_) | Source::Cni(_) => Ok(()),
        }
    }

    pub(super) fn join(&self, sandbox: &str, network: NetworkSpec) -> Join {
        Join {
            sandbox: sandbox.to_owned(),
            network,
            aliases: self.aliases.clone(),
            mac: self.mac,
            published: self.published.clone(),
            egress: self.egress.clone(),
            rates: self.rates,
        }
    }
}

/// A network a sandbox is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attached {
    /// The network's name.
    pub network: String,
    /// The sandbox's addresses on it.
    pub addresses: Vec<IpAddr>,
    /// Its hardware address.
    pub mac: String,
    /// The host's addresses on it.
    pub gateways: Vec<IpAddr>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// The device on the host.
    pub tap: String,
    /// Ports of the host that lead here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub published: Vec<Published>,
    /// What the sandbox may begin to talk to.
    #[schemars(with = "String")]
    pub egress: Egress,
    /// How fast it may send and receive.
    #[serde(default, skip_serializing_if = "Rates::is_unlimited")]
    pub rates: Rates,
}

impl Attached {
    pub(super) fn of_device(network: &str, device: &Device, endpoint: &Endpoint) -> Self {
        let gateway = |route: &coracle_net::discover::Route| {
            route.gateway.filter(|_| route.destination.prefix_len() == 0)
        };
        let tap = match endpoint {
            Endpoint::Veth(pair) | Endpoint::BridgedMacvlan(pair) | Endpoint::IpVlan(pair) => {
                pair.carrier.clone()
            }
            Endpoint::Macvtap(_)
            | Endpoint::Tap(_)
            | Endpoint::Tuntap(_)
            | Endpoint::Physical { .. }
            | Endpoint::VhostUser { .. } => device.name.clone(),
        };
        Self {
            network: network.to_owned(),
            addresses: device.addresses.iter().map(coracle_net::IpNet::addr).collect(),
            mac: endpoint.interface().mac.clone(),
            gateways: device.routes.iter().filter_map(gateway).collect(),
            mtu: device.mtu,
            tap,
            published: Vec::new(),
            egress: Egress::All,
            rates: Rates::default(),
        }
    }

    pub(super) fn user(request: &AttachRequest, mac: String) -> Self {
        Self {
            network: "user".to_owned(),
            addresses: vec![user::GUEST.into()],
            mac,
            gateways: vec![user::HOST.into()],
            mtu: user::MTU,
            tap: String::new(),
            published: request.published.clone(),
            egress: request.egress.clone(),
            rates: Rates::default(),
        }
    }

    pub(super) fn private(joined: &Joined) -> Self {
        let (network, lease) = (&joined.network, &joined.lease);
        Self {
            network: network.name.clone(),
            addresses: lease.addresses.clone(),
            mac: lease.mac.clone(),
            gateways: network.gateways(),
            mtu: network.mtu,
            tap: lease.tap.clone(),
            published: lease.published.clone(),
            egress: lease.egress.clone(),
            rates: lease.rates,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_read_by_its_form() {
        let read = |text: &str| text.parse::<Source>().unwrap();
        assert_eq!(read("none").network(), None);
        assert_eq!(read("lab,mtu=1400").network().as_deref(), Some("lab"));
        assert_eq!(read("ns:/run/netns/a").network().as_deref(), Some("ns:/run/netns/a"));
        assert_eq!(read("cni:net").network().as_deref(), Some("cni:net"));
        for bad in ["host", "ns:", "cni:", "cni:a/b", "", "a b", "lab,x=1"] {
            assert!(bad.parse::<Source>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_a_network_cannot_have_is_refused_by_name() {
        let published = vec!["80:80".parse().unwrap()];
        for (network, why) in [("none", "no ports"), ("cni:net", "up to who made it")] {
            let source = network.parse().unwrap();
            let request =
                AttachRequest { published: published.clone(), ..AttachRequest::to(source) };
            let error = request.check().unwrap_err().to_string();
            assert!(error.contains(network) && error.contains(why), "{error}");
        }
        let kept_in = AttachRequest {
            egress: "none".parse().unwrap(),
            ..AttachRequest::to(Source::Namespace("/n".into()))
        };
        assert!(kept_in.check().is_err());
    }
}
