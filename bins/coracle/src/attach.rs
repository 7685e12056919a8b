//! `coracle attach`: what a detached command writes from now on, as if it ran here, and its input.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::client::RemoteContainer;
use coracle_engine::logs::Reader;
use coracle_engine::root::Root;

use crate::cli::Format;
use crate::detach::DetachKeys;
use crate::logs::Printer;
use crate::signals::{Signals, Urgency};
use crate::{streams, terminal};

/// How often it is looked whether the command wrote anything.
const LOOK: Duration = Duration::from_millis(10);

/// `coracle attach`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle attach web\n  \
    coracle attach -i shell              one that was started with `run -d -it`; ctrl-p ctrl-q leaves\n  \
    coracle attach --no-signals web      Ctrl-C ends the looking, not the command\n\n\
    Signals go to the command; the third Ctrl-C kills it. The exit code is the command's own. A \
    monitor that dies meanwhile is not noticed. With -i the end of this input is the end of the \
    command's; leaving by the keys, or being killed, is not.")]
pub struct AttachArgs {
    /// The sandbox or SANDBOX/CONTAINER, or beginnings of their names that are nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Pass standard input to the command, if it was started with -i.
    #[arg(short, long)]
    interactive: bool,
    /// Keep signals from the command.
    #[arg(long)]
    no_signals: bool,
    /// Begin with what it wrote before.
    #[arg(long)]
    logs: bool,
    /// Keys that leave a terminal without ending the command.
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Looks on until the command ends, and ends as it did.
pub fn run(args: &AttachArgs, root: &Root) -> Result<ExitCode> {
    let keys = DetachKeys::parse(&args.detach_keys)
        .map_err(anyhow::Error::msg)
        .context("cannot use --detach-keys")?;
    let container = RemoteContainer::find(root, &args.sandbox)?;
    let outcome = streams::block_on(attend(args, &container, keys));
    Ok(ExitCode::from(outcome?))
}

async fn attend(args: &AttachArgs, container: &RemoteContainer, keys: DetachKeys) -> Result<u8> {
    let mut reader = Reader::open(&container.logs());
    let before = reader.chunks()?;
    let mut printer = Printer::plain();
    if args.logs {
        printer.print(&before)?;
    }
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let on_terminal = args.interactive && terminal::is_terminal();
    let on_terminal = on_terminal && container.has_terminal()?;
    if on_terminal {
        resize(container).await?;
    }
    let raw = if on_terminal { Some(terminal::RawMode::enter()?) } else { None };
    let (input, carrying) = if args.interactive { Some(container.input()) } else { None }.unzip();
    let mut typed = streams::pump_stdin(input, on_terminal.then_some(keys));
    let refused = async {
        match carrying {
            // Its end is only an error's if there is one: the command goes on without input.
            Some(task) => match task.await {
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    let mut refused = std::pin::pin!(refused);
    let mut urgency = Urgency::default();
    let mut ended = std::pin::pin!(container.wait());
    let code = loop {
        tokio::select! {
            code = &mut ended => break code?,
            error = &mut refused => return Err(error.into()),
            () = typed.detached() => {
                drop(raw);
                return Ok(0);
            }
            () = tokio::time::sleep(LOOK) => printer.print(&reader.chunks()?)?,
            signal = signals.next() => match signal.number() {
                _ if signal.is_resize() => if on_terminal {
                    resize(container).await?;
                },
                _ if args.no_signals => return Ok(signal_code(signal.number())),
                _ if urgency.is_over(signal) => container.signal(9).await?,
                number => container.signal(number).await?,
            },
        }
    };
    printer.print(&reader.chunks()?)?;
    drop(raw);
    Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}

/// Gives the command's terminal the size of ours.
async fn resize(container: &RemoteContainer) -> Result<()> {
    if let Some((width, height)) = terminal::size() {
        container.resize(width, height).await?;
    }
    Ok(())
}

fn signal_code(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}
