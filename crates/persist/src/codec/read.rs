//! From bytes to a state, or to what is wrong with them.

use super::tree::Node;
use super::{Damage, DecodeError, Document, lists};
use crate::foreign;
use crate::model::{ContainerState, SandboxState};
use serde::Deserialize;
use serde_json::error::Category;

/// What a reader lets pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tolerance {
    /// A file holds a state and nothing else.
    #[default]
    Strict,
    /// What stands behind the state is not looked at, as Go does: a shorter state that was written
    /// over a longer one is read as it was meant.
    TrailingBytes,
}

/// Reads a sandbox's `persist.json`.
///
/// # Errors
/// [`DecodeError`]; nothing is read halfway.
pub fn decode_sandbox(bytes: &[u8], tolerance: Tolerance) -> Result<SandboxState, DecodeError> {
    decode(bytes, Document::Sandbox, tolerance)
}

/// Reads a container's `persist.json`.
///
/// # Errors
/// As [`decode_sandbox`].
pub fn decode_container(bytes: &[u8], tolerance: Tolerance) -> Result<ContainerState, DecodeError> {
    decode(bytes, Document::Container, tolerance)
}

fn decode<T: for<'de> Deserialize<'de>>(
    bytes: &[u8],
    document: Document,
    tolerance: Tolerance,
) -> Result<T, DecodeError> {
    if let Some((state, end)) = at_once(bytes) {
        check_end(bytes, end, document, tolerance)?;
        return Ok(state);
    }
    let (node, end) = tree(bytes, document)?;
    if document == Document::Sandbox
        && let Some(foreign) = foreign::recognise(&node)
    {
        return Err(DecodeError::Foreign { document, foreign });
    }
    let state = fold(node, document)?;
    check_end(bytes, end, document, tolerance)?;
    Ok(state)
}

/// Reads what this crate has written and a checksum has guarded since: there is nothing in it to
/// wonder about, and so nothing is looked for.
pub(crate) fn decode_saved<T: for<'de> Deserialize<'de>>(
    bytes: &[u8],
    document: Document,
) -> Result<T, DecodeError> {
    let text = std::str::from_utf8(bytes).ok();
    match text.and_then(|text| serde_json::from_str(text).ok()) {
        Some(state) => Ok(state),
        None => decode(bytes, document, Tolerance::Strict),
    }
}

/// A state that is written as this crate writes it, and where it ends. Nothing when there is anything
/// to wonder about.
fn at_once<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<(T, usize)> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<T>();
    let state = values.next()?.ok()?;
    let end = values.byte_offset();
    lists::are_in_place(&bytes[..end]).then_some((state, end))
}

/// A tree as Go would read it into a state.
pub(crate) fn fold<'de, T: Deserialize<'de>>(
    node: Node<'de>,
    document: Document,
) -> Result<T, DecodeError> {
    serde_path_to_error::deserialize(node).map_err(|error| DecodeError::Value {
        document,
        path: error.path().to_string(),
        source: error.into_inner(),
    })
}

/// The first value, and where it ends.
pub(crate) fn tree(bytes: &[u8], document: Document) -> Result<(Node<'_>, usize), DecodeError> {
    let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Node<'_>>();
    let damage = match values.next() {
        Some(Ok(node)) => return Ok((node, values.byte_offset())),
        Some(Err(error)) => damage(bytes, &error),
        None => Damage::Empty,
    };
    Err(DecodeError::Damaged { document, damage })
}

fn check_end(
    bytes: &[u8],
    end: usize,
    document: Document,
    tolerance: Tolerance,
) -> Result<(), DecodeError> {
    let rest = bytes.get(end..).unwrap_or_default();
    match tolerance {
        Tolerance::Strict if !rest.trim_ascii().is_empty() => {
            Err(DecodeError::Trailing { document, end, len: bytes.len() })
        }
        Tolerance::Strict | Tolerance::TrailingBytes => Ok(()),
    }
}

/// What the error of a parser says of the file.
fn damage(bytes: &[u8], error: &serde_json::Error) -> Damage {
    let at = offset(bytes, error.line(), error.column());
    if error.classify() == Category::Eof {
        return Damage::Truncated { len: bytes.len() };
    }
    // The parser stopped at the zeros or just before; control characters are no JSON anywhere.
    if let Some(zeros) = bytes.iter().position(|byte| *byte == 0)
        && zeros <= at
    {
        return Damage::Zeros { at: zeros };
    }
    if let Err(error) = std::str::from_utf8(bytes)
        && error.valid_up_to() <= at
    {
        return Damage::NoText { at: error.valid_up_to() };
    }
    let text = error.to_string();
    if text.starts_with("recursion limit") {
        Damage::TooDeep { at }
    } else if text.contains("surrogate") || text.starts_with("unexpected end of hex escape") {
        Damage::NoText { at }
    } else {
        Damage::NoJson { at }
    }
}

/// Where a line and column are in a file, both counted from 1.
fn offset(bytes: &[u8], line: usize, column: usize) -> usize {
    let before: usize = bytes
        .split_inclusive(|byte| *byte == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    (before + column.saturating_sub(1)).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage_of(bytes: &[u8]) -> Damage {
        match decode_sandbox(bytes, Tolerance::Strict) {
            Err(DecodeError::Damaged { damage, .. }) => damage,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_kind_of_damage_is_told() {
        assert_eq!(damage_of(b""), Damage::Empty);
        assert_eq!(damage_of(b" \n\t"), Damage::Empty);
        assert_eq!(damage_of(br#"{"State":"run"#), Damage::Truncated { len: 13 });
        assert_eq!(damage_of(&[0; 4096]), Damage::Zeros { at: 0 });
        assert_eq!(damage_of(b"{\"State\":\"run\0\0\0"), Damage::Zeros { at: 13 });
        assert_eq!(damage_of(b"{\"State\":\"\xff\"}"), Damage::NoText { at: 10 });
        assert!(matches!(damage_of(br#"{"State":"\ud800"}"#), Damage::NoText { .. }));
        assert!(matches!(damage_of(br#"{"State":"\ud800b"}"#), Damage::NoText { .. }));
        assert_eq!(damage_of(b"{\n\"State\":}"), Damage::NoJson { at: 10 });
        assert!(matches!(damage_of("[".repeat(100_000).as_bytes()), Damage::TooDeep { .. }));
    }

    #[test]
    fn what_we_write_is_read_at_once() {
        let state = SandboxState {
            devices: Some(vec![crate::model::DeviceState::default()]),
            ..SandboxState::default()
        };
        let bytes = crate::codec::encode_sandbox(&state).unwrap();
        assert_eq!(at_once(&bytes), Some((state, bytes.len() - 1)));
        assert_eq!(at_once::<SandboxState>(br#"{"Config":[]}"#), None);
    }

    #[test]
    fn what_follows_the_state_is_an_error_unless_it_is_to_be_passed_over() {
        let bytes = b"{\"State\":\"running\"}\n{\"old\"";
        let error = decode_sandbox(bytes, Tolerance::Strict).unwrap_err();
        assert!(matches!(error, DecodeError::Trailing { end: 19, len: 26, .. }), "{error}");
        assert!(decode_sandbox(bytes, Tolerance::TrailingBytes).is_ok());
        assert!(decode_sandbox(b"{} \r\n", Tolerance::Strict).is_ok());
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        let bytes = br#"{"Devices":[{},{"Major":"eight"}]}"#;
        let error = decode_sandbox(bytes, Tolerance::Strict).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the state of a sandbox has a wrong value at Devices[1].Major"
        );
    }
}
