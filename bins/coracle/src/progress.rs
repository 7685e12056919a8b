//! Long work shown on a terminal, and not at all elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that appears when the work takes longer than a moment.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar on stderr; hidden unless that is a terminal.
    pub fn new() -> Bar {
        if !std::io::stderr().is_terminal() {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::no_length();
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {bytes}/{total_bytes} {bar:30} {eta}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }

    /// What the engine calls as it gets on.
    pub fn callback(&self) -> coracle_engine::OnProgress {
        let bar = self.0.clone();
        Box::new(move |step| {
            bar.set_message(step.phase.to_owned());
            if let Some(total) = step.total {
                bar.set_length(total);
            }
            bar.set_position(step.done);
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
