//! What a caller learns of long work, and how it stops it.

use coracle_image::progress::{Phase, Progress};
use tokio_util::sync::CancellationToken;

/// How far the work is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Step {
    /// What is being done, in a word or two.
    pub phase: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
}

/// Called as the work goes on, from any thread.
pub type OnProgress = Box<dyn FnMut(&Step) + Send>;

/// Hands an image's progress on, and a caller's wish to stop back.
pub(crate) struct Channelled {
    step: Step,
    on_progress: OnProgress,
    cancel: CancellationToken,
}

impl Channelled {
    pub(crate) fn new(on_progress: OnProgress, cancel: CancellationToken) -> Self {
        let step = Step { phase: String::new(), done: 0, total: None };
        Channelled { step, on_progress, cancel }
    }
}

impl Progress for Channelled {
    fn begin(&mut self, phase: Phase, total: Option<u64>) {
        let phase = match phase {
            Phase::Scan => "scanning the directory".to_owned(),
            Phase::Digest => "hashing the archive".to_owned(),
            Phase::Unpack => "unpacking the archive".to_owned(),
            Phase::Wait => "waiting for another conversion".to_owned(),
            Phase::Copy => "converting".to_owned(),
            Phase::Layer { number, count } => format!("converting layer {number} of {count}"),
            Phase::Finish => "finishing the image".to_owned(),
        };
        self.step = Step { phase, done: 0, total };
        (self.on_progress)(&self.step);
    }

    fn advance(&mut self, bytes: u64) {
        self.step.done += bytes;
        (self.on_progress)(&self.step);
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
