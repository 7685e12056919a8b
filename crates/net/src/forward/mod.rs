//! Published ports for this host's own programs.
//!
//! The kernel redirects what comes from elsewhere by itself; what a program sends to a loopback
//! address it does not. So a process per sandbox listens on each published port, carries connections
//! and datagrams to the sandbox, and by the way keeps the port from everybody else.

mod datagrams;
mod streams;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::private::NetworkRecord;
use crate::process::Sidecar;
use crate::publish::{Protocol, Published};
use crate::{NetError, Result, private};

/// The word by which a helper program is told to forward: `WORD FOLDER SANDBOX`.
pub const COMMAND: &str = "net-ports";

/// How often we look whether the sandbox is still on the network.
const LOOK: Duration = Duration::from_secs(2);

/// Forwards the ports of a sandbox on the network in `folder` until it is off it. Calls `ready` once
/// it listens on all of them.
///
/// Not cancel safe, nor need it be: it owns its sockets and tasks, which end with the runtime.
///
/// # Errors
/// The record cannot be read or has no such sandbox; a port cannot be listened on.
pub async fn serve(folder: &Path, sandbox: &str, ready: impl FnOnce()) -> Result<()> {
    let gone = || NetError::NoNetwork { name: format!("{} with {sandbox}", folder.display()) };
    let network = NetworkRecord::read(folder)?.ok_or_else(gone)?;
    let lease = network.leases.get(sandbox).ok_or_else(gone)?;
    for port in &lease.published {
        for address in private::listening_addresses(port) {
            let to = target(address, port, &lease.addresses).ok_or_else(gone)?;
            let listening = match port.protocol {
                Protocol::Tcp => streams::listen(address, to).await,
                Protocol::Udp => datagrams::listen(address, to).await,
            };
            // On a host without IPv6 nobody dials its addresses either.
            match listening {
                Err(source) if !(port.ip.is_none() && address.is_ipv6()) => {
                    return Err(NetError::Listen { address, source });
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
    ready();
    // Whoever started us and died before it wrote so down must not leave us in the way of the next.
    let is_us = |sidecar: Sidecar| sidecar.pid == std::process::id();
    loop {
        tokio::time::sleep(LOOK).await;
        let network = NetworkRecord::read(folder).ok().flatten();
        let lease = network.as_ref().and_then(|network| network.leases.get(sandbox));
        if !lease.and_then(|lease| lease.forwarder).is_some_and(is_us) {
            return Ok(());
        }
    }
}

/// Where what comes in at an address goes: to the sandbox's address of the same family if it has one.
fn target(at: SocketAddr, port: &Published, addresses: &[IpAddr]) -> Option<SocketAddr> {
    let same = addresses.iter().find(|ip| ip.is_ipv4() == at.is_ipv4());
    same.or(addresses.first()).map(|ip| SocketAddr::new(*ip, port.guest))
}
