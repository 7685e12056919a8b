//! How a caller follows, and stops, the making of an image.

/// What is being done. Phases follow each other; a cached image may have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A directory's metadata is read, to see whether it changed since the last time.
    Scan,
    /// A tar's digest is computed.
    Digest,
    /// A compressed archive is unpacked into a temporary file, to find the layers in it.
    Unpack,
    /// Another process makes the same image.
    Wait,
    /// Contents of a directory or a tar are copied.
    Copy,
    /// One layer of an image is copied.
    Layer {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        count: usize,
    },
    /// Metadata is written and everything is put on disk.
    Finish,
}

/// Told what happens while an image is made; `()` is one that does not care.
pub trait Progress {
    /// A phase begins. `total` is the number of bytes it will advance, when known.
    fn begin(&mut self, phase: Phase, total: Option<u64>) {
        let _ = (phase, total);
    }

    /// So many more bytes of the phase are done.
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// Asked often; `true` ends the work with [`ImageError::Cancelled`](crate::ImageError).
    fn cancelled(&self) -> bool {
        false
    }
}

impl Progress for () {}

/// The caller wants no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("making the image was cancelled")]
pub struct Cancelled;

/// Advances, and stops when asked to.
pub(crate) fn step(progress: &mut dyn Progress, bytes: u64) -> Result<(), Cancelled> {
    progress.advance(bytes);
    if progress.cancelled() { Err(Cancelled) } else { Ok(()) }
}
