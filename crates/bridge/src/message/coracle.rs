//! What we add to the protocol.
//!
//! Both ends say in the negotiation that they know it (field `Coracle`); a peer that does not say so
//! never sees any of it. It has three parts.
//!
//! *Sessions.* Each connection is a session with a number higher than the last, and a guest that gets
//! a new one drops the older. What runs in the guest belongs to the guest: after a reconnect the host
//! asks for it ([`ListState`]), connects the stdio of running processes again at the offsets both ends
//! remember ([`AttachStdio`]), and waits anew for what it waited for.
//!
//! *Exits.* A guest keeps an exit, of a process or of a container, until the host has said that it
//! recorded it ([`AckExit`]). An answer that was written is not an answer that arrived.
//!
//! *Long answers.* A guest's answer that does not fit a frame is kept in the guest and fetched piece
//! by piece ([`Held`], [`Chunk`]).

use serde::{Deserialize, Serialize};

use super::envelope::{empty_bodies, rpcs};
use super::{ContainerId, Done, VsockStdioRelay};
use crate::wire::Body;

/// `Coracle` in the negotiation, as the host sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleHost {
    /// The version of the extension the host speaks; [`VERSION`](Self::VERSION).
    pub version: u32,
    /// The number of this session; higher than that of every session before.
    pub session: u64,
    /// The largest frame the host takes from now on, in bytes.
    pub max_frame: u32,
}

impl CoracleHost {
    /// The only version of the extension there is.
    pub const VERSION: u32 = 1;
}

/// `Coracle` in the negotiation, as the guest answers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleGuest {
    /// The version both speak.
    pub version: u32,
    /// The session, echoed.
    pub session: u64,
    /// Names this boot of the guest: another one means that everything in it is gone.
    pub boot_id: String,
    /// The largest frame the guest will send, at most what the host takes.
    pub max_frame: u32,
}

/// `Coracle` in the settings of a [`MappedVirtualDisk`](super::MappedVirtualDisk): the disk's number
/// on its bus is not ours to choose, so the guest finds it by its serial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleDisk {
    /// The disk's serial; empty means: by controller and LUN.
    pub serial: String,
    /// `ext4`, `xfs`, `erofs`, or `auto` to look what is on it; empty means ext4.
    pub filesystem: String,
    /// A remove takes the mount away and leaves the disk.
    pub keep: bool,
    /// The disk is on a SCSI controller, at the request's controller and LUN, and nowhere else. Whatever
    /// the guest knows there under another serial is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unit: bool,
    /// The disk is the one behind the PCI device at this address; empty means: by its serial.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pci: String,
}

/// `Coracle` in the settings of [`CombinedLayers`](super::CombinedLayers): hcsshim's scratch is a disk
/// that goes with its container, ours may be a directory that has to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleLayers {
    /// A remove takes away what was written to the scratch directory, and the directory.
    pub discard: bool,
}

/// `Coracle` in the settings of a [`VpciDevice`](super::VpciDevice): the guest has no VMBus, and finds
/// the device by its PCI address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoraclePci {
    /// `0000:01:02.0`.
    pub address: String,
}

/// `Coracle` in the settings of a [`NetworkAdapter`](super::NetworkAdapter): what hcsshim's message has
/// no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleAdapter {
    /// The interface's name in its namespace; empty: the first free `eth0`, `eth1`, ...
    pub name: String,
    /// Further addresses, each with the length of its prefix: `10.0.0.3/24`, `fd00::2/64`.
    pub addresses: Vec<String>,
    /// Routes beside that to the default gateway.
    pub routes: Vec<CoracleRoute>,
    /// Neighbours that are known from the start.
    pub neighbours: Vec<CoracleNeighbour>,
    /// The largest packet in bytes; 0: as the device has it.
    pub mtu: u32,
}

/// A neighbour of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleNeighbour {
    /// Its address.
    pub address: String,
    /// Its hardware address, with colons.
    pub mac_address: String,
}

/// A route of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleRoute {
    /// Where to: `10.1.0.0/16`, `::/0`.
    pub destination: String,
    /// By way of whom; empty: whoever is there is on the link itself.
    pub gateway: String,
    /// The lower, the better; 0: the kernel's choice.
    pub metric: u32,
}

/// `Coracle` in the settings of a [`MappedDirectory`](super::MappedDirectory): the share is served by
/// virtio-fs and not by a 9P server on a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoracleShare {
    /// The tag of the virtio-fs device; empty means 9P.
    pub tag: String,
}

/// `Coracle` in the settings of a [`VpmemDevice`](super::VpmemDevice): the guest numbers such devices
/// as it finds them, so the device is told by where its memory begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct CoraclePmem {
    /// Its first guest-physical address, in bytes.
    pub address: u64,
    /// `ext4`, `xfs`, `erofs`, or `auto` to look what is on it; empty means ext4.
    pub filesystem: String,
}

/// Something of the VM that a running container shall see. A remove names the destination alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerMount {
    /// The container.
    pub container_id: String,
    /// The file, folder or socket in the VM.
    pub source: String,
    /// Where the container sees it; made if missing.
    pub destination: String,
    /// Instead of a source: the disk itself, as a block device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<CoracleDisk>,
    /// The container may not write to the disk.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A socket in the guest; each connection to it becomes one to a port of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Pipe {
    /// The socket's path in the guest.
    pub path: String,
    /// The host's port.
    pub port: u32,
}

/// What the guest has to do to use more or less of its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct GuestResources {
    /// So many processors are to be online; 0 leaves them as they are.
    pub processors: u32,
    /// Be ready for memory that comes and goes.
    pub memory: bool,
}

empty_bodies! {
    /// ListState: asks what the guest holds. Goes to the null id.
    ListState
}

/// The answer to [`ListState`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct State {
    /// The containers, those that have exited and are not deleted included.
    pub containers: Vec<ContainerState>,
    /// The processes of containers and VM whose exit is not acknowledged.
    pub processes: Vec<ProcessState>,
}

/// A container in a [`State`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerState {
    /// Which one.
    pub container_id: ContainerId,
    /// Its init process; 0 before the start.
    pub init_process_id: u32,
    /// The `Type` of its exit notification while the host has not acknowledged it, and empty before
    /// the exit and after the acknowledgement.
    pub exit_type: String,
}

/// A process in a [`State`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ProcessState {
    /// The container it runs in; the null id is the VM.
    pub container_id: ContainerId,
    /// Its id in the guest.
    pub process_id: u32,
    /// Its exit code once it has ended; absent while it runs.
    pub exit_code: Option<u32>,
    /// How far its streams are, as the guest sees it; absent where it has no such stream.
    pub std_in: Option<StreamOffset>,
    /// As `std_in`.
    pub std_out: Option<StreamOffset>,
    /// As `std_in`.
    pub std_err: Option<StreamOffset>,
}

/// How far a stream is: offsets in bytes from the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct StreamOffset {
    /// For output the first byte the guest still holds, for input the first it has not received.
    pub first: u64,
    /// For output the first byte the process has not written yet; for input the same as `first`.
    pub end: u64,
    /// The stream has ended at `end`.
    pub closed: bool,
}

/// AckExit: the host has recorded the exit of a process (or, without a process id, of the container
/// in the envelope), and the guest may forget it. Repeating it is no error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AckExit {
    /// Which process; absent for the container itself.
    pub process_id: Option<u32>,
    /// The host wants nothing more of the process: what is left of its streams may go, too.
    pub discard: bool,
}

/// AttachStdio: connects streams of a running process again. The host listens on new ports; the guest
/// dials them as for a new process. Streams without a port stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AttachStdio {
    /// Which process.
    pub process_id: u32,
    /// The ports.
    pub vsock_stdio_relay_settings: VsockStdioRelay,
    /// The first byte of stdout the host wants.
    pub std_out: u64,
    /// The first byte of stderr the host wants.
    pub std_err: u64,
}

/// The answer to [`AttachStdio`]: where each stream goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Attached {
    /// The first byte of stdin the guest has not received.
    pub std_in: u64,
    /// The first byte of stdout that follows; more than asked for means a gap.
    pub std_out: u64,
    /// The first byte of stderr that follows; more than asked for means a gap.
    pub std_err: u64,
}

/// The body of an answer that stays in the guest because it does not fit a frame. The envelope around
/// it is that of the answer without its error texts; the whole answer is the text got by [`Chunk`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Held {
    /// Absent in every other answer.
    pub coracle: Option<HeldAnswer>,
}

/// Where the answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HeldAnswer {
    /// Names the answer within the session; never 0.
    pub handle: u32,
    /// Its length in bytes.
    pub length: u64,
}

/// Chunk: asks for a piece of a held answer. Goes to the null id. The guest forgets the answer once
/// its last piece was sent, and when the session ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Chunk {
    /// Which answer.
    pub handle: u32,
    /// The first byte wanted.
    pub offset: u64,
}

/// The answer to [`Chunk`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ChunkData {
    /// The text from the offset on, as much as fits a frame, cut between two characters.
    pub text: String,
}

rpcs! {
    ListState = LIST_STATE -> State;
    AckExit = ACK_EXIT -> Done;
    AttachStdio = ATTACH_STDIO -> Attached;
    Chunk = CHUNK -> ChunkData;
}

impl Body for State {}
impl Body for AckExit {}
impl Body for AttachStdio {}
impl Body for Attached {}
impl Body for Held {}
impl Body for Chunk {}
impl Body for ChunkData {}
