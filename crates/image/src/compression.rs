//! Finds out how a stream is compressed from its first bytes, never from a name.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;

/// A stream with its first bytes put back.
type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// What a stream is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard.
    Zstd,
    /// xz, which is recognised only to say that it is not supported.
    Xz,
    /// bzip2, likewise.
    Bzip2,
}

impl Compression {
    /// What the first bytes of a stream say (six are enough).
    #[must_use]
    pub fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }
}

/// True when these first bytes are those of a compressed stream.
pub(crate) fn is_compressed(magic: &[u8]) -> bool {
    Compression::of(magic) != Compression::None
}

/// A stream, decompressed.
pub(crate) enum Decoder<R: Read> {
    Plain(Whole<R>),
    Gzip(Box<MultiGzDecoder<Whole<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Whole<R>>>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `raw`.
    ///
    /// # Errors
    /// Of kind `Unsupported` for xz and bzip2, else what reading gave.
    pub(crate) fn new(mut raw: R) -> io::Result<Self> {
        let mut magic = Vec::new();
        raw.by_ref().take(6).read_to_end(&mut magic)?;
        let compression = Compression::of(&magic);
        let whole = Cursor::new(magic).chain(raw);
        match compression {
            Compression::None => Ok(Self::Plain(whole)),
            Compression::Gzip => Ok(Self::Gzip(Box::new(MultiGzDecoder::new(whole)))),
            Compression::Zstd => Ok(Self::Zstd(Box::new(zstd::Decoder::new(whole)?))),
            Compression::Xz | Compression::Bzip2 => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{compression:?} compression is not supported"),
            )),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.read(buffer),
            Self::Gzip(inner) => inner.read(buffer),
            Self::Zstd(inner) => inner.read(buffer),
        }
    }
}

impl<R: Read> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Zstd(_) => "Zstd",
        })
    }
}
