//! `coracle attach`: what a detached sandbox's command writes from now on, as if it ran here.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::client::Client;
use coracle_engine::logs::Reader;
use coracle_engine::root::Root;

use crate::cli::Format;
use crate::logs::Printer;
use crate::signals::{Signals, Urgency};

/// How often it is looked whether the command wrote anything.
const LOOK: Duration = Duration::from_millis(30);

/// `coracle attach`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle attach web\n  \
    coracle attach --no-signals web      Ctrl-C ends the looking, not the command\n\n\
    Signals go to the command; the third Ctrl-C kills it. The exit code is the command's own. A \
    monitor that dies meanwhile is not noticed.")]
pub struct AttachArgs {
    /// The sandbox, or a beginning of its name that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Keep signals from the command.
    #[arg(long)]
    no_signals: bool,
    /// Begin with what it wrote before.
    #[arg(long)]
    logs: bool,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Looks on until the command ends, and ends as it did.
pub fn run(args: &AttachArgs, root: &Root) -> Result<ExitCode> {
    let client = Client::find(root, &args.sandbox)?;
    let mut reader = Reader::open(&client.logs());
    let before = reader.chunks()?;
    let mut printer = Printer::plain();
    if args.logs {
        printer.print(&before)?;
    }
    let code = crate::life::block_on(async {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let mut urgency = Urgency::default();
        let mut ended = std::pin::pin!(client.wait());
        loop {
            tokio::select! {
                code = &mut ended => break Ok(code?),
                () = tokio::time::sleep(LOOK) => printer.print(&reader.chunks()?)?,
                signal = signals.next() => match signal.number() {
                    _ if signal.is_resize() => {}
                    _ if args.no_signals => return Ok(u32::from(signal_code(signal.number()))),
                    _ if urgency.is_over(signal) => client.signal(9).await?,
                    number => client.signal(number).await?,
                },
            }
        }
    })?;
    printer.print(&reader.chunks()?)?;
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

fn signal_code(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}
