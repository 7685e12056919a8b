//! The lines of QMP: what the other end may send, and how one is told from another.

use serde::Deserialize;
use serde_json::Value;

use super::QmpError;

/// The longest line accepted, in bytes. QEMU's longest answers to what we ask are some ten KiB.
pub const MAX_LINE: usize = 1 << 20;

/// One line from the other end.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The first line of a connection.
    Greeting,
    /// A command succeeded.
    Return {
        /// The command's id.
        id: Option<u64>,
        /// Its result.
        value: Value,
    },
    /// A command was refused.
    Error {
        /// The command's id; a line that could not be parsed has none.
        id: Option<u64>,
        /// QMP's error class.
        class: String,
        /// The explanation.
        desc: String,
    },
    /// Something happened.
    Event(Event),
}

/// An event as QMP tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `SHUTDOWN`.
    pub name: String,
    /// Its data; null when it has none.
    pub data: Value,
}

impl Event {
    /// A text field of the data.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.data.get(field)?.as_str()
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// Reads one line.
///
/// # Errors
/// [`QmpError::Protocol`] when it is not JSON or none of the kinds above.
pub fn parse(line: &[u8]) -> Result<Incoming, QmpError> {
    let line: Line = serde_json::from_slice(line)
        .map_err(|error| QmpError::Protocol(format!("unreadable line: {error}")))?;
    let Line { greeting, value, error, event, data, id } = line;
    if let Some(name) = event {
        return Ok(Incoming::Event(Event { name, data: data.unwrap_or(Value::Null) }));
    }
    if let Some(Refusal { class, desc }) = error {
        return Ok(Incoming::Error { id, class, desc });
    }
    if let Some(value) = value {
        return Ok(Incoming::Return { id, value });
    }
    if greeting.is_some() {
        return Ok(Incoming::Greeting);
    }
    Err(QmpError::Protocol("a line of no known kind".into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_line_is_told_apart() {
        assert_eq!(parse(br#"{"QMP":{"version":{}}}"#).unwrap(), Incoming::Greeting);
        assert_eq!(
            parse(br#"{"return":{"a":1},"id":7}"#).unwrap(),
            Incoming::Return { id: Some(7), value: json!({"a":1}) }
        );
        assert_eq!(
            parse(br#"{"error":{"class":"GenericError","desc":"no"},"id":7}"#).unwrap(),
            Incoming::Error { id: Some(7), class: "GenericError".into(), desc: "no".into() }
        );
        let event = parse(br#"{"event":"STOP","timestamp":{"seconds":1}}"#).unwrap();
        assert_eq!(event, Incoming::Event(Event { name: "STOP".into(), data: Value::Null }));
    }

    #[test]
    fn a_line_of_no_kind_is_an_error() {
        for line in ["", "{}", "[]", "{\"return\"", "{\"id\":1}"] {
            assert!(matches!(parse(line.as_bytes()), Err(QmpError::Protocol(_))), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}
