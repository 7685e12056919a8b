//! What of the host a device needs while it is assigned: its claim, and the right to its group's file
//! for the user the VM runs as.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use coracle_vmm::{PciSource, User};

use super::bus::{Sysfs, group_of};
use super::claim::{self, Claim};
use super::error::VpciError;
use super::source::Source;

/// Where the kernel has a file for each group.
const GROUPS: &str = "/dev/vfio";

/// What was taken from the host for one device.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(super) struct Held {
    claim: Option<Claim>,
    /// The group's file and whose it was.
    file: Option<(PathBuf, u32)>,
}

/// Takes what the source needs; gives what the monitor is to plug in. May block for as long as the
/// driver takes that lets the device go.
pub(super) fn take(
    source: &Source,
    user: Option<User>,
) -> Result<(Option<Held>, PciSource), VpciError> {
    match source {
        Source::Teaching => Ok((None, PciSource::Teaching)),
        Source::Disk(socket) => Ok((None, PciSource::Disk(dial(socket)?))),
        Source::Controller(socket) => Ok((None, PciSource::Controller(dial(socket)?))),
        Source::Mediated(folder) => {
            if !folder.join("mdev_type").exists() {
                return Err(VpciError::NotMediated { path: folder.clone() });
            }
            let device = source.to_string();
            let group = group_of(folder).ok_or(VpciError::NoIommu { device })?;
            let held = Held { claim: None, file: open_to(source, group, user)? };
            Ok((Some(held), PciSource::Mediated(folder.clone())))
        }
        Source::Host(address) => {
            let bus = Sysfs::of_host();
            let claim = claim::take(&bus, *address)?;
            match open_to(source, claim.group, user) {
                Ok(file) => {
                    Ok((Some(Held { claim: Some(claim), file }), PciSource::Host(*address)))
                }
                Err(error) => {
                    if let Err(undo) = claim::give_back(&bus, &claim) {
                        tracing::error!(%address, error = %undo, "a PCI device is not given back");
                    }
                    Err(error)
                }
            }
        }
    }
}

/// Gives back what was taken. May block as [`take`]; can be repeated.
pub(super) fn give_back(held: &Held) -> Result<(), VpciError> {
    if let Some((file, owner)) = &held.file {
        // The file goes with the last device of its group.
        let _ = chown(file, Some(*owner), None);
    }
    held.claim.as_ref().map_or(Ok(()), |claim| claim::give_back(&Sysfs::of_host(), claim))
}

/// Lets the VM's user open the group.
fn open_to(
    source: &Source,
    group: u32,
    user: Option<User>,
) -> Result<Option<(PathBuf, u32)>, VpciError> {
    let path = Path::new(GROUPS).join(group.to_string());
    let device = source.to_string();
    let Ok(stat) = fs::metadata(&path) else {
        return Err(VpciError::NoGroupFile { path, device });
    };
    let Some(user) = user else { return Ok(None) };
    match chown(&path, Some(user.uid), None) {
        Ok(()) => Ok(Some((path, stat.uid()))),
        Err(_) => Err(VpciError::NoGroupFile { path, device }),
    }
}

/// A socket's path may have no more than 107 bytes, and a folder's may.
fn dial(socket: &Path) -> Result<OwnedFd, VpciError> {
    let dialled = || -> io::Result<OwnedFd> {
        let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let folder = fs::File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        UnixStream::connect(path).map(OwnedFd::from)
    };
    dialled().map_err(|source| VpciError::Server { socket: socket.to_owned(), source })
}
