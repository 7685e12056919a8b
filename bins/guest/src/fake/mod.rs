//! A guest without a VM, for tests.
//!
//! The same channel, the same server and the same protocol as in a VM, on an ordinary process of
//! the host; behind them a [`guest`] that makes no containers but plays small deterministic
//! [`workload`]s in memory. What the host's side does can so be tried in milliseconds, and with a
//! fault at any step ([`effects`]).
//!
//! ```text
//! coracle-guest fake --control SOCKET --streams SOCKET [--fail-at N] [--die-at N]
//! ```
//! A socket is a path to listen on, or `fd:N` for an inherited one that listens already. The exit
//! status is 0 when the host has switched the guest off, as the fake VM expects.

mod effects;
mod guest;
mod workload;

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_bridge::channel::{GuestChannel, PortDevice, SocketPort};
use coracle_bridge::port;
use coracle_bridge::server::{Guest, GuestOptions, Served};
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

use crate::boot::HostPorts;
use crate::sys;
use effects::Effects;
use guest::FakeGuest;

/// How long the host may take to accept a port it need not listen on.
const GREETING: Duration = Duration::from_secs(2);

/// Between two attempts to reach the bridge.
const REDIAL: Duration = Duration::from_millis(10);

/// Plays a guest until the host switches it off.
pub fn main(arguments: Vec<String>) -> ExitCode {
    let result = Arguments::parse(arguments).and_then(|arguments| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(play(arguments))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-guest fake: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    control: String,
    streams: String,
    effects: Effects,
}

impl Arguments {
    fn parse(arguments: Vec<String>) -> Result<Self> {
        let (mut control, mut streams) = (None, None);
        let mut effects = Effects::from_environment();
        let mut words = arguments.into_iter();
        while let Some(option) = words.next() {
            let value = words.next().with_context(|| format!("{option} needs a value"))?;
            let number = || value.parse().with_context(|| format!("{option} {value}"));
            match option.as_str() {
                "--control" => control = Some(value),
                "--streams" => streams = Some(value),
                "--fail-at" => effects.fail_at = Some(number()?),
                "--die-at" => effects.die_at = Some(number()?),
                _ => bail!("there is no option {option}"),
            }
        }
        Ok(Self {
            control: control.context("--control is missing")?,
            streams: streams.context("--streams is missing")?,
            effects,
        })
    }
}

async fn play(arguments: Arguments) -> Result<()> {
    let channel = GuestChannel::open(device(&arguments.control)?, device(&arguments.streams)?);
    greet(&channel).await;
    let guest = Guest::new(
        Arc::new(FakeGuest::new(arguments.effects)),
        Arc::new(HostPorts(channel.clone())),
        GuestOptions::new(format!("fake-{}", std::process::id())),
    );
    loop {
        if let Ok(stream) = channel.dial(port::BRIDGE).await
            && let Ok(Served::PoweringOff) = guest.serve(stream).await
        {
            return Ok(());
        }
        sleep(REDIAL).await;
    }
}

/// Takes entropy and opens a log, as the agent does, if the host wants that.
async fn greet(channel: &GuestChannel) {
    let entropy = async {
        let mut stream = channel.dial(port::ENTROPY).await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    // A host that does not listen has nothing to give.
    drop(timeout(GREETING, entropy).await);
    let channel = channel.clone();
    tokio::spawn(async move {
        if let Ok(stream) = channel.dial(port::LOG).await {
            // Open, and empty, for as long as the guest lives.
            std::future::pending::<()>().await;
            drop(stream);
        }
    });
}

fn device(name: &str) -> Result<Box<dyn PortDevice>> {
    let listener = listener(name).with_context(|| format!("listening on {name}"))?;
    Ok(Box::new(SocketPort::new(listener)?))
}

fn listener(name: &str) -> io::Result<UnixListener> {
    let listener = match name.strip_prefix("fd:").map(str::parse) {
        Some(Ok(number)) => StdListener::from(sys::inherited(number)?),
        Some(Err(_)) => return Err(io::ErrorKind::InvalidInput.into()),
        None => StdListener::bind(name)?,
    };
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
