//! Each step of a save fails in turn, or is the last one of its process.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::driver::{By, FsDriver, PersistDriver, Whole};
use coracle_persist::lock::Ask;
use coracle_persist::root::Root;
use coracle_persist::store::{Disk, Effect, Script, Then};
use rustix::io::Errno;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use support::place::{Mounted, run, tree, writer};
use support::states::{turn, whole};

fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(Duration::from_secs(10)).or_create())
}

/// What is there before the save that fails, and what that saves.
struct Case {
    name: &'static str,
    before: Vec<(usize, u64)>,
    save: (usize, u64),
}

fn cases() -> Vec<Case> {
    let (containers, first) = (16, 1);
    // So much is changed at last that a new log is due.
    let before: Vec<_> =
        (first..first + saves_of_one_log(containers)).map(|turn| (containers, turn)).collect();
    let last = before.len() as u64 + first;
    vec![
        Case { name: "the first save", before: vec![], save: (3, 1) },
        Case { name: "all is changed", before: vec![(3, 1)], save: (3, 2) },
        Case { name: "containers go", before: vec![(4, 1)], save: (1, 2) },
        Case { name: "containers come", before: vec![(1, 1)], save: (4, 2) },
        Case { name: "a new log", before, save: (containers, last) },
    ]
}

/// How many saves of so many containers one log takes.
fn saves_of_one_log(containers: usize) -> u64 {
    let root = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::watched());
    let mut driver = FsDriver::with_disk("fs", Root::at(root.path()), Arc::clone(&disk));
    let mut save = |turn: u64| save(&mut driver, (containers, turn)).unwrap();
    save(1);
    // A new log's name is the only one that is made to last.
    let names = || disk.effects().iter().filter(|effect| **effect == Effect::SyncDir).count();
    let first = names();
    (2..1000)
        .find(|turn| {
            save(*turn);
            names() > first
        })
        .unwrap()
        - 1
}

fn save(driver: &mut FsDriver, (containers, turn): (usize, u64)) -> Result<Whole, String> {
    let state = whole("s1", containers, 2, turn);
    match driver.to_disk(anew(), &state.sandbox, &state.containers) {
        Ok(_) => Ok(state),
        Err(error) => Err(error.to_string()),
    }
}

/// The state that a fresh reader finds, none if there is none.
fn found(root: &Path) -> Option<Whole> {
    match FsDriver::new(Root::at(root)).from_disk("s1") {
        Ok(loaded) => {
            assert!(loaded.edited.is_empty(), "{:?}", loaded.edited);
            turn(&loaded.whole).unwrap();
            Some(loaded.whole)
        }
        Err(coracle_persist::driver::DriverError::Absent(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// What must hold after a save that may have failed: old or new, and the next save mends all.
fn judge(case: &Case, step: &str, root: &Path, old: Option<&Whole>, done: Option<&Whole>) {
    let name = case.name;
    let new = whole("s1", case.save.0, 2, case.save.1);
    let now = found(root);
    match done {
        Some(_) => assert_eq!(now.as_ref(), Some(&new), "{name}, {step}: said to be saved"),
        None => assert!(now.as_ref() == old || now == Some(new), "{name}, {step}: {now:?}"),
    }
    let next = save(&mut FsDriver::new(Root::at(root)), (2, 99)).unwrap();
    assert_eq!(found(root), Some(next), "{name}, {step}");
    let verified = FsDriver::new(Root::at(root)).verify("s1").unwrap();
    assert_eq!(verified.findings, [], "{name}, {step}");
    let left = tree(&root.join("sbs/s1"));
    let expected = ["c0", "c0/persist.json", "c1", "c1/persist.json", "persist.json", "state.log"];
    assert_eq!(left, expected, "{name}, {step}");
}

fn prepare(case: &Case, root: &Path) -> Option<Whole> {
    let mut driver = FsDriver::new(Root::at(root));
    case.before.iter().map(|state| save(&mut driver, *state).unwrap()).last()
}

/// The steps of the save of a case.
fn steps(case: &Case, place: &Mounted) -> Vec<Effect> {
    let root = tempfile::tempdir_in(place.path()).unwrap();
    prepare(case, root.path());
    let disk = Arc::new(Disk::watched());
    let mut driver = FsDriver::with_disk("fs", Root::at(root.path()), Arc::clone(&disk));
    save(&mut driver, case.save).unwrap();
    let effects = disk.effects();
    let log = effects.contains(&Effect::SyncDir);
    assert_eq!(log, case.before.len() != 1, "{}: a new log is written", case.name);
    effects
}

#[test]
fn a_failure_at_any_step_leaves_the_old_state_or_the_new_and_the_next_save_mends_it() {
    let place = Mounted::tmpfs(64 << 20);
    let mut tried = 0;
    for case in &cases() {
        for (at, effect) in steps(case, &place).into_iter().enumerate() {
            for then in [
                Then::Fail(Errno::NOSPC),
                Then::Fail(Errno::IO),
                Then::Half(Errno::NOSPC),
                Then::FailOn(Errno::IO),
            ] {
                let root = tempfile::tempdir_in(place.path()).unwrap();
                let old = prepare(case, root.path());
                let disk = Arc::new(Disk::scripted(Script { at, then }));
                let mut driver = FsDriver::with_disk("fs", Root::at(root.path()), disk);
                let done = save(&mut driver, case.save);
                let step = format!("{then:?} at step {at}, {effect:?}");
                judge(case, &step, root.path(), old.as_ref(), done.as_ref().ok());
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "only {tried} failures were tried");
}

#[test]
fn the_driver_that_saw_a_failure_goes_on() {
    let place = Mounted::tmpfs(64 << 20);
    let case = &cases()[1];
    for (at, effect) in steps(case, &place).into_iter().enumerate() {
        let root = tempfile::tempdir().unwrap();
        prepare(case, root.path());
        let disk = Arc::new(Disk::scripted(Script { at, then: Then::Fail(Errno::IO) }));
        let mut driver = FsDriver::with_disk("fs", Root::at(root.path()), disk);
        let _ = save(&mut driver, case.save);
        let next = save(&mut driver, (2, 50)).unwrap();
        assert_eq!(found(root.path()), Some(next), "step {at}, {effect:?}");
        let findings = driver.verify("s1").unwrap().findings;
        assert_eq!(findings, [], "step {at}, {effect:?}");
    }
}

#[test]
fn a_process_that_dies_at_any_step_leaves_the_old_state_or_the_new() {
    let place = Mounted::tmpfs(64 << 20);
    for case in &cases() {
        let steps = steps(case, &place);
        for (at, effect) in steps.into_iter().enumerate() {
            let root = tempfile::tempdir_in(place.path()).unwrap();
            let old = prepare(case, root.path());
            let (containers, turn) = (case.save.0.to_string(), case.save.1.to_string());
            let status = writer()
                .args(["die", &at.to_string()])
                .arg(root.path())
                .args([&containers, &turn])
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert!(!status.success(), "{}: it did not die at step {at}", case.name);
            let step = format!("dead before step {at}, {effect:?}");
            judge(case, &step, root.path(), old.as_ref(), None);
        }
    }
}

#[test]
fn an_error_of_the_disk_itself_leaves_the_old_state_or_the_new() {
    let case = &cases()[1];
    for call in ["fdatasync", "fsync", "pwrite64", "rename,renameat,renameat2", "fallocate"] {
        let mut failed = 0;
        for nth in 1..=6 {
            let root = tempfile::tempdir().unwrap();
            let old = prepare(case, root.path());
            let inject = format!("inject={call}:error=EIO:when={nth}");
            let status = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject])
                .arg(env!("CARGO_BIN_EXE_coracle-state-writer"))
                .arg("once")
                .arg(root.path())
                .args([case.save.0.to_string(), case.save.1.to_string()])
                .stderr(Stdio::null())
                .status()
                .expect("strace, which `make setup` installs");
            let new = whole("s1", case.save.0, 2, case.save.1);
            let done = status.success().then_some(&new);
            failed += usize::from(done.is_none());
            judge(case, &format!("EIO in {call} {nth}"), root.path(), old.as_ref(), done);
        }
        // The first write, and what makes it last, are the commit itself.
        if ["fdatasync", "pwrite64"].contains(&call) {
            assert!(failed > 0, "no {call} was ever reached");
        }
    }
}

#[test]
fn a_process_that_may_open_few_files_saves_many_containers() {
    let root = tempfile::tempdir().unwrap();
    let save = |turn: u64| {
        let script = format!(
            "ulimit -n 16; exec {} once {} 200 {turn}",
            env!("CARGO_BIN_EXE_coracle-state-writer"),
            root.path().display(),
        );
        run(Command::new("sh").args(["-c", &script]));
    };
    save(1);
    save(2);
    let state = found(root.path()).unwrap();
    assert_eq!((state.containers.len(), turn(&state).unwrap()), (200, 2));
    // None left at all: the old state stays.
    let script = format!(
        "ulimit -n 4; exec {} once {} 200 3",
        env!("CARGO_BIN_EXE_coracle-state-writer"),
        root.path().display(),
    );
    let refused = Command::new("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("Too many open files"), "{said}");
    assert_eq!(turn(&found(root.path()).unwrap()).unwrap(), 2);
}
