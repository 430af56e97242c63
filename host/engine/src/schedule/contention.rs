//! When a collection is better written in one lane: its unique keys collide too often to be worth the others.
//!
//! A collision costs a pause of the whole collection and a transaction; in the source's own order there is none. So a
//! collection whose writes are put aside again and again goes on in one lane, in order, for the rest of the run, where
//! the settings leave it to us (`incr_sync.shard_key = auto`). Only numbers are kept here; who may change lanes, and
//! when, is the scheduler's business.

use std::collections::HashMap;

use crate::model::NamespaceId;

/// Collisions that are counted together.
const COLLISIONS: u32 = 128;

/// They are too many when they come within this many writes of the collection.
const WRITES: u64 = 4096;

/// The collisions of all collections that have had one.
#[derive(Debug, Default)]
pub struct Contention {
    /// Writes that had come back when the count began, and the count.
    counts: HashMap<NamespaceId, (u64, u32)>,
}

impl Contention {
    /// A write of `namespace` collided, after `returned` writes of it have come back. Whether it is one too many.
    pub fn collided(&mut self, namespace: NamespaceId, returned: u64) -> bool {
        let (began, count) = self.counts.entry(namespace).or_insert((returned, 0));
        if returned.saturating_sub(*began) > WRITES {
            (*began, *count) = (returned, 0);
        }
        *count += 1;
        *count >= COLLISIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Namespaces;

    #[test]
    fn many_collisions_in_few_writes_are_too_many() {
        let names = Namespaces::default();
        let (often, seldom) = (names.intern("a.often"), names.intern("a.seldom"));
        let mut contention = Contention::default();
        let too_many = |at: &mut Contention, namespace, apart: u64| {
            (0..1000_u64).find(|n| at.collided(namespace, n * apart)).map(|n| n + 1)
        };
        assert_eq!(too_many(&mut contention, often, 10), Some(u64::from(COLLISIONS)));
        assert_eq!(too_many(&mut contention, seldom, 100), None);
    }
}
