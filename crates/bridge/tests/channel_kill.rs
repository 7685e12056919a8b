//! A real VM, and SIGKILL in mid-transfer both ways: of the bridge's user, and of the keeper.
//!
//! After every kill the next user must find a session that is whole: bytes from the guest are exactly
//! those of a fresh flow, the guest finds the same of ours, and nothing hangs. This program plays all
//! parts: the test, the keeper, the user, and /init of the VM.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    unreachable_pub
)]

#[path = "channel_common/flow.rs"]
mod flow;
#[path = "channel_common/guest.rs"]
mod guest;
#[path = "channel_common/vm.rs"]
mod vm;

use coracle_bridge::channel::{ChannelDir, keeper};
use coracle_bridge::port;
use flow::Flow;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Kills of the bridge's user.
const USER_KILLS: u64 = 2000;
/// Kills of the keeper.
const KEEPER_KILLS: u64 = 300;
/// How much of each direction a user checks before it says that its session is whole.
const CHECKED: usize = 128 * 1024;
/// Longer than any step takes on a busy machine: whoever needs more hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What runners call the one test that this is.
const NAME: &str = "every_session_after_a_kill_is_whole";

fn main() {
    if std::process::id() == 1 {
        guest::main();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["play-keeper", dir] => play(keep(ChannelDir::new(dir))),
        ["play-user", dir, seed] => play(be_user(ChannelDir::new(dir), seed.parse().unwrap())),
        // This program is its own harness; what follows is all that runners ask of one.
        ["--list", ..] if words.contains(&"--ignored") => {}
        ["--list", ..] => println!("{NAME}: test"),
        _ if words.iter().any(|word| !word.starts_with('-') && !NAME.contains(word)) => {}
        _ => test(),
    }
}

fn play(part: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(part);
}

async fn keep(dir: ChannelDir) {
    keeper::run(keeper::Keeper::new(dir), std::future::pending()).await.unwrap();
}

/// Dials everything, checks it, says so, and goes on transferring until killed.
async fn be_user(dir: ChannelDir, seed: u64) {
    let mut flood = dir.dial_within(guest::FLOOD, PATIENCE).await.unwrap();
    let mut sink = dir.dial_within(guest::SINK, PATIENCE).await.unwrap();
    let mut bridge = dir.dial_within(port::BRIDGE, PATIENCE).await.unwrap();
    flood.write_u64_le(seed).await.unwrap();
    sink.write_u64_le(!seed).await.unwrap();
    bridge.write_u64_le(seed).await.unwrap();
    assert_eq!(bridge.read_u64_le().await.unwrap(), seed, "the echo differs");

    let mut received = 0;
    let mut from_guest = Flow::new(seed);
    let mut bytes = vec![0; 64 * 1024];
    let inward = async {
        loop {
            let n = flood.read(&mut bytes).await?;
            if n == 0 {
                return io::Result::Ok(());
            }
            assert!(from_guest.check(&bytes[..n]), "the flow from the guest is damaged");
            received += n;
            if received >= CHECKED && received - n < CHECKED {
                io::stdout().write_all(b"!")?;
                io::stdout().flush()?;
            }
        }
    };
    let outward = async {
        let mut to_guest = Flow::new(!seed);
        let mut bytes = vec![0; 64 * 1024];
        loop {
            to_guest.fill(&mut bytes);
            sink.write_all(&bytes).await?;
        }
    };
    // The keeper may be killed as well: then this user just ends.
    let _ended: io::Result<()> = tokio::select! {
        end = inward => end,
        end = outward => end,
    };
}

/// A child of this test, killed when dropped.
struct Part(Child);

impl Part {
    fn start(words: &[&str]) -> Part {
        let program = std::env::current_exe().unwrap();
        Part(Command::new(program).args(words).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until the user has checked its session.
    fn await_whole(&mut self) {
        let mut byte = [0];
        self.0.stdout.as_mut().unwrap().read_exact(&mut byte).expect("a user found a fault");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert!(
            status.signal() == Some(9) || status.success(),
            "a user found a fault after its session began: {status}"
        );
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits that differ from round to round and are the same in every run.
struct Waits(u64);

impl Waits {
    fn next(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        most.mul_f64((self.0 >> 40) as f64 / (1u64 << 24) as f64)
    }
}

fn test() {
    let vm = vm::Vm::start("");
    let dir = ChannelDir::new(vm.folder.path());
    // A hang must not become the hang of the whole test run.
    let console = vm.folder.path().join("console.log");
    let watchdog = Watchdog::start(&console);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let keeper = start_keeper(&runtime, &dir);

    let begun = Instant::now();
    kill_users(&runtime, &dir, &watchdog);
    println!("test {USER_KILLS} kills of the user leave every next session whole ... ok");
    println!("  in {:.1} s", begun.elapsed().as_secs_f64());
    keeper.kill();

    let begun = Instant::now();
    kill_keepers(&runtime, &dir, &watchdog);
    println!("test {KEEPER_KILLS} kills of the keeper leave every next session whole ... ok");
    println!("  in {:.1} s", begun.elapsed().as_secs_f64());
    drop(vm);
}

fn start_keeper(runtime: &tokio::runtime::Runtime, dir: &ChannelDir) -> Part {
    let part = Part::start(&["play-keeper", dir.path().to_str().unwrap()]);
    runtime.block_on(keeper::wait_ready(dir, PATIENCE)).unwrap();
    part
}

fn kill_users(runtime: &tokio::runtime::Runtime, dir: &ChannelDir, watchdog: &Watchdog) {
    let path = dir.path().to_str().unwrap();
    // One connection lives through it all, and no kill of another may touch it.
    let mut witness = runtime.block_on(dir.dial_within(guest::ECHO, PATIENCE)).unwrap();
    let mut waits = Waits(1);
    for round in 0..USER_KILLS {
        let mut user = Part::start(&["play-user", path, &round.to_string()]);
        user.await_whole();
        std::thread::sleep(waits.next(Duration::from_millis(6)));
        user.kill();
        runtime.block_on(ask(&mut witness, round));
        watchdog.pat();
    }
    drop(witness);
    let report = runtime.block_on(settle(dir));
    assert_eq!((report.live, report.wrong, report.rebound), (1, 0, 0));
}

fn kill_keepers(runtime: &tokio::runtime::Runtime, dir: &ChannelDir, watchdog: &Watchdog) {
    let path = dir.path().to_str().unwrap();
    let mut waits = Waits(2);
    for round in 0..KEEPER_KILLS {
        let keeper = start_keeper(runtime, dir);
        let mut user = Part::start(&["play-user", path, &round.to_string()]);
        user.await_whole();
        std::thread::sleep(waits.next(Duration::from_millis(12)));
        keeper.kill();
        // The user sees its connections end, and ends.
        let status = user.0.wait().unwrap();
        assert!(status.success(), "a user found a fault when its keeper died: {status}");
        watchdog.pat();
    }
    let _keeper = start_keeper(runtime, dir);
    let report = runtime.block_on(settle(dir));
    assert_eq!((report.live, report.wrong), (1, 0));
    let least = 2 * (u32::try_from(KEEPER_KILLS).unwrap() / 64);
    assert!(report.rebound >= least, "only {} rebinds of {least}", report.rebound);
    println!("  {} rebinds", report.rebound);
}

async fn ask(witness: &mut UnixStream, number: u64) {
    witness.write_u64_le(number).await.unwrap();
    assert_eq!(witness.read_u64_le().await.unwrap(), number);
}

struct Report {
    live: u32,
    wrong: u32,
    rebound: u32,
}

/// Asks the guest until nothing is served there but the question.
async fn settle(dir: &ChannelDir) -> Report {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut text = String::new();
        let mut stream = dir.dial_within(guest::REPORT, PATIENCE).await.unwrap();
        stream.read_to_string(&mut text).await.unwrap();
        let numbers: Vec<u32> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        let [live, wrong, rebound] = numbers[..] else { panic!("odd report {text:?}") };
        if live == 1 || Instant::now() > deadline {
            return Report { live, wrong, rebound };
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends the program with what the guest said when nobody pats it for long.
struct Watchdog(std::sync::mpsc::Sender<()>);

impl Watchdog {
    fn start(console: &Path) -> Self {
        let (pat, pats) = std::sync::mpsc::channel();
        let console = console.to_owned();
        std::thread::spawn(move || {
            use std::sync::mpsc::RecvTimeoutError;
            loop {
                match pats.recv_timeout(2 * PATIENCE) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        let text = std::fs::read(&console).unwrap_or_default();
                        println!("something hangs\n{}", String::from_utf8_lossy(&text));
                        std::process::abort();
                    }
                }
            }
        });
        Watchdog(pat)
    }

    fn pat(&self) {
        self.0.send(()).unwrap();
    }
}
