//! Signals to this process, as values.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// One signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }

    /// Does it ask a program to end?
    pub fn ends_a_program(self) -> bool {
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()]
            .into_iter()
            .any(|kind| kind.as_raw_value() == self.0)
    }

    /// Did the terminal change its size?
    pub fn is_resize(self) -> bool {
        self.0 == SignalKind::window_change().as_raw_value()
    }

    /// The exit code of a program that died of it.
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }
}

/// Reads a signal's name (with or without `SIG`) or number.
pub fn parse(text: &str) -> Result<i32, String> {
    const NAMES: [(&str, i32); 20] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("TRAP", 5),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("WINCH", 28),
    ];
    if let Ok(number) = text.parse() {
        return match number {
            1..=64 => Ok(number),
            _ => Err(format!("signals are numbered from 1 to 64, not {number}")),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number).ok_or_else(|| format!("there is no signal named {text}"))
}

/// The signals this process passes on.
#[derive(Debug)]
pub struct Signals(Vec<(i32, Stream)>);

impl Signals {
    /// Begins to listen; from now on none of them ends this process.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub fn listen() -> io::Result<Signals> {
        [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
            SignalKind::alarm(),
            SignalKind::window_change(),
        ]
        .into_iter()
        .map(|kind| Ok((kind.as_raw_value(), signal(kind)?)))
        .collect::<io::Result<_>>()
        .map(Signals)
    }

    /// The next signal. Cancel safe: a signal not returned stays noted.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(Signal(*number));
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// How often the user asked for an end: whoever asks three times in ten seconds means it.
#[derive(Debug, Default)]
pub struct Urgency(Vec<Instant>);

impl Urgency {
    /// Counts `signal`; true if the patience is over.
    pub fn is_over(&mut self, signal: Signal) -> bool {
        if !signal.ends_a_program() {
            return false;
        }
        let now = Instant::now();
        self.0.retain(|at| now.duration_since(*at) < Duration::from_secs(10));
        self.0.push(now);
        self.0.len() >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_request_to_end_is_the_last() {
        let mut urgency = Urgency::default();
        let interrupt = Signal(SignalKind::interrupt().as_raw_value());
        let other = Signal(SignalKind::user_defined1().as_raw_value());
        let answers = [interrupt, other, interrupt, other, interrupt].map(|s| urgency.is_over(s));
        assert_eq!(answers, [false, false, false, false, true]);
    }

    #[test]
    fn exit_codes_follow_the_shell() {
        assert_eq!(Signal(2).exit_code(), 130);
        assert_eq!(Signal(15).exit_code(), 143);
    }
}
