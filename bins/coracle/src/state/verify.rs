//! `coracle state verify`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_engine::root::Root;
use coracle_persist::driver::{DriverError, Finding, PersistDriver, Verified};
use serde_json::json;

use super::{DISORDER, LOSS, Shape, driver, require_dir};

/// `coracle state verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "EXIT CODES: 0 all are intact; 1 something is damaged or of a foreign version; \
        2 nothing is lost, but there are foreign edits or leftovers, which the next save sees to; \
        125 it could not be found out.\n\n\
        EXAMPLES:\n  \
        coracle state verify\n  \
        coracle state verify web\n  \
        coracle state verify /run/vc --format json"
)]
pub struct VerifyArgs {
    /// A sandbox, or a root; all sandboxes of this installation if not given.
    #[arg(value_name = "SANDBOX|ROOT")]
    of: Option<PathBuf>,
    /// How to write the findings.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Shape,
}

pub fn run(args: &VerifyArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let sandbox = args.of.as_ref().and_then(|of| of.to_str()).filter(|of| {
        // A root is a path.
        !of.contains('/') && root.state(of).is_dir()
    });
    let named = args.of.as_ref().filter(|_| sandbox.is_none());
    if let Some(named) = named {
        require_dir(named)?;
    }
    let mut driver = driver(named, root);
    let ids = match sandbox {
        Some(id) => vec![id.to_owned()],
        None => driver.list()?,
    };
    let mut worst = 0;
    for id in ids {
        let verified = match driver.verify(&id) {
            Ok(verified) => verified,
            // Deleted since it was listed.
            Err(DriverError::Absent(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        worst = match (worst, severity(&verified)) {
            (LOSS, _) | (_, LOSS) => LOSS,
            (one, other) => one.max(other),
        };
        match args.format {
            Shape::Json => println!("{}", as_json(&verified)),
            Shape::Text => print!("{}", as_text(&verified)),
        }
    }
    Ok(ExitCode::from(worst))
}

fn severity(verified: &Verified) -> u8 {
    match &verified.findings[..] {
        [] => 0,
        findings if findings.iter().any(Finding::is_loss) => LOSS,
        _ => DISORDER,
    }
}

fn as_text(verified: &Verified) -> String {
    let id = &verified.id;
    if verified.findings.is_empty() {
        return format!("{id}: intact\n");
    }
    verified.findings.iter().map(|found| format!("{id}/{}: {found}\n", found.file())).collect()
}

fn as_json(verified: &Verified) -> serde_json::Value {
    let findings: Vec<_> = verified
        .findings
        .iter()
        .map(|found| json!({"file": found.file(), "verdict": found.word(), "text": found.to_string()}))
        .collect();
    json!({
        "id": verified.id,
        "intact": findings.is_empty(),
        "generation": verified.generation.map(|generation| generation.0),
        "findings": findings,
    })
}
