//! The table of the seeds' items tells the truth about its proofs.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every function of a crate, or of the tests of the whole, that is marked as a test.
fn tests(crate_name: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    let whole = Path::new(env!("CARGO_MANIFEST_DIR"));
    let of_crate = sources(&whole.join("../crates").join(crate_name));
    for file in of_crate.into_iter().chain(sources(&whole.join("tests"))) {
        let text = fs::read_to_string(file).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            let name = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
            if let Some(name) = name.filter(|_| marked) {
                found.insert(name.split('(').next().unwrap().to_owned());
                marked = false;
            }
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.extension() {
            _ if path.is_dir() => sources(&path),
            Some(extension) if extension == "rs" => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

/// Checks the rows of one seed; returns how many items there are and how many are missing.
fn check(rows: &str, crate_name: &str) -> (usize, usize) {
    let tests = tests(crate_name);
    let (mut items, mut missing) = (0, 0);
    for line in rows.lines().filter(|line| line.starts_with("| `")) {
        let [_, item, place, proof, _] = line.split('|').collect::<Vec<_>>().try_into().unwrap();
        items += 1;
        if proof.trim().starts_with("missing") {
            missing += 1;
            continue;
        }
        assert!(!place.trim().is_empty(), "{item} is nowhere");
        for name in proof.split(',').map(|name| name.trim().trim_matches('`')) {
            assert!(tests.contains(name), "{item}: there is no test {name}");
        }
    }
    (items, missing)
}

#[test]
fn every_proof_in_the_table_of_the_seeds_is_a_test() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/seed-api.md");
    let table = fs::read_to_string(table).unwrap();
    let (uvm, persist) = table.split_once("## Kata").unwrap();
    let (items, missing) = check(uvm, "uvm");
    assert!(items > 100, "the first table has {items} rows");
    assert_eq!(missing, 0, "every item of the seed has its proof");
    // A constant, 36 types and 213 members, 8 of them methods.
    assert_eq!(check(persist, "persist"), (1 + 36 + 213, 0));
}
