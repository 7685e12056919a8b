//! The one system call without a safe wrapper: telling a tun device what it is.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Setter, ioctl, opcode};

/// `struct ifreq` as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes an opened `/dev/net/tun` the device `name`, which is at most 15 bytes long.
pub(crate) fn set_interface(tun: impl AsFd, name: &str, flags: u16) -> io::Result<()> {
    const TUNSETIFF: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
    let mut request = InterfaceRequest { name: [0; 16], flags, rest: [0; 22] };
    let length = name.len().min(15);
    request.name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: TUNSETIFF reads a `struct ifreq`, 40 bytes, which `InterfaceRequest` has the layout of,
    // and keeps no reference to it.
    unsafe { ioctl(tun, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }?;
    Ok(())
}
