//! A detached sandbox under test.

use std::process::Output;

use crate::Place;
use crate::place::text;

/// A detached sandbox, removed by force however the test ends.
#[derive(Debug)]
pub struct Detached<'a> {
    place: &'a Place,
    /// Its name.
    pub name: String,
}

impl<'a> Detached<'a> {
    /// `coracle run --detach` with these options, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(place: &'a Place, options: &[&str]) -> Self {
        let output = place.output([&["run", "--detach", "--accel", "tcg"][..], options].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        Self { place, name: text(&output.stdout).trim().to_owned() }
    }

    /// Runs a command; `@` stands for the sandbox.
    pub fn output(&self, words: &[&str]) -> Output {
        let words = words.iter().map(|word| if *word == "@" { self.name.as_str() } else { word });
        self.place.output(words.collect::<Vec<_>>())
    }

    /// Runs a command that must succeed, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a shell command in the container, which must succeed.
    ///
    /// # Panics
    /// When it fails.
    pub fn sh(&self, command: &str) -> String {
        self.run(&["exec", "@", "--", "sh", "-c", command])
    }

    /// Runs a command that must fail, as ours; returns what it says.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn refused(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(output.status.code(), Some(125), "{words:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        // Gone already is what was wanted.
        self.place.output(["rm", "--force", &self.name]);
    }
}
