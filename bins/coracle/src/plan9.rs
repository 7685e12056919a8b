//! `coracle plan9`: serves one 9P share; a thin main over the VM library's server.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::plan9::{Order, run as serve};

/// What a server is told. The listening socket is its standard input.
#[derive(Debug, Args)]
pub struct Plan9Args {
    /// The VM's process: the server ends with it.
    #[arg(long, value_name = "PID")]
    vm_pid: u32,
    /// When that was started, in ticks since the host's boot.
    #[arg(long, value_name = "TICKS")]
    vm_start: u64,
    /// Refuse everything that changes anything.
    #[arg(long)]
    read_only: bool,
    /// Show nothing but the names given.
    #[arg(long)]
    restrict: bool,
    /// A name in the directory that is shown.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The directory.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Serves until the VM is gone.
pub fn run(args: Plan9Args) -> Result<ExitCode> {
    let listener =
        std::io::stdin().as_fd().try_clone_to_owned().context("cannot take the socket over")?;
    let order = Order {
        directory: args.directory.clone(),
        read_only: args.read_only,
        allowed: args.restrict.then_some(args.only),
        vm: (args.vm_pid, args.vm_start),
    };
    serve(&order, listener)
        .with_context(|| format!("cannot share {}", args.directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
