//! The streams of commands, between the guest and whoever holds a token.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_uvm::container::{StdinResume, StdioResume};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::super::Monitor;
use super::super::input::until_over;
use super::super::streams::{self, Asked, INPUT, Opened, SIGN};
use super::{CLAIM, Exec, resume};
use crate::error::Error;
use crate::process::{Output, Process};

/// Bytes that are carried at once.
const PIECE: usize = 64 << 10;

/// Accepts the connections of streams. Ends only by being aborted.
pub(in crate::monitor) async fn serve(monitor: Arc<Monitor>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let monitor = monitor.clone();
                tokio::spawn(async move {
                    if let Err(error) = carry(&monitor, connection).await {
                        tracing::debug!(%error, "a stream's connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a stream");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry(monitor: &Monitor, mut connection: UnixStream) -> io::Result<()> {
    let asked = tokio::time::timeout(CLAIM, streams::read_asked(&mut connection)).await??;
    if let Some(container) = asked.token.strip_prefix(SIGN).filter(|_| asked.stream == INPUT) {
        return monitor.serve_input(container, connection).await;
    }
    let exec = monitor.execs.by_token(&asked.token).filter(|exec| exec.has(&asked.stream));
    let Some(exec) = exec else {
        return streams::answer(&mut connection, Opened::Unknown).await;
    };
    if asked.stream == "stdin" {
        return carry_input(monitor, &exec, connection).await;
    }
    exec.claimed.store(true, Ordering::Relaxed);
    carry_output(monitor, &exec, &asked, connection).await
}

/// The stream that was connected at the start, if it is to be read from there; else the guest is asked
/// for it. The process is kept as long as its stream is in use.
pub(super) async fn open_output(
    monitor: &Monitor,
    exec: &Exec,
    stream: &str,
    offset: u64,
) -> Result<Option<(Output, Option<Process>)>, Error> {
    if let Some(fresh) = exec.take_output(stream).filter(|fresh| fresh.offset() == offset) {
        return Ok(Some((fresh, None)));
    }
    let wanted = |name| (stream == name).then_some(offset);
    let stdio = StdioResume {
        stdout: wanted("stdout"),
        stderr: wanted("stderr"),
        ..StdioResume::default()
    };
    let mut process = resume(monitor, exec.container(), exec.saved.pid, stdio).await?;
    let output = if stream == "stdout" { process.take_stdout() } else { process.take_stderr() };
    Ok(output.map(|output| (output, Some(process))))
}

async fn carry_output(
    monitor: &Monitor,
    exec: &Exec,
    asked: &Asked,
    mut connection: UnixStream,
) -> io::Result<()> {
    let opened = open_output(monitor, exec, &asked.stream, asked.offset).await;
    let Some((mut output, _keep)) = opened.map_err(io::Error::other)? else {
        return streams::answer(&mut connection, Opened::Unknown).await;
    };
    streams::answer(&mut connection, Opened::At(output.offset())).await?;
    let mut buffer = vec![0; PIECE];
    loop {
        // What was read before is acknowledged by this: it is in the connection, which outlives us.
        let count = output.read(&mut buffer).await?;
        if let Err(error) = streams::write_piece(&mut connection, &buffer[..count]).await {
            tracing::debug!(%error, "the reader is gone, the command is not");
            tokio::io::copy(&mut output, &mut tokio::io::sink()).await?;
            return Ok(());
        }
        if count == 0 {
            return Ok(());
        }
    }
}

async fn carry_input(monitor: &Monitor, exec: &Exec, connection: UnixStream) -> io::Result<()> {
    let (mut from, mut answers) = connection.into_split();
    let (mut input, _keep) = match exec.take_input() {
        Some(fresh) => (fresh, None),
        None => {
            let stdio = StdioResume { stdin: StdinResume::Fresh, ..StdioResume::default() };
            let resumed = resume(monitor, exec.container(), exec.saved.pid, stdio).await;
            let mut process = resumed.map_err(io::Error::other)?;
            let Some(input) = process.take_stdin() else {
                return streams::answer(&mut answers, Opened::Unknown).await;
            };
            (input, Some(process))
        }
    };
    streams::answer(&mut answers, Opened::At(input.written())).await?;
    let copied = tokio::io::copy(&mut from, &mut input).await;
    if copied.is_ok() {
        input.shutdown().await?;
        until_over(&input, &exec.process).await;
    }
    // Also when the command takes no more: there is nothing to send again.
    streams::say_arrived(&mut answers).await
}
