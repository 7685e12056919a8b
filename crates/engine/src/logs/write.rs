//! Writing the log, and finding where a former writer stopped.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Limits, Line, Stream, file};
use crate::record::now;

/// A block that is read from a file's end in search of its last line.
const BLOCK: u64 = 64 << 10;

/// The one who writes.
#[derive(Debug)]
pub(crate) struct Writer {
    folder: PathBuf,
    file: File,
    /// Bytes in the file, all of them whole lines.
    size: u64,
    limits: Limits,
    ends: [u64; 2],
}

impl Writer {
    /// Goes on with the log in a folder, which is made if it is not there.
    pub(crate) fn open(folder: &Path, limits: Limits) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let (mut file, mut size) = open(&super::file(folder, 0))?;
        let mut last = last_line(&mut file, &mut size)?;
        file.set_len(size)?;
        if last.is_none()
            && let Ok(mut older) = File::open(super::file(folder, 1))
        {
            // Its writer died when it had put the full file aside.
            let mut size = older.metadata()?.len();
            last = last_line(&mut older, &mut size)?;
        }
        let ends = last.map_or([0, 0], |line| line.ends);
        Ok(Self { folder: folder.to_owned(), file, size, limits, ends })
    }

    /// Begins where another ends, if it is empty.
    pub(super) fn begin_at(&mut self, other: &Self) {
        if self.size == 0 {
            self.ends = other.ends;
        }
    }

    /// Bytes in its newest file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Has the disk refuse what is written, or take it again.
    #[cfg(test)]
    pub(super) fn refuse(&mut self, refuse: bool) {
        let path = super::file(&self.folder, 0);
        self.file = match refuse {
            true => File::open(path).unwrap(),
            false => open(&path).unwrap().0,
        };
    }

    /// Where a stream goes on.
    pub(crate) fn end(&self, stream: Stream) -> u64 {
        self.ends[stream.index()]
    }

    /// Writes a piece of a stream that begins at its end. On failure the log is as it was.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let (text, base64) = match std::str::from_utf8(bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(bytes))),
        };
        self.write(stream, bytes.len(), |line| Line { text, base64, ..line })
    }

    /// Writes that so many bytes of a stream are missing.
    pub(crate) fn skip(&mut self, stream: Stream, lost: u64) -> io::Result<()> {
        let count = usize::try_from(lost).unwrap_or(usize::MAX);
        self.write(stream, count, |line| Line { lost: Some(lost), ..line })
    }

    fn write(
        &mut self,
        stream: Stream,
        length: usize,
        fill: impl FnOnce(Line) -> Line,
    ) -> io::Result<()> {
        if self.size >= self.limits.size {
            self.rotate()?;
        }
        let offset = self.ends[stream.index()];
        let mut ends = self.ends;
        ends[stream.index()] = offset.saturating_add(length as u64);
        let bare = Line { time: now(), stream, offset, ends, text: None, base64: None, lost: None };
        let mut bytes = serde_json::to_vec(&fill(bare))?;
        bytes.push(b'\n');
        if let Err(error) = self.file.write_all(&bytes) {
            // Whatever of it was written is no whole line.
            self.file.set_len(self.size)?;
            self.file.seek(SeekFrom::Start(self.size))?;
            return Err(error);
        }
        self.size += bytes.len() as u64;
        self.ends = ends;
        Ok(())
    }

    /// Puts the full file aside. A writer that dies on the way leaves files that are all whole.
    fn rotate(&mut self) -> io::Result<()> {
        // The end of the file before must be there until the next has a line.
        let oldest = self.limits.files.max(2) - 1;
        for number in (0..oldest).rev() {
            match fs::rename(file(&self.folder, number), file(&self.folder, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        let (file, size) = open(&file(&self.folder, 0))?;
        (self.file, self.size) = (file, size);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    Ok((file, size))
}

/// The last whole line; `size` becomes that of the whole lines, where the file is then positioned.
fn last_line(file: &mut File, size: &mut u64) -> io::Result<Option<Line>> {
    let mut tail = Vec::new();
    let mut start = *size;
    let is_line = |bytes: &[u8]| serde_json::from_slice::<Line>(bytes).ok();
    loop {
        if start == 0 && tail.is_empty() {
            break;
        }
        let before = start;
        start = start.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(before - start).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        block.append(&mut tail);
        tail = block;
        // A line is what is between two ends of lines, or the file's start and one.
        let ends = tail.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        for (end, _) in ends {
            let from = tail[..end].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
            let from = match (from, start) {
                (Some(from), _) => from,
                (None, 0) => 0,
                (None, _) => break,
            };
            if let Some(line) = is_line(&tail[from..end]) {
                *size = start + end as u64 + 1;
                file.seek(SeekFrom::Start(*size))?;
                return Ok(Some(line));
            }
        }
        if start == 0 {
            break;
        }
    }
    *size = 0;
    file.seek(SeekFrom::Start(0))?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::read::Reader;
    use super::*;

    fn read(folder: &Path) -> [Vec<u8>; 2] {
        let mut streams = [Vec::new(), Vec::new()];
        for chunk in Reader::open(folder).chunks().unwrap() {
            streams[chunk.stream.index()].extend(chunk.bytes);
        }
        streams
    }

    #[test]
    fn a_writer_goes_on_where_the_last_whole_line_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), Limits::default()).unwrap();
        writer.append(Stream::Stdout, b"one\n").unwrap();
        writer.append(Stream::Stderr, b"\xff\xfe").unwrap();
        drop(writer);
        let mut torn = OpenOptions::new().append(true).open(file(folder.path(), 0)).unwrap();
        torn.write_all(br#"{"time":"x","stream":"stdout","offset":4,"ends":[9"#).unwrap();
        let mut writer = Writer::open(folder.path(), Limits::default()).unwrap();
        assert_eq!((writer.end(Stream::Stdout), writer.end(Stream::Stderr)), (4, 2));
        writer.append(Stream::Stdout, b"two\n").unwrap();
        assert_eq!(read(folder.path()), [b"one\ntwo\n".to_vec(), b"\xff\xfe".to_vec()]);
    }

    #[test]
    fn a_writer_that_died_while_putting_a_file_aside_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(folder.path(), Limits::default()).unwrap();
        writer.append(Stream::Stdout, b"12345").unwrap();
        fs::rename(file(folder.path(), 0), file(folder.path(), 1)).unwrap();
        let writer = Writer::open(folder.path(), Limits::default()).unwrap();
        assert_eq!(writer.end(Stream::Stdout), 5);
    }

    #[test]
    fn what_is_kept_is_bounded_and_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { size: 4096, files: 3 };
        let mut writer = Writer::open(folder.path(), limits).unwrap();
        for number in 0..500 {
            writer.append(Stream::Stdout, format!("{number:050}\n").as_bytes()).unwrap();
        }
        let sizes: u64 = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .sum();
        assert!(sizes <= 3 * (4096 + 256), "{sizes}");
        let [out, _] = read(folder.path());
        assert!(String::from_utf8(out).unwrap().ends_with(&format!("{:050}\n", 499)));
        assert_eq!(Writer::open(folder.path(), limits).unwrap().end(Stream::Stdout), 500 * 51);
    }

    proptest! {
        /// Written by any number of writers that each died, the last with a torn line: the streams
        /// are what was written.
        #[test]
        fn no_byte_is_missed_and_none_is_there_twice(
            pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 1..40), any::<bool>()), 1..60)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let limits = Limits { size: 1024, files: 1000 };
            let mut writer = Writer::open(folder.path(), limits).unwrap();
            let mut expected = [Vec::new(), Vec::new()];
            for (err, bytes, dies) in pieces {
                let stream = if err { Stream::Stderr } else { Stream::Stdout };
                writer.append(stream, &bytes).unwrap();
                expected[stream.index()].extend(bytes);
                if dies {
                    drop(writer);
                    let mut torn =
                        OpenOptions::new().append(true).open(file(folder.path(), 0)).unwrap();
                    torn.write_all(b"{\"time\":\"").unwrap();
                    writer = Writer::open(folder.path(), limits).unwrap();
                }
            }
            prop_assert_eq!(read(folder.path()), expected);
        }
    }
}
