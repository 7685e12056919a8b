//! JSON as Go's encoder writes it.
//!
//! Compact, one newline at the end, and escaped so that it could stand in an HTML page: `<`, `>`, `&`
//! and the two line separators of Unicode go as numbers, and of the control characters only newline,
//! return and tab have short forms.

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};
use std::io::{self, Write};

/// One line.
pub(super) fn line<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::with_capacity(4096);
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Go))?;
    bytes.push(b'\n');
    Ok(bytes)
}

struct Go;

impl Formatter for Go {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        let bytes = fragment.as_bytes();
        // Nearly no text has any of these, and looking for them at once is quick.
        if !bytes.iter().fold(false, |seen, byte| seen | matches!(byte, b'<' | b'>' | b'&' | 0xe2))
        {
            return writer.write_all(bytes);
        }
        let mut written = 0;
        for (at, byte) in bytes.iter().enumerate() {
            let (escape, len): (&[u8], usize) = match byte {
                b'<' => (b"\\u003c", 1),
                b'>' => (b"\\u003e", 1),
                b'&' => (b"\\u0026", 1),
                0xe2 if bytes[at..].starts_with("\u{2028}".as_bytes()) => (b"\\u2028", 3),
                0xe2 if bytes[at..].starts_with("\u{2029}".as_bytes()) => (b"\\u2029", 3),
                _ => continue,
            };
            writer.write_all(&bytes[written..at])?;
            writer.write_all(escape)?;
            written = at + len;
        }
        writer.write_all(&bytes[written..])
    }

    fn write_char_escape<W>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        let number = match escape {
            CharEscape::Quote => return writer.write_all(b"\\\""),
            CharEscape::ReverseSolidus => return writer.write_all(b"\\\\"),
            CharEscape::Solidus => return writer.write_all(b"/"),
            CharEscape::LineFeed => return writer.write_all(b"\\n"),
            CharEscape::CarriageReturn => return writer.write_all(b"\\r"),
            CharEscape::Tab => return writer.write_all(b"\\t"),
            CharEscape::Backspace => 0x08,
            CharEscape::FormFeed => 0x0c,
            CharEscape::AsciiControl(byte) => byte,
        };
        write!(writer, "\\u{number:04x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> String {
        String::from_utf8(line(&text).unwrap()).unwrap()
    }

    #[test]
    fn text_is_escaped_as_go_escapes_it() {
        for (text, json) in [
            ("\"\\\n\r\t", r#""\"\\\n\r\t""#),
            ("\u{8}\u{c}\u{0}\u{1f}", r#""\u0008\u000c\u0000\u001f""#),
            ("<a & b>", r#""\u003ca \u0026 b\u003e""#),
            ("\u{2027}\u{2028}\u{2029}\u{202a}", "\"\u{2027}\\u2028\\u2029\u{202a}\""),
            ("/\u{7f}é\u{fffd}\u{1f980}", "\"/\u{7f}é\u{fffd}\u{1f980}\""),
            ("", r#""""#),
        ] {
            assert_eq!(written(text), format!("{json}\n"));
        }
    }

    #[test]
    fn keys_are_escaped_as_values_are() {
        let map = std::collections::BTreeMap::from([("a<b", 1)]);
        assert_eq!(line(&map).unwrap(), b"{\"a\\u003cb\":1}\n");
    }
}
