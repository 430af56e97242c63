//! Over how many lanes the documents of one collection are spread.
//!
//! Every lane and collection in a flush is a command of its own, and a command costs the target as much as dozens of
//! statements. So a collection takes all lanes when it is alone and its share of them when others are being written
//! too: commands stay large, and all lanes stay in use. A collection's share changes only while nothing of it is
//! pending or in flight, since a document must not have two writers. Nothing here knows what a lane does.

use crate::model::NamespaceId;
use crate::schedule::lane::Address;

/// Pending writes of a collection with a narrow share at which lanes that stand idle are worth a short pause.
const CROWDED: usize = 16_384;

#[derive(Debug, Clone, Copy, Default)]
struct Share {
    /// Writes that are pending or in flight.
    outstanding: usize,
    /// Writes that have come back so far.
    returned: u64,
    /// First lane and number of lanes; 0 before the first write.
    first: usize,
    width: usize,
}

/// The shares of all target collections.
#[derive(Debug)]
pub struct Spread {
    lanes: usize,
    shares: Vec<Share>,
    /// Collections with something outstanding, and the sum over all.
    active: usize,
    total: usize,
    next: usize,
}

impl Spread {
    /// No collection is being written yet.
    #[must_use]
    pub fn new(lanes: usize) -> Self {
        Self { lanes: lanes.max(1), shares: Vec::new(), active: 0, total: 0, next: 0 }
    }

    /// The lane of a document. A collection that is drained gets a new share first; `narrow` = one lane only.
    pub fn lane(&mut self, (namespace, document): Address, narrow: bool) -> usize {
        let (lanes, active, next) = (self.lanes, self.active, self.next);
        let share = self.share(namespace);
        if share.outstanding == 0 {
            share.width = if narrow { 1 } else { (lanes / (active + 1)).max(1) };
            share.first = next;
            self.next = (next + self.share(namespace).width) % lanes;
        }
        let share = self.share(namespace);
        (share.first + document.lane(namespace.index() as u64 + 1, share.width)) % lanes
    }

    /// A write of `namespace` is pending now. Returns whether the collection is crowded into its share while other
    /// lanes stand idle: draining it would give it more.
    pub fn enter(&mut self, namespace: NamespaceId) -> bool {
        let share = self.share(namespace);
        share.outstanding += 1;
        let Share { outstanding, width, .. } = *share;
        self.total += 1;
        if outstanding == 1 {
            self.active += 1;
        }
        outstanding % CROWDED == 0 && width * self.active * 2 <= self.lanes
    }

    /// A write has come back or was taken out. False when none was outstanding.
    #[must_use]
    pub fn leave(&mut self, namespace: NamespaceId) -> bool {
        let share = self.share(namespace);
        if share.outstanding == 0 {
            return false;
        }
        share.outstanding -= 1;
        share.returned += 1;
        if share.outstanding == 0 {
            self.active -= 1;
        }
        self.total -= 1;
        true
    }

    /// Whether nothing of `namespace` is pending or in flight.
    #[must_use]
    pub fn is_drained(&self, namespace: NamespaceId) -> bool {
        self.shares.get(namespace.index()).is_none_or(|share| share.outstanding == 0)
    }

    /// How many writes of `namespace` have come back so far.
    #[must_use]
    pub fn returned(&self, namespace: NamespaceId) -> u64 {
        self.shares.get(namespace.index()).map_or(0, |share| share.returned)
    }

    /// Whether nothing at all is pending or in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    #[allow(clippy::indexing_slicing, reason = "the line before makes the place")]
    fn share(&mut self, namespace: NamespaceId) -> &mut Share {
        let at = namespace.index();
        if self.shares.len() <= at {
            self.shares.resize(at + 1, Share::default());
        }
        &mut self.shares[at]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::model::{DocumentKey, Namespaces};

    fn addresses(namespace: NamespaceId) -> Vec<Address> {
        let key = |n: i32| DocumentKey::of_value(crate::model::raw::kind::INT32, &n.to_le_bytes()).unwrap();
        (0..200).map(|n| (namespace, key(n))).collect()
    }

    fn lanes_of(spread: &mut Spread, namespace: NamespaceId) -> HashSet<usize> {
        let mut used = HashSet::new();
        for address in addresses(namespace) {
            used.insert(spread.lane(address, false));
            spread.enter(namespace);
        }
        used
    }

    #[test]
    fn a_collection_alone_has_all_lanes_and_among_others_its_share() {
        let names = Namespaces::default();
        let mut spread = Spread::new(8);
        let (a, b, c) = (names.intern("d.a"), names.intern("d.b"), names.intern("d.c"));
        assert_eq!(lanes_of(&mut spread, a).len(), 8);
        assert_eq!(lanes_of(&mut spread, b).len(), 4);
        assert_eq!(lanes_of(&mut spread, c).len(), 2);
    }

    #[test]
    fn a_share_stays_while_anything_is_outstanding() {
        let names = Namespaces::default();
        let mut spread = Spread::new(8);
        let (a, b) = (names.intern("d.a"), names.intern("d.b"));
        lanes_of(&mut spread, a);
        let before: Vec<_> = addresses(b).into_iter().map(|at| (spread.lane(at, false), spread.enter(b)).0).collect();
        while !spread.is_drained(a) {
            assert!(spread.leave(a));
        }
        let after: Vec<_> = addresses(b).into_iter().map(|at| spread.lane(at, false)).collect();
        assert_eq!(before, after);
        while !spread.is_drained(b) {
            assert!(spread.leave(b));
        }
        assert_eq!(lanes_of(&mut spread, b).len(), 8, "drained and alone, it has all lanes");
        assert!(!spread.leave(a));
    }

    #[test]
    fn a_crowded_collection_beside_idle_lanes_asks_for_more() {
        let names = Namespaces::default();
        let mut spread = Spread::new(8);
        let (a, b) = (names.intern("d.a"), names.intern("d.b"));
        let place = addresses(a)[0];
        spread.lane(addresses(b)[0], true);
        spread.enter(b);
        spread.lane(place, true);
        let crowded = (0..CROWDED).filter(|_| spread.enter(a)).count();
        assert_eq!(crowded, 1);
    }
}
