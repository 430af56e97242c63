//! Where a change was first made, when several clusters replicate to each other.
//!
//! A collector that takes part in a ring gives its writes a transaction number of a reserved pattern; the server logs
//! that number beside every entry, and the collector behind it reads the origin back and drops what its target has
//! seen. No driver comes near the pattern: drivers count the transactions of a session from 1. Nothing here writes.

use std::num::NonZeroU8;

/// The two upper bytes of a marked transaction number: "OL".
const MAGIC: i64 = 0x4F4C;

/// Marked numbers of one session; more than a session could ever use.
const COUNT_BITS: u32 = 40;

/// The number of a cluster among those that replicate to each other (`incr_sync.loop_prevention.origin`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(NonZeroU8);

impl Origin {
    /// The origin of this number; `None` for 0, which stands for no origin.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        NonZeroU8::new(number).map(Self)
    }

    /// The number, 1 to 255.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0.get()
    }

    /// The origin in a logged `txnNumber`; `None` when a client that is no collector chose it.
    #[must_use]
    pub fn of_transaction(number: i64) -> Option<Self> {
        let [high, low, .., origin] = number.to_be_bytes();
        (i64::from(u16::from_be_bytes([high, low])) == MAGIC).then(|| Self::new(origin)).flatten()
    }

    /// The transaction number that carries this origin. Numbers of one session rise with `count`, whatever the origin.
    #[must_use]
    pub fn transaction(self, count: u64) -> i64 {
        let count = (count & ((1 << COUNT_BITS) - 1)).cast_signed();
        MAGIC << 48 | count << 8 | i64::from(self.number())
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marked_number_gives_its_origin_back_and_no_other_does() {
        for number in 1..=u8::MAX {
            let origin = Origin::new(number).unwrap();
            for count in [0, 1, 77, (1 << COUNT_BITS) - 1] {
                let marked = origin.transaction(count);
                assert!(marked > 0);
                assert_eq!(Origin::of_transaction(marked), Some(origin));
            }
        }
        for number in [0, 1, 2, 255, 1 << 40, i64::MAX, -1, MAGIC << 48] {
            assert_eq!(Origin::of_transaction(number), None, "{number}");
        }
    }

    #[test]
    fn numbers_of_a_session_rise_across_origins() {
        let (low, high) = (Origin::new(1).unwrap(), Origin::new(200).unwrap());
        assert!(high.transaction(4) < low.transaction(5));
    }
}
