//! Reads a tar as a stream of entries, with every limit a hostile one calls for.
//!
//! The fields of a header block are decoded by the `tar` crate. Its `Archive` is not used: it
//! takes names and PAX records of any length into memory, and leaves PAX sparse files as they
//! are stored. Where tars can be read in more than one way, this reads them as Go's `archive/tar`
//! does, since that is what every other container engine stands on: kinds without data have no
//! data whatever their size field says, a PAX size beats the header's, and a zero block must be
//! followed by another.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

pub(crate) use self::header::is_kept_xattr;
pub use self::header::{Entry, EntryKind};
use self::pax::Records;
pub use self::sparse::Segment;

/// Tars come in blocks of this many bytes.
const BLOCK: usize = 512;
const BLOCK_U64: u64 = 512;

/// The longest name or link target read from an extension record: more than any can use.
const LONG_NAME_MAX: u64 = 64 << 10;
/// The largest PAX header read. Attributes of 64 KiB are in it, several of them.
const PAX_MAX: u64 = 1 << 20;

/// Why a tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream ended, or failed to decompress, in the middle of something.
    #[error("the tar ends too early, at byte {at}{}", in_entry(entry.as_deref()))]
    Truncated {
        /// Position in the uncompressed tar.
        at: u64,
        /// Whose data was cut, when it was data.
        entry: Option<String>,
    },
    /// Reading or decompressing failed.
    #[error("cannot read the tar at byte {at}")]
    Read {
        /// Position in the uncompressed tar.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// A block is no tar header: wrong checksum, or a field that is no number.
    #[error("there is no tar header at byte {at}: {reason}")]
    Header {
        /// Position in the uncompressed tar.
        at: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// An extension record is malformed.
    #[error("malformed {what} record at byte {at} of the tar")]
    Record {
        /// Position in the uncompressed tar.
        at: u64,
        /// Which kind of record.
        what: &'static str,
    },
    /// An extension record is larger than any use of it.
    #[error("{what} record of {size} bytes at byte {at} of the tar")]
    Oversized {
        /// Position in the uncompressed tar.
        at: u64,
        /// Which kind of record.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
    },
    /// The entry is of a kind with no meaning here, such as a part of a multi-volume archive.
    #[error("{entry:?} in the tar is of an unknown kind ({kind:?})")]
    Kind {
        /// Name of the entry.
        entry: String,
        /// Its type flag.
        kind: char,
    },
}

fn in_entry(entry: Option<&str>) -> String {
    entry.map(|entry| format!(", within {entry:?}")).unwrap_or_default()
}

/// A tar being read.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    /// Bytes taken from `inner`.
    at: u64,
    /// Data of the current entry not yet read, and the padding after it.
    data: u64,
    padding: u64,
    /// Name of the current entry, for messages.
    entry: String,
    /// PAX records for all entries that follow.
    global: Records,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the tar that `inner` gives, which is not compressed.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            at: 0,
            data: 0,
            padding: 0,
            entry: String::new(),
            global: Records::default(),
            ended: false,
        }
    }

    /// Bytes of the tar read so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Gives back the stream, wherever it stands.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Gets rid of the current entry's data by `jump`, which moves the stream on by that many
    /// bytes without reading them, and says whether they were all there.
    pub(crate) fn jump(&mut self, jump: impl FnOnce(&mut R, u64) -> bool) {
        let len = self.data.saturating_add(self.padding);
        if jump(&mut self.inner, len) {
            self.at = self.at.saturating_add(len);
            (self.data, self.padding) = (0, 0);
        }
        // Otherwise the next entry is asked for, and the end is found to be too early.
    }

    /// The next entry, `None` at the end. What was left of the last one's data is skipped.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_data()?;
        let mut local = Records::default();
        let mut extended = false;
        loop {
            let at = self.at;
            let Some(block) = self.header_block()? else {
                if extended {
                    return Err(TarError::Truncated { at, entry: None });
                }
                return Ok(None);
            };
            let header = header::parse(&block).map_err(|reason| TarError::Header { at, reason })?;
            match header.entry_type().as_byte() {
                b'L' => local.set(b"path", self.long_name(&header, at, "long name")?),
                b'K' => local.set(b"linkpath", self.long_name(&header, at, "long link")?),
                b'x' => local.merge(self.pax(&header, at)?),
                b'g' => {
                    let records = self.pax(&header, at)?;
                    self.global.merge(records);
                }
                b'V' => self.skip_size(&header, at)?,
                _ => return self.entry(&header, &local, at).map(Some),
            }
            extended = !matches!(header.entry_type().as_byte(), b'g' | b'V');
        }
    }

    /// Reads data of the current entry, as stored: of a sparse file, its segments in a row.
    /// 0 means the end of it.
    ///
    /// # Errors
    /// [`TarError::Truncated`], [`TarError::Read`].
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let len = self.read_some(&mut buffer[..most])?;
        if len == 0 {
            return Err(TarError::Truncated { at: self.at, entry: Some(self.entry.clone()) });
        }
        self.data -= len as u64;
        Ok(len)
    }

    /// Makes an entry from its header and the records before it, and gets ready for its data.
    fn entry(&mut self, header: &tar::Header, local: &Records, at: u64) -> Result<Entry, TarError> {
        let records = self.global.overlaid(local);
        let mut entry = header::entry(header, &records, at)?;
        self.entry = String::from_utf8_lossy(&entry.path).into_owned();
        let mut stored = if entry.kind == EntryKind::File { entry.size } else { 0 };
        self.data = stored;
        self.padding = padding(stored);
        if header.entry_type().is_gnu_sparse() {
            entry.segments = Some(sparse::read_gnu(self, header)?);
            entry.size =
                sparse::real_size(header).ok_or(TarError::Record { at, what: "sparse" })?;
        } else if let Some((size, map)) = sparse::from_records(&records, self)? {
            (entry.size, entry.segments) = (size, Some(map));
            // The map stood at the start of the data.
            stored = self.data;
        }
        if let Some(segments) = &entry.segments {
            sparse::check(segments, stored, entry.size)
                .map_err(|()| TarError::Record { at, what: "sparse" })?;
        }
        Ok(entry)
    }

    /// The next header block; `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let zeros = [0; BLOCK];
        let at = self.at;
        match self.block()? {
            None => {}
            Some(block) if block != zeros => return Ok(Some(block)),
            Some(_) => match self.block()? {
                Some(block) if block != zeros => {
                    let reason = "a zero block is followed by something else";
                    return Err(TarError::Header { at, reason });
                }
                Some(_) | None => {}
            },
        }
        self.ended = true;
        Ok(None)
    }

    /// One block, `None` when the stream ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut len = 0;
        while len < BLOCK {
            match self.read_some(&mut block[len..])? {
                0 if len == 0 => return Ok(None),
                0 => return Err(TarError::Truncated { at: self.at, entry: None }),
                more => len += more,
            }
        }
        Ok(Some(block))
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buffer) {
                Ok(len) => {
                    self.at += len as u64;
                    return Ok(len);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let entry = (self.data > 0).then(|| self.entry.clone());
                    return Err(TarError::Truncated { at: self.at, entry });
                }
                Err(source) => return Err(TarError::Read { at: self.at, source }),
            }
        }
    }

    fn skip_data(&mut self) -> Result<(), TarError> {
        // Nothing left is the usual case, and needs no buffer.
        if self.data == 0 && self.padding == 0 {
            return Ok(());
        }
        // The padding of the last entry may be missing at the very end; nobody misses it.
        let mut buffer = [0; 8192];
        while self.data > 0 {
            self.read_data(&mut buffer)?;
        }
        while self.padding > 0 {
            let most = usize::try_from(self.padding).unwrap_or(BLOCK).min(BLOCK);
            match self.read_some(&mut buffer[..most])? {
                0 => break,
                len => self.padding -= len as u64,
            }
        }
        self.padding = 0;
        Ok(())
    }

    fn skip_size(&mut self, header: &tar::Header, at: u64) -> Result<(), TarError> {
        let size = header.entry_size().map_err(|_| header::bad_number(at))?;
        (self.data, self.padding) = (size, padding(size));
        self.skip_data()
    }

    /// All the data of an extension record.
    fn record(
        &mut self,
        header: &tar::Header,
        at: u64,
        what: &'static str,
        max: u64,
    ) -> Result<Vec<u8>, TarError> {
        let size = header.entry_size().map_err(|_| header::bad_number(at))?;
        if size > max {
            return Err(TarError::Oversized { at, what, size });
        }
        (self.data, self.padding) = (size, padding(size));
        what.clone_into(&mut self.entry);
        let mut data = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read_data(&mut buffer)? {
                0 => break,
                len => data.extend_from_slice(&buffer[..len]),
            }
        }
        self.skip_data()?;
        Ok(data)
    }

    fn long_name(
        &mut self,
        header: &tar::Header,
        at: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, TarError> {
        let mut name = self.record(header, at, what, LONG_NAME_MAX)?;
        // GNU tar ends it with a NUL, others do not. One elsewhere is found out as a bad name.
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn pax(&mut self, header: &tar::Header, at: u64) -> Result<Records, TarError> {
        let data = self.record(header, at, "PAX", PAX_MAX)?;
        Records::parse(&data).ok_or(TarError::Record { at, what: "PAX" })
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK_U64 - size % BLOCK_U64) % BLOCK_U64
}

#[cfg(test)]
mod tests;
