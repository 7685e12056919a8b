//! Log lines as JSON objects, the shape the host's log forwarder reads.
//!
//! One object a line: `level`, `msg`, `time`, and the fields of the event. Lines wait in a bounded
//! queue until there is a connection to the log port: a VM logs its boot before it has a channel,
//! and a host that does not listen must not stop the agent. What does not fit is counted and said.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_bridge::boot::LogLevel;
use coracle_bridge::channel::GuestChannel;
use coracle_bridge::port;
use serde_json::{Map, Value};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that may wait; about 256 KiB.
const CAPACITY: usize = 1024;

/// How long the last lines may take.
const SETTLE: Duration = Duration::from_millis(500);

/// Between two attempts to reach the log port.
const PAUSE: Duration = Duration::from_secs(1);

/// The lines nobody has taken yet. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Log {
    queue: Arc<Mutex<Queue>>,
    added: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<String>,
    dropped: u64,
    /// A line was taken and may not have been sent yet.
    sending: bool,
    keep: bool,
    console: Option<File>,
}

impl Log {
    /// A log that keeps its lines until it is known whether anybody wants them.
    pub fn new() -> Self {
        let log = Self::default();
        log.lock().keep = true;
        log
    }

    /// Makes this the log of the whole process, down to `level`.
    pub fn install(&self, level: LogLevel) {
        let level = match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warning => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        };
        // Fails when there is one already, which then stays.
        drop(
            tracing_subscriber::registry().with(Lines(self.clone()).with_filter(level)).try_init(),
        );
    }

    /// Also writes every line to the console, those that wait first.
    pub fn copy_to_console(&self) {
        let console = File::options().write(true).open("/dev/console");
        let mut queue = self.lock();
        queue.console = console.ok();
        let lines: Vec<String> = queue.lines.iter().cloned().collect();
        for line in lines {
            queue.write_to_console(&line);
        }
    }

    /// Nobody will take the lines.
    pub fn discard(&self) {
        let mut queue = self.lock();
        queue.keep = false;
        queue.lines.clear();
    }

    /// Adds one line without its newline, dropping the oldest when there are too many.
    pub fn add(&self, line: String) {
        let mut queue = self.lock();
        queue.write_to_console(&line);
        if !queue.keep {
            return;
        }
        if queue.lines.len() >= CAPACITY {
            queue.lines.pop_front();
            queue.dropped += 1;
        }
        queue.lines.push_back(line);
        drop(queue);
        self.added.notify_one();
    }

    /// Sends the lines to the host's log port, and anew whenever the connection is lost. Never
    /// returns.
    pub async fn forward(self, channel: GuestChannel) {
        loop {
            if let Ok(mut stream) = channel.dial(port::LOG).await {
                // Why it was lost cannot be logged anywhere.
                drop(self.send_all(&mut stream).await);
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits until all lines are on their way to the host, or until it is clear that it does not
    /// take them.
    pub async fn settle(&self) {
        let settled = async {
            while {
                let queue = self.lock();
                queue.sending || !queue.lines.is_empty()
            } {
                sleep(Duration::from_millis(2)).await;
            }
        };
        drop(timeout(SETTLE, settled).await);
    }

    async fn send_all(&self, stream: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        loop {
            while let Some(line) = self.next() {
                if let Err(error) = stream.write_all(line.as_bytes()).await {
                    self.lock().lines.push_front(line.trim_end().to_owned());
                    return Err(error);
                }
            }
            stream.flush().await?;
            self.lock().sending = false;
            self.added.notified().await;
        }
    }

    fn next(&self) -> Option<String> {
        let mut queue = self.lock();
        queue.sending |= queue.dropped > 0 || !queue.lines.is_empty();
        if queue.dropped > 0 {
            let count = std::mem::take(&mut queue.dropped);
            let text = format!("{count} log lines were lost");
            return Some(render("warning", &text, Map::new()) + "\n");
        }
        Some(queue.lines.pop_front()? + "\n")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn write_to_console(&mut self, line: &str) {
        if let Some(console) = &mut self.console {
            // There is no third place to complain at.
            drop(writeln!(console, "{line}"));
        }
    }
}

/// Turns events into lines.
struct Lines(Log);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        self.0.add(render(level, &fields.message, fields.others));
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.set(field, text.into());
    }
}

/// One line of a program that is not the agent.
pub fn line_of_program(stream: &str, text: &str) -> String {
    let mut fields = Map::new();
    fields.insert("stream".to_owned(), stream.into());
    render("info", text, fields)
}

fn render(level: &str, message: &str, mut fields: Map<String, Value>) -> String {
    fields.insert("level".to_owned(), level.into());
    fields.insert("msg".to_owned(), message.into());
    fields.insert("time".to_owned(), timestamp(SystemTime::now()).into());
    Value::Object(fields).to_string()
}

/// RFC 3339 in UTC with microseconds.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Days since 1970 as year, month and day. Years begin in March here, so that the leap day is the
/// last, and repeat after 400 years of 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::new(seconds, 1_000));
        assert_eq!(at(0), "1970-01-01T00:00:00.000001Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000001Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000001Z");
        assert_eq!(at(1_795_478_400), "2026-11-24T00:00:00.000001Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00.000001Z");
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_says_how_many() {
        let log = Log::new();
        for number in 0..CAPACITY + 3 {
            log.add(number.to_string());
        }
        assert!(log.next().unwrap().contains("3 log lines were lost"));
        assert_eq!(log.next().unwrap(), "3\n");
    }

    #[tokio::test]
    async fn settling_waits_for_the_line_that_is_being_sent() {
        let log = Log::new();
        log.add("last words".to_owned());
        let (mut ours, mut host) = tokio::io::duplex(64);
        let sender = log.clone();
        let task = tokio::spawn(async move { sender.send_all(&mut ours).await });
        log.settle().await;
        let mut line = [0; 11];
        tokio::io::AsyncReadExt::read_exact(&mut host, &mut line).await.unwrap();
        assert_eq!(&line, b"last words\n");
        task.abort();
    }

    #[test]
    fn an_event_becomes_an_object_with_its_fields_and_causes() {
        let log = Log::new();
        let subscriber = tracing_subscriber::registry().with(Lines(log.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let error = std::io::Error::other("deep");
            tracing::warn!(number = 7, error = &error as &dyn std::error::Error, "said");
        });
        let line: Value = serde_json::from_str(&log.next().unwrap()).unwrap();
        assert_eq!(line["level"], "warning");
        assert_eq!(line["msg"], "said");
        assert_eq!(line["number"], 7);
        assert_eq!(line["error"], "deep");
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }
}
