//! Points in time as Go writes them: RFC 3339 with the offset they were made with.

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};
use serde::de::{Unexpected, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use thiserror::Error;

/// Seconds from the beginning of 1970 to Go's zero time, the beginning of the year 1.
const ZERO: i64 = -62_135_596_800;

/// A point in time and the offset from UTC it is told in. The default is Go's zero,
/// `0001-01-01T00:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Time {
    /// Seconds since the beginning of 1970, UTC.
    pub seconds: i64,
    /// Nanoseconds beyond, below 10⁹.
    pub nanos: u32,
    /// Seconds by which the clock it is told by is ahead of UTC. What is not a whole minute is not
    /// written.
    pub offset: i32,
}

/// A time that has no text: years have four digits.
#[derive(Debug, Error)]
#[error("a time of {} s since 1970 lies outside the years 0 to 9999", .0.seconds)]
pub struct NoSuchYear(pub Time);

impl Default for Time {
    fn default() -> Self {
        Time { seconds: ZERO, nanos: 0, offset: 0 }
    }
}

impl Time {
    /// Now, in UTC.
    #[must_use]
    pub fn now() -> Self {
        Time::from(Timestamp::now())
    }

    /// Whether this is Go's zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        (self.seconds, self.nanos) == (ZERO, 0)
    }

    /// The text on the wire.
    ///
    /// # Errors
    /// [`NoSuchYear`].
    pub fn to_text(self) -> Result<String, NoSuchYear> {
        let nanos = i32::try_from(self.nanos).map_err(|_| NoSuchYear(self))?;
        let local = self
            .seconds
            .checked_add(self.offset.into())
            .map(|seconds| SignedDuration::new(seconds, nanos))
            .and_then(|since| civil(0).checked_add(since).ok())
            .filter(|local| (0..=9999).contains(&local.year()))
            .ok_or(NoSuchYear(self))?;
        let mut text = local.strftime("%Y-%m-%dT%H:%M:%S").to_string();
        if self.nanos > 0 {
            let fraction = format!("{:09}", self.nanos);
            text.push('.');
            text.push_str(fraction.trim_end_matches('0'));
        }
        // Go says Z for no offset at all, and cuts the seconds off any other.
        if self.offset == 0 {
            text.push('Z');
        } else {
            let minutes = self.offset.abs() / 60;
            let sign = if self.offset < 0 { '-' } else { '+' };
            text.push_str(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60));
        }
        Ok(text)
    }

    /// Reads the text on the wire; nothing when it is none.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let (clock, rest) = rest.split_at_checked(9)?;
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = numbers(clock.strip_prefix('T')?, ':', [2, 2, 2])?;
        let (nanos, rest) = fraction(rest)?;
        let offset = offset(rest)?;
        let small = |number: u16| i8::try_from(number).ok();
        let local = DateTime::new(
            i16::try_from(year).ok()?,
            small(month)?,
            small(day)?,
            small(hour)?,
            small(minute)?,
            small(second)?,
            0,
        );
        let since = local.ok()?.duration_since(civil(0));
        Some(Time { seconds: since.as_secs() - i64::from(offset), nanos, offset })
    }
}

impl From<Timestamp> for Time {
    fn from(time: Timestamp) -> Self {
        let since = time.as_duration();
        let (mut seconds, mut nanos) = (since.as_secs(), since.subsec_nanos());
        if nanos < 0 {
            (seconds, nanos) = (seconds - 1, nanos + 1_000_000_000);
        }
        Time { seconds, nanos: nanos.unsigned_abs(), offset: 0 }
    }
}

fn civil(seconds: i64) -> DateTime {
    Offset::UTC.to_datetime(Timestamp::from_second(seconds).unwrap_or_default())
}

/// Numbers of so many digits each.
fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[u16; 3]> {
    let mut parts = text.split(between);
    let mut numbers = [0; 3];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Nanoseconds, if there is a fraction; digits beyond the ninth are dropped.
fn fraction(text: &str) -> Option<(u32, &str)> {
    let Some(rest) = text.strip_prefix(['.', ',']) else { return Some((0, text)) };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, rest) = rest.split_at(end);
    if digits.is_empty() {
        return None;
    }
    let nanos = format!("{:0<9}", &digits[..digits.len().min(9)]).parse().ok()?;
    Some((nanos, rest))
}

/// Seconds ahead of UTC.
fn offset(text: &str) -> Option<i32> {
    if text == "Z" {
        return Some(0);
    }
    let ahead = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let [hours, minutes, _] = numbers(&format!("{}:00", text.get(1..)?), ':', [2, 2, 2])?;
    (hours < 24 && minutes < 60).then(|| ahead * 60 * i32::from(hours * 60 + minutes))
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text().map_err(S::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as 2026-01-31T23:59:59.5Z")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Time, E> {
                Time::from_text(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
            // Go takes a null for nothing said.
            fn visit_unit<E: serde::de::Error>(self) -> Result<Time, E> {
                Ok(Time::default())
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_it_was_read() {
        for text in [
            "0001-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59.999999999Z",
            "2020-10-22T08:15:30.000000001+05:30",
            "1969-12-31T23:59:59.25-11:00",
            "2024-02-29T12:00:00Z",
        ] {
            assert_eq!(Time::from_text(text).unwrap().to_text().unwrap(), text);
        }
    }

    #[test]
    fn gos_zero_is_the_default() {
        assert_eq!(Time::default().to_text().unwrap(), "0001-01-01T00:00:00Z");
        assert!(Time::from_text("0001-01-01T00:00:00Z").unwrap().is_zero());
    }

    #[test]
    fn a_fraction_loses_its_zeros_and_what_is_below_a_nanosecond() {
        let time = Time::from_text("2020-01-01T00:00:00.1234567891Z").unwrap();
        assert_eq!(time.nanos, 123_456_789);
        assert_eq!(
            Time { nanos: 120_000_000, ..time }.to_text().unwrap(),
            "2020-01-01T00:00:00.12Z"
        );
    }

    #[test]
    fn seconds_of_an_offset_are_not_written() {
        let amsterdam = Time { seconds: 0, nanos: 0, offset: 19 * 60 + 32 };
        assert_eq!(amsterdam.to_text().unwrap(), "1970-01-01T00:19:32+00:19");
    }

    #[test]
    fn a_year_of_five_digits_has_no_text() {
        let last = Time::from_text("9999-12-31T23:59:59Z").unwrap();
        let next = Time { seconds: last.seconds + 1, ..last };
        assert!(next.to_text().is_err());
        assert!(Time { offset: 3600, ..last }.to_text().is_err(), "by its own clock it is 10000");
        for seconds in [i64::MIN, i64::MAX] {
            assert!(Time { seconds, nanos: 0, offset: -60 }.to_text().is_err());
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2020-01-01",
            "2020-01-01T00:00:00",
            "2020-01-01 00:00:00Z",
            "20-01-01T00:00:00Z",
            "2020-02-30T00:00:00Z",
            "2020-01-01T24:00:00Z",
            "2020-01-01T00:00:00.Z",
            "2020-01-01T00:00:00+0100",
            "2020-01-01T00:00:00+25:00",
            "2020-01-01T00:00:00Zx",
            "2020-01-01T00:00:00é",
        ] {
            assert_eq!(Time::from_text(text), None, "{text}");
        }
    }
}
