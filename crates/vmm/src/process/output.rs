//! What a VM's process says on stderr.
//!
//! A guest can make its monitor complain without end, and the monitor outlives whoever reads the
//! complaints. So stderr is neither a file, which would fill the disk, nor a plain pipe, which
//! would block the VM when full and kill its last words when the reader dies. It is a pipe that
//! the VM itself holds open for reading and writing and writes without blocking: never full to
//! its harm, never without a reader, and a new owner reopens it through `/proc`.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    pipe::PipeFlags,
};
use tokio::net::unix::pipe::Receiver;

/// Makes the pipe: the VM's stderr, and our reading end.
///
/// # Errors
/// Out of descriptors. Must be called within a tokio runtime.
pub fn stderr_pipe() -> io::Result<(OwnedFd, Receiver)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let both = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let stderr = rustix::fs::open(path, both, Mode::empty())?;
    Ok((stderr, Receiver::from_owned_fd(reader)?))
}

/// The reading end of a running VM's stderr.
///
/// # Errors
/// The process is gone, or not ours to look into.
pub fn reopen_stderr(pid: u32) -> io::Result<Receiver> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let reader = rustix::fs::open(format!("/proc/{pid}/fd/2"), flags, Mode::empty())?;
    Receiver::from_owned_fd(reader)
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<u8>);

impl Tail {
    /// How much is kept.
    pub(crate) const LIMIT: usize = 16 << 10;

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend(&bytes[bytes.len().saturating_sub(Self::LIMIT)..]);
        let excess = self.0.len().saturating_sub(Self::LIMIT);
        self.0.drain(..excess);
    }

    /// Takes what a pipe holds now, without waiting.
    pub(crate) fn read_rest(&mut self, pipe: &Receiver) {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = pipe.try_read(&mut chunk) {
            self.push(&chunk[..count]);
        }
    }

    /// The text, without escape sequences and control characters other than line ends: it goes
    /// to terminals.
    pub(crate) fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let mut clean = String::with_capacity(text.len());
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                // A control sequence: everything up to its final letter.
                '\x1b' if rest.as_str().starts_with('[') => {
                    rest.next();
                    rest.by_ref().find(|c| ('@'..='~').contains(c));
                }
                '\n' | '\t' => clean.push(c),
                _ if !c.is_control() => clean.push(c),
                _ => {}
            }
        }
        clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_flood_is_kept() {
        let mut tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'x'; 1000]);
        }
        tail.push(b"the end\r\n");
        let text = tail.text();
        assert!(text.len() <= Tail::LIMIT && text.ends_with("xthe end\n"), "{}", text.len());
    }

    #[test]
    fn escape_sequences_do_not_reach_a_terminal() {
        let mut tail = Tail::default();
        tail.push(b"a\x1b[31mb\xff");
        assert_eq!(tail.text(), "ab\u{fffd}");
        let mut torn = Tail::default();
        torn.push(b"a\x1b[3");
        assert_eq!(torn.text(), "a");
    }

    #[tokio::test]
    async fn a_full_stderr_never_blocks_the_writer() {
        let (stderr, reader) = stderr_pipe().unwrap();
        let mut written = 0;
        loop {
            match rustix::io::write(&stderr, &[0; 4096]) {
                Ok(count) => written += count,
                Err(error) => break assert_eq!(error, rustix::io::Errno::AGAIN),
            }
        }
        assert!(written >= 4096);
        drop(reader);
        let again = reopen_stderr_of_descriptor(&stderr);
        let mut chunk = vec![0; written];
        again.readable().await.unwrap();
        assert!(again.try_read(&mut chunk).unwrap() > 0, "the bytes outlive their reader");
    }

    fn reopen_stderr_of_descriptor(fd: &OwnedFd) -> Receiver {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        Receiver::from_owned_fd(rustix::fs::open(path, flags, Mode::empty()).unwrap()).unwrap()
    }
}
