//! Numbers for names inside the guest: never used twice in the life of a VM.

use std::sync::atomic::{AtomicU64, Ordering};

/// The two counters of a VM.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    containers: AtomicU64,
    mounts: AtomicU64,
}

impl Counters {
    pub(crate) fn next_container(&self) -> u64 {
        next(&self.containers)
    }

    pub(crate) fn next_mount(&self) -> u64 {
        next(&self.mounts)
    }
}

impl Counters {
    /// How many containers and mounts were counted.
    pub(crate) fn read(&self) -> (u64, u64) {
        (self.containers.load(Ordering::Relaxed), self.mounts.load(Ordering::Relaxed))
    }

    /// Goes on where another left off.
    pub(crate) fn resume((containers, mounts): (u64, u64)) -> Self {
        Self { containers: containers.into(), mounts: mounts.into() }
    }
}

/// The first number is 1.
fn next(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;

    #[test]
    fn each_counter_begins_at_one_and_minds_its_own_business() {
        let counters = Counters::default();
        assert_eq!([counters.next_container(), counters.next_container()], [1, 2]);
        assert_eq!(counters.next_mount(), 1);
    }

    #[test]
    fn no_number_is_given_twice_under_contention() {
        let counters = Counters::default();
        let seen = Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        assert!(seen.lock().unwrap().insert(counters.next_mount()));
                    }
                });
            }
        });
        assert_eq!(seen.into_inner().unwrap().len(), 2000);
    }
}
