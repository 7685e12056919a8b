//! `coracle logs`: what a detached sandbox's command has written, and goes on to write.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coracle_engine::client::RemoteContainer;
use coracle_engine::logs::{Chunk, Limits, Reader, Stream, WhenFull};
use coracle_engine::root::Root;

use crate::cli::Format;

/// How often a log that is followed is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// `coracle logs`.
#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:\n  \
    coracle logs web\n  \
    coracle logs -f --tail 10 web           what comes, after the last ten lines\n  \
    coracle logs --format json web | jq .   pieces as they came, with time and offset\n\n\
    What the command wrote to its standard error goes to standard error. The log outlives the \
    monitor and the command; `coracle rm` removes it.")]
pub struct LogsArgs {
    /// The sandbox or SANDBOX/CONTAINER, or beginnings of their names that are nobody else's.
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Go on as the command writes, until it has ended.
    #[arg(short, long)]
    follow: bool,
    /// Begin every line with the time it was written down.
    #[arg(short, long)]
    timestamps: bool,
    /// Of what is there, print this many lines at the end.
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// `json`: an object for every piece as it came; and how errors are written.
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// Options of `coracle run` on the log.
#[derive(Debug, Args)]
pub struct LogOptions {
    /// With --detach: the largest a file of the log gets.
    #[arg(long, value_name = "SIZE", default_value = "16m", value_parser = crate::size::parse_mib)]
    log_size: u64,
    /// With --detach: how many files of the log there are at the most.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=1000))]
    log_files: u32,
    /// With --detach: what becomes of output while it cannot be kept, as on a full disk.
    #[arg(long, value_name = "MODE", value_enum, default_value = "block")]
    log_mode: LogMode,
}

/// What becomes of output that cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogMode {
    /// The command waits.
    Block,
    /// It is dropped, and the log says how much.
    Drop,
    /// It is kept in the host's memory, up to 16 MiB, until there is room.
    Spill,
}

impl LogOptions {
    /// How much is kept.
    pub fn limits(&self) -> Limits {
        Limits { size: self.log_size << 20, files: self.log_files }
    }

    /// What becomes of the rest.
    pub fn when_full(&self) -> WhenFull {
        match self.log_mode {
            LogMode::Block => WhenFull::Block,
            LogMode::Drop => WhenFull::Drop,
            LogMode::Spill => WhenFull::Spill,
        }
    }
}

/// Prints the log.
pub fn run(args: &LogsArgs, root: &Root) -> Result<ExitCode> {
    let container = RemoteContainer::find(root, &args.sandbox)?;
    let mut reader = Reader::open(&container.logs());
    let mut printer = Printer { timestamps: args.timestamps, json: args.format == Format::Json };
    let mut chunks = reader.chunks()?;
    if let Some(lines) = args.tail {
        chunks = tail(chunks, lines);
    }
    printer.print(&chunks)?;
    if args.follow {
        follow(&container, &mut reader, &mut printer)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what comes until the command has ended.
fn follow(container: &RemoteContainer, reader: &mut Reader, printer: &mut Printer) -> Result<()> {
    loop {
        // Looked at first: what is written before the end is read below.
        let is_over = container.is_over()?;
        let chunks = reader.chunks()?;
        printer.print(&chunks)?;
        if is_over {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// The last lines of both streams together.
fn tail(chunks: Vec<Chunk>, lines: usize) -> Vec<Chunk> {
    let mut left = lines;
    let mut kept = Vec::new();
    let mut is_last = true;
    for mut chunk in chunks.into_iter().rev() {
        if left == 0 {
            break;
        }
        let mut from = 0;
        for (at, byte) in chunk.bytes.iter().enumerate().rev() {
            // The very last end of a line begins no other.
            if *byte == b'\n' && !(is_last && at + 1 == chunk.bytes.len()) {
                left -= 1;
                if left == 0 {
                    from = at + 1;
                    break;
                }
            }
        }
        is_last &= chunk.bytes.is_empty();
        chunk.offset += from as u64;
        chunk.bytes.drain(..from);
        kept.push(chunk);
    }
    kept.reverse();
    kept
}

/// Prints pieces of a log, each stream to ours of the same name.
pub struct Printer {
    timestamps: bool,
    json: bool,
}

impl Printer {
    /// One that adds nothing.
    pub fn plain() -> Self {
        Self { timestamps: false, json: false }
    }

    /// Prints these.
    pub fn print(&mut self, chunks: &[Chunk]) -> Result<()> {
        let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr().lock());
        for chunk in chunks {
            if self.json {
                let object = serde_json::json!({
                    "time": chunk.time,
                    "stream": chunk.stream,
                    "offset": chunk.offset,
                    "text": String::from_utf8_lossy(&chunk.bytes),
                    "lost": chunk.lost,
                });
                writeln!(out, "{object}")?;
                continue;
            }
            let into: &mut dyn Write = match chunk.stream {
                Stream::Stdout => &mut out,
                Stream::Stderr => &mut err,
            };
            if chunk.lost > 0 {
                tracing::warn!(bytes = chunk.lost, "output is missing here");
            }
            if self.timestamps {
                for line in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
                    into.write_all(chunk.time.as_bytes())?;
                    into.write_all(b" ")?;
                    into.write_all(line)?;
                }
            } else {
                into.write_all(&chunk.bytes)?;
            }
        }
        out.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str) -> Chunk {
        let (time, stream) = (String::new(), Stream::Stdout);
        Chunk { time, stream, offset: 0, bytes: text.into(), lost: 0 }
    }

    #[test]
    fn the_tail_counts_lines_and_not_pieces() {
        let text = |lines| {
            let chunks = ["one\ntw", "o\nthr", "ee\n"].map(chunk).to_vec();
            let kept = tail(chunks, lines).into_iter().flat_map(|chunk| chunk.bytes);
            String::from_utf8(kept.collect()).unwrap()
        };
        assert_eq!(text(0), "");
        assert_eq!(text(1), "three\n");
        assert_eq!(text(2), "two\nthree\n");
        assert_eq!(text(9), "one\ntwo\nthree\n");
    }
}
