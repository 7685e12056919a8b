//! Joining and leaving, under the lock.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{Join, Joined, Lease, NetworkRecord, Networks, spec, sysctl};
use crate::link::{Mac, mac_text, parse_mac};
use crate::namespace::Namespace;
use crate::process::Sidecar;
use crate::publish::{Protocol, Published};
use crate::rules::{self, SandboxRules, network_rules, sandbox_rules};
use crate::{NetError, Result, dns, forward, link, pool, tap};

/// How long a sidecar has to end by itself.
const PATIENCE: Duration = Duration::from_secs(1);

const USUAL_MTU: u32 = 1500;

pub(super) fn join(networks: &Networks, join: &Join) -> Result<Joined> {
    let all = networks.all()?;
    let spec = &join.network;
    spec::check_name(&spec.name)?;
    let network = match all.iter().find(|network| network.name == spec.name) {
        Some(there) => {
            same(spec, there)?;
            there.clone()
        }
        None => define(networks, spec, &all)?,
    };
    let lease = lease(networks, join, &network, &all)?;
    let folder = networks.folder_of(&network.name);
    let (sandbox, mut network) = (join.sandbox.clone(), network);
    network.leases.insert(sandbox.clone(), lease);
    network.write(&folder)?;

    let made = make(networks, &folder, &mut network, &sandbox);
    match made {
        Ok(tap) => {
            let lease = network.leases[&sandbox].clone();
            let has_names = network.names.is_some();
            Ok(Joined { network, lease, tap, has_names })
        }
        Err(error) => {
            if let Err(undoing) = leave(networks, &network.name, &sandbox) {
                tracing::error!(error = %undoing, sandbox, "cannot undo joining a network");
            }
            Err(error)
        }
    }
}

/// Whether a network that is there is what was asked for.
fn same(spec: &spec::NetworkSpec, there: &NetworkRecord) -> Result<()> {
    let different = |what, there: String, wanted: String| {
        Err(NetError::Different { name: spec.name.clone(), what, there, wanted })
    };
    if there.namespace != Namespace::current()?.identity()? {
        return Err(NetError::Device {
            name: format!("network {}", spec.name),
            why: "it was made in another network namespace of this host".to_owned(),
        });
    }
    if !spec.subnets.is_empty() && spec.subnets != there.subnets {
        let text = |nets: &[IpNet]| nets.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
        return different("subnets", text(&there.subnets), text(&spec.subnets));
    }
    match spec.mtu {
        Some(mtu) if mtu != there.mtu => different("mtu", there.mtu.to_string(), mtu.to_string()),
        Some(_) | None => Ok(()),
    }
}

/// What a new network will be.
fn define(
    networks: &Networks,
    spec: &spec::NetworkSpec,
    all: &[NetworkRecord],
) -> Result<NetworkRecord> {
    let mut taken = link::routed_networks()?;
    let ours =
        all.iter().flat_map(|network| network.subnets.iter().map(move |s| (s, &network.name)));
    let subnets = if spec.subnets.is_empty() {
        taken.extend(ours.map(|(subnet, _)| *subnet));
        let what = "a subnet for a network".to_owned();
        vec![pool::choose_subnet(&taken).ok_or(NetError::Exhausted { what })?]
    } else {
        for (subnet, holder) in ours {
            if spec.subnets.iter().any(|wanted| pool::overlap(wanted, subnet)) {
                return Err(NetError::Device {
                    name: format!("network {}", spec.name),
                    why: format!("{subnet} is network {holder}'s"),
                });
            }
        }
        spec.subnets.clone()
    };
    let digest = digest(networks, &["network", &spec.name]);
    Ok(NetworkRecord {
        schema: NetworkRecord::SCHEMA,
        name: spec.name.clone(),
        namespace: Namespace::current()?.identity()?,
        table: format!("cornet{}", &hex(&digest)[..9]),
        subnets,
        mtu: spec.mtu.unwrap_or(USUAL_MTU),
        is_ready: false,
        names: None,
        leases: BTreeMap::new(),
    })
}

/// What a sandbox will have of the network.
fn lease(
    networks: &Networks,
    join: &Join,
    network: &NetworkRecord,
    all: &[NetworkRecord],
) -> Result<Lease> {
    let taken = |what: String, holder: &str| NetError::Taken { what, holder: holder.to_owned() };
    if network.leases.contains_key(&join.sandbox) {
        let what = format!("a place on network {}", network.name);
        return Err(taken(what, &join.sandbox));
    }
    let others = || all.iter().flat_map(|network| &network.leases);
    for port in &join.published {
        for (holder, lease) in others() {
            if let Some(there) = lease.published.iter().find(|there| there.conflicts(port)) {
                let address = there.ip.map(|ip| format!(" of {ip}")).unwrap_or_default();
                let what = format!("port {}/{}{address}", port.host, port.protocol.name());
                return Err(taken(what, holder));
            }
        }
        is_free(port)?;
    }
    let digest = digest(networks, &["sandbox", &network.name, &join.sandbox]);
    let mac = mac_text(&join.mac.unwrap_or_else(|| own_mac(&digest)));
    if let Some((holder, _)) = network.leases.iter().find(|(_, lease)| lease.mac == mac) {
        return Err(taken(format!("the hardware address {mac}"), holder));
    }
    let is_used = |ip: IpAddr| network.leases.values().any(|lease| lease.addresses.contains(&ip));
    let address = |subnet: &IpNet| {
        let what = format!("an address of {subnet}");
        pool::next_address(subnet, is_used).ok_or(NetError::Exhausted { what })
    };
    Ok(Lease {
        addresses: network.subnets.iter().map(address).collect::<Result<_>>()?,
        mac,
        tap: format!("cor{}", &hex(&digest)[..11]),
        aliases: join.aliases.clone(),
        published: join.published.clone(),
        egress: join.egress.clone(),
        rates: join.rates,
        forwarder: None,
    })
}

/// Whether a port can be listened on: told here, where it can be told well.
fn is_free(port: &Published) -> Result<()> {
    for address in listening_addresses(port) {
        let bound = match port.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        };
        // Without IPv6 there is nothing to publish there.
        if let Err(source) = bound
            && !(port.ip.is_none() && address.is_ipv6())
        {
            return Err(NetError::Listen { address, source });
        }
    }
    Ok(())
}

/// All addresses a published port is listened on.
pub(crate) fn listening_addresses(port: &Published) -> Vec<SocketAddr> {
    let mut addresses = vec![port.listens_on()];
    if port.ip.is_none() {
        addresses.push(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port.host));
    }
    addresses
}

/// Makes what the record says; the record gets what only then is known.
fn make(
    networks: &Networks,
    folder: &Path,
    network: &mut NetworkRecord,
    sandbox: &str,
) -> Result<OwnedFd> {
    let gateways = network.gateways();
    let has = |v4: bool| network.subnets.iter().any(|subnet| subnet.addr().is_ipv4() == v4);
    link::hold(&gateways, &network.subnets)?;
    if !network.is_ready {
        sysctl::forward(networks.folder(), has(true), has(false))?;
        network_rules(&network.table, &network.subnets).apply()?;
        network.is_ready = true;
    }
    let lease = &network.leases[sandbox];
    let mac = parse_mac(&lease.mac)?;
    sandbox_rules(&SandboxRules {
        tap: &lease.tap,
        subnets: &network.subnets,
        mac: &mac,
        addresses: &lease.addresses,
        gateways: &gateways,
        published: &lease.published,
        egress: &lease.egress,
        rates: lease.rates,
    })
    .apply()?;
    // Only now, behind its rules, can it be heard.
    let tap = tap::open_tap(&lease.tap)?;
    link::wire(&lease.tap, &gateways, &lease.addresses, network.mtu)?;
    network.write(folder)?;
    if let Some(helper) = networks.helper() {
        if !network.names.is_some_and(Sidecar::is_alive) {
            let words = [OsStr::new(dns::COMMAND), folder.as_os_str()];
            network.names = Some(Sidecar::start(helper, &words)?);
            network.write(folder)?;
        }
        if !network.leases[sandbox].published.is_empty() {
            let words = [OsStr::new(forward::COMMAND), folder.as_os_str(), OsStr::new(sandbox)];
            let forwarder = Sidecar::start(helper, &words)?;
            if let Some(lease) = network.leases.get_mut(sandbox) {
                lease.forwarder = Some(forwarder);
            }
            network.write(folder)?;
        }
    }
    Ok(tap)
}

pub(super) fn leave(networks: &Networks, name: &str, sandbox: &str) -> Result<()> {
    let folder = networks.folder_of(name);
    let Some(mut network) = NetworkRecord::read(&folder)? else { return Ok(()) };
    let Some(lease) = network.leases.remove(sandbox) else { return Ok(()) };
    // First of all it is cut off, if its VM has not gone already: it is never there without its rules.
    link::down(&lease.tap)?;
    let is_last = network.leases.is_empty();
    let tables = [&lease.tap[..], &network.table];
    let sidecars = lease.forwarder.into_iter().chain(network.names.filter(|_| is_last));
    // The kernel takes its time for each, and they have nothing to do with each other.
    at_once([
        Box::new(|| link::delete(&lease.tap)),
        Box::new(|| rules::delete(if is_last { &tables } else { &tables[..1] })),
        Box::new(|| {
            sidecars.into_iter().try_for_each(|sidecar| sidecar.end(PATIENCE))?;
            if is_last { link::let_go(&network.gateways(), &network.subnets) } else { Ok(()) }
        }),
    ])?;
    if !is_last {
        return network.write(&folder);
    }
    if networks.all()?.iter().all(|other| other.name == name) {
        sysctl::put_back(networks.folder())?;
    }
    // The record last: as long as anything is left, it tells.
    let failed = |source| NetError::File { what: "remove", path: folder.clone(), source };
    fs::remove_dir_all(&folder).map_err(failed)
}

/// Does all at once, each to its end; the first failure counts.
fn at_once<const N: usize>(works: [Box<dyn FnOnce() -> Result<()> + Send + '_>; N]) -> Result<()> {
    std::thread::scope(|scope| {
        let mut outcome = Ok(());
        for work in works.map(|work| scope.spawn(work)) {
            let done = work.join().unwrap_or_else(|_| {
                let source = std::io::Error::other("the thread ended before its work");
                Err(NetError::System { what: "leave a network", source })
            });
            outcome = outcome.and(done);
        }
        outcome
    })
}

/// What names of devices and hardware addresses are made from: one root's are not another's.
fn digest(networks: &Networks, words: &[&str]) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(networks.folder().as_os_str().as_encoded_bytes());
    for word in words {
        hash.update([0]);
        hash.update(word);
    }
    hash.finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A hardware address nobody was sold.
fn own_mac(digest: &[u8]) -> Mac {
    let mut mac: Mac = [0; 6];
    mac.copy_from_slice(&digest[..6]);
    mac[0] = (mac[0] & 0xfc) | 0x02;
    mac
}
