//! One network namespace: made, given devices, asked for them back, gone.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkUnspec};

use super::netlink::{NetlinkError, in_namespace, on_a_thread};
use super::plan::{Plan, Route};
use super::{LEASE_TIMEOUT, NetworkError, dhcp, mount_of};

/// Interfaces of the namespace the agent is in.
const DEVICES: &str = "/sys/class/net";

/// A namespace, kept by a mount.
#[derive(Debug)]
pub struct Space {
    folder: PathBuf,
    path: PathBuf,
    /// What is entered.
    namespace: File,
}

impl Space {
    /// Makes one, with `lo` up, mounted in `folder`.
    pub fn create(folder: &Path) -> Result<Self, NetworkError> {
        let path = mount_of(folder);
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| NetworkError::File { what, path, source }
        };
        fs::create_dir_all(folder).map_err(failed("make the folder", folder))?;
        File::create(&path).map_err(failed("make the file", &path))?;
        let keep = || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            let own = Some("/proc/thread-self/ns/net");
            let nothing = None::<&str>;
            let kept = mount(own, &path, nothing, MsFlags::MS_BIND, nothing);
            Ok(kept.map_err(io::Error::from)?)
        };
        let made = on_a_thread(keep)
            .map_err(|source| NetworkError::Kernel { what: "make a namespace".into(), source })
            .and_then(|()| File::open(&path).map_err(failed("open", &path)));
        let namespace = made.inspect_err(|_| discard(folder))?;
        let space = Self { folder: folder.to_owned(), path, namespace };
        if let Err(error) = space.run("bring lo up", async |netlink| up(&netlink, 1).await) {
            space.remove();
            return Err(error);
        }
        Ok(space)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a device of the agent's namespace in and makes it what it is to be. On failure the
    /// device is back where it was.
    pub fn take(&self, device: &str, plan: &mut Plan) -> Result<(), NetworkError> {
        let target = self.namespace.as_raw_fd();
        let moved = in_namespace(None, async |netlink| {
            let index = index_of(&netlink, device).await?;
            let whole = LinkUnspec::new_with_index(index).down().build();
            netlink.link().set(whole).execute().await?;
            let there = LinkUnspec::new_with_index(index)
                .name(plan.name.clone())
                .setns_by_fd(target)
                .build();
            Ok(netlink.link().set(there).execute().await?)
        });
        let what = || format!("move {device} into its namespace as {}", plan.name);
        moved.map_err(|source| NetworkError::Kernel { what: what(), source })?;
        let configured = self.configure(plan);
        if configured.is_err() {
            // The host unplugs it next, wherever it is; the first error is what counts.
            drop(self.give_back(plan));
        }
        configured
    }

    fn configure(&self, plan: &mut Plan) -> Result<(), NetworkError> {
        let name = plan.name.clone();
        let name = name.as_str();
        let index = self.run(&format!("find {name}"), async |netlink| {
            let link = link_of(&netlink, name).await?;
            let current = link.attributes.iter().find_map(|attribute| match attribute {
                rtnetlink::packet_route::link::LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            });
            let mtu = match plan.mtu {
                0 => current.unwrap_or(1500).saturating_sub(plan.overhead),
                mtu => mtu.saturating_sub(plan.overhead),
            };
            let index = link.header.index;
            let with_mtu = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
            netlink.link().set(with_mtu).execute().await?;
            Ok(index)
        })?;
        if plan.addresses.is_empty() {
            let mac = plan.mac;
            let asked = async |_| Ok(dhcp::ask(name, mac, LEASE_TIMEOUT)?);
            plan.lease(&self.run(&format!("get an address for {name}"), asked)?);
        }
        for address in &plan.addresses {
            self.run(&format!("give {name} the address {address}"), async |netlink| {
                let add = netlink.address().add(index, address.addr(), address.prefix_len());
                Ok(without_detection(add).execute().await?)
            })?;
        }
        for route in &plan.routes {
            let what = format!("route {} by {name}", route.destination);
            self.run(&what, async |netlink| add_route(&netlink, index, route).await)?;
        }
        for (ip, mac) in &plan.neighbours {
            self.run(&format!("make {ip} known as a neighbour by {name}"), async |netlink| {
                let add = netlink.neighbours().add(index, *ip).link_layer_address(mac);
                Ok(add.replace().execute().await?)
            })?;
        }
        for (from, table) in &plan.rules {
            let what = format!("route what comes from {from} by table {table}");
            self.run(&what, async |netlink| add_rule(&netlink, *from, *table).await)?;
        }
        Ok(())
    }

    /// Moves the device of a plan back to the agent's namespace, and forgets what its routes do not take
    /// along. There being none is success: the host may have pulled it out.
    pub fn give_back(&self, plan: &Plan) -> Result<(), NetworkError> {
        for table in plan.tables() {
            let what = format!("take away the rules of table {table}");
            self.run(&what, async |netlink| remove_rules(&netlink, table).await)?;
        }
        let mac = &plan.mac;
        let home = File::open("/proc/self/ns/net").map_err(|source| NetworkError::File {
            what: "open",
            path: "/proc/self/ns/net".into(),
            source,
        })?;
        self.run("move a device out of its namespace", async |netlink| {
            let Some(link) = with_address(&netlink, mac).await? else { return Ok(()) };
            let index = link.header.index;
            netlink.link().set(LinkUnspec::new_with_index(index).down().build()).execute().await?;
            // A name that nobody else has there: its own one may be taken.
            let out = LinkUnspec::new_with_index(index)
                .name(format!("back{index}"))
                .setns_by_fd(home.as_raw_fd())
                .build();
            Ok(netlink.link().set(out).execute().await?)
        })
    }

    /// Lets go of the namespace: it ends with the last process in it.
    pub fn remove(self) {
        discard(&self.folder);
    }

    fn run<T: Send, W>(
        &self,
        what: &str,
        work: impl FnOnce(Handle) -> W + Send,
    ) -> Result<T, NetworkError>
    where
        W: Future<Output = Result<T, NetlinkError>>,
    {
        let done = in_namespace(Some(self.namespace.as_fd()), work);
        done.map_err(|source| NetworkError::Kernel { what: what.to_owned(), source })
    }
}

fn discard(folder: &Path) {
    // Either may not have come about.
    let _ = umount2(&mount_of(folder), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(folder);
}

/// The name of the device with this address, once it is there.
pub fn await_device(mac: &[u8; 6], timeout: Duration) -> Result<String, NetworkError> {
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    let start = Instant::now();
    loop {
        let devices = devices(&text);
        if let [device] = &devices[..] {
            return Ok(device.clone());
        }
        if start.elapsed() > timeout {
            return Err(NetworkError::Device { count: devices.len(), mac: text, timeout });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn devices(mac: &str) -> Vec<String> {
    let all = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let has_it = |path: PathBuf| {
        fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim() == mac)
    };
    all.filter(|entry| has_it(entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

async fn up(netlink: &Handle, index: u32) -> Result<(), NetlinkError> {
    let set = LinkUnspec::new_with_index(index).up().build();
    Ok(netlink.link().set(set).execute().await?)
}

async fn index_of(netlink: &Handle, name: &str) -> Result<u32, NetlinkError> {
    Ok(link_of(netlink, name).await?.header.index)
}

async fn link_of(netlink: &Handle, name: &str) -> Result<LinkMessage, NetlinkError> {
    use futures_util::TryStreamExt;
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await?;
    link.ok_or_else(|| NetlinkError::Socket(io::Error::from(io::ErrorKind::NotFound)))
}

async fn with_address(
    netlink: &Handle,
    mac: &[u8; 6],
) -> Result<Option<LinkMessage>, NetlinkError> {
    use futures_util::TryStreamExt;
    use rtnetlink::packet_route::link::LinkAttribute;
    let has_it = |link: &LinkMessage| {
        let is_it = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Address(address) if address[..] == mac[..]);
        link.attributes.iter().any(is_it)
    };
    let links: Vec<LinkMessage> = netlink.link().get().execute().try_collect().await?;
    Ok(links.into_iter().find(has_it))
}

/// Usable at once: that nobody else has it, the host has seen to.
fn without_detection(mut add: rtnetlink::AddressAddRequest) -> rtnetlink::AddressAddRequest {
    use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
    add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    add
}

async fn add_route(netlink: &Handle, index: u32, route: &Route) -> Result<(), NetlinkError> {
    use rtnetlink::RouteMessageBuilder;
    use std::net::IpAddr;
    let (ip, length) = (route.destination.addr(), route.destination.prefix_len());
    let wrong = |_| NetlinkError::Socket(io::Error::from(io::ErrorKind::InvalidInput));
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(ip, length)
        .map_err(wrong)?
        .output_interface(index);
    if let Some(gateway) = route.gateway {
        message = message.gateway(gateway).map_err(wrong)?;
    }
    if route.on_link {
        message = message.onlink();
    }
    if route.metric > 0 {
        message = message.priority(route.metric);
    }
    if route.table > 0 {
        message = message.table_id(route.table);
    }
    Ok(netlink.route().add(message.build()).execute().await?)
}

async fn add_rule(
    netlink: &Handle,
    from: std::net::IpAddr,
    table: u32,
) -> Result<(), NetlinkError> {
    use rtnetlink::packet_route::rule::RuleAction;
    use std::net::IpAddr;
    /// Before the kernel's own rules for the main table.
    const PRIORITY: u32 = 5;
    let rule = netlink.rule().add().table_id(table).priority(PRIORITY).action(RuleAction::ToTable);
    Ok(match from {
        IpAddr::V4(ip) => rule.v4().source_prefix(ip, 32).execute().await?,
        IpAddr::V6(ip) => rule.v6().source_prefix(ip, 128).execute().await?,
    })
}

/// Takes away every rule that leads to a table.
async fn remove_rules(netlink: &Handle, table: u32) -> Result<(), NetlinkError> {
    use futures_util::TryStreamExt;
    use rtnetlink::IpVersion;
    use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
    let leads_there = |rule: &RuleMessage| {
        let named = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Table(number) => Some(*number),
            _ => None,
        });
        named.unwrap_or(rule.header.table.into()) == table
    };
    for version in [IpVersion::V4, IpVersion::V6] {
        let all: Vec<RuleMessage> = netlink.rule().get(version).execute().try_collect().await?;
        for rule in all.into_iter().filter(leads_there) {
            netlink.rule().del(rule).execute().await?;
        }
    }
    Ok(())
}
