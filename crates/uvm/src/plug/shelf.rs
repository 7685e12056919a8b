//! Things that are plugged in once and used by many: who is first, who waits, who is last.
//!
//! ```text
//!                reserve                 settle(ok)
//!    (absent) ------------> ARRIVING ------------------> PRESENT(references)
//!        ^                   |    |                        |        ^
//!        |    settle(failed) |    | reserve: wait,         | release, the last one
//!        +-------------------+    | share its fate         v        | depart(failed): the
//!        |                        |                      LEAVING ---+ reference is back
//!        +------------------------------------------------ | depart(gone)
//!                                                          reserve: wait, then anew
//! ```
//!
//! The shelf is pure: it decides, the caller acts and reports what came of it. Whoever has to wait
//! gets the [`Fate`] of what is under way. A reference is counted when it is reserved, so an
//! arrival that several wait for arrives with all their references, or with none.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fate::{Fate, Verdict};

/// A thing as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved<K, V> {
    pub(crate) key: K,
    pub(crate) value: V,
    pub(crate) references: u32,
    /// It was on its way in or out: whoever finds it so takes it away.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_underway: bool,
}

/// What is on the shelf, by key. `V` is what was chosen for a thing when it was reserved: its place.
#[derive(Debug)]
pub(crate) struct Shelf<K, V> {
    things: BTreeMap<K, Thing<V>>,
}

#[derive(Debug)]
struct Thing<V> {
    value: V,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Arriving { references: u32, verdict: Verdict },
    Present { references: u32 },
    Leaving { verdict: Verdict },
}

/// What a reservation comes to.
#[derive(Debug)]
pub(crate) enum Reserved<V> {
    /// The caller is the first: it makes the thing arrive and calls [`Shelf::settle`].
    First(V),
    /// The thing is there; the reference is counted.
    There(V),
    /// Somebody makes it arrive; the reference is counted and good if that goes well.
    Arriving(V, Fate),
    /// Somebody takes it away: wait, then reserve again.
    Leaving(Fate),
}

/// What giving a reference back comes to.
#[derive(Debug)]
pub(crate) enum Released<V> {
    /// Others still use it.
    Used,
    /// It was the last: the caller takes the thing away and calls [`Shelf::depart`].
    Last(V),
    /// The thing is on its way in or out: wait, then release again.
    Busy(Fate),
    /// There is no such thing.
    Absent,
}

impl<K, V> Default for Shelf<K, V> {
    fn default() -> Self {
        Self { things: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Clone> Shelf<K, V> {
    /// Counts a reference to `key`; `choose` finds a place for a thing that is not there yet.
    ///
    /// # Errors
    /// What `choose` says; nothing changed then.
    pub(crate) fn reserve<E>(
        &mut self,
        key: &K,
        choose: impl FnOnce(&Self) -> Result<V, E>,
    ) -> Result<Reserved<V>, E> {
        let Some(thing) = self.things.get_mut(key) else {
            let value = choose(self)?;
            let stage = Stage::Arriving { references: 1, verdict: Verdict::default() };
            self.things.insert(key.clone(), Thing { value: value.clone(), stage });
            return Ok(Reserved::First(value));
        };
        let value = thing.value.clone();
        Ok(match &mut thing.stage {
            Stage::Arriving { references, verdict } => {
                *references += 1;
                Reserved::Arriving(value, verdict.fate())
            }
            Stage::Present { references } => {
                *references += 1;
                Reserved::There(value)
            }
            Stage::Leaving { verdict } => Reserved::Leaving(verdict.fate()),
        })
    }

    /// The first caller reports: the thing is there, or its place is free again. All who waited
    /// learn the same.
    pub(crate) fn settle(&mut self, key: &K, outcome: &super::Outcome) {
        let Some(thing) = self.things.get_mut(key) else { return };
        let Stage::Arriving { references, verdict } = &mut thing.stage else { return };
        let (references, verdict) = (*references, std::mem::take(verdict));
        if outcome.is_ok() {
            thing.stage = Stage::Present { references };
        } else {
            self.things.remove(key);
        }
        verdict.pronounce(outcome.clone());
    }

    /// Gives a reference back.
    pub(crate) fn release(&mut self, key: &K) -> Released<V> {
        let Some(thing) = self.things.get_mut(key) else { return Released::Absent };
        match &mut thing.stage {
            Stage::Arriving { verdict, .. } | Stage::Leaving { verdict } => {
                Released::Busy(verdict.fate())
            }
            Stage::Present { references } if *references > 1 => {
                *references -= 1;
                Released::Used
            }
            Stage::Present { .. } => {
                thing.stage = Stage::Leaving { verdict: Verdict::default() };
                Released::Last(thing.value.clone())
            }
        }
    }

    /// The last caller reports: the thing is gone, or still there with its one reference, so that
    /// taking it away can be tried again.
    pub(crate) fn depart(&mut self, key: &K, outcome: &super::Outcome) {
        let Some(thing) = self.things.get_mut(key) else { return };
        let Stage::Leaving { verdict } = &mut thing.stage else { return };
        let verdict = std::mem::take(verdict);
        if outcome.is_ok() {
            self.things.remove(key);
        } else {
            thing.stage = Stage::Present { references: 1 };
        }
        verdict.pronounce(outcome.clone());
    }

    /// What was chosen for a thing that is there or on its way in.
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        let thing = self.things.get(key)?;
        (!matches!(thing.stage, Stage::Leaving { .. })).then_some(&thing.value)
    }

    /// How many references a thing that is there has.
    #[cfg(test)]
    pub(crate) fn references(&self, key: &K) -> u32 {
        match self.things.get(key).map(|thing| &thing.stage) {
            Some(Stage::Present { references } | Stage::Arriving { references, .. }) => *references,
            Some(Stage::Leaving { .. }) | None => 0,
        }
    }

    /// Everything on the shelf as it is now.
    pub(crate) fn save(&self) -> Vec<Saved<K, V>> {
        let save = |(key, thing): (&K, &Thing<V>)| {
            let (references, is_underway) = match thing.stage {
                Stage::Arriving { references, .. } => (references, true),
                Stage::Present { references } => (references, false),
                Stage::Leaving { .. } => (1, true),
            };
            Saved { key: key.clone(), value: thing.value.clone(), references, is_underway }
        };
        self.things.iter().map(save).collect()
    }

    /// A shelf as it was written down. What was underway is there with one reference, which whoever
    /// restores it has to give back.
    pub(crate) fn restore(saved: &[Saved<K, V>]) -> Self {
        let there = |thing: &Saved<K, V>| {
            let references = if thing.is_underway { 1 } else { thing.references.max(1) };
            let stage = Stage::Present { references };
            (thing.key.clone(), Thing { value: thing.value.clone(), stage })
        };
        Self { things: saved.iter().map(there).collect() }
    }

    /// How often each thing that is there is referenced.
    pub(crate) fn counted(&self) -> Vec<(K, u32)> {
        let counted = |(key, thing): (&K, &Thing<V>)| match thing.stage {
            Stage::Present { references } => Some((key.clone(), references)),
            Stage::Arriving { .. } | Stage::Leaving { .. } => None,
        };
        self.things.iter().filter_map(counted).collect()
    }

    /// Everything on the shelf, whatever becomes of it: what is leaving still takes its place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.things.iter().map(|(key, thing)| (key, &thing.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UvmError;
    use proptest::prelude::*;
    use std::sync::Arc;

    type Plain = Shelf<&'static str, u32>;

    fn reserve(shelf: &mut Plain, key: &'static str) -> Reserved<u32> {
        shelf.reserve(&key, |_| Ok::<_, ()>(7)).unwrap()
    }

    fn failed() -> super::super::Outcome {
        Err(Arc::new(UvmError::NotSupported))
    }

    #[tokio::test]
    async fn who_comes_later_waits_for_the_first_and_shares_its_fate() {
        let mut shelf = Plain::default();
        assert!(matches!(reserve(&mut shelf, "d"), Reserved::First(7)));
        let Reserved::Arriving(7, good) = reserve(&mut shelf, "d") else { panic!() };
        shelf.settle(&"d", &Ok(()));
        assert!(good.wait().await.is_ok());
        assert_eq!(shelf.references(&"d"), 2);

        assert!(matches!(reserve(&mut shelf, "e"), Reserved::First(_)));
        let Reserved::Arriving(_, bad) = reserve(&mut shelf, "e") else { panic!() };
        shelf.settle(&"e", &failed());
        assert!(
            matches!(bad.wait().await.map_err(|e| e.to_string()), Err(text) if text == "not supported")
        );
        assert_eq!((shelf.get(&"e"), shelf.references(&"e")), (None, 0));
    }

    #[tokio::test]
    async fn a_failed_departure_leaves_one_reference_to_try_again() {
        let mut shelf = Plain::default();
        reserve(&mut shelf, "d");
        shelf.settle(&"d", &Ok(()));
        assert!(matches!(shelf.release(&"d"), Released::Last(7)));
        let Reserved::Leaving(fate) = reserve(&mut shelf, "d") else { panic!() };
        assert!(matches!(shelf.release(&"d"), Released::Busy(_)));
        shelf.depart(&"d", &failed());
        assert!(fate.wait().await.is_err());
        assert!(matches!(shelf.release(&"d"), Released::Last(7)));
        shelf.depart(&"d", &Ok(()));
        assert!(matches!(shelf.release(&"d"), Released::Absent));
    }

    #[test]
    fn what_was_on_its_way_is_restored_as_one_reference_to_give_back() {
        let mut shelf = Plain::default();
        for key in ["there", "leaving"] {
            reserve(&mut shelf, key);
            shelf.settle(&key, &Ok(()));
        }
        reserve(&mut shelf, "there");
        reserve(&mut shelf, "arriving");
        reserve(&mut shelf, "arriving");
        shelf.release(&"leaving");
        let saved = shelf.save();
        let underway: Vec<_> = saved.iter().filter(|s| s.is_underway).map(|s| s.key).collect();
        assert_eq!(underway, ["arriving", "leaving"]);
        let mut restored = Plain::restore(&saved);
        assert_eq!(restored.references(&"there"), 2);
        for key in underway {
            assert!(matches!(restored.release(&key), Released::Last(7)));
        }
    }

    #[test]
    fn no_place_changes_nothing() {
        let mut shelf = Plain::default();
        assert_eq!(shelf.reserve(&"d", |_| Err("full")).err(), Some("full"));
        assert!(shelf.iter().next().is_none());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Reserve,
        Settle(bool),
        Release,
        Depart(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Reserve),
            any::<bool>().prop_map(Step::Settle),
            Just(Step::Release),
            any::<bool>().prop_map(Step::Depart),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// A model of one number: references granted and not given back.
        #[test]
        fn references_never_run_under_and_never_leak(steps in steps()) {
            let (mut shelf, mut held, mut pending) = (Plain::default(), 0_u32, 0_u32);
            let mut leaving = false;
            for step in steps {
                let outcome = |good: bool| if good { Ok(()) } else { failed() };
                match step {
                    Step::Reserve => match reserve(&mut shelf, "d") {
                        Reserved::First(_) => { prop_assert!(held == 0 && pending == 0); pending = 1; }
                        Reserved::Arriving(..) => pending += 1,
                        Reserved::There(_) => { prop_assert!(held > 0); held += 1; }
                        Reserved::Leaving(_) => prop_assert!(leaving),
                    },
                    Step::Settle(good) => {
                        shelf.settle(&"d", &outcome(good));
                        if good { held += pending; }
                        pending = 0;
                    }
                    Step::Release => match shelf.release(&"d") {
                        Released::Used => { prop_assert!(held > 1); held -= 1; }
                        Released::Last(_) => { prop_assert_eq!(held, 1); held = 0; leaving = true; }
                        Released::Busy(_) => prop_assert!(pending > 0 || leaving),
                        Released::Absent => prop_assert!(held == 0 && pending == 0 && !leaving),
                    },
                    Step::Depart(good) => {
                        shelf.depart(&"d", &outcome(good));
                        if leaving && !good { held = 1; }
                        leaving = false;
                    }
                }
                prop_assert_eq!(shelf.references(&"d"), held + pending);
            }
        }
    }
}
