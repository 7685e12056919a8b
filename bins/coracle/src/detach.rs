//! The key sequence that leaves a terminal.
//!
//! Bytes typed pass through a [`DetachKeys`]. A byte that may begin the sequence is
//! held back until the next one decides; nothing typed is lost unless the whole
//! sequence was.

/// A sequence of bytes, and how much of it was typed so far.
#[derive(Debug, Clone)]
pub struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

impl DetachKeys {
    /// Parses `ctrl-p,ctrl-q`, `ctrl-],x` and the like; the empty text means never.
    ///
    /// # Errors
    /// Names the key it does not know.
    pub fn parse(text: &str) -> Result<Self, String> {
        let keys =
            text.split(',').filter(|k| !k.is_empty()).map(parse_key).collect::<Result<_, _>>()?;
        Ok(DetachKeys { keys, typed: 0 })
    }

    /// Takes what was typed. Returns what to pass on, and whether to leave.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(input.len() + self.typed);
        if self.keys.is_empty() {
            out.extend_from_slice(input);
            return (out, false);
        }
        for &byte in input {
            while self.typed > 0 && byte != self.keys[self.typed] {
                self.fall_back(&mut out);
            }
            if byte != self.keys[self.typed] {
                out.push(byte);
                continue;
            }
            self.typed += 1;
            if self.typed == self.keys.len() {
                self.typed = 0;
                return (out, true);
            }
        }
        (out, false)
    }

    /// Gives up the longest held-back prefix that cannot belong to a match any more.
    fn fall_back(&mut self, out: &mut Vec<u8>) {
        let held = &self.keys[..self.typed];
        let kept = (0..self.typed).rev().find(|&n| held.ends_with(&self.keys[..n])).unwrap_or(0);
        out.extend_from_slice(&held[..self.typed - kept]);
        self.typed = kept;
    }
}

fn parse_key(text: &str) -> Result<u8, String> {
    let bad = || {
        format!("unknown key {text:?}: write one character, or ctrl- and one of a-z @ [ \\ ] ^ _")
    };
    if let [byte] = text.as_bytes() {
        return Ok(*byte);
    }
    let Some([byte]) = text.strip_prefix("ctrl-").map(str::as_bytes) else { return Err(bad()) };
    match byte.to_ascii_uppercase() {
        upper @ b'@'..=b'_' => Ok(upper - b'@'),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> DetachKeys {
        DetachKeys::parse("ctrl-p,ctrl-q").unwrap()
    }

    #[test]
    fn the_sequence_leaves_and_is_not_passed_on() {
        assert_eq!(keys().filter(b"ab\x10\x11cd"), (b"ab".to_vec(), true));
    }

    #[test]
    fn a_sequence_over_two_reads_is_seen() {
        let mut k = keys();
        assert_eq!(k.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(k.filter(b"\x11"), (vec![], true));
    }

    #[test]
    fn a_broken_off_sequence_is_passed_on_whole() {
        let mut k = keys();
        assert_eq!(k.filter(b"\x10"), (vec![], false));
        assert_eq!(k.filter(b"x\x10\x10\x11"), (b"\x10x\x10".to_vec(), true));
    }

    #[test]
    fn sequences_that_overlap_themselves_are_found() {
        let mut k = DetachKeys::parse("a,a,b").unwrap();
        assert_eq!(k.filter(b"aaab"), (b"a".to_vec(), true));
    }

    #[test]
    fn the_empty_sequence_never_leaves() {
        let mut k = DetachKeys::parse("").unwrap();
        assert_eq!(k.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }

    #[test]
    fn unknown_keys_are_named() {
        assert!(DetachKeys::parse("ctrl-p,meta-x").unwrap_err().contains("meta-x"));
        assert!(DetachKeys::parse("ctrl-1").is_err());
        assert_eq!(DetachKeys::parse("ctrl-],x").unwrap().keys, [0x1d, b'x']);
    }
}
