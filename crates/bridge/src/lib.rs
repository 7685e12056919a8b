//! The host-guest protocol of coracle.
//!
//! The owner of the messages writes this page.

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
