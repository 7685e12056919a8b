//! PAX records: `LENGTH KEY=VALUE\n`, one after the other, values of any bytes.

use std::collections::BTreeMap;

/// The records that apply to one entry, or to all that follow.
///
/// An empty value takes the key back, as POSIX says; it is kept, so that a local record can take
/// a global one back. The keys of sparse format 0.0 may come many times: they are kept in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `GNU.sparse.numbytes`, joined by commas.
    sparse_pairs: Vec<u8>,
}

impl Records {
    /// Parses the data of a PAX header; `None` when it is malformed.
    pub(super) fn parse(mut data: &[u8]) -> Option<Self> {
        let mut records = Self::default();
        // Some writers fill the rest with NULs.
        while !data.is_empty() && !data.iter().all(|byte| *byte == 0) {
            let space = data.iter().position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
            let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"" => return None,
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    if !records.sparse_pairs.is_empty() {
                        records.sparse_pairs.push(b',');
                    }
                    records.sparse_pairs.extend_from_slice(value);
                }
                _ => records.set(key, value.to_vec()),
            }
            data = &data[length..];
        }
        Some(records)
    }

    pub(super) fn set(&mut self, key: &[u8], value: Vec<u8>) {
        self.values.insert(key.to_vec(), value);
    }

    pub(super) fn merge(&mut self, other: Self) {
        self.values.extend(other.values);
        self.sparse_pairs = other.sparse_pairs;
    }

    /// These records, with `local` before them.
    pub(super) fn overlaid(&self, local: &Self) -> Self {
        let mut all = self.clone();
        all.merge(local.clone());
        all
    }

    /// The value of `key`, when it has one.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.values.get(key.as_bytes()).map(Vec::as_slice).filter(|value| !value.is_empty())
    }

    /// The value of `key` as a number; `Err` when it is none.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ()> {
        self.get(key).map(|value| parse_number(value).ok_or(())).transpose()
    }

    /// The list of sparse format 0.0.
    pub(super) fn sparse_pairs(&self) -> Option<&[u8]> {
        (!self.sparse_pairs.is_empty()).then_some(self.sparse_pairs.as_slice())
    }

    /// Extended attributes: name and value. An empty value is one here.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.values.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix(b"SCHILY.xattr.")?, value.as_slice()))
        })
    }
}

/// A decimal number.
pub(super) fn parse_number(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.starts_with('+') { None } else { text.parse().ok() }
}

/// A time: `[-]SECONDS[.FRACTION]`.
pub(super) fn parse_time(text: &[u8]) -> Option<crate::erofs::Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if !whole.starts_with('-') || nanoseconds == 0 {
        return Some(crate::erofs::Timestamp { seconds, nanoseconds });
    }
    // -1.25 is 0.75 after -2.
    let seconds = seconds.checked_sub(1)?;
    Some(crate::erofs::Timestamp { seconds, nanoseconds: 1_000_000_000 - nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::Timestamp;

    #[test]
    fn values_may_hold_newlines_and_equals_signs() {
        let records = Records::parse(b"13 path=a\n=b\n24 SCHILY.xattr.user.n=\n").unwrap();
        assert_eq!(records.get("path"), Some(b"a\n=b".as_slice()));
        assert_eq!(records.xattrs().collect::<Vec<_>>(), [(b"user.n".as_slice(), b"".as_slice())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        for data in [
            "x", "5 a=b", "99 a=b\n", "6 a=bc", "0 a=b\n", "5 ab\n\n", "4 =\n", "6 =b\n", "-3 a=\n",
        ] {
            assert_eq!(Records::parse(data.as_bytes()), None, "{data:?}");
        }
    }

    #[test]
    fn times_before_the_epoch_and_fractions_are_read() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
        assert_eq!(time("12"), Some((12, 0)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time("1.x"), None);
        assert_eq!(time(""), None);
        assert_eq!(parse_time(b"0"), Some(Timestamp::default()));
    }
}
