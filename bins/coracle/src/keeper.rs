//! `coracle keeper`: carries one VM's channel; a thin main over the engine's keeper.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::keeper::{self, Keeper};
use coracle_engine::root::Root;
use coracle_engine::supervise::Supervisor;
use tokio::signal::unix::{SignalKind, signal};

/// What a keeper is told.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// The channel's folder, which holds QEMU's `control.sock` and `streams.sock`.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Dial the guest over AF_VSOCK, through the socket of a vhost-device-vsock in `vsock.d`.
    #[arg(long)]
    vsock: bool,
    /// With --vsock: the guest is about to boot, and knocks when it can be dialled.
    #[arg(long, requires = "vsock")]
    guest_boots: bool,
    /// The sandbox to see to that it has a monitor.
    #[arg(long, value_name = "NAME", requires = "program")]
    sandbox: Option<String>,
    /// The program that is its monitor.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Keeps the channel until SIGTERM, or until the VM is gone and its sandbox has ended.
pub fn run(args: KeeperArgs, root: &Root) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A flood on one port must not keep the other from being looked at.
        .event_interval(3)
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let dir = keeper::ChannelDir::new(args.dir.clone());
        let keeper = match args.vsock {
            true => Keeper::new(dir).over_vsock(args.guest_boots),
            false => Keeper::new(dir),
        };
        let keeping = keeper::run(keeper, std::future::pending());
        let supervising = async {
            if let (Some(sandbox), Some(program)) = (args.sandbox, args.program) {
                Supervisor { root: root.clone(), sandbox, program }.run().await;
            }
        };
        // The VM's end is not the sandbox's: somebody has to write it down.
        let both = async { tokio::join!(keeping, supervising).0 };
        tokio::select! {
            kept = both => kept
                .with_context(|| format!("cannot keep the channel in {}", args.dir.display()))?,
            _ = terminate.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
