//! Talking to the kernel about one network namespace.
//!
//! A netlink socket belongs to the namespace its thread was in when it was opened. So each piece of
//! work has a thread of its own, which enters the namespace, does the work and ends.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use tokio::runtime::Builder;

use super::NetworkError;

/// Why the kernel could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// It refused.
    #[error(transparent)]
    Refused(#[from] rtnetlink::Error),
    /// There is no way to it.
    #[error("cannot talk to the kernel")]
    Socket(#[from] io::Error),
    /// A thread of ours ended before its work.
    #[error("the thread ended before its work")]
    Thread,
}

/// Runs `work` in a namespace; in the agent's own if there is none given. Blocks.
pub fn in_namespace<T, W>(
    namespace: Option<BorrowedFd<'_>>,
    work: impl FnOnce(Handle) -> W + Send,
) -> Result<T, NetworkError>
where
    T: Send,
    W: Future<Output = Result<T, NetworkError>>,
{
    on_a_thread(move || {
        if let Some(namespace) = namespace {
            let entered = setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            entered.map_err(|source| failed("enter a network namespace", source.into()))?;
        }
        here(work)
    })
}

/// Runs `work` in the namespace this thread is in, which is no runtime's. Blocks.
pub fn here<T, W>(work: impl FnOnce(Handle) -> W) -> Result<T, NetworkError>
where
    W: Future<Output = Result<T, NetworkError>>,
{
    let no_way = |source: io::Error| failed("talk to the kernel about networks", source.into());
    let runtime = Builder::new_current_thread().enable_io().build().map_err(no_way)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(no_way)?;
        // Ends with the runtime.
        tokio::spawn(connection);
        work(handle).await
    })
}

/// What was done when the kernel refused.
pub fn failed(what: impl Into<String>, source: NetlinkError) -> NetworkError {
    NetworkError::Kernel { what: what.into(), source }
}

/// Runs `work` on a thread of its own, which may then change its namespaces. Blocks.
pub fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let done = scope.spawn(work).join();
        done.unwrap_or_else(|_| Err(failed("work in a network namespace", NetlinkError::Thread)))
    })
}
