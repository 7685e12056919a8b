//! The fuzz targets' functions on the committed corpus, on Kata's own files, and on damaged copies.
#![allow(clippy::unwrap_used)]

#[path = "../../../fuzz/src/persist.rs"]
mod fuzz;
mod support;

use proptest::prelude::*;
use std::fs;
use std::path::Path;
use support::{SETS, containers, golden, read, sandbox_dir};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(read).collect()
}

/// What Kata's driver wrote, and what its reader was given.
fn katas() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for set in SETS {
        files.push(read(sandbox_dir(set).join("persist.json")));
        let containers = containers(set).into_iter();
        files.extend(containers.map(|id| read(sandbox_dir(set).join(id).join("persist.json"))));
    }
    let cases = fs::read_dir(golden().join("read-matrix/in")).unwrap();
    files.extend(cases.map(|case| read(case.unwrap().path())));
    files
}

#[test]
fn the_reader_holds_for_the_corpus_and_for_all_that_katas_reader_was_given() {
    let inputs = [corpus("persist_reader"), katas()].concat();
    assert!(inputs.len() > 200, "only {} inputs", inputs.len());
    inputs.iter().for_each(|input| fuzz::persist_reader(input));
}

#[test]
fn the_log_holds_for_the_corpus() {
    let inputs = corpus("persist_log");
    assert!(inputs.len() > 100, "only {} inputs", inputs.len());
    inputs.iter().for_each(|input| fuzz::persist_log(input));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_reader_holds_for_files_with_bytes_that_are_not_theirs(
        file in 0usize..8, at in any::<prop::sample::Index>(), new in any::<[u8; 3]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = katas().swap_remove(file);
        let place = at.index(bytes.len().max(4) - 3);
        if bytes.len() > 3 {
            bytes[place..place + 3].copy_from_slice(&new);
        }
        fuzz::persist_reader(&bytes);
        fuzz::persist_reader(&bytes[..cut.index(bytes.len() + 1)]);
    }

    #[test]
    fn the_log_holds_for_any_commits_and_any_damage(
        script in proptest::collection::vec(any::<u8>(), 0..120)
    ) {
        fuzz::persist_log(&[&[1][..], &script].concat());
    }

    #[test]
    fn any_text_in_any_member_comes_back(text in "\\PC*|[\\x00-\\x7f\u{2028}\u{fffd}<>&]*") {
        use coracle_persist::codec::{Tolerance, decode_sandbox, encode_sandbox};
        use coracle_persist::model::SandboxState;
        let paths = Some([(text.clone(), text.clone())].into());
        let state = SandboxState { cgroup_path: text, cgroup_paths: paths, ..Default::default() };
        let written = encode_sandbox(&state).unwrap();
        prop_assert_eq!(decode_sandbox(&written, Tolerance::Strict).unwrap(), state);
    }
}
