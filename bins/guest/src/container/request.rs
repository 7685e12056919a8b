//! What the agent and its helper say to each other.
//!
//! The request is one JSON document in a file in memory, so that its size does not matter. The
//! replies are packets on a socket, for two reasons: a process that libcontainer has forked can
//! report a failure of its own with its kind, which libcontainer would flatten into text, and a
//! pseudo terminal travels as a descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Process};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use super::devices::Allowed;
use crate::sys;

/// The numbers of the descriptors a helper is started with, after the three of the workload.
pub mod descriptor {
    use std::os::fd::RawFd;

    /// The request, a file.
    pub const REQUEST: RawFd = 3;
    /// The replies, a socket of packets.
    pub const REPLY: RawFd = 4;
    /// What libcontainer logs, a file.
    pub const LOG: RawFd = 5;
    /// The container's init as a pidfd (exec only).
    pub const INIT: RawFd = 6;
}

/// One thing to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Make a container; its init waits to be started. Its specification is in its bundle.
    Create {
        /// Its id, a plain file name.
        id: String,
        /// Whether it gets a terminal.
        terminal: bool,
    },
    /// Start a container that has hooks to run on the way.
    Start {
        /// The container.
        id: String,
    },
    /// Run one more process in a container.
    Exec(Box<Exec>),
    /// Say which block devices a container may use beyond its specification's.
    Devices {
        /// The container.
        id: String,
        /// All of them.
        allowed: Vec<Allowed>,
    },
    /// Remove what is left of a container, its processes first.
    Delete {
        /// The container.
        id: String,
    },
}

/// A process to add to a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exec {
    /// The process; what it leaves out is as for the container's init.
    pub process: Process,
    /// The container's init process as specified.
    pub init: Process,
    /// The system call filter of the container.
    pub seccomp: Option<LinuxSeccomp>,
    /// The namespaces the container has of its own.
    pub namespaces: Vec<LinuxNamespaceType>,
    /// The container's cgroup in `/sys/fs/cgroup`.
    pub cgroup: std::path::PathBuf,
}

/// What a helper, or a process it made, has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The workload's process, numbered in the agent's pid namespace.
    Pid(i32),
    /// The master of the workload's terminal comes with this packet.
    Terminal,
    /// All went well.
    Ready,
    /// It did not.
    Failed(Failure),
}

/// A failure and what the host is to make of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// The text for people.
    pub message: String,
}

/// The failures that have a code of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// There is no such program (a shell's 127).
    ProgramNotFound,
    /// The program cannot be executed (a shell's 126).
    ProgramNotExecutable,
    /// The container's files have no such user or group.
    UserNotFound,
    /// Anything else.
    Other,
}

/// The helper's end of the reply socket.
#[derive(Debug)]
pub struct ReplySocket(OwnedFd);

/// The largest packet: an error text and its frame.
const PACKET: usize = 16 * 1024;

impl ReplySocket {
    /// Wraps an end of a connected `SOCK_SEQPACKET` pair.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The descriptor, to wait on or to pass on.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Reports the workload's process.
    pub fn pid(&self, pid: i32) -> io::Result<()> {
        self.send(&Reply::Pid(pid), None)
    }

    /// Hands over the master of the workload's terminal.
    pub fn terminal(&self, master: BorrowedFd<'_>) -> io::Result<()> {
        self.send(&Reply::Terminal, Some(master))
    }

    /// Reports success.
    pub fn ready(&self) -> io::Result<()> {
        self.send(&Reply::Ready, None)
    }

    /// Reports a failure; an overlong text is cut.
    pub fn failed(&self, failure: &Failure) -> io::Result<()> {
        let mut failure = failure.clone();
        // A character can take six bytes in JSON.
        let mut end = failure.message.len().min(PACKET / 8);
        while !failure.message.is_char_boundary(end) {
            end -= 1;
        }
        failure.message.truncate(end);
        self.send(&Reply::Failed(failure), None)
    }

    fn send(&self, reply: &Reply, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let text = serde_json::to_vec(reply)?;
        let descriptors: Vec<RawFd> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<UnixAddr>(
            self.descriptor(),
            &[IoSlice::new(&text)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }
}

/// Takes the next packet and the descriptor in it; `None` when every sender is gone.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Reply, Option<OwnedFd>)>> {
    let mut buffer = vec![0; PACKET];
    let mut control = cmsg_space!([RawFd; 1]);
    let (length, descriptor) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
        let mut descriptor = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                for number in descriptors {
                    descriptor = Some(sys::received(number));
                }
            }
        }
        (message.bytes, descriptor)
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, descriptor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    fn pair() -> (OwnedFd, ReplySocket) {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        (a, ReplySocket::new(b))
    }

    #[test]
    fn replies_arrive_one_by_one_and_then_the_end() {
        let (ours, theirs) = pair();
        theirs.pid(42).unwrap();
        theirs.ready().unwrap();
        drop(theirs);
        assert_eq!(receive(ours.as_fd()).unwrap().unwrap().0, Reply::Pid(42));
        assert_eq!(receive(ours.as_fd()).unwrap().unwrap().0, Reply::Ready);
        assert!(receive(ours.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_terminal_arrives_as_an_open_descriptor() {
        let (ours, theirs) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through").unwrap();
        file.rewind().unwrap();
        theirs.terminal(file.as_fd()).unwrap();
        let (reply, descriptor) = receive(ours.as_fd()).unwrap().unwrap();
        assert_eq!(reply, Reply::Terminal);
        let mut text = String::new();
        std::fs::File::from(descriptor.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn an_endless_error_text_is_cut_to_a_packet() {
        let (ours, theirs) = pair();
        let failure = Failure { kind: FailureKind::Other, message: "\u{1}ä".repeat(100_000) };
        theirs.failed(&failure).unwrap();
        let (reply, _) = receive(ours.as_fd()).unwrap().unwrap();
        assert!(matches!(reply, Reply::Failed(cut) if failure.message.starts_with(&cut.message)));
    }
}
