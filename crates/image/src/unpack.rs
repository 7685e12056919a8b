//! Lays one tar into a tree, its data straight into the image.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use crate::compression::Decoder;
use crate::erofs::{Content, ErofsError, Tree, Writer};
use crate::plan::{Plan, PlanError, Whiteouts};
use crate::progress::{Cancelled, Progress, step};
use crate::tar::{Entry, Reader, Segment, TarError};

/// How much is read at a time.
const PIECE: usize = 256 << 10;

/// Why a tar could not be laid into an image.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream is compressed in a way that is not supported, or cannot be read at all.
    #[error("cannot read it")]
    Open(#[source] io::Error),
    /// It is no tar, or a damaged one.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry has no place in the tree.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The image could not be written.
    #[error(transparent)]
    Erofs(#[from] ErofsError),
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Counts the bytes that are read through it, for progress.
#[derive(Debug)]
pub(crate) struct Metered<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.read(buffer)?;
        self.count.set(self.count.get() + len as u64);
        Ok(len)
    }
}

/// Lays the tar that `raw` gives, compressed or not, into `plan` and `writer`. Reads `raw` to its
/// end, so that a digest computed on the way is that of all of it.
pub(crate) fn unpack(
    raw: &mut dyn Read,
    plan: &mut Plan,
    writer: &mut Writer,
    progress: &mut dyn Progress,
) -> Result<(), UnpackError> {
    let count = Rc::new(Cell::new(0));
    let mut raw = Metered { inner: raw, count: Rc::clone(&count) };
    let decoder = Decoder::new(&mut raw).map_err(UnpackError::Open)?;
    let mut tar = Reader::new(decoder);
    let mut buffer = vec![0; PIECE];
    while let Some(mut entry) = tar.next_entry()? {
        let segments = entry.segments.take();
        let size = entry.size;
        let file = place(plan, entry, writer)?;
        if let Some(file) = file {
            let mut copy = Copy { tar: &mut tar, buffer: &mut buffer, count: &count, progress };
            let content = match segments {
                Some(segments) => copy.sparse(writer, &segments, size)?,
                None => copy.whole(writer)?,
            };
            plan.fill(file, content);
        }
        step(progress, count.take())?;
    }
    // What follows the end of the tar says nothing, but it belongs to the digest, and a broken
    // compressed stream must not go unseen.
    let at = tar.position();
    let mut decoder = tar.into_inner();
    drain(&mut decoder, &mut buffer, at)?;
    drop(decoder);
    drain(&mut raw, &mut buffer, at)?;
    step(progress, count.take())?;
    Ok(())
}

/// The tree that a plain tar would become, without its contents: nothing but `raw` is touched.
/// What a fuzzer of tars calls.
///
/// # Errors
/// [`UnpackError::Tar`], [`UnpackError::Plan`].
pub fn rehearse(raw: &mut dyn Read, whiteouts: Whiteouts) -> Result<Tree, UnpackError> {
    let mut plan = Plan::new(whiteouts);
    let mut tar = Reader::new(raw);
    while let Some(entry) = tar.next_entry()? {
        plan.place(entry)?;
    }
    Ok(plan.into_tree())
}

/// Places the entry, and gives up the blocks of what it replaced.
fn place(
    plan: &mut Plan,
    entry: Entry,
    writer: &mut Writer,
) -> Result<Option<crate::erofs::NodeId>, UnpackError> {
    let file = plan.place(entry)?;
    for content in plan.take_freed() {
        writer.discard(&content)?;
    }
    Ok(file)
}

fn drain(from: &mut dyn Read, buffer: &mut [u8], at: u64) -> Result<(), TarError> {
    loop {
        match from.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(TarError::Truncated { at, entry: None });
            }
            Err(source) => return Err(TarError::Read { at, source }),
        }
    }
}

/// Copies the data of one entry.
struct Copy<'a, R> {
    tar: &'a mut Reader<R>,
    buffer: &'a mut [u8],
    count: &'a Cell<u64>,
    progress: &'a mut dyn Progress,
}

impl<R: Read> Copy<'_, R> {
    fn whole(&mut self, writer: &mut Writer) -> Result<Content, UnpackError> {
        let mut file = writer.file();
        loop {
            let len = self.tar.read_data(self.buffer)?;
            if len == 0 {
                return Ok(file.finish()?);
            }
            file.write(&self.buffer[..len])?;
            step(self.progress, self.count.take())?;
        }
    }

    /// The segments were checked to be in order, within `size`, and as long as the data.
    fn sparse(
        &mut self,
        writer: &mut Writer,
        segments: &[Segment],
        size: u64,
    ) -> Result<Content, UnpackError> {
        let mut file = writer.file();
        let mut end = 0;
        for segment in segments {
            file.skip(segment.offset - end)?;
            let mut left = segment.len;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                let len = self.tar.read_data(&mut self.buffer[..most])?;
                file.write(&self.buffer[..len])?;
                left -= len as u64;
                step(self.progress, self.count.take())?;
            }
            end = segment.offset + segment.len;
        }
        file.skip(size - end)?;
        Ok(file.finish()?)
    }
}
