//! The ports of a VM's channel.
//!
//! A port is a number the two ends agree on, as with AF_VSOCK; each VM has a port space of its own.
//! Except where a host listens for the stdio of a process, the guest dials and the host accepts.

/// The guest reads its first entropy here, to end of file, before anything else starts.
pub const ENTROPY: u32 = 1;

/// The guest writes its log here, one JSON object a line.
pub const LOG: u32 = 109;

/// A 9P server of the host, one connection for each mounted share.
pub const PLAN9: u32 = 564;

/// The bridge: the one connection that carries requests, responses and notifications.
pub const BRIDGE: u32 = 0x4000_0000;

/// The first port for the stdio of processes. A host hands them out in rising order and the guest
/// dials stdin, stdout and stderr in this order.
pub const STDIO_FIRST: u32 = 0x4000_0001;
