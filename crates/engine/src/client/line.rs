//! One connection to a monitor, for one request after the other.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

/// The monitor went away before it had answered.
pub(super) struct Gone(pub(super) Box<dyn std::error::Error + Send + Sync>);

/// One connection to a monitor. Its task ends with it.
pub(super) struct Line {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

impl Line {
    /// Speaks HTTP on this socket.
    pub(super) async fn open(stream: UnixStream) -> Result<Self, Gone> {
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| Gone(error.into()))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a monitor broke");
            }
        });
        Ok(Self { sender, _driver: AbortOnDropHandle::new(driver) })
    }

    /// Asks and waits for the whole answer.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Gone> {
        let gone = |error: hyper::Error| Gone(error.into());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "coracle")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Gone(error.into()))?;
        self.sender.ready().await.map_err(gone)?;
        let response = self.sender.send_request(request).await.map_err(gone)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(gone)?;
        Ok((status, body.to_bytes()))
    }
}
