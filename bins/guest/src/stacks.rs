//! Where everything in the VM stands: for the moment when nothing moves.
//!
//! The agent's threads and every other process, each with its state, what it waits for and its
//! kernel stack. The text is for people and bounded, for the host takes no more.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// More than this is cut.
const LIMIT: usize = 512 * 1024;

/// All stacks as text.
pub fn dump() -> String {
    let mut text = String::new();
    for pid in numbers(Path::new("/proc")) {
        let process = format!("/proc/{pid}");
        for thread in numbers(&Path::new(&process).join("task")) {
            describe(&mut text, pid, &Path::new(&process).join("task").join(thread.to_string()));
            if text.len() > LIMIT {
                text.push_str("... (cut)\n");
                return text;
            }
        }
    }
    text
}

fn describe(text: &mut String, pid: u32, thread: &Path) {
    let read = |file: &str| fs::read_to_string(thread.join(file)).unwrap_or_default();
    let status = read("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim)
    };
    let id = thread.file_name().unwrap_or_default().to_string_lossy();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "process {pid} thread {id} ({}) {} wchan {}",
        field("Name:"),
        field("State:"),
        read("wchan")
    );
    for line in read("stack").lines() {
        let _ = writeln!(text, "    {line}");
    }
}

fn numbers(directory: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_dump_names_this_process_and_its_state() {
        let text = super::dump();
        let ours = format!("process {} thread", std::process::id());
        assert!(text.contains(&ours), "{text}");
        assert!(text.contains("wchan"));
    }
}
