//! The host-guest protocol of coracle: what a host and the agent in its VM say to each other.
//!
//! A VM is useful once somebody inside it does what the host asks: make a container, start a process,
//! mount a disk. The host asks over a *bridge*, one connection that carries requests, responses and
//! notifications as framed JSON. The format is that of hcsshim's GCS, protocol version 4, exact to the
//! byte, so that either end of ours works with the other end of theirs. What we add, so that a VM can
//! outlive the program that runs it, is negotiated and touches nothing else: sessions that resume,
//! exits that are kept until acknowledged, and stdio addressed by offset.
//!
//! The crate has both ends, no policy, and no knowledge of QEMU or containers. From the bytes up:
//!
//! | module | what |
//! |---|---|
//! | [`channel`] | the connections: a folder of sockets on the host, a keeper behind it, the guest's end |
//! | [`port`] | their port numbers |
//! | [`frame`] | a message on a connection: 16-byte header, body, limits |
//! | [`wire`] | JSON as Go writes and reads it |
//! | [`message`] | every message, and what each end makes of a frame |
//! | [`hresult`] | result codes |
//! | [`client`] | the host's end: calls, containers, processes |
//! | [`server`] | the guest's end: requests to a service, answers in any order |
//! | [`stdio`] | streams of a process that survive a lost connection |
//! | [`boot`] | what the agent learns from the kernel command line |
//!
//! All bytes from the other end are taken to be hostile: every buffer is bounded and nothing that can
//! arrive makes this crate panic.

#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod boot;
pub mod channel;
pub mod client;
pub mod frame;
pub mod hresult;
pub mod message;
pub mod port;
pub mod server;
pub mod stdio;
pub mod wire;
