//! Samples, their medians, and a table of ratios against budgets.

use std::time::Duration;

/// Durations of one thing, in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one measurement.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1000.0);
    }

    /// The middle one, in milliseconds; zero without samples.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The value below which the share `q` of the samples lies, in milliseconds.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let at = ((sorted.len().saturating_sub(1)) as f64 * q).round() as usize;
        sorted.get(at).copied().unwrap_or_default()
    }
}

/// The middle one of some values, which are sorted by it; zero if there are none.
pub fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Whether a budget is a ceiling or a floor.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    /// The value may be this at most.
    AtMost(f64),
    /// The value must be this at least.
    AtLeast(f64),
    /// No budget: the value is only told.
    None,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// The value: a ratio or an amount.
    pub value: f64,
    /// The unit of the value, `x` for a ratio.
    pub unit: &'static str,
    /// What it must hold.
    pub budget: Budget,
    /// The figures behind it.
    pub detail: String,
}

impl Row {
    /// Does the value hold its budget?
    pub fn holds(&self) -> bool {
        match self.budget {
            Budget::AtMost(most) => self.value <= most,
            Budget::AtLeast(least) => self.value >= least,
            Budget::None => true,
        }
    }

    /// The line, as people read it.
    pub fn line(&self) -> String {
        let (budget, verdict) = match self.budget {
            Budget::AtMost(most) => (format!("<= {most}"), self.holds()),
            Budget::AtLeast(least) => (format!(">= {least}"), self.holds()),
            Budget::None => (String::new(), true),
        };
        let verdict = match self.budget {
            Budget::None => "",
            _ if verdict => "ok",
            _ => "OVER",
        };
        let value = format!("{:.2} {}", self.value, self.unit);
        format!("{:<46} {value:>11}  {budget:>8}  {verdict:<4}  {}", self.what, self.detail)
    }
}
