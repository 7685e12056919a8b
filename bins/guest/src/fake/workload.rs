//! The programs of a fake guest.
//!
//! Each does one thing and always the same: `true`, `false`, `exit N`, `echo WORDS`, `warn WORDS`
//! (on stderr), `cat`, `sleep SECONDS`, `stubborn` (ignores SIGTERM), `flood BYTES`, `size` (prints
//! the terminal's size when a line comes in), `mounts`. `sh -c` takes one of them. They know no
//! pipes or quotes: what needs more needs a real VM.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// SIGTERM.
const TERMINATE: u8 = 15;

/// What the program has to work with.
pub struct Setting {
    /// Standard input; at its end when nobody asked for it.
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    /// Standard output.
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    /// Standard error.
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
    /// The last signal sent to it; 0 before the first.
    pub signal: watch::Receiver<u8>,
    /// The terminal's width and height.
    pub size: watch::Receiver<(u16, u16)>,
    /// What is mounted in the guest.
    pub mounts: Vec<String>,
}

/// A program with its arguments understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// Returns a code.
    Exit(u8),
    /// Prints a line on stdout.
    Echo(String),
    /// Prints a line on stderr.
    Warn(String),
    /// Copies stdin to stdout.
    Cat,
    /// Waits.
    Sleep(Duration),
    /// Waits, and takes no notice of SIGTERM.
    Stubborn,
    /// Writes so many bytes, each the low eight bits of its offset.
    Flood(u64),
    /// Prints the terminal's size at each line of input.
    Size,
    /// Prints what is mounted.
    Mounts,
}

/// Why there is no such program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoProgram {
    /// Nothing has that name.
    NotFound,
    /// It is a file, but none to execute.
    NotExecutable,
}

impl Program {
    /// Understands a command line.
    pub fn parse(arguments: &[String]) -> Result<Self, NoProgram> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let Some((name, rest)) = words.split_first() else { return Err(NoProgram::NotFound) };
        let name = name.rsplit('/').next().unwrap_or(name);
        Ok(match (name, rest) {
            ("sh", ["-c", line]) => {
                let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                return Self::parse(&words);
            }
            ("true", _) => Self::Exit(0),
            ("false", _) => Self::Exit(1),
            ("exit", [code]) => Self::Exit(code.parse().unwrap_or(2)),
            ("echo", words) => Self::Echo(words.join(" ")),
            ("warn", words) => Self::Warn(words.join(" ")),
            ("cat", _) => Self::Cat,
            ("sleep", [seconds]) => {
                let seconds = seconds.parse().ok().filter(|seconds| *seconds >= 0.0);
                // As the program says: a bad number is its own affair.
                let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                time.map_or(Self::Exit(1), Self::Sleep)
            }
            ("stubborn", _) => Self::Stubborn,
            ("flood", [bytes]) => bytes.parse().map_or(Self::Exit(1), Self::Flood),
            ("size", _) => Self::Size,
            ("mounts", _) => Self::Mounts,
            ("passwd", _) => return Err(NoProgram::NotExecutable),
            _ => return Err(NoProgram::NotFound),
        })
    }

    /// Runs to its end, its own or that by a signal. Gives the exit code.
    pub async fn run(self, mut setting: Setting) -> u32 {
        let mut signal = setting.signal.clone();
        let stubborn = self == Self::Stubborn;
        let deadly = signal.wait_for(|number| *number != 0 && !(stubborn && *number == TERMINATE));
        let deadly = async {
            match deadly.await.map(|number| *number) {
                Ok(number) => number,
                // Nobody can send one any more.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            code = self.work(&mut setting) => u32::from(code),
            number = deadly => 128 + u32::from(number),
        }
    }

    async fn work(self, setting: &mut Setting) -> u8 {
        let written = match self {
            Self::Exit(code) => return code,
            Self::Echo(text) => setting.stdout.write_all(format!("{text}\n").as_bytes()).await,
            Self::Warn(text) => setting.stderr.write_all(format!("{text}\n").as_bytes()).await,
            Self::Cat => tokio::io::copy(&mut setting.stdin, &mut setting.stdout).await.map(drop),
            Self::Sleep(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Self::Stubborn => std::future::pending().await,
            Self::Flood(bytes) => flood(&mut setting.stdout, bytes).await,
            Self::Size => tell_size(setting).await,
            Self::Mounts => {
                let text: String =
                    setting.mounts.iter().map(|mount| format!("{mount}\n")).collect();
                setting.stdout.write_all(text.as_bytes()).await
            }
        };
        // Like any program whose reader is gone.
        u8::from(written.is_err())
    }
}

async fn flood(stdout: &mut (impl AsyncWrite + Unpin), bytes: u64) -> std::io::Result<()> {
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(32 * 1024).collect();
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 {
        let length = left.min(block.len());
        stdout.write_all(&block[..length]).await?;
        left -= length;
    }
    Ok(())
}

async fn tell_size(setting: &mut Setting) -> std::io::Result<()> {
    let mut buffer = [0; 256];
    while setting.stdin.read(&mut buffer).await? > 0 {
        let (width, height) = *setting.size.borrow();
        setting.stdout.write_all(format!("{width} {height}\n").as_bytes()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Program, NoProgram> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Program::parse(&words)
    }

    #[test]
    fn programs_are_found_by_their_last_name() {
        assert_eq!(parse("/bin/echo a b"), Ok(Program::Echo("a b".to_owned())));
        assert_eq!(parse("exit 7"), Ok(Program::Exit(7)));
        assert_eq!(parse("nosuch"), Err(NoProgram::NotFound));
        assert_eq!(parse("/etc/passwd"), Err(NoProgram::NotExecutable));
    }

    #[test]
    fn a_shell_takes_one_program() {
        let words = ["sh", "-c", "exit 7"].map(str::to_owned);
        assert_eq!(Program::parse(&words), Ok(Program::Exit(7)));
    }
}
