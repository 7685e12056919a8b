//! What eats bytes from the disk: states, and the log they are kept in.
//!
//! The tests of `crates/persist` call these functions with the committed corpus and damaged copies.

use coracle_persist::codec::{
    Tolerance, canonical, decode_container, decode_sandbox, encode_container, encode_sandbox,
    recognise,
};
use coracle_persist::foreign::convert;
use coracle_persist::store::frame::{ALIGN, Kind, Op, encode};
use coracle_persist::store::{Generation, Tail, replay};
use std::collections::BTreeMap;

/// A file that Kata may have written: what can be read is written to what reads the same.
pub fn persist_reader(bytes: &[u8]) {
    let _ = recognise(bytes);
    for tolerance in [Tolerance::Strict, Tolerance::TrailingBytes] {
        if let Ok(state) = decode_sandbox(bytes, tolerance) {
            let written = encode_sandbox(&state).expect("what was read has a text");
            let again = decode_sandbox(&written, Tolerance::Strict).expect("we wrote it");
            assert_eq!(again, state);
            assert_eq!(encode_sandbox(&again).expect("as before"), written);
        }
        if let Ok(state) = decode_container(bytes, tolerance) {
            let written = encode_container(&state).expect("what was read has a text");
            let again = decode_container(&written, Tolerance::Strict).expect("we wrote it");
            assert_eq!(again, state);
        }
    }
    if let Ok(converted) = convert(bytes) {
        canonical(&converted.state, &BTreeMap::new()).expect("what was converted has a text");
    }
}

/// A log that anything may have happened to. The first byte chooses: the rest is the log itself, or
/// tells what was committed and what then happened to the disk.
pub fn persist_log(bytes: &[u8]) {
    match bytes.split_first() {
        Some((choice, log)) if choice % 2 == 0 => go_on_from(log),
        Some((_, script)) => play(script),
        None => {}
    }
}

/// What a log says can be gone on from.
fn go_on_from(log: &[u8]) {
    let Ok(state) = replay::replay(log) else { return };
    // The zeros that fill up the last frame may not be there.
    assert!(state.end <= log.len().next_multiple_of(ALIGN));
    if let Tail::Damaged { later, .. } = state.tail {
        assert!(later > state.generation);
    }
    let Some(next) = state.generation.0.checked_add(1).map(Generation) else { return };
    let delta = [("a", Op::Put(b"1", 7)), ("b", Op::Delete)];
    let frame = encode(Kind::Delta, next, 9, delta).expect("it is small");
    let mut log = log[..state.end.min(log.len())].to_vec();
    log.resize(state.end, 0);
    log.extend(frame);
    let grown = replay::replay(&log).expect("it was a log before");
    assert_eq!((grown.generation, grown.time, grown.tail), (next, 9, Tail::Clean));
    assert_eq!(grown.documents["a"].content, b"1");
    assert!(!grown.documents.contains_key("b"));
    let others = |name: &&str| *name != "a" && *name != "b";
    let (now, before) = (grown.documents.keys().copied(), state.documents.keys().copied());
    assert!(now.filter(others).eq(before.filter(others)));
}

type Documents = BTreeMap<&'static str, Vec<u8>>;

/// Commits and damage by turns: what is read is always one of the commits, whole; without damage
/// it is the last.
fn play(script: &[u8]) {
    const NAMES: [&str; 4] = ["persist.json", "c1/persist.json", "c2/persist.json", "coracle.json"];
    let mut log = Vec::new();
    let mut commits: Vec<Documents> = vec![Documents::new()];
    let (mut put, mut delete) = (Documents::new(), Vec::new());
    let mut damaged = false;
    for step in script.chunks_exact(3) {
        let (at, byte) = (usize::from(step[1]), step[2]);
        let name = NAMES[at % NAMES.len()];
        match step[0] % 6 {
            0 => {
                put.insert(name, vec![byte; at]);
                delete.retain(|gone| *gone != name);
            }
            1 => {
                put.remove(name);
                delete.push(name);
            }
            2 | 3 => {
                let generation = Generation(commits.len() as u64);
                let mut now = commits.last().cloned().unwrap_or_default();
                now.extend(std::mem::take(&mut put));
                for gone in delete.drain(..) {
                    now.remove(gone);
                }
                let before = &commits[commits.len() - 1];
                let kind = if commits.len() == 1 || step[0] % 6 == 3 {
                    Kind::Snapshot
                } else {
                    Kind::Delta
                };
                let changed = now.iter().filter(|(name, content)| {
                    kind == Kind::Snapshot || before.get(*name) != Some(content)
                });
                let puts = changed.map(|(name, content)| (*name, Op::Put(content, 1)));
                let gone = before.keys().filter(|name| !now.contains_key(*name));
                let gone = gone.map(|name| (*name, Op::Delete));
                let frame = encode(kind, generation, 1, puts.chain(gone)).expect("it is small");
                log.extend(frame);
                commits.push(now);
            }
            // One byte is not what was written.
            4 if !log.is_empty() => {
                let place = (at * 256 + usize::from(byte)) % log.len();
                log[place] ^= 1 << (byte % 8);
                damaged = true;
            }
            // The end was never written.
            _ => {
                let end = log.len().saturating_sub(at);
                log[end..].fill(0);
                damaged |= at > 0;
            }
        }
    }
    let Ok(state) = replay::replay(&log) else {
        assert!(damaged || commits.len() == 1);
        return;
    };
    let number = usize::try_from(state.generation.0).expect("one of ours");
    if !damaged {
        assert_eq!((number, state.tail), (commits.len() - 1, Tail::Clean));
    }
    let read: BTreeMap<&str, &[u8]> =
        state.documents.iter().map(|(name, kept)| (*name, kept.content)).collect();
    let made: BTreeMap<&str, &[u8]> =
        commits[number].iter().map(|(name, content)| (*name, &content[..])).collect();
    assert_eq!(read, made, "generation {number} of {}", commits.len() - 1);
    go_on_from(&log);
}
