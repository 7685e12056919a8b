//! The hook for what the guest's program prints.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::net::UnixStream;

/// The guest's forwarded output: bytes in, until the guest closes or dies.
pub type OutputStream = UnixStream;

type Handle = dyn Fn(OutputStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Takes the guest's raw output and owns it: [`crate::UtilityVm::wait`] returns only when the
/// handler has.
#[derive(Clone)]
pub struct OutputHandler(Arc<Handle>);

impl OutputHandler {
    /// Wraps a function. It is called at most once per VM, on a task of its own.
    pub fn new<F, R>(handle: F) -> Self
    where
        F: Fn(OutputStream) -> R + Send + Sync + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        Self(Arc::new(move |stream| Box::pin(handle(stream))))
    }

    /// Runs the handler to its end.
    pub(crate) async fn handle(&self, stream: OutputStream) {
        (self.0)(stream).await;
    }
}

impl fmt::Debug for OutputHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OutputHandler")
    }
}
