//! `coracle explain`: what an error's code means.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::cli::Format;
use crate::report::Advice;

/// Every code with its meaning and a remedy, as a table.
const TABLE: &str = include_str!("../../../docs/errors.md");

/// `coracle explain`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle explain E-SCSI-FULL\n  \
    coracle explain                 all of them")]
pub struct ExplainArgs {
    /// The code, as errors have it in brackets; all of them if none is given.
    #[arg(value_name = "CODE")]
    code: Option<String>,
    /// How it is written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// A line of the table.
struct Entry<'a> {
    code: &'a str,
    meaning: &'a str,
    remedy: &'a str,
}

fn entries() -> impl Iterator<Item = Entry<'static>> {
    TABLE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `E-")?.split(" | ");
        let code = cells.next()?.trim_end_matches('`');
        let code = &line[3..3 + "E-".len() + code.len()];
        let (meaning, remedy) = (cells.next()?, cells.next()?.trim_end_matches(" |"));
        Some(Entry { code, meaning, remedy })
    })
}

/// Explains a code, or all.
pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let wanted = args.code.as_deref().map(str::to_ascii_uppercase);
    let found: Vec<Entry<'_>> =
        entries().filter(|entry| wanted.as_deref().is_none_or(|code| code == entry.code)).collect();
    if found.is_empty() {
        let code = args.code.as_deref().unwrap_or_default();
        let error = anyhow::anyhow!("there is no error with the code {code:?}");
        let advice = "errors have their code in brackets: error[E-NAME]".to_owned();
        return Err(error.context(Advice(advice)));
    }
    for Entry { code, meaning, remedy } in found {
        match args.format {
            Format::Json => {
                println!("{}", json!({ "code": code, "meaning": meaning, "remedy": remedy }));
            }
            Format::Text => println!("{code}\n  {meaning}\n  help: {remedy}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The codes in the sources below a folder: texts that are nothing but a code.
    fn codes(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                codes(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for piece in text.split('"') {
                    let is_code =
                        |c: char| c.is_ascii_uppercase() || c == '-' || c.is_ascii_digit();
                    if piece.len() > 2 && piece.starts_with("E-") && piece.chars().all(is_code) {
                        found.insert(piece.to_owned());
                    }
                }
            }
        }
    }

    #[test]
    fn every_code_there_is_is_explained_and_no_other() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut used = BTreeSet::new();
        codes(&root.join("crates"), &mut used);
        codes(&root.join("bins/coracle/src"), &mut used);
        let explained: BTreeSet<String> = entries().map(|entry| entry.code.to_owned()).collect();
        assert_eq!(explained, used);
        assert!(entries().all(|e| e.meaning.ends_with(['.', ')']) && e.remedy.len() > 5));
    }
}
