//! `coracle cp`: files to and from a container that runs, as a tar that goes through `tar` in it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use coracle_engine::Command;
use coracle_engine::client::RemoteContainer;
use coracle_engine::root::Root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cli::Format;
use crate::report::Advice;

/// `coracle cp`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle cp ./site web:/srv            /srv/site is ./site\n  \
    coracle cp web:/etc/hostname .\n\n\
    One of the two is a path here, the other SANDBOX:PATH. Files land in the directory DEST, which \
    is made if missing. The container needs `tar`.")]
pub struct CpArgs {
    /// What to copy.
    #[arg(value_name = "SOURCE")]
    source: String,
    /// The directory to copy it into.
    #[arg(value_name = "DEST")]
    destination: String,
    /// How errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// One side of a copy.
enum Side {
    Here(PathBuf),
    There { container: String, path: String },
}

impl Side {
    fn of(text: &str) -> Self {
        match text.split_once(':') {
            Some((container, path)) if is_address(container) => {
                Self::There { container: container.to_owned(), path: path.to_owned() }
            }
            Some(_) | None => Self::Here(text.into()),
        }
    }
}

/// Whether it is `SANDBOX` or `SANDBOX/CONTAINER`: `./a:b` and `/a:b` are files here.
fn is_address(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['.', '/']) && text.matches('/').count() <= 1
}

/// Copies.
pub fn run(args: &CpArgs, root: &Root) -> Result<ExitCode> {
    match (Side::of(&args.source), Side::of(&args.destination)) {
        (Side::Here(from), Side::There { container, path }) => {
            let container = RemoteContainer::find(root, &container)?;
            let archive = pack(&from)?;
            let script = r#"mkdir -p "$1" && exec tar -x -f - -C "$1""#;
            let command = shell(script, &[&path], true);
            finish(crate::life::block_on(exchange(&container, &command, Some(archive)))?)
        }
        (Side::There { container, path }, Side::Here(to)) => {
            let container = RemoteContainer::find(root, &container)?;
            let script = r#"exec tar -c -f - -C "$(dirname "$1")" "$(basename "$1")""#;
            let done =
                crate::life::block_on(exchange(&container, &shell(script, &[&path], false), None))?;
            if done.code == 0 {
                std::fs::create_dir_all(&to)
                    .with_context(|| format!("cannot make {}", to.display()))?;
                let mut archive = tar::Archive::new(&done.output[..]);
                // What the container sends is hostile: nothing lands outside, nothing is owned by others.
                archive.set_preserve_permissions(false);
                archive
                    .unpack(&to)
                    .with_context(|| format!("cannot unpack into {}", to.display()))?;
            }
            finish(done)
        }
        (Side::Here(_), Side::Here(_)) | (Side::There { .. }, Side::There { .. }) => {
            let advice = "write one of them as SANDBOX:PATH, the other as a path".to_owned();
            bail!(
                anyhow::anyhow!("one side of a copy is a sandbox's, the other is here")
                    .context(Advice(advice))
            )
        }
    }
}

fn pack(from: &Path) -> Result<Vec<u8>> {
    let name = from.file_name().map_or_else(|| "root".into(), std::ffi::OsStr::to_os_string);
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    let failed = || format!("cannot read {}", from.display());
    if from.is_dir() {
        archive.append_dir_all(name, from).with_context(failed)?;
    } else {
        archive.append_path_with_name(from, name).with_context(failed)?;
    }
    archive.into_inner().with_context(failed)
}

fn shell(script: &str, words: &[&str], stdin: bool) -> Command {
    let fixed = ["sh", "-c", script, "cp"];
    let args = fixed.iter().chain(words).map(|word| (*word).to_owned()).collect();
    Command { args, stdin, user: Some("0".to_owned()), ..Command::default() }
}

/// What `tar` in the container had to say.
struct Done {
    code: u32,
    output: Vec<u8>,
    said: Vec<u8>,
}

async fn exchange(
    container: &RemoteContainer,
    command: &Command,
    input: Option<Vec<u8>>,
) -> Result<Done> {
    let exec = container.exec(command).await?;
    let feed = async {
        if let Some(bytes) = input {
            let mut stdin = exec.input();
            // `tar` may have had enough before the end.
            let _ = stdin.write_all(&bytes).await;
            let _ = stdin.shutdown().await;
        }
    };
    let (mut output, mut said) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (exec.output("stdout"), exec.output("stderr"));
    let (_, read, heard) =
        tokio::join!(feed, stdout.read_to_end(&mut output), stderr.read_to_end(&mut said));
    read.and(heard).context("cannot read what the container sends")?;
    Ok(Done { code: exec.wait().await?, output, said })
}

fn finish(done: Done) -> Result<ExitCode> {
    if done.code != 0 {
        let said = String::from_utf8_lossy(&done.said).trim().to_owned();
        bail!("`tar` in the container ended with {}: {said}", done.code);
    }
    Ok(ExitCode::SUCCESS)
}
