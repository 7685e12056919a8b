//! What every driver does, whatever it keeps states in.
//!
//! Each user makes a driver by `place()`, which makes another one of the same place every time, as
//! another process would have.

use super::states::{container, none, whole};
use coracle_persist::driver::{By, DriverError, OwnRecord, PersistDriver, Save};
use coracle_persist::id::SandboxId;
use coracle_persist::lock::{Ask, Lock, LockError, Wait};
use coracle_persist::model::Time;
use coracle_persist::store::Generation;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub type Place<'a> = &'a (dyn Fn() -> Box<dyn PersistDriver> + Sync);

const SOON: Duration = Duration::from_secs(10);

pub fn anew() -> By<'static> {
    By::Asking(Ask::exclusive(SOON).or_create())
}

pub fn what_is_saved_is_read_by_another(place: Place<'_>) {
    let state = whole("s1", 3, 2, 1);
    let saved = place().to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!((saved.generation, saved.changed), (Generation(1), 4));
    let loaded = place().from_disk("s1").unwrap();
    assert_eq!(loaded.whole, state);
    assert_eq!(loaded.generation, Generation(1));
    assert_eq!(place().list().unwrap(), ["s1"]);
    assert_eq!(place().verify("s1").unwrap().findings, []);
}

pub fn only_what_changed_is_written_and_what_is_gone_stays_gone(place: Place<'_>) {
    let mut driver = place();
    let mut state = whole("s1", 3, 2, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    let same = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!((same.generation, same.changed), (Generation(1), 0));
    state.containers.insert("c1".to_owned(), container(1, 7));
    let one = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!((one.generation, one.changed), (Generation(2), 1));
    state.containers.remove("c0");
    state.containers.insert("new".to_owned(), container(9, 7));
    let two = driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!((two.generation, two.changed), (Generation(3), 2));
    // The same driver reads again and again: nothing that was removed comes back.
    for _ in 0..2 {
        assert_eq!(driver.from_disk("s1").unwrap().whole, state);
    }
    let another = place().to_disk(anew(), &state.sandbox, &none()).unwrap();
    assert_eq!(another.changed, 3);
    assert!(driver.from_disk("s1").unwrap().whole.containers.is_empty());
}

pub fn a_driver_notices_that_another_has_saved(place: Place<'_>) {
    let (mut one, mut two) = (place(), place());
    let first = whole("s1", 2, 1, 1);
    let second = whole("s1", 1, 1, 2);
    one.to_disk(anew(), &first.sandbox, &first.containers).unwrap();
    let saved = two.to_disk(anew(), &second.sandbox, &second.containers).unwrap();
    assert_eq!(saved.generation, Generation(2));
    assert_eq!(one.from_disk("s1").unwrap().whole, second);
    // Not "nothing has changed since my last save".
    let back = one.to_disk(anew(), &first.sandbox, &first.containers).unwrap();
    assert_eq!(back.generation, Generation(3));
    assert_eq!(two.from_disk("s1").unwrap().whole, first);
    let stale = one.save_if(anew(), Generation(1), &second.sandbox, &second.containers);
    assert!(matches!(stale, Err(DriverError::Conflict { found: Generation(3), .. })), "{stale:?}");
    one.save_if(anew(), Generation(3), &second.sandbox, &second.containers).unwrap();
    assert_eq!(two.from_disk("s1").unwrap().whole, second);
}

pub fn one_container_is_saved_without_the_others(place: Place<'_>) {
    let mut driver = place();
    let early = driver.save_container(anew(), "s1", "c1", &container(1, 7), None);
    assert!(matches!(early, Err(DriverError::Absent(_))), "{early:?}");
    let mut state = whole("s1", 3, 2, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    for (name, n) in [("c1", 7), ("new", 9)] {
        let next = container(1, n);
        let saved = driver.save_container(anew(), "s1", name, &next, None).unwrap();
        assert_eq!(saved.changed, 1);
        state.containers.insert(name.to_owned(), next.clone());
        assert_eq!(place().from_disk("s1").unwrap().whole, state);
        let same = place().save_container(anew(), "s1", name, &next, Some(saved.generation));
        assert_eq!(same.unwrap().changed, 0);
    }
    let stale = driver.save_container(anew(), "s1", "c1", &container(1, 8), Some(Generation(1)));
    assert!(matches!(stale, Err(DriverError::Conflict { .. })), "{stale:?}");
    let bad = driver.save_container(anew(), "s1", "../s2", &container(1, 8), None);
    assert!(matches!(bad, Err(DriverError::Id(_))), "{bad:?}");
}

pub fn a_record_of_ours_stays_until_another_is_given(place: Place<'_>) {
    let mut driver = place();
    let mut state = whole("s1", 1, 0, 1);
    let mut record = OwnRecord::default();
    record.members.insert("slots".to_owned(), json!({"scsi": [0, 1]}));
    let save = Save {
        sandbox: &state.sandbox,
        containers: &state.containers,
        record: Some(&record),
        only_if: None,
    };
    driver.save(anew(), save).unwrap();
    state.sandbox.cgroup_path = "/elsewhere".to_owned();
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    assert_eq!(place().from_disk("s1").unwrap().whole.record, Some(record));
}

pub fn a_sandbox_that_is_not_there_is_absent(place: Place<'_>) {
    let mut driver = place();
    let absent = driver.from_disk("s1");
    assert!(matches!(absent, Err(DriverError::Absent(_))), "{absent:?}");
    let unlocked = driver.lock("s1", Ask::exclusive(SOON));
    assert!(matches!(unlocked, Err(DriverError::Lock(LockError::NoSandbox(_)))), "{unlocked:?}");
    driver.destroy(By::Asking(Ask::exclusive(SOON)), "s1").unwrap();
    assert_eq!(driver.list().unwrap(), Vec::<String>::new());
}

pub fn a_destroyed_sandbox_is_gone_and_can_be_made_anew(place: Place<'_>) {
    let mut driver = place();
    let state = whole("s1", 2, 1, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    driver.destroy(By::Asking(Ask::exclusive(SOON)), "s1").unwrap();
    assert!(matches!(place().from_disk("s1"), Err(DriverError::Absent(_))));
    driver.destroy(By::Asking(Ask::exclusive(SOON)), "s1").unwrap();
    let fewer = whole("s1", 1, 0, 2);
    let saved = driver.to_disk(anew(), &fewer.sandbox, &fewer.containers).unwrap();
    assert_eq!(saved.generation, Generation(1));
    assert_eq!(place().from_disk("s1").unwrap().whole, fewer);
}

pub fn a_save_needs_the_right_lock(place: Place<'_>) {
    let mut driver = place();
    let (one, two) = (whole("s1", 1, 0, 1), whole("s2", 1, 0, 1));
    driver.to_disk(anew(), &one.sandbox, &one.containers).unwrap();
    driver.to_disk(anew(), &two.sandbox, &two.containers).unwrap();
    let shared = driver.lock("s1", Ask::shared(SOON)).unwrap();
    let refused = driver.to_disk(By::Lock(&shared), &one.sandbox, &none());
    assert!(matches!(refused, Err(DriverError::Lock(LockError::SharedOnly(_)))), "{refused:?}");
    drop(shared);
    let lock = driver.lock("s1", Ask::exclusive(SOON)).unwrap();
    let other = driver.to_disk(By::Lock(&lock), &two.sandbox, &none());
    assert!(matches!(other, Err(DriverError::Lock(LockError::OtherSandbox { .. }))), "{other:?}");
    driver.to_disk(By::Lock(&lock), &one.sandbox, &none()).unwrap();
    drop(lock);
    // Asked for, a save needs none.
    let without = Lock::without(SandboxId::new("s2").unwrap());
    driver.to_disk(By::Lock(&without), &two.sandbox, &none()).unwrap();
    assert_eq!(place().from_disk("s2").unwrap().whole.containers.len(), 0);
    assert_eq!(place().from_disk("s1").unwrap().whole.containers.len(), 0);
}

pub fn a_lock_of_a_sandbox_that_was_made_anew_is_worth_nothing(place: Place<'_>) {
    let mut driver = place();
    let state = whole("s1", 1, 0, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    let old = driver.lock("s1", Ask::exclusive(SOON)).unwrap();
    // Whoever ignores locks, as Kata does.
    let without = Lock::without(SandboxId::new("s1").unwrap());
    place().destroy(By::Lock(&without), "s1").unwrap();
    place().to_disk(By::Lock(&without), &state.sandbox, &state.containers).unwrap();
    let refused = driver.to_disk(By::Lock(&old), &state.sandbox, &none());
    assert!(matches!(refused, Err(DriverError::Lock(LockError::Gone(_)))), "{refused:?}");
    let refused = driver.destroy(By::Lock(&old), "s1");
    assert!(matches!(refused, Err(DriverError::Lock(LockError::Gone(_)))), "{refused:?}");
    assert_eq!(place().from_disk("s1").unwrap().whole, state);
}

pub fn shared_locks_share_and_an_exclusive_one_waits_its_time(place: Place<'_>) {
    let (mut one, mut two) = (place(), place());
    let state = whole("s1", 0, 0, 1);
    one.to_disk(anew(), &state.sandbox, &none()).unwrap();
    let first = one.lock("s1", Ask::shared(SOON)).unwrap();
    let second = two.lock("s1", Ask { wait: Wait::No, ..Ask::shared(SOON) }).unwrap();
    let since = Instant::now();
    let busy = two.lock("s1", Ask::exclusive(Duration::from_millis(100)));
    assert!(matches!(busy, Err(DriverError::Lock(LockError::Busy { .. }))), "{busy:?}");
    assert!(since.elapsed() >= Duration::from_millis(100));
    let cancel = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let ask = Ask { wait: Wait::Forever, ..Ask::exclusive(SOON) }.unless(&cancel);
            place().lock("s1", ask)
        });
        std::thread::sleep(Duration::from_millis(50));
        cancel.store(true, Ordering::Relaxed);
        let cancelled = waiting.join().unwrap();
        assert!(
            matches!(cancelled, Err(DriverError::Lock(LockError::Cancelled(_)))),
            "{cancelled:?}"
        );
        let ask = Ask { wait: Wait::Forever, ..Ask::exclusive(SOON) };
        let patient = scope.spawn(move || place().lock("s1", ask).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        drop(first);
        drop(second);
        patient.join().unwrap().unwrap();
    });
}

pub fn an_id_that_leads_elsewhere_is_refused_and_nothing_is_lost(place: Place<'_>) {
    let mut driver = place();
    let state = whole("s1", 2, 1, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    for id in ["", ".", "..", "../s1", "a/b"] {
        let bad = whole(id, 0, 0, 1);
        assert!(matches!(driver.to_disk(anew(), &bad.sandbox, &none()), Err(DriverError::Id(_))));
        assert!(matches!(driver.from_disk(id), Err(DriverError::Id(_))));
        assert!(matches!(driver.destroy(anew(), id), Err(DriverError::Id(_))));
        assert!(matches!(driver.lock(id, Ask::exclusive(SOON)), Err(DriverError::Id(_))));
        let mut bad = state.clone();
        bad.containers.insert(id.to_owned(), container(0, 1));
        let refused = driver.to_disk(anew(), &bad.sandbox, &bad.containers);
        assert!(matches!(refused, Err(DriverError::Id(_))), "{id:?}: {refused:?}");
    }
    assert_eq!(place().from_disk("s1").unwrap().whole, state);
    assert_eq!(place().list().unwrap(), ["s1"]);
}

pub fn a_value_without_a_text_is_refused_and_the_old_state_stays(place: Place<'_>) {
    let mut driver = place();
    let state = whole("s1", 2, 1, 1);
    driver.to_disk(anew(), &state.sandbox, &state.containers).unwrap();
    let mut bad = whole("s1", 2, 1, 2);
    let Some(second) = bad.containers.get_mut("c1") else { panic!("no c1") };
    second.process.start_time = Time { seconds: 253_402_300_800, nanos: 0, offset: 0 };
    let refused = driver.to_disk(anew(), &bad.sandbox, &bad.containers);
    match &refused {
        Err(DriverError::Encode { container: Some(container), .. }) => assert_eq!(container, "c1"),
        other => panic!("{other:?}"),
    }
    assert_eq!(place().from_disk("s1").unwrap().whole, state);
    assert_eq!(driver.from_disk("s1").unwrap().generation, Generation(1));
    // Of a sandbox that was never saved nothing is there either.
    bad.sandbox.sandbox_container = "s2".to_owned();
    assert!(driver.to_disk(anew(), &bad.sandbox, &bad.containers).is_err());
    assert_eq!(place().list().unwrap(), ["s1"]);
}

pub fn data_of_no_sandbox_is_written_whole_and_stays_beneath_the_root(place: Place<'_>) {
    let mut driver = place();
    driver.global_write("uuid/uuid.json", b"longer-data").unwrap();
    driver.global_write("uuid/uuid.json", b"ab").unwrap();
    assert_eq!(place().global_read("uuid/uuid.json").unwrap(), b"ab");
    assert_eq!(place().global_read("/uuid/uuid.json").unwrap(), b"ab");
    driver.global_write("empty", b"").unwrap();
    assert_eq!(place().global_read("empty").unwrap(), b"");
    for path in ["", "/", "..", "../x", "a/../../x"] {
        assert!(matches!(driver.global_write(path, b"x"), Err(DriverError::Global(_))), "{path:?}");
        assert!(matches!(driver.global_read(path), Err(DriverError::Global(_))), "{path:?}");
    }
    assert!(matches!(driver.global_read("none"), Err(DriverError::Global(_))));
}

pub fn places_are_in_one_root(place: Place<'_>) {
    let driver = place();
    let (sandboxes, vms) = (driver.run_storage_path(), driver.run_vm_storage_path());
    assert!(sandboxes.ends_with("sbs") && vms.ends_with("vm"));
    assert_eq!(sandboxes.parent(), vms.parent());
}

/// A test for each of the above.
#[macro_export]
macro_rules! conformance {
    ($place:expr) => {
        $crate::conformance!(@ $place;
            what_is_saved_is_read_by_another
            only_what_changed_is_written_and_what_is_gone_stays_gone
            a_driver_notices_that_another_has_saved
            one_container_is_saved_without_the_others
            a_record_of_ours_stays_until_another_is_given
            a_sandbox_that_is_not_there_is_absent
            a_destroyed_sandbox_is_gone_and_can_be_made_anew
            a_save_needs_the_right_lock
            a_lock_of_a_sandbox_that_was_made_anew_is_worth_nothing
            shared_locks_share_and_an_exclusive_one_waits_its_time
            an_id_that_leads_elsewhere_is_refused_and_nothing_is_lost
            a_value_without_a_text_is_refused_and_the_old_state_stays
            data_of_no_sandbox_is_written_whole_and_stays_beneath_the_root
            places_are_in_one_root
        );
    };
    (@ $place:expr; $($name:ident)*) => {
        $(#[test]
        fn $name() {
            let place = $place;
            $crate::support::conformance::$name(&|| place.driver());
        })*
    };
}
