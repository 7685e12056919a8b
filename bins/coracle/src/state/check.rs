//! `coracle state check`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_persist::codec::{
    DecodeError, Document, Tolerance, decode_container, decode_sandbox, recognise,
};
use coracle_persist::driver::{OwnRecord, RecordError, sentence};
use coracle_persist::store::{Tail, replay};
use serde::Serialize;

use super::{LOSS, Shape};

/// `coracle state check`.
#[derive(Debug, Args)]
#[command(
    after_help = "A file's name tells what it is: state.log, coracle.json, or else a state of \
        Kata's, of a sandbox or of a container.\n\n\
        EXIT CODES: 0 all are whole, 1 some are damaged or refused, 125 some could not be read.\n\n\
        EXAMPLES:\n  \
        coracle state check /run/vc/sbs/*/persist.json /run/vc/sbs/*/*/persist.json\n  \
        coracle state check --format json persist.json | jq -r .verdict"
)]
pub struct CheckArgs {
    /// The files.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// How to write the verdicts.
    #[arg(long, value_enum, default_value = "text")]
    pub(super) format: Shape,
    /// Pass over bytes that follow a state in its file, as Kata does.
    #[arg(long)]
    accept_trailing: bool,
}

/// What is said of a file.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    verdict: Verdict,
    /// What it is: `sandbox`, `container`, `log` or `record`; nothing when that cannot be told.
    kind: Option<&'static str>,
    why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It can be read.
    Ok,
    /// It is not what was written.
    Damaged,
    /// It is whole, but not of this version or with values that are none.
    Refused,
}

pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let tolerance = if args.accept_trailing { Tolerance::TrailingBytes } else { Tolerance::Strict };
    let mut loss = false;
    let mut unread: Option<anyhow::Error> = None;
    for path in &args.files {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let error = anyhow::Error::new(error);
                // The others are judged all the same.
                unread.get_or_insert(error.context(format!("cannot read {}", path.display())));
                continue;
            }
        };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (kind, (verdict, why)) = match name {
            "state.log" => (Some("log"), judge_log(&bytes)),
            "coracle.json" => (Some("record"), judge_record(&bytes)),
            _ => judge_state(&bytes, tolerance),
        };
        loss |= verdict != Verdict::Ok;
        let checked = Checked { file: path.display().to_string(), verdict, kind, why };
        match args.format {
            Shape::Json => println!("{}", serde_json::to_string(&checked)?),
            Shape::Text => println!("{}", checked.text()),
        }
    }
    match unread {
        Some(error) => Err(error),
        None if loss => Ok(ExitCode::from(LOSS)),
        None => Ok(ExitCode::SUCCESS),
    }
}

impl Checked {
    fn text(&self) -> String {
        let word = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Damaged => "damaged",
            Verdict::Refused => "refused",
        };
        let kind = self.kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
        let why = self.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        format!("{}: {word}{kind}{why}", self.file)
    }
}

type Judged = (Verdict, Option<String>);

fn judge_state(bytes: &[u8], tolerance: Tolerance) -> (Option<&'static str>, Judged) {
    let document = match recognise(bytes) {
        Ok(document) => document,
        Err(error) => return (None, judge_error(&error)),
    };
    // What may be either has no keys but those that both have.
    let read = match document {
        Some(Document::Container) => decode_container(bytes, tolerance).map(drop),
        Some(Document::Sandbox) | None => decode_sandbox(bytes, tolerance).map(drop),
    };
    let kind = document.map(|document| match document {
        Document::Sandbox => "sandbox",
        Document::Container => "container",
    });
    match read {
        Ok(()) => (kind, (Verdict::Ok, None)),
        Err(error) => (kind, judge_error(&error)),
    }
}

fn judge_error(error: &DecodeError) -> Judged {
    let verdict = match error {
        DecodeError::Damaged { .. } | DecodeError::Trailing { .. } => Verdict::Damaged,
        DecodeError::Value { .. } | DecodeError::Foreign { .. } => Verdict::Refused,
    };
    // The verdict says already that it is damaged, and the file may be of either kind.
    let why = match error {
        DecodeError::Damaged { damage, .. } => damage.to_string(),
        DecodeError::Trailing { end, len, .. } => {
            format!("the state ends after {end} bytes, but {} more follow", len - end)
        }
        DecodeError::Value { .. } | DecodeError::Foreign { .. } => sentence(error),
    };
    (verdict, Some(why))
}

fn judge_log(bytes: &[u8]) -> Judged {
    use coracle_persist::store::replay::Silence;
    match replay::replay(bytes) {
        Ok(state) => match state.tail {
            Tail::Clean => (Verdict::Ok, Some(format!("generation {}", state.generation))),
            Tail::Torn { at } => {
                let why = "a commit that nobody was told of begins at byte";
                (Verdict::Ok, Some(format!("generation {}; {why} {at}", state.generation)))
            }
            Tail::Damaged { at, later } => {
                let good = state.generation;
                let why = format!("byte {at}: generation {good} is whole, {later} came later");
                (Verdict::Damaged, Some(why))
            }
        },
        Err(Silence::Newer(version)) => {
            (Verdict::Refused, Some(format!("a later coracle wrote it, in version {version}")))
        }
        Err(Silence::NoSnapshot) => (Verdict::Damaged, Some("it has no whole snapshot".to_owned())),
    }
}

fn judge_record(bytes: &[u8]) -> Judged {
    match OwnRecord::decode(bytes) {
        Ok(_) => (Verdict::Ok, None),
        Err(error @ RecordError::Newer { .. }) => (Verdict::Refused, Some(sentence(&error))),
        Err(error @ RecordError::Damaged(_)) => (Verdict::Damaged, Some(sentence(&error))),
    }
}
