//! What it costs that a sandbox outlives its runtime: taking over, listing, starting, memory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_engine::client::Client;
use coracle_engine::monitor;
use coracle_engine::monitor::api::Order;
use coracle_engine::root::Root;
use coracle_engine::{Accel, RootFs, SandboxSpec, ledger};
use coracle_uvm::UtilityVm;
use coracle_uvm::options::HostOptions;

use crate::live::{Live, keeper};
use crate::memory;
use crate::table::{Budget, Row, Samples};

/// Rounds of taking over.
const ROUNDS: usize = 31;
/// Sandboxes that are listed.
const LISTED: usize = 200;
/// Sandboxes started at once.
const AT_ONCE: usize = 20;

/// A root directory of the bench's own; what runs there ends with it.
struct Ground {
    coracle: PathBuf,
    dir: tempfile::TempDir,
}

impl Ground {
    fn new(coracle: &Path, guest: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::os::unix::fs::symlink(guest, dir.path().join("guest"))?;
        Ok(Self { coracle: coracle.to_owned(), dir })
    }

    fn root(&self) -> Root {
        Root::at(self.dir.path())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.coracle);
        command.args(words).env("CORACLE_ROOT", self.dir.path()).env("CORACLE_NET", "none");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        let status = self.command(words).status()?;
        ensure!(status.success(), "coracle {words:?} failed");
        Ok(began.elapsed())
    }

    fn start(&self, name: &str) -> Result<Duration> {
        self.run(&["run", "-d", "--accel", "tcg", "--memory", "512m", "--name", name])
    }

    fn monitor(&self, name: &str) -> Result<u32> {
        let record = ledger::read(&self.root(), name)?.context("nothing is written down of it")?;
        Ok(record.monitor.context("it has no monitor")?.pid)
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for name in ledger::names(&self.root()).unwrap_or_default() {
            // What cannot be removed is seen by whoever looks.
            let _ = self.run(&["rm", "--force", &name]);
        }
    }
}

/// Measures all of it.
///
/// # Errors
/// A sandbox does not start, or does not answer.
pub async fn measure(coracle: &Path, guest: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let ground = Ground::new(coracle, guest)?;
    let name = "bench";
    rows.push(start_against_plain(&ground, coracle, guest).await?);
    ground.start(name)?;
    let alone = reconnect(coracle, guest).await?;
    rows.extend(take_over(&ground, name, &alone).await?);
    rows.extend(exec_beside_ping(&ground, name, coracle, guest).await?);
    let budgets =
        [("monitor", ground.monitor(name)?, 12.0), ("keeper", keeper_of(&ground, name)?, 4.0)];
    for (what, pid, most) in budgets {
        rows.push(Row {
            what: format!("{what} of a detached sandbox"),
            value: memory::as_mib(memory::status_kib(pid)?),
            unit: "MiB",
            budget: Budget::AtMost(most),
            detail: String::new(),
        });
    }
    rows.push(list(&ground)?);
    rows.push(many_at_once(coracle, guest)?);
    Ok(rows)
}

/// The control socket and the guest connected again, to the guest's first answer: what no runtime can do
/// without.
async fn reconnect(coracle: &Path, guest: &Path) -> Result<Samples> {
    let live = Live::boot_with(coracle, guest, false).await?;
    let (mut vm, mut samples) = (live.vm.clone(), Samples::default());
    drop(live.vm);
    for _ in 0..ROUNDS {
        let record = vm.record();
        drop(vm);
        // Until it is let go of.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let host = HostOptions { keeper: keeper(coracle)?, ..HostOptions::default() };
        let began = Instant::now();
        vm = UtilityVm::adopt(&record, host).await?;
        vm.guest_state().await?;
        samples.add(began.elapsed());
    }
    vm.close().await?;
    Ok(samples)
}

/// From SIGKILL to the first answer of the next monitor.
async fn take_over(ground: &Ground, name: &str, alone: &Samples) -> Result<Vec<Row>> {
    let client = Client::find(&ground.root(), name)?;
    client.show().await?;
    let mut whole = Samples::default();
    for _ in 0..ROUNDS {
        let pid = i32::try_from(ground.monitor(name)?)?;
        let process = rustix::process::Pid::from_raw(pid).context("no process")?;
        let began = Instant::now();
        rustix::process::kill_process(process, rustix::process::Signal::KILL)?;
        client.show().await?;
        whole.add(began.elapsed());
        // As quiet as before.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (ours, theirs) = (whole.median(), alone.median());
    let answered = Row {
        what: "adoption, from SIGKILL to the first answer".to_owned(),
        value: ours,
        unit: "ms",
        budget: Budget::None,
        detail: format!("slowest of {ROUNDS} {:.0} ms", whole.quantile(1.0)),
    };
    let ratio = Row {
        what: "the same vs. connecting control socket and guest alone".to_owned(),
        value: ours / theirs,
        unit: "x",
        budget: Budget::AtMost(3.0),
        detail: format!("{ours:.0} against {theirs:.0} ms"),
    };
    Ok(vec![answered, ratio])
}

async fn exec_beside_ping(
    ground: &Ground,
    name: &str,
    coracle: &Path,
    guest: &Path,
) -> Result<Vec<Row>> {
    let live = Live::boot(coracle, guest).await?;
    let (mut exec, mut ping) = (Samples::default(), Samples::default());
    for _ in 0..ROUNDS {
        exec.add(ground.run(&["exec", name, "--", "true"])?);
        let began = Instant::now();
        live.vm.guest_state().await?;
        ping.add(began.elapsed());
    }
    live.vm.close().await?;
    let told = |what: &str, samples: &Samples| Row {
        what: what.to_owned(),
        value: samples.median(),
        unit: "ms",
        budget: Budget::None,
        detail: format!("p99 {:.1} ms", samples.quantile(0.99)),
    };
    Ok(vec![told("coracle exec -- true", &exec), told("agent ping", &ping)])
}

/// `run -d` until the command runs, beside the same by the library alone.
async fn start_against_plain(ground: &Ground, coracle: &Path, guest: &Path) -> Result<Row> {
    let (mut whole, mut plain) = (Samples::default(), Samples::default());
    for n in 0..5 {
        let name = format!("start{n}");
        whole.add(ground.start(&name)?);
        ground.run(&["rm", "--force", &name])?;
        let began = Instant::now();
        let live = Live::boot(coracle, guest).await?;
        live.container("c", "exec sleep 1000", false).await?;
        plain.add(began.elapsed());
        live.vm.close().await?;
    }
    let (ours, theirs) = (whole.median(), plain.median());
    Ok(Row {
        what: "create to running vs. a plain UtilityVm".to_owned(),
        value: ours / theirs,
        unit: "x",
        budget: Budget::AtMost(1.1),
        detail: format!("{ours:.0} against {theirs:.0} ms"),
    })
}

fn list(ground: &Ground) -> Result<Row> {
    for n in 0..LISTED {
        monitor::create(&ground.root(), order(&format!("listed{n}")))?;
    }
    let mut samples = Samples::default();
    for _ in 0..9 {
        samples.add(ground.run(&["ls"])?);
    }
    Ok(Row {
        what: format!("ls of {LISTED} sandboxes"),
        value: samples.median(),
        unit: "ms",
        budget: Budget::AtMost(50.0),
        detail: format!("slowest {:.0} ms", samples.quantile(1.0)),
    })
}

fn order(name: &str) -> Order {
    Order {
        sandbox: SandboxSpec {
            tuning: Default::default(),
            name: Some(name.to_owned()),
            memory_mib: 256,
            vcpus: 1,
            max_vcpus: None,
            max_memory_mib: None,
            accel: Accel::Tcg,
            kernel: None,
            rootfs: RootFs::BuiltIn,
            scratch_mib: None,
            read_only: false,
            plugs: Vec::new(),
            hotplug: true,
            physical_memory: false,
            networks: Vec::new(),
            helper: None,
        },
        command: coracle_engine::Command::default(),
        remove: false,
        restart: coracle_engine::restart::Policy::default(),
        health: None,
        log: coracle_engine::logs::Limits::default(),
        when_full: coracle_engine::logs::WhenFull::default(),
    }
}

fn many_at_once(coracle: &Path, guest: &Path) -> Result<Row> {
    let ground = Ground::new(coracle, guest)?;
    let began = Instant::now();
    let start = |n: usize| {
        let name = format!("many{n}");
        let words = [
            "run", "-d", "--accel", "tcg", "--memory", "256m", "--name", &name, "--", "sleep",
            "1000",
        ];
        ground.command(&words).spawn()
    };
    let started: Vec<_> = (0..AT_ONCE).map(start).collect::<Result<_, _>>()?;
    let mut failed = 0;
    for mut child in started {
        failed += u32::from(!child.wait()?.success());
    }
    let took = began.elapsed();
    Ok(Row {
        what: format!("failures of {AT_ONCE} sandboxes started at once"),
        value: f64::from(failed),
        unit: "",
        budget: Budget::AtMost(0.0),
        detail: format!("all run after {:.1} s", took.as_secs_f64()),
    })
}

fn keeper_of(ground: &Ground, name: &str) -> Result<u32> {
    let record = ledger::read(&ground.root(), name)?.context("nothing is written down of it")?;
    let vm = record.vm.context("it has no VM")?;
    Ok(vm.keeper().context("it has no keeper")?.pid)
}
