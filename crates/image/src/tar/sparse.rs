//! Sparse files, in the four ways GNU tar has stored them.
//!
//! Old GNU: the map begins in the header and goes on in blocks after it. PAX 0.0 and 0.1: the map
//! is in PAX records. PAX 1.0: the map is text at the start of the data. Whichever, a map is a
//! list of segments whose bytes are stored in a row.

use std::io::Read;

use tar::{GnuExtSparseHeader, Header};

use super::pax::{Records, parse_number};
use super::{BLOCK, Reader, TarError};

/// The longest map read: 256 Ki segments are 4 MiB of memory.
const SEGMENTS_MAX: usize = 256 << 10;

/// Bytes of a sparse file that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where they are in the file.
    pub offset: u64,
    /// How many they are.
    pub len: u64,
}

/// Checks that segments are in order, within the file, and as long as what is stored.
pub(super) fn check(segments: &[Segment], stored: u64, size: u64) -> Result<(), ()> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for segment in segments {
        if segment.offset < end {
            return Err(());
        }
        end = segment.offset.checked_add(segment.len).ok_or(())?;
        sum = sum.checked_add(segment.len).ok_or(())?;
    }
    if end > size || sum != stored { Err(()) } else { Ok(()) }
}

/// The real size in an old GNU header.
pub(super) fn real_size(header: &Header) -> Option<u64> {
    header.as_gnu()?.real_size().ok()
}

/// The map of an old GNU sparse entry, whose later blocks stand before its data.
pub(super) fn read_gnu<R: Read>(
    reader: &mut Reader<R>,
    header: &Header,
) -> Result<Vec<Segment>, TarError> {
    let at = reader.at;
    let bad = || TarError::Record { at, what: "sparse" };
    let gnu = header.as_gnu().ok_or_else(bad)?;
    let mut segments = Vec::new();
    let mut add = |block: &tar::GnuSparseHeader| {
        if block.is_empty() {
            return Ok(());
        }
        if segments.len() == SEGMENTS_MAX {
            return Err(bad());
        }
        let offset = block.offset().map_err(|_| bad())?;
        let len = block.length().map_err(|_| bad())?;
        segments.push(Segment { offset, len });
        Ok(())
    };
    gnu.sparse.iter().try_for_each(&mut add)?;
    let mut more = gnu.is_extended();
    while more {
        let block = reader.block()?.ok_or_else(bad)?;
        let mut extension = GnuExtSparseHeader::new();
        extension.as_mut_bytes().copy_from_slice(&block);
        extension.sparse.iter().try_for_each(&mut add)?;
        more = extension.is_extended();
    }
    Ok(segments)
}

/// The real size and map of a sparse entry in one of the PAX formats, `None` for other entries.
pub(super) fn from_records<R: Read>(
    records: &Records,
    reader: &mut Reader<R>,
) -> Result<Option<(u64, Vec<Segment>)>, TarError> {
    let at = reader.at;
    let bad = || TarError::Record { at, what: "sparse" };
    let size = |key| records.number(key).map_err(|()| bad())?.ok_or_else(bad);
    if records.get("GNU.sparse.major") == Some(b"1") {
        let size = size("GNU.sparse.realsize")?;
        return Ok(Some((size, read_text_map(reader)?)));
    }
    let Some(list) = records.get("GNU.sparse.map").or(records.sparse_pairs()) else {
        return Ok(None);
    };
    let numbers = list.split(|byte| *byte == b',').map(parse_number);
    let numbers: Vec<u64> = numbers.collect::<Option<_>>().ok_or_else(bad)?;
    Ok(Some((size("GNU.sparse.size")?, pairs(&numbers).ok_or_else(bad)?)))
}

/// Format 1.0: a count, then offset and length of each segment, one number a line, filled up to
/// a whole block.
fn read_text_map<R: Read>(reader: &mut Reader<R>) -> Result<Vec<Segment>, TarError> {
    let at = reader.at;
    let bad = || TarError::Record { at, what: "sparse" };
    let mut wanted: Option<usize> = None;
    let mut numbers = Vec::new();
    let mut line = Vec::new();
    while wanted.is_none_or(|wanted| numbers.len() < wanted) {
        let mut block = [0; BLOCK];
        let mut len = 0;
        while len < BLOCK {
            match reader.read_data(&mut block[len..])? {
                0 => return Err(bad()),
                more => len += more,
            }
        }
        for byte in block {
            if wanted == Some(numbers.len()) {
                break;
            }
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let number = parse_number(&line).ok_or_else(bad)?;
            line.clear();
            match wanted {
                Some(_) => numbers.push(number),
                None => {
                    let count = usize::try_from(number).map_err(|_| bad())?;
                    if count > SEGMENTS_MAX {
                        return Err(bad());
                    }
                    wanted = Some(count * 2);
                }
            }
        }
        // No number is longer than 20 digits.
        if line.len() > 20 {
            return Err(bad());
        }
    }
    pairs(&numbers).ok_or_else(bad)
}

fn pairs(numbers: &[u64]) -> Option<Vec<Segment>> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    let segments = pairs.iter().map(|&[offset, len]| Segment { offset, len });
    (rest.is_empty() && pairs.len() <= SEGMENTS_MAX).then(|| segments.collect())
}
