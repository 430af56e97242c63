//! Documents that are ahead of the stream, because they were read whole from the source.
//!
//! A refetched document already contains changes that are still on their way. Until the stream passes the moment of
//! that read, the document alone is in overlap, whatever the namespace is. The map is empty in normal operation, and
//! a lane pays one atomic load for that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use oplogue_engine::model::{DocumentKey, NamespaceId, OpTime};

/// Beyond this many, entries that the stream has passed are looked for at each insertion.
const SWEEP_AT: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct FromFuture {
    count: AtomicUsize,
    until: Mutex<HashMap<(NamespaceId, DocumentKey), OpTime>>,
}

impl FromFuture {
    /// Notes that a document was read as of `read_at`, for a change of time `now`.
    pub(super) fn note(&self, namespace: NamespaceId, key: &[u8], read_at: OpTime, now: OpTime) {
        let Ok(key) = DocumentKey::of_document(key) else {
            return;
        };
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= SWEEP_AT {
            until.retain(|_, time| time.ts() >= now.ts());
        }
        until.insert((namespace, key), read_at);
        self.count.store(until.len(), Ordering::Release);
    }

    /// Whether a document was read from the source and the stream was not seen to pass it since.
    pub(super) fn holds(&self, namespace: NamespaceId, key: &DocumentKey) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.contains_key(&(namespace, *key))
    }

    /// Whether the target's document may contain a change of `time` already.
    pub(super) fn covers(&self, namespace: NamespaceId, key: &[u8], time: OpTime) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let Ok(key) = DocumentKey::of_document(key) else {
            return false;
        };
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(read_at) = until.get(&(namespace, key)) else {
            return false;
        };
        let covered = time.ts() <= read_at.ts();
        if !covered {
            until.remove(&(namespace, key));
            self.count.store(until.len(), Ordering::Release);
        }
        covered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oplogue_engine::model::Namespaces;

    #[test]
    fn a_document_is_ahead_until_the_stream_passes_the_read() {
        let ids = Namespaces::default();
        let (a, key) = (ids.intern("a.b"), bson::rawdoc! { "_id": 1 });
        let at = |inc| OpTime::new(1, inc, 1);
        let future = FromFuture::default();
        future.note(a, key.as_bytes(), at(5), at(3));
        assert!(future.covers(a, key.as_bytes(), at(5)));
        assert!(!future.covers(ids.intern("a.c"), key.as_bytes(), at(5)));
        assert!(!future.covers(a, key.as_bytes(), at(6)));
        assert!(!future.covers(a, key.as_bytes(), at(4)), "the entry goes once the stream has passed it");
    }
}
