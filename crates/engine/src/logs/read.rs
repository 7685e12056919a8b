//! Reading the log, while somebody writes it or not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Line, Stream, file};

/// Files that are looked for, newest first; a log has fewer.
const MOST_FILES: u32 = 1000;

/// A log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file of it.
    #[error("cannot read the log {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A piece of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// When it was written down, RFC 3339.
    pub time: String,
    /// Which stream it is of.
    pub stream: Stream,
    /// Where in the stream it begins.
    pub offset: u64,
    /// What was written; empty where something is missing.
    pub bytes: Vec<u8>,
    /// So many bytes are missing here.
    pub lost: u64,
}

/// One who reads a log from its beginning, and on as it grows.
#[derive(Debug)]
pub struct Reader {
    folder: PathBuf,
    /// The file being read and where, once reading began.
    current: Option<(File, u64)>,
}

impl Reader {
    /// Reads the log in a folder.
    pub fn open(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), current: None }
    }

    /// Everything that is there and was not read yet. A line that is being written is left for later.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn chunks(&mut self) -> Result<Vec<Chunk>, LogError> {
        let mut chunks = Vec::new();
        if self.current.is_none() {
            let Some(oldest) = self.oldest()? else { return Ok(chunks) };
            self.current = Some((oldest, 0));
        }
        loop {
            let next = self.newer()?;
            if let Some((open, at)) = &mut self.current {
                let path = &self.folder;
                let read = read_lines(open, at, &mut chunks);
                read.map_err(|source| LogError::Read { path: path.clone(), source })?;
            }
            match next {
                // What was read above was all of it: it had been put aside before.
                Some(next) => self.current = Some((next, 0)),
                None => return Ok(chunks),
            }
        }
    }

    fn oldest(&self) -> Result<Option<File>, LogError> {
        let mut oldest = None;
        for number in 0..MOST_FILES {
            match self.file(number)? {
                Some(found) => oldest = Some(found),
                // The newest may be about to be made.
                None if number == 0 => {}
                None => break,
            }
        }
        Ok(oldest)
    }

    /// The file after the one being read, if that was put aside.
    fn newer(&self) -> Result<Option<File>, LogError> {
        let Some((current, _)) = &self.current else { return Ok(None) };
        let Ok(current) = current.metadata().map(|stat| stat.ino()) else { return Ok(None) };
        let mut newer = None;
        for number in 0..MOST_FILES {
            match self.file(number)? {
                Some(found) if found.metadata().is_ok_and(|stat| stat.ino() == current) => {
                    return Ok(newer);
                }
                Some(found) => newer = Some(found),
                None if number == 0 => {}
                None => break,
            }
        }
        // It is among those that went; the oldest there is follows.
        Ok(newer)
    }

    fn file(&self, number: u32) -> Result<Option<File>, LogError> {
        let path = file(&self.folder, number);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Read { path, source }),
        }
    }
}

fn read_lines(file: &mut File, at: &mut u64, chunks: &mut Vec<Chunk>) -> io::Result<()> {
    file.seek(SeekFrom::Start(*at))?;
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        reader.read_until(b'\n', &mut bytes)?;
        if bytes.last() != Some(&b'\n') {
            return Ok(());
        }
        *at += bytes.len() as u64;
        // A line that is none of ours is passed over.
        if let Ok(line) = serde_json::from_slice::<Line>(&bytes) {
            chunks.push(line.into());
        }
    }
}

impl From<Line> for Chunk {
    fn from(line: Line) -> Self {
        let bytes = match (line.text, line.base64) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(base64)) => STANDARD.decode(base64).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        let (time, stream, offset) = (line.time, line.stream, line.offset);
        Self { time, stream, offset, bytes, lost: line.lost.unwrap_or(0) }
    }
}
