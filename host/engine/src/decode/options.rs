//! What the decoder needs to know of the job, and what it counts.
//!
//! A change is dropped here only for reasons that no filter may overrule: it is Oplogue's own, or the target has it
//! because it came from there. Each such reason has its counter.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::oplog::Entry;
use crate::error::Result;
use crate::model::{CollectionUuid, Origin};

/// What the decoder needs to know of the job.
#[derive(Debug, Clone, Default)]
pub struct DecodeOptions {
    /// Full names (`db.collection`) of Oplogue's own collections on the source: their entries are dropped.
    pub own_collections: Vec<String>,
    /// Databases that are Oplogue's own altogether (conflict records).
    pub own_databases: Vec<String>,
    /// Changes from these clusters are dropped: the target has them (`incr_sync.loop_prevention.drop`).
    pub drop_origins: Vec<Origin>,
    /// Entries with another global id than these, or with none, are dropped; empty: the id is not looked at
    /// (`incr_sync.oplog.gids`).
    pub global_ids: Vec<String>,
    /// Bytes that open transactions may hold in memory; what is more is put aside.
    pub transaction_bytes: usize,
    /// A transaction of up to so many bytes is one batch of its own, to become visible as one; 0 = its changes are
    /// spread like any others.
    pub atomic_bytes: usize,
    /// The source is a shard: what a chunk migration writes (`fromMigrate`) is another shard's change. On a replica
    /// set the flag stands on real changes only: `cloneCollectionAsCapped`, `convertToCapped` and renames across
    /// databases log the documents they copy with it (seen on 4.4.2, 5.0.4 and 6.0.27).
    pub is_shard: bool,
    /// Of a shard: the capped collections that it has when reading begins. No chunk is ever in one, so what is written
    /// there as a migration is a copy within the shard (`cloneCollectionAsCapped`, which only shards of 4.4 take).
    pub capped: HashSet<CollectionUuid>,
    /// Of a shard whose writes to the leftovers of moved chunks are not told from others (a feature compatibility version
    /// before 6.0): the namespaces of which no chunk may move. `None` = chunks may move.
    pub must_stay: Option<MustStay>,
    /// What to do with what was visible at the cut of a cluster's first start.
    pub behind_cut: BehindCut,
}

/// A question about a full name.
type Ask = dyn Fn(&str) -> Result<bool> + Send + Sync;

/// Tells of a full name whether documents of it must stay on their shard; fails where a plugin does that is asked.
#[derive(Clone)]
pub struct MustStay(pub Arc<Ask>);

impl fmt::Debug for MustStay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MustStay")
    }
}

/// How the target came to have what was visible at the cut of a cluster's first start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BehindCut {
    /// Nobody but us wrote it, and more than that may be there: it is applied again, in order.
    #[default]
    Repeated,
    /// The same, by a copy that was begun at the cut: what it met is what stood there then.
    Copied,
    /// Somebody brought the target to just this time: nothing of it is applied again.
    LeftOut,
}

/// Entries seen, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeCounts {
    pub entries: u64,
    /// Size of the largest entry, in bytes.
    pub largest_bytes: u64,
    pub changes: u64,
    pub noop: u64,
    pub from_migrate: u64,
    pub own: u64,
    /// What came from a cluster that has it: dropped by its mark or its global id.
    pub looped: u64,
    /// What the server does for itself: `startIndexBuild` and `abortIndexBuild` (the index comes with
    /// `commitIndexBuild`), the making of `system.views`, the view of a time-series collection, the documents of a
    /// collection that is being resharded, users and sessions.
    pub internal: u64,
    /// Transactions that were aborted.
    pub aborted: u64,
    /// Updates that came as the whole document, since the server tells no exact form of them.
    pub whole: u64,
    /// Of such updates, those whose document was gone by then: its delete follows.
    pub gone: u64,
    /// Transactions that were to stay whole and do not: larger than that, or with DDL inside.
    pub split: u64,
}

impl DecodeOptions {
    /// Whether the target has it already, because it came from there. All entries of a transaction carry the mark, so
    /// none of a dropped one is ever kept open.
    pub(super) fn is_looped(&self, entry: &Entry) -> bool {
        let Self { drop_origins, global_ids, .. } = self;
        if entry.origin.is_some_and(|origin| drop_origins.contains(&origin)) {
            return true;
        }
        !global_ids.is_empty()
            && entry.op != b'n'
            && !global_ids.iter().any(|id| entry.global_id.as_deref() == Some(id.as_bytes()))
    }

    pub(super) fn is_own(&self, entry: &Entry) -> bool {
        let ns = entry.ns();
        let Some(database) = ns.strip_suffix(".$cmd") else {
            return self.is_own_name(ns);
        };
        let named = entry.command_collection();
        self.own_databases.iter().any(|own| own == database)
            || self.own_collections.iter().any(|own| {
                own.strip_prefix(database).and_then(|rest| rest.strip_prefix('.')) == named && named.is_some()
            })
    }

    pub(super) fn is_own_name(&self, ns: &str) -> bool {
        self.own_collections.iter().any(|own| own == ns)
            || self.own_databases.iter().any(|own| ns.split('.').next() == Some(own))
    }
}
