//! The messages of the protocol.
//!
//! Every message is an envelope ([`Request`], [`Response`], [`Notification`]) around a body. The
//! bodies are plain structs, each named after what it asks for; [`Rpc`] ties the body of a request
//! to its message type and to the body of the answer. The same struct serves both ends, and
//! [`wire`](crate::wire) writes it as either end does.
//!
//! | Request | Body | Answer |
//! |---|---|---|
//! | NegotiateProtocol | [`Negotiate`] | [`Negotiated`] |
//! | Create | [`Create`] | [`Created`] |
//! | Start, ShutdownGraceful, ShutdownForced, DeleteContainerState | [`Start`], [`ShutdownGraceful`], [`ShutdownForced`], [`DeleteContainerState`] | [`Done`] |
//! | ExecuteProcess | [`ExecuteProcess`] | [`Executed`] |
//! | WaitForProcess | [`WaitForProcess`] | [`Exited`] |
//! | SignalProcess, ResizeConsole | [`SignalProcess`], [`ResizeConsole`] | [`Done`] |
//! | GetProperties | [`GetProperties`] | [`PropertiesAnswer`] |
//! | ModifySettings | [`Modify`] | [`Done`] |
//! | DumpStacks | [`DumpStacks`] | [`Stacks`] |
//! | LifecycleNotification | [`LifecycleNotification`] | [`Done`] |
//! | ours: ListState, AckExit, AttachStdio, Chunk | [`ListState`], [`AckExit`], [`AttachStdio`], [`Chunk`] | [`State`], [`Done`], [`Attached`], [`ChunkData`] |
//!
//! [`incoming`] is what each end makes of a frame it receives.

mod base;
mod container;
mod coracle;
mod envelope;
pub mod incoming;
mod metrics;
mod modify;
mod negotiate;
mod notification;
mod process;
mod properties;
mod resource;

pub use base::{ActivityId, ContainerId, ErrorRecord, TraceContext};
pub use container::{
    ContainerConfig, Create, Created, DeleteContainerState, Done, DumpStacks,
    LifecycleNotification, ProtocolSupport, ShutdownForced, ShutdownGraceful, Stacks, Start,
    SystemConfig,
};
pub use coracle::{
    AckExit, AttachStdio, Attached, Chunk, ChunkData, ContainerMount, ContainerState,
    CoracleAdapter, CoracleDisk, CoracleGuest, CoracleHost, CoracleLayers, CoracleNeighbour,
    CoraclePci, CoraclePmem, CoracleRoute, CoracleShare, GuestResources, Held, HeldAnswer,
    ListState, Pipe, ProcessState, State, StreamOffset,
};
pub use envelope::{Notification, Request, Response, Rpc};
pub use metrics::{
    BlkIoEntry, BlkIoMetrics, CgroupMetrics, CpuMetrics, CpuUsage, HugetlbMetrics, MemoryEntry,
    MemoryMetrics, MemoryOomControl, NetworkMetrics, PidsMetrics, RdmaEntry, RdmaMetrics,
    TaskCounts, Throttling,
};
pub use modify::{Modify, ModifySettings, RequestType, ResourceError, ResourceType, Verb};
pub use negotiate::{
    Capabilities, GuestDefinedCapabilities, Negotiate, Negotiated, PROTOCOL_VERSION, SchemaVersion,
};
pub use notification::{ContainerNotification, NotificationType};
pub use process::{
    ExecuteProcess, ExecuteSettings, Executed, Exited, ProcessParameters, ResizeConsole,
    SignalOptions, SignalProcess, StdioRelay, VsockStdioRelay, WAIT_FOREVER, WaitForProcess,
    WindowsSignalOptions,
};
pub use properties::{
    GetProperties, ProcessEntry, Properties, PropertiesAnswer, PropertiesQuery, PropertyType,
};
pub use resource::{
    CombinedLayers, ContainerConstraints, HvSocketAddress, Layer, MappedDirectory,
    MappedVirtualDisk, NetworkAdapter, NetworkNamespace, Resource, SecurityPolicy, VerityInfo,
    VpciDevice, VpmemDevice, VpmemMapping, WindowsAdapter,
};
