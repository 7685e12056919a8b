//! The README's tutorial works, line by line, as it is written.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use coracle_tests::Place;
use coracle_tests::place::text;

/// What comes before the block that is run.
const MARK: &str = "<!-- every line of this is run by a test -->\n```console\n";

/// A command and what it is to print; a line `...` stands for any.
struct Step<'a> {
    command: &'a str,
    expected: Vec<&'a str>,
}

fn steps(readme: &str) -> Vec<Step<'_>> {
    let (_, block) = readme.split_once(MARK).expect("the README has a tutorial");
    let (block, _) = block.split_once("\n```").unwrap();
    let mut steps: Vec<Step<'_>> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push(Step { command, expected: Vec::new() }),
            None => steps.last_mut().expect("output follows a command").expected.push(line),
        }
    }
    steps
}

#[test]
fn the_readmes_tutorial_works_line_by_line_as_written() {
    const END: &str = "-- end of step --";
    let place = Place::new();
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(home.join("README.md")).unwrap();
    let steps = steps(&readme);
    assert!(steps.len() > 10, "{} steps", steps.len());
    // One shell, so that what is exported stays; a moment between two, as people take.
    let mut script = String::new();
    for step in &steps {
        script.push_str(&format!("{}\necho '{END}'\nsleep 0.3\n", step.command));
    }
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&home)
        .env("CORACLE_ROOT", place.root())
        .env("CORACLE_NET", "none")
        .env("CORACLE_ACCEL", "tcg")
        .output()
        .unwrap();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    let outputs: Vec<&str> = said.split(&format!("{END}\n")).collect();
    assert_eq!(outputs.len(), steps.len() + 1, "{said}\n{complained}");
    for (step, output) in steps.iter().zip(outputs) {
        let lines: Vec<&str> = output.lines().collect();
        let matches = lines.len() == step.expected.len()
            && lines.iter().zip(&step.expected).all(|(l, e)| *e == "..." || l == e);
        assert!(matches, "$ {}\n{output}\n(not {:?})\n{complained}", step.command, step.expected);
    }
    place.assert_nothing_left();
}
