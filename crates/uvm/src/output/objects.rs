//! Finds where one JSON object in a stream ends, looking at each byte once: a guest that sends
//! its bytes one by one must not make the host parse a long line again for each of them.

/// Where the scan of a buffer stands.
#[derive(Debug, Default)]
pub(super) struct Scan {
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// What the bytes at hand begin with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// What may be an object, of so many bytes.
    Object(usize),
    /// The beginning of what may be an object, or nothing yet.
    More,
    /// Certainly no object.
    Other,
}

impl Scan {
    /// Looks at the bytes that are new since the last look. After an object, or after the buffer
    /// was emptied, a new scan is needed.
    pub(super) fn look(&mut self, buffer: &[u8]) -> Found {
        for (at, byte) in buffer.iter().enumerate().skip(self.seen) {
            self.seen = at + 1;
            if self.depth == 0 {
                match byte {
                    b'{' => self.depth = 1,
                    byte if byte.is_ascii_whitespace() => {}
                    _ => return Found::Other,
                }
            } else if self.in_string {
                self.in_string = self.escaped || *byte != b'"';
                self.escaped = !self.escaped && *byte == b'\\';
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth -= 1,
                    _ => {}
                }
                if self.depth == 0 {
                    return Found::Object(self.seen);
                }
            }
        }
        Found::More
    }

    /// Whether all that was seen is white space.
    pub(super) fn is_blank(&self) -> bool {
        self.depth == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_in_strings_do_not_count() {
        let text = br#" {"a":"}\"}","b":[{}]} {"#;
        assert_eq!(Scan::default().look(text), Found::Object(text.len() - 2));
    }

    #[test]
    fn each_byte_is_looked_at_once() {
        let text = br#"{"a":"\\"}"#;
        let mut scan = Scan::default();
        for end in 1..text.len() {
            assert_eq!(scan.look(&text[..end]), Found::More);
            assert_eq!(scan.seen, end);
        }
        assert_eq!(scan.look(text), Found::Object(text.len()));
    }

    #[test]
    fn text_is_no_object() {
        assert_eq!(Scan::default().look(b"panic"), Found::Other);
        assert_eq!(Scan::default().look(b" \n"), Found::More);
    }
}
