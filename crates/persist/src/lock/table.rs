//! Locks among drivers of one process, for states that are in its memory.

use super::{Ask, Hold, Lock, LockError, LockMode, Over, Patience};
use crate::id::SandboxId;
use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Which sandboxes are locked, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockTable {
    held: Arc<Mutex<HashMap<SandboxId, Held>>>,
}

#[derive(Debug, Default)]
struct Held {
    shared: usize,
    exclusive: bool,
}

/// An entry of a table.
#[derive(Debug)]
struct Entry {
    table: LockTable,
    id: SandboxId,
    mode: LockMode,
    /// Says whether the sandbox is still the one that was locked.
    same: Box<dyn Same>,
}

/// Tells whether a sandbox is still the one that was locked.
pub(crate) trait Same: Send + std::fmt::Debug {
    fn is_same(&self) -> bool;
}

impl Hold for Entry {
    fn is_held(&self) -> io::Result<bool> {
        Ok(self.same.is_same())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut held = self.table.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = held.get_mut(&self.id) else { return };
        match self.mode {
            LockMode::Shared => entry.shared = entry.shared.saturating_sub(1),
            LockMode::Exclusive => entry.exclusive = false,
        }
        if entry.shared == 0 && !entry.exclusive {
            held.remove(&self.id);
        }
    }
}

impl LockTable {
    /// Locks a sandbox.
    pub(crate) fn lock(
        &self,
        id: &SandboxId,
        ask: Ask<'_>,
        same: impl Same + 'static,
    ) -> Result<Lock, LockError> {
        let mut patience = Patience::new(ask);
        while !self.try_lock(id, ask.mode) {
            match patience.pause() {
                Ok(()) => {}
                Err(Over::Cancelled) => return Err(LockError::Cancelled(id.clone())),
                Err(Over::Late) => {
                    return Err(LockError::Busy { id: id.clone(), holders: Vec::new() });
                }
            }
        }
        let (table, same) = (self.clone(), Box::new(same));
        let entry = Entry { table, id: id.clone(), mode: ask.mode, same };
        Ok(Lock::new(id.clone(), ask.mode, Box::new(entry)))
    }

    fn try_lock(&self, id: &SandboxId, mode: LockMode) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = held.entry(id.clone()).or_default();
        match mode {
            LockMode::Shared if !entry.exclusive => entry.shared += 1,
            LockMode::Exclusive if !entry.exclusive && entry.shared == 0 => entry.exclusive = true,
            LockMode::Shared | LockMode::Exclusive => return false,
        }
        true
    }
}
