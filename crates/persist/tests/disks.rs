//! Disks that are full, and disks that lose their power.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::driver::{By, DriverError, FsDriver, PersistDriver, Whole};
use coracle_persist::lock::Ask;
use coracle_persist::model::StateText;
use coracle_persist::root::Root;
use coracle_persist::store::Note;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use support::place::Mounted;
use support::states::{container, turn, whole};

fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(Duration::from_secs(10)).or_create())
}

/// Writes zeros until there is no room for one more byte.
fn fill(path: &Path) {
    let mut file = std::fs::File::create(path.join("filler")).unwrap();
    for size in [1 << 16, 4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[test]
fn on_a_full_disk_the_ends_of_many_containers_are_still_recorded() {
    for disk in [Mounted::tmpfs(2 << 20), Mounted::ext4(8)] {
        let root = disk.path().join("root");
        let mut driver = FsDriver::new(Root::at(&root));
        let mut state = whole("s1", 20, 8, 1);
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
        fill(&disk.path());
        for n in 0..20 {
            state.containers.get_mut(&format!("c{n}")).unwrap().state = StateText::Stopped;
            let saved = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
            // Kata's file could not be replaced; the state is saved all the same.
            let behind = |note: &Note| matches!(note, Note::Behind { .. });
            assert!(saved.notes.iter().any(behind), "was the disk full? {:?}", saved.notes);
            let read = FsDriver::new(Root::at(&root)).from_disk("s1").unwrap();
            assert_eq!(read.whole, state);
        }
        // A driver that comes later, and finds room again, brings all files up to date.
        std::fs::remove_file(disk.path().join("filler")).unwrap();
        let mut later = FsDriver::new(Root::at(&root));
        state.sandbox.state = StateText::Stopped;
        assert_eq!(later.to_disk(anew(), &state.sandbox, &state.containers).unwrap().notes, []);
        assert_eq!(later.verify("s1").unwrap().findings, []);
    }
}

#[test]
fn on_a_full_disk_the_end_of_a_container_is_recorded_even_after_a_torn_commit() {
    let disk = Mounted::tmpfs(2 << 20);
    let root = disk.path().join("root");
    let mut state = whole("s1", 20, 8, 1);
    let mut driver = FsDriver::new(Root::at(&root));
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    drop(driver);
    // Half a commit behind the last whole one, as a kill leaves it.
    let path = root.join("sbs/s1/state.log");
    let log = std::fs::read(&path).unwrap();
    let end = log.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(8);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&log[..600], end as u64).unwrap();
    fill(&disk.path());
    let mut driver = FsDriver::new(Root::at(&root));
    for n in 0..5 {
        state.containers.get_mut(&format!("c{n}")).unwrap().state = StateText::Stopped;
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
        assert_eq!(FsDriver::new(Root::at(&root)).from_disk("s1").unwrap().whole, state);
    }
}

#[test]
fn a_disk_that_takes_nothing_more_leaves_the_old_state() {
    let disk = Mounted::tmpfs(2 << 20);
    let root = disk.path().join("root");
    let mut driver = FsDriver::new(Root::at(&root));
    let mut kept = whole("s1", 20, 8, 1);
    driver.to_disk(anew(), &kept.sandbox, &kept.containers).unwrap();
    fill(&disk.path());
    let mut refused = 0;
    for turn in 2..200 {
        let next = whole("s1", 20, 8, turn);
        match driver.to_disk(anew(), &next.sandbox, &next.containers) {
            Ok(_) => kept = next,
            Err(DriverError::Store(error)) => {
                assert_eq!(error.kind(), Some(std::io::ErrorKind::StorageFull));
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(FsDriver::new(Root::at(&root)).from_disk("s1").unwrap().whole, kept);
    }
    assert!(refused > 100, "there was room for all but {refused} saves");
    let other = whole("s2", 1, 1, 1);
    assert!(driver.to_disk(anew(), &other.sandbox, &other.containers).is_err());
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    driver.to_disk(anew(), &other.sandbox, &other.containers).unwrap();
    assert_eq!(FsDriver::new(Root::at(&root)).from_disk("s1").unwrap().whole, kept);
}

/// What is found after a power cut now.
fn after_a_power_cut(disk: &Mounted, id: &str) -> Result<Whole, DriverError> {
    let left = Mounted::after_a_power_cut(disk);
    let mut driver = FsDriver::new(Root::at(left.path().join("var/lib/root")));
    let loaded = driver.from_disk(id)?;
    assert!(loaded.edited.is_empty(), "{:?}", loaded.edited);
    // The next writer mends the files for others.
    let mut state = loaded.whole.clone();
    state.containers.insert("later".to_owned(), container(0, 0));
    let saved = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!(saved.notes, []);
    assert_eq!(driver.verify(id).unwrap().findings, []);
    Ok(loaded.whole)
}

#[test]
fn a_first_save_and_every_later_one_survive_a_power_cut_at_any_time() {
    let disk = Mounted::ext4(32);
    let mut driver = FsDriver::new(Root::at(disk.path().join("var/lib/root")));
    let once = whole("s2", 5, 8, 1);
    driver.to_disk(anew(), &once.sandbox, &once.containers).unwrap();
    let mut pauses = Vec::new();
    for (turn_of, seconds) in [(1, 0), (2, 0), (3, 1), (4, 5), (5, 14)] {
        let state = whole("s1", 5, 8, turn_of);
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
        // The other one was saved only once, and is 0, 0, 1, 6 and 20 seconds old.
        std::thread::sleep(Duration::from_secs(seconds));
        pauses.push(seconds);
        let left = after_a_power_cut(&disk, "s1").unwrap();
        assert_eq!(left, state, "after {pauses:?} s");
        assert_eq!(turn(&left).unwrap(), turn_of);
        assert_eq!(after_a_power_cut(&disk, "s2").unwrap(), once, "after {pauses:?} s");
    }
}

#[test]
fn a_destroyed_sandbox_is_destroyed_after_a_power_cut_too() {
    let disk = Mounted::ext4(32);
    let mut driver = FsDriver::new(Root::at(disk.path().join("var/lib/root")));
    let state = whole("s1", 5, 8, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    driver.destroy(By::Asking(Ask::exclusive(Duration::from_secs(10))), "s1").unwrap();
    let left = after_a_power_cut(&disk, "s1");
    assert!(matches!(left, Err(DriverError::Absent(_))), "{left:?}");
}
