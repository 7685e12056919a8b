//! A process as the server wants it: its pid, its exit, and the streams the host asked for.

use coracle_bridge::message::ProcessParameters;
use coracle_bridge::server::{ExitFuture, Source, Started};

use crate::process::drain::{Drained, Output, discard};
use crate::process::streams::{AgentEnds, Wanted};
use crate::process::terminal::Terminal;
use crate::reaper::Child;

/// Which pipes a process needs. One on a terminal needs none.
pub fn wanted(parameters: &ProcessParameters, terminal: bool) -> Wanted {
    Wanted {
        stdin: parameters.create_std_in_pipe && !terminal,
        stdout: parameters.create_std_out_pipe && !terminal,
        stderr: parameters.create_std_err_pipe && !terminal,
    }
}

/// A process on a terminal, whose output is one stream.
pub fn on_terminal(child: &Child, terminal: &Terminal, parameters: &ProcessParameters) -> Started {
    let stdout = Some(terminal.output());
    Started {
        stdin: parameters.create_std_in_pipe.then(|| Box::new(terminal.input()) as _),
        stdout: output(child, stdout, parameters.create_std_out_pipe),
        stderr: None,
        ..bare(child)
    }
}

/// A process on pipes.
pub fn on_pipes(child: &Child, ends: AgentEnds, parameters: &ProcessParameters) -> Started {
    let stdin = ends.stdin.filter(|_| parameters.create_std_in_pipe);
    Started {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: output(child, ends.stdout, parameters.create_std_out_pipe),
        stderr: output(child, ends.stderr, parameters.create_std_err_pipe),
        ..bare(child)
    }
}

/// The exit code of `child`, when it has one.
pub fn exit_of(child: Child) -> ExitFuture {
    Box::pin(async move { child.wait().await.exit_code() })
}

/// Sets a terminal's size; sizes beyond what a terminal can have are cut.
pub fn resize(terminal: &Terminal, width: u64, height: u64) {
    let cut = |size: u64| u16::try_from(size).unwrap_or(u16::MAX);
    if let Err(error) = terminal.resize(cut(width), cut(height)) {
        tracing::warn!(%error, "a terminal keeps its size");
    }
}

fn bare(child: &Child) -> Started {
    let pid = child.pid().as_raw().cast_unsigned();
    Started { pid, stdin: None, stdout: None, stderr: None, exit: exit_of(child.clone()) }
}

/// Someone must read it, or writing to it would block.
fn output(child: &Child, stream: Option<impl Output>, wanted: bool) -> Option<Source> {
    let stream = stream?;
    if wanted {
        return Some(Box::pin(Drained::new(stream, child.clone())));
    }
    discard(stream);
    None
}
