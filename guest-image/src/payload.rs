//! Decompression of kernels and modules.
//!
//! A bzImage is a small decompressor followed by the real kernel in one of
//! several formats, and some distributions compress their modules too. We take
//! both apart at build time, once, so that the guest never has to: under an
//! emulated CPU the kernel's own decompressor is the slowest part of a boot.
//!
//! Every decoder is given a ceiling. The bytes come from a file the user
//! named, and a damaged or hostile one must not fill the memory.

use std::io::Read;

/// A compression format, told by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed: an ELF file as it is.
    None,
    /// RFC 1952.
    Gzip,
    /// The xz container, with the x86 filter kernels use.
    Xz,
    /// RFC 8878.
    Zstd,
    /// The legacy lz4 frame, which is the one kernels use: a magic, then
    /// blocks of at most 8 MiB, each after its compressed length.
    Lz4Legacy,
}

/// Why compressed bytes could not be expanded.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The first bytes belong to no format we know.
    #[error("unknown compression (first bytes {magic:02x?}); known are gzip, xz, zstd and lz4")]
    UnknownFormat {
        /// The first bytes, at most six.
        magic: Vec<u8>,
    },
    /// The stream ends early or does not decode.
    #[error("the {format} stream is damaged")]
    Damaged {
        /// The format's name.
        format: Compression,
        /// What the decoder said.
        #[source]
        source: std::io::Error,
    },
    /// The stream expands to more than its ceiling.
    #[error("the {format} stream expands to more than {limit} bytes")]
    TooLarge {
        /// The format's name.
        format: Compression,
        /// The ceiling in bytes.
        limit: usize,
    },
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
        })
    }
}

const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

impl Compression {
    /// Tells the format by its magic.
    ///
    /// # Errors
    /// [`PayloadError::UnknownFormat`] for anything else, lzma, lzo and bzip2 included: no
    /// distribution of the last decade ships an x86-64 kernel in those.
    pub fn detect(bytes: &[u8]) -> Result<Self, PayloadError> {
        const FORMATS: [(&[u8], Compression); 5] = [
            (b"\x7fELF", Compression::None),
            (&[0x1f, 0x8b], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
            (&LZ4_LEGACY_MAGIC, Compression::Lz4Legacy),
        ];
        FORMATS
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|&(_, format)| format)
            .ok_or_else(|| PayloadError::UnknownFormat {
                magic: bytes.iter().copied().take(6).collect(),
            })
    }

    /// Expands `bytes` to at most `limit` bytes.
    ///
    /// # Errors
    /// [`PayloadError::Damaged`] when the stream does not decode to its end,
    /// [`PayloadError::TooLarge`] when it expands beyond `limit`.
    pub fn expand(self, bytes: &[u8], limit: usize) -> Result<Vec<u8>, PayloadError> {
        let expanded = match self {
            Self::None => Ok(bytes.to_vec()),
            Self::Gzip => read_bounded(flate2::read::GzDecoder::new(bytes), limit),
            Self::Xz => read_bounded(lzma_rust2::XzReader::new(bytes, false), limit),
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(bytes)
                .and_then(|decoder| read_bounded(decoder.single_frame(), limit)),
            Self::Lz4Legacy => expand_lz4_legacy(bytes, limit),
        }
        .map_err(|source| PayloadError::Damaged { format: self, source })?;
        if expanded.len() > limit {
            return Err(PayloadError::TooLarge { format: self, limit });
        }
        Ok(expanded)
    }
}

/// Reads one byte more than `limit`, so that the caller can tell "full" from "too much".
fn read_bounded(reader: impl Read, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut expanded = Vec::new();
    reader.take(limit as u64 + 1).read_to_end(&mut expanded)?;
    Ok(expanded)
}

fn expand_lz4_legacy(bytes: &[u8], limit: usize) -> std::io::Result<Vec<u8>> {
    let damaged = |what| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut expanded = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK];
    let mut rest = bytes.get(LZ4_LEGACY_MAGIC.len()..).ok_or_else(|| damaged("no magic"))?;
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length))
            .map_err(|_| damaged("a block longer than memory"))?;
        let (compressed, next) =
            after.split_at_checked(length).ok_or_else(|| damaged("a block is cut short"))?;
        let size = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))?;
        expanded.extend_from_slice(block.get(..size).unwrap_or_default());
        if expanded.len() > limit {
            break;
        }
        rest = next;
    }
    if rest.is_empty() || expanded.len() > limit {
        Ok(expanded)
    } else {
        Err(damaged("stray bytes at the end"))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// What each format's own encoder makes of `plain`.
    pub(crate) fn compress(format: Compression, plain: &[u8]) -> Vec<u8> {
        match format {
            Compression::None => plain.to_vec(),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Xz => {
                let mut options = lzma_rust2::XzOptions::with_preset(1);
                options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
                let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(plain, 1).unwrap(),
            Compression::Lz4Legacy => {
                let mut stream = LZ4_LEGACY_MAGIC.to_vec();
                for block in plain.chunks(LZ4_LEGACY_BLOCK) {
                    let compressed = lz4_flex::block::compress(block);
                    stream.extend(u32::try_from(compressed.len()).unwrap().to_le_bytes());
                    stream.extend(compressed);
                }
                stream
            }
        }
    }

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Xz,
        Compression::Zstd,
        Compression::Lz4Legacy,
    ];

    fn elf_like(size: usize) -> Vec<u8> {
        let mut plain = b"\x7fELF".to_vec();
        plain.extend((0..size).map(|i| u8::try_from(i * i % 251).unwrap()));
        plain
    }

    #[test]
    fn every_format_is_told_by_its_first_bytes_and_expands_to_what_went_in() {
        for format in ALL {
            // More than one block where there are blocks.
            let plain = elf_like(if format == Compression::Lz4Legacy { 9 << 20 } else { 200_000 });
            let stream = compress(format, &plain);
            assert_eq!(Compression::detect(&stream).unwrap(), format);
            assert!(format.expand(&stream, plain.len()).unwrap() == plain, "{format}");
        }
    }

    #[test]
    fn a_stream_that_expands_beyond_its_ceiling_is_refused() {
        let plain = elf_like(100_000);
        for format in ALL {
            let error = format.expand(&compress(format, &plain), 99_999).unwrap_err();
            assert!(
                matches!(error, PayloadError::TooLarge { limit: 99_999, .. }),
                "{format}: {error}"
            );
        }
    }

    #[test]
    fn a_stream_cut_short_is_damaged() {
        let plain = elf_like(100_000);
        for format in ALL.into_iter().filter(|&format| format != Compression::None) {
            let stream = compress(format, &plain);
            let error = format.expand(&stream[..stream.len() / 2], plain.len()).unwrap_err();
            assert!(matches!(error, PayloadError::Damaged { .. }), "{format}: {error}");
        }
    }

    #[test]
    fn an_unknown_format_shows_the_bytes_it_begins_with() {
        let error = Compression::detect(b"BZh91AY").unwrap_err().to_string();
        assert!(error.contains("[42, 5a, 68, 39, 31, 41]"), "{error}");
    }
}
