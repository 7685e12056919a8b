//! `coracle exec`: a further command in a sandbox that runs.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::Command;
use coracle_engine::client::{RemoteContainer, RemoteExec};
use coracle_engine::root::Root;

use crate::cli::Format;
use crate::detach::DetachKeys;
use crate::run::{DRAIN, variables};
use crate::signals::{Signals, Urgency};
use crate::streams::{self, Ending};
use crate::terminal;

/// `coracle exec`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle exec web -- ps\n  \
    coracle exec -it web sh\n  \
    coracle exec web/db -- ps           in a container that `run --in web` started\n  \
    tar c . | coracle exec -i web -- tar x -C /srv\n\n\
    What is not said here is as the container's own command has it: environment, directory, user.")]
pub struct ExecArgs {
    /// The sandbox or SANDBOX/CONTAINER, or beginnings of their names that are nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// The command and its arguments.
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required = true, num_args = 1..)]
    command: Vec<String>,
    /// Pass standard input to the command.
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; without `=VALUE` it is taken from here.
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory in the container.
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as: name or uid, optionally `:group`.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Keys that leave a terminal without ending the command.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Runs the command and returns its exit code.
pub fn run(args: &ExecArgs, root: &Root) -> Result<ExitCode> {
    let keys = DetachKeys::parse(&args.detach_keys)
        .map_err(anyhow::Error::msg)
        .context("cannot use --detach-keys")?;
    let on_terminal = args.tty && terminal::is_terminal();
    // clap leaves a `--` in front of the words.
    let words = args.command.strip_prefix(&["--".to_owned()]).unwrap_or(&args.command);
    let command = Command {
        args: words.to_vec(),
        env: variables(&args.env)?,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        stdin: args.interactive,
        terminal: args.tty.then(|| if on_terminal { terminal::size() } else { None }),
        ..Command::default()
    };
    let container = RemoteContainer::find(root, &args.sandbox)?;
    let outcome: Result<u8> = streams::block_on(async {
        let exec = match container.exec(&command).await {
            Ok(exec) => exec,
            Err(error) => {
                let Some(code) = error.exit_code() else { return Err(error.into()) };
                crate::report::print_error(&error.into(), args.format);
                return Ok(code);
            }
        };
        match attend(&exec, &command, on_terminal.then_some(keys)).await? {
            Left::Ended(code) => Ok(code),
            Left::Detached => Ok(0),
        }
    });
    Ok(ExitCode::from(outcome?))
}

/// Why we are with a command no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It has ended, with this code.
    Ended(u8),
    /// The user typed the keys for it.
    Detached,
}

/// Connects the command with the user until it ends.
pub async fn attend(
    exec: &RemoteExec,
    command: &Command,
    keys: Option<DetachKeys>,
) -> Result<Left> {
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let stdin = command.stdin.then(|| exec.input());
    let stdout = Some(exec.output("stdout"));
    let stderr = command.terminal.is_none().then(|| exec.output("stderr"));
    let raw = if keys.is_some() { Some(terminal::RawMode::enter()?) } else { None };
    let mut input = streams::pump_stdin(stdin, keys);
    let mut output = streams::pump_output(stdout, stderr);
    let mut urgency = Urgency::default();
    let mut ended = std::pin::pin!(exec.wait());
    let exit = loop {
        tokio::select! {
            exit = &mut ended => break exit?,
            () = input.detached() => {
                drop(raw);
                return Ok(Left::Detached);
            }
            () = output.broken() => {
                // As a program writing into a closed pipe: it dies of SIGPIPE.
                exec.signal(9).await?;
                return Ok(Left::Ended(128 + 13));
            }
            signal = signals.next() => match signal.number() {
                _ if signal.is_resize() => if let Some((width, height)) = terminal::size() {
                    exec.resize(width, height).await?;
                },
                _ if urgency.is_over(signal) => exec.signal(9).await?,
                number => exec.signal(number).await?,
            },
        }
    };
    if output.finish(DRAIN).await == Ending::TimedOut {
        tracing::warn!("the command's output did not end with it; the rest is not shown");
    }
    drop(raw);
    Ok(Left::Ended(u8::try_from(exit & 0xff).unwrap_or(u8::MAX)))
}
