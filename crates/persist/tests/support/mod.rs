//! The files the real Kata driver wrote.
#![allow(dead_code, unreachable_pub)]

pub mod conformance;
pub mod place;
pub mod states;

use std::fs;
use std::path::{Path, PathBuf};

/// The sets of sandboxes, by name; each has one sandbox.
pub const SETS: [&str; 4] = ["minimal", "empty", "realistic", "endpoints"];

pub fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/persist")
}

pub fn sandbox_dir(set: &str) -> PathBuf {
    golden().join(set).join(format!("sb-{set}"))
}

pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Ids of the containers of a golden sandbox, sorted.
pub fn containers(set: &str) -> Vec<String> {
    let mut ids: Vec<String> = fs::read_dir(sandbox_dir(set))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    ids.sort();
    ids
}
