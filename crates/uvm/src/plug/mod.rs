//! What every kind of thing that can be plugged in has in common.
//!
//! Each kind has a place of its own in this crate (`scsi`, `vpmem`, `plan9`, `virtiofs`, `pipe`,
//! ...) and the same verbs: *reserve* picks a slot and counts a reference, without any effect;
//! *attach* plugs in on the host, then tells the guest, and undoes the host if the guest refuses;
//! *detach* has the guest let go, then unplugs, and can be tried again. Things that are plugged in
//! once and used by many sit on a [`shelf`]. Every verb runs [`to_the_end`]: a caller that goes
//! away half-way leaves the thing as if it had never asked.

mod fate;
mod shelf;

use std::future::Future;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::errors::{Result, UvmError};

pub(crate) use fate::Outcome;
pub(crate) use shelf::{Released, Reserved, Saved, Shelf};

/// Runs `work` on a task of its own and returns what it gives. When the caller has gone by then,
/// `unwanted` gets the result and gives it back.
///
/// Cancel safe: that is what it is for. The task ends with `work`, whose steps have time-outs.
pub(crate) async fn to_the_end<T, F, U>(
    work: impl Future<Output = Result<T>> + Send + 'static,
    unwanted: F,
) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(T) -> U + Send + 'static,
    U: Future<Output = ()> + Send + 'static,
{
    let (give, take) = oneshot::channel();
    tokio::spawn(async move {
        let done = work.await;
        if let Err(Ok(nobodys)) = give.send(done) {
            unwanted(nobodys).await;
        }
    });
    take.await.unwrap_or(Err(UvmError::Abandoned))
}

/// Tells everybody who waits what came of it. A failure that nobody waited for is returned as it is.
pub(crate) fn share<T>(result: Result<T>, tell: impl FnOnce(&Outcome)) -> Result<T> {
    match result {
        Ok(done) => {
            tell(&Ok(()));
            Ok(done)
        }
        Err(error) => {
            let error = Arc::new(error);
            let outcome = Err(error.clone());
            tell(&outcome);
            drop(outcome);
            Err(Arc::try_unwrap(error).unwrap_or_else(UvmError::Shared))
        }
    }
}
