//! The program that runs as /init in a test's VM: a guest's end with a few services to dial.

use super::flow::Flow;
use coracle_bridge::channel::{
    CONTROL_PORT, ChannelStream, GuestChannel, PortDevice, STREAMS_PORT, VirtioPort,
};
use coracle_bridge::port;
use rustix::mount::{MountFlags, mount};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};

/// Sends back what it gets. So does the bridge's port.
pub const ECHO: u32 = 1000;
/// Takes a seed and sends its flow for ever.
pub const FLOOD: u32 = 1001;
/// Takes a seed and its flow for ever.
pub const SINK: u32 = 1002;
/// Sends a [`Report`] as text.
pub const REPORT: u32 = 1003;
/// Takes a port of the host, dials it and echoes.
pub const CALL_BACK: u32 = 1004;

/// Sends for ever without a care for what.
pub const POUR: u32 = 1005;
/// Takes all and ends.
pub const DRAIN: u32 = 1006;

/// What the guest knows of itself.
#[derive(Default)]
pub struct Counts {
    /// Connections being served.
    live: AtomicU32,
    /// Flows that were not what they should have been.
    wrong: AtomicU32,
    /// Times a driver was rebound.
    rebound: Arc<AtomicU32>,
}

struct CountedPort {
    port: VirtioPort,
    rebound: Arc<AtomicU32>,
}

impl PortDevice for CountedPort {
    fn open(&mut self) -> io::Result<OwnedFd> {
        self.port.open()
    }

    fn rebind(&mut self) -> io::Result<()> {
        self.rebound.fetch_add(1, Ordering::Relaxed);
        self.port.rebind()
    }
}

/// Mounts what a program needs and loads the modules the initrd names.
pub fn prepare() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = fs::create_dir(at);
        mount(kind, at, kind, MountFlags::empty(), None).unwrap();
    }
    for module in fs::read_to_string("/etc/coracle/modules").unwrap().lines() {
        let file = fs::File::open(module).unwrap();
        if let Err(error) = rustix::system::finit_module(&file, c"", 0)
            && error != rustix::io::Errno::EXIST
        {
            println!("{module}: {error}");
        }
    }
}

/// Serves until the VM ends.
pub fn main() -> ! {
    prepare();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // A flood on one port must not keep the other from being looked at.
    let runtime = runtime.enable_all().event_interval(3).build().unwrap();
    runtime.block_on(serve())
}

async fn serve() -> ! {
    let counts = Arc::new(Counts::default());
    let counted = |name| {
        let rebound = Arc::clone(&counts.rebound);
        Box::new(CountedPort { port: VirtioPort::new(name), rebound })
    };
    let channel = GuestChannel::open(counted(CONTROL_PORT), counted(STREAMS_PORT));
    loop {
        let (port, stream) = channel.accept().await.unwrap();
        let counts = Arc::clone(&counts);
        let channel = channel.clone();
        tokio::spawn(async move {
            counts.live.fetch_add(1, Ordering::Relaxed);
            // That the host goes away is what this is for.
            let _ = answer(port, stream, &counts, &channel).await;
            counts.live.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn answer(
    port: u32,
    mut stream: ChannelStream,
    counts: &Counts,
    channel: &GuestChannel,
) -> io::Result<()> {
    match port {
        ECHO | port::BRIDGE => echo(stream).await,
        FLOOD => {
            let mut flow = Flow::new(stream.read_u64_le().await?);
            let mut buffer = vec![0; 64 * 1024];
            loop {
                flow.fill(&mut buffer);
                stream.write_all(&buffer).await?;
            }
        }
        SINK => {
            let mut flow = Flow::new(stream.read_u64_le().await?);
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    return Ok(());
                }
                if !flow.check(&buffer[..n]) {
                    counts.wrong.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        REPORT => {
            let [live, wrong, rebound] = [&counts.live, &counts.wrong, &*counts.rebound]
                .map(|count| count.load(Ordering::Relaxed));
            let text = format!("{live} {wrong} {rebound}");
            stream.write_all(text.as_bytes()).await?;
            stream.shutdown().await
        }
        CALL_BACK => {
            let port = stream.read_u32_le().await?;
            echo(channel.dial(port).await?).await
        }
        POUR => {
            let buffer = vec![7; 64 * 1024];
            loop {
                stream.write_all(&buffer).await?;
            }
        }
        DRAIN => {
            let mut buffer = vec![0; 64 * 1024];
            while stream.read(&mut buffer).await? > 0 {}
            stream.shutdown().await
        }
        _ => Ok(()),
    }
}

async fn echo(stream: ChannelStream) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
