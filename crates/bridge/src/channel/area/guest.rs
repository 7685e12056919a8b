//! The guest's end: the memory of a PCI device, mapped when it is first of use.

use super::super::sys::{Part, map};
use super::{AREA_BYTES, SLOT, TO_HOST};
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Waker};
use tracing::{debug, warn};

/// What an `ivshmem` device says it is, in sysfs.
const VENDOR: &str = "0x1af4";
const DEVICE: &str = "0x1110";

/// Slots towards the host that are not lent to be read into, so that others have some to copy into.
const KEPT: usize = 8;

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
    /// The address of the first slot.
    start: usize,
    outgoing: Vec<(u8, Part)>,
    /// Those that were read into, while anyone has their bytes; by number.
    lent: Vec<Weak<Slot>>,
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

    /// At most so many slots for others to read into.
    pub(crate) fn take_fresh(self: &Arc<Self>, most: usize) -> Vec<FreshSlot> {
        let mut home = self.mapped();
        let there = home.outgoing.len();
        let taken = home.outgoing.drain(there.saturating_sub(most).max(KEPT).min(there)..);
        let slot = |(number, part)| Slot { number, part: Some(part), area: Arc::clone(self) };
        taken.map(|taken| FreshSlot(slot(taken))).collect()
    }

    /// The slot that these bytes lie in, if they were read into one, and where in it. It does not come home as long
    /// as it is held.
    pub(crate) fn hold(&self, bytes: &[u8]) -> Option<(Arc<Slot>, usize)> {
        let home = self.lock();
        let at = bytes.as_ptr().addr().checked_sub(home.start)?;
        let (number, from) = (at / SLOT, at % SLOT);
        // Not dropped while the area is locked, for it would come home.
        let slot = home.lent.get(number)?.upgrade();
        drop(home);
        slot.filter(|_| from + bytes.len() <= SLOT).map(|slot| (slot, from))
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
                    home.start = parts.first().map_or(0, |part| part.bytes().as_ptr().addr());
                    home.lent.resize(usize::from(TO_HOST), Weak::new());
                    let mut slots = (0..).zip(parts);
                    home.outgoing.extend(slots.by_ref().take(usize::from(TO_HOST)));
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
        let waker = if number < TO_HOST {
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

/// A slot to be read into.
#[derive(Debug)]
pub struct FreshSlot(Slot);

impl FreshSlot {
    /// All of it, with what it had before.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.part.as_mut().map_or(&mut [], Part::bytes_mut)
    }

    /// The first `len` bytes of it, or all if there are fewer.
    #[must_use]
    pub fn freeze(self, len: usize) -> Bytes {
        let slot = Arc::new(self.0);
        let lent = Arc::downgrade(&slot);
        if let Some(place) = slot.area.lock().lent.get_mut(usize::from(slot.number)) {
            *place = lent;
        }
        Bytes::from_owner(Frozen(slot)).slice(..len.min(SLOT))
    }
}

/// A slot that was read into.
struct Frozen(Arc<Slot>);

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            self.area.take_back(self.number, part);
        }
    }
}
