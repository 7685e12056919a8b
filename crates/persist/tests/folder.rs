//! A sandbox's directory, and others who touch it.
#![allow(clippy::unwrap_used)]

mod support;

use coracle_persist::codec::{DecodeError, Tolerance, encode_sandbox};
use coracle_persist::driver::{By, DriverError, Finding, FsDriver, OwnRecord, PersistDriver, Save};
use coracle_persist::id::SandboxId;
use coracle_persist::lock::{Ask, Lock, LockError, Wait};
use coracle_persist::model::{Addr, Ip, NetworkEndpoint, VethEndpoint};
use coracle_persist::root::Root;
use coracle_persist::store::{Generation, LOG_FILE, Note, StoreError};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::place::{Reaped, tree};
use support::states::{container, none, whole};
use support::{SETS, containers, golden, read, sandbox_dir};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(10);

fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(SOON).or_create())
}

/// A root with one sandbox of two containers, saved in two turns.
struct Fixture {
    root: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { root: tempfile::tempdir().unwrap() };
        let mut driver = fixture.driver();
        for turn in [1, 2] {
            let state = whole("s1", 2, 1, turn);
            driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
        }
        fixture
    }

    fn driver(&self) -> FsDriver {
        FsDriver::new(Root::at(self.root.path()))
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("sbs/s1")
    }

    fn save(&self, turn: u64) -> Vec<Note> {
        let state = whole("s1", 2, 1, turn);
        self.driver().to_disk(anew(), &state.sandbox, &state.containers).unwrap().notes
    }

    fn findings(&self) -> Vec<Finding> {
        self.driver().verify("s1").unwrap().findings
    }

    /// Where the second commit begins in the log.
    fn second_commit(&self) -> u64 {
        let log = read(self.dir().join(LOG_FILE));
        let at = log.windows(4).enumerate().filter(|(at, four)| at % 8 == 0 && *four == b"CRLG");
        u64::try_from(at.map(|(at, _)| at).nth(1).unwrap()).unwrap()
    }

    fn log(&self) -> fs::File {
        let path = self.dir().join(LOG_FILE);
        fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
    }
}

#[test]
fn files_and_directories_are_the_owners_alone() {
    let fixture = Fixture::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for name in tree(fixture.root.path()) {
        let path = fixture.root.path().join(&name);
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{name}");
    }
}

#[test]
fn katas_files_say_what_was_saved_to_the_byte() {
    for set in SETS {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("sbs")).unwrap();
        let from = root.path().join(format!("sbs/sb-{set}"));
        let copied = Command::new("cp").arg("-r").arg(sandbox_dir(set)).arg(&from).status();
        assert!(copied.unwrap().success());
        let loaded = FsDriver::new(Root::at(root.path())).from_disk(&format!("sb-{set}")).unwrap();
        assert_eq!(loaded.generation, Generation(0), "there is no log");
        let to = tempfile::tempdir().unwrap();
        let mut driver = FsDriver::new(Root::at(to.path()));
        driver.to_disk(anew(), &loaded.whole.sandbox, &loaded.whole.containers).unwrap();
        let dir = to.path().join(format!("sbs/sb-{set}"));
        assert_eq!(read(dir.join("persist.json")), read(from.join("persist.json")), "{set}");
        for id in containers(set) {
            let name = format!("{id}/persist.json");
            assert_eq!(read(dir.join(&name)), read(from.join(&name)), "{set}/{name}");
        }
    }
}

#[test]
fn katas_directory_is_taken_over_in_place() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("sbs")).unwrap();
    let dir = root.path().join("sbs/sb-realistic");
    Command::new("cp").arg("-r").arg(sandbox_dir("realistic")).arg(&dir).status().unwrap();
    let mut driver = FsDriver::new(Root::at(root.path()));
    let mut state = driver.from_disk("sb-realistic").unwrap().whole;
    state.sandbox.cgroup_path = "/ours".to_owned();
    let saved = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!((saved.generation, saved.notes), (Generation(1), vec![]));
    assert_eq!(driver.verify("sb-realistic").unwrap().findings, []);
    assert_eq!(
        FsDriver::new(Root::at(root.path())).from_disk("sb-realistic").unwrap().whole,
        state
    );
}

#[test]
fn katas_directory_that_was_not_read_is_set_aside_and_not_lost() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("sbs")).unwrap();
    let dir = root.path().join("sbs/sb-realistic");
    Command::new("cp").arg("-r").arg(sandbox_dir("realistic")).arg(&dir).status().unwrap();
    let old = read(dir.join("persist.json"));
    let state = whole("sb-realistic", 1, 0, 1);
    let mut driver = FsDriver::new(Root::at(root.path()));
    let saved = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert!(saved.notes.len() > 1, "{:?}", saved.notes);
    assert_eq!(read(dir.join("persist.json.edited")), old);
    assert_eq!(driver.from_disk("sb-realistic").unwrap().whole, state);
}

#[test]
fn a_log_does_not_grow_without_end() {
    let root = tempfile::tempdir().unwrap();
    let mut driver = FsDriver::new(Root::at(root.path()));
    let mut most = 0;
    for turn in 0..3000 {
        let state = whole("s1", 2, 1, turn);
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
        most = most.max(fs::metadata(root.path().join("sbs/s1/state.log")).unwrap().len());
    }
    assert!(most < 200 << 10, "{most} bytes");
    assert_eq!(driver.from_disk("s1").unwrap().generation, Generation(3000));
}

#[test]
fn a_driver_of_many_sandboxes_holds_few_descriptors() {
    let root = tempfile::tempdir().unwrap();
    let mut driver = FsDriver::new(Root::at(root.path()));
    let open = || {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(root.path())).count()
    };
    for n in 0..50 {
        let state = whole(&format!("s{n}"), 1, 1, 1);
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    }
    assert_eq!(driver.list().unwrap().len(), 50);
    assert!(open() <= 32, "{} descriptors", open());
    // Those that were closed meanwhile are saved as well.
    let state = whole("s0", 1, 1, 2);
    assert_eq!(driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap().changed, 2);
}

#[test]
fn an_edit_by_someone_else_is_told_and_set_aside_but_never_lost() {
    let fixture = Fixture::new();
    let dir = fixture.dir();
    let edit = b"{\"PersistVersion\":2,\"State\":\"edited\"}\n";
    fs::write(dir.join("c1/persist.json"), edit).unwrap();
    fs::create_dir(dir.join("stranger")).unwrap();
    fs::write(dir.join("stranger/persist.json"), edit).unwrap();
    let loaded = fixture.driver().from_disk("s1").unwrap();
    assert_eq!(loaded.whole, whole("s1", 2, 1, 2), "the log is what counts");
    assert_eq!(loaded.edited, ["c1/persist.json", "stranger/persist.json"]);
    let words: Vec<&str> = fixture.findings().iter().map(Finding::word).collect();
    assert_eq!(words, ["foreign edit", "foreign edit"]);
    let notes = fixture.save(3);
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_eq!(read(dir.join("c1/persist.json.edited")), edit);
    assert_eq!(read(dir.join("stranger/persist.json.edited")), edit);
    assert!(!dir.join("stranger/persist.json").exists(), "Kata would take it for a container");
    // Another edit does not replace the first one.
    fs::write(dir.join("c1/persist.json"), b"{}").unwrap();
    assert_eq!(fixture.save(4).len(), 1);
    assert_eq!(read(dir.join("c1/persist.json.edited")), edit);
    assert_eq!(read(dir.join("c1/persist.json.edited.2")), b"{}");
    assert_eq!(fixture.findings(), []);
}

#[test]
fn the_same_driver_notices_an_edit_between_two_saves() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let save = |driver: &mut FsDriver, turn| {
        let state = whole("s1", 2, 1, turn);
        driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap()
    };
    save(&mut driver, 3);
    fs::write(fixture.dir().join("persist.json"), b"{}").unwrap();
    let saved = save(&mut driver, 4);
    let to = "persist.json.edited".to_owned();
    assert_eq!(saved.notes, [Note::SetAside { file: "persist.json".to_owned(), to }]);
}

#[test]
fn a_file_that_was_only_touched_is_no_edit() {
    let fixture = Fixture::new();
    let file = fs::File::options().write(true).open(fixture.dir().join("persist.json")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(fixture.driver().from_disk("s1").unwrap().edited, Vec::<String>::new());
    assert_eq!(fixture.findings(), []);
    assert_eq!(fixture.save(3), []);
}

#[test]
fn leftovers_are_told_and_the_next_writer_removes_them() {
    let fixture = Fixture::new();
    let dir = fixture.dir();
    fs::create_dir(dir.join("never-written")).unwrap();
    fs::write(dir.join(".state.log.new"), b"half").unwrap();
    fs::write(dir.join(".persist.json.new"), b"half").unwrap();
    fs::write(dir.join("c0/.persist.json.new"), b"half").unwrap();
    // Not ours: sockets and pid files of others.
    fs::write(dir.join("proxy.sock"), b"").unwrap();
    fs::remove_file(dir.join("c1/persist.json")).unwrap();
    let words: Vec<(String, &str)> =
        fixture.findings().iter().map(|f| (f.file().to_owned(), f.word())).collect();
    let expected = [
        ("c1/persist.json", "behind"),
        (".persist.json.new", "leftover"),
        (".state.log.new", "leftover"),
        ("c0/.persist.json.new", "leftover"),
        ("never-written", "leftover"),
    ];
    assert_eq!(words, expected.map(|(file, word)| (file.to_owned(), word)));
    assert_eq!(fixture.save(3), []);
    assert_eq!(fixture.findings(), []);
    let left = tree(&dir);
    let expected = [
        "c0",
        "c0/persist.json",
        "c1",
        "c1/persist.json",
        "persist.json",
        "proxy.sock",
        "state.log",
    ];
    assert_eq!(left, expected);
}

#[test]
fn a_deletion_that_was_interrupted_is_finished_by_the_next() {
    let fixture = Fixture::new();
    let trash = fixture.root.path().join(".trash/1-2-3");
    fs::create_dir_all(trash.join("c0")).unwrap();
    fs::write(trash.join("c0/persist.json"), b"{}").unwrap();
    fixture.driver().destroy(anew(), "s1").unwrap();
    assert_eq!(tree(fixture.root.path()), [".trash", "sbs"]);
}

#[test]
fn damage_in_the_middle_of_a_log_is_told_and_the_state_before_it_offered() {
    let fixture = Fixture::new();
    fixture.save(3);
    let at = fixture.second_commit();
    fixture.log().write_all_at(b"?", at + 60).unwrap();
    let error = fixture.driver().from_disk("s1").unwrap_err();
    let (good, later) = match &error {
        DriverError::Store(StoreError::Damaged { good, later, .. }) => (*good, *later),
        other => panic!("{other}"),
    };
    assert_eq!((good, later), (Generation(1), Generation(3)));
    assert_eq!(error.code(), "E-STATE-DAMAGED");
    let before = read(fixture.dir().join(LOG_FILE));
    let state = whole("s1", 2, 1, 4);
    let refused = fixture.driver().to_disk(anew(), &state.sandbox, &state.containers);
    assert!(refused.is_err(), "nothing is written over a damaged log");
    assert_eq!(read(fixture.dir().join(LOG_FILE)), before);
    assert_eq!(fixture.findings()[0].word(), "damaged");
    let salvaged = fixture.driver().salvage("s1").unwrap();
    assert_eq!(salvaged.whole, whole("s1", 2, 1, 1));
    assert_eq!(salvaged.lost, ["generations 2 to 3"]);
}

#[test]
fn a_log_that_is_no_log_leaves_katas_files_to_save_from() {
    let fixture = Fixture::new();
    fs::write(fixture.dir().join(LOG_FILE), vec![0; 4096]).unwrap();
    assert!(matches!(
        fixture.driver().from_disk("s1"),
        Err(DriverError::Store(StoreError::Unreadable { .. }))
    ));
    fs::write(fixture.dir().join("c1/persist.json"), b"{\"State\":").unwrap();
    let salvaged = fixture.driver().salvage("s1").unwrap();
    assert_eq!(salvaged.whole.sandbox, whole("s1", 2, 1, 2).sandbox);
    assert_eq!(salvaged.whole.containers.keys().collect::<Vec<_>>(), ["c0"]);
    assert_eq!(salvaged.lost.len(), 2, "{:?}", salvaged.lost);
}

#[test]
fn a_damaged_file_of_katas_is_told_and_the_others_are_saved() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("sbs/s1");
    fs::create_dir_all(dir.join("c0")).unwrap();
    fs::create_dir_all(dir.join("c1")).unwrap();
    let state = whole("s1", 0, 1, 1);
    fs::write(dir.join("persist.json"), encode_sandbox(&state.sandbox).unwrap()).unwrap();
    fs::write(dir.join("c0/persist.json"), b"").unwrap();
    fs::write(dir.join("c1/persist.json"), b"{}\n").unwrap();
    let mut driver = FsDriver::new(Root::at(root.path()));
    match driver.from_disk("s1").unwrap_err() {
        DriverError::Decode { file, source: DecodeError::Damaged { .. }, .. } => {
            assert_eq!(file, "c0/persist.json");
        }
        other => panic!("{other}"),
    }
    let findings = driver.verify("s1").unwrap().findings;
    assert_eq!((findings.len(), findings[0].word()), (1, "damaged"));
    let salvaged = driver.salvage("s1").unwrap();
    assert_eq!(salvaged.whole.containers.keys().collect::<Vec<_>>(), ["c1"]);
    assert_eq!(salvaged.lost.len(), 1);
    // Trailing bytes are an error unless they are to be passed over, as Go does.
    fs::write(dir.join("c0/persist.json"), b"{}\n\0\0").unwrap();
    assert!(driver.from_disk("s1").is_err());
    let mut lenient = FsDriver::new(Root::at(root.path())).tolerating(Tolerance::TrailingBytes);
    assert_eq!(lenient.from_disk("s1").unwrap().whole.containers.len(), 2);
}

#[test]
fn what_a_later_version_wrote_is_refused_and_left_as_it_is() {
    let fixture = Fixture::new();
    // The log: version 2, with a header that is right.
    let mut log = read(fixture.dir().join(LOG_FILE));
    log[4] = 2;
    let sum = crc32c::crc32c(&log[..28]);
    log[28..32].copy_from_slice(&sum.to_le_bytes());
    fs::write(fixture.dir().join(LOG_FILE), &log).unwrap();
    let error = fixture.driver().from_disk("s1").unwrap_err();
    assert_eq!(error.code(), "E-STATE-NEWER", "{error}");
    let state = whole("s1", 1, 1, 9);
    let refused = fixture.driver().to_disk(anew(), &state.sandbox, &none());
    assert!(refused.is_err());
    assert_eq!(read(fixture.dir().join(LOG_FILE)), log);
    assert_eq!(fixture.findings()[0].word(), "foreign version");

    // Our record: schema 2.
    let root = tempfile::tempdir().unwrap();
    let mut driver = FsDriver::new(Root::at(root.path()));
    let record = OwnRecord { schema: 2, ..OwnRecord::default() };
    let save = Save {
        sandbox: &state.sandbox,
        containers: &state.containers,
        record: Some(&record),
        only_if: None,
    };
    driver.save(anew(), save).unwrap();
    let mut another = FsDriver::new(Root::at(root.path()));
    assert_eq!(another.from_disk("s1").unwrap_err().code(), "E-STATE-NEWER");
    assert!(another.to_disk(anew(), &state.sandbox, &none()).is_err());
}

#[test]
fn what_kata_keeps_beside_its_sandboxes_is_read_and_written() {
    let root = tempfile::tempdir().unwrap();
    let original = read(golden().join("global/uuid/uuid.json"));
    fs::create_dir(root.path().join("uuid")).unwrap();
    fs::write(root.path().join("uuid/uuid.json"), &original).unwrap();
    let mut driver = FsDriver::new(Root::at(root.path()));
    assert_eq!(driver.global_read("uuid/uuid.json").unwrap(), original);
    let used = b"{\"UUIDAvailability\":[1,0,0,0,0,0,0,0]}";
    driver.global_write("uuid/uuid.json", used).unwrap();
    assert_eq!(read(root.path().join("uuid/uuid.json")), used);
    assert_eq!(tree(root.path()), ["uuid", "uuid/uuid.json"]);
}

#[test]
fn the_state_of_one_sandbox_in_the_directory_of_another_is_refused() {
    let fixture = Fixture::new();
    fs::rename(fixture.dir(), fixture.root.path().join("sbs/s2")).unwrap();
    let error = fixture.driver().from_disk("s2").unwrap_err();
    assert!(matches!(error, DriverError::Misplaced { .. }), "{error}");
}

#[test]
fn an_address_of_three_bytes_cannot_be_saved_and_nothing_is_lost() {
    let fixture = Fixture::new();
    let mut bad = whole("s1", 2, 1, 3);
    let mut endpoint =
        NetworkEndpoint { veth: Some(VethEndpoint::default()), ..Default::default() };
    if let Some(veth) = &mut endpoint.veth {
        let addr = Addr { broadcast: Ip(vec![10, 0, 0]), ..Addr::default() };
        veth.net_pair.virt_iface.addrs = Some(vec![addr]);
    }
    bad.sandbox.network.endpoints = Some(vec![endpoint]);
    let refused = fixture.driver().to_disk(anew(), &bad.sandbox, &bad.containers);
    assert!(matches!(refused, Err(DriverError::Encode { container: None, .. })), "{refused:?}");
    assert_eq!(fixture.driver().from_disk("s1").unwrap().whole, whole("s1", 2, 1, 2));
    assert_eq!(fixture.findings(), []);
}

#[test]
fn a_container_named_like_a_file_of_others_is_behind_and_not_lost() {
    let fixture = Fixture::new();
    fs::write(fixture.dir().join("c9"), b"a socket, say").unwrap();
    let mut state = whole("s1", 2, 1, 3);
    state.containers.insert("c9".to_owned(), container(9, 3));
    let saved = fixture.driver().to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert!(matches!(&saved.notes[..], [Note::Behind { file, .. }] if file == "c9/persist.json"));
    assert_eq!(fixture.driver().from_disk("s1").unwrap().whole, state);
    assert_eq!(read(fixture.dir().join("c9")), b"a socket, say");
}

#[test]
fn links_are_not_followed() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("persist.json"), b"outside").unwrap();
    let dir = fixture.dir();
    fs::remove_dir_all(dir.join("c0")).unwrap();
    symlink(outside.path(), dir.join("c0")).unwrap();
    fs::remove_file(dir.join("persist.json")).unwrap();
    symlink(outside.path().join("persist.json"), dir.join("persist.json")).unwrap();
    fixture.save(3);
    let gone = whole("s1", 0, 1, 4);
    fixture.driver().to_disk(anew(), &gone.sandbox, &none()).unwrap();
    fixture.driver().destroy(anew(), "s1").unwrap();
    assert_eq!(read(outside.path().join("persist.json")), b"outside");
    // Nor by data of no sandbox: a link inside the root that leads out of it.
    symlink(outside.path(), fixture.root.path().join("link")).unwrap();
    let mut driver = fixture.driver();
    assert!(driver.global_write("link/new", b"x").is_err());
    assert!(driver.global_read("link/persist.json").is_err());
    assert_eq!(tree(outside.path()), ["persist.json"]);
}

#[test]
fn katas_program_and_ours_see_each_others_locks() {
    let fixture = Fixture::new();
    let flock = |args: &[&str]| {
        Command::new("flock").args(args).arg(fixture.dir()).arg("true").status().unwrap().success()
    };
    let mut driver = fixture.driver();
    let lock = driver.lock("s1", Ask::exclusive(SOON)).unwrap();
    assert!(!flock(&["-n"]));
    assert!(!flock(&["-n", "-s"]));
    drop(lock);
    let lock = driver.lock("s1", Ask::shared(SOON)).unwrap();
    assert!(!flock(&["-n"]));
    assert!(flock(&["-n", "-s"]));
    drop(lock);
    assert!(flock(&["-n"]));
    // And the other way round: who has it stands in the error.
    let holder =
        Reaped::start(Command::new("flock").arg("-F").arg(fixture.dir()).args(["sleep", "60"]));
    let until = std::time::Instant::now() + SOON;
    let error = loop {
        match driver.lock("s1", Ask { wait: Wait::No, ..Ask::exclusive(SOON) }) {
            Err(error) => break error,
            Ok(_) => assert!(std::time::Instant::now() < until, "flock never locked"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let DriverError::Lock(LockError::Busy { holders, .. }) = &error else { panic!("{error}") };
    assert_eq!(holders[0].pid.unsigned_abs(), holder.0.id());
    assert!(holders[0].age.is_some_and(|age| age < SOON));
    let text = format!("sandbox s1 is locked by process {} (sleep, running for ", holder.0.id());
    assert!(error.to_string().starts_with(&text), "{error}");
    // A reader of ours waits for nobody.
    assert_eq!(driver.from_disk("s1").unwrap().whole, whole("s1", 2, 1, 2));
}

#[test]
fn a_save_holds_its_lock_no_longer_than_it_takes() {
    let fixture = Fixture::new();
    let mut driver = fixture.driver();
    let state = whole("s1", 2, 1, 3);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    let free = Ask { wait: Wait::No, ..Ask::exclusive(SOON) };
    drop(fixture.driver().lock("s1", free).unwrap());
    let without = Lock::without(SandboxId::new("s1").unwrap());
    driver.destroy(By::Lock(&without), "s1").unwrap();
}
