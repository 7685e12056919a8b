//! What comes of something several callers wait for.

use std::sync::Arc;

use tokio::sync::watch;

use crate::errors::UvmError;

/// How it ended; the same for all.
pub(crate) type Outcome = Result<(), Arc<UvmError>>;

/// Held by the one who acts. Dropped without a word, it means that the VM went away.
#[derive(Debug)]
pub(crate) struct Verdict(watch::Sender<Option<Outcome>>);

/// Held by one who waits.
#[derive(Debug)]
pub(crate) struct Fate(watch::Receiver<Option<Outcome>>);

impl Default for Verdict {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Verdict {
    /// For one more who waits.
    pub(crate) fn fate(&self) -> Fate {
        Fate(self.0.subscribe())
    }

    /// Tells all of them.
    pub(crate) fn pronounce(self, outcome: Outcome) {
        self.0.send_replace(Some(outcome));
    }
}

impl Fate {
    /// Waits. Cancel safe.
    pub(crate) async fn wait(mut self) -> Outcome {
        match self.0.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err(Arc::new(UvmError::Abandoned)),
        }
    }
}
