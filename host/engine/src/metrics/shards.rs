//! Where each shard of a sharded source stands, for the status pages and the series.
//!
//! The pipeline has one position, whose time stands among [`super::positions`]; an operator of a cluster wants to see
//! which shard is behind. Written with every batch and read by pages: a lock for a moment. Nothing is decided by it, and
//! for a replica set it stays empty.

use std::sync::{Arc, PoisonError, RwLock};

use crate::model::{OpTime, Position};

/// The positions of all shards.
#[derive(Debug, Default)]
pub struct Shards {
    shards: RwLock<Vec<ShardNow>>,
}

/// One shard at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardNow {
    /// Name of its replica set.
    pub name: Arc<str>,
    /// Its newest majority-committed entry, as last asked.
    pub newest: OpTime,
    /// Its last entry that was handed on.
    pub read: OpTime,
    /// Its last entry that is durable on the target.
    pub durable: OpTime,
    /// Where a restart goes on.
    pub checkpoint: OpTime,
}

impl ShardNow {
    /// Seconds between its newest entry and the last one that is durable on the target; 0 while nothing is.
    #[must_use]
    pub fn lag_seconds(&self) -> u64 {
        if self.durable == OpTime::default() {
            return 0;
        }
        u64::from(self.newest.secs.saturating_sub(self.durable.secs))
    }
}

impl Shards {
    /// The newest entry of one shard.
    pub fn set_newest(&self, name: &Arc<str>, time: OpTime) {
        self.change(name, |shard| shard.newest = time);
    }

    /// Everything up to `position` was handed on.
    pub fn set_read(&self, position: &Position) {
        self.change_all(position, |shard, at| shard.read = at);
    }

    /// Everything up to `position` is durable.
    pub fn set_durable(&self, position: &Position) {
        self.change_all(position, |shard, at| shard.durable = at);
    }

    /// `position` is stored.
    pub fn set_checkpoint(&self, position: &Position) {
        self.change_all(position, |shard, at| shard.checkpoint = at);
    }

    /// All shards, in the order in which they were met.
    #[must_use]
    pub fn now(&self) -> Vec<ShardNow> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change_all(&self, position: &Position, change: impl Fn(&mut ShardNow, OpTime)) {
        for shard in position.shards() {
            self.change(&shard.name, |now| change(now, shard.at));
        }
    }

    fn change(&self, name: &Arc<str>, change: impl FnOnce(&mut ShardNow)) {
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(shard) = shards.iter_mut().find(|shard| shard.name == *name) {
            return change(shard);
        }
        let none = OpTime::default();
        let mut shard = ShardNow { name: Arc::clone(name), newest: none, read: none, durable: none, checkpoint: none };
        change(&mut shard);
        shards.push(shard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ShardPosition, ShardPositions};

    #[test]
    fn each_shard_has_its_own_lag() {
        let shards = Shards::default();
        let names: [Arc<str>; 2] = ["s1".into(), "s2".into()];
        let at = |secs| OpTime::new(secs, 1, 1);
        for (name, secs) in names.iter().zip([100, 300]) {
            shards.set_newest(name, at(secs));
        }
        let positions =
            names.iter().map(|name| ShardPosition { name: Arc::clone(name), at: at(90), open_since: None }).collect();
        shards.set_durable(&Position::Shards(Arc::new(ShardPositions { time: at(90), shards: positions })));
        let lags: Vec<u64> = shards.now().iter().map(ShardNow::lag_seconds).collect();
        assert_eq!(lags, [10, 210]);
    }

    #[test]
    fn a_replica_set_has_no_shards() {
        let shards = Shards::default();
        shards.set_read(&Position::Oplog(OpTime::new(1, 1, 1)));
        assert!(shards.now().is_empty());
    }
}
