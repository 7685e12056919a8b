//! One network namespace: made, given devices, asked for them back, gone.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::dhcp::{self, Answer, Lease};
use super::netlink::{self, Netlink, in_namespace, on_a_thread};
use super::plan::Plan;
use super::{LEASE_TIMEOUT, NetworkError, adapter, mount_of};

/// Interfaces of the namespace the agent is in.
const DEVICES: &str = "/sys/class/net";

/// How long the answer to a renewal may take: meanwhile no other network changes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a lost lease is asked for at a time, for the same reason.
const ANEW_TIMEOUT: Duration = Duration::from_secs(3);

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
            let no_namespace =
                |source: nix::Error| netlink::failed("make a network namespace", source.into());
            unshare(CloneFlags::CLONE_NEWNET).map_err(no_namespace)?;
            let own = Some("/proc/thread-self/ns/net");
            let nothing = None::<&str>;
            mount(own, &path, nothing, MsFlags::MS_BIND, nothing).map_err(no_namespace)?;
            loopback_up().map_err(|source| netlink::failed("bring lo up", source))
        };
        let made =
            on_a_thread(keep).and_then(|()| File::open(&path).map_err(failed("open", &path)));
        let namespace = made.inspect_err(|_| discard(folder))?;
        Ok(Self { folder: folder.to_owned(), path, namespace })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a device of the agent's namespace in and makes it what it is to be. On failure the
    /// device is back where it was.
    pub fn take(&self, device: &Device, plan: &mut Plan) -> Result<(), NetworkError> {
        let target = self.namespace.as_raw_fd();
        let mut sent = false;
        let configured = netlink::in_both(self.namespace.as_fd(), |home, there| {
            adapter::send(home, device, &plan.name, target)?;
            sent = true;
            adapter::configure(there, plan, LEASE_TIMEOUT)
        });
        if sent && configured.is_err() {
            // The host unplugs it next, wherever it is; the first error is what counts.
            drop(self.give_back(plan));
        }
        configured
    }

    /// Asks for more of a lease, on a device of this namespace.
    pub fn renew(&self, plan: &Plan, lease: &Lease, anyone: bool) -> Result<Answer, NetworkError> {
        let failed =
            |e: io::Error| netlink::failed(format!("renew the address of {}", plan.name), e);
        self.run(|_| {
            dhcp::renew(&plan.name, plan.mac, lease, anyone, ANSWER_TIMEOUT).map_err(failed)
        })
    }

    /// Takes a lease away from a device of this namespace and asks for another, which goes into `plan`.
    pub fn lease_anew(&self, old: &Plan, plan: &mut Plan) -> Result<(), NetworkError> {
        self.run(|netlink| {
            adapter::strip(netlink, old)?;
            adapter::configure(netlink, plan, ANEW_TIMEOUT)
        })
    }

    /// Moves the device of a plan back to the agent's namespace, and forgets what its routes do not take
    /// along. There being none is success: the host may have pulled it out.
    pub fn give_back(&self, plan: &Plan) -> Result<(), NetworkError> {
        let home = File::open("/proc/self/ns/net").map_err(|source| NetworkError::File {
            what: "open",
            path: "/proc/self/ns/net".into(),
            source,
        })?;
        self.run(|netlink| adapter::send_back(netlink, plan, home.as_raw_fd()))
    }

    /// Lets go of the namespace: it ends with the last process in it.
    pub fn remove(self) {
        discard(&self.folder);
    }

    fn run<T: Send>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        in_namespace(self.namespace.as_fd(), work)
    }
}

/// Brings `lo` up in the namespace this thread is in; the kernel then gives it 127.0.0.1 and ::1 by itself.
pub fn loopback_up() -> io::Result<()> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    crate::sys::interface_up(any.as_fd(), c"lo")
}

fn discard(folder: &Path) {
    // Either may not have come about.
    let _ = umount2(&mount_of(folder), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(folder);
}

/// A device of the agent's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its number.
    pub index: u32,
}

/// The device with this address, once it is there.
pub fn await_device(mac: &[u8; 6], timeout: Duration) -> Result<Device, NetworkError> {
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    let start = Instant::now();
    loop {
        let mut devices = devices(&text);
        match (devices.pop(), devices.len()) {
            (Some(device), 0) => return Ok(device),
            (there, more) if start.elapsed() > timeout => {
                let count = usize::from(there.is_some()) + more;
                return Err(NetworkError::Device { count, mac: text, timeout });
            }
            (Some(_) | None, _) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn devices(mac: &str) -> Vec<Device> {
    let all = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let read = |path: &Path, what| fs::read_to_string(path.join(what)).unwrap_or_default();
    all.filter(|entry| read(&entry.path(), "address").trim() == mac)
        .filter_map(|entry| {
            let index = read(&entry.path(), "ifindex").trim().parse().ok()?;
            Some(Device { name: entry.file_name().into_string().ok()?, index })
        })
        .collect()
}
