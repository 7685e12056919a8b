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
) -> Result<T, NetlinkError>
where
    T: Send,
    W: Future<Output = Result<T, NetlinkError>>,
{
    on_a_thread(move || {
        if let Some(namespace) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        }
        let runtime = Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            // Ends with the runtime.
            tokio::spawn(connection);
            work(handle).await
        })
    })
}

/// Runs `work` on a thread of its own, which may then change its namespaces. Blocks.
pub fn on_a_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NetlinkError> + Send,
) -> Result<T, NetlinkError> {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap_or(Err(NetlinkError::Thread)))
}
