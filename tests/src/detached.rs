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
    /// Where its monitors are told to die, whoever starts them.
    points: Option<std::path::PathBuf>,
}

impl<'a> Detached<'a> {
    /// `coracle run --detach` with these options, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(place: &'a Place, options: &[&str]) -> Self {
        let output = place.output([&["run", "--detach", "--accel", "tcg"][..], options].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        Self { place, name: text(&output.stdout).trim().to_owned(), points: None }
    }

    /// One that somebody has started.
    pub fn named(place: &'a Place, name: &str) -> Self {
        Self { place, name: name.to_owned(), points: None }
    }

    /// The same, whose monitors die at the point whose number is written into this file.
    ///
    /// # Panics
    /// When it does not start.
    pub fn mortal(place: &'a Place, options: &[&str], points: &std::path::Path) -> Self {
        let words = [&["run", "--detach", "--accel", "tcg"][..], options].concat();
        let output = place.coracle(words).env("CORACLE_TEST_POINTS", points).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let points = Some(points.to_owned());
        Self { place, name: text(&output.stdout).trim().to_owned(), points }
    }

    /// What `inspect` says.
    ///
    /// # Panics
    /// When it fails.
    pub fn view(&self) -> serde_json::Value {
        serde_json::from_str(&self.run(&["inspect", "--format", "json", "@"])).unwrap()
    }

    /// The sandbox's directory for sockets and the like.
    pub fn run_dir(&self) -> std::path::PathBuf {
        self.place.root().join("run").join(&self.name)
    }

    /// The monitor that is there now, as the list has it: nobody is asked, so none is woken.
    pub fn monitor(&self) -> Option<u32> {
        self.listed()["monitor"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    /// The process of its VM.
    pub fn vm(&self) -> Option<u32> {
        self.listed()["vm"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
    }

    /// The sandbox as the list has it.
    ///
    /// # Panics
    /// When it is not listed.
    pub fn listed(&self) -> serde_json::Value {
        let list: Vec<serde_json::Value> =
            serde_json::from_str(&self.run(&["ls", "--format", "json"])).unwrap();
        list.into_iter().find(|view| view["name"] == self.name.as_str()).unwrap()
    }

    /// The keeper of its channel.
    pub fn keeper(&self) -> Option<u32> {
        self.place.keeper(&self.name)
    }

    /// Kills the monitor, if there is one.
    pub fn kill_monitor(&self) {
        kill(self.monitor());
    }

    /// Kills monitor and keeper until there is none: each starts the other when it has time to.
    pub fn kill_runtime(&self) {
        self.kill_all(|line| line.contains(" keeper ") || line.contains(" monitor "));
    }

    /// The same with the VM and everything that serves it.
    pub fn kill_everything(&self) {
        self.kill_all(|_| true);
    }

    fn kill_all(&self, is_meant: impl Fn(&str) -> bool) {
        let mut quiet = 0;
        while quiet < 3 {
            let all = crate::host::processes(self.place.root(), self.place.mark());
            let (word, folder) = (format!(" {} ", self.name), format!("/{}/", self.name));
            let of_it = |line: &str| line.contains(&word) || line.contains(&folder);
            let meant: Vec<_> =
                all.iter().filter(|(_, line)| of_it(line) && is_meant(line)).collect();
            quiet = if meant.is_empty() { quiet + 1 } else { 0 };
            for (pid, _) in meant {
                kill(Some(*pid));
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Runs a command; `@` stands for the sandbox, `@/NAME` for a further container in it.
    pub fn output(&self, words: &[&str]) -> Output {
        let whole = |word: &&str| match word.strip_prefix('@') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                format!("{}{rest}", self.name)
            }
            Some(_) | None => (*word).to_owned(),
        };
        let words = words.iter().map(whole);
        let mut command = self.place.coracle(words.collect::<Vec<_>>());
        command.envs(self.points.iter().map(|points| ("CORACLE_TEST_POINTS", points)));
        command.output().expect("the command under test starts")
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

/// SIGKILL for a process of ours, and its end.
pub fn kill(pid: Option<u32>) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may just have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while is_alive(pid) && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

/// Whether it is there and no zombie.
fn is_alive(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    let state = stat.ok().and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned()));
    state.is_some_and(|rest| !rest.starts_with(['Z', 'X']))
}

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        // Gone already is what was wanted.
        self.place.output(["rm", "--force", &self.name]);
    }
}
