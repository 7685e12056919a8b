//! What a sandbox uses and may use: `stats`, `update`, `pause`, `resume`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use coracle_engine::client::{self, Client, ClientError};
use coracle_engine::monitor::api::{Limits, Update, Usage};
use coracle_engine::root::Root;
use coracle_engine::usage::ContainerUsage;

use crate::cli::Format;
use crate::life::block_on;

/// `coracle stats`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  coracle stats\n  \
    coracle stats web --format json | jq '.[0].containers[0].memory_bytes'")]
pub struct StatsArgs {
    /// The sandboxes; all that run if none is named.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// How the list is written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle update`.
#[derive(Debug, Args)]
#[command(
    after_help = "The VM can have what `run --max-cpus` and `run --max-memory` left room for. A limit \
    of 0 takes the limit away.\n\nEXAMPLES:\n  coracle update web --cpus 4 --memory 2g\n  \
    coracle update web --limit-memory 256m --limit-cpus 0.5 --limit-pids 100"
)]
pub struct UpdateArgs {
    /// The sandbox, or a beginning of its name that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Virtual CPUs of the VM.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: Option<u32>,
    /// Memory of the VM, with k, m or g.
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_mib)]
    memory: Option<u64>,
    /// CPUs the container may use of the VM's.
    #[arg(long, value_name = "CPUS", value_parser = parse_millis)]
    limit_cpus: Option<u32>,
    /// Memory the container may use of the VM's.
    #[arg(long, value_name = "SIZE", value_parser = parse_limit)]
    limit_memory: Option<u64>,
    /// Tasks the container may have.
    #[arg(long, value_name = "N")]
    limit_pids: Option<u32>,
    /// The container's share of the CPUs against what else runs in the VM; 1024 is usual.
    #[arg(long, value_name = "SHARES", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    cpu_shares: Option<u64>,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `coracle pause` and `coracle resume`.
#[derive(Debug, Args)]
pub struct PauseArgs {
    /// The sandboxes, each by its name or a beginning of it that is nobody else's.
    #[arg(value_name = "SANDBOX", required = true)]
    sandboxes: Vec<String>,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// A size where 0 stands for no limit.
fn parse_limit(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { crate::size::parse_mib(text) }
}

/// A number of CPUs such as `1.5`, in thousandths.
fn parse_millis(text: &str) -> Result<u32, String> {
    let bad = || format!("{text:?} is no number of CPUs: write one such as 0.5 or 2");
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let whole: u32 = whole.parse().map_err(|_| bad())?;
    let part: u32 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    match whole.checked_mul(1000).and_then(|millis| millis.checked_add(part)) {
        // The kernel takes no less than a hundredth.
        Some(millis @ 1..10) => {
            Err(format!("{millis} thousandths of a CPU are too few: the least is 0.01"))
        }
        Some(millis) => Ok(millis),
        None => Err(bad()),
    }
}

/// Shows what sandboxes use.
pub fn stats(args: &StatsArgs, root: &Root) -> Result<ExitCode> {
    let all = args.sandboxes.is_empty();
    let names = if all { client::names(root)? } else { args.sandboxes.clone() };
    let used = block_on(async {
        let mut used: Vec<Usage> = Vec::new();
        for name in names {
            let client = match Client::find(root, &name) {
                // It went away meanwhile.
                Err(ClientError::Unknown { .. }) if all => continue,
                client => client?,
            };
            match client.stats().await {
                Err(error) if all && error.code() == "E-NOT-RUNNING" => {}
                usage => used.push(usage?),
            }
        }
        Ok(used)
    })?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(&used)?)?,
        Format::Text => print_table(&mut out, &used)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(out: &mut impl Write, all: &[Usage]) -> std::io::Result<()> {
    let width = all.iter().map(|usage| usage.name.len()).max().unwrap_or(0).max(4);
    let heading = [
        "VM CPU",
        "VM MEMORY",
        "CPU",
        "MEMORY",
        "LIMIT",
        "PIDS",
        "READ",
        "WRITTEN",
        "RECEIVED",
        "SENT",
    ];
    write!(out, "{:width$}", "NAME")?;
    heading.iter().try_for_each(|word| write!(out, "  {word:>9}"))?;
    writeln!(out)?;
    for usage in all {
        write!(out, "{:width$}", usage.name)?;
        write!(out, "  {:>9}  {:>9}", seconds(usage.vm.cpu_ns), size(usage.vm.memory_bytes))?;
        match usage.containers.as_slice() {
            [] => write!(out, "{}", "          -".repeat(6))?,
            all @ [own, ..] => {
                // The limit is the own container's; what is used is all containers' together.
                let sum = |of: fn(&ContainerUsage) -> u64| all.iter().map(of).sum::<u64>();
                let limit = own.memory_limit_bytes.map_or("-".to_owned(), size);
                let (cpu, memory) = (seconds(sum(|c| c.cpu_ns)), size(sum(|c| c.memory_bytes)));
                let (read, written) = (size(sum(|c| c.read_bytes)), size(sum(|c| c.written_bytes)));
                let pids = sum(|c| c.pids);
                write!(out, "  {cpu:>9}  {memory:>9}  {limit:>9}")?;
                write!(out, "  {pids:>9}  {read:>9}  {written:>9}")?;
            }
        }
        let received = size(usage.networks.iter().map(|card| card.traffic.rx_bytes).sum());
        let sent = size(usage.networks.iter().map(|card| card.traffic.tx_bytes).sum());
        writeln!(out, "  {received:>9}  {sent:>9}")?;
    }
    Ok(())
}

fn seconds(nanoseconds: u64) -> String {
    let millis = nanoseconds / 1_000_000;
    format!("{}.{:02}s", millis / 1000, millis % 1000 / 10)
}

/// Three digits or four, and the unit.
fn size(bytes: u64) -> String {
    let mut number = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 10_000 {
            return format!("{number}{unit}");
        }
        number /= 1024;
    }
    format!("{number}TiB")
}

/// Gives a sandbox more or less of something.
pub fn update(args: &UpdateArgs, root: &Root) -> Result<ExitCode> {
    let limits = Limits {
        cpu_millis: args.limit_cpus,
        cpu_shares: args.cpu_shares,
        memory_mib: args.limit_memory,
        pids: args.limit_pids,
    };
    let update = Update { vcpus: args.cpus, memory_mib: args.memory, limits };
    if update == Update::default() {
        bail!("say what shall be other than it is, as in `coracle update NAME --memory 2g`");
    }
    let client = Client::find(root, &args.sandbox)?;
    block_on(async { Ok(client.update(&update).await?) })?;
    println!("{}", client.name());
    Ok(ExitCode::SUCCESS)
}

/// Pauses sandboxes, or lets them go on.
pub fn set_paused(args: &PauseArgs, paused: bool, root: &Root) -> Result<ExitCode> {
    for name in &args.sandboxes {
        let client = Client::find(root, name)?;
        block_on(async { Ok(client.set_paused(paused).await?) })?;
        println!("{}", client.name());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_read_in_thousandths() {
        for (text, millis) in [("2", 2000), ("0.5", 500), ("1.25", 1250), ("0", 0), ("0.01", 10)] {
            assert_eq!(parse_millis(text), Ok(millis), "{text}");
        }
        for bad in ["", ".", "1.", ".5", "1.2345", "-1", "x", "0.001", "9999999"] {
            assert!(parse_millis(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_used_is_short() {
        assert_eq!(
            [size(0), size(9999), size(10_000), size(64 << 20)],
            ["0B", "9999B", "9KiB", "64MiB"]
        );
        assert_eq!(size(20_000 << 30), "19TiB");
        assert_eq!(seconds(1_234_567_890), "1.23s");
    }
}
