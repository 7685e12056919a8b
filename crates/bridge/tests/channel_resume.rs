//! Sessions that begin anew over a port with all the faults of the real one.
#![allow(clippy::unwrap_used)]

#[path = "channel_common/faulty.rs"]
mod faulty;
#[path = "channel_common/flow.rs"]
mod flow;

use coracle_bridge::channel::{
    AREA_BYTES, AREA_FILE, ChannelDir, ChannelStream, GuestChannel, SharedArea, keeper,
};
use faulty::{Faults, FaultyPort};
use flow::Flow;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

/// More than the descriptors that a port has.
const KEEPERS: u64 = 150;
const FLOOD: u32 = 1;
const SINK: u32 = 2;
const CHECKED: usize = 96 * 1024;
const PATIENCE: Duration = Duration::from_secs(60);

fn faulty_port(folder: &Path, name: &str, faults: &Arc<Faults>) -> FaultyPort {
    let listener = UnixListener::bind(folder.join(name)).unwrap();
    FaultyPort::new(listener, Arc::clone(faults))
}

/// Streams that the guest still serves, and flows it found damaged.
#[derive(Default)]
struct Counts {
    live: AtomicU32,
    damaged: AtomicU32,
}

async fn serve(channel: GuestChannel, counts: Arc<Counts>) {
    loop {
        let (port, stream) = channel.accept().await.unwrap();
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            counts.live.fetch_add(1, Ordering::Relaxed);
            let end = if port == FLOOD { flood(stream).await } else { sink(stream, &counts).await };
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            counts.live.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn flood(mut stream: ChannelStream) -> io::Result<()> {
    let mut flow = Flow::new(stream.read_u64_le().await?);
    let mut bytes = vec![0; 16 * 1024];
    loop {
        flow.fill(&mut bytes);
        stream.write_all(&bytes).await?;
    }
}

async fn sink(mut stream: ChannelStream, counts: &Counts) -> io::Result<()> {
    let mut flow = Flow::new(stream.read_u64_le().await?);
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let n = stream.read(&mut bytes).await?;
        assert_ne!(n, 0, "the end of a session passed for the end of a stream");
        if !flow.check(&bytes[..n]) {
            counts.damaged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Transfers both ways; `whole` when enough was checked.
async fn transfer(dir: &ChannelDir, seed: u64, whole: impl Fn()) {
    let mut flood = dir.dial_within(FLOOD, PATIENCE).await.unwrap();
    let mut sink = dir.dial_within(SINK, PATIENCE).await.unwrap();
    flood.write_u64_le(seed).await.unwrap();
    sink.write_u64_le(!seed).await.unwrap();
    let mut received = 0;
    let mut bytes = vec![0; 64 * 1024];
    let mut expected = Flow::new(seed);
    let inward = async {
        loop {
            let n = flood.read(&mut bytes).await?;
            if n == 0 {
                return io::Result::Ok(());
            }
            assert!(expected.check(&bytes[..n]), "the flow from the guest is damaged");
            received += n;
            if received >= CHECKED {
                whole();
            }
        }
    };
    let outward = async {
        let mut flow = Flow::new(!seed);
        let mut bytes = vec![0; 64 * 1024];
        loop {
            flow.fill(&mut bytes);
            sink.write_all(&bytes).await?;
        }
    };
    let _end: io::Result<()> = tokio::select! {
        end = inward => end,
        end = outward => end,
    };
}

#[tokio::test]
async fn every_session_is_whole_however_keepers_die() {
    let folder = tempfile::tempdir().unwrap();
    kill_keepers(&folder, |port| port).await;
}

#[tokio::test]
async fn every_session_through_an_area_is_whole_however_keepers_die() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(AREA_FILE);
    std::fs::File::create(&path).unwrap().set_len(AREA_BYTES as u64).unwrap();
    kill_keepers(&folder, |port| port.with_area(SharedArea::of_file(&path))).await;
    let carried = std::fs::read(path).unwrap();
    let (up, down) = carried.split_at(AREA_BYTES / 2);
    assert!([up, down].iter().all(|half| half.iter().any(|byte| *byte != 0)), "nothing was placed");
}

async fn kill_keepers(folder: &TempDir, finish: impl FnOnce(FaultyPort) -> FaultyPort) {
    let faults = Arc::new(Faults::default());
    let control = faulty_port(folder.path(), "control.sock", &Arc::default());
    let streams = finish(faulty_port(folder.path(), "streams.sock", &faults));
    let channel = GuestChannel::open(Box::new(control), Box::new(streams));
    let counts = Arc::new(Counts::default());
    let server = tokio::spawn(serve(channel, Arc::clone(&counts)));
    let dir = ChannelDir::new(folder.path());

    for round in 0..KEEPERS {
        let config = keeper::Keeper::new(dir.clone());
        let keeper = tokio::spawn(keeper::run(config, std::future::pending()));
        keeper::wait_ready(&dir, PATIENCE).await.unwrap();
        let whole = tokio::sync::Notify::new();
        let kill = async {
            whole.notified().await;
            sleep(Duration::from_micros(round * 7919 % 5000)).await;
            keeper.abort();
            // Frees the folder's lock.
            keeper.await.unwrap_err();
        };
        let both = async { tokio::join!(transfer(&dir, round, || whole.notify_one()), kill) };
        timeout(PATIENCE, both).await.expect("a session hangs");
    }
    assert!(faults.rebinds.load(Ordering::Relaxed) >= 2);
    assert_eq!(counts.damaged.load(Ordering::Relaxed), 0);

    // The last streams end with the next session, at the latest.
    let _keeper = tokio::spawn(keeper::run(keeper::Keeper::new(dir), std::future::pending()));
    timeout(PATIENCE, async {
        while counts.live.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("a stream outlives its session");
    assert_eq!(u64::from(faults.deaths.load(Ordering::Relaxed)), KEEPERS);
    assert!(!server.is_finished());
}
