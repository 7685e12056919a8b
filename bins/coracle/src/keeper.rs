//! `coracle keeper`: carries one VM's channel; a thin main over the engine's keeper.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::keeper::{self, Keeper};
use tokio::signal::unix::{SignalKind, signal};

/// What a keeper is told.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// The channel's folder, which holds QEMU's `control.sock` and `streams.sock`.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Keeps the channel until SIGTERM, or until the VM is gone.
pub fn run(args: KeeperArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A flood on one port must not keep the other from being looked at.
        .event_interval(3)
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async move {
            terminate.recv().await;
        };
        let dir = keeper::ChannelDir::new(args.dir.clone());
        keeper::run(Keeper::new(dir), stop)
            .await
            .with_context(|| format!("cannot keep the channel in {}", args.dir.display()))?;
        Ok(ExitCode::SUCCESS)
    })
}
