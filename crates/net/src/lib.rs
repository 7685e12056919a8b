//! The host's side of a sandbox's network.
//!
//! ```text
//!   private network:  guest ── tap ── host (address, NAT, names, rules) ── host's routes
//!   namespace:        guest ── tap ══ mirrored ══ veth ── whatever a CNI plugin made
//!   macvtap:          guest ── macvtap ── a device of the host
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`namespace`] | network namespaces: made, entered on a thread of its own, deleted |
//! | [`tap`], [`link`], [`mirror`] | devices, over netlink; no program is run for it |
//! | [`discover`] | what somebody put into a namespace: addresses, routes, neighbours |
//! | [`cni`] | plugins that put something there |
//! | [`endpoint`] | the eight kinds of endpoint, and how each becomes a network card |
//! | [`rules`] | nftables: NAT, published ports, who may send what |
//! | [`private`] | networks of ours, shared by sandboxes, gone with their last user |
//! | [`publish`], [`egress`], [`rates`], [`pool`] | what users write, and addresses, as pure values |
//! | [`dns`], [`forward`] | the two servers that stand beside a network: names, and ports on loopback |
//!
//! What works on devices and rules blocks for some milliseconds: asynchronous callers give it a thread
//! that may. Whatever is made has a name made from its owner's, and making or deleting it twice does
//! no harm: that is how what a killed owner left is found and finished.

#![deny(unsafe_code)]

pub mod cni;
pub mod discover;
pub mod dns;
pub mod egress;
pub mod endpoint;
mod error;
pub mod forward;
pub mod link;
pub mod mirror;
pub mod namespace;
mod netlink;
pub mod pool;
pub mod private;
pub mod process;
pub mod publish;
pub mod rates;
pub mod rules;
mod sys;
pub mod tap;

pub use error::{NetError, Result};
pub use ipnet::IpNet;
