//! What the real Kata driver wrote is read and written again to the byte.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::codec::{
    Tolerance, canonical, decode_container, decode_sandbox, encode_container, encode_sandbox,
};
use std::collections::BTreeMap;
use support::{SETS, containers, golden, read, sandbox_dir};

#[test]
fn every_golden_sandbox_is_written_as_it_was_read() {
    for set in SETS {
        let bytes = read(sandbox_dir(set).join("persist.json"));
        let state = decode_sandbox(&bytes, Tolerance::Strict).unwrap();
        assert_eq!(state.sandbox_container, format!("sb-{set}"));
        let written = encode_sandbox(&state).unwrap();
        assert_eq!(text(&written), text(&bytes), "{set}");
    }
}

#[test]
fn every_golden_container_is_written_as_it_was_read() {
    let mut seen = 0;
    for set in SETS {
        for id in containers(set) {
            let bytes = read(sandbox_dir(set).join(&id).join("persist.json"));
            let state = decode_container(&bytes, Tolerance::Strict).unwrap();
            assert_eq!(text(&encode_container(&state).unwrap()), text(&bytes), "{set}/{id}");
            seen += 1;
        }
    }
    assert_eq!(seen, 8);
}

#[test]
fn a_whole_sandbox_on_a_line_is_what_the_real_reader_understood() {
    for set in SETS {
        let dir = sandbox_dir(set);
        let sandbox = decode_sandbox(&read(dir.join("persist.json")), Tolerance::Strict).unwrap();
        let containers: BTreeMap<_, _> = containers(set)
            .into_iter()
            .map(|id| {
                let bytes = read(dir.join(&id).join("persist.json"));
                (id, decode_container(&bytes, Tolerance::Strict).unwrap())
            })
            .collect();
        let line = canonical(&sandbox, &containers).unwrap();
        assert_eq!(text(&line), text(&read(golden().join(set).join("canonical.json"))), "{set}");
    }
}

#[test]
fn a_golden_file_cut_anywhere_is_never_taken_for_whole() {
    for set in SETS {
        let bytes = read(sandbox_dir(set).join("persist.json"));
        // Without its newline it is still whole.
        for len in 0..bytes.len() - 1 {
            let cut = decode_sandbox(&bytes[..len], Tolerance::Strict);
            assert!(cut.is_err(), "{set} cut after {len} of {} bytes was read", bytes.len());
        }
        assert!(decode_sandbox(&bytes[..bytes.len() - 1], Tolerance::Strict).is_ok());
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
