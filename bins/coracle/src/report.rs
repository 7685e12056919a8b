//! How a failure is told: one sentence, its causes, and what to do next.

use std::fmt::Write as _;

use coracle_engine::client::ClientError;
use coracle_persist::driver::DriverError;

use crate::cli::Format;

/// Our own failure, as opposed to the workload's.
pub const EXIT_FAILURE: u8 = 125;

/// Writes `error` to stderr in the chosen form.
pub fn print_error(error: &anyhow::Error, format: Format) {
    let text = match format {
        Format::Text => as_text(error),
        Format::Json => as_json(error),
    };
    eprint!("{text}");
}

fn as_text(error: &anyhow::Error) -> String {
    let (code, help) = explanation(error);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "error");
    if let Some(code) = code {
        let _ = write!(text, "[{code}]");
    }
    let mut chain = chain(error);
    if let Some(first) = chain.next() {
        let _ = writeln!(text, ": {first}");
    }
    for cause in chain {
        let _ = writeln!(text, "  caused by: {cause}");
    }
    if let Some(help) = help {
        let _ = writeln!(text, "help: {help}");
    }
    text
}

fn as_json(error: &anyhow::Error) -> String {
    let (code, help) = explanation(error);
    let mut chain = chain(error).map(ToString::to_string);
    let message = chain.next();
    let causes: Vec<String> = chain.collect();
    let value = serde_json::json!({
        "error": { "code": code, "message": message, "causes": causes, "help": help }
    });
    format!("{value}\n")
}

/// The error and its causes, without attached advice, which is no cause.
fn chain(error: &anyhow::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    error.chain().skip(usize::from(error.downcast_ref::<Advice>().is_some()))
}

/// The stable code and the advice of the first error in the chain that has them.
fn explanation(error: &anyhow::Error) -> (Option<String>, Option<String>) {
    if let Some(error) = error.chain().find_map(|e| e.downcast_ref::<ClientError>()) {
        return (Some(error.code().to_owned()), error.help());
    }
    let (code, help) = own_explanation(error);
    (code.map(str::to_owned), help)
}

fn own_explanation(error: &anyhow::Error) -> (Option<&'static str>, Option<String>) {
    match error.chain().find_map(|e| e.downcast_ref::<coracle_engine::Error>()) {
        Some(error) => (Some(error.code()), error.help()),
        None => match error.chain().find_map(|e| e.downcast_ref::<DriverError>()) {
            Some(error) => (Some(error.code()), error.help().map(str::to_owned)),
            None => (None, advice(error)),
        },
    }
}

fn advice(error: &anyhow::Error) -> Option<String> {
    error.downcast_ref::<Advice>().map(|advice| advice.0.clone())
}

/// Advice attached as context to an error that has no code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Advice(pub String);
