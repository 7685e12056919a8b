//! The log of a command, and what it has no room for.
//!
//! ```text
//!   LOGGING ── the disk refuses ──► SPILLING ── it takes all that was spilled ──► LOGGING
//! ```
//!
//! What the disk refuses goes to a folder in the run directory, which is memory of the host, up to
//! [`MOST`] bytes, and from there to the log when there is room again. Spilled output counts as kept: a
//! monitor that takes over goes on behind it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Limits, Reader, Stream, WhenFull, Writer};

/// The most that is spilled, in bytes of lines: what it takes from the host's memory.
const MOST: u64 = 16 << 20;

/// How often the disk is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// A log that may spill.
#[derive(Debug)]
pub(crate) struct Log {
    log: Writer,
    folder: PathBuf,
    may_spill: bool,
    /// What is being spilled, and when the disk is tried again.
    spilled: Option<(Writer, Instant)>,
}

impl Log {
    /// Goes on with the log in a folder, and with what was spilled into another.
    pub(crate) fn open(
        log: &Path,
        limits: Limits,
        spill: PathBuf,
        when_full: WhenFull,
    ) -> io::Result<Self> {
        let log = Writer::open(log, limits)?;
        let mut spilled = None;
        if spill.exists() {
            let writer = open_spill(&spill)?;
            let is_ahead = [Stream::Stdout, Stream::Stderr]
                .into_iter()
                .any(|stream| writer.end(stream) > log.end(stream));
            if is_ahead {
                spilled = Some((writer, Instant::now()));
            } else {
                // All of it had reached the log.
                fs::remove_dir_all(&spill)?;
            }
        }
        Ok(Self { log, folder: spill, may_spill: when_full == WhenFull::Spill, spilled })
    }

    /// Where a stream goes on.
    pub(crate) fn end(&self, stream: Stream) -> u64 {
        let spilled = self.spilled.as_ref().map_or(0, |(writer, _)| writer.end(stream));
        self.log.end(stream).max(spilled)
    }

    /// Keeps a piece of a stream that begins at its end. On failure all is as it was.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.write(|writer| writer.append(stream, bytes))
    }

    /// Keeps that so many bytes of a stream are missing.
    pub(crate) fn skip(&mut self, stream: Stream, lost: u64) -> io::Result<()> {
        self.write(|writer| writer.skip(stream, lost))
    }

    fn write(&mut self, act: impl Fn(&mut Writer) -> io::Result<()>) -> io::Result<()> {
        let is_time = self.spilled.as_ref().is_some_and(|(_, next)| *next <= Instant::now());
        if is_time {
            // Failure means that it goes on being spilled.
            let _ = self.drain();
        }
        if let Some((writer, _)) = &mut self.spilled {
            if writer.size() >= MOST {
                return Err(ErrorKind::StorageFull.into());
            }
            return act(writer);
        }
        let Err(refused) = act(&mut self.log) else { return Ok(()) };
        if !self.may_spill {
            return Err(refused);
        }
        let mut writer = open_spill(&self.folder)?;
        writer.begin_at(&self.log);
        act(&mut writer)?;
        tracing::warn!(error = %refused, "the log has no room: output is kept in the run directory");
        self.spilled = Some((writer, Instant::now() + RETRY));
        Ok(())
    }

    /// Brings what was spilled to the log. True when nothing is.
    pub(crate) fn drain(&mut self) -> bool {
        let Some((_, next)) = &mut self.spilled else { return true };
        *next = Instant::now() + RETRY;
        match self.move_to_log() {
            Ok(()) => {
                self.spilled = None;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "the log has no room yet");
                false
            }
        }
    }

    fn move_to_log(&mut self) -> io::Result<()> {
        let chunks = Reader::open(&self.folder).chunks().map_err(io::Error::other)?;
        for chunk in chunks {
            // Some of it may have reached the log before.
            if chunk.offset < self.log.end(chunk.stream) {
                continue;
            }
            match chunk.lost {
                0 => self.log.append(chunk.stream, &chunk.bytes)?,
                lost => self.log.skip(chunk.stream, lost)?,
            }
        }
        fs::remove_dir_all(&self.folder)
    }
}

fn open_spill(folder: &Path) -> io::Result<Writer> {
    // It is never put aside: that would lose the oldest of it.
    Writer::open(folder, Limits { size: u64::MAX, files: 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn open(&self, when_full: WhenFull) -> Log {
            let (log, spill) = (self.dir.path().join("log"), self.dir.path().join("spill"));
            Log::open(&log, Limits::default(), spill, when_full).unwrap()
        }

        fn read(&self) -> String {
            let chunks = Reader::open(&self.dir.path().join("log")).chunks().unwrap();
            let of = |stream: Stream| {
                let of_it = chunks.iter().filter(|chunk| chunk.stream == stream);
                let bytes: Vec<u8> = of_it.flat_map(|chunk| chunk.bytes.clone()).collect();
                String::from_utf8(bytes).unwrap()
            };
            format!("{} {}", of(Stream::Stdout), of(Stream::Stderr))
        }
    }

    #[test]
    fn what_the_disk_refuses_is_spilled_and_reaches_the_log_in_order_and_once() {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let mut log = place.open(WhenFull::Spill);
        log.append(Stream::Stdout, b"a").unwrap();
        log.log.refuse(true);
        log.append(Stream::Stdout, b"b").unwrap();
        log.append(Stream::Stderr, b"x").unwrap();
        log.skip(Stream::Stderr, 3).unwrap();
        assert_eq!((log.end(Stream::Stdout), log.end(Stream::Stderr)), (2, 4));
        assert!(!log.drain());
        assert_eq!(place.read(), "a ");

        // The next monitor goes on behind it, and brings it over when there is room.
        drop(log);
        let mut log = place.open(WhenFull::Spill);
        assert_eq!((log.end(Stream::Stdout), log.end(Stream::Stderr)), (2, 4));
        log.log.refuse(true);
        log.append(Stream::Stdout, b"c").unwrap();
        log.log.refuse(false);
        assert!(log.drain() && !place.dir.path().join("spill").exists());
        log.append(Stream::Stdout, b"d").unwrap();
        assert_eq!(place.read(), "abcd x");
        assert_eq!((log.end(Stream::Stdout), log.end(Stream::Stderr)), (4, 4));
    }

    #[test]
    fn one_that_died_between_log_and_spill_leaves_nothing_twice() {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let mut log = place.open(WhenFull::Spill);
        log.log.refuse(true);
        log.append(Stream::Stdout, b"a").unwrap();
        log.append(Stream::Stdout, b"b").unwrap();
        // Half of it has reached the log, then all, and the spill is still there.
        log.log.refuse(false);
        log.log.append(Stream::Stdout, b"a").unwrap();
        drop(log);
        let mut log = place.open(WhenFull::Spill);
        assert!(log.drain());
        assert_eq!(place.read(), "ab ");
        fs::create_dir(place.dir.path().join("spill")).unwrap();
        assert_eq!(place.open(WhenFull::Block).end(Stream::Stdout), 2);
        assert!(!place.dir.path().join("spill").exists());
    }

    #[test]
    fn one_that_may_not_spill_refuses_and_one_that_may_has_an_end() {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let mut log = place.open(WhenFull::Block);
        log.log.refuse(true);
        assert!(log.append(Stream::Stdout, b"a").is_err());
        let mut log = place.open(WhenFull::Spill);
        log.log.refuse(true);
        let piece = vec![b'x'; 1 << 20];
        let kept = (0..100).take_while(|_| log.append(Stream::Stdout, &piece).is_ok()).count();
        assert!((15..18).contains(&kept), "{kept}");
        assert_eq!(log.end(Stream::Stdout), (kept as u64) << 20);
    }
}
