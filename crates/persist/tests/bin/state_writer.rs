//! A process that saves states until it is killed, for the tests of what a killed one leaves.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/states.rs"]
#[allow(dead_code, unreachable_pub)]
mod states;

use coracle_persist::driver::{By, FsDriver, PersistDriver};
use coracle_persist::lock::Ask;
use coracle_persist::root::Root;
use coracle_persist::store::{Disk, Script, Then};
use states::{turn, whole};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().unwrap();
    match words[..] {
        ["forever", root, told, containers, devices] => {
            let size = |text| usize::try_from(number(text)).unwrap();
            forever(root.as_ref(), told.as_ref(), size(containers), size(devices));
        }
        ["once", root, containers, turn] => once(root, number(containers), number(turn), None),
        ["die", at, root, containers, turn] => {
            let script = Script { at: usize::try_from(number(at)).unwrap(), then: Then::Die };
            once(root, number(containers), number(turn), Some(script));
        }
        ["count", root, times] => count(root.as_ref(), number(times)),
        _ => panic!("{words:?}"),
    }
}

fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(PATIENCE).or_create())
}

/// Saves turn after turn, and says of each in the file `told` that it was saved.
fn forever(root: &Path, told: &Path, containers: usize, devices: usize) {
    let told =
        std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(told).unwrap();
    let mut driver = FsDriver::new(Root::at(root));
    let mut next = driver.from_disk("s1").map_or(1, |loaded| turn(&loaded.whole).unwrap() + 1);
    loop {
        let state = whole("s1", containers, devices, next);
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
        told.write_all_at(&next.to_le_bytes(), 0).unwrap();
        next += 1;
    }
}

/// Saves one turn; says why not, and exits with 1.
fn once(root: &str, containers: u64, turn: u64, script: Option<Script>) {
    let disk = script.map_or_else(Disk::default, Disk::scripted);
    let mut driver = FsDriver::with_disk("fs", Root::at(root), Arc::new(disk));
    let state = whole("s1", usize::try_from(containers).unwrap(), 2, turn);
    if let Err(error) = driver.to_disk(anew(), &state.sandbox, &state.containers) {
        eprintln!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
        std::process::exit(1);
    }
}

/// Counts on in a state that others count in too.
fn count(root: &Path, times: u64) {
    let mut driver = FsDriver::new(Root::at(root));
    for _ in 0..times {
        let lock = driver.lock("s1", Ask::exclusive(PATIENCE)).unwrap();
        let mut state = driver.from_disk("s1").unwrap().whole;
        state.sandbox.cgroup_path = (turn(&state).unwrap() + 1).to_string();
        driver.to_disk(By::Lock(&lock), &state.sandbox, &state.containers).unwrap();
    }
}
