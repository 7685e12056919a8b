//! The guest's end: the memory of a PCI device, mapped when it is first of use.

use super::super::sys::{Part, map};
use super::{AREA_BYTES, EACH_WAY, SLOT};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use tracing::{debug, warn};

/// What an `ivshmem` device says it is, in sysfs.
const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x1110";

/// The area in a guest, for all sessions.
#[derive(Debug)]
pub(crate) struct GuestArea {
    source: Source,
    home: Mutex<Home>,
}

/// Where the memory is.
#[derive(Debug)]
enum Source {
    /// The device beneath this sysfs.
    Pci(PathBuf),
    File(PathBuf),
}

/// The slots nobody uses.
#[derive(Debug, Default)]
struct Home {
    /// It was tried to map them; if that failed, there never are any.
    is_tried: bool,
    is_mapped: bool,
    outgoing: Vec<(u8, Part)>,
    incoming: Vec<(u8, Part)>,
    /// Who waits for one of the incoming to come home.
    waker: Option<Waker>,
}

impl GuestArea {
    /// The memory of the VM's device, by the sysfs at `sys`.
    pub(crate) fn of_device(sys: PathBuf) -> Arc<Self> {
        Arc::new(GuestArea { source: Source::Pci(sys), home: Mutex::default() })
    }

    /// A file in the device's stead, where there is no VM.
    pub(crate) fn of_file(path: PathBuf) -> Arc<Self> {
        Arc::new(GuestArea { source: Source::File(path), home: Mutex::default() })
    }

    /// A slot to fill for the host.
    pub(crate) fn take_outgoing(self: &Arc<Self>) -> Option<Slot> {
        let (number, part) = self.mapped().outgoing.pop()?;
        Some(Slot { number, part: Some(part), area: Arc::clone(self) })
    }

    /// A slot to grant the host. If there is none, the task is woken when one comes home.
    pub(crate) fn take_incoming(self: &Arc<Self>, cx: &Context<'_>) -> Option<Slot> {
        let mut home = self.mapped();
        let Some((number, part)) = home.incoming.pop() else {
            if home.is_mapped {
                home.waker = Some(cx.waker().clone());
            }
            return None;
        };
        Some(Slot { number, part: Some(part), area: Arc::clone(self) })
    }

    /// Whether there are slots towards the host, and all are in use.
    pub(crate) fn is_exhausted(&self) -> bool {
        let home = self.lock();
        home.is_mapped && home.outgoing.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Home> {
        // Nothing below panics while it holds the lock.
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots at home, which are mapped if they can be.
    fn mapped(&self) -> MutexGuard<'_, Home> {
        let mut home = self.lock();
        if !std::mem::replace(&mut home.is_tried, true) {
            match self.source.open().and_then(|memory| map(&memory, AREA_BYTES, SLOT)) {
                Ok(parts) => {
                    home.is_mapped = true;
                    let mut slots = (0..).zip(parts);
                    home.outgoing.extend(slots.by_ref().take(usize::from(EACH_WAY)));
                    home.incoming.extend(slots);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    debug!("the VM has no memory in common with its host");
                }
                Err(error) => warn!(%error, "the memory in common with the host cannot be mapped"),
            }
        }
        home
    }

    fn take_back(&self, number: u8, part: Part) {
        let mut home = self.lock();
        let waker = if number < EACH_WAY {
            home.outgoing.push((number, part));
            None
        } else {
            home.incoming.push((number, part));
            home.waker.take()
        };
        drop(home);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Source {
    fn open(&self) -> io::Result<OwnedFd> {
        let path = match self {
            Source::Pci(sys) => enable(sys)?,
            Source::File(path) => path.clone(),
        };
        Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// Finds the device, has it answer to its addresses, which its driver would do, and gives its memory's file.
fn enable(sys: &Path) -> io::Result<PathBuf> {
    let says =
        |file: PathBuf, what| fs::read_to_string(file).is_ok_and(|text| text.trim_end() == what);
    for device in fs::read_dir(sys.join("bus/pci/devices"))? {
        let path = device?.path();
        if !says(path.join("device"), DEVICE) || !says(path.join("vendor"), VENDOR) {
            continue;
        }
        let memory = path.join("resource2");
        if fs::metadata(&memory)?.len() == AREA_BYTES as u64 {
            fs::write(path.join("enable"), "1")?;
            return Ok(memory);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// A slot in use, which goes home when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u8,
    /// Gone only while it is dropped.
    part: Option<Part>,
    area: Arc<GuestArea>,
}

impl Slot {
    /// Its number.
    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.part.as_ref().map_or(&[], Part::bytes)
    }

    /// Writes at `at`. Beyond the end of the slot is a mistake of the caller's, and an error.
    ///
    /// # Errors
    /// `InvalidInput`, as said.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        let to = self.part.as_mut().and_then(|part| part.bytes_mut().get_mut(at..at + bytes.len()));
        to.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(bytes);
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            self.area.take_back(self.number, part);
        }
    }
}
