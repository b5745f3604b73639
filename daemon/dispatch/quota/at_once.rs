//! How many requests are under way at once, where a limit says how many: this process's part of them.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the module's text.
pub struct AtOnce {
    most: usize,
    part: Mutex<usize>,
    permits: Arc<Semaphore>,
}

/// The part of one of `processes`; never nothing, since nobody else does what is this one's to do.
#[must_use]
pub fn part_of(most: usize, processes: u32) -> usize {
    (most / usize::try_from(processes.max(1)).unwrap_or(usize::MAX)).max(1)
}

impl AtOnce {
    /// All of `most`.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, part: Mutex::new(most), permits: Arc::new(Semaphore::new(most)) }
    }

    /// How many there are for this process.
    #[must_use]
    pub fn part(&self) -> usize {
        *self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more may be under way.
    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }

    /// Divides them among `processes`. What is under way goes on; what is too many is not replaced when it ends.
    pub fn divide(&self, processes: u32) {
        let mut part = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        let now = part_of(self.most, processes);
        if now > *part {
            self.permits.add_permits(now - *part);
        } else if let Some(fewer) = u32::try_from(*part - now).ok().filter(|fewer| *fewer > 0) {
            let taken = self.permits.clone().acquire_many_owned(fewer);
            tokio::spawn(async move { taken.await.map(OwnedSemaphorePermit::forget) });
        }
        *part = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_process_has_its_part_and_what_is_under_way_goes_on() {
        let at_once = AtOnce::new(4);
        let mut under_way = Vec::new();
        for _ in 0..4 {
            under_way.extend(at_once.enter().await);
        }
        at_once.divide(2);
        tokio::task::yield_now().await;
        under_way.truncate(2);
        tokio::task::yield_now().await;
        assert_eq!(at_once.permits.available_permits(), 0);
        under_way.truncate(1);
        under_way.extend(at_once.enter().await);
        assert_eq!((under_way.len(), at_once.permits.available_permits()), (2, 0));
        at_once.divide(1);
        assert_eq!(at_once.permits.available_permits(), 2);
        at_once.divide(9);
        tokio::task::yield_now().await;
        under_way.clear();
        tokio::task::yield_now().await;
        assert_eq!(at_once.permits.available_permits(), 1);
    }
}
