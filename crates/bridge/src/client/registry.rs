//! What the driver and the handles know together: live containers, and how the
//! bridge ended.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::BridgeError;
use crate::message::NotificationType;

/// The life of a container as the host sees it.
///
/// ```text
///  Running --notification--> Exited
///     '------bridge ends---> Lost
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    Exited(NotificationType),
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Registry {
    containers: Mutex<HashMap<String, watch::Sender<Phase>>>,
    cause: Mutex<Option<BridgeError>>,
    /// Set when this host itself ends the bridge: it is done with the guest.
    pub(super) done: AtomicBool,
    pub(super) closed: CancellationToken,
}

impl Registry {
    fn containers(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Phase>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id for a container; `None` when a live one has it.
    pub(super) fn register(&self, id: &str) -> Option<watch::Receiver<Phase>> {
        let mut containers = self.containers();
        if containers.contains_key(id) {
            return None;
        }
        let (tell, phase) = watch::channel(Phase::Running);
        containers.insert(id.to_owned(), tell);
        Some(phase)
    }

    /// Frees an id that never came to life.
    pub(super) fn deregister(&self, id: &str) {
        self.containers().remove(id);
    }

    /// A container exited; its id is free. `false` when nobody knows it.
    pub(super) fn exited(&self, id: &str, kind: NotificationType) -> bool {
        match self.containers().remove(id) {
            Some(tell) => {
                tell.send_replace(Phase::Exited(kind));
                true
            }
            None => false,
        }
    }

    /// The bridge ended; the first cause counts.
    pub(super) fn end(&self, cause: BridgeError) {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
        for (_, tell) in self.containers().drain() {
            tell.send_replace(Phase::Lost);
        }
        self.closed.cancel();
    }

    /// Why there is no bridge any more.
    pub(super) fn cause(&self) -> BridgeError {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone();
        cause.unwrap_or(BridgeError::Closed)
    }
}
