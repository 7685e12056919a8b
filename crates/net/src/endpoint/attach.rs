//! Endpoints made ready for a VM, and given back.

use std::os::fd::OwnedFd;
use std::path::Path;

use rtnetlink::packet_route::link::MacVtapMode;
use rtnetlink::{LinkMacVtap, LinkUnspec};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use super::{Endpoint, Interface, Interworking, Pair};
use crate::discover::{self, Device};
use crate::link::{self, index, set, unsupported};
use crate::{NetError, Result, mirror, tap};

/// What carries the packets of an endpoint that is attached.
#[derive(Debug)]
pub enum Carrier {
    /// An open tap or macvtap device.
    Tap(OwnedFd),
    /// The socket of a vhost-user server, opened with `O_PATH`: its VM's monitor dials it.
    VhostUser(OwnedFd),
    /// A device of hardware, by its PCI address: the VM is to have it whole.
    Pci(String),
    /// Nothing: the model says so.
    None,
}

/// An endpoint that is attached.
#[derive(Debug)]
pub struct Attached {
    /// What it is.
    pub endpoint: Endpoint,
    /// What carries it.
    pub carrier: Carrier,
}

/// Makes an endpoint of this thread's namespace ready for a VM. `mtu` is the endpoint's.
///
/// # Errors
/// The device is gone, or the kernel refuses: what was made is undone.
pub fn attach(endpoint: Endpoint, mtu: u32) -> Result<Attached> {
    let carrier = match &endpoint {
        Endpoint::Veth(pair) | Endpoint::BridgedMacvlan(pair) | Endpoint::IpVlan(pair) => {
            match pair.model {
                Interworking::TcMirror => Carrier::Tap(mirrored(pair, mtu)?),
                Interworking::Macvtap => Carrier::Tap(on_top(pair, mtu)?),
                Interworking::None => Carrier::None,
            }
        }
        Endpoint::Macvtap(interface) => {
            link::up(&interface.name)?;
            Carrier::Tap(tap::open_macvtap(&interface.name)?)
        }
        Endpoint::Tap(interface) | Endpoint::Tuntap(interface) => {
            let opened = tap::open_tap(&interface.name)?;
            link::up(&interface.name)?;
            Carrier::Tap(opened)
        }
        Endpoint::Physical { bdf, .. } => Carrier::Pci(bdf.clone()),
        Endpoint::VhostUser { socket, .. } => Carrier::VhostUser(found(socket.as_ref())?),
    };
    Ok(Attached { endpoint, carrier })
}

/// The socket of a server, not dialled.
fn found(socket: &Path) -> Result<OwnedFd> {
    let failed =
        |source| NetError::File { what: "find the server at", path: socket.into(), source };
    let mode = OFlags::PATH | OFlags::CLOEXEC;
    let file = open(socket, mode, Mode::empty()).map_err(|e| failed(e.into()))?;
    let kind = FileType::from_raw_mode(fstat(&file).map_err(|e| failed(e.into()))?.st_mode);
    if kind != FileType::Socket {
        let why = "it is no socket";
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, why)));
    }
    Ok(file)
}

/// Takes away what [`attach`] made; the endpoint itself stays, as it was. Doing it again does no harm,
/// nor does it if the device is gone.
///
/// # Errors
/// The kernel refuses.
pub fn detach(endpoint: &Endpoint) -> Result<()> {
    match endpoint {
        Endpoint::Veth(pair) | Endpoint::BridgedMacvlan(pair) | Endpoint::IpVlan(pair) => {
            link::delete(&pair.carrier)?;
            let Some(name) = current_name(&pair.seen)? else { return Ok(()) };
            match pair.model {
                Interworking::TcMirror => mirror::part(&name),
                Interworking::Macvtap => {
                    set_mac(&name, &pair.seen)?;
                    set_addresses(&name, &pair.seen, true)
                }
                Interworking::None => Ok(()),
            }
        }
        Endpoint::Macvtap(_)
        | Endpoint::Tap(_)
        | Endpoint::Tuntap(_)
        | Endpoint::Physical { .. }
        | Endpoint::VhostUser { .. } => Ok(()),
    }
}

/// What the interface is called now: somebody may have renamed it, or taken it away.
fn current_name(interface: &Interface) -> Result<Option<String>> {
    if link::index_of(&interface.name)?.is_some() {
        return Ok(Some(interface.name.clone()));
    }
    let has_it =
        |device: &Device| device.mac.as_ref().map(link::mac_text).as_ref() == Some(&interface.mac);
    Ok(discover::devices()?.into_iter().find(has_it).map(|device| device.name))
}

fn mirrored(pair: &Pair, mtu: u32) -> Result<OwnedFd> {
    let opened = tap::open_tap(&pair.carrier)?;
    let joined = (|| {
        let index = index(&pair.carrier)?;
        set(&format!("bring {} up", pair.carrier), async |netlink| {
            let up = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
            netlink.link().set(up).execute().await
        })?;
        link::up(&pair.seen.name)?;
        mirror::join(&pair.seen.name, &pair.carrier)
    })();
    if joined.is_err() {
        // The tap goes with its descriptor; the first error is what counts.
        drop(mirror::part(&pair.seen.name));
    }
    joined.map(|()| opened)
}

/// A macvtap takes the interface's hardware address over, so the interface has to have another; its
/// addresses go, or it would answer for them too.
fn on_top(pair: &Pair, mtu: u32) -> Result<OwnedFd> {
    let below = index(&pair.seen.name)?;
    let made = set(&format!("make the macvtap {}", pair.carrier), async |netlink| {
        let macvtap = LinkMacVtap::new(&pair.carrier, below, MacVtapMode::Bridge);
        netlink.link().add(macvtap.mtu(mtu).build()).execute().await
    });
    made.map_err(|error| unsupported(error, "macvtap", "CONFIG_MACVTAP"))?;
    let opened = (|| {
        let own = link::find(&pair.carrier)?.as_ref().and_then(link::mac_of);
        let own = own.ok_or_else(|| NetError::NoDevice { name: pair.carrier.clone() })?;
        let other = Interface { mac: link::mac_text(&own), ..Interface::default() };
        // The macvtap's first, which it gives up for the one it gets.
        let spare = Interface { mac: next_mac(&own), ..Interface::default() };
        set_mac(&pair.carrier, &spare)?;
        set_mac(&pair.seen.name, &other)?;
        set_mac(&pair.carrier, &pair.seen)?;
        set_addresses(&pair.seen.name, &pair.seen, false)?;
        link::up(&pair.seen.name)?;
        link::up(&pair.carrier)?;
        tap::open_macvtap(&pair.carrier)
    })();
    if opened.is_err() {
        drop(link::delete(&pair.carrier));
        drop(set_mac(&pair.seen.name, &pair.seen));
        drop(set_addresses(&pair.seen.name, &pair.seen, true));
    }
    opened
}

/// Gives the interface its addresses, or takes them from it.
fn set_addresses(name: &str, interface: &Interface, present: bool) -> Result<()> {
    let index = index(name)?;
    for address in &interface.addresses {
        if present {
            link::add_address(name, index, *address)?;
        } else {
            link::remove_address(name, index, *address)?;
        }
    }
    Ok(())
}

fn next_mac(mac: &link::Mac) -> String {
    let mut next = *mac;
    next[5] = next[5].wrapping_add(1);
    link::mac_text(&next)
}

fn set_mac(name: &str, interface: &Interface) -> Result<()> {
    let index = index(name)?;
    let mac = link::parse_mac(&interface.mac)?.to_vec();
    set(&format!("give {name} the hardware address {}", interface.mac), async |netlink| {
        netlink.link().set(LinkUnspec::new_with_index(index).address(mac).build()).execute().await
    })
}
