//! Between QEMU and rust-vmm: QEMU enables the rings of a network card before it has agreed on features.
//! Switches that people use let that pass; rust-vmm hangs up. Here such requests wait for the features.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The most descriptors a message has: one for each region of memory.
const DESCRIPTORS: usize = 8;
/// Request, flags, size of what follows.
const HEADER: usize = 12;
const SET_FEATURES: u32 = 2;
const SET_VRING_ENABLE: u32 = 18;

/// Passes on what both say until one of them hangs up.
pub fn relay(qemu: UnixStream, server: UnixStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Ends with either.
            let _ = std::io::copy(&mut &server, &mut &qemu);
            let _ = qemu.shutdown(Shutdown::Both);
        });
        let (mut agreed, mut early) = (false, Vec::new());
        while let Some((message, descriptors)) = receive(&qemu) {
            let request = u32::from_ne_bytes(message[..4].try_into().unwrap());
            if request == SET_VRING_ENABLE && !agreed {
                early.push(message);
                continue;
            }
            agreed |= request == SET_FEATURES;
            let due = if agreed { std::mem::take(&mut early) } else { Vec::new() };
            let mut all = std::iter::once((message, &descriptors[..]))
                .chain(due.into_iter().map(|message| (message, &[][..])));
            if !all.all(|(message, descriptors)| send(&server, &message, descriptors)) {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    });
}

fn receive(qemu: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut message)];
    let got = recvmsg(qemu, parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = part {
            descriptors.extend(given);
        }
    }
    // QEMU writes a message at once, and hangs up between two.
    let mut reader = qemu;
    reader.read_exact(&mut message[got.bytes..]).ok()?;
    let size = u32::from_ne_bytes(message[8..HEADER].try_into().unwrap());
    message.resize(HEADER + usize::try_from(size).unwrap(), 0);
    reader.read_exact(&mut message[HEADER..]).ok()?;
    Some((message, descriptors))
}

fn send(server: &UnixStream, message: &[u8], descriptors: &[OwnedFd]) -> bool {
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let sent = sendmsg(server, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL);
    let mut writer = server;
    sent.is_ok_and(|sent| writer.write_all(&message[sent..]).is_ok())
}
