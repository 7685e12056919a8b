//! `coracle dump`: everything there is to know of a sandbox in one archive, for whoever has to find out
//! what went wrong.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use coracle_engine::client::Client;
use coracle_engine::logs::Reader;
use coracle_engine::root::Root;
use serde_json::Value;

use crate::cli::Format;

/// Of a log only so many bytes at its end, at the most.
const TAIL: u64 = 1 << 20;

/// `coracle dump`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle dump web                       web-dump.tar in this directory\n  \
    coracle dump web --output - | tar t\n\n\
    In it: inspect.json, record.json (what is written down), stacks.txt (the agent's tasks), \
    console.txt (the guest's kernel), vm.txt, monitor.log, events.jsonl. Values of environment variables \
    are left out, and so is what the command wrote, unless --with-output asks for it. What cannot be \
    had, because the guest hangs for example, is named in errors.txt.")]
pub struct DumpArgs {
    /// The sandbox, or a beginning of its name that is nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Where to; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Put the end of what the command wrote in, too.
    #[arg(long)]
    with_output: bool,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Writes the archive.
pub fn run(args: &DumpArgs, root: &Root) -> Result<ExitCode> {
    let client = Client::find(root, &args.sandbox)?;
    let mut files: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut errors = String::new();
    let record = client.record()?;
    files.push(("inspect.json", serde_json::to_vec_pretty(&record.view())?));
    let mut written = serde_json::to_value(&record)?;
    redact(&mut written);
    files.push(("record.json", serde_json::to_vec_pretty(&written)?));
    match crate::life::block_on(async { Ok(client.diagnostics().await) })? {
        Ok(found) => {
            files.push(("stacks.txt", found.guest_stacks.into_bytes()));
            files.push(("console.txt", found.console.into_bytes()));
            files.push(("vm.txt", format!("status {}\n", found.vm_status).into_bytes()));
        }
        Err(error) => errors.push_str(&format!("the monitor: {error}\n")),
    }
    for (name, path) in [("monitor.log", "monitor.log"), ("events.jsonl", "events.jsonl")] {
        match tail(&root.data().join(path)) {
            Ok(bytes) => files.push((name, bytes)),
            Err(error) => errors.push_str(&format!("{name}: {error}\n")),
        }
    }
    if args.with_output {
        let chunks = Reader::open(&client.logs()).chunks()?;
        let mut bytes: Vec<u8> = chunks.into_iter().flat_map(|chunk| chunk.bytes).collect();
        let excess = bytes.len().saturating_sub(usize::try_from(TAIL).unwrap_or(usize::MAX));
        bytes.drain(..excess);
        files.push(("output.txt", bytes));
    }
    files.push(("errors.txt", errors.into_bytes()));
    let archive = pack(client.name(), &files)?;
    let path = args.output.clone().unwrap_or_else(|| format!("{}-dump.tar", client.name()).into());
    if path.as_os_str() == "-" {
        std::io::Write::write_all(&mut std::io::stdout(), &archive)?;
    } else {
        std::fs::write(&path, archive)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// `NAME=VALUE` in every list of variables becomes `NAME=...`.
fn redact(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::Array(variables) if name == "env" => {
                        for variable in variables {
                            let text = variable.as_str().unwrap_or_default();
                            let name = text.split('=').next().unwrap_or_default();
                            *variable = Value::String(format!("{name}=..."));
                        }
                    }
                    other => redact(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn tail(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn pack(name: &str, files: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (file, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, format!("{name}-dump/{file}"), &bytes[..])?;
    }
    Ok(archive.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_variables_are_left_out_wherever_they_stand() {
        let mut value = serde_json::json!({
            "order": { "command": { "env": ["PASSWORD=secret", "PLAIN"], "args": ["a=b"] } },
            "list": [{ "env": ["X=secret"] }],
        });
        redact(&mut value);
        let text = value.to_string();
        assert!(!text.contains("secret") && text.contains("PASSWORD=...") && text.contains("a=b"));
    }
}
