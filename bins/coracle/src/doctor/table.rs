//! The findings as text: a line each, and for what is not well why it matters
//! and what to do.

use std::fmt::Write as _;

use super::{Check, State, verdict};

/// All checks and, last, the verdict.
pub fn table(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<8}{:<11}{}", word(check.state), check.name, check.found);
        if check.state != State::Ok {
            let _ = writeln!(text, "{:<8}{:<11}why: {}", "", "", check.why);
        }
        if let Some(fix) = &check.fix {
            let _ = writeln!(text, "{:<8}{:<11}fix: {fix}", "", "");
        }
    }
    let _ = writeln!(text, "\n{}", sentence(verdict(checks)));
    text
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Warn => "warn",
        State::Unknown => "unknown",
        State::Fail => "FAIL",
    }
}

fn sentence(verdict: State) -> &'static str {
    match verdict {
        State::Ok => "all is well",
        State::Warn => "VMs will run; what is marked `warn` could be better",
        State::Unknown => "no verdict: what is marked `unknown` could not be found out",
        State::Fail => "no VM will start until what is marked `FAIL` is mended",
    }
}
