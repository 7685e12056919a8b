//! Endless bytes that can be checked from any point: which stream, and where in it.

/// A source or a check of one flow.
pub struct Flow {
    seed: u64,
    at: u64,
}

impl Flow {
    pub fn new(seed: u64) -> Self {
        Flow { seed, at: 0 }
    }

    fn word(&self, index: u64) -> [u8; 8] {
        (self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()
    }

    /// Fills `buffer` with the next bytes; its length must be a multiple of 8.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        assert_eq!(buffer.len() % 8, 0);
        for chunk in buffer.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.word(self.at / 8));
            self.at += 8;
        }
    }

    /// Whether these are the next bytes.
    pub fn check(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let word = self.word(self.at / 8);
            let within = (self.at % 8) as usize;
            let n = (8 - within).min(bytes.len());
            if bytes[..n] != word[within..within + n] {
                return false;
            }
            self.at += n as u64;
            bytes = &bytes[n..];
        }
        true
    }
}
