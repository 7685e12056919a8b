//! Locks that end with their holder: keys with a lease.

use super::keys::{Keys, META};
use super::wire::Wire;
use crate::driver::DriverError;
use crate::id::SandboxId;
use crate::lock::{Ask, Hold, Lock, LockError, LockMode, Over, Patience};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use std::any::Any;
use std::io;
use std::time::Duration;

/// A key with our lease.
#[derive(Debug)]
struct Leased {
    wire: Wire,
    key: String,
    lease: i64,
    /// The sandbox's meta key, and the revision that made it; 0 if the sandbox was not there yet.
    meta: (String, i64),
}

impl Leased {
    /// What must hold as long as the lock is held.
    fn compares(&self) -> Vec<Compare> {
        let mut compares = vec![Compare::lease(self.key.as_str(), CompareOp::Equal, self.lease)];
        let (meta, made) = &self.meta;
        if *made > 0 {
            compares.push(Compare::create_revision(meta.as_str(), CompareOp::Equal, *made));
        }
        compares
    }
}

impl Hold for Leased {
    /// Asks the server, and has the lease begin anew.
    fn is_held(&self) -> io::Result<bool> {
        let txn = Txn::new().when(self.compares());
        let held = self.wire.ask("look at", &self.key, async |mut client| {
            // A lease that has run out is not prolonged, which the transaction then shows.
            if let Ok((mut keeper, mut answers)) = client.lease_keep_alive(self.lease).await {
                keeper.keep_alive().await?;
                answers.message().await?;
            }
            client.txn(txn).await
        });
        held.map(|answer| answer.succeeded()).map_err(io::Error::other)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        let revoked = self
            .wire
            .ask("give back", &self.key, async |mut client| client.lease_revoke(self.lease).await);
        if let Err(error) = revoked {
            tracing::warn!(key = self.key, %error, "the lock is free when its lease has run out");
        }
    }
}

/// What a transaction under a lock is subject to.
pub(super) fn still_held(lock: &Lock) -> Vec<Compare> {
    let leased = lock.hold().and_then(|hold| hold.as_any().downcast_ref::<Leased>());
    leased.map(Leased::compares).unwrap_or_default()
}

/// Locks a sandbox.
pub(super) fn lock(
    wire: &Wire,
    keys: &Keys,
    id: &SandboxId,
    ask: Ask<'_>,
    lease: Duration,
) -> Result<Lock, DriverError> {
    let meta = format!("{}{META}", keys.sandbox(id));
    let locks = keys.locks(id);
    let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX).max(1);
    let lease = wire
        .ask("grant a lease for", &locks, async |mut client| {
            client.lease_grant(seconds, None).await
        })?
        .id();
    let exclusive = format!("{locks}exclusive");
    let (key, free) = match ask.mode {
        LockMode::Exclusive => {
            let none = Compare::create_revision(locks.as_str(), CompareOp::Equal, 0);
            (exclusive, none.with_prefix())
        }
        LockMode::Shared => {
            let free = Compare::create_revision(exclusive, CompareOp::Equal, 0);
            (format!("{locks}shared/{lease:x}"), free)
        }
    };
    // From here on the lease is given back whatever happens.
    let mut leased = Leased { wire: wire.clone(), key, lease, meta: (meta.clone(), 0) };
    let mut patience = Patience::new(ask);
    loop {
        let mut when = vec![free.clone()];
        if !ask.create {
            when.push(Compare::create_revision(meta.as_str(), CompareOp::Greater, 0));
        }
        let owner = format!("process {}", std::process::id());
        let options = Some(PutOptions::new().with_lease(lease));
        let look = TxnOp::get(meta.as_str(), None);
        let txn = Txn::new()
            .when(when)
            .and_then(vec![TxnOp::put(leased.key.as_str(), owner, options), look.clone()])
            .or_else(vec![look]);
        let answer = wire.ask("lock", &leased.key, async |mut client| client.txn(txn).await)?;
        let made = made(&answer);
        if answer.succeeded() {
            leased.meta.1 = made;
            return Ok(Lock::new(id.clone(), ask.mode, Box::new(leased)));
        }
        if made == 0 && !ask.create {
            return Err(LockError::NoSandbox(id.clone()).into());
        }
        match patience.pause() {
            Ok(()) => {}
            Err(Over::Cancelled) => return Err(LockError::Cancelled(id.clone()).into()),
            Err(Over::Late) => {
                return Err(LockError::Busy { id: id.clone(), holders: Vec::new() }.into());
            }
        }
    }
}

/// The revision that made the sandbox; 0 if it is not there.
fn made(answer: &etcd_client::TxnResponse) -> i64 {
    answer
        .op_responses()
        .iter()
        .find_map(|response| match response {
            etcd_client::TxnOpResponse::Get(found) => {
                Some(found.kvs().first().map_or(0, etcd_client::KeyValue::create_revision))
            }
            _ => None,
        })
        .unwrap_or(0)
}
