//! The table of the seed's items tells the truth about its proofs.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every function of this crate that is marked as a test.
fn tests() -> HashSet<String> {
    let mut found = HashSet::new();
    for file in sources(Path::new(env!("CARGO_MANIFEST_DIR"))) {
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

#[test]
fn every_proof_in_the_table_of_the_seed_is_a_test() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/seed-api.md");
    let table = fs::read_to_string(table).unwrap();
    let (uvm, _) = table.split_once("## Kata").unwrap();
    let tests = tests();
    let mut rows = 0;
    for line in uvm.lines().filter(|line| line.starts_with("| `")) {
        let [_, item, place, proof, _] = line.split('|').collect::<Vec<_>>().try_into().unwrap();
        rows += 1;
        if proof.trim().starts_with("missing") {
            continue;
        }
        assert!(!place.trim().is_empty(), "{item} is nowhere");
        for name in proof.split(',').map(|name| name.trim().trim_matches('`')) {
            assert!(tests.contains(name), "{item}: there is no test {name}");
        }
    }
    assert!(rows > 100, "the table has {rows} rows");
}
