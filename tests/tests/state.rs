//! `coracle state`, as people and scripts call it, on files that the real Kata driver wrote.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use coracle_tests::Place;
use coracle_tests::place::text;
use serde_json::Value;

const SETS: [&str; 4] = ["minimal", "empty", "realistic", "endpoints"];

fn golden(set: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/persist").join(set)
}

fn sandbox(set: &str) -> PathBuf {
    golden(set).join(format!("sb-{set}"))
}

/// Runs `coracle state` with these words.
fn state(place: &Place, words: &[&dyn AsRef<Path>]) -> Output {
    let words = words.iter().map(|word| word.as_ref().as_os_str().to_owned());
    place.output([std::ffi::OsString::from("state")].into_iter().chain(words))
}

/// As above; it must succeed.
fn done(place: &Place, words: &[&dyn AsRef<Path>]) -> String {
    let output = state(place, words);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Every `persist.json` beneath a directory, by its path in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.file_name().is_some_and(|name| name == "persist.json") {
                let name = path.strip_prefix(dir).expect("beneath it").to_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[test]
fn a_copy_has_katas_files_to_the_byte_and_reads_as_the_original() {
    let place = Place::new();
    let root = place.root().join("copied");
    for set in SETS {
        let printed = done(&place, &[&"copy", &sandbox(set), &"--to", &root]);
        let copy = root.join(format!("sbs/sb-{set}"));
        assert_eq!(printed.trim_end(), copy.display().to_string());
        let original = files(&sandbox(set));
        assert!(original.contains_key(Path::new("persist.json")));
        assert_eq!(files(&copy), original, "{set}");
        let canonical = fs::read_to_string(golden(set).join("canonical.json")).expect("a file");
        for dir in [&sandbox(set), &copy] {
            assert_eq!(done(&place, &[&"read", dir, &"--format", &"json"]), canonical, "{set}");
        }
    }
    let listed = lines(&done(&place, &[&"ls", &root, &"--format", &"json"]));
    let ids: Vec<&str> = listed.iter().filter_map(|row| row["id"].as_str()).collect();
    assert_eq!(ids, ["sb-empty", "sb-endpoints", "sb-minimal", "sb-realistic"]);
    assert!(listed.iter().all(|row| row["generation"] == 1), "{listed:?}");
}

#[test]
fn check_judges_every_case_of_the_read_matrix_and_exits_with_one() {
    let place = Place::new();
    let mut cases: Vec<PathBuf> = fs::read_dir(golden("read-matrix/in"))
        .expect("cases")
        .map(|entry| entry.expect("a case").path())
        .collect();
    cases.sort();
    let mut words: Vec<&dyn AsRef<Path>> = vec![&"check", &"--format", &"json"];
    words.extend(cases.iter().map(|case| case as &dyn AsRef<Path>));
    let output = state(&place, &words);
    assert_eq!(output.status.code(), Some(1));
    let verdicts = lines(&text(&output.stdout));
    assert_eq!(verdicts.len(), cases.len());
    let count = |word: &str| verdicts.iter().filter(|said| said["verdict"] == word).count();
    assert_eq!(count("ok") + count("damaged") + count("refused"), cases.len());
    let empty = &verdicts[0];
    assert_eq!((&empty["verdict"], &empty["why"]), (&"damaged".into(), &"it is empty".into()));
    // Those that are whole alone.
    let whole = sandbox("realistic").join("persist.json");
    let container = sandbox("realistic").join("sb-realistic/persist.json");
    let said = done(&place, &[&"check", &whole, &container]);
    assert!(said.contains("ok (sandbox)") && said.contains("ok (container)"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_no_verdict() {
    let place = Place::new();
    let whole = sandbox("minimal").join("persist.json");
    let output = state(&place, &[&"check", &"/nonexistent", &whole]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stdout).contains("ok (sandbox)"), "the other is judged all the same");
    assert!(text(&output.stderr).contains("cannot read /nonexistent"));
    let output = state(&place, &[&"verify", &"/nonexistent"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("there is no root /nonexistent"));
}

#[test]
fn verify_tells_intact_from_edited_from_damaged() {
    let place = Place::new();
    let root = place.root().join("copied");
    for set in SETS {
        done(&place, &[&"copy", &sandbox(set), &"--to", &root]);
    }
    let said = done(&place, &[&"verify", &root]);
    assert_eq!(said.lines().filter(|line| line.ends_with(": intact")).count(), SETS.len());

    let edited = root.join("sbs/sb-empty/persist.json");
    fs::write(&edited, "{}").expect("a file");
    fs::create_dir(root.join("sbs/sb-empty/left")).expect("a directory");
    let output = state(&place, &[&"verify", &root]);
    assert_eq!(output.status.code(), Some(2), "nothing is lost");
    let said = text(&output.stdout);
    assert!(said.contains("sb-empty/persist.json: foreign edit"), "{said}");
    assert!(said.contains("sb-empty/left: leftover"), "{said}");

    let log = root.join("sbs/sb-minimal/state.log");
    let mut bytes = fs::read(&log).expect("a log");
    bytes[60] ^= 1;
    fs::write(&log, bytes).expect("a log");
    let output = state(&place, &[&"verify", &root, &"--format", &"json"]);
    assert_eq!(output.status.code(), Some(1));
    let found = lines(&text(&output.stdout));
    let minimal = found.iter().find(|said| said["id"] == "sb-minimal").expect("a line for it");
    assert_eq!(minimal["findings"][0]["verdict"], "damaged");

    let dir = root.join("sbs/sb-minimal");
    let output = state(&place, &[&"read", &dir, &"--format", &"json"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stdout.is_empty());
    let error: Value = serde_json::from_slice(&output.stderr).expect("an error as JSON");
    assert_eq!(error["error"]["code"], "E-STATE-DAMAGED");
    // Kata's files beside it are whole.
    let salvaged = state(&place, &[&"read", &"--salvage", &dir, &"--format", &"json"]);
    assert_eq!(salvaged.status.code(), Some(1), "something is lost");
    assert!(text(&salvaged.stderr).contains("lost: "));
    let canonical = fs::read(golden("minimal").join("canonical.json")).expect("a file");
    assert_eq!(salvaged.stdout, canonical);
}

#[test]
fn what_follows_a_state_is_an_error_unless_it_is_to_be_accepted() {
    let place = Place::new();
    let dir = place.root().join("sb-minimal");
    fs::create_dir(&dir).expect("a directory");
    let mut bytes = fs::read(sandbox("minimal").join("persist.json")).expect("a file");
    bytes.extend([0; 16]);
    fs::write(dir.join("persist.json"), &bytes).expect("a file");
    let output = state(&place, &[&"read", &dir]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("`--accept-trailing`"), "{}", text(&output.stderr));
    let said = done(&place, &[&"read", &dir, &"--accept-trailing"]);
    assert!(said.contains("sandbox     sb-minimal"), "{said}");
    let root = place.root().join("copied");
    assert_eq!(state(&place, &[&"copy", &dir, &"--to", &root]).status.code(), Some(125));
    assert!(!root.exists(), "nothing is left of a copy that was refused");
}

#[test]
fn states_go_to_katas_root_and_back() {
    let place = Place::new();
    let (kata, ours) = (place.root().join("kata"), place.root().join("ours"));
    for set in SETS {
        done(&place, &[&"copy", &sandbox(set), &"--to", &ours]);
    }
    let printed = done(&place, &[&"export", &"--from", &ours, &"--to", &kata]);
    assert_eq!(printed.lines().count(), SETS.len());
    for set in SETS {
        let dir = kata.join(format!("sbs/sb-{set}"));
        assert_eq!(files(&dir), files(&sandbox(set)), "{set}");
        assert!(!dir.join("state.log").exists());
    }
    let again = state(&place, &[&"export", &"--from", &ours, &"--to", &kata, &"sb-minimal"]);
    assert_eq!(again.status.code(), Some(125));
    assert!(text(&again.stderr).contains("E-STATE-EXISTS"), "{}", text(&again.stderr));
    done(&place, &[&"export", &"--from", &ours, &"--to", &kata, &"--replace", &"sb-minimal"]);
    // Back, into this installation.
    done(&place, &[&"import", &"--from", &kata]);
    let listed = lines(&done(&place, &[&"ls", &"--format", &"json"]));
    assert_eq!(listed.len(), SETS.len());
    let again = state(&place, &[&"import", &"--from", &kata, &"sb-minimal"]);
    assert!(text(&again.stderr).contains("E-STATE-EXISTS"), "{}", text(&again.stderr));
    let left = fs::read_dir(kata.join(".export")).expect("a directory").count();
    assert_eq!(left, 0);
}

#[test]
fn another_katas_state_is_refused_by_name_and_converted_when_asked_for() {
    let place = Place::new();
    let kata = place.root().join("kata");
    let dir = kata.join("sbs/sb-minimal");
    fs::create_dir_all(&dir).expect("a directory");
    let old = fs::read_to_string(sandbox("minimal").join("persist.json")).expect("a file");
    let new = old.replacen("\"NetNsPath\":", "\"NetworkID\":", 1);
    assert_ne!(old, new);
    fs::write(dir.join("persist.json"), new).expect("a file");
    let refused = state(&place, &[&"read", &dir]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(text(&refused.stderr).contains("was written by Kata 2.4 to 3.0"));
    assert_eq!(state(&place, &[&"check", &dir.join("persist.json")]).status.code(), Some(1));
    done(&place, &[&"read", &"--convert", &dir]);
    let imported = state(&place, &[&"import", &"--from", &kata]);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    assert!(text(&imported.stderr).contains("sb-minimal was written by Kata 2.4 to 3.0"));
    let read = done(&place, &[&"read", &place.root().join("sbs/sb-minimal"), &"--format", &"json"]);
    let (back, before): (Value, Value) =
        (serde_json::from_str(&read).expect("JSON"), serde_json::from_str(&old).expect("JSON"));
    assert_eq!(back["Sandbox"]["Network"]["NetNsPath"], before["Network"]["NetNsPath"]);
}
