//! Connections: a listener, and one thread per client.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::export::Export;
use crate::session::Session;
use crate::wire::HEADER;

/// The longest message, in bytes.
const MESSAGE: u32 = 512 * 1024;

/// A server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It can take no connections.
    #[error("accepting a connection")]
    Accept(#[source] io::Error),
    /// A connection broke.
    #[error("talking to a client")]
    Talk(#[source] io::Error),
    /// A client sends what is no message.
    #[error("a client sends a message of {length} bytes")]
    Length {
        /// What it says.
        length: u32,
    },
}

/// Serves all who connect. Returns only when it can take no more.
///
/// # Errors
/// [`ServeError::Accept`].
pub fn serve(listener: &UnixListener, export: Export) -> Result<(), ServeError> {
    raise_limit();
    let export = Arc::new(export);
    loop {
        let (connection, _) = match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(ServeError::Accept)?,
        };
        let export = export.clone();
        let thread = std::thread::Builder::new().name("9p".to_owned()).spawn(move || {
            if let Err(error) = serve_connection(connection, export) {
                tracing::info!(error = &error as &dyn std::error::Error, "a client is gone");
            }
        });
        thread.map_err(ServeError::Accept)?;
    }
}

/// Each fid is a descriptor.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    // It is enough for most with what there is.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// Serves one client until it hangs up.
///
/// # Errors
/// The connection breaks, or the client breaks the protocol's framing.
pub fn serve_connection(mut connection: UnixStream, export: Arc<Export>) -> Result<(), ServeError> {
    let mut session = Session::new(export, MESSAGE);
    let mut body = Vec::new();
    loop {
        let mut header = [0; HEADER];
        match connection.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map_err(ServeError::Talk)?,
        }
        let [l0, l1, l2, l3, request, t0, t1] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        let rest = whole.checked_sub(HEADER).filter(|_| length <= session.message);
        let rest = rest.ok_or(ServeError::Length { length })?;
        body.resize(rest, 0);
        connection.read_exact(&mut body).map_err(ServeError::Talk)?;
        let answer = session.respond(request, u16::from_le_bytes([t0, t1]), &body);
        connection.write_all(&answer).map_err(ServeError::Talk)?;
    }
}
