//! Whose turn it is when not everything can go: the most urgent first, and a part of the way for the rest, so that nothing
//! waits for ever. Pure.
//!
//! While a class has enough to fill the way, the classes below it share what is left to them: of 256 deliveries one beside
//! money (ten thousand invoices at a hundred a second are out half a second later than alone), of 8 one beside entitlements, of 4 one
//! beside profiles. What has waited for long makes the part of its class larger.

use std::time::Duration;

use crate::event::Priority;

/// Waiting for longer, the less urgent get an eighth of the way beside money.
pub const AGED: Duration = Duration::from_secs(15 * 60);
/// One of so many.
const AGED_PART: u32 = 8;
/// A delivery, in the parts that are counted.
const WHOLE: u32 = 256;
/// Turns saved up by those below at the most: after a pause they shall not all go at once.
const MOST_SAVED: u32 = 4 * WHOLE;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    /// Deliveries that those below are due, in parts of [`WHOLE`].
    saved: u32,
    /// Turns that those below have had: every second one leaves the class below the first out, every fourth the next as well.
    given: u32,
}

/// One delivery of so many goes to the classes below `first`.
fn part(first: Priority, aged: bool) -> Option<u32> {
    match first {
        Priority::Money => Some(if aged { AGED_PART } else { WHOLE }),
        Priority::Entitlement => Some(8),
        Priority::Profile => Some(4),
        Priority::Backfill => None,
    }
}

impl Turns {
    /// Notes that `count` deliveries filled the way, the most urgent of class `first`. `aged`: something below has waited for
    /// longer than [`AGED`].
    pub fn filled(&mut self, first: Priority, count: usize, aged: bool) {
        if let Some(part) = part(first, aged) {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            let parts = count.saturating_mul(WHOLE / part);
            self.saved = self.saved.saturating_add(parts).min(MOST_SAVED.max(parts));
        }
    }

    /// The classes whose turn it is below `first`, and how many of their deliveries; `None` when it is not yet.
    pub fn below(&mut self, first: Priority) -> Option<(Vec<Priority>, usize)> {
        let count = usize::try_from(self.saved / WHOLE).unwrap_or_default();
        if count == 0 {
            return None;
        }
        self.saved %= WHOLE;
        self.given = self.given.wrapping_add(1);
        let lower: Vec<Priority> = Priority::ALL.into_iter().filter(|class| *class > first).collect();
        let skipped = match self.given % 4 {
            2 => 1,
            0 => 2,
            _ => 0,
        };
        let from = skipped.min(lower.len().saturating_sub(1));
        Some((lower.get(from..)?.to_vec(), count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each class goes while all have more than enough.
    fn shares(rounds: usize, first: Priority, aged: bool) -> [usize; 4] {
        let mut turns = Turns::default();
        let mut went = [0; 4];
        for _ in 0..rounds {
            went[usize::try_from(first.number()).unwrap()] += 1;
            turns.filled(first, 1, aged);
            if let Some((classes, count)) = turns.below(first) {
                went[usize::try_from(classes[0].number()).unwrap()] += count;
            }
        }
        went
    }

    #[test]
    fn money_takes_nearly_all_and_nobody_starves() {
        let [money, entitlement, profile, backfill] = shares(256_000, Priority::Money, false);
        assert_eq!(money, 256_000);
        assert_eq!(entitlement + profile + backfill, 1_000);
        assert!(
            backfill >= 200 && profile >= 200 && entitlement >= 400,
            "{entitlement} {profile} {backfill}"
        );
    }

    #[test]
    fn what_has_waited_for_long_gets_more() {
        let [_, entitlement, profile, backfill] = shares(8_000, Priority::Money, true);
        assert_eq!(entitlement + profile + backfill, 1_000);
        let [_, _, profile, backfill] = shares(4_000, Priority::Profile, false);
        assert_eq!((profile, backfill), (4_000, 1_000));
    }

    #[test]
    fn turns_are_not_saved_up_over_a_pause() {
        let mut turns = Turns::default();
        for _ in 0..10_000 {
            turns.filled(Priority::Money, 1, false);
        }
        assert_eq!(turns.below(Priority::Money).map(|(_, count)| count), Some(4));
        assert_eq!(turns.below(Priority::Money), None);
    }
}
