//! A command in the place of the agent (`ExecCommandLine`).
//!
//! hcsshim boots any init it is told to. Here the agent stays PID 1, because someone must reap and
//! mount, and the command is its only child; when it ends the VM does. What it writes goes to the
//! log port as the host asked: a line that is a JSON object goes as it is, any other becomes the
//! message of one.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use coracle_bridge::boot::BootParameters;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio_util::io::StreamReader;

use crate::log::{self, Log};
use crate::process::pipe::Outlet;
use crate::process::program::{Attachment, Command};
use crate::process::streams::{self, Wanted};
use crate::reaper::Reaper;

/// The longest line that is forwarded whole.
const LINE: usize = 32 * 1024;

/// Runs the command to its end.
pub async fn run(parameters: &BootParameters, reaper: &Reaper, log: &Log) -> Result<()> {
    let line = parameters.exec_command_line.as_deref().unwrap_or_default();
    let arguments = shell_words::split(line).context("splitting the command line of the VM")?;
    let wanted = Wanted {
        stdin: false,
        stdout: parameters.forward_stdout,
        stderr: parameters.forward_stderr,
    };
    let (workload, ends) = streams::make(wanted, None).context("making pipes")?;
    let command = Command { arguments, ..Command::default() };
    let [stdin, stdout, stderr] = &workload.descriptors;
    let attachment = Attachment::Descriptors([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
    let child = command.spawn(reaper, &attachment).with_context(|| format!("starting {line:?}"))?;
    drop(workload);
    let out = forward(ends.stdout, "stdout", log.clone());
    let err = forward(ends.stderr, "stderr", log.clone());
    let (out, err) = (tokio::spawn(out), tokio::spawn(err));
    let status = child.wait().await;
    tracing::info!(code = status.exit_code(), command = line, "the command of the VM ended");
    // A descendant may hold the pipes for ever.
    let drained = async { drop((out.await, err.await)) };
    drop(tokio::time::timeout(std::time::Duration::from_millis(500), drained).await);
    Ok(())
}

async fn forward(stream: Option<Outlet>, name: &'static str, log: Log) {
    let Some(stream) = stream else { return };
    let mut reader = BufReader::with_capacity(LINE, StreamReader::new(stream));
    loop {
        let mut line = Vec::new();
        match read_line(&mut reader, &mut line).await {
            Ok(true) => log.add(as_object(name, &String::from_utf8_lossy(&line))),
            Ok(false) | Err(_) => return,
        }
    }
}

/// One line, or as much of it as the buffer holds; false at the end.
async fn read_line(
    reader: &mut BufReader<impl AsyncRead + Unpin>,
    line: &mut Vec<u8>,
) -> std::io::Result<bool> {
    let available = reader.fill_buf().await?;
    if available.is_empty() {
        return Ok(false);
    }
    loop {
        let available = reader.fill_buf().await?;
        let end = available.iter().position(|byte| *byte == b'\n');
        let room = LINE - line.len();
        let take = end.unwrap_or(available.len()).min(room);
        line.extend_from_slice(&available[..take]);
        let is_whole = available.is_empty() || line.len() == LINE;
        reader.consume(take);
        if end == Some(take) {
            reader.consume(1);
            return Ok(true);
        }
        if is_whole {
            return Ok(true);
        }
    }
}

fn as_object(stream: &str, text: &str) -> String {
    let is_object = serde_json::from_str::<serde_json::Map<_, _>>(text).is_ok();
    if is_object { text.to_owned() } else { log::line_of_program(stream, text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8]) -> Vec<String> {
        let mut reader = BufReader::with_capacity(LINE, text);
        let mut lines = Vec::new();
        let mut line = Vec::new();
        while read_line(&mut reader, &mut line).await.unwrap() {
            lines.push(String::from_utf8(std::mem::take(&mut line)).unwrap());
        }
        lines
    }

    #[tokio::test]
    async fn lines_end_at_newlines_and_at_the_end() {
        assert_eq!(lines(b"one\n\ntwo").await, ["one", "", "two"]);
        assert!(lines(b"").await.is_empty());
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_into_pieces() {
        let text = vec![b'x'; 2 * LINE + 5];
        let lengths: Vec<usize> = lines(&text).await.iter().map(String::len).collect();
        assert_eq!(lengths, [LINE, LINE, 5]);
    }

    #[test]
    fn an_object_goes_as_it_is_and_text_becomes_a_message() {
        assert_eq!(as_object("stderr", r#"{"level":"info"}"#), r#"{"level":"info"}"#);
        assert!(as_object("stdout", "plain").contains(r#""msg":"plain""#));
        assert!(as_object("stdout", "[1]").contains(r#""msg":"[1]""#));
    }
}
