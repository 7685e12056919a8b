//! Keys of maps that are numbers in memory and text on the wire.

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

/// A number that is a key. Go writes the keys of a map as text and sorts them as such, so `"10"`
/// comes before `"2"`, and `"-1"` before `"0"`; hence the order of this type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TextKey<N>(pub N);

impl<N: fmt::Display + Eq> Ord for TextKey<N> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.to_string().cmp(&other.0.to_string())
    }
}

impl<N: fmt::Display + Eq> PartialOrd for TextKey<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<N: fmt::Display> Serialize for TextKey<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, N: FromStr> Deserialize<'de> for TextKey<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor(PhantomData))
    }
}

struct KeyVisitor<N>(PhantomData<N>);

impl<N: FromStr> Visitor<'_> for KeyVisitor<N> {
    type Value = TextKey<N>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number in range, as text")
    }

    /// Go's parser takes a sign and leading zeros, as Rust's does, and nothing else.
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let number = text.parse();
        number.map(TextKey).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// The value of a map that is a set: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Present {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn keys_are_sorted_as_text() {
        let keys = [9, -1, 10, 100, i64::MIN].map(|n| (TextKey(n), Present {}));
        let text = serde_json::to_string(&BTreeMap::from(keys)).unwrap();
        assert_eq!(text, r#"{"-1":{},"-9223372036854775808":{},"10":{},"100":{},"9":{}}"#);
    }

    #[test]
    fn keys_that_go_reads_as_the_same_number_are_the_same_key() {
        let map: BTreeMap<TextKey<i64>, u8> =
            serde_json::from_str(r#"{"+1":1,"01":2,"-0":3}"#).unwrap();
        assert_eq!(map, BTreeMap::from([(TextKey(1), 2), (TextKey(0), 3)]));
    }

    #[test]
    fn a_key_that_is_no_number_in_range_is_refused() {
        for text in [r#"{"x":1}"#, r#"{" 1":1}"#, r#"{"":1}"#, r#"{"4294967296":1}"#, r#"{"-1":1}"#]
        {
            let read = serde_json::from_str::<BTreeMap<TextKey<u32>, u8>>(text);
            assert!(read.is_err(), "{text} was read as {read:?}");
        }
    }
}
