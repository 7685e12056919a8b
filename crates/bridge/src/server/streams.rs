//! The tasks that move the bytes of a process's streams.

use std::sync::Arc;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::service::{Connection, Source};
use crate::stdio::{
    Input, OutputRing, SharedRing, StdStream, serve_input, serve_input_raw, serve_output,
    serve_output_raw,
};

/// Moves what a process writes into its ring, until it ends the stream or the
/// host wants no more. Dropping the source then gives the process a broken pipe.
pub(super) async fn fill(mut source: Source, ring: SharedRing, closed: CancellationToken) {
    let pump = async {
        while let Some(Ok(bytes)) = source.next().await {
            if ring.put(bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = pump => {}
        () = ring.stopped() => {}
        () = closed.cancelled() => {}
    }
    ring.finish();
    let dropped = ring.inspect(OutputRing::dropped);
    if dropped > 0 {
        tracing::warn!(bytes = dropped, "output was dropped because nobody read it in time");
    }
}

/// A stream that a connection carries.
pub(super) enum Carried {
    Input(Arc<Input>),
    /// With the offset it begins at.
    Output(SharedRing, u64),
}

impl Carried {
    /// In place of a stream the process does not have.
    pub(super) fn absent(stream: StdStream) -> Self {
        match stream {
            StdStream::In => {
                let input = Input::new(Box::new(tokio::io::sink()));
                input.close();
                Self::Input(Arc::new(input))
            }
            StdStream::Out | StdStream::Err => {
                let ring = SharedRing::new(OutputRing::default());
                ring.finish();
                Self::Output(ring, 0)
            }
        }
    }
}

/// Carries a stream over a connection until either ends, or `until`.
pub(super) async fn carry(
    carried: &Carried,
    connection: Box<dyn Connection>,
    extended: bool,
    until: CancellationToken,
) {
    let work = async {
        match (carried, extended) {
            (Carried::Input(input), true) => serve_input(input, connection).await.map(|_| ()),
            (Carried::Input(input), false) => serve_input_raw(input, connection).await.map(|_| ()),
            (Carried::Output(ring, from), true) => serve_output(ring, connection, *from).await,
            (Carried::Output(ring, _), false) => serve_output_raw(ring, connection).await,
        }
    };
    tokio::select! {
        result = work => if let Err(fault) = result {
            tracing::debug!(%fault, "a stdio connection ended");
        },
        () = until.cancelled() => {}
    }
}
