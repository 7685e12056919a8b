//! What the guest's program prints, turned into our own log.
//!
//! The default handler of [`crate::options::OutputHandler`]: a stream of JSON objects, one log
//! line each, as the agent writes them. Known keys are `time`, `level` and `msg`, the rest are
//! fields. A guest must never end its host, so `fatal` and `panic` are plain errors here. At the
//! first bytes that are no JSON the program has most likely died with a stack trace: the rest is
//! read as text and logged once. Everything is bounded: a line, the final text, and the number of
//! lines a second, since the bytes come from a guest nobody trusts.

mod objects;

use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt};

use objects::{Found, Scan};

/// The longest JSON object that is still a log line.
const LINE_LIMIT: usize = 64 * 1024;
/// How much of the final text is kept: its beginning, which names the cause.
const TEXT_LIMIT: usize = 64 * 1024;
/// Lines a second before lines are dropped.
const RATE: u32 = 1000;

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The finest.
    Trace,
    /// For developers.
    Debug,
    /// What lines without a level are.
    Info,
    /// Something is off.
    Warn,
    /// Something failed.
    Error,
}

/// One line of the guest's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// How grave.
    pub level: Level,
    /// The message.
    pub message: String,
    /// When the guest wrote it, by its own clock.
    pub time: Option<String>,
    /// Everything else, whole numbers as integers.
    pub fields: Map<String, Value>,
}

/// Something the guest printed.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A log line.
    Line(Line),
    /// The text after which nothing more came: usually a panic's stack.
    Terminated {
        /// The text, trimmed and bounded.
        stderr: String,
    },
    /// So many lines came too fast and were dropped.
    Dropped(u64),
}

/// Reads to the end of the stream and hands over what it finds.
pub async fn parse(mut stream: impl AsyncRead + Unpin, mut take: impl FnMut(Entry)) {
    let (mut buffer, mut scan) = (Vec::new(), Scan::default());
    let mut rate = Rate::new();
    loop {
        match scan.look(&buffer) {
            Found::Object(length) => {
                let Ok(fields) = serde_json::from_slice::<Map<_, _>>(&buffer[..length]) else {
                    read_text(&mut stream, &mut buffer).await;
                    break;
                };
                buffer.drain(..length);
                scan = Scan::default();
                for entry in rate.admit(Line::from(fields)) {
                    take(entry);
                }
            }
            Found::More if buffer.len() < LINE_LIMIT => {
                if scan.is_blank() {
                    (buffer, scan) = (Vec::new(), Scan::default());
                }
                let mut chunk = [0; 8192];
                match stream.read(&mut chunk).await {
                    // A connection that breaks is an end like any other.
                    Ok(0) | Err(_) => break,
                    Ok(count) => buffer.extend_from_slice(&chunk[..count]),
                }
            }
            Found::More | Found::Other => {
                read_text(&mut stream, &mut buffer).await;
                break;
            }
        }
    }
    rate.finish().into_iter().for_each(&mut take);
    let text = String::from_utf8_lossy(&buffer);
    let text = text.trim();
    if !text.is_empty() {
        take(Entry::Terminated { stderr: text.to_owned() });
    }
}

/// Reads the rest; keeps the beginning.
async fn read_text(stream: &mut (impl AsyncRead + Unpin), kept: &mut Vec<u8>) {
    let mut chunk = [0; 8192];
    while let Ok(count) = stream.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let room = TEXT_LIMIT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
    kept.truncate(TEXT_LIMIT);
}

impl From<Map<String, Value>> for Line {
    fn from(mut fields: Map<String, Value>) -> Self {
        let mut text = |key: &str| match fields.remove(key) {
            Some(Value::String(text)) => Some(text),
            Some(other) => Some(other.to_string()),
            None => None,
        };
        let (level, message, time) = (text("level"), text("msg"), text("time"));
        for value in fields.values_mut() {
            whole(value);
        }
        Self {
            level: level.map_or(Level::Info, |level| Level::from(level.as_str())),
            message: message.unwrap_or_default(),
            time,
            fields,
        }
    }
}

/// JSON from Go knows only floating numbers; those without a fraction were integers.
fn whole(value: &mut Value) {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    let Some(number) = value.as_f64().filter(|_| value.is_f64()) else { return };
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation)] // Whole and within 2^53, as just checked.
        let integer = number as i64;
        *value = integer.into();
    }
}

impl From<&str> for Level {
    fn from(name: &str) -> Self {
        match name {
            "trace" => Self::Trace,
            "debug" => Self::Debug,
            "warning" | "warn" => Self::Warn,
            "error" | "fatal" | "panic" => Self::Error,
            _ => Self::Info,
        }
    }
}

/// Lets so many lines a second through and counts the rest.
struct Rate {
    window: Instant,
    seen: u32,
    dropped: u64,
}

impl Rate {
    fn new() -> Self {
        Self { window: Instant::now(), seen: 0, dropped: 0 }
    }

    /// The line, and before it how many were dropped, if the time has come to say so.
    fn admit(&mut self, line: Line) -> Vec<Entry> {
        let mut entries = Vec::with_capacity(1);
        if self.window.elapsed() >= Duration::from_secs(1) {
            entries.extend(self.finish());
            (self.window, self.seen) = (Instant::now(), 0);
        }
        self.seen += 1;
        if self.seen <= RATE {
            entries.push(Entry::Line(line));
        } else {
            self.dropped += 1;
        }
        entries
    }

    fn finish(&mut self) -> Option<Entry> {
        let dropped = std::mem::take(&mut self.dropped);
        (dropped > 0).then_some(Entry::Dropped(dropped))
    }
}

/// Writes an entry to our log, under the VM's id.
pub(crate) fn log(vm: &str, entry: &Entry) {
    let line = match entry {
        Entry::Line(line) => line,
        Entry::Terminated { stderr } => {
            tracing::error!(vm, stderr, "gcs terminated");
            return;
        }
        Entry::Dropped(count) => {
            tracing::warn!(vm, count, "the guest logs too fast; lines were dropped");
            return;
        }
    };
    let fields = tracing::field::display(Value::Object(line.fields.clone()));
    let (time, message) = (line.time.as_deref().unwrap_or_default(), &line.message);
    match line.level {
        Level::Trace => tracing::trace!(vm, vm.time = time, %fields, "{message}"),
        Level::Debug => tracing::debug!(vm, vm.time = time, %fields, "{message}"),
        Level::Info => tracing::info!(vm, vm.time = time, %fields, "{message}"),
        Level::Warn => tracing::warn!(vm, vm.time = time, %fields, "{message}"),
        Level::Error => tracing::error!(vm, vm.time = time, %fields, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn entries(bytes: &[u8]) -> Vec<Entry> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut found = Vec::new();
        runtime.block_on(parse(bytes, |entry| found.push(entry)));
        found
    }

    fn only_line(text: &str) -> Line {
        match entries(text.as_bytes()).as_slice() {
            [Entry::Line(line)] => line.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_has_its_level_message_time_and_fields() {
        let line = only_line(
            r#"{"time":"2021-01-01T00:00:00Z","level":"warning","msg":"hot","pid":7.0,"x":0.5}"#,
        );
        assert_eq!((line.level, line.message.as_str()), (Level::Warn, "hot"));
        assert_eq!(line.time.as_deref(), Some("2021-01-01T00:00:00Z"));
        assert_eq!(Value::Object(line.fields), json!({"pid": 7, "x": 0.5}));
    }

    #[test]
    fn a_line_without_a_level_is_information() {
        assert_eq!(only_line(r#"{"msg":"hello"}"#).level, Level::Info);
    }

    #[test]
    fn a_guest_cannot_be_worse_than_an_error() {
        for level in ["fatal", "panic"] {
            assert_eq!(only_line(&format!(r#"{{"level":"{level}"}}"#)).level, Level::Error);
        }
    }

    #[test]
    fn a_stack_trace_after_the_log_is_reported_once_and_whole() {
        let found = entries(b"{\"msg\":\"a\"}\npanic: oh no\n\ngoroutine 1:\n{\"msg\":\"b\"}\n");
        assert_eq!(found.len(), 2);
        let stderr = "panic: oh no\n\ngoroutine 1:\n{\"msg\":\"b\"}".to_owned();
        assert_eq!(found[1], Entry::Terminated { stderr });
    }

    #[test]
    fn an_end_after_whole_lines_says_nothing_more() {
        assert_eq!(entries(b"{\"msg\":\"a\"}\n \n").len(), 1);
        assert!(entries(b"").is_empty());
    }

    #[test]
    fn a_line_cut_short_is_reported_as_text() {
        let found = entries(b"{\"msg\":\"a");
        assert_eq!(found, [Entry::Terminated { stderr: "{\"msg\":\"a".to_owned() }]);
    }

    #[test]
    fn an_endless_line_is_cut_off() {
        let endless = [b"{\"msg\":\"".as_slice(), &vec![b'x'; 4 * LINE_LIMIT]].concat();
        let found = entries(&endless);
        let [Entry::Terminated { stderr }] = found.as_slice() else { panic!("{}", found.len()) };
        assert!(stderr.len() <= TEXT_LIMIT);
    }

    #[test]
    fn a_flood_is_thinned_and_counted() {
        let flood = "{\"msg\":\"again\"}\n".repeat(RATE as usize * 3);
        let found = entries(flood.as_bytes());
        let lines = found.iter().filter(|entry| matches!(entry, Entry::Line(_))).count() as u64;
        let dropped: u64 = found
            .iter()
            .map(|entry| if let Entry::Dropped(count) = entry { *count } else { 0 })
            .sum();
        assert_eq!(lines + dropped, u64::from(RATE) * 3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let found = entries(&bytes);
            let ends = found.iter().filter(|e| matches!(e, Entry::Terminated { .. })).count();
            prop_assert!(ends <= 1);
        }

        #[test]
        fn however_the_bytes_are_cut_the_lines_are_the_same(count in 1usize..20, cut in 1usize..50) {
            let text: String = (0..count).map(|n| format!("{{\"msg\":\"{n}\"}}\n")).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let mut found = 0;
            runtime.block_on(async {
                let (mut near, far) = tokio::io::duplex(cut);
                let write = async {
                    use tokio::io::AsyncWriteExt;
                    near.write_all(text.as_bytes()).await.unwrap();
                    drop(near);
                };
                tokio::join!(write, parse(far, |_| found += 1));
            });
            prop_assert_eq!(found, count);
        }
    }
}
