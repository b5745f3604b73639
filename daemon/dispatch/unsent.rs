//! Deliveries that have been taken and may not leave yet: few, so that what is urgent waits for few.
//!
//! One that waits for what is not about all requests, such as the limit of one endpoint, is held back: it counts with its kind of
//! object alone, and all others go on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Unsent {
    counts: Mutex<Counts>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    /// Those that wait for what all requests need.
    waiting: usize,
    /// Those that are held back, by object.
    held_back: HashMap<String, HeldBack>,
}

#[derive(Debug, Default)]
struct HeldBack {
    count: usize,
    /// With so many no more of the object are taken.
    enough: usize,
}

/// Where one of them is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    HeldBack(String),
    Left,
}

/// One of them.
#[derive(Debug)]
pub struct Waiting {
    unsent: Arc<Unsent>,
    place: Mutex<Place>,
}

impl Waiting {
    /// It waits for something that is only about `object`; of which no more are taken while `enough` do.
    pub fn hold_back(&self, object: &str, enough: usize) {
        self.go(Place::HeldBack(object.to_owned()), enough);
    }

    /// True while it is held back.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        matches!(*self.place.lock().unwrap_or_else(PoisonError::into_inner), Place::HeldBack(_))
    }

    /// It waits for what all requests need.
    pub fn go_on(&self) {
        self.go(Place::Waiting, 0);
    }

    /// It may leave.
    pub fn leave(&self) {
        self.go(Place::Left, 0);
    }

    fn go(&self, to: Place, enough: usize) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if *place == to {
            return;
        }
        let mut counts = self.unsent.lock();
        match &to {
            Place::Waiting => counts.waiting += 1,
            Place::HeldBack(object) => {
                let held = counts.held_back.entry(object.clone()).or_default();
                held.count += 1;
                held.enough = enough.max(1);
            }
            Place::Left => {}
        }
        match std::mem::replace(&mut *place, to) {
            Place::Waiting => counts.waiting = counts.waiting.saturating_sub(1),
            Place::HeldBack(object) => {
                if let Some(held) = counts.held_back.get_mut(&object) {
                    held.count = held.count.saturating_sub(1);
                    if held.count == 0 {
                        counts.held_back.remove(&object);
                    }
                }
            }
            Place::Left => return,
        }
        drop(counts);
        self.unsent.freed.notify_one();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Unsent {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes one more.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Waiting {
        self.lock().waiting += 1;
        Waiting { unsent: self.clone(), place: Mutex::new(Place::Waiting) }
    }

    /// Notes one that is held back from the start.
    #[must_use]
    pub fn enter_held_back(self: &Arc<Self>, object: &str, enough: usize) -> Waiting {
        let waiting = Waiting { unsent: self.clone(), place: Mutex::new(Place::Left) };
        waiting.hold_back(object, enough);
        waiting
    }

    /// How many wait for what all requests need.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().waiting
    }

    /// How many are held back.
    #[must_use]
    pub fn held_back(&self) -> usize {
        self.lock().held_back.values().map(|held| held.count).sum()
    }

    /// True while no more of `object` are to be taken.
    #[must_use]
    pub fn is_held_back(&self, object: &str) -> bool {
        self.lock().held_back.get(object).is_some_and(|held| held.count >= held.enough)
    }

    /// Ends when there is room for more than before.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_back_takes_no_room_from_others() {
        let unsent = Arc::new(Unsent::default());
        let (first, second, other) = (unsent.enter(), unsent.enter(), unsent.enter());
        assert_eq!((unsent.count(), unsent.held_back()), (3, 0));
        first.hold_back("invoice", 2);
        assert!(!unsent.is_held_back("invoice"));
        second.hold_back("invoice", 2);
        assert_eq!((unsent.count(), unsent.held_back()), (1, 2));
        assert!(unsent.is_held_back("invoice") && !unsent.is_held_back("customer"));
        first.go_on();
        assert_eq!((unsent.count(), unsent.held_back()), (2, 1));
        first.leave();
        first.leave();
        drop(second);
        other.leave();
        drop(other);
        assert_eq!((unsent.count(), unsent.held_back()), (0, 0));
        first.hold_back("invoice", 1);
        assert!(unsent.is_held_back("invoice"));
        drop(first);
        assert_eq!((unsent.count(), unsent.held_back()), (0, 0));
    }
}
