//! The guest's console on a socket for a person to dial.
//!
//! The monitor writes the console to whoever is connected, and to nobody else. Since its last
//! lines must be known when the guest dies, the owner is the one who is connected, always: it
//! keeps the end of all that is written, and passes everything on to the one person who may have
//! dialled, at that person's pace.
//!
//! ```text
//! guest <-- first serial port --> monitor <-- tty.sock --> owner <-- console socket --> person
//!                                                            |
//!                                                          tail
//! ```

use std::{convert::Infallible, future::pending, io, path::PathBuf, time::Duration};

use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};

use super::Shared;
use crate::{VmmError, process::Tail, socket};

/// How long to wait before dialling the monitor again.
const AGAIN: Duration = Duration::from_millis(100);

/// What is read at a time, and so the most that is held for a slow reader.
const CHUNK: usize = 4096;

/// Both sides of the console.
#[derive(Debug)]
pub(crate) struct Console {
    listener: UnixListener,
    tty: PathBuf,
    port: Option<UnixStream>,
    person: Option<UnixStream>,
    /// Read from one side and not yet written to the other.
    to_person: Vec<u8>,
    to_port: Vec<u8>,
}

/// What can be done next.
enum Step {
    Dialled(UnixStream),
    FromPort(io::Result<usize>, Vec<u8>),
    FromPerson(io::Result<usize>, Vec<u8>),
    ToPerson,
    ToPort,
}

impl Console {
    /// Listens for the person; `tty` is the monitor's socket of the serial port.
    pub(crate) fn listen(path: PathBuf, tty: PathBuf) -> Result<Self, VmmError> {
        let listener = socket::listen_here(&path).map_err(|source| VmmError::Host {
            operation: "listen on",
            object: path.display().to_string(),
            source,
        })?;
        let (to_person, to_port) = (Vec::new(), Vec::new());
        Ok(Self { listener, tty, port: None, person: None, to_person, to_port })
    }

    /// Carries bytes for ever; may be dropped at any wait without losing one.
    async fn carry(&mut self, shared: &Shared) -> Infallible {
        loop {
            let Some(port) = &self.port else {
                match socket::connect(&self.tty).await {
                    Ok(port) => self.port = Some(port),
                    Err(_) => sleep(AGAIN).await,
                }
                continue;
            };
            let person = self.person.as_ref();
            let step = tokio::select! {
                dialled = self.listener.accept(), if person.is_none() => match dialled {
                    Ok((person, _)) => Step::Dialled(person),
                    Err(_) => {
                        sleep(AGAIN).await;
                        continue;
                    }
                },
                (result, chunk) = read(Some(port)), if self.to_person.is_empty() => {
                    Step::FromPort(result, chunk)
                }
                (result, chunk) = read(person), if self.to_port.is_empty() => {
                    Step::FromPerson(result, chunk)
                }
                () = writable(person), if !self.to_person.is_empty() => Step::ToPerson,
                () = writable(Some(port)), if !self.to_port.is_empty() => Step::ToPort,
            };
            self.take(step, shared);
        }
    }

    fn take(&mut self, step: Step, shared: &Shared) {
        match step {
            Step::Dialled(person) => self.person = Some(person),
            Step::FromPort(Ok(1..), chunk) => {
                shared.console().push(&chunk);
                if self.person.is_some() {
                    self.to_person = chunk;
                }
            }
            Step::FromPort(result, _) => {
                if !would_block(&result) {
                    self.port = None;
                }
            }
            Step::FromPerson(Ok(1..), chunk) => self.to_port = chunk,
            Step::FromPerson(result, _) => {
                if !would_block(&result) {
                    self.person = None;
                    self.to_person.clear();
                }
            }
            Step::ToPerson => {
                if !write(self.person.as_ref(), &mut self.to_person) {
                    self.person = None;
                    self.to_person.clear();
                }
            }
            Step::ToPort => {
                if !write(self.port.as_ref(), &mut self.to_port) {
                    self.port = None;
                    self.to_port.clear();
                }
            }
        }
    }

    /// Takes what the dead monitor left in its socket, for the tail and, as far as its own socket
    /// holds it, for the person.
    pub(super) fn finish(mut self, tail: &mut Tail) {
        write(self.person.as_ref(), &mut self.to_person);
        let Some(port) = &self.port else { return };
        let mut chunk = [0; CHUNK];
        while let Ok(count @ 1..) = port.try_read(&mut chunk) {
            tail.push(&chunk[..count]);
            self.to_person.extend_from_slice(&chunk[..count]);
            write(self.person.as_ref(), &mut self.to_person);
        }
    }
}

/// Carries the console, if there is one, for ever.
pub(super) async fn serve(shared: &Shared, console: &mut Option<Console>) -> Infallible {
    match console {
        Some(console) => console.carry(shared).await,
        None => pending().await,
    }
}

async fn read(stream: Option<&UnixStream>) -> (io::Result<usize>, Vec<u8>) {
    let Some(stream) = stream else { return pending().await };
    let mut chunk = vec![0; CHUNK];
    let result = match stream.readable().await {
        Ok(()) => stream.try_read(&mut chunk),
        Err(error) => Err(error),
    };
    chunk.truncate(*result.as_ref().unwrap_or(&0));
    (result, chunk)
}

async fn writable(stream: Option<&UnixStream>) {
    match stream {
        // A failure shows again when writing.
        Some(stream) => drop(stream.writable().await),
        None => pending().await,
    }
}

/// Writes as much as goes at once; false when the other side is gone.
fn write(stream: Option<&UnixStream>, bytes: &mut Vec<u8>) -> bool {
    let Some(stream) = stream else { return false };
    while !bytes.is_empty() {
        let result = stream.try_write(bytes);
        match result {
            Ok(count @ 1..) => drop(bytes.drain(..count)),
            result => return would_block(&result),
        }
    }
    true
}

fn would_block(result: &io::Result<usize>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
