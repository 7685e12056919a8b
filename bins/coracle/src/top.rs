//! `coracle top`: what sandboxes use, over and over, as a live view.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use coracle_engine::client::{self, Client};
use coracle_engine::root::Root;
use coracle_engine::usage::Usage;

use crate::cli::Format;

/// `coracle top`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle top\n  \
    coracle top --delay 5 web\n\n\
    CPU is of the VM's process on the host, in percent of one processor. Ctrl-C ends it.")]
pub struct TopArgs {
    /// The sandboxes; all that run if none is named.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Seconds between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    delay: u64,
    /// So many looks, then end; for ever if not given.
    #[arg(short = 'n', long, value_name = "N")]
    count: Option<u64>,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Shows them.
pub fn run(args: &TopArgs, root: &Root) -> Result<ExitCode> {
    let mut before: BTreeMap<String, (u64, Instant)> = BTreeMap::new();
    let is_terminal = std::io::stdout().is_terminal();
    let mut looks = 0;
    loop {
        let usages = look(args, root)?;
        let mut screen = String::new();
        if is_terminal {
            // Home, and away with what was there.
            screen.push_str("\x1b[H\x1b[2J");
        }
        screen.push_str(&table(&usages, &mut before));
        let mut out = std::io::stdout().lock();
        out.write_all(screen.as_bytes())?;
        out.flush()?;
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_secs(args.delay));
    }
}

fn look(args: &TopArgs, root: &Root) -> Result<Vec<Usage>> {
    let names =
        if args.sandboxes.is_empty() { client::names(root)? } else { args.sandboxes.clone() };
    crate::life::block_on(async {
        let mut usages = Vec::new();
        for name in names {
            let found = Client::find(root, &name);
            match found {
                // One that has ended uses nothing.
                Ok(client) => usages.extend(client.stats().await.ok()),
                Err(error) if !args.sandboxes.is_empty() => return Err(error.into()),
                Err(_) => {}
            }
        }
        Ok(usages)
    })
}

fn table(usages: &[Usage], before: &mut BTreeMap<String, (u64, Instant)>) -> String {
    let width = usages.iter().map(|usage| usage.name.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:width$}  {:>6}  {:>9}  {:>9}  {:>9}  {:>5}\n",
        "NAME", "CPU %", "HOST MEM", "CONTAINER", "VM MEM", "PIDS"
    );
    for usage in usages {
        let now = (usage.vm.cpu_ns, Instant::now());
        let percent = before.insert(usage.name.clone(), now).map(|(cpu, at)| {
            let spent = usage.vm.cpu_ns.saturating_sub(cpu);
            let passed = u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1);
            spent.saturating_mul(1000) / passed
        });
        let percent =
            percent.map_or("-".to_owned(), |tenths| format!("{}.{}", tenths / 10, tenths % 10));
        let container: u64 = usage.containers.iter().map(|container| container.memory_bytes).sum();
        let pids: u64 = usage.containers.iter().map(|container| container.pids).sum();
        text.push_str(&format!(
            "{:width$}  {percent:>6}  {:>9}  {:>9}  {:>9}  {pids:>5}\n",
            usage.name,
            mib(usage.vm.memory_bytes),
            mib(container),
            mib(usage.vm.memory_assigned_bytes),
        ));
    }
    text
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
