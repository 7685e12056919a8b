//! Answers too long for a frame, kept until the host has fetched them.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Answers kept at once; the oldest goes when one more comes.
const ANSWERS_MAX: usize = 8;

/// Longest answer kept, in bytes.
pub(super) const LENGTH_MAX: usize = 4 << 20;

/// The long answers of one connection, by handle.
#[derive(Debug, Default)]
pub(super) struct HeldAnswers {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u32,
    answers: BTreeMap<u32, String>,
}

impl HeldAnswers {
    /// Keeps an answer and gives it a handle, never 0.
    pub(super) fn keep(&self, answer: String) -> u32 {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last = kept.last.checked_add(1).unwrap_or(1);
        let handle = kept.last;
        kept.answers.insert(handle, answer);
        while kept.answers.len() > ANSWERS_MAX {
            kept.answers.pop_first();
        }
        handle
    }

    /// At most `most` bytes of an answer from `offset` on, cut between characters.
    /// The answer is forgotten with its last piece.
    pub(super) fn piece(&self, handle: u32, offset: u64, most: usize) -> Option<String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = kept.answers.get(&handle)?;
        let rest = answer.get(usize::try_from(offset).ok()?..)?;
        let piece = rest[..rest.floor_char_boundary(most)].to_owned();
        if piece.len() == rest.len() {
            kept.answers.remove(&handle);
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_piece_by_piece_and_is_then_forgotten() {
        let held = HeldAnswers::default();
        let text = "grün und groß".repeat(9);
        let handle = held.keep(text.clone());
        let mut got = String::new();
        while got.len() < text.len() {
            got += &held.piece(handle, got.len() as u64, 7).unwrap();
        }
        assert_eq!(got, text);
        assert_eq!(held.piece(handle, 0, 7), None);
    }

    #[test]
    fn an_offset_inside_a_character_or_beyond_the_end_is_refused() {
        let held = HeldAnswers::default();
        let handle = held.keep("ü".to_owned());
        assert_eq!(held.piece(handle, 1, 7), None);
        assert_eq!(held.piece(handle, 3, 7), None);
    }

    #[test]
    fn the_oldest_answer_goes_when_too_many_are_kept() {
        let held = HeldAnswers::default();
        let first = held.keep("a".to_owned());
        for _ in 0..ANSWERS_MAX {
            held.keep("b".to_owned());
        }
        assert_eq!(held.piece(first, 0, 7), None);
    }
}
