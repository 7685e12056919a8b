//! Writers that are killed, that race each other, and that are read meanwhile.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::driver::{By, FsDriver, PersistDriver};
use coracle_persist::lock::Ask;
use coracle_persist::root::Root;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use support::place::{Mounted, Reaped, writer};
use support::states::{none, turn, whole};

const KILLS: u64 = 500;
const CONTAINERS: usize = 20;
const DEVICES: usize = 40;

fn forever(root: &Path, told: &Path) -> Reaped {
    let sizes = [CONTAINERS.to_string(), DEVICES.to_string()];
    Reaped::start(writer().arg("forever").arg(root).arg(told).args(sizes))
}

/// The last turn that a writer has reported as saved.
fn told(file: &Path) -> u64 {
    let mut bytes = [0; 8];
    match std::fs::File::open(file).and_then(|file| file.read_exact_at(&mut bytes, 0)) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// Kills a writer again and again; every time the state must be whole, and no older than the last
/// one that was reported.
fn kill_and_look(root: &Path, outside: &Path) {
    let file = outside.join("told");
    let (mut moved, mut last) = (0, 0);
    for kill in 0..KILLS {
        let before = told(&file);
        let mut writer = forever(root, &file);
        // One in four is killed while it starts, the others somewhere in a later save.
        let patience = Instant::now() + Duration::from_secs(20);
        while kill % 4 != 0 && told(&file) == before && Instant::now() < patience {
            std::thread::sleep(Duration::from_micros(100));
        }
        std::thread::sleep(Duration::from_micros(37 * (kill % 200)));
        writer.kill();
        let reported = told(&file);
        moved += u64::from(reported > before);
        let mut driver = FsDriver::new(Root::at(root));
        match driver.from_disk("s1") {
            Ok(loaded) => {
                assert!(loaded.edited.is_empty(), "kill {kill}: {:?}", loaded.edited);
                assert_eq!(loaded.whole.containers.len(), CONTAINERS, "kill {kill}");
                let kept = turn(&loaded.whole).unwrap_or_else(|torn| panic!("kill {kill}: {torn}"));
                // One save may have been made that there was no time to report.
                let known = reported.max(last);
                assert!(
                    kept == known || kept == known + 1,
                    "kill {kill}: {kept} is kept, {reported} was reported, {last} was there"
                );
                last = kept;
            }
            Err(error) => assert_eq!(reported, 0, "kill {kill}: {error}"),
        }
        if kill % 50 == 49 {
            let lost = driver.verify("s1").unwrap().findings.into_iter().find(|f| f.is_loss());
            assert_eq!(lost, None, "kill {kill}");
        }
    }
    assert!(moved > KILLS / 2, "the writer came to a save only {moved} times");
}

#[test]
fn five_hundred_kills_on_ext4_tear_nothing_and_lose_nothing() {
    let disk = Mounted::ext4(64);
    let outside = tempfile::tempdir().unwrap();
    kill_and_look(&disk.path().join("root"), outside.path());
}

#[test]
fn five_hundred_kills_on_tmpfs_tear_nothing_and_lose_nothing() {
    let disk = Mounted::tmpfs(64 << 20);
    let outside = tempfile::tempdir().unwrap();
    kill_and_look(&disk.path().join("root"), outside.path());
}

#[test]
fn five_thousand_reads_without_a_lock_are_all_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("root"), dir.path().join("told"));
    let _writer = forever(&root, &file);
    let mut driver = FsDriver::new(Root::at(&root));
    while told(&file) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    // On a slow disk the writer is the slower one: the reading then goes on
    // until there were enough states to tell apart.
    let (mut last, mut different, mut read) = (0, 0, 0);
    while read < 5000 || different <= 100 {
        let loaded = driver.from_disk("s1").unwrap_or_else(|error| panic!("read {read}: {error}"));
        assert!(loaded.edited.is_empty(), "read {read}: {:?}", loaded.edited);
        assert_eq!(loaded.whole.containers.len(), CONTAINERS, "read {read}");
        let now = turn(&loaded.whole).unwrap_or_else(|torn| panic!("read {read}: {torn}"));
        assert!(now >= last, "read {read}: {now} after {last}");
        different += u64::from(now > last);
        last = now;
        read += 1;
    }
}

#[test]
fn looking_at_a_state_in_the_middle_of_a_save_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = FsDriver::new(Root::at(dir.path()));
    let state = whole("s1", 0, CONTAINERS, 0);
    let anew = By::Asking(Ask::exclusive(Duration::from_secs(10)).or_create());
    driver.to_disk(anew, &state.sandbox, &none()).unwrap();
    let mut writer = Reaped::start(writer().arg("count").arg(dir.path()).arg("200"));
    let mut looks = 0;
    while writer.0.try_wait().unwrap().is_none() {
        let verified = driver.verify("s1").unwrap();
        assert_eq!(verified.findings, [], "look {looks}, save {:?}", verified.generation);
        looks += 1;
    }
    assert!(writer.0.wait().unwrap().success());
    assert!(looks > 0);
}

#[test]
fn two_processes_that_save_at_once_lose_no_save() {
    let dir = tempfile::tempdir().unwrap();
    let mut driver = FsDriver::new(Root::at(dir.path()));
    let state = whole("s1", 0, 2, 0);
    let anew = By::Asking(Ask::exclusive(Duration::from_secs(10)).or_create());
    driver.to_disk(anew, &state.sandbox, &none()).unwrap();
    let mut writers: Vec<Reaped> =
        (0..2).map(|_| Reaped::start(writer().arg("count").arg(dir.path()).arg("300"))).collect();
    for writer in &mut writers {
        assert!(writer.0.wait().unwrap().success());
    }
    let loaded = driver.from_disk("s1").unwrap();
    assert_eq!((turn(&loaded.whole).unwrap(), loaded.generation.0), (600, 601));
    assert_eq!(driver.verify("s1").unwrap().findings, []);
}
