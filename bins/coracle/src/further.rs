//! `coracle run --in SANDBOX`: one more container in a sandbox that runs.
//!
//! The sandbox's monitor looks after it, whether we stay or not: streams of one in the foreground are
//! those of an exec, and go on when the monitor dies.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use coracle_engine::client::{Client, ClientError, RemoteContainer, RemoteExec};
use coracle_engine::monitor::api::ContainerOrder;
use coracle_engine::root::Root;
use coracle_engine::{RootFs, image};
use tokio_util::sync::CancellationToken;

use crate::cli::{Format, RunArgs};
use crate::detach::DetachKeys;
use crate::progress::Bar;
use crate::report::Advice;
use crate::{exec, run, streams, terminal};

/// Starts the container; stays with it until its command ends, unless it is detached.
pub fn run(
    args: &RunArgs,
    sandbox: &str,
    words: (Option<&str>, &[String]),
    root: &Root,
) -> Result<ExitCode> {
    if let Some(option) = sandboxs_own(args) {
        let advice = "give it when the sandbox is started, or see `coracle disk|share|net|update`";
        let error = anyhow::anyhow!("{option} is for a whole sandbox, not for one more container");
        return Err(error.context(Advice(advice.to_owned())));
    }
    let keys = DetachKeys::parse(&args.detach_keys)
        .map_err(anyhow::Error::msg)
        .context("cannot use --detach-keys")?;
    let on_terminal = !args.detach && args.tty && terminal::is_terminal();
    let client = Client::find(root, sandbox)?;
    let order = order(args, words, on_terminal)?;
    let outcome = streams::block_on(async {
        prepare(root, &order.rootfs).await?;
        let (container, opened) = match client.start_container(&order).await {
            Ok(started) => started,
            Err(error) => return failed(error, args.format),
        };
        match opened {
            None => told(&container, args.format),
            Some(opened) => {
                let keys = on_terminal.then_some(keys);
                stay(&container, &opened, &order, keys).await
            }
        }
    });
    Ok(ExitCode::from(outcome?))
}

/// Converts the root file system before the monitor needs it, for there its progress would not be seen.
async fn prepare(root: &Root, rootfs: &RootFs) -> Result<()> {
    if *rootfs == RootFs::BuiltIn {
        return Ok(());
    }
    let bar = Bar::new();
    image::prepare(root, rootfs, &CancellationToken::new(), bar.callback()).await?;
    Ok(())
}

async fn stay(
    container: &RemoteContainer,
    streams: &RemoteExec,
    order: &ContainerOrder,
    keys: Option<DetachKeys>,
) -> Result<u8> {
    match exec::attend(streams, &order.command, keys).await? {
        exec::Left::Ended(code) => {
            // It is removed in a minute all the same.
            if let Err(error) = container.remove().await {
                tracing::warn!(%error, "cannot remove the container");
            }
            Ok(code)
        }
        exec::Left::Detached => Ok(0),
    }
}

fn told(container: &RemoteContainer, format: Format) -> Result<u8> {
    match format {
        Format::Text => println!("{}", container.address()),
        Format::Json => println!("{}", serde_json::to_string(&container.show()?)?),
    }
    Ok(0)
}

fn failed(error: ClientError, format: Format) -> Result<u8> {
    let Some(code) = error.exit_code() else { return Err(error.into()) };
    crate::report::print_error(&error.into(), format);
    Ok(code)
}

fn order(
    args: &RunArgs,
    words: (Option<&str>, &[String]),
    on_terminal: bool,
) -> Result<ContainerOrder> {
    let rootfs = match words.0 {
        None => RootFs::BuiltIn,
        Some(path) => {
            let path = std::path::PathBuf::from(path);
            // The monitor has a working directory of its own.
            RootFs::At(std::path::absolute(&path).unwrap_or(path))
        }
    };
    let command = run::command(args, words.1, on_terminal)?;
    if args.detach && rootfs == RootFs::BuiltIn && command.args.is_empty() {
        bail!("say what it is to do: `coracle run -d --in SANDBOX -- COMMAND`");
    }
    Ok(ContainerOrder {
        name: args.name.clone().unwrap_or_else(coracle_engine::sandbox::random_name),
        rootfs,
        command,
        read_only: args.read_only,
        detached: args.detach,
        remove: args.rm || !args.detach,
        nonce: None,
        log: args.log.limits(),
        when_full: args.log.when_full(),
    })
}

/// An option that was given and that only a whole sandbox can have. What the environment says of those
/// is meant for sandboxes.
fn sandboxs_own(args: &RunArgs) -> Option<&'static str> {
    let unless_set = |given: bool, variable: &str| given && std::env::var_os(variable).is_none();
    let given = [
        (unless_set(args.memory.is_some(), "CORACLE_MEMORY"), "--memory"),
        (unless_set(args.cpus.is_some(), "CORACLE_CPUS"), "--cpus"),
        (unless_set(args.net.is_some(), "CORACLE_NET"), "--net"),
        (args.max_cpus.is_some(), "--max-cpus"),
        (args.max_memory.is_some(), "--max-memory"),
        (args.network.is_given(), "a network's option"),
        (args.restart != coracle_engine::restart::Policy::No, "--restart"),
        (args.health.check().is_some(), "--health-cmd"),
        (!args.volume.is_empty(), "--volume"),
        (!args.share.is_empty(), "--share"),
        (!args.disk.is_empty(), "--disk"),
        (!args.pmem.is_empty(), "--pmem"),
        (!args.pipe.is_empty(), "--pipe"),
        (!args.device.is_empty(), "--device"),
        (args.physical_memory, "--physical-memory"),
        (args.scratch.is_some(), "--scratch"),
        (!args.set.is_empty(), "--set"),
        (args.kernel.is_some(), "--kernel"),
        (args.timeline, "--timeline"),
    ];
    given.into_iter().find(|(given, _)| *given).map(|(_, option)| option)
}
