//! Tap devices, and macvtap devices, which are opened and then used alike.
//!
//! A tap belongs to whoever has it open and is gone with the last descriptor: it needs no cleaning up.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, open};

use crate::{NetError, Result, namespace, sys};

const TUN: &str = "/dev/net/tun";
/// Frames of the link layer; no extra header; the header by which offloads are passed on.
const TAP: u16 = 0x0002 | 0x1000 | 0x4000;

/// Makes a tap device of this name in the namespace of this thread.
///
/// # Errors
/// The name is taken or too long; not root; no `/dev/net/tun`.
pub fn open_tap(name: &str) -> Result<OwnedFd> {
    let failed = |what, path: &str, source| NetError::File { what, path: path.into(), source };
    if name.is_empty() || name.len() > 15 {
        let source = std::io::Error::from(std::io::ErrorKind::InvalidInput);
        return Err(failed("make the device", name, source));
    }
    let mode = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = open(TUN, mode, Mode::empty()).map_err(|e| failed("open", TUN, e.into()))?;
    sys::set_interface(&tun, name, TAP)
        .map_err(|source| failed("make the device", name, source))?;
    Ok(tun)
}

/// Opens the character device behind the macvtap device `name`, which is in the network namespace of
/// this thread.
///
/// # Errors
/// There is no such device, or the host does not let us make its node.
pub fn open_macvtap(name: &str) -> Result<OwnedFd> {
    namespace::with_own_sysfs(|| open_macvtap_in("/sys/class/net".as_ref(), name))
}

fn open_macvtap_in(devices: &Path, name: &str) -> Result<OwnedFd> {
    let folder = devices.join(name).join("macvtap");
    let failed = |what, path: &Path, source| NetError::File { what, path: path.into(), source };
    let mut entries = fs::read_dir(&folder).map_err(|e| failed("list", &folder, e))?;
    let entry = entries.next().ok_or_else(|| NetError::NoDevice { name: name.to_owned() })?;
    let entry = entry.map_err(|e| failed("list", &folder, e))?;
    let node = Path::new("/dev").join(entry.file_name());
    let numbers = entry.path().join("dev");
    let text = fs::read_to_string(&numbers).map_err(|e| failed("read", &numbers, e))?;
    let pair =
        text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (major, minor): (u32, u32) = pair.ok_or_else(|| NetError::Device {
        name: name.to_owned(),
        why: format!("{} says {text:?}", numbers.display()),
    })?;
    if node.exists() {
        return open_node(&node);
    }
    // Where no udev makes nodes, ours is made for as long as it takes to open it.
    let own = PathBuf::from(format!("/dev/.coracle-macvtap-{}-{minor}", std::process::id()));
    let made = mknodat(
        rustix::fs::CWD,
        &own,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        makedev(major, minor),
    );
    made.map_err(|e| failed("make the device node", &own, e.into()))?;
    let opened = open_node(&own);
    fs::remove_file(&own).map_err(|e| failed("remove", &own, e))?;
    opened
}

fn open_node(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).write(true).custom_flags(flags).open(path);
    let failed = |source| NetError::File { what: "open", path: path.to_owned(), source };
    file.map(OwnedFd::from).map_err(failed)
}
