//! `coracle fsck`: whether everything that is written down is whole and true, and what makes it so.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use coracle_engine::client::{self, Client};
use coracle_engine::root::Root;
use coracle_engine::{drift, gc};
use coracle_persist::driver::{By, DriverError, FsDriver, PersistDriver, Save};
use coracle_persist::lock::Ask;
use coracle_persist::root::Root as StateRoot;
use serde::Serialize;

use crate::cli::Format;

/// Something is lost, or could not be repaired.
const LOSS: u8 = 1;
/// Something is not in order.
const DISORDER: u8 = 2;

/// How long somebody else may hold a state.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// `coracle fsck`.
#[derive(Debug, Args)]
#[command(
    after_help = "EXIT CODES: 0 all is well, or was repaired; 1 something is lost, or could not be \
    repaired; 2 nothing is lost, but something is not in order; 125 it could not be found out.\n\n\
    EXAMPLES:\n  \
    coracle fsck                 every sandbox, and what belongs to none\n  \
    coracle fsck web --format json\n  \
    coracle fsck --repair\n\n\
    It looks at the states (`coracle state verify`), at whether they are true (`coracle inspect \
    --drift`), and at what is left behind (`coracle gc`). No command that runs is touched."
)]
pub struct FsckArgs {
    /// Of these alone, each by its name or a beginning of it that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandboxes: Vec<String>,
    /// Make right what can be.
    #[arg(long)]
    repair: bool,
    /// How findings and errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
struct Finding {
    sandbox: String,
    /// Where it was found: `state`, `drift` or `leftover`.
    kind: &'static str,
    what: String,
    found: String,
    /// What can be done if it is not repaired.
    help: String,
    outcome: &'static str,
}

/// How bad it is.
#[derive(Debug, Default)]
struct Verdict {
    loss: bool,
    disorder: bool,
}

/// Looks, tells, and repairs.
pub fn run(args: &FsckArgs, root: &Root) -> Result<ExitCode> {
    let names = match args.sandboxes.as_slice() {
        [] => client::names(root)?,
        given => {
            let found = given.iter().map(|name| Client::find(root, name));
            found.map(|client| client.map(|it| it.name().to_owned())).collect::<Result<_, _>>()?
        }
    };
    let mut verdict = Verdict::default();
    for name in &names {
        check(args, root, name, &mut verdict)?;
    }
    if args.sandboxes.is_empty() {
        sweep(args, root, &mut verdict)?;
    }
    if args.format == Format::Text && !verdict.loss && !verdict.disorder {
        println!("all is well: {} sandboxes", names.len());
    }
    Ok(match verdict {
        Verdict { loss: true, .. } => ExitCode::from(LOSS),
        Verdict { disorder: true, .. } => ExitCode::from(DISORDER),
        Verdict { .. } => ExitCode::SUCCESS,
    })
}

/// One sandbox: its state, then whether that is true.
fn check(args: &FsckArgs, root: &Root, name: &str, verdict: &mut Verdict) -> Result<()> {
    let mut driver = FsDriver::new(StateRoot::at(root.data()));
    let verified = match driver.verify(name) {
        Ok(verified) => verified,
        // Removed since it was listed.
        Err(DriverError::Absent(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let is_lost = verified.findings.iter().any(coracle_persist::driver::Finding::is_loss);
    let saved = match args.repair && !verified.findings.is_empty() && !is_lost {
        true => Some(save_again(&mut driver, name)),
        false => None,
    };
    for found in &verified.findings {
        let outcome = outcome(saved.as_ref());
        verdict.loss |= found.is_loss() || outcome == "failed";
        verdict.disorder |= outcome == "found";
        print(
            args.format,
            &Finding {
                sandbox: name.to_owned(),
                kind: "state",
                what: found.file().to_owned(),
                found: found.to_string(),
                help: match found.is_loss() {
                    true => format!("`coracle state read {name}` shows what is left"),
                    false => "the next save, or `coracle fsck --repair`, sees to it".to_owned(),
                },
                outcome,
            },
        )?;
    }
    tell(saved, args.format);
    if is_lost {
        return Ok(());
    }
    let client = Client::find(root, name)?;
    let drifts = drifts(root, &client)?;
    let renewed = match args.repair && !drifts.is_empty() {
        true => Some(crate::life::block_on(async { Ok(client.renew().await?) })),
        false => None,
    };
    // A fresh monitor may see the same thing otherwise.
    let left = match renewed {
        Some(Ok(())) => self::drifts(root, &client)?,
        Some(Err(_)) | None => drifts.clone(),
    };
    let gone = drifts.into_iter().filter(|drift| !left.contains(drift)).map(|it| (it, "repaired"));
    let word = if renewed.is_some() { "failed" } else { "found" };
    let told: Vec<_> = gone.chain(left.iter().map(|drift| (drift.clone(), word))).collect();
    for (drift, outcome) in told {
        verdict.loss |= outcome == "failed";
        verdict.disorder |= outcome == "found";
        let drift::Drift { what, found, help } = drift;
        let sandbox = name.to_owned();
        print(args.format, &Finding { sandbox, kind: "drift", what, found, help, outcome })?;
    }
    tell(renewed, args.format);
    Ok(())
}

/// What is not true. A sandbox without a monitor does not get one by being looked at.
fn drifts(root: &Root, client: &Client) -> Result<Vec<drift::Drift>> {
    let seen = drift::of_host(root, &client.record()?);
    if seen.iter().any(|drift| drift.what == "monitor") {
        return Ok(seen);
    }
    crate::life::block_on(async { Ok(client.drift().await?) })
}

/// Saves what is saved once more: leftovers go, and the files for others say what the log says.
fn save_again(driver: &mut FsDriver, name: &str) -> Result<()> {
    let loaded = driver.from_disk(name)?;
    let (sandbox, containers) = (&loaded.whole.sandbox, &loaded.whole.containers);
    let only_if = Some(loaded.generation);
    let save = Save { sandbox, containers, record: loaded.whole.record.as_ref(), only_if };
    driver.save(By::Asking(Ask::exclusive(PATIENCE)), save)?;
    Ok(())
}

/// What belongs to no sandbox that lives.
fn sweep(args: &FsckArgs, root: &Root, verdict: &mut Verdict) -> Result<()> {
    // One without a monitor was told of above.
    let leaks = gc::look(root)?.into_iter().filter(|leak| leak.kind != gc::Kind::Sandbox);
    for leak in leaks {
        let cleared = match args.repair {
            true => Some(
                crate::life::block_on(async { Ok(gc::clear(root, &leak).await) })?
                    .map_err(|error| anyhow!(error)),
            ),
            false => None,
        };
        let outcome = outcome(cleared.as_ref());
        verdict.loss |= outcome == "failed";
        verdict.disorder |= outcome == "found";
        let what = format!("{} {}", leak.kind.name(), leak.what);
        let help = "`coracle gc --force` takes it away".to_owned();
        let (sandbox, found) = (leak.sandbox, leak.why);
        print(args.format, &Finding { sandbox, kind: "leftover", what, found, help, outcome })?;
        tell(cleared, args.format);
    }
    Ok(())
}

fn outcome(repair: Option<&Result<()>>) -> &'static str {
    match repair {
        None => "found",
        Some(Ok(())) => "repaired",
        Some(Err(_)) => "failed",
    }
}

fn tell(repair: Option<Result<()>>, format: Format) {
    if let Some(Err(error)) = repair {
        crate::report::print_error(&error, format);
    }
}

fn print(format: Format, finding: &Finding) -> Result<()> {
    match format {
        Format::Json => println!("{}", serde_json::to_string(finding)?),
        Format::Text => {
            let Finding { sandbox, kind, what, found, help, outcome } = finding;
            println!("{outcome:8} {sandbox}: {kind}: {what}: {found}");
            if *outcome != "repaired" {
                println!("         help: {help}");
            }
        }
    }
    Ok(())
}
