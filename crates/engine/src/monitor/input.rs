//! The standard input of a command whose output goes to a log: whoever is attached may write to it,
//! one at a time, and it stays open when they leave.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use super::streams::{self, Opened};
use crate::process::{Input, Process};

/// How often it is looked whether all input has arrived.
const LOOK: Duration = Duration::from_millis(10);

/// Where one writes to a command's input.
#[derive(Debug)]
pub(super) struct InputDesk(Mutex<Option<Input>>);

impl InputDesk {
    /// None: the command has no input.
    pub(super) fn of(input: Option<Input>) -> Self {
        Self(Mutex::new(input))
    }

    /// Serves one who is attached: pieces, of which one of no length is the input's end. A connection
    /// that is cut off is not, nor is a monitor's death: what did not arrive is sent again.
    pub(super) async fn serve<C>(&self, process: &Process, connection: C) -> io::Result<()>
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut from, mut answers) = tokio::io::split(connection);
        let Ok(mut desk) = self.0.try_lock() else {
            return streams::answer(&mut answers, Opened::Busy).await;
        };
        let Some(mut input) = desk.clone() else {
            return streams::answer(&mut answers, Opened::Unknown).await;
        };
        streams::answer(&mut answers, Opened::At(input.written())).await?;
        tokio::select! {
            carried = carry(&mut from, &mut input) => if carried? {
                *desk = None;
                until_over(&input, process).await;
            },
            // It takes no more.
            _ = process.wait() => {}
        }
        streams::say_arrived(&mut answers).await
    }
}

/// Carries what comes until its end, which is true, or until the command takes no more.
async fn carry(from: &mut (impl AsyncRead + Unpin), input: &mut Input) -> io::Result<bool> {
    let mut piece = Vec::new();
    loop {
        if streams::read_piece(from, &mut piece).await? == 0 {
            input.shutdown().await?;
            return Ok(true);
        }
        if input.write_all(&piece).await.is_err() {
            return Ok(false);
        }
    }
}

/// Waits until a command has all of its input, the end included, or takes no more.
pub(super) async fn until_over(input: &Input, process: &Process) {
    // The end is not among the bytes: whoever carries it must stay until that has arrived, too.
    while !input.is_over() {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = process.wait() => return,
        }
    }
}
