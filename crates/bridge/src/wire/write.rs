//! Text with Go's escapes.

use std::io;

use serde::{Serialize, Serializer};
use serde_json::ser::{CharEscape, Formatter};

use super::Json;

/// Writes a tree; a [`Json::Quoted`] part is written by itself first and then as a string.
pub(super) fn text(tree: &Json) -> String {
    let mut bytes = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, GoFormatter);
    Written(tree)
        .serialize(&mut serializer)
        .expect("a tree has text keys only and a Vec takes every write");
    String::from_utf8(bytes).expect("JSON made from text is text")
}

/// A tree on its way to text.
struct Written<'a>(&'a Json);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Json::Quoted(inner) => serializer.serialize_str(&text(inner)),
            Json::Array(items) => serializer.collect_seq(items.iter().map(Written)),
            Json::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (name, Written(value))))
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Text(_) => {
                self.0.serialize(serializer)
            }
        }
    }
}

/// serde_json's compact form with the escapes of Go 1.19: the characters that could end a script in
/// HTML, the two line separators, and no short form for backspace and form feed.
struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let size = value.abs();
        if size != 0.0 && !(1e-6..1e21).contains(&size) {
            let text = format!("{value:e}");
            return match text.split_once('e') {
                Some((digits, power)) if !power.starts_with('-') => {
                    write!(writer, "{digits}e+{power}")
                }
                _ => writer.write_all(text.as_bytes()),
            };
        }
        write!(writer, "{value}")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let special = ['<', '>', '&', '\u{2028}', '\u{2029}'];
        let mut rest = fragment;
        while let Some(place) = rest.find(special) {
            writer.write_all(&rest.as_bytes()[..place])?;
            let mut tail = rest[place..].chars();
            if let Some(character) = tail.next() {
                write!(writer, "\\u{:04x}", u32::from(character))?;
            }
            rest = tail.as_str();
        }
        writer.write_all(rest.as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        let text: &[u8] = match escape {
            CharEscape::Quote => b"\\\"",
            CharEscape::ReverseSolidus => b"\\\\",
            CharEscape::Solidus => b"/",
            CharEscape::Backspace => b"\\u0008",
            CharEscape::FormFeed => b"\\u000c",
            CharEscape::LineFeed => b"\\n",
            CharEscape::CarriageReturn => b"\\r",
            CharEscape::Tab => b"\\t",
            CharEscape::AsciiControl(byte) => return write!(writer, "\\u{byte:04x}"),
        };
        writer.write_all(text)
    }
}
