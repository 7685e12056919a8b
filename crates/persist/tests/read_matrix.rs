//! Every input that was given to the real reader, and what ours says of it.
//!
//! The verdict of the real one is beside the inputs. Where ours differs, the case stands here with
//! its reason, and in the table of docs/persist-reader.md.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::codec::{DecodeError, Tolerance, decode_sandbox, encode_sandbox};
use coracle_persist::model::SandboxState;
use serde_json::{Map, Value};
use support::{golden, read};

/// Read as the real one reads it.
const SAME: &[&str] = &[
    "02-empty-object",
    "14-unknown-field",
    "16-exact-beats-fold-order",
    "18-duplicate-map-field-merges",
    "20-duplicate-slice-replaces",
    "34-version-1",
    "44-addr-v4",
    "50-addr-mask-hexstring",
    "54-addr-ip-empty-string",
    "56-addr-no-ip-keys",
    "58-addr-peer",
    "60-netpair-nested-TapInterface",
    "62-cgroups-empty",
    "64-cgroups-with-one-resource",
    "66-cgroups-nested-Resources",
    "72-escaped-solidus",
    "74-keys-reversed",
    "82-vfio-empty-list",
    "84-endpoint-two-kinds",
    "86-memory-swappiness-null",
    "90-key-kelvin-fold",
];

/// Refused by both: the case and what ours calls it.
const REFUSED: &[(&str, Verdict)] = &[
    ("00-empty-file", Verdict::Damaged),
    ("04-array", Verdict::Value),
    ("06-bom", Verdict::Damaged),
    ("12-nul-prefix-then-json", Verdict::Damaged),
    ("22-string-for-int", Verdict::Value),
    ("24-exponent-for-int", Verdict::Value),
    ("26-uint32-overflow", Verdict::Value),
    ("28-uint64-overflow", Verdict::Value),
    ("30-plus-int", Verdict::Damaged),
    ("32-int-for-string", Verdict::Value),
    ("36-map-int-key-bad", Verdict::Value),
    ("38-map-int-key-space", Verdict::Value),
    ("40-map-int-value-number", Verdict::Value),
    ("42-map-u32-key-overflow", Verdict::Value),
    ("46-addr-bad-ip", Verdict::Value),
    ("48-addr-zone", Verdict::Value),
    ("52-addr-mask-urlsafe-b64", Verdict::Value),
    ("70-raw-control-char", Verdict::Damaged),
    ("76-trailing-comma", Verdict::Damaged),
    ("80-type-error-then-valid-fields", Verdict::Value),
    ("88-huge-int-exponent", Verdict::Damaged),
];

/// Read by the real one and refused by ours, and why.
const STRICTER: &[(&str, Verdict, &str)] = &[
    (
        "08-trailing-garbage",
        Verdict::Trailing,
        "bytes behind the state say that a write went wrong",
    ),
    ("10-trailing-nuls", Verdict::Trailing, "zeros behind the state say that a write went wrong"),
    ("68-lone-surrogate-escape", Verdict::Damaged, "half a character would be replaced and lost"),
    ("78-deep-nesting-9999", Verdict::Damaged, "no state is so deep; only an attack is"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Damaged,
    Trailing,
    Value,
}

fn verdict(bytes: &[u8]) -> Result<SandboxState, Verdict> {
    decode_sandbox(bytes, Tolerance::Strict).map_err(|error| match error {
        DecodeError::Damaged { .. } => Verdict::Damaged,
        DecodeError::Trailing { .. } => Verdict::Trailing,
        DecodeError::Value { .. } => Verdict::Value,
        DecodeError::Foreign { foreign, .. } => panic!("taken for {foreign}"),
    })
}

fn input(case: &str) -> Vec<u8> {
    read(golden().join("read-matrix/in").join(format!("{case}.json")))
}

/// What the real reader said, by case: what differs from the zero state, or nothing for an error.
fn real() -> Vec<(String, Option<Map<String, Value>>)> {
    let lines = String::from_utf8(read(golden().join("read-matrix/result.jsonl"))).unwrap();
    lines
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let case = line["case"].as_str().unwrap().trim_end_matches(".json").to_owned();
            (case, line.get("accepted").map(|state| state.as_object().unwrap().clone()))
        })
        .collect()
}

/// What differs from the zero state.
fn differing(state: &SandboxState) -> Map<String, Value> {
    let json = |state: &SandboxState| -> Map<String, Value> {
        serde_json::from_slice(&encode_sandbox(state).unwrap()).unwrap()
    };
    let zero = json(&SandboxState::default());
    json(state).into_iter().filter(|(key, value)| zero[key] != *value).collect()
}

#[test]
fn every_case_of_the_matrix_has_a_verdict() {
    let mut ours: Vec<&str> = SAME
        .iter()
        .copied()
        .chain(REFUSED.iter().map(|(case, _)| *case))
        .chain(STRICTER.iter().map(|(case, ..)| *case))
        .collect();
    ours.sort_unstable();
    let real = real();
    let theirs: Vec<&str> = real.iter().map(|(case, _)| case.as_str()).collect();
    assert_eq!(ours, theirs);
}

#[test]
fn what_both_read_they_read_alike() {
    let real = real();
    for case in SAME {
        let state = verdict(&input(case)).unwrap_or_else(|verdict| panic!("{case}: {verdict:?}"));
        let (_, theirs) = real.iter().find(|(name, _)| name == case).unwrap();
        assert_eq!(Some(&differing(&state)), theirs.as_ref(), "{case}");
    }
}

#[test]
fn what_both_refuse_has_a_name() {
    let real = real();
    for (case, expected) in REFUSED {
        assert_eq!(verdict(&input(case)), Err(*expected), "{case}");
        let (_, theirs) = real.iter().find(|(name, _)| name == case).unwrap();
        assert_eq!(*theirs, None, "{case}");
    }
}

#[test]
fn where_ours_is_stricter_a_loss_would_be_hidden() {
    let real = real();
    for (case, expected, why) in STRICTER {
        assert_eq!(verdict(&input(case)), Err(*expected), "{case}: {why}");
        let (_, theirs) = real.iter().find(|(name, _)| name == case).unwrap();
        assert!(theirs.is_some(), "{case} is refused by both");
    }
}

#[test]
fn what_follows_is_passed_over_when_asked_for_as_the_real_one_does() {
    let real = real();
    for case in ["08-trailing-garbage", "10-trailing-nuls"] {
        let state = decode_sandbox(&input(case), Tolerance::TrailingBytes).unwrap();
        let (_, theirs) = real.iter().find(|(name, _)| name == case).unwrap();
        assert_eq!(Some(&differing(&state)), theirs.as_ref(), "{case}");
    }
}

#[test]
fn the_documentation_has_every_difference() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/persist-reader.md");
    let page = String::from_utf8(read(page)).unwrap();
    for (case, _, why) in STRICTER {
        let row = page.lines().find(|line| line.contains(&format!("`{case}`")));
        assert!(row.is_some_and(|row| row.contains(why)), "{case} is not in the table: {why}");
    }
}
