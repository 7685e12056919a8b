//! The house stands as it was drawn: which crate may know which, and what every crate
//! and every file owes the reader.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Who may know whom, as drawn in ARCHITECTURE.md. `coracle-tests` and `coracle-benches`
/// look at everything and nobody looks at them.
const ARROWS: [(&str, &[&str]); 11] = [
    ("coracle", &["coracle-engine", "coracle-persist", "coracle-vmm", "coracle-guest-image"]),
    ("coracle-guest", &["coracle-bridge"]),
    ("coracle-engine", &["coracle-uvm", "coracle-net", "coracle-image", "coracle-persist"]),
    ("coracle-net", &[]),
    ("coracle-uvm", &["coracle-vmm", "coracle-bridge", "coracle-plan9"]),
    ("coracle-plan9", &[]),
    ("coracle-guest-image", &["coracle-image"]),
    ("coracle-bridge", &[]),
    ("coracle-image", &[]),
    ("coracle-persist", &[]),
    ("coracle-vmm", &[]),
];

/// Packages that may know everyone.
const ONLOOKERS: [&str; 2] = ["coracle-tests", "coracle-benches"];

/// A file longer than this holds more than one idea.
const LONGEST_FILE: usize = 700;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository")
}

/// The packages of the workspace, as cargo sees them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(repository())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    metadata["packages"].as_array().expect("a list of packages").clone()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().expect("a package has a name")
}

/// The names a package depends on, of every kind: a test may turn an arrow no more than code.
fn dependencies(package: &Value) -> BTreeSet<&str> {
    package["dependencies"].as_array().expect("a list").iter().map(name).collect()
}

/// All Rust files of the repository.
fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for folder in ["crates", "bins", "guest-image", "tests", "benches", "fuzz"] {
        collect(&repository().join(folder), &mut files);
    }
    assert!(!files.is_empty(), "no sources in {}", repository().display());
    files
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn no_arrow_between_crates_turns() {
    let packages = packages();
    let names: BTreeSet<&str> = packages.iter().map(name).collect();
    for package in packages.iter().filter(|package| !ONLOOKERS.contains(&name(package))) {
        let allowed = ARROWS.iter().find(|(from, _)| *from == name(package));
        let (from, allowed) = allowed.unwrap_or_else(|| {
            panic!("{} has no place in the house: draw its arrows first", name(package))
        });
        for to in dependencies(package).intersection(&names) {
            assert!(allowed.contains(to), "{from} must not know {to}");
        }
    }
}

#[test]
fn every_crate_has_the_lints_of_the_workspace() {
    let lints = fs::read_to_string(repository().join("Cargo.toml")).expect("the workspace's file");
    assert!(lints.contains("missing_docs = \"warn\""), "the workspace asks for documentation");
    for package in packages() {
        let path = package["manifest_path"].as_str().expect("a path");
        let text = fs::read_to_string(path).expect("a manifest");
        assert!(text.contains("[lints]\nworkspace = true"), "{path} has not the common lints");
    }
}

#[test]
fn only_binaries_use_anyhow() {
    for package in packages() {
        let path = package["manifest_path"].as_str().expect("a path");
        let library = ["/crates/", "/guest-image/"].iter().any(|folder| path.contains(folder));
        assert!(
            !(library && dependencies(&package).contains("anyhow")),
            "{} has error types of its own and needs no anyhow",
            name(&package)
        );
    }
}

#[test]
fn no_file_is_too_long_to_hold_one_idea() {
    let long: Vec<String> = sources()
        .into_iter()
        .map(|path| (fs::read_to_string(&path).expect("a source").lines().count(), path))
        .filter(|(lines, _)| *lines > LONGEST_FILE)
        .map(|(lines, path)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Whether a file is code that ships, and neither a test nor a fuzz target.
fn ships(path: &Path) -> bool {
    let inside = path.strip_prefix(repository()).unwrap_or(path);
    let mut parts = inside.components().filter_map(|part| part.as_os_str().to_str());
    !parts.any(|part| matches!(part, "tests" | "tests.rs" | "fuzz" | "benches"))
}

#[test]
fn every_file_begins_by_saying_why_it_is_there() {
    let silent: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|path| ships(path))
        .filter(|path| !fs::read_to_string(path).expect("a source").starts_with("//!"))
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn unsafe_code_stands_in_files_of_its_own() {
    let stray: Vec<PathBuf> = sources()
        .into_iter()
        .filter(|path| ships(path) && !path.ends_with("sys.rs"))
        .filter(|path| {
            let text = fs::read_to_string(path).expect("a source");
            let code = text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
            code.into_iter().any(|line| line.contains("unsafe {") || line.contains("unsafe fn "))
        })
        .collect();
    assert!(stray.is_empty(), "system calls belong in sys.rs: {stray:#?}");
}
