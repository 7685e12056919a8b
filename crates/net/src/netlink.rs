//! Talking to the kernel about the network namespace the caller is in.

use std::future::Future;

use rtnetlink::Handle;
use tokio::runtime::Builder;

use crate::namespace::on_a_thread;
use crate::{NetError, Result};

/// Runs `work` with a netlink connection to the namespace of this thread. Blocks for as long as the
/// kernel takes. It is done on a thread of its own, which is in the same namespace, since this one may
/// be a runtime's.
pub(crate) fn ask<T, W>(what: &str, work: impl FnOnce(Handle) -> W + Send) -> Result<T>
where
    T: Send,
    W: Future<Output = Result<T, rtnetlink::Error>>,
{
    on_a_thread(|| ask_here(what, work))
}

fn ask_here<T, W>(what: &str, work: impl FnOnce(Handle) -> W) -> Result<T>
where
    W: Future<Output = Result<T, rtnetlink::Error>>,
{
    let system = |source| NetError::System { what: "talk to the kernel about networks", source };
    let runtime = Builder::new_current_thread().enable_io().build().map_err(system)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(system)?;
        // Ends with the runtime.
        tokio::spawn(connection);
        work(handle).await.map_err(|source| NetError::Kernel { what: what.to_owned(), source })
    })
}

/// The error number the kernel answered with.
pub(crate) fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// As [`errno`], of an error of ours.
pub(crate) fn errno_of(error: &NetError) -> Option<i32> {
    match error {
        NetError::Kernel { source, .. } => errno(source),
        _ => None,
    }
}
