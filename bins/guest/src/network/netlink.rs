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

/// Runs `work` in a namespace. Blocks.
pub fn in_namespace<T, W>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce(Handle) -> W + Send,
) -> Result<T, NetworkError>
where
    T: Send,
    W: Future<Output = Result<T, NetworkError>>,
{
    on_a_thread(move || {
        enter(namespace)?;
        here(work)
    })
}

/// Runs `work` with a way to the agent's own namespace and one to another. Blocks.
pub fn in_both<T, W>(
    other: BorrowedFd<'_>,
    work: impl FnOnce(Handle, Handle) -> W + Send,
) -> Result<T, NetworkError>
where
    T: Send,
    W: Future<Output = Result<T, NetworkError>>,
{
    on_a_thread(move || {
        here(async |home| {
            enter(other)?;
            work(home, connect()?).await
        })
    })
}

fn enter(namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let entered = setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    entered.map_err(|source| failed("enter a network namespace", source.into()))
}

/// A way to the namespace this thread is in now. Called in a runtime, with which it ends.
fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(no_way)?;
    tokio::spawn(connection);
    Ok(handle)
}

fn no_way(source: io::Error) -> NetworkError {
    failed("talk to the kernel about networks", source.into())
}

/// Runs `work` in the namespace this thread is in, which is no runtime's. Blocks.
pub fn here<T, W>(work: impl FnOnce(Handle) -> W) -> Result<T, NetworkError>
where
    W: Future<Output = Result<T, NetworkError>>,
{
    let runtime = Builder::new_current_thread().enable_io().build().map_err(no_way)?;
    runtime.block_on(async { work(connect()?).await })
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
