//! What survives the loss of a connection: everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use coracle_bridge::client::{
    GuestConnection, Process, Session, StdinResume, StdinWriter, StdioResume, StdoutReader,
};
use coracle_bridge::message::ContainerId;
use coracle_bridge::server::{Connection, Dial};
use coracle_bridge::stdio::WhenFull;
use proptest::prelude::*;
use tokio::io::BufReader;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bed::{Bed, DirDial, command, soon};
use crate::fake::{pattern, pattern_bytes};

/// Checks bytes against the known pattern, from an offset on.
fn check(bytes: &[u8], from: u64) {
    for (n, byte) in bytes.iter().enumerate() {
        assert_eq!(*byte, pattern(from + n as u64), "at offset {}", from + n as u64);
    }
}

fn at(stdin: StdinResume, stdout: u64) -> StdioResume {
    StdioResume { stdin, stdout: Some(stdout), stderr: None }
}

async fn resume(
    bed: &Bed,
    pid: u32,
    stdio: StdioResume,
) -> (GuestConnection, Process, Option<StdinWriter>, Option<StdoutReader>) {
    let host = bed.connect(Session::Next).await;
    let process = soon(host.resume_process(&ContainerId::vm(), pid, stdio)).await.unwrap();
    let stdio = process.take_stdio();
    (host, process, stdio.stdin, stdio.stdout)
}

#[tokio::test]
async fn the_state_shows_how_far_each_stream_is() {
    let bed = Bed::ringed(1000, WhenFull::Block);
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("cat", "io")).await.unwrap();
    let stdio = process.take_stdio();
    let (mut stdin, mut stdout) = (stdio.stdin.unwrap(), stdio.stdout.unwrap());
    stdin.write_all(&pattern_bytes(0, 200)).await.unwrap();
    let mut got = [0; 200];
    soon(stdout.read_exact(&mut got)).await.unwrap();
    // Who waits for more says soon that 200 were consumed.
    let said = soon(async {
        while host.list_state().await.unwrap().processes[0].std_out.unwrap().first < 200 {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        read = stdout.read_u8() => panic!("{read:?}"),
        () = said => {}
    }
    stdin.write_all(&pattern_bytes(200, 300)).await.unwrap();
    stdin.shutdown().await.unwrap();
    soon(process.wait()).await.unwrap();
    let state = host.list_state().await.unwrap();
    let [listed] = state.processes.as_slice() else { panic!("{state:?}") };
    assert!(listed.container_id.is_vm());
    assert_eq!((listed.process_id, listed.exit_code), (process.pid(), Some(0)));
    let (input, output) = (listed.std_in.unwrap(), listed.std_out.unwrap());
    assert_eq!((input.first, input.end, input.closed), (300, 300, true));
    assert_eq!((output.end, output.closed), (300, true));
    assert_eq!(listed.std_err, None);
}

#[tokio::test]
async fn output_written_while_nobody_reads_waits_for_the_next_session() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("count 100000", "o")).await.unwrap();
    let pid = process.pid();
    drop((process, host));
    let (_host, process, _, stdout) = resume(&bed, pid, at(StdinResume::Detached, 0)).await;
    let mut stdout = stdout.unwrap();
    let mut got = Vec::new();
    soon(stdout.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 100_000);
    check(&got, 0);
    assert_eq!(soon(process.wait()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_lost_connection_is_an_error_and_not_an_end_of_file() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("sleep", "o")).await.unwrap();
    let mut stdout = process.take_stdio().stdout.unwrap();
    let read = tokio::spawn(async move { stdout.read(&mut [0; 9]).await });
    let newer = bed.connect(Session::Next).await;
    let error = soon(read).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop(newer);
}

#[tokio::test]
async fn a_full_ring_makes_the_process_wait_and_a_dropping_one_counts_the_gap() {
    let bed = Bed::ringed(1000, WhenFull::Block);
    let host = bed.connect(Session::Next).await;
    let mut parameters = command("count 50000", "o");
    let process = host.create_process(&parameters).await.unwrap();
    let pid = process.pid();
    drop((process, host));
    let (_host, process, _, stdout) = resume(&bed, pid, at(StdinResume::Detached, 0)).await;
    assert!(process.exit_code().is_err());
    let mut got = Vec::new();
    soon(stdout.unwrap().read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 50_000);
    check(&got, 0);

    let bed = Bed::ringed(1000, WhenFull::Drop);
    let host = bed.connect(Session::Next).await;
    // Detached from the start, so that nobody reads.
    let stdout_alone = host.create_process(&parameters).await.unwrap();
    drop(stdout_alone.take_stdio());
    assert_eq!(soon(stdout_alone.wait()).await.unwrap(), 0);
    soon(async {
        while !host.list_state().await.unwrap().processes[0].std_out.unwrap().closed {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let pid = stdout_alone.pid();
    let (_host, _process, _, stdout) = resume(&bed, pid, at(StdinResume::Detached, 0)).await;
    let mut stdout = stdout.unwrap();
    let mut got = Vec::new();
    soon(stdout.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 1000);
    check(&got, 49_000);
    assert_eq!((stdout.lost(), stdout.offset()), (49_000, 50_000));
    parameters.create_std_out_pipe = false;
}

#[tokio::test]
async fn a_reader_that_wants_no_more_breaks_the_pipe_and_one_that_goes_away_does_not() {
    let bed = Bed::ringed(1000, WhenFull::Block);
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("count 50000", "o")).await.unwrap();
    let mut stdout = process.take_stdio().stdout.unwrap();
    let mut got = [0; 100];
    soon(stdout.read_exact(&mut got)).await.unwrap();
    drop(stdout);
    let stdio = at(StdinResume::Detached, 100);
    let vm = ContainerId::vm();
    let resumed = soon(host.resume_process(&vm, process.pid(), stdio)).await.unwrap();
    let mut stdout = resumed.take_stdio().stdout.unwrap();
    soon(stdout.read_exact(&mut got)).await.unwrap();
    check(&got, 100);
    stdout.stop().await.unwrap();
    assert_eq!(soon(process.wait()).await.unwrap(), 141);
}

#[tokio::test]
async fn input_the_process_did_not_take_is_sent_again_to_its_writers_unawares() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("sink", "i")).await.unwrap();
    let mut stdin = process.take_stdio().stdin.unwrap();
    stdin.write_all(&pattern_bytes(0, 200_000)).await.unwrap();
    let pid = process.pid();
    let ring = process.detach_stdin().unwrap();
    drop((process, host));
    stdin.write_all(&pattern_bytes(200_000, 300_000)).await.unwrap();
    let stdio = StdioResume { stdin: StdinResume::Ring(ring), ..StdioResume::default() };
    let (_host, process, ..) = resume(&bed, pid, stdio).await;
    stdin.write_all(&pattern_bytes(300_000, 400_000)).await.unwrap();
    stdin.shutdown().await.unwrap();
    // The process checks what it reads.
    assert_eq!(soon(process.wait()).await.unwrap(), 0);
    assert_eq!(stdin.written(), 400_000);
}

#[tokio::test]
async fn a_fresh_writer_goes_on_behind_the_last_byte_the_process_took() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("sink", "i")).await.unwrap();
    let mut stdin = process.take_stdio().stdin.unwrap();
    stdin.write_all(&pattern_bytes(0, 70_000)).await.unwrap();
    soon(async {
        while stdin.taken() < 70_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let pid = process.pid();
    drop((process, host));
    assert!(stdin.write_all(b"nobody carries this").await.is_err());
    let stdio = StdioResume { stdin: StdinResume::Fresh, ..StdioResume::default() };
    let (_host, process, stdin, _) = resume(&bed, pid, stdio).await;
    let mut stdin = stdin.unwrap();
    assert_eq!(stdin.written(), 70_000);
    stdin.write_all(&pattern_bytes(70_000, 80_000)).await.unwrap();
    process.close_stdin();
    assert_eq!(soon(process.wait()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_process_that_is_gone_takes_no_more_input() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("sleep", "i")).await.unwrap();
    let mut stdin = process.take_stdio().stdin.unwrap();
    stdin.write_all(b"x").await.unwrap();
    process.kill().await.unwrap();
    soon(process.wait()).await.unwrap();
    soon(async { while stdin.write_all(b"x").await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_straggler_of_an_older_session_does_not_reach_a_newer_ones_port() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("count 5000", "o")).await.unwrap();
    let pid = process.pid();
    drop((process, host));
    // Both sessions use the first port; the older one's dial comes first, late.
    let dir = bed.dir.path().to_owned();
    let straggler = tokio::spawn(async move {
        let path = dir.join("vsock_1073741825");
        loop {
            if let Ok(mut stream) = tokio::net::UnixStream::connect(&path).await {
                coracle_bridge::stdio::open(&mut stream, 1, 0x4000_0001).await.unwrap();
                let _ = stream.write_all(b"not yours").await;
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    let (_host, _process, _, stdout) = resume(&bed, pid, at(StdinResume::Detached, 0)).await;
    let mut got = Vec::new();
    soon(stdout.unwrap().read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 5000);
    check(&got, 0);
    straggler.abort();
}

#[tokio::test]
async fn an_offset_that_was_never_written_is_refused() {
    let bed = Bed::new();
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("exit 0", "o")).await.unwrap();
    let vm = ContainerId::vm();
    let stdio = at(StdinResume::Detached, 1);
    let error = host.resume_process(&vm, process.pid(), stdio).await.unwrap_err();
    assert!(error.to_string().contains("offset 1"), "{error}");
    let error = host.resume_process(&vm, 4242, at(StdinResume::Detached, 0)).await.unwrap_err();
    assert!(error.hresult().is_some(), "{error}");
}

/// Dials connections that break after so many bytes, in either direction.
struct Brittle {
    dial: DirDial,
    budgets: Vec<u64>,
    dialled: AtomicU64,
}

#[async_trait]
impl Dial for Brittle {
    async fn dial(&self, port: u32) -> std::io::Result<Box<dyn Connection>> {
        let inner = self.dial.dial(port).await?;
        let n = usize::try_from(self.dialled.fetch_add(1, Ordering::Relaxed)).unwrap();
        let Some(budget) = self.budgets.get(n).copied() else { return Ok(inner) };
        // The guest talks to a pump that dies in the middle of a frame.
        let (guest_end, pump_end) = tokio::io::duplex(2048);
        tokio::spawn(async move {
            let (mut inner_read, mut inner_write) = tokio::io::split(inner);
            let (mut pump_read, mut pump_write) = tokio::io::split(pump_end);
            let left = AtomicU64::new(budget);
            let up = pump(&mut pump_read, &mut inner_write, &left);
            let down = pump(&mut inner_read, &mut pump_write, &left);
            tokio::join!(up, down);
        });
        Ok(Box::new(BufReader::new(guest_end)))
    }
}

async fn pump<R, W>(from: &mut R, to: &mut W, left: &AtomicU64)
where
    R: tokio::io::AsyncRead + Unpin,
    W: tokio::io::AsyncWrite + Unpin,
{
    let mut buffer = [0; 700];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let allowed = left.load(Ordering::Relaxed).min(count as u64);
        left.fetch_sub(allowed, Ordering::Relaxed);
        let allowed = usize::try_from(allowed).unwrap();
        if to.write_all(&buffer[..allowed]).await.is_err() || allowed < count {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// What the host does next to a process that echoes.
#[derive(Debug, Clone, Copy)]
enum Step {
    Write(u16),
    Read(u16),
    /// The host's process dies: all its handles are gone at once. `true`: it had
    /// written down how far it had read.
    Die,
    /// Only the bridge is lost; the host keeps its ring of unsent input.
    Reconnect,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u16..9000).prop_map(Step::Write),
        4 => (1u16..9000).prop_map(Step::Read),
        1 => Just(Step::Die),
        1 => Just(Step::Reconnect),
    ];
    prop::collection::vec(step, 1..40)
}

/// How often a reader looks whether its input still gets through.
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);

struct Echo {
    host: GuestConnection,
    process: Process,
    stdin: StdinWriter,
    stdout: StdoutReader,
}

impl Echo {
    async fn resumed(bed: &Bed, pid: u32, stdin: StdinResume, stdout: u64) -> Self {
        let (host, process, stdin, stdout) = resume(bed, pid, at(stdin, stdout)).await;
        Self { host, process, stdin: stdin.unwrap(), stdout: stdout.unwrap() }
    }

    /// Reconnects with everything the host still has.
    async fn again(self, bed: &Bed, read: u64) -> Self {
        let pid = self.process.pid();
        let ring = self.process.detach_stdin().unwrap();
        drop(self.host);
        Self::resumed(bed, pid, StdinResume::Ring(ring), read).await
    }

    /// Reads what comes next, at the offset `at`; reconnects when a connection broke.
    async fn read(mut self, bed: &Bed, into: &mut [u8], at: u64) -> (Self, u64) {
        let patience = std::time::Instant::now();
        while patience.elapsed() < crate::bed::PATIENCE {
            match tokio::time::timeout(LOOK, self.stdout.read(into)).await {
                Ok(Ok(count)) => {
                    check(&into[..count], at);
                    return (self, count as u64);
                }
                Ok(Err(_)) => self = self.again(bed, at).await,
                // Output may be missing because input does not get through.
                Err(_) if !self.process.stdin_is_carried() => self = self.again(bed, at).await,
                Err(_) => {}
            }
        }
        panic!("nothing came at offset {at}");
    }
}

/// Runs the steps against `cat`, then closes stdin and reads to the end: what was
/// written must come back once, whole and in order.
async fn echo_survives(bed: &Bed, steps: &[Step]) {
    let host = bed.connect(Session::Next).await;
    let process = host.create_process(&command("cat", "io")).await.unwrap();
    let stdio = process.take_stdio();
    let (stdin, stdout) = (stdio.stdin.unwrap(), stdio.stdout.unwrap());
    let mut echo = Echo { host, process, stdin, stdout };
    let pid = echo.process.pid();
    let mut read = 0u64;
    let mut buffer = vec![0; 9000];
    for step in steps {
        match *step {
            Step::Write(count) => {
                let from = echo.stdin.written();
                let bytes = pattern_bytes(from, from + u64::from(count));
                soon(echo.stdin.write_all(&bytes)).await.unwrap();
            }
            Step::Read(most) => {
                // Only what must come; the rest may wait in the process.
                let due = echo.stdin.written() - read;
                if due > 0 {
                    let most = usize::try_from(u64::from(most).min(due)).unwrap();
                    let count;
                    (echo, count) = echo.read(bed, &mut buffer[..most], read).await;
                    assert_ne!(count, 0);
                    read += count;
                }
            }
            Step::Die => {
                drop(echo);
                // What the process did not take died with the host.
                echo = Echo::resumed(bed, pid, StdinResume::Fresh, read).await;
            }
            Step::Reconnect => echo = echo.again(bed, read).await,
        }
        assert_eq!(echo.stdout.offset(), read);
    }
    soon(echo.stdin.shutdown()).await.unwrap();
    loop {
        let count;
        (echo, count) = echo.read(bed, &mut buffer, read).await;
        if count == 0 {
            break;
        }
        read += count;
    }
    assert_eq!(read, echo.stdin.written());
    assert_eq!(echo.stdout.lost(), 0);
    assert_eq!(soon(echo.process.wait()).await.unwrap(), 0);
    echo.process.close().await.unwrap();
    let state = soon(echo.host.list_state()).await.unwrap();
    assert_eq!(state.processes, []);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The same over connections that break after so many bytes each.
async fn brittle_echo_survives(steps: &[Step], ring: usize, budgets: Vec<u64>) {
    let dir = tempfile::tempdir().unwrap();
    let dial =
        Brittle { dial: DirDial(dir.path().to_owned()), budgets, dialled: AtomicU64::new(0) };
    let bed = Bed::dialling(dir, Arc::new(dial), |options| coracle_bridge::server::GuestOptions {
        ring,
        ..options
    });
    echo_survives(&bed, steps).await;
    bed.guest.close().await;
}

/// Nobody dials twice for one attachment: whoever waits for the next connection waits for ever.
#[tokio::test]
async fn a_connection_that_breaks_before_it_says_what_it_is_for_is_lost_and_not_waited_for() {
    let steps = [Step::Die, Step::Write(100), Step::Read(100)];
    for broken in 0..4 {
        let budgets = (0..=broken).map(|n| if n == broken { 9 } else { 40_000 }).collect();
        brittle_echo_survives(&steps, 1000, budgets).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_echo_survives_every_death_of_its_host(steps in steps(), ring in 1usize..30_000) {
        runtime().block_on(async {
            let bed = Bed::ringed(ring, WhenFull::Block);
            echo_survives(&bed, &steps).await;
            bed.guest.close().await;
        });
    }

    #[test]
    fn an_echo_survives_connections_that_break_in_the_middle_of_a_frame(
        steps in steps(),
        ring in 1usize..30_000,
        budgets in prop::collection::vec(0u64..40_000, 0..12),
    ) {
        runtime().block_on(brittle_echo_survives(&steps, ring, budgets));
    }
}
