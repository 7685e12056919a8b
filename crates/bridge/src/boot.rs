//! What the host tells the agent before there is a channel.
//!
//! A VM that has just booted knows nothing of its host but the kernel command line, so the few
//! decisions the agent must take before it can talk (where its root is, whether entropy comes
//! first, what to do with a command that replaces it) travel there, as words that begin with
//! `coracle.`. The kernel leaves words with a dot in their name alone, and the agent reads them
//! back from `/proc/cmdline`. Free text is base64, because that file knows no quoting we could
//! trust; a word nobody knows is skipped, so that an older agent boots with a newer host.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// The decisions of the host that hold from the agent's first instruction on.
///
/// The default is what a VM that boots from its initrd wants: no entropy round, nothing
/// forwarded, no debugging on the console.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootParameters {
    /// The command the VM is to run (`OptionsLCOW.ExecCommandLine`); the built-in agent when
    /// absent or when the first word names it (see [`BootParameters::names_the_agent`]).
    pub exec_command_line: Option<String>,
    /// Send the command's standard output to the log port (`ForwardStdout`).
    pub forward_stdout: bool,
    /// Send the command's standard error, which is where the agent logs, to the log port
    /// (`ForwardStderr`).
    pub forward_stderr: bool,
    /// Read seed bytes from the entropy port before anything else.
    pub entropy: bool,
    /// Also write log lines to `/dev/console`.
    pub debug_console: bool,
    /// The device that carries the VM's root; the initrd itself when absent.
    pub root: Option<RootDevice>,
    /// The least severe line that is logged.
    pub log_level: LogLevel,
    /// The host's clock when it wrote the command line, to the millisecond. The agent moves its
    /// clock forward to it, never back: the VM has been booting since.
    pub clock: Option<SystemTime>,
    /// The VM's host name (1 to 64 bytes).
    pub hostname: Option<String>,
    /// What carries the channel.
    pub transport: Transport,
}

/// What carries the channel between host and guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// Two virtio-serial ports.
    #[default]
    VirtioSerial,
    /// The guest's AF_VSOCK, at which the host dials.
    Vsock,
}

/// A disk that holds the VM's root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDevice {
    /// Which device.
    pub source: RootSource,
    /// The file system on it, as `mount -t` names it.
    pub filesystem: String,
    /// Mount it read-only.
    pub read_only: bool,
}

/// How the agent finds its root device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// `/dev/pmem<n>`: the device that was there at power-on, so its number is known.
    Pmem(u32),
    /// The disk whose serial this is.
    Serial(String),
}

/// The severity of a log line, as the host's log forwarder spells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// The operation failed.
    Error,
    /// Something is off, the operation goes on.
    Warning,
    /// One line per step of a life cycle.
    #[default]
    Info,
    /// One line per request.
    Debug,
    /// Everything.
    Trace,
}

/// Why the words on a kernel command line are no boot parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootParametersError {
    /// A word we know has a value we do not.
    #[error("boot parameter {word}: the value {value:?} is not {expected}")]
    Value {
        /// The word's name, `coracle.root` for example.
        word: &'static str,
        /// What stands behind the equals sign.
        value: String,
        /// What may stand there.
        expected: &'static str,
    },
}

const EXEC: &str = "coracle.exec";
const FORWARD: &str = "coracle.forward";
const ENTROPY: &str = "coracle.entropy";
const CONSOLE: &str = "coracle.console";
const ROOT: &str = "coracle.root";
const LOG: &str = "coracle.log";
const CLOCK: &str = "coracle.clock";
const HOSTNAME: &str = "coracle.hostname";
const CHANNEL: &str = "coracle.channel";

impl BootParameters {
    /// The name under which an `ExecCommandLine` asks for the built-in agent; hcsshim's default
    /// command line begins with `/bin/gcs`, which means the same.
    pub const AGENT: &'static str = "/init";

    /// Whether the command to run is the agent itself.
    pub fn names_the_agent(&self) -> bool {
        let Some(line) = &self.exec_command_line else { return true };
        match line.split_whitespace().next() {
            None => true,
            Some(word) => matches!(word, Self::AGENT | "/bin/gcs" | "/bin/coracle-guest"),
        }
    }

    /// The words for the kernel command line, separated by single spaces; empty for the default.
    pub fn to_cmdline(&self) -> String {
        let mut words = Vec::new();
        if let Some(line) = &self.exec_command_line {
            words.push(format!("{EXEC}={}", encode(line)));
        }
        let forward = match (self.forward_stdout, self.forward_stderr) {
            (false, false) => None,
            (true, false) => Some("out"),
            (false, true) => Some("err"),
            (true, true) => Some("out,err"),
        };
        words.extend(forward.map(|streams| format!("{FORWARD}={streams}")));
        if self.entropy {
            words.push(format!("{ENTROPY}=1"));
        }
        if self.debug_console {
            words.push(format!("{CONSOLE}=1"));
        }
        words.extend(self.root.as_ref().map(|root| format!("{ROOT}={root}")));
        if self.log_level != LogLevel::default() {
            words.push(format!("{LOG}={}", self.log_level));
        }
        if let Some(time) = self.clock {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            words.push(format!("{CLOCK}={}", since.as_millis()));
        }
        words.extend(self.hostname.as_ref().map(|name| format!("{HOSTNAME}={}", encode(name))));
        match self.transport {
            Transport::VirtioSerial => {}
            Transport::Vsock => words.push(format!("{CHANNEL}=vsock")),
        }
        words.join(" ")
    }

    /// Reads the words back from a whole kernel command line. The last of two equal words wins,
    /// as it does for the kernel's own.
    ///
    /// # Errors
    /// A known word with a value that cannot be understood: guessing a root device would be worse
    /// than to stop.
    pub fn parse(cmdline: &str) -> Result<Self, BootParametersError> {
        let mut parameters = Self::default();
        for word in cmdline.split_ascii_whitespace() {
            // After "--" the kernel hands words to init; they are nobody's parameters.
            if word == "--" {
                break;
            }
            let Some((name, value)) = word.split_once('=') else { continue };
            match name {
                EXEC => parameters.exec_command_line = Some(decode(EXEC, value)?),
                FORWARD => {
                    (parameters.forward_stdout, parameters.forward_stderr) = match value {
                        "out" => (true, false),
                        "err" => (false, true),
                        "out,err" => (true, true),
                        _ => return Err(bad(FORWARD, value, "`out`, `err` or `out,err`")),
                    }
                }
                ENTROPY => parameters.entropy = flag(ENTROPY, value)?,
                CONSOLE => parameters.debug_console = flag(CONSOLE, value)?,
                ROOT => parameters.root = Some(value.parse()?),
                LOG => parameters.log_level = value.parse()?,
                CLOCK => {
                    let millis = value
                        .parse()
                        .map_err(|_| bad(CLOCK, value, "a count of milliseconds since 1970"))?;
                    parameters.clock = UNIX_EPOCH.checked_add(Duration::from_millis(millis));
                }
                HOSTNAME => parameters.hostname = Some(decode(HOSTNAME, value)?),
                CHANNEL => {
                    parameters.transport = match value {
                        "serial" => Transport::VirtioSerial,
                        "vsock" => Transport::Vsock,
                        _ => return Err(bad(CHANNEL, value, "`serial` or `vsock`")),
                    }
                }
                _ => {}
            }
        }
        Ok(parameters)
    }
}

/// `pmem:<n>:<fs>:<ro|rw>` or `serial:<base64>:<fs>:<ro|rw>`.
impl fmt::Display for RootDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            RootSource::Pmem(number) => write!(f, "pmem:{number}")?,
            RootSource::Serial(serial) => write!(f, "serial:{}", encode(serial))?,
        }
        write!(f, ":{}:{}", self.filesystem, if self.read_only { "ro" } else { "rw" })
    }
}

impl FromStr for RootDevice {
    type Err = BootParametersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "`pmem:N:FS:ro` or `serial:BASE64:FS:ro` (or rw)";
        let wrong = || bad(ROOT, text, EXPECTED);
        let [kind, which, filesystem, mode] =
            text.split(':').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        let source = match kind {
            "pmem" => RootSource::Pmem(which.parse().map_err(|_| wrong())?),
            "serial" => RootSource::Serial(decode(ROOT, which)?),
            _ => return Err(wrong()),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if filesystem.is_empty() || !filesystem.chars().all(plain) {
            return Err(wrong());
        }
        let read_only = match mode {
            "ro" => true,
            "rw" => false,
            _ => return Err(wrong()),
        };
        Ok(Self { source, filesystem: filesystem.to_owned(), read_only })
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

impl FromStr for LogLevel {
    type Err = BootParametersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "error" => Self::Error,
            "warning" => Self::Warning,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return Err(bad(LOG, text, "error, warning, info, debug or trace")),
        })
    }
}

fn encode(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

fn decode(word: &'static str, value: &str) -> Result<String, BootParametersError> {
    let bytes = URL_SAFE_NO_PAD.decode(value).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| bad(word, value, "base64 (URL alphabet, no padding) of UTF-8 text"))
}

fn flag(word: &'static str, value: &str) -> Result<bool, BootParametersError> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(bad(word, value, "0 or 1")),
    }
}

fn bad(word: &'static str, value: &str, expected: &'static str) -> BootParametersError {
    BootParametersError::Value { word, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root() -> impl Strategy<Value = RootDevice> {
        let source = prop_oneof![
            any::<u32>().prop_map(RootSource::Pmem),
            ".{0,40}".prop_map(RootSource::Serial),
        ];
        (source, "[a-z0-9_-]{1,8}", any::<bool>()).prop_map(|(source, filesystem, read_only)| {
            RootDevice { source, filesystem, read_only }
        })
    }

    fn parameters() -> impl Strategy<Value = BootParameters> {
        let level = prop_oneof![
            Just(LogLevel::Error),
            Just(LogLevel::Warning),
            Just(LogLevel::Info),
            Just(LogLevel::Debug),
            Just(LogLevel::Trace),
        ];
        (
            proptest::option::of(".*"),
            any::<[bool; 5]>(),
            proptest::option::of(root()),
            level,
            proptest::option::of(0u64..1 << 42),
            proptest::option::of(".{1,64}"),
        )
            .prop_map(
                |(exec, [out, err, entropy, console, vsock], root, log_level, clock, hostname)| {
                    BootParameters {
                        exec_command_line: exec,
                        forward_stdout: out,
                        forward_stderr: err,
                        entropy,
                        debug_console: console,
                        root,
                        log_level,
                        clock: clock.map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
                        hostname,
                        transport: if vsock { Transport::Vsock } else { Transport::VirtioSerial },
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn what_the_host_wrote_the_agent_reads(written in parameters()) {
            let line = format!("quiet {} panic=-1", written.to_cmdline());
            prop_assert_eq!(BootParameters::parse(&line), Ok(written));
        }

        #[test]
        fn a_word_never_holds_white_space_or_quotes(written in parameters()) {
            let line = written.to_cmdline();
            prop_assert!(line.chars().all(|c| c.is_ascii_graphic() || c == ' '));
            prop_assert!(!line.contains(['"', '\'']));
        }

        #[test]
        fn any_command_line_parses_or_fails_without_a_panic(line in ".*") {
            let _ = BootParameters::parse(&line);
        }
    }

    #[test]
    fn the_default_needs_no_words() {
        assert_eq!(BootParameters::default().to_cmdline(), "");
    }

    #[test]
    fn unknown_words_and_those_after_two_dashes_are_skipped() {
        let line = "coracle.future=7 coracle.entropy=1 -- coracle.entropy=0";
        assert!(BootParameters::parse(line).unwrap().entropy);
    }

    #[test]
    fn a_bad_value_names_the_word() {
        let error = BootParameters::parse("coracle.root=pmem:x:ext4:ro").unwrap_err();
        assert!(error.to_string().starts_with("boot parameter coracle.root:"), "{error}");
    }

    #[test]
    fn the_seeds_default_command_line_means_the_agent() {
        let line = |text: &str| BootParameters {
            exec_command_line: Some(text.to_owned()),
            ..BootParameters::default()
        };
        assert!(BootParameters::default().names_the_agent());
        assert!(line("/bin/gcs -v4 -log-format json -loglevel info").names_the_agent());
        assert!(!line("/bin/sh -c 'echo hello'").names_the_agent());
    }
}
