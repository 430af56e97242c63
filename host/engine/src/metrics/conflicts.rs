//! The conflicts of this process: how many of each kind and collection, and the last ones in full.
//!
//! A conflict is a change that the target refused for good, so somebody must look at it; a counter says that there is
//! one and this says which. It is bounded and lives as long as the process; what must outlast it is recorded on the
//! target. It holds keys of documents and the server's words, never a document.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use super::labels::{ConflictKind, Label as _, RulingKind};

/// Conflicts that are kept in full.
const LAST_MAX: usize = 100;

/// Collections that are counted by name; the rest are counted together.
const COLLECTIONS_MAX: usize = 1000;

/// One conflict, as an operator reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConflictNow {
    pub kind: ConflictKind,
    /// The target collection.
    pub namespace: String,
    /// The document's `_id`, as text of bounded length.
    pub id: String,
    /// `insert`, `replace`, `update` or `delete`.
    pub operation: &'static str,
    /// Source time of the change: seconds and increment.
    pub time: (u32, u32),
    /// The server's error code.
    pub code: i32,
    pub message: String,
    /// What became of it.
    pub ruling: RulingKind,
}

#[derive(Debug, Default)]
struct Inner {
    counts: BTreeMap<(&'static str, String), u64>,
    last: VecDeque<ConflictNow>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Conflicts {
    inner: Mutex<Inner>,
}

impl Conflicts {
    /// Takes one more.
    pub fn note(&self, conflict: ConflictNow) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let full = inner.counts.len() >= COLLECTIONS_MAX;
        let mut key = (conflict.kind.text(), conflict.namespace.clone());
        if full && !inner.counts.contains_key(&key) {
            key.1 = "others".to_owned();
        }
        *inner.counts.entry(key).or_default() += 1;
        if inner.last.len() >= LAST_MAX {
            inner.last.pop_front();
        }
        inner.last.push_back(conflict);
    }

    /// Kind, collection and number, ordered.
    #[must_use]
    pub fn counts(&self) -> Vec<(&'static str, String, u64)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.counts.iter().map(|((kind, namespace), count)| (*kind, namespace.clone(), *count)).collect()
    }

    /// The last ones, newest first.
    #[must_use]
    pub fn last(&self) -> Vec<ConflictNow> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_bounded_and_counts_all() {
        let conflicts = Conflicts::default();
        for number in 0..2 * COLLECTIONS_MAX {
            conflicts.note(ConflictNow {
                kind: ConflictKind::UniqueKey,
                namespace: format!("a.c{number:05}"),
                id: number.to_string(),
                operation: "insert",
                time: (1, 1),
                code: 11000,
                message: String::new(),
                ruling: RulingKind::Record,
            });
        }
        let counts = conflicts.counts();
        assert_eq!(counts.len(), COLLECTIONS_MAX + 1);
        assert_eq!(counts.iter().map(|(_, _, count)| count).sum::<u64>(), 2 * COLLECTIONS_MAX as u64);
        let last = conflicts.last();
        assert_eq!((last.len(), last[0].id.as_str()), (LAST_MAX, "1999"));
    }
}
